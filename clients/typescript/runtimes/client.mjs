// A program with the client alone, which runs where there are only the interfaces of the web (test/runtimes.test.mjs).
import { createClient } from "../dist/index.js";

/** Uses the client against a server, with channels whose names begin with `name`; its observations as JSON. */
export async function run(url, name) {
  const client = createClient(url, { timeoutMs: 60_000 });
  const [[best]] = await client.classify("What a lovely day", { top_k: 1 });
  const missing = await client.classify("x", { model: "nosuch" }).catch(({ name, status }) => [name, status]);

  // The second text is sent after the outcome of the first.
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  async function* texts() {
    yield "What a night!";
    await gate;
    yield "And what a day.";
  }
  const duplex = [];
  for await (const { index } of client.classifyStream(texts())) {
    duplex.push(index);
    release();
  }

  const followed = {};
  for (const transport of ["sse", "ws"]) {
    const follower = createClient(url, { transport });
    const id = `${name}-${transport}`;
    for (let progress = 1; progress <= 3; progress++) await client.publish("workflow", id, { step: "s", progress, last: progress === 3 });
    const events = [];
    for await (const event of follower.follow("workflow", id)) events.push(event);
    const progress = (events) => events.flatMap(({ data }) => data.progress ?? []);
    const rest = [];
    const lastEventId = events.find(({ data }) => data.progress === 1).id;
    for await (const event of follower.follow("workflow", id, { lastEventId })) rest.push(event);
    followed[transport] = [progress(events), progress(rest)];
  }

  const controller = new AbortController();
  const states = [];
  for await (const { type } of client.follow("user", "nobody", { signal: controller.signal, onState: (state) => states.push(state) })) {
    if (type === "connected") controller.abort();
  }

  const { workflow_id: workflow } = await client.upload(new Blob(["What a lovely day it was in Vienna."]), { name: "day.txt" });
  let uploaded = 0;
  for await (const { data } of client.follow("workflow", workflow)) uploaded = data.progress ?? uploaded;
  return JSON.stringify({ label: best.label, missing, duplex, followed, states: [states[0], states.at(-1)], uploaded });
}
