// The methods of the client against `weir serve`, and channels through a proxy that cuts connections.
import assert from "node:assert/strict";
import { after, before } from "node:test";
import { createClient, createPipAIClient, WeirError } from "weir-client";
import { collect, cuttingProxy, test, until, WEIR, weir } from "./support.mjs";
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

test("classify, tokens, embed, annotate and streams return results", needsWeir, async () => {
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

test("full-duplex stream has outcomes before its input ends", needsWeir, async () => {
  let release;
  const gate = new Promise((resolve) => (release = resolve));
  async function* texts() {
    yield "What a night!";
    await gate;
    yield "And what a day.";
  }
  const indices = [];
  for await (const { index } of client.classifyStream(texts())) {
    indices.push(index);
    release();
  }
  assert.deepEqual(indices, [0, 1]);
});

test("process and processBatch return the steps of a document", needsWeir, async () => {
  const text = "The concert in Geneva was wonderful. The train home was late.";
  const events = await collect(client.process({ text, include_entities: true }));
  assert.equal(events[0].status, "started");
  assert.equal(events.at(-1).status, "completed");
  assert.equal((await client.processBatch({ text })).sentiment.label !== undefined, true);
  const error = await client.processBatch({ text: "x" }).catch((error) => error);
  assert.deepEqual([error.status, error.errors[0].field], [422, "text"]);
});

test("index, models, ready, health and reliability describe the server", needsWeir, async () => {
  assert.equal((await client.index()).name, "weir");
  assert.ok((await client.models()).some(({ name }) => name === "sentiment"));
  assert.equal((await client.ready()).status, "ready");
  assert.equal((await client.health()).status, "healthy");
  assert.ok("window" in (await client.reliability()));
});

test("pipeline is started, followed and listed", needsWeir, async () => {
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

test("stored session is fed, read and ended", needsWeir, async () => {
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

test("transcript in one request has annotated segments", needsWeir, async () => {
  const events = await collect(client.transcript([{ start: 0, end: 1, text: "I want to cancel.", speaker_id: "ann" }, { op: "end" }]));
  assert.ok(events.find(({ type }) => type === "final_segment").semantic.risk_tags.includes("churn_risk"));
});

for (const transport of ["sse", "ws"]) {
  const needs = { skip: needsWeir.skip || (transport === "ws" && typeof WebSocket === "undefined" ? "this Node has no WebSocket" : false) };
  test(`channel over ${transport} through cut connections has the exact sequence`, needs, async () => {
    const id = `cut-${transport}`;
    const total = 300;
    // Each connection is longer than the one before: a socket that is cut while its messages are decompressed delivers none of them.
    const proxy = await cuttingProxy(server.port, 3000);
    const follower = createPipAIClient(proxy.url, { transport });
    const values = [];
    const reading = (async () => {
      for await (const event of follower.follow("workflow", id, { reconnectInterval: 5, maxReconnectAttempts: 50, onState: (state) => state === "reconnecting" && (proxy.cutAfter = 2000 * 1.5 ** proxy.connections) })) {
        assert.notEqual(event.type, "gap");
        if (event.type === "workflow_progress") values.push(event.data.progress);
      }
    })();
    for (let seq = 0; seq < total; seq++) {
      await client.publish("workflow", id, { step: `step ${seq}`, progress: seq / 10, last: seq === total - 1 });
    }
    await reading;
    await proxy.close();
    assert.deepEqual(values, Array.from({ length: total }, (_, seq) => seq / 10));
    assert.ok(proxy.connections > 5, `${proxy.connections} connections`);
    const last = (await collect(client.follow("workflow", id))).filter((event) => event.id).at(-1).id;
    assert.deepEqual(await collect(client.follow("workflow", id, { lastEventId: last })), [], "204");
  });
}

for (const transport of ["sse", "ws"]) {
  const needs = { skip: needsWeir.skip || (transport === "ws" && typeof WebSocket === "undefined" ? "this Node has no WebSocket" : false) };
  test(`filter over ${transport} leaves out events without a gap, also after a resumed cursor`, needs, async () => {
    const id = `filter-${transport}`;
    for (let seq = 0; seq < 30; seq++) {
      const step = ["parse", "load", "page 2"][seq % 3];
      await client.publish("workflow", id, seq === 29 ? { event: "temporal_status", status: "COMPLETED" } : { step, progress: seq });
    }
    const follower = createClient(server.url, { transport });
    const stepsOf = (events) => events.filter(({ type }) => type !== "connected" && type !== "disconnected").map(({ data }) => data.progress ?? data.status);
    const all = await collect(follower.follow("workflow", id, { steps: ["page 2"] }));
    assert.deepEqual(stepsOf(all), [2, 5, 8, 11, 14, 17, 20, 23, 26, "COMPLETED"]);
    const from = all.find(({ data }) => data.progress === 14).id;
    assert.deepEqual(stepsOf(await collect(follower.follow("workflow", id, { steps: ["page 2"], lastEventId: from }))), [17, 20, 23, 26, "COMPLETED"]);
    const named = await collect(follower.follow("workflow", id, { events: ["temporal_status"] }));
    assert.deepEqual(named.map(({ type }) => type), ["connected", "temporal_status", "disconnected"]);
    assert.equal(all.some(({ type }) => type === "gap"), false);
    await assert.rejects(collect(follower.follow("workflow", id, { throttleMs: 100_000 })), /throttle_ms/);
  });

  test(`throttle over ${transport} gives the newest progress in order`, needs, async () => {
    const id = `throttle-${transport}`;
    const values = [];
    let connected;
    const ready = new Promise((resolve) => (connected = resolve));
    const reading = (async () => {
      for await (const event of createClient(server.url, { transport }).follow("workflow", id, { throttleMs: 200 })) {
        if (event.type === "connected") connected();
        else if (event.type !== "disconnected") values.push(event.data.progress ?? event.data.status);
      }
    })();
    await ready;
    const began = performance.now();
    for (let seq = 1; seq <= 50; seq++) await client.publish("workflow", id, { step: "parse", progress: seq });
    await until(() => values.at(-1) === 50);
    await client.publish("workflow", id, { event: "temporal_status", status: "COMPLETED" });
    await reading;
    assert.equal(values[0], 1);
    assert.deepEqual(values.slice(-2), [50, "COMPLETED"]);
    const [progressCount, elapsedMs] = [values.length - 1, performance.now() - began];
    assert.ok(progressCount <= elapsedMs / 200 + 2, `${progressCount} progress events in ${elapsedMs} ms`);
    assert.deepEqual(values.slice(0, -1), [...values.slice(0, -1)].sort((a, b) => a - b));
  });
}

test("upload is analyzed, with progress of the file and of the workflow", needsWeir, async () => {
  const text = "The concert in Geneva was wonderful. ".repeat(20) + "The train home was late, and Ada Lovelace was cold.";
  let sent;
  const { file_id: file, workflow_id: workflow, execution_id: execution } = await client.upload(text, { name: "night.txt", onProgress: (bytes) => (sent = bytes) });
  assert.equal(sent, text.length);
  const events = (await collect(client.follow("file", file))).filter(({ type }) => type === "analysis_progress");
  const last = events.at(-1).data;
  assert.deepEqual([last.progress, last.step, last.result.sentiment], [100, "done", "POSITIVE"]);
  assert.ok(last.result.entities.some(({ text }) => text.includes("Lovelace")), JSON.stringify(last.result.entities));
  const percents = events.map(({ data }) => data.progress);
  assert.deepEqual(percents, [...percents].sort((a, b) => a - b));
  const workflowEvents = await collect(client.follow("workflow", workflow));
  assert.equal(workflowEvents.filter(({ type }) => type === "workflow_progress").at(-1).data.progress, 100);
  const status = await client.executions.get(execution);
  assert.equal(status.pipeline, "analyze");
  const sentiment = status.steps.find(({ id }) => id === "sentiment");
  assert.deepEqual([sentiment.kind, sentiment.after, sentiment.progress], ["sentiment", ["reading"], 1]);
  assert.ok(sentiment.duration_ms > 0 && Date.parse(sentiment.started_at) > 0);
  const form = new FormData();
  form.append("file", new Blob(["What a lovely day it was in Vienna."]), "day.txt");
  const response = await fetch(`${server.url}/upload?pipeline=review`, { method: "POST", body: form });
  assert.equal(response.status, 202);
  assert.equal((await response.json()).pipeline, "review");
  await assert.rejects(client.upload(new Blob([new Uint8Array([0xff])])), { status: 422 });
  await assert.rejects(client.upload("x".repeat(300_000)), { status: 413 });
});

test("list of executions is filtered and paged", needsWeir, async () => {
  const ids = [];
  for (let count = 0; count < 3; count++) ids.unshift((await client.pipelines.start("review", { text: "What a lovely day." }, { waitS: 30 })).execution_id);
  await assert.rejects(client.pipelines.start("review", 5, { waitS: 30 }).then(({ state }) => Promise.reject(new Error(state))), /failed/);
  const [failed] = await client.executions.list({ state: "failed", limit: 1 });
  assert.equal(failed.errors, 1);
  const page = await client.executions.list({ state: "completed", pipeline: "review", limit: 2 });
  assert.deepEqual(page.map(({ execution_id }) => execution_id), ids.slice(0, 2));
  const next = await client.executions.list({ state: "completed", pipeline: "review", limit: 1, after: page[1].execution_id });
  assert.equal(next[0].execution_id, ids[2]);
  await assert.rejects(client.executions.list({ limit: 1000 }), { status: 422 });
});

test("stats are read once and every second", needsWeir, async () => {
  await client.classify("What a lovely day");
  const stats = await client.stats();
  const sentiment = stats.models.find(({ name }) => name === "sentiment");
  assert.ok(sentiment.ready && sentiment.tokens_total > 0 && sentiment.batch_items_mean >= 1 && sentiment.p50_ms > 0);
  const snapshots = [];
  for await (const snapshot of client.watchStats()) {
    snapshots.push(snapshot);
    if (snapshots.length === 2) break;
  }
  assert.ok(Date.parse(snapshots[1].timestamp) - Date.parse(snapshots[0].timestamp) >= 900);
});

test("browser gets the page, and a program gets JSON, at the same path", needsWeir, async () => {
  const html = { headers: { accept: "text/html,application/xhtml+xml,*/*;q=0.8" } };
  const id = (await client.pipelines.start("review", { text: "What a lovely day." }, { waitS: 30 })).execution_id;
  for (const path of ["/", "/executions", `/executions/${id}`, "/pipelines/review", "/sessions/x", "/channels", "/server", "/demo/streaming"]) {
    const page = await fetch(server.url + path, html);
    assert.equal(page.headers.get("content-type"), "text/html; charset=utf-8", path);
    assert.match(page.headers.get("content-security-policy"), /^default-src 'none'; script-src 'sha256-/);
    assert.match(page.headers.get("vary"), /accept/i);
  }
  for (const path of ["/", "/executions", `/executions/${id}`, "/pipelines/review"]) {
    const json = await fetch(server.url + path);
    assert.equal(json.headers.get("content-type"), "application/json", path);
    assert.match(json.headers.get("vary"), /accept/i);
  }
  const off = await weir(["gateway.ui=off"]);
  assert.equal((await fetch(off.url, html)).headers.get("content-type"), "application/json");
  await off.kill();
});

test("cursor of another epoch is answered with a gap", needsWeir, async () => {
  await client.publish("user", "ann", { message: "hello" });
  for await (const event of client.follow("user", "ann", { lastEventId: "1-5" })) {
    if (event.type === "connected") continue;
    assert.equal(event.type, "gap");
    break;
  }
});
