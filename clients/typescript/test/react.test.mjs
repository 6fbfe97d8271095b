// The hooks in a browser, under StrictMode, against a server with scripted connections; and server-side rendering.
import assert from "node:assert/strict";
import { after, before } from "node:test";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { createElement } from "react";
import { renderToString } from "react-dom/server";
import { useExecution, useTranscript, useWorkflowProgress } from "weir-client/react";
import { CONNECTED, FINISHED, progress, serve, test, until } from "./support.mjs";

const executablePath = process.env.WEIR_TEST_BROWSER;
const needsBrowser = { skip: executablePath === undefined ? "WEIR_TEST_BROWSER is not set" : false };

let browser, server, page;
/** Requests, the handlers that answer them in order (the last one answers all further ones), and the number of open responses. */
let requests = [], handlers = [], open = 0;

before(async () => {
  if (executablePath === undefined) return;
  const { outputFiles } = await build({
    entryPoints: [new URL("react.page.jsx", import.meta.url).pathname],
    bundle: true, write: false, format: "iife", jsx: "automatic", define: { "process.env.NODE_ENV": '"development"' },
  });
  server = await serve((request, response) => {
    if (request.url === "/") return response.writeHead(200, { "content-type": "text/html" }).end('<!doctype html><div id="root"></div><script src="/page.js"></script>');
    if (request.url === "/page.js") return response.writeHead(200, { "content-type": "text/javascript" }).end(outputFiles[0].contents);
    if (request.url === "/favicon.ico") return response.writeHead(204).end();
    const handle = handlers[Math.min(requests.length, handlers.length - 1)];
    requests.push({ url: request.url, lastEventId: request.headers["last-event-id"] });
    open += 1;
    response.on("close", () => (open -= 1));
    handle(response);
  });
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
});
after(async () => {
  await browser?.close();
  await server?.close();
});

/** A response with server-sent events that stays open, unless it has a text `end` or `cut`. */
function events(...texts) {
  return (response) => {
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (const text of texts) {
      if (text === "cut") return setTimeout(() => response.destroy(), 50);
      if (text === "end") return response.end();
      response.write(text);
    }
  };
}

async function mount(script, parts) {
  [requests, handlers, open] = [[], script, 0];
  await page?.close();
  page = await browser.newPage();
  const errors = [];
  page.on("pageerror", (error) => errors.push(error));
  await page.goto(server.url);
  await page.evaluate((parts) => window.show(parts), parts);
  return { errors };
}
const view = (name = "view") => page.evaluate((name) => window.views[name] && JSON.parse(JSON.stringify({ ...window.views[name], error: window.views[name].error?.message ?? null })), name);
const calls = () => page.evaluate(() => window.calls);
const show = (parts) => page.evaluate((parts) => window.show(parts), parts);

test("two components under StrictMode share one connection, which resumes after a cut", needsBrowser, async () => {
  const script = [
    events(CONNECTED, progress(1), progress(2), progress(3), "cut"),
    events(CONNECTED, progress(4), progress(100, { result: { ok: true } })),
  ];
  const { errors } = await mount(script, [
    { part: "workflow", id: "42", name: "a" },
    { part: "plainWorkflow", id: "42", name: "b" },
  ]);
  await until(async () => (await view("a"))?.isComplete && (await view("b"))?.isComplete);
  assert.deepEqual(requests, [
    { url: "/stream/workflow/42", lastEventId: undefined },
    { url: "/stream/workflow/42", lastEventId: "7-3" },
  ]);
  const { progress: done, currentStep, status, isConnected, hasError, lastEventId, result } = await view("a");
  assert.deepEqual([done, currentStep, status.step, isConnected, hasError, lastEventId], [100, "step 100", "step 100", true, false, "7-100"]);
  assert.deepEqual(result, { ok: true });
  const callbacks = await calls();
  assert.deepEqual([callbacks.complete, callbacks.connect, callbacks.disconnect, callbacks.error], [1, 2, 1, []]);
  assert.equal(open, 1);
  await show([]);
  await until(() => open === 0);
  assert.deepEqual(errors, []);
});

test("component that is remounted at once keeps the connection", needsBrowser, async () => {
  await mount([events(CONNECTED, progress(1))], [{ part: "workflow", id: "42" }]);
  await until(async () => (await view())?.progress === 1);
  await page.evaluate(async () => {
    window.show([]);
    await new Promise((resolve) => setTimeout(resolve, 100));
    window.show([{ part: "workflow", id: "42" }]);
    await new Promise((resolve) => setTimeout(resolve, 500));
  });
  assert.equal((await view()).progress, 1);
  assert.deepEqual([requests.length, open], [1, 1]);
});

test("hook without an id, or with enabled false, connects only when it gets an id", needsBrowser, async () => {
  await mount([events(CONNECTED, progress(5))], [{ part: "workflow", id: null }, { part: "workflow", id: "42", name: "off", more: { enabled: false } }]);
  await until(view);
  const { connection, isConnected, progress: percent } = await view();
  assert.deepEqual([connection, isConnected, percent], ["idle", false, 0]);
  assert.equal(requests.length, 0);
  await show([{ part: "workflow", id: "42" }]);
  await until(async () => (await view()).progress === 5);
  await show([{ part: "workflow", id: "43" }]);
  await until(() => requests.length === 2);
  assert.equal(requests[1].url, "/stream/workflow/43");
  await until(() => open === 1);
});

test("failed step is hasError, without an error of the connection", needsBrowser, async () => {
  await mount([events(CONNECTED, progress(40, { error: "page 3 cannot be read" }))], [{ part: "workflow", id: "42" }]);
  await until(async () => (await view())?.hasError);
  const { error, isConnected, isComplete } = await view();
  assert.deepEqual([error, isConnected, isComplete], ["page 3 cannot be read", true, false]);
  assert.deepEqual((await calls()).error, ["page 3 cannot be read"]);
});

test("connection that fails permanently is reported, and reconnect retries", needsBrowser, async () => {
  const gone = events("end");
  const script = [gone, gone, gone, events(CONNECTED, progress(9))];
  await mount(script, [{ part: "workflow", id: "42", more: { maxReconnectAttempts: 2, reconnectInterval: 5 } }]);
  await until(async () => (await view())?.connection === "failed");
  assert.deepEqual((await calls()).error, ["the connection ended"]);
  assert.equal((await view()).hasError, true);
  await page.evaluate(() => window.views.view.reconnect());
  await until(async () => (await view()).progress === 9);
  assert.equal((await view()).hasError, false);
});

test("channel that is finished at the first request is closed, not complete", needsBrowser, async () => {
  await mount([(response) => response.writeHead(204).end()], [{ part: "workflow", id: "42" }]);
  await until(async () => (await view())?.connection === "closed");
  assert.deepEqual([(await view()).isComplete, (await calls()).complete, requests.length], [false, 0, 1]);
});

test("gap is reported, and stop closes the connection", needsBrowser, async () => {
  const gap = `id: 8-1\nevent: gap\ndata: {"workflow_id":"42","missing_from":"7-1","missing_to":"8-1","timestamp":"t"}\n\n`;
  await mount([events(CONNECTED, gap, progress(3))], [{ part: "workflow", id: "42" }]);
  await until(async () => (await view())?.progress === 3);
  assert.deepEqual((await view()).gap, { from: "7-1", to: "8-1" });
  assert.deepEqual((await calls()).gap, [{ from: "7-1", to: "8-1" }]);
  await page.evaluate(() => window.views.view.stop());
  await until(() => open === 0);
  assert.equal((await view()).connection, "closed");
});

test("file, channel, execution and transcript hooks have their state", needsBrowser, async () => {
  const event = (type, data, seq) => `id: 7-${seq}\nevent: ${type}\ndata: ${JSON.stringify(data)}\n\n`;
  await mount([events(CONNECTED, event("analysis_progress", { file_id: "f", step: "done", progress: 100, result: { pages: 5 } }, 1), FINISHED)], [{ part: "file", id: "f" }]);
  await until(async () => (await view())?.isComplete);
  const file = await view();
  assert.deepEqual([file.analysisStep, file.result, (await calls()).complete], ["done", { pages: 5 }, 1]);
  await until(async () => (await view()).connection === "closed");

  await mount([events(CONNECTED, ...Array.from({ length: 700 }, (_, seq) => event("notification", { user_id: "ann", message: `m${seq}`, level: "info" }, seq)))], [{ part: "channel", id: "ann" }]);
  await until(async () => (await view())?.count === 701);
  const channel = await view();
  assert.deepEqual([channel.events.length, channel.last.data.message, channel.events[0].data.message], [500, "m699", "m200"]);

  const step = (event_type, step_id, data, metadata = null) => ({ event_type, execution_id: "exec_1", step_id, timestamp: "2025-10-22T10:30:00.000Z", data, metadata });
  const run = [
    step("pipeline_start", null, { name: "review", steps: 2 }),
    step("step_start", "score", { kind: "http" }, { attempt: 1 }),
    step("step_progress", "score", { progress: 0.5, message: "1 of 2" }, { attempt: 1 }),
    step("step_error", "score", { kind: "http", error: "503", retry_in_ms: 200 }, { attempt: 1 }),
    step("step_start", "score", { kind: "http" }, { attempt: 2 }),
    step("step_complete", "score", { kind: "http", output: { label: "positive" }, duration_ms: 12.5 }, { attempt: 2 }),
    step("pipeline_complete", null, { output: { label: "positive" }, duration_ms: 20 }),
  ];
  await mount([events(CONNECTED, ...run.map((data, seq) => event(data.event_type, data, seq)), FINISHED)], [{ part: "execution", id: "exec_1" }]);
  await until(async () => (await view())?.state === "completed");
  const execution = await view();
  assert.equal(requests[0].url, "/stream/pipeline/exec_1");
  assert.deepEqual(execution.output, { label: "positive" });
  assert.equal(execution.steps.length, 1);
  const { state, attempt, durationMs, kind } = execution.steps[0];
  assert.deepEqual([state, attempt, durationMs, kind], ["completed", 2, 12.5, "http"]);

  const segment = { start: 0, end: 3, text: "Can you send the price list?", speaker_id: "ann" };
  const lines = [
    { type: "partial_segment", segment, seq: 1, event_id: 1 },
    { type: "final_segment", segment, segment_id: 0, semantic: { keywords: ["price"], risk_tags: [] }, event_id: 2 },
    { type: "summary_due", kind: "incremental", finals: 1, keywords: ["price"], context: "", prompt: "", summary: "A price list.", event_id: 3 },
    { type: "partial_segment", segment: { ...segment, text: "I will." }, event_id: 4 },
  ];
  await mount([events(CONNECTED, ...lines.map((data, seq) => event(data.type, data, seq)))], [{ part: "transcript", id: "sess_1" }]);
  await until(async () => (await view())?.partial?.text === "I will.");
  const transcript = await view();
  assert.deepEqual([transcript.segments.length, transcript.keywords, transcript.summary], [1, { price: 1 }, "A price list."]);
});

test("process and generation hooks run, stop and fail", needsBrowser, async () => {
  const lines = (response) => response.writeHead(200, { "content-type": "application/x-ndjson" }).end('{"status":"started"}\n{"status":"completed"}\n');
  const refused = (response) => response.writeHead(422, { "content-type": "application/problem+json" }).end('{"code":"invalid_fields","detail":"too short","retryable":false}');
  const event = (type, data, seq) => `id: 7-${seq}\nevent: ${type}\ndata: ${JSON.stringify({ type, ...data })}\n\n`;
  const STARTED = event("started", { generation_id: "g1", model: "stub", prompt_tokens: 1, choices: 1 }, 1);
  const token = (text, seq) => event("token", { index: 0, text }, seq);
  const deleted = (response) => response.writeHead(204).end();
  await mount([lines, refused], [{ part: "process" }]);
  await until(view);
  await page.evaluate(() => window.views.view.run({ text: "What a lovely day." }));
  await until(async () => (await view()).status === "ready" && (await view()).events.length === 2);
  await page.evaluate(() => window.views.view.run({ text: "x" }));
  await until(async () => (await view()).status === "error");
  assert.deepEqual([(await view()).error, (await calls()).error], ["too short", ["too short"]]);

  const usage = { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 2 };
  const done = event("done", { index: 0, finish_reason: "stop", usage }, 4);
  await mount([events(STARTED, token("Once", 2), "cut"), events(CONNECTED, token(" upon", 3), done)], [{ part: "generation" }]);
  await until(view);
  await page.evaluate(() => window.views.view.run({ prompt: "Once" }));
  await until(async () => (await view()).status === "ready" && (await view()).text !== "");
  const { text, pieces, generationId, finishReason, usage: counts } = await view();
  assert.deepEqual([text, pieces, generationId, finishReason, counts], ["Once upon", 2, "g1", "stop", usage]);
  assert.deepEqual(requests, [{ url: "/generate-stream?detach=true", lastEventId: undefined }, { url: "/stream/generation/g1", lastEventId: "7-2" }]);

  await mount([events(STARTED, event("error", { code: "engine_failed", message: "the engine failed", status: 502, retryable: false }, 2))], [{ part: "generation" }]);
  await until(view);
  await page.evaluate(() => window.views.view.run({ prompt: "Once" }));
  await until(async () => (await view()).status === "error");
  assert.deepEqual([(await view()).error, (await calls()).error], ["the engine failed", ["the engine failed"]]);

  await mount([events(STARTED, token("Once upon", 2)), deleted], [{ part: "generation" }]);
  await until(view);
  await page.evaluate(() => window.views.view.run({ prompt: "Once" }));
  await until(async () => (await view()).text === "Once upon");
  assert.equal((await view()).status, "streaming");
  await page.evaluate(() => window.views.view.stop());
  await until(() => open === 0 && requests.length === 2);
  assert.equal(requests[1].url, "/v1/generations/g1");
  assert.deepEqual([(await view()).status, (await view()).text], ["ready", "Once upon"]);
});

test("server-side rendering opens no connection", () => {
  const fetch = globalThis.fetch;
  globalThis.fetch = () => assert.fail("a request");
  try {
    const Part = () => {
      const { progress: percent, connection } = useWorkflowProgress("42", "http://127.0.0.1:1");
      const { state } = useExecution("exec_1", "http://127.0.0.1:1");
      const { segments } = useTranscript("sess_1", "http://127.0.0.1:1");
      return createElement("p", null, `${percent} ${connection} ${state} ${segments.length}`);
    };
    assert.equal(renderToString(createElement(Part)), "<p>0 idle pending 0</p>");
  } finally {
    globalThis.fetch = fetch;
  }
});
