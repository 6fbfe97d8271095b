// Labels the lines of standard input as they arrive, over one request with a full-duplex stream.
//
//   printf '%s\n' 'What a night!' 'The train was late.' | node classify.mjs [http://localhost:8080]
//
// Node.js 20.6 or later (`ReadableStream.from`), no packages.
import { createInterface } from "node:readline";

const server = process.argv[2] ?? "http://localhost:8080";

async function* items() {
  for await (const line of createInterface({ input: process.stdin })) yield JSON.stringify(line) + "\n";
}

const response = await fetch(`${server}/v1/classify?top_k=1`, {
  method: "POST",
  headers: { "content-type": "application/x-ndjson" },
  body: ReadableStream.from(items()).pipeThrough(new TextEncoderStream()),
  duplex: "half",
});
if (!response.ok) throw new Error(`${response.status}: ${await response.text()}`);

let rest = "";
for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
  const lines = (rest + part).split("\n");
  rest = lines.pop();
  for (const line of lines) {
    const outcome = JSON.parse(line);
    if (outcome.done) console.log(`${outcome.ok} labelled, ${outcome.failed} failed`);
    else if (outcome.error) console.log(`${outcome.index}: ${outcome.error.message}`);
    else console.log(`${outcome.index}: ${outcome.scores[0].label} ${outcome.scores[0].score.toFixed(2)}`);
  }
}
