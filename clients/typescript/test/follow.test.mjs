// `follow` over broken connections, against a server with scripted connections.
import assert from "node:assert/strict";
import { createClient, WeirError } from "weir-client";
import { collect, CONNECTED, FINISHED, progress, serve, test, until } from "./support.mjs";

/**
 * Serves one list of texts for each connection. `null` in a list destroys the connection, and further connections are answered 410.
 */
async function withConnections(connections, use, options = {}) {
  const requests = [];
  const server = await serve(async (request, response) => {
    requests.push(request.headers);
    const script = connections[requests.length - 1];
    if (typeof script === "function") return script(response);
    if (script === undefined) return response.writeHead(410).end();
    response.writeHead(200, { "content-type": "text/event-stream" });
    for (const text of script) {
      if (text === null) return response.destroy();
      await new Promise((resolve) => response.write(text, resolve));
    }
    if (script.staysOpen) return;
    response.end();
  });
  try {
    await use(createClient(server.url, options), requests);
  } finally {
    await server.close();
  }
}

const quick = { reconnectInterval: 10 };

async function read(events) {
  const names = [];
  for await (const event of events) names.push(event.id ?? event.type);
  return names;
}

test("follow over cut connections resumes after the last event", () =>
  withConnections(
    [
      [CONNECTED, progress(1), progress(2), progress(3).slice(0, 20), null],
      [CONNECTED, progress(3), null],
      [CONNECTED, progress(4), FINISHED],
    ],
    async (client, requests) => {
      const states = [];
      const events = client.follow("workflow", "42", { ...quick, onState: (state) => states.push(state) });
      assert.deepEqual(await read(events), [
        "connected", "7-1", "7-2", "connected", "7-3", "connected", "7-4", "disconnected",
      ]);
      assert.deepEqual(requests.map((headers) => headers["last-event-id"]), [undefined, "7-2", "7-3"]);
      assert.equal(states[0], "connecting");
      assert.equal(states.filter((state) => state === "open").length, 3);
      assert.equal(states.at(-1), "closed");
    },
  ));

test("follow of a finished channel ends at 204", () =>
  withConnections([(response) => response.writeHead(204).end()], async (client, requests) => {
    const states = [];
    assert.deepEqual(await read(client.follow("workflow", "42", { lastEventId: "7-9", onState: (state) => states.push(state) })), []);
    assert.deepEqual(states, ["connecting", "closed"]);
    assert.equal(requests[0]["last-event-id"], "7-9");
  }));

test("retry field sets the delay before the next connection", () =>
  withConnections([["retry: 20\n\n", CONNECTED], [CONNECTED, FINISHED]], async (client) => {
    const waits = [];
    const options = { reconnectInterval: 60_000, onState: (_, { retryInMs }) => retryInMs !== undefined && waits.push(retryInMs) };
    assert.equal((await read(client.follow("workflow", "42", options))).length, 3);
    assert.equal(waits.length, 1);
    assert.ok(waits[0] >= 10 && waits[0] <= 20, `${waits[0]}`);
  }));

test("follow waits for the retry-after of a refusal", () =>
  withConnections(
    [
      (response) => response.writeHead(503, { "content-type": "application/problem+json" }).end(JSON.stringify({ code: "unavailable", detail: "no store", retryable: true, retry_after_ms: 120 })),
      [CONNECTED, FINISHED],
    ],
    async (client) => {
      const began = Date.now();
      assert.equal((await read(client.follow("workflow", "42", quick))).length, 2);
      assert.ok(Date.now() - began >= 115, `${Date.now() - began}`);
    },
  ));

test("follow waits at most an hour for the retry-after of a refusal", () =>
  withConnections([(response) => response.writeHead(503, { "retry-after": "99999999" }).end(), [CONNECTED, FINISHED]], async (client, requests) => {
    const stop = new AbortController();
    const waits = [];
    const onState = (_, { retryInMs }) => {
      if (retryInMs === undefined) return;
      waits.push(retryInMs);
      stop.abort();
    };
    assert.deepEqual(await read(client.follow("workflow", "42", { ...quick, signal: stop.signal, onState })), []);
    assert.deepEqual([waits, requests.length], [[3_600_000], 1]);
  }));

test("follow that is refused permanently throws the problem", () =>
  withConnections(
    [(response) => response.writeHead(404, { "content-type": "application/problem+json", "x-request-id": "r1" }).end(JSON.stringify({ code: "not_found", detail: "no such channel", retryable: false, request_id: "r1" }))],
    async (client) => {
      const error = await read(client.follow("workflow", "42", quick)).catch((error) => error);
      assert.ok(error instanceof WeirError);
      assert.deepEqual([error.status, error.code, error.message, error.requestId, error.retryable], [404, "not_found", "no such channel", "r1", false]);
    },
  ));

test("follow fails after its attempts", () =>
  withConnections([[CONNECTED, progress(1)], ...Array.from({ length: 9 }, () => [])], async (client, requests) => {
    const states = [];
    const options = { reconnectInterval: 1, maxReconnectAttempts: 3, onState: (state, { attempt }) => states.push(`${state} ${attempt}`) };
    await assert.rejects(read(client.follow("workflow", "42", options)), { code: "connection_lost" });
    assert.equal(requests.length, 4);
    assert.equal(states.at(-1), "failed 3");
  }));

test("follow without reconnection ends with the connection", () =>
  withConnections([[CONNECTED]], async (client, requests) => {
    await assert.rejects(read(client.follow("workflow", "42", { reconnect: false })), { code: "connection_lost" });
    assert.equal(requests.length, 1);
  }));

test("silent connection is replaced after stallMs", () => {
  const silent = Object.assign([CONNECTED, progress(1)], { staysOpen: true });
  return withConnections([silent, [CONNECTED, progress(2), FINISHED]], async (client, requests) => {
    assert.deepEqual(await read(client.follow("workflow", "42", { ...quick, stallMs: 100 })), ["connected", "7-1", "connected", "7-2", "disconnected"]);
    assert.equal(requests[1]["last-event-id"], "7-1");
  });
});

test("abort ends the stream and its connection", () => {
  const silent = Object.assign([CONNECTED, progress(1)], { staysOpen: true });
  return withConnections([silent], async (client) => {
    const stop = new AbortController();
    const types = [];
    for await (const event of client.follow("workflow", "42", { signal: stop.signal })) {
      types.push(event.type);
      if (event.id === "7-1") stop.abort();
    }
    assert.deepEqual(types, ["connected", "workflow_progress"]);
  });
});

test("end of the iteration closes the connection", async () => {
  let closed = 0;
  const server = await serve((request, response) => {
    response.writeHead(200, { "content-type": "text/event-stream" }).write(CONNECTED);
    request.on("close", () => (closed += 1));
  });
  for await (const event of createClient(server.url).follow("user", "ann")) {
    assert.equal(event.type, "connected");
    break;
  }
  await until(() => closed === 1);
  await server.close();
});

test("token function is called again after 401", async () => {
  let tokens = 0;
  await withConnections(
    [(response) => response.writeHead(401).end("{}"), [CONNECTED, FINISHED]],
    async (client, requests) => {
      await read(client.follow("workflow", "42", quick));
      assert.deepEqual(requests.map(({ authorization }) => authorization), ["Bearer token 1", "Bearer token 2"]);
    },
    { token: () => `token ${++tokens}` },
  );
});

test("filters are in the query", async () => {
  let url;
  const server = await serve((request, response) => {
    url = request.url;
    response.writeHead(204).end();
  });
  const filter = { events: ["step_complete", "step_error"], steps: ["a", "b"], throttleMs: 100 };
  await read(createClient(server.url).executions.follow("exec_1", filter));
  assert.equal(url, "/stream/pipeline/exec_1?events=step_complete%2Cstep_error&steps=a%2Cb&throttle_ms=100");
  await server.close();
});

test("since omits older events, and now is the time of the first connection", async () => {
  const at = (seconds) => ({ timestamp: new Date(Date.UTC(2025, 9, 22, 10, 30, seconds)).toISOString() });
  const gap = `id: 7-1\nevent: gap\ndata: {"missing_from":"7-1","missing_to":"7-1","timestamp":"${at(0).timestamp}"}\n\n`;
  const script = [
    [CONNECTED, progress(1, at(-60)), progress(2, at(-1)), null],
    [CONNECTED.replace("10:30:00", "10:31:00"), gap, progress(3, at(5)), progress(4, at(70)), FINISHED],
  ];
  await withConnections(script, async (client, requests) => {
    const events = await collect(client.follow("workflow", "42", { ...quick, since: "now" }));
    assert.deepEqual(events.map(({ type, data }) => data.progress ?? type), ["connected", "connected", "gap", 3, 4, "disconnected"]);
    assert.deepEqual(requests.map((headers) => headers["last-event-id"]), [undefined, "7-2"]);
  });
  await withConnections([[CONNECTED, progress(1, at(0)), progress(2, at(1)), FINISHED]], async (client) => {
    const events = await collect(client.follow("workflow", "42", { ...quick, since: at(1).timestamp }));
    assert.deepEqual(events.map(({ type, data }) => data.progress ?? type), ["connected", 2, "disconnected"]);
  });
});

test("error of invalid fields lists them", async () => {
  const server = await serve((_, response) =>
    response.writeHead(422, { "content-type": "application/problem+json" }).end(
      JSON.stringify({ code: "invalid_fields", detail: "the fields are wrong", retryable: false, errors: [{ field: "text", reason: "missing", message: "`text` is required" }] }),
    ),
  );
  const error = await createClient(server.url).processBatch({}).catch((error) => error);
  assert.equal(error.message, "the fields are wrong: `text` is required");
  assert.equal(error.errors[0].field, "text");
  await server.close();
});
