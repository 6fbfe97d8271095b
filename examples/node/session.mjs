// The session component without a server: node --experimental-wasm-jspi session.mjs
// It reads the chunks of a transcript and prints its segments with their annotations, one JSON object a line.
import { session } from "weir-session";

const print = (value) => console.log(JSON.stringify(value, (_, part) => (typeof part === "bigint" ? Number(part) : part)));

// Texts at once.
print(await session.annotate("{}", ["I'll check the refund.", "What a lovely evening."]));

// A stream in, a stream out: a segment leaves before the next chunk is sent.
async function* chunks() {
  const texts = ["I'll check", "the refund.", "Thank you"];
  for (const [index, text] of texts.entries()) {
    yield { line: BigInt(index), body: { tag: "chunk", val: { start: index, end: index + 1, text, speakerId: "agent" } } };
  }
  yield { line: BigInt(texts.length), body: { tag: "end" } };
}

for await (const output of await session.run({ tag: "config", val: "{}" }, chunks())) {
  print(output);
}
