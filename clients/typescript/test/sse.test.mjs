// The vectors of tests/golden/sse_parser.jsonl, made by an independent parser, undivided and split at every place.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createSseParser, parseNdjson, SseTooLongError } from "weir-client";
import { test } from "./support.mjs";

const golden = process.env.WEIR_TEST_GOLDEN ?? new URL("../../../tests/golden", import.meta.url).pathname;
const vectors = readFileSync(`${golden}/sse_parser.jsonl`, "utf8").trim().split("\n").map((line) => JSON.parse(line));

function parse(pieces) {
  const result = { ev: [], retry: [], com: [] };
  const parser = createSseParser({
    onMessage: ({ id, event, data }) => result.ev.push({ id: id ?? null, event: event ?? null, data }),
    onRetry: (ms) => result.retry.push(ms),
    onComment: (text) => result.com.push(text),
  });
  for (const piece of pieces) parser.feed(piece);
  return result;
}

test("each vector parses undivided and in single characters", () => {
  assert.equal(vectors.length, 300);
  let cases = 0;
  for (const { name, input, ev, retry, com } of vectors) {
    for (const pieces of [[input], [...input].flatMap((char) => char.split(""))]) {
      assert.deepEqual(parse(pieces), { ev, retry, com }, name);
      cases += 1;
    }
  }
  assert.equal(cases, 600);
});

test("each vector parses when split at every place and at its own cuts", () => {
  for (const { name, input, cuts = [], ev, retry, com } of vectors) {
    for (let at = 0; at <= input.length; at++) {
      assert.deepEqual(parse([input.slice(0, at), input.slice(at)]), { ev, retry, com }, `${name} cut at ${at}`);
    }
    const pieces = [];
    [0, ...cuts].forEach((from, index) => pieces.push(input.slice(from, cuts[index] ?? undefined)));
    assert.deepEqual(parse(pieces), { ev, retry, com }, `${name} in ${pieces.length} pieces`);
  }
});

test("parser with a message that is too long throws", () => {
  const parser = createSseParser({ onMessage: () => assert.fail("a message") }, 100);
  parser.feed(`data: ${"x".repeat(80)}\n`);
  assert.throws(() => parser.feed(`data: ${"x".repeat(80)}`), SseTooLongError);
});

test("ndjson split at every byte has all values", async () => {
  const bytes = new TextEncoder().encode('{"a":"é🙂"}\n\n[1,2]\r\n"last"');
  for (let at = 0; at <= bytes.length; at++) {
    const stream = new ReadableStream({
      start(controller) {
        controller.enqueue(bytes.slice(0, at));
        controller.enqueue(bytes.slice(at));
        controller.close();
      },
    });
    const values = [];
    for await (const value of parseNdjson(stream)) values.push(value);
    assert.deepEqual(values, [{ a: "é🙂" }, [1, 2], "last"], `cut at ${at}`);
  }
});
