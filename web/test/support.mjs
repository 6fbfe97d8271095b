// Starts `weir serve` and opens its pages in a browser. Errors of a page fail the test.
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createServer } from "node:http";
import { tmpdir } from "node:os";
import { testWithin, within } from "../../clients/typescript/test/deadlines.mjs";
import { chromium } from "playwright-core";

/** `test` with a limit for each test. */
export const test = testWithin(180_000);
export { within };

export const WEIR = process.env.WEIR_TEST_PROGRAM;
export const BROWSER = process.env.WEIR_TEST_BROWSER;
/** The folder of screenshots; without it there are none. */
const SCREENSHOTS = process.env.WEIR_TEST_SCREENSHOTS;
const axe = readFileSync(new URL("../node_modules/axe-core/axe.min.js", import.meta.url), "utf8");

export const options = { skip: WEIR === undefined ? "WEIR_TEST_PROGRAM is not set" : BROWSER === undefined ? "WEIR_TEST_BROWSER is not set" : false };

/** Waits until a condition returns a true value, and returns it. Fails after `limitMs`. */
export async function until(condition, limitMs = 60_000) {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`the condition did not hold within ${limitMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 20));
  }
}

/** A folder that is removed at the end of the test. */
export function scratch(t) {
  const folder = mkdtempSync(`${tmpdir()}/weir-page-`);
  t.after(() => rmSync(folder, { recursive: true, force: true }));
  return folder;
}

/** A service whose responses wait until `release` is called. */
export async function slowService(t) {
  const waiting = [];
  let isReleased = false;
  const server = createServer((_, response) => {
    const respond = () => response.writeHead(200, { "content-type": "application/json" }).end('{"answered":true}');
    if (isReleased) respond();
    else waiting.push(respond);
  }).listen(0, "127.0.0.1");
  await once(server, "listening");
  t.after(() => server.closeAllConnections() ?? server.close());
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    waiting,
    release() {
      isReleased = true;
      for (const respond of waiting.splice(0)) respond();
    },
  };
}

/** Starts a server with settings `KEY=VALUE` and pipelines. */
export async function serve(t, { settings = [], pipelines = {}, port = 0 } = {}) {
  const folder = scratch(t);
  mkdirSync(`${folder}/pipelines`);
  for (const [name, definition] of Object.entries(pipelines)) writeFileSync(`${folder}/pipelines/${name}.json`, JSON.stringify({ name, ...definition }));
  const args = ["serve", "--listen", `127.0.0.1:${port}`];
  for (const setting of [`pipelines.dir=${folder}/pipelines`, ...settings]) args.push("--set", setting);
  const child = spawn(WEIR, args, { cwd: folder, stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, NO_COLOR: "1" } });
  let output = "";
  const started = new Promise((resolve, reject) => {
    const readPort = (bytes) => {
      output += bytes;
      const match = /127\.0\.0\.1:(\d+)/.exec(output);
      if (match) resolve(Number(match[1]));
    };
    child.stdout.on("data", readPort);
    child.stderr.on("data", readPort);
    child.on("exit", (code) => reject(new Error(`weir ended with ${code}:\n${output}`)));
  });
  const listening = await within(started, "the address of weir").catch((error) => {
    child.kill("SIGKILL");
    throw new Error(`${error.message}\n${output}`);
  });
  let dev;
  const server = {
    port: listening,
    url: `http://127.0.0.1:${listening}`,
    async kill() {
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.removeAllListeners("exit");
      child.kill("SIGKILL");
      await within(once(child, "exit"), "the end of weir");
    },
  };
  t.after(async () => {
    dev?.kill();
    await server.kill();
  });
  await until(async () => (await fetch(`${server.url}/readyz`).catch(() => undefined))?.ok, 120_000);
  if (process.env.WEIR_TEST_PAGE_FROM_SOURCE) {
    dev = spawn(process.execPath, [new URL("../dev.mjs", import.meta.url).pathname, server.url, "0"], { stdio: ["ignore", "pipe", "inherit"] });
    const [line] = await within(once(dev.stdout, "data"), "the address of dev.mjs");
    server.page = String(line).trim();
  }
  server.page ??= server.url;
  return server;
}

export async function post(url, body) {
  const response = await fetch(url, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
  assert.ok(response.ok, `${url}: ${response.status} ${await response.clone().text()}`);
  return response.json();
}

let browser;
export async function open(t, url, { block, ...context } = {}) {
  browser ??= await chromium.launch({ executablePath: BROWSER, args: ["--no-sandbox"] });
  const tab = await browser.newContext({ viewport: { width: 1200, height: 800 }, ...context });
  const page = await tab.newPage();
  page.setDefaultTimeout(60_000);
  const activity = { sockets: 0, requests: [], errors: [] };
  page.on("websocket", () => (activity.sockets += 1));
  page.on("request", (request) => activity.requests.push(request.url()));
  page.on("pageerror", (error) => activity.errors.push(String(error)));
  page.on("console", (message) => {
    // Errors of the network are expected where a test kills the server; the page reports them.
    if (message.type() === "error" && !/Failed to load resource|WebSocket connection|ERR_|net::/.test(message.text())) activity.errors.push(message.text());
  });
  if (block) await block(page);
  await page.goto(url);
  t.after(() => tab.close());
  t.after(() => assert.deepEqual(activity.errors, [], "errors of the page"));
  return { page, activity };
}

/**
 * The processor times of the tasks of the page's main thread while `work` runs, in milliseconds. Processor time is independent of other
 * programs of the machine. In virtual machines its clock may jump, so a task takes at most the time that passes.
 */
export async function tasksOf(page, work) {
  await browser.startTracing(page, { categories: ["disabled-by-default-devtools.timeline", "toplevel", "__metadata"] });
  await work();
  const { traceEvents } = JSON.parse(String(await browser.stopTracing()));
  const threads = traceEvents.filter(({ name, args }) => name === "thread_name" && args.name === "CrRendererMain").map(({ pid, tid }) => `${pid} ${tid}`);
  const tasks = traceEvents.filter(({ name, pid, tid, tdur }) => /RunTask$/.test(name) && tdur !== undefined && threads.includes(`${pid} ${tid}`));
  return tasks.map(({ dur, tdur }) => Math.min(dur, tdur) / 1000);
}

export async function closeBrowser() {
  if (browser !== undefined) await within(browser.close(), "the end of the browser");
  browser = undefined;
}

/** Checks accessibility in the light and the dark theme, and takes screenshots. */
export async function inspect(page, name) {
  for (const theme of ["light", "dark"]) {
    await page.getByLabel("Theme").selectOption(theme);
    await page.evaluate(axe);
    const { violations } = await page.evaluate(() => window.axe.run(document));
    assert.deepEqual(violations.map(({ id, nodes }) => `${id}: ${nodes.map(({ html, failureSummary }) => `${html} ${failureSummary}`).join("; ")}`), [], `${name}, ${theme}`);
    if (SCREENSHOTS !== undefined) await page.screenshot({ path: `${SCREENSHOTS}/${name}-${theme}.png` });
  }
}
