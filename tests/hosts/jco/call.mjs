// Prints what `run` of a module that jco made returns: node --experimental-wasm-jspi call.mjs MODULE
import { pathToFileURL } from "node:url";

const { run } = await import(pathToFileURL(process.argv[2]));
console.log(await run());
