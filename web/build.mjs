// node build.mjs OUT: builds the page, one HTML file without external references. Its second line has the content security policy with
// which the gateway serves it, including the hashes of its script and style.
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { build } from "esbuild";

const common = { bundle: true, minify: true, write: false, target: ["es2022"], charset: "utf8", legalComments: "none", absWorkingDir: import.meta.dirname };
const script = await build({ ...common, entryPoints: ["src/main.tsx"], format: "iife", jsx: "automatic", jsxImportSource: "preact", define: { "process.env.NODE_ENV": '"production"' } });
const style = await build({ ...common, entryPoints: ["src/style.css"] });
const [js, css] = [script, style].map(({ outputFiles }) => outputFiles[0].text.trim());
const hash = (text) => `'sha256-${createHash("sha256").update(text).digest("base64")}'`;
const icon = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 16 16'%3E%3Cpath d='M1 5c3-3 4 3 7 0s4 3 7 0M1 10c3-3 4 3 7 0s4 3 7 0' fill='none' stroke='%230b7285' stroke-width='2'/%3E%3C/svg%3E";
const policy = [
  "default-src 'none'",
  `script-src ${hash(js)}`,
  `style-src ${hash(css)}`,
  "img-src data:",
  "connect-src 'self'",
  "base-uri 'none'",
  "form-action 'none'",
  "frame-ancestors 'none'",
  "require-trusted-types-for 'script'",
].join("; ");
const page = `<!doctype html>
<!-- Content-Security-Policy: ${policy} -->
<!-- Made from web/ by cargo xtask web -->
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark">
<title>weir</title>
<link rel="icon" href="${icon}">
<style>${css}</style>
<body>
<div id="app"></div>
<noscript>This page needs JavaScript. The API does not: GET / with Accept: application/json lists its routes.</noscript>
<script>${js}</script>
`;
writeFileSync(process.argv[2], page);
