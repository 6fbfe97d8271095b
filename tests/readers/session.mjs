// The session component in a browser: posts a report of what the example prints, and of the order of the inputs and outputs of a stream.
const report = { printed: [], order: [], error: null };

/** A stream whose chunks are sent after the outputs of the ones before. */
async function stream() {
  const { session } = await import("weir-session");
  let received;
  async function* chunks() {
    for (const index of [0, 1, 2]) {
      const output = new Promise((resolve) => (received = resolve));
      report.order.push("chunk");
      const body = { tag: "chunk", val: { start: index, end: index + 1, text: `Text ${index}`, speakerId: "agent" } };
      yield { line: BigInt(index), body };
      await output;
    }
    report.order.push("end");
    yield { line: 3n, body: { tag: "end" } };
  }
  for await (const output of await session.run({ tag: "config", val: "{}" }, chunks())) {
    report.order.push(output.body.tag);
    received();
  }
}

console.log = (line) => report.printed.push(line);
try {
  await import("./session.mjs");
  await stream();
} catch (error) {
  report.error = String(error.stack ?? error);
}
await fetch("/done", { method: "POST", body: JSON.stringify(report) });
