// Uploads with progress in a browser, against a server with scripted responses; and the delay of a refused request.
import assert from "node:assert/strict";
import { after, before } from "node:test";
import { build } from "esbuild";
import { chromium } from "playwright-core";
import { createClient } from "weir-client";
import { serve, test, until } from "./support.mjs";

const executablePath = process.env.WEIR_TEST_BROWSER;
const needsBrowser = { skip: executablePath === undefined ? "WEIR_TEST_BROWSER is not set" : false };
const ACCEPTED = { file_id: "f", workflow_id: "w" };

let browser, server, page;
/** Requests, the handlers that answer them in order, and the number of open responses. */
let requests = [], handlers = [], open = 0;

before(async () => {
  if (executablePath === undefined) return;
  const { outputFiles } = await build({
    stdin: { contents: 'import { createClient } from "weir-client"; window.createClient = createClient;', resolveDir: import.meta.dirname },
    bundle: true, write: false, format: "iife",
  });
  server = await serve(async (request, response) => {
    if (request.url === "/") return response.writeHead(200, { "content-type": "text/html" }).end('<!doctype html><script src="/page.js"></script>');
    if (request.url === "/page.js") return response.writeHead(200, { "content-type": "text/javascript" }).end(outputFiles[0].contents);
    if (request.url === "/favicon.ico") return response.writeHead(204).end();
    open += 1;
    response.on("close", () => (open -= 1));
    let bytes = 0;
    for await (const chunk of request) bytes += chunk.length;
    const { authorization, "x-extra": extra, "content-type": type } = request.headers;
    handlers[requests.push({ url: request.url, bytes, authorization, extra, type: type.toLowerCase() }) - 1]?.(response);
  });
  browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  page = await browser.newPage();
  await page.goto(server.url);
});
after(async () => {
  await browser?.close();
  await server?.close();
});

/** Uploads 100,000 bytes with progress in the page. Returns the result or the error, and the reported bytes. */
async function upload(script, { tokens, timeoutMs, abort } = {}) {
  [requests, handlers] = [[], script];
  return page.evaluate(async ({ tokens, timeoutMs, abort }) => {
    const client = window.createClient("", { token: tokens && (() => tokens.shift()), timeoutMs, headers: { "x-extra": "1" } });
    const stop = (window.stop = new AbortController());
    if (abort) stop.abort(new Error("stopped before"));
    const reported = [];
    const options = { name: "a.txt", signal: stop.signal, onProgress: (sent, total) => reported.push([sent, total]) };
    return client.upload("x".repeat(100_000), options).then(
      (value) => ({ value, reported }),
      ({ name, message, status, retryAfterMs }) => ({ name, message, status, retryAfterMs, reported }),
    );
  }, { tokens, timeoutMs, abort });
}
const json = (status, body, headers = {}) => (response) => response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(body));
const silent = () => undefined;

test("upload with progress is retried with a new token after 401", needsBrowser, async () => {
  const { value, reported } = await upload([json(401, {}), json(202, ACCEPTED)], { tokens: ["old", "new"] });
  assert.deepEqual(value, ACCEPTED);
  const sent = { url: "/upload?name=a.txt", bytes: 100_000, extra: "1", type: "text/plain; charset=utf-8" };
  assert.deepEqual(requests, [{ ...sent, authorization: "Bearer old" }, { ...sent, authorization: "Bearer new" }]);
  assert.deepEqual(reported.at(-1), [100_000, 100_000]);
});

test("upload with an aborted signal sends nothing", needsBrowser, async () => {
  const { message, reported } = await upload([json(202, ACCEPTED)], { abort: true });
  assert.deepEqual([message, reported], ["stopped before", []]);
  assert.equal(requests.length, 0);
});

test("upload that is aborted or exceeds timeoutMs ends its request", needsBrowser, async () => {
  assert.equal((await upload([silent], { timeoutMs: 100 })).name, "TimeoutError");
  await until(() => open === 0);
  const running = upload([silent]);
  await until(() => requests.length === 1);
  await page.evaluate(() => window.stop.abort());
  assert.equal((await running).name, "AbortError");
  await until(() => open === 0);
});

test("refused upload has the status and the delay of Retry-After", needsBrowser, async () => {
  const { status, message, retryAfterMs } = await upload([json(503, { detail: "the store is full" }, { "retry-after": "3" })]);
  assert.deepEqual([status, message, retryAfterMs], [503, "the store is full", 3000]);
});

test("Retry-After is seconds or a date", async () => {
  const at = Date.UTC(2025, 9, 22, 10, 30);
  const headers = (retryAfter, date = new Date(at).toUTCString()) => ({ "retry-after": retryAfter, date });
  const cases = [
    [headers("2"), 2000],
    [headers(new Date(at + 90_000).toUTCString()), 90_000],
    [headers(new Date(at - 90_000).toUTCString()), 0],
    [headers("later"), undefined],
    [{ date: new Date(at).toUTCString() }, undefined],
  ];
  for (const [sent, expected] of cases) {
    const fetch = async () => new Response("{}", { status: 503, headers: sent });
    const error = await createClient("http://weir.test", { fetch }).models().catch((error) => error);
    assert.equal(error.retryAfterMs, expected, JSON.stringify(sent));
  }
  const fetch = async () => new Response("{}", { status: 503, headers: { "retry-after": new Date(Date.now() + 60_000).toUTCString() } });
  const { retryAfterMs } = await createClient("http://weir.test", { fetch }).models().catch((error) => error);
  assert.ok(retryAfterMs > 50_000 && retryAfterMs <= 60_000, `${retryAfterMs} ms`);
});
