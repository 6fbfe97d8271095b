// Runs client.mjs in Deno: deno run --allow-net deno.mjs URL
import { run } from "./client.mjs";

console.log(await run(Deno.args[0], "deno"));
