// Sockets that do not open.
import assert from "node:assert/strict";
import { once } from "node:events";
import net from "node:net";
import { SocketHub, SocketUnavailableError } from "../dist/socket.js";
import { test, within } from "./support.mjs";

const skip = typeof WebSocket === "undefined" ? "this Node has no WebSocket" : false;

/** Calls `use` with the URL of a server that reads a handshake and does not answer. */
async function withSilentServer(use) {
  const sockets = new Set();
  const server = net.createServer((socket) => {
    sockets.add(socket);
    socket.resume().on("error", () => undefined);
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  try {
    await use(`ws://127.0.0.1:${server.address().port}/ws`);
  } finally {
    sockets.forEach((socket) => socket.destroy());
    server.close();
  }
}

/** The first event of a channel. */
function firstEvent(hub, signal) {
  const ignore = () => undefined;
  return hub.connect("workflow:42", {})({ lastEventId: undefined, signal, onOpen: ignore, onAlive: ignore, onRetry: ignore }).next();
}

test("handshake without an answer ends after its time", { skip }, async () => {
  await withSilentServer(async (url) => {
    const hub = new SocketHub(async () => url, 50);
    await assert.rejects(within(firstEvent(hub, new AbortController().signal), "the end"), SocketUnavailableError);
    assert.equal(hub.size, 0);
  });
});

test("abort ends the wait for a handshake", { skip }, async () => {
  await withSilentServer(async (url) => {
    const controller = new AbortController();
    const hub = new SocketHub(async () => url, 3_600_000);
    const event = firstEvent(hub, controller.signal);
    controller.abort(new Error("enough"));
    await assert.rejects(within(event, "the end"), /enough/);
    assert.equal(hub.size, 0);
  });
});
