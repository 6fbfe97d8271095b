// Generated text against scripted connections, and against `weir serve` with the stub of the generate component.
import assert from "node:assert/strict";
import { after, before } from "node:test";
import { createClient, WeirError } from "weir-client";
import { collect, cuttingProxy, serve, test, until, WEIR, weir } from "./support.mjs";

const STUB = process.env.WEIR_TEST_GENERATE_STUB;
const needsStub = { skip: WEIR === undefined || STUB === undefined ? "WEIR_TEST_PROGRAM and WEIR_TEST_GENERATE_STUB are not set" : false };
const quick = { reconnectInterval: 5 };

let server, client;
before(async () => {
  if (needsStub.skip) return;
  // The stub of the component needs no weights, but a model that is configured.
  server = await weir([], 0, ["--component", `generate=${STUB}`, "--model", `stub=${process.env.WEIR_TEST_GENERATE_MODEL}`]);
  client = createClient(server.url);
});
after(() => server?.kill());

/** The requests of `use` to a server that answers with scripted handlers, in order. */
async function scripted(script, use) {
  const requests = [];
  const server = await serve(async (request, response) => {
    const { method, url, headers } = request;
    let body = "";
    for await (const chunk of request) body += chunk;
    requests.push({ method, url, after: headers["last-event-id"], body: body && JSON.parse(body) });
    script[requests.length - 1](response);
  });
  try {
    await use(createClient(server.url), requests);
  } finally {
    await server.close();
  }
}
const event = (type, data, seq) => `id: 7-${seq}\nevent: ${type}\ndata: ${JSON.stringify({ type, ...data })}\n\n`;
const STARTED = event("started", { generation_id: "g1", choices: 1 }, 1);
const token = (text, seq, index = 0) => event("token", { index, text }, seq);
const done = (seq) => event("done", { index: 0, finish_reason: "stop", usage: { completion_tokens: 2 } }, seq);
/** A response with server-sent events that is cut, ended or kept open. */
const sse = (end, ...texts) => (response) => {
  response.writeHead(200, { "content-type": "text/event-stream" });
  response.write(texts.join(""), () => end === "cut" ? setTimeout(() => response.destroy(), 20) : end === "end" && response.end());
};
const empty = (status) => (response) => response.writeHead(status).end();

test("generation resumes after the last event of a cut connection", async () => {
  const script = [sse("cut", STARTED, token("One", 2), token("Uno", 3, 1)), sse("cut", token(" two", 4)), empty(503), sse("end", done(5))];
  await scripted(script, async (client, requests) => {
    let id;
    const parts = await collect(client.generate({ prompt: "hi" }, { ...quick, onGenerationId: (name) => (id = name) }));
    assert.deepEqual([parts, id], [["One", " two"], "g1"]);
    assert.deepEqual(requests, [
      { method: "POST", url: "/generate-stream?detach=true", after: undefined, body: { prompt: "hi", stream: true } },
      { method: "GET", url: "/stream/generation/g1", after: "7-3", body: "" },
      { method: "GET", url: "/stream/generation/g1", after: "7-4", body: "" },
      { method: "GET", url: "/stream/generation/g1", after: "7-4", body: "" },
    ]);
  });
});

test("generation whose iteration ends early is cancelled", async () => {
  await scripted([sse("open", STARTED, token("One", 2)), empty(204)], async (client, requests) => {
    for await (const part of client.generate({ prompt: "hi" })) {
      assert.equal(part, "One");
      break;
    }
    assert.deepEqual(requests.slice(1), [{ method: "DELETE", url: "/v1/generations/g1", after: undefined, body: "" }]);
  });
  await scripted([sse("open", STARTED, token("One", 2)), empty(204)], async (client, requests) => {
    const stop = new AbortController();
    await assert.rejects(async () => {
      for await (const part of client.generate({ prompt: "hi" }, { signal: stop.signal })) stop.abort(new Error(`stop after ${part}`));
    }, /stop after One/);
    assert.equal(requests[1].method, "DELETE");
  });
});

test("generation without reconnect is not detached, and ends with its connection", async () => {
  await scripted([sse("cut", STARTED, token("One", 2))], async (client, requests) => {
    await assert.rejects(collect(client.generate({ prompt: "hi" }, { reconnect: false })));
    assert.deepEqual(requests.map(({ url }) => url), ["/generate-stream"]);
  });
});

test("request without a response is not repeated", async () => {
  await scripted([(response) => response.destroy()], async (client, requests) => {
    await assert.rejects(collect(client.generate({ prompt: "hi" }, quick)), { code: "connection_failed" });
    assert.equal(requests.length, 1);
  });
});

test("gap in a generated text rejects, and is an event of generateEvents", async () => {
  const gap = `id: 7-4\nevent: gap\ndata: ${JSON.stringify({ missing_from: "7-3", missing_to: "7-4", timestamp: "t" })}\n\n`;
  const script = [sse("cut", STARTED, token("One", 2)), sse("end", gap, done(5))];
  await scripted([...script, empty(204)], (client) => assert.rejects(collect(client.generate({ prompt: "hi" }, quick)), { code: "gap" }));
  await scripted(script, async (client) => {
    const types = (await collect(client.generateEvents({ prompt: "hi" }, quick))).map(({ type }) => type);
    assert.deepEqual(types, ["started", "token", "gap", "done"]);
  });
});

test("chat stream resumes after its last frame", async () => {
  const chunk = (content, seq) => `id: ${seq}\ndata: ${JSON.stringify({ id: "c", choices: [{ index: 0, delta: { content } }] })}\n\n`;
  const first = (response) => {
    response.setHeader("x-weir-generation", "g2");
    sse("cut", chunk("One", 0))(response);
  };
  await scripted([first, sse("end", chunk(" two", 1), "id: 2\ndata: [DONE]\n\n")], async (client, requests) => {
    const chunks = await collect(client.chatStream({ messages: [{ role: "user", content: "hi" }] }, quick));
    assert.equal(chunks.map(({ choices }) => choices[0].delta.content).join(""), "One two");
    assert.deepEqual([requests[1].url, requests[1].after], ["/v1/generations/g2?stream=true", "0"]);
  });
});

test("generation and chat of a server return the same text", needsStub, async () => {
  const TEXT = "One two three four five.";
  assert.equal((await collect(client.generate({ prompt: "hi" }))).join(""), TEXT);
  const messages = [{ role: "user", content: "hi" }];
  const { choices, usage } = await client.chat({ messages });
  assert.deepEqual([choices[0].message.content, choices[0].finish_reason, usage.completion_tokens], [TEXT, "stop", 5]);
  const chunks = await collect(client.chatStream({ messages }));
  assert.equal(chunks.map(({ choices }) => choices[0]?.delta.content ?? "").join(""), TEXT);
  await assert.rejects(collect(client.generate({ prompt: "!fail" })), (error) => error instanceof WeirError && error.code === "engine_failed");
  await assert.rejects(collect(client.chatStream({ messages: [{ role: "user", content: "!fail" }] })), { code: "engine_failed" });
  await assert.rejects(collect(client.generate({ prompt: "hi", model: "nosuch" })), { status: 404 });
  await assert.rejects(client.chat({ messages, model: "nosuch" }), { status: 404 });
});

test("generation through cut connections has the whole text", needsStub, async () => {
  const proxy = await cuttingProxy(server.port, 900);
  let id;
  const events = await collect(createClient(proxy.url).generateEvents({ prompt: "!slow" }, { reconnectInterval: 5, maxReconnectAttempts: 50, onGenerationId: (name) => (id = name) }));
  const connections = proxy.connections;
  await proxy.close();
  assert.deepEqual(events.map(({ id }) => Number(id.split("-")[1])), events.map((_, at) => at + 1));
  assert.equal(events.filter(({ type }) => type === "token").map(({ data }) => data.text).join(""), "One two three four five.");
  assert.ok(connections > 1, `${connections} connections`);
  assert.equal((await client.generations.get(id)).choices[0].text, "One two three four five.");
  const followed = (await collect(client.generations.follow(id))).filter(({ type }) => type === "token");
  assert.equal(followed.map(({ data }) => data.text).join(""), "One two three four five.");
});

test("cancelled generation ends with an error", needsStub, async () => {
  let id;
  const reading = collect(client.generateEvents({ prompt: "!never" }, { onGenerationId: (name) => (id = name) }));
  await until(() => id);
  await client.generations.cancel(id);
  assert.equal((await reading).at(-1).data.code, "cancelled");
});
