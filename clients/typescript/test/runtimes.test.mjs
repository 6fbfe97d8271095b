// The client in runtimes that have the interfaces of the web and not those of Node.js.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { after, before } from "node:test";
import { fileURLToPath } from "node:url";
import { createContext, runInContext } from "node:vm";
import { build } from "esbuild";
import { test, WEIR, weir, within } from "./support.mjs";

const needsWeir = { skip: WEIR === undefined ? "WEIR_TEST_PROGRAM is not set" : false };
/** A program of Deno, which nothing here installs. */
const DENO = process.env.WEIR_TEST_DENO;
/** The interfaces of browsers, Deno, Bun and Workers (WinterTC: Minimum Common Web Platform API), and WebSockets. */
const WEB = [
  "AbortController", "AbortSignal", "Blob", "ByteLengthQueuingStrategy", "CloseEvent", "CompressionStream", "CountQueuingStrategy", "CustomEvent",
  "DOMException", "DecompressionStream", "Event", "EventTarget", "File", "FormData", "Headers", "MessageEvent", "ReadableStream", "Request", "Response",
  "TextDecoder", "TextDecoderStream", "TextEncoder", "TextEncoderStream", "TransformStream", "URL", "URLSearchParams", "WebSocket", "WritableStream",
  "atob", "btoa", "clearInterval", "clearTimeout", "console", "crypto", "fetch", "performance", "queueMicrotask", "setInterval", "setTimeout",
  "structuredClone",
];
const path = (name) => fileURLToPath(new URL(name, import.meta.url));

let server;
before(async () => {
  if (WEIR !== undefined) server = await weir();
});
after(() => server?.kill());

function check(report) {
  const { label, missing, duplex, followed, states, uploaded } = JSON.parse(report);
  assert.equal(label, "positive");
  assert.deepEqual(missing, ["WeirError", 404]);
  assert.deepEqual(duplex, [0, 1]);
  assert.deepEqual(followed, { sse: [[1, 2, 3], [2, 3]], ws: [[1, 2, 3], [2, 3]] });
  assert.deepEqual(states, ["connecting", "closed"]);
  assert.equal(uploaded, 100);
}

/** A module with all that it imports. A module of Node.js in it is an error. */
async function bundle(name, options) {
  const built = await build({ entryPoints: [path(name)], bundle: true, write: false, metafile: true, platform: "neutral", logLevel: "silent", ...options });
  assert.deepEqual(built.warnings, []);
  return built;
}

test("package imports nothing but React", async () => {
  for (const [entry, imports] of [["index.js", []], ["react/index.js", ["react"]]]) {
    const { metafile } = await bundle(`../dist/${entry}`, { format: "esm", external: ["react", "react/*"] });
    const external = Object.values(metafile.outputs).flatMap((output) => output.imports.map(({ path }) => path.split("/")[0]));
    assert.deepEqual([...new Set(external)], imports, entry);
  }
});

test("client runs with the globals of the language and of the web alone", needsWeir, async () => {
  const { outputFiles } = await bundle("../runtimes/client.mjs", { format: "iife", globalName: "program" });
  const context = createContext(Object.fromEntries(WEB.map((name) => [name, globalThis[name]])), { codeGeneration: { strings: false, wasm: false } });
  assert.equal(runInContext("typeof process + typeof Buffer + typeof global + typeof setImmediate", context), "undefined".repeat(4));
  check(await within(runInContext(`${outputFiles[0].text}; program.run`, context)(server.url, "web"), "the program", 100_000));
});

test("client runs in Deno", { skip: needsWeir.skip || (DENO === undefined ? "WEIR_TEST_DENO is not set" : false) }, async () => {
  const child = spawn(DENO, ["run", "--allow-net", path("../runtimes/deno.mjs"), server.url], { stdio: ["ignore", "pipe", "pipe"] });
  let [printed, errors] = ["", ""];
  child.stdout.on("data", (bytes) => (printed += bytes));
  child.stderr.on("data", (bytes) => (errors += bytes));
  try {
    const [code] = await within(once(child, "close"), "the end of Deno", 100_000);
    assert.equal(code, 0, errors);
  } finally {
    child.kill("SIGKILL");
  }
  check(printed);
});
