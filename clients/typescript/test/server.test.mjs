// Every route of a real `weir serve`, and channels through a proxy that cuts connections.
import assert from "node:assert/strict";
import { after, before, test } from "node:test";
import { createClient, createPipAIClient, WeirError } from "weir-client";
import { collect, cuttingProxy, WEIR, weir } from "./support.mjs";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";

const needsWeir = { skip: WEIR === undefined ? "WEIR_TEST_PROGRAM is not set" : false };
const REVIEW = {
  name: "review",
  steps: [
    { id: "chunk", kind: "chunk", chunk_size: 200 },
    { id: "sentiment", kind: "sentiment", after: ["chunk"] },
    { id: "report", kind: "map", after: ["sentiment"], expression: "{verdict: overall_sentiment}" },
  ],
};

let server, client, folder;
before(async () => {
  if (WEIR === undefined) return;
  folder = mkdtempSync(`${tmpdir()}/weir-client-`);
  writeFileSync(`${folder}/review.json`, JSON.stringify(REVIEW));
  server = await weir([`pipelines.dir=${folder}`]);
  client = createClient(server.url);
});
after(async () => {
  await server?.kill();
  if (folder !== undefined) rmSync(folder, { recursive: true });
});

test("texts: classify, tokens, embed, annotate, streams", needsWeir, async () => {
  const [[best], second] = await client.classify(["What a lovely day", "A dreadful night"], { top_k: 1 });
  assert.equal(best.label, "positive");
  assert.equal(second[0].label, "negative");
  const [entities] = await client.tokens("Ada met Grace in Berlin.");
  assert.ok(entities.some(({ text }) => text === "Berlin"));
  const [vector] = await client.embed("a pink sky");
  assert.ok(Math.abs(Math.hypot(...vector) - 1) < 1e-3);
  const { outputs } = await client.annotate("I want to cancel.");
  assert.ok(JSON.stringify(outputs).includes("churn_risk"));
  const lines = await collect(client.classifyStream(["What a night!", { text: "The train leaves at nine.", id: 7 }], { top_k: 1 }));
  assert.deepEqual(lines.map(({ index, id }) => [index, id]).sort(), [[0, undefined], [1, 7]]);
  await assert.rejects(client.classify("x", { model: "nosuch" }), (error) => error instanceof WeirError && error.status === 404);
});

test("stream in both directions answers before it ends", needsWeir, async () => {
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  async function* texts() {
    yield "What a night!";
    await gate;
    yield "And what a day.";
  }
  const got = [];
  for await (const { index } of client.classifyStream(texts())) {
    got.push(index);
    release();
  }
  assert.deepEqual(got, [0, 1]);
});

test("documents: process and processBatch", needsWeir, async () => {
  const text = "The concert in Geneva was wonderful. The train home was late.";
  const events = await collect(client.process({ text, include_entities: true }));
  assert.equal(events[0].status, "started");
  assert.equal(events.at(-1).status, "completed");
  assert.equal((await client.processBatch({ text })).sentiment.label !== undefined, true);
  const error = await client.processBatch({ text: "x" }).catch((error) => error);
  assert.deepEqual([error.status, error.errors[0].field], [422, "text"]);
});

test("server: index, models, ready, health, reliability", needsWeir, async () => {
  assert.equal((await client.index()).name, "weir");
  assert.ok((await client.models()).some(({ name }) => name === "sentiment"));
  assert.equal((await client.ready()).status, "ready");
  assert.equal((await client.health()).status, "healthy");
  assert.ok("window" in (await client.reliability()));
});

test("pipelines and executions", needsWeir, async () => {
  assert.deepEqual((await client.pipelines.list()).map(({ name }) => name), ["review"]);
  assert.equal((await client.pipelines.get("review")).steps.length, 3);
  const ended = await client.pipelines.start("review", { text: "What a lovely day." }, { waitS: 30 });
  assert.deepEqual([ended.state, ended.output], ["completed", { verdict: "POSITIVE" }]);
  const { execution_id: id } = await client.pipelines.start("review", { text: "What a lovely day." }, { idempotencyKey: "k1" });
  assert.equal((await client.pipelines.start("review", { text: "What a lovely day." }, { idempotencyKey: "k1" })).execution_id, id);
  const events = await collect(client.executions.follow(id));
  assert.equal(events.find(({ type }) => type === "pipeline_complete").data.data.output.verdict, "POSITIVE");
  assert.equal((await client.executions.get(id)).state, "completed");
  assert.ok((await client.executions.list()).some(({ execution_id }) => execution_id === id));
  await assert.rejects(client.executions.cancel(id), { status: 409 });
});

test("sessions", needsWeir, async () => {
  const session = await client.sessions.create({ annotate: ["keywords", "intent"] });
  const first = await session.push({ start: 0, end: 1.5, text: "Can you send", speaker_id: "ann", seq: 1 });
  assert.equal(first[0].type, "partial_segment");
  const more = await collect(session.feed([
    { start: 1.5, end: 3, text: "the price list?", speaker_id: "ann", seq: 2 },
    { start: 3, end: 4, text: "I will.", speaker_id: "bob", seq: 3 },
  ]));
  assert.ok(more.some(({ type }) => type === "final_segment"));
  assert.equal((await session.state()).seq_last, 3);
  assert.ok((await session.context()).includes("Can you send the price list?"));
  assert.equal((await session.contextWindow()).segments.length, 1);
  assert.ok((await session.end()).some(({ type }) => type === "final_segment"));
  const events = await collect(client.sessions.open(session.id).events());
  assert.equal(events.filter(({ type }) => type === "final_segment").length, 2);
  await session.delete();
});

test("transcript in one request", needsWeir, async () => {
  const events = await collect(client.transcript([{ start: 0, end: 1, text: "I want to cancel.", speaker_id: "ann" }, { op: "end" }]));
  assert.ok(events.find(({ type }) => type === "final_segment").semantic.risk_tags.includes("churn_risk"));
});

for (const transport of ["sse", "ws"]) {
  const needs = { skip: needsWeir.skip || (transport === "ws" && typeof WebSocket === "undefined" ? "this Node has no WebSocket" : false) };
  test(`channel over ${transport} through cut connections has the exact sequence`, needs, async () => {
    const id = `cut-${transport}`;
    const total = 300;
    const proxy = await cuttingProxy(server.port, 3000);
    const follower = createPipAIClient(proxy.url, { transport });
    const got = [];
    const reading = (async () => {
      for await (const event of follower.follow("workflow", id, { reconnectInterval: 5, maxReconnectAttempts: 50, onState: (state) => state === "reconnecting" && (proxy.cutAfter = 2000 + 500 * proxy.connections) })) {
        assert.notEqual(event.type, "gap");
        if (event.type === "workflow_progress") got.push(event.data.progress);
      }
    })();
    for (let seq = 0; seq < total; seq++) {
      await client.publish("workflow", id, { step: `step ${seq}`, progress: seq / 10, last: seq === total - 1 });
    }
    await reading;
    await proxy.close();
    assert.deepEqual(got, Array.from({ length: total }, (_, seq) => seq / 10));
    assert.ok(proxy.connections > 5, `${proxy.connections} connections`);
    const last = (await collect(client.follow("workflow", id))).filter((event) => event.id).at(-1).id;
    assert.deepEqual(await collect(client.follow("workflow", id, { lastEventId: last })), [], "204");
  });
}

test("cursor of another life is answered with a gap", needsWeir, async () => {
  await client.publish("user", "ann", { message: "hello" });
  for await (const event of client.follow("user", "ann", { lastEventId: "1-5" })) {
    if (event.type === "connected") continue;
    assert.equal(event.type, "gap");
    break;
  }
});
