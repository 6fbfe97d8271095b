// Servers, proxies and helpers for the tests.
import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:http";
import net from "node:net";
import { testWithin, within } from "./deadlines.mjs";

/** `test` with a limit for each test. */
export const test = testWithin(120_000);
export { within };

/** Serves HTTP on a free port until `close`. */
export async function serve(handle) {
  const sockets = new Set();
  const server = createServer(handle);
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    cut: () => sockets.forEach((socket) => socket.destroy()),
    async close() {
      sockets.forEach((socket) => socket.destroy());
      server.close();
      await once(server, "close");
    },
  };
}

/** A progress event as a server-sent event. */
export function progress(seq, extra = {}) {
  const data = { workflow_id: "42", step: `step ${seq}`, progress: seq, timestamp: "2025-10-22T10:30:00.000Z", ...extra };
  return `id: 7-${seq}\nevent: workflow_progress\ndata: ${JSON.stringify(data)}\n\n`;
}

export const CONNECTED = `event: connected\ndata: {"workflow_id":"42","channel":"workflow:42","timestamp":"2025-10-22T10:30:00.000Z"}\n\n`;
export const FINISHED = `event: disconnected\ndata: {"workflow_id":"42","reason":"finished","message":"m","resumable":false,"timestamp":"2025-10-22T10:30:00.000Z"}\n\n`;

/** Collects an async iterable. */
export async function collect(events) {
  const all = [];
  for await (const event of events) all.push(event);
  return all;
}

/** Waits until a condition returns a true value, and returns it. Fails after `limitMs`. */
export async function until(condition, limitMs = 60_000) {
  const end = Date.now() + limitMs;
  for (;;) {
    const value = await condition();
    if (value) return value;
    if (Date.now() > end) throw new Error(`the condition did not hold within ${limitMs} ms: ${condition}`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/** Forwards TCP to a port. A connection is closed after `cutAfter` bytes from the server. */
export async function cuttingProxy(port, cutAfter) {
  const state = { connections: 0, cutAfter };
  const open = new Set();
  const server = net.createServer((client) => {
    state.connections += 1;
    const upstream = net.connect(port, "127.0.0.1");
    open.add(client).add(upstream);
    let remaining = state.cutAfter;
    client.pipe(upstream);
    upstream.on("data", (bytes) => {
      remaining -= bytes.length;
      if (remaining > 0) client.write(bytes);
      else {
        client.end(bytes.subarray(0, bytes.length + remaining));
        upstream.destroy();
      }
    });
    for (const [one, other] of [[client, upstream], [upstream, client]]) {
      one.on("error", () => other.destroy());
      one.on("close", () => {
        open.delete(one);
        if (one === upstream) client.end();
        else upstream.destroy();
      });
    }
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return Object.assign(state, {
    url: `http://127.0.0.1:${server.address().port}`,
    async close() {
      open.forEach((socket) => socket.destroy());
      server.close();
      await once(server, "close");
    },
  });
}

/** The program under test. Tests that need it are skipped if it is not set. */
export const WEIR = process.env.WEIR_TEST_PROGRAM;

/** Starts `weir serve` with settings `KEY=VALUE` and further arguments, and waits until `/readyz` is 200. */
export async function weir(settings = [], port = 0, more = []) {
  const args = ["serve", "--listen", `127.0.0.1:${port}`, ...more];
  for (const setting of settings) args.push("--set", setting);
  const child = spawn(WEIR, args, { stdio: ["ignore", "pipe", "pipe"], env: { ...process.env, NO_COLOR: "1" } });
  let output = "";
  const started = new Promise((resolve, reject) => {
    const readUrl = (bytes) => {
      output += bytes;
      const match = /http:\/\/127\.0\.0\.1:\d+/.exec(output) ?? /listening\S*.*?(127\.0\.0\.1:\d+)/.exec(output);
      if (match) resolve(match[0].startsWith("http") ? match[0] : `http://${match[1]}`);
    };
    child.stdout.on("data", readUrl);
    child.stderr.on("data", readUrl);
    child.on("exit", (code) => reject(new Error(`weir ended with ${code}:\n${output}`)));
  });
  const url = await within(started, "the address of weir").catch((error) => {
    child.kill("SIGKILL");
    throw new Error(`${error.message}\n${output}`);
  });
  await until(async () => (await fetch(`${url}/readyz`).catch(() => undefined))?.ok, 120_000);
  return {
    url,
    port: Number(new URL(url).port),
    async kill() {
      child.removeAllListeners("exit");
      if (child.exitCode !== null || child.signalCode !== null) return;
      child.kill("SIGKILL");
      await within(once(child, "exit"), "the end of weir");
    },
  };
}
