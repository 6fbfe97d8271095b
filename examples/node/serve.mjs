// Serves weir.wasm in Node.js: node --experimental-wasm-jspi serve.mjs MODELS [HOST:PORT] [MODULE]
// MODULE is what `npm run weir` has made. The variables WEIR_… are the component's configuration.
import { createServer } from "node:net";
import { pathToFileURL } from "node:url";
import { _setEnv } from "@bytecodealliance/preview2-shim/cli";
import { _addPreopen, _clearPreopens } from "@bytecodealliance/preview2-shim/filesystem";
import { HttpServer } from "@bytecodealliance/preview3-shim/http";

const [models, address = "127.0.0.1:8080", module = "weir/weir.js"] = process.argv.slice(2);
if (!models) {
  console.error("usage: node --experimental-wasm-jspi serve.mjs MODELS [HOST:PORT] [MODULE]");
  process.exit(2);
}

// The server of the shim does not say which port 0 has become.
const freePort = (host) =>
  new Promise((resolve, reject) => {
    const probe = createServer().once("error", reject);
    probe.listen(0, host, () => {
      const { port } = probe.address();
      probe.close(() => resolve(port));
    });
  });

_clearPreopens();
_addPreopen("/models", models);
_setEnv(Object.fromEntries(Object.entries(process.env).filter(([name]) => name.startsWith("WEIR_"))));
const { handler } = await import(pathToFileURL(module));
const [host, wanted] = address.split(":");
const port = Number(wanted) || (await freePort(host));
const server = new HttpServer({ handle: async (request) => ({ tag: "ok", val: await handler.handle(request) }) });
await server.listen(port, host);
console.log(`Serving HTTP on http://${host}:${port}`);
