// The page in a browser, served by `weir serve`: every view, and failures of connections and of the server.
import assert from "node:assert/strict";
import { createHash } from "node:crypto";
import { writeFileSync } from "node:fs";
import { after } from "node:test";
import { closeBrowser, inspect, open, options, post, scratch, serve, slowService, tasksOf, test, until } from "./support.mjs";

after(closeBrowser);

const REVIEW = {
  steps: [
    { id: "chunk", kind: "chunk", chunk_size: 200 },
    { id: "sentiment", kind: "sentiment", after: ["chunk"] },
    { id: "entities", kind: "entities", after: [], on_error: "continue" },
    { id: "report", kind: "map", after: ["sentiment", "entities"], expression: "{verdict: sentiment.overall_sentiment}" },
  ],
};
const text = (page, selector) => page.locator(selector).innerText();
const publish = (server, id, progress, more = {}) => post(`${server.url}/stream/publish/workflow/${id}`, { step: `step ${progress}`, progress, ...more });
/** The events of a page's log, from its download. */
async function eventsOf(page) {
  const [file] = await Promise.all([page.waitForEvent("download"), page.getByRole("button", { name: "Download .ndjson" }).click()]);
  const chunks = [];
  for await (const chunk of await file.createReadStream()) chunks.push(chunk);
  return Buffer.concat(chunks).toString().trim().split("\n").map((line) => JSON.parse(line));
}

test("home runs every task, shows the request as code, and loads nothing else", options, async (t) => {
  const server = await serve(t, { pipelines: { review: REVIEW } });
  const { page, activity } = await open(t, server.page);
  await page.getByRole("button", { name: /^Run/ }).click();
  await page.getByText("positive", { exact: true }).waitFor();
  assert.match(await text(page, "[data-times]"), /ms to the first event, .* in total/);
  await inspect(page, "home");
  await page.getByRole("radio", { name: "Entities" }).check();
  await page.getByRole("button", { name: "news" }).click();
  await page.getByRole("textbox", { name: "Text" }).press("Control+Enter");
  await page.locator("mark", { hasText: "Berlin" }).waitFor();
  await page.getByRole("radio", { name: "Everything" }).check();
  await page.getByRole("button", { name: /^Run/ }).click();
  await page.getByText(/overall:/).waitFor();
  await page.locator("mark", { hasText: "Berlin" }).waitFor();
  assert.match(await text(page, "section[aria-labelledby=same] > pre"), /curl -N .*\/process-stream/);
  await page.getByRole("tab", { name: "curl" }).press("ArrowRight");
  assert.match(await text(page, "section[aria-labelledby=same] > pre"), /urllib/);
  assert.equal(await page.getByRole("radio", { name: /Generate/ }).isDisabled(), !(await page.getByText("text-generation").count()) && true);
  await page.getByRole("link", { name: "review" }).waitFor();
  const external = activity.requests.filter((url) => !url.startsWith(server.page) && !url.startsWith("data:"));
  assert.deepEqual(external, []);
});

const STUB = process.env.WEIR_TEST_GENERATE_STUB;
const MODEL = process.env.WEIR_TEST_GENERATE_MODEL;
const needsStub = { skip: options.skip || (STUB === undefined ? "WEIR_TEST_GENERATE_STUB is not set" : false) };

test("home generates text with a language model, and stops", needsStub, async (t) => {
  const server = await serve(t, { settings: [`generate.component=${STUB}`, `model.stub.path=${MODEL}`] });
  const { page, activity } = await open(t, server.page);
  await page.getByRole("radio", { name: "Generate" }).check();
  await page.getByRole("textbox", { name: "Text" }).fill("Count to five.");
  await page.getByRole("button", { name: /^Run/ }).click();
  await page.locator("pre[aria-live=off]", { hasText: "One two three four five." }).waitFor();
  await page.locator("[data-times]", { hasText: /in total, 5 tokens/ }).waitFor();
  assert.match(await text(page, "section[aria-labelledby=same] > pre"), /curl -N .*\/generate-stream/);
  await inspect(page, "generate");
  await page.getByRole("textbox", { name: "Text" }).fill("!never");
  await page.getByRole("button", { name: /^Run/ }).click();
  await until(() => activity.requests.filter((url) => url.includes("/generate-stream")).length === 2);
  await page.getByText("Raw events (1)").waitFor();
  const cancelled = page.waitForRequest((request) => request.method() === "DELETE" && request.url().includes("/v1/generations/"));
  await page.getByRole("button", { name: "Stop" }).click();
  await cancelled;
  await page.getByRole("textbox", { name: "Text" }).fill("!fail");
  await page.getByRole("button", { name: /^Run/ }).click();
  await page.getByRole("alert").getByText(/the engine failed/).waitFor();
});

test("runs: a pipeline is started, followed to its end and found in the list", options, async (t) => {
  const service = await slowService(t);
  const slow = { steps: [{ id: "quick", kind: "map", expression: "`1`" }, { id: "call", kind: "http", after: ["quick"], url: service.url }] };
  const server = await serve(t, { pipelines: { review: REVIEW, slow }, settings: [`pipelines.http_allow=["${service.url.slice(7)}"]`] });
  const { page } = await open(t, `${server.page}/pipelines/review`);
  await page.getByRole("button", { name: "Start" }).click();
  await page.locator("[data-state]", { hasText: "completed" }).waitFor();
  await page.locator("[data-timeline]", { hasText: "report" }).waitFor();
  assert.equal(await page.locator("[data-timeline] button").count(), 4);
  await page.locator("[data-connection]", { hasText: "finished" }).waitFor();
  await page.getByRole("button", { name: "sentiment" }).click();
  await page.getByText("kind sentiment").waitFor();
  await inspect(page, "run");
  await page.getByRole("tab", { name: "Log" }).click();
  await page.locator("[data-filter]").fill("step:report type:step_complete");
  await until(async () => (await page.locator(".log li").count()) === 1);
  await page.getByRole("tab", { name: "Output" }).click();
  await page.getByText('"verdict": "POSITIVE"').waitFor();

  const { execution_id: id } = await post(`${server.url}/pipelines/slow`, {});
  await until(() => service.waiting.length === 1);
  await page.goto(`${server.page}/executions/${id}`);
  await page.locator("[data-timeline]", { hasText: "running" }).waitFor();
  await page.getByRole("button", { name: "Cancel" }).click();
  await page.locator("[data-state]", { hasText: "cancelled" }).waitFor();

  await page.keyboard.press("g");
  await page.keyboard.press("r");
  await page.getByRole("cell", { name: id }).waitFor();
  await inspect(page, "runs");
  await page.getByRole("link", { name: id }).click();
  await page.waitForURL(`**/executions/${id}`);

  // The input of an execution that this tab did not start is entered anew; then the same input runs again.
  await page.getByRole("button", { name: "Run again" }).click();
  await page.waitForURL("**/pipelines/slow");
  service.release();
  await page.getByRole("button", { name: "Start" }).click();
  const isOther = (url) => /\/executions\/exec_/.test(url.pathname) && !url.pathname.endsWith(id);
  await page.waitForURL(isOther);
  await page.locator("[data-state]", { hasText: "completed" }).waitFor();
  const first = page.url();
  await page.getByRole("button", { name: "Run again" }).click();
  await page.waitForURL((url) => isOther(url) && url.href !== first);
  await page.locator("[data-state]", { hasText: "completed" }).waitFor();
});

test("channels are followed over one socket, and published to", options, async (t) => {
  const server = await serve(t);
  await publish(server, "42", 10);
  const { page, activity } = await open(t, `${server.page}/channels?c=workflow:42&c=user:ann`);
  await page.locator(".log li", { hasText: "step 10" }).waitFor();
  await page.getByRole("spinbutton", { name: "progress" }).fill("55");
  await page.getByLabel("user_id").fill("ann");
  await page.getByRole("button", { name: "Publish" }).click();
  await page.getByText(/published as/).waitFor();
  await page.locator(".log li", { hasText: "55 %" }).waitFor();
  await page.getByRole("button", { name: "user:ann", exact: true }).click();
  await page.locator(".log li", { hasText: "55 %" }).waitFor();
  await inspect(page, "channels");
  await page.getByLabel("Id", { exact: true }).fill("43");
  await page.getByRole("button", { name: "Follow", exact: true }).click();
  await page.getByText("3 of 64 on one socket").waitFor();
  await publish(server, "43", 5);
  await page.locator(".log li", { hasText: "step 5" }).waitFor();
  assert.equal(activity.sockets, 1);
  await page.getByRole("button", { name: "Unfollow workflow:43" }).click();
  await page.getByText("2 of 64 on one socket").waitFor();
});

test("channel is followed from now with a filter, and resumes with it", options, async (t) => {
  const server = await serve(t);
  await publish(server, "42", 1, { step: "parse" });
  const { page } = await open(t, `${server.page}/channels`);
  await page.getByLabel("Id", { exact: true }).fill("42");
  await page.getByLabel("from").selectOption("now");
  await page.getByLabel("steps").fill("parse, load");
  await page.getByRole("button", { name: "Follow", exact: true }).click();
  await page.locator(".log li", { hasText: "connected" }).waitFor();
  await publish(server, "42", 2, { step: "parse" });
  await publish(server, "42", 3, { step: "render" });
  await publish(server, "42", 4, { step: "load" });
  await page.locator(".log li", { hasText: "4 %" }).waitFor();
  const hide = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  await hide(true);
  await until(async () => (await (await fetch(`${server.url}/stream/health`)).json()).active_streams === 0);
  await publish(server, "42", 5, { step: "render" });
  await publish(server, "42", 6, { step: "load" });
  await hide(false);
  await page.locator(".log li", { hasText: "6 %" }).waitFor();
  const shown = async () => (await eventsOf(page)).filter(({ id }) => id).map(({ data }) => data.progress);
  assert.deepEqual(await shown(), [2, 4, 6]);
  // The address has the options: another tab follows with the same filter, from its own time.
  const { page: other } = await open(t, page.url());
  await other.locator(".log li", { hasText: "connected" }).waitFor();
  await publish(server, "42", 7, { step: "render" });
  await publish(server, "42", 8, { step: "load" });
  await other.locator(".log li", { hasText: "8 %" }).waitFor();
  assert.deepEqual((await eventsOf(other)).filter(({ id }) => id).map(({ data }) => data.progress), [8]);
});

test("token that is set or removed reloads the view", options, async (t) => {
  const keys = scratch(t);
  const key = `weir_${"k".repeat(43)}`;
  writeFileSync(`${keys}/api_keys`, `test ann sha256:${createHash("sha256").update(key).digest("hex")} admin\n`);
  const server = await serve(t, { settings: ["auth.mode=required", `auth.dir=${keys}`], pipelines: { review: REVIEW } });
  const { page } = await open(t, server.page);
  const set = async (name, text, button) => {
    await page.getByRole("button", { name, exact: true }).click();
    await page.getByLabel("Token").fill(text);
    await page.getByRole("button", { name: button, exact: true }).click();
  };
  await page.getByRole("alert").first().waitFor();
  await set("Token", key, "Set");
  await page.getByRole("link", { name: "review" }).waitFor();
  await until(async () => (await page.getByRole("alert").count()) === 0);
  await set("Token set", "", "Remove");
  await page.getByRole("alert").first().waitFor();
});

test("page whose socket cannot be opened follows by server-sent events", options, async (t) => {
  const server = await serve(t);
  const block = (page) => page.addInitScript(() => {
    window.WebSocket = class { static OPEN = 1; constructor() { setTimeout(() => this.onclose?.()); } close() {} };
  });
  const { page, activity } = await open(t, `${server.page}/channels?c=workflow:42`, { block });
  await publish(server, "42", 7);
  await page.locator(".log li", { hasText: "step 7" }).waitFor();
  assert.equal(activity.sockets, 0);
  assert.ok(activity.requests.some((url) => url.endsWith("/stream/workflow/42")));
});

test("page has every event once after kill -9 of the server", options, async (t) => {
  const settings = ["events.store=disk", "events.durable=true"];
  const folder = scratch(t);
  const first = await serve(t, { settings: [...settings, `events.path=${folder}/events.redb`] });
  for (let seq = 1; seq <= 20; seq++) await publish(first, "42", seq);
  const { page } = await open(t, `${first.page}/channels?c=workflow:42`);
  await page.locator(".log li", { hasText: "step 20" }).waitFor();
  await first.kill();
  await page.locator("[data-banner=lost]").waitFor();
  await page.locator("[data-overall]", { hasText: "reconnecting" }).waitFor();
  await until(async () => /reconnecting/.test(await page.title()));
  await inspect(page, "connection-lost");
  const second = await serve(t, { settings: [...settings, `events.path=${folder}/events.redb`], port: first.port });
  for (let seq = 21; seq <= 30; seq++) await publish(second, "42", seq);
  await page.locator("[data-overall]", { hasText: "live" }).waitFor({ timeout: 60_000 });
  await page.locator(".log li", { hasText: "step 30" }).waitFor();
  const progress = (await eventsOf(page)).filter(({ type }) => type === "workflow_progress").map(({ data }) => data.progress);
  assert.deepEqual(progress, Array.from({ length: 30 }, (_, at) => at + 1));
  assert.equal(await page.locator("[data-banner=lost]").count(), 0);
});

test("events that are no longer stored are shown as a gap", options, async (t) => {
  const server = await serve(t, { settings: ["events.events_max=50"] });
  const { id } = await publish(server, "42", 0);
  for (let seq = 1; seq <= 100; seq++) await publish(server, "42", seq / 10);
  const { page } = await open(t, `${server.page}/channels`);
  await page.getByLabel("Id", { exact: true }).fill("42");
  await page.getByLabel("from").selectOption("id");
  await page.getByLabel("After the id").fill(id);
  await page.getByRole("button", { name: "Follow", exact: true }).click();
  await page.locator("[data-banner=gap]").waitFor();
  assert.match(await text(page, "[data-banner=gap]"), /50 events are no longer stored/);
  await page.locator(".log li", { hasText: "step 10" }).first().waitFor();
  await inspect(page, "gap");
});

test("10,000 events cause no long task and at most 500 rows", options, async (t) => {
  const server = await serve(t, { settings: ["events.events_max=20000", "events.bytes_max=67108864"] });
  const total = 10_000;
  const queue = Array.from({ length: total }, (_, seq) => seq);
  // Published by 16 concurrent tasks, because one after the other takes too long.
  await Promise.all(Array.from({ length: 16 }, async () => {
    for (let seq = queue.shift(); seq !== undefined; seq = queue.shift()) await publish(server, "42", (seq % 1000) / 10);
  }));
  const block = (page) => page.addInitScript(() => {
    window.rowsMax = 0;
    window.hasPaused = false;
    new MutationObserver(() => {
      window.rowsMax = Math.max(window.rowsMax, document.querySelectorAll(".log li").length);
      window.hasPaused ||= document.querySelector(".log .pill") !== null;
    }).observe(document, { childList: true, subtree: true });
  });
  const { page } = await open(t, `${server.page}/channels`, { block });
  await page.getByLabel("Id", { exact: true }).fill("42");
  const traced = await tasksOf(page, async () => {
    await page.getByRole("button", { name: "Follow", exact: true }).click();
    await until(async () => (await text(page, "[data-count]").catch(() => "")).startsWith("10,001"), 60_000);
  });
  assert.ok(traced.length > 100, `${traced.length} tasks`);
  assert.ok(Math.max(...traced) <= 50, `the longest task took ${Math.max(...traced)} ms`);
  const rows = await page.evaluate(() => window.rowsMax);
  assert.ok(rows > 0 && rows <= 500, `${rows} rows`);
  assert.equal(await page.evaluate(() => window.hasPaused), false, "the log paused, although nobody scrolled");
  await page.locator(".log").evaluate((box) => (box.scrollTop = 0));
  await page.getByText("paused · 0 new").waitFor();
  for (let seq = 0; seq < 3; seq++) await publish(server, "42", seq);
  await page.getByText("paused · 3 new").click();
  await page.locator(".log li", { hasText: "step 2" }).last().waitFor();
});

test("log pauses when the user scrolls up, and only then", options, async (t) => {
  const server = await serve(t);
  for (let seq = 1; seq <= 100; seq++) await publish(server, "42", seq / 10);
  const { page } = await open(t, `${server.page}/channels?c=workflow:42`);
  await page.locator(".log li", { hasText: "step 10" }).first().waitFor();
  const log = page.locator(".log");
  const distance = () => log.evaluate((box) => box.scrollHeight - box.scrollTop - box.clientHeight);
  await until(async () => (await distance()) < 8, 60_000);
  // A log that grows before the browser reports a position near its end follows on.
  await log.evaluate((box) => {
    box.scrollTop -= 1;
    box.querySelector("li:last-child button").click();
  });
  await log.locator("pre").waitFor();
  await until(async () => (await distance()) < 8, 60_000);
  assert.equal(await page.locator(".log .pill").count(), 0);
  // Renders the log in the same task in which it was scrolled up, before the browser reports it.
  await log.evaluate((box) => {
    box.scrollTop = 0;
    const filter = document.querySelector("[data-filter]");
    filter.value = "workflow";
    filter.dispatchEvent(new Event("input", { bubbles: true }));
  });
  await page.getByText("paused · 0 new").waitFor();
  // The first of the 30 rows that follow the end is the first visible one still, below the older ones that a paused log has.
  const first = () => log.evaluate((box) => [...box.querySelectorAll("li")].find((row) => row.getBoundingClientRect().bottom > box.getBoundingClientRect().top + 2).innerText);
  assert.match(await first(), /step 7\.1/);
  assert.equal(await log.locator("li").count(), 101);
  // It follows again, although it was at its beginning.
  await page.getByRole("button", { name: "Bottom" }).click();
  await until(async () => (await distance()) < 8 && (await page.getByText(/^paused/).count()) === 0, 60_000);
  await page.getByRole("button", { name: "Top" }).click();
  await page.getByText("paused · 0 new").waitFor();
  assert.equal(await log.evaluate((box) => box.scrollTop), 0);
});

test("hidden tab follows nothing and gets the missed events when it is visible", options, async (t) => {
  const server = await serve(t);
  await publish(server, "42", 1);
  const { page } = await open(t, `${server.page}/channels?c=workflow:42`);
  await page.locator(".log li", { hasText: "step 1" }).waitFor();
  const hide = (hidden) => page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    document.dispatchEvent(new Event("visibilitychange"));
  }, hidden);
  const streams = async () => (await (await fetch(`${server.url}/stream/health`)).json()).active_streams;
  assert.equal(await streams(), 1);
  await hide(true);
  await until(async () => (await streams()) === 0);
  await publish(server, "42", 2);
  assert.equal(await page.locator(".log li", { hasText: "step 2" }).count(), 0);
  await hide(false);
  await page.locator(".log li", { hasText: "step 2" }).waitFor();
  assert.deepEqual((await eventsOf(page)).filter(({ id }) => id).map(({ data }) => data.progress), [1, 2]);
});

test("session shows segments as they become final", options, async (t) => {
  const server = await serve(t);
  const { session_id: id } = await post(`${server.url}/sessions`, { annotate: ["keywords", "intent", "sentiment"] });
  const { page } = await open(t, `${server.page}/sessions/${id}`);
  const feed = async (who, words) => {
    await page.getByLabel("Speaker", { exact: true }).last().fill(who);
    await page.getByPlaceholder("Text of a chunk").fill(words);
    await page.getByRole("button", { name: "Send chunk" }).click();
    await page.getByText(words).first().waitFor();
  };
  await feed("ann", "Can you send the price list?");
  await page.locator(".partial", { hasText: "price list" }).waitFor();
  await feed("bob", "I will.");
  await feed("ann", "This is unacceptable, I want to cancel.");
  await page.locator(".lines li", { hasText: "#price" }).waitFor();
  await page.getByRole("button", { name: "End", exact: true }).click();
  await page.locator(".lines li", { hasText: "churn_risk" }).waitFor();
  await inspect(page, "session");
  await page.getByLabel("risks only").check();
  await until(async () => (await page.locator(".lines li").count()) === 2);
  await page.getByRole("button", { name: "Context for an LLM" }).click();
  await page.getByText("Recent conversation context:").waitFor();
});

test("server shows models, counts and changed settings without secrets", options, async (t) => {
  const server = await serve(t, { settings: ["http.requests_max=77"] });
  const { page } = await open(t, `${server.page}/server`);
  await page.getByRole("rowheader", { name: "sentiment" }).waitFor();
  await page.locator("[data-server]", { hasText: "requests open" }).waitFor();
  await page.locator("[data-server]", { hasText: "uptime" }).waitFor();
  await page.getByText("Configuration (3 keys changed from the defaults)").click();
  const settings = await page.locator("[data-configuration] tbody tr").allInnerTexts();
  assert.deepEqual(settings.map((row) => row.split("\t")), [["http.listen", "set"], ["http.requests_max", "77"], ["pipelines.dir", "set"]]);
  await inspect(page, "server");
});

test("demo uploads a text, follows its analysis, and resumes after a cut", options, async (t) => {
  const service = await slowService(t);
  const slow = {
    steps: [
      { id: "reading", kind: "chunk", chunk_size: 200 },
      { id: "call", kind: "http", after: ["reading"], url: service.url, body: "`1`" },
      { id: "sentiment", kind: "sentiment", after: ["reading", "call"], input: "steps.reading" },
      { id: "report", kind: "map", after: ["sentiment"], expression: "{sentiment: overall_sentiment, entities: `[]`}" },
    ],
  };
  const server = await serve(t, { pipelines: { analyze: slow }, settings: [`pipelines.http_allow=["${service.url.slice(7)}"]`] });
  const { page } = await open(t, `${server.page}/demo/streaming`);
  await page.getByRole("button", { name: "use the example night-train.txt" }).click();
  await until(() => service.waiting.length === 1);
  await page.getByRole("button", { name: "Simulate a cut" }).click();
  await page.getByText(/^cut after .*resumed at the next event$/).waitFor();
  service.release();
  await page.getByRole("button", { name: "Download JSON" }).waitFor({ timeout: 60_000 });
  await page.getByText("POSITIVE", { exact: true }).or(page.getByText("NEGATIVE", { exact: true })).or(page.getByText("NEUTRAL", { exact: true })).first().waitFor();
  const events = (await eventsOf(page)).filter(({ type }) => type === "analysis_progress");
  assert.equal(events.at(-1).data.progress, 100);
  const seqs = events.map(({ id }) => Number(id.split("-")[1]));
  assert.deepEqual(seqs, seqs.map((_, at) => at + 1));
  await inspect(page, "demo");
});

test("demo analyzes with the built-in pipeline and refuses a file that is too large", options, async (t) => {
  const server = await serve(t);
  const { page } = await open(t, `${server.page}/demo/streaming`);
  const choose = (name, text) => page.locator("input[type=file]").setInputFiles({ name, mimeType: "text/plain", buffer: Buffer.from(text) });
  await choose("large.txt", "x".repeat(300 * 1024));
  await page.getByRole("alert").getByText(/the limit is 262,144 bytes/).waitFor();
  await choose("small.txt", "Ada Lovelace was delighted in London. It was a wonderful day for everybody who came to see the machine.");
  await page.getByRole("button", { name: "Download JSON" }).waitFor({ timeout: 60_000 });
  assert.match(await text(page, "[data-result]"), /POSITIVE .*entities/s);
});

test("keys reach every view, and ? lists them", options, async (t) => {
  const server = await serve(t);
  const { page } = await open(t, server.page);
  await page.getByText("Try it").waitFor();
  for (const [key, path] of [["c", "/channels"], ["s", "/server"], ["d", "/demo/streaming"], ["r", "/executions"], ["h", "/"]]) {
    await page.keyboard.press("g");
    await page.keyboard.press(key);
    await page.waitForURL(`${server.page}${path}`);
  }
  await page.keyboard.press("?");
  await page.getByRole("dialog").waitFor();
  await page.keyboard.press("Escape");
  await until(async () => (await page.getByRole("dialog").count()) === 0);
});

test("first paint is within 100 ms and the page within its budget", options, async (t) => {
  const server = await serve(t);
  const { page } = await open(t, server.page);
  // The fastest of several loads, because other programs of the machine slow some of them.
  const paints = [];
  do {
    await page.reload();
    await page.getByText("Try it").waitFor();
    paints.push(await until(() => page.evaluate(() => performance.getEntriesByName("first-contentful-paint")[0]?.startTime)));
  } while (Math.min(...paints) >= 100 && paints.length < 20);
  assert.ok(Math.min(...paints) < 100, `${paints} ms`);
  const body = await (await fetch(server.page, { headers: { accept: "text/html" } })).arrayBuffer();
  const { gzipSync } = await import("node:zlib");
  assert.ok(gzipSync(Buffer.from(body), { level: 9 }).length < 60_000);
});
