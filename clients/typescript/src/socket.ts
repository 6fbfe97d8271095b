import { WeirError } from "./errors.js";
import type { Connect, EventFilter, RawEvent } from "./follow.js";

/** Most queued events of one channel. Beyond it the channel is unsubscribed until they are consumed. */
const QUEUE_MAX = 1000;
/** Most channels of one socket, as the server allows. */
export const SOCKET_CHANNELS_MAX = 64;
/** The longest wait for a socket to open, in milliseconds. */
const OPEN_MS_MAX = 15_000;

/** The socket could not be opened. Server-sent events may still work. */
export class SocketUnavailableError extends WeirError {
  constructor(cause?: unknown) {
    super("the WebSocket cannot be opened", { status: 0, code: "websocket_unavailable", retryable: true, cause });
  }
}

interface Envelope extends RawEvent {
  channel?: string;
  error?: { code: string; message: string; retryable: boolean };
}

interface Subscription {
  queue: RawEvent[];
  filter: EventFilter;
  isOpen: boolean;
  /** The cursor to continue from, once the queue is empty. */
  pausedAfter: string | undefined;
  isPaused: boolean;
  lastEventId: string | undefined;
  error: unknown;
  isOver: boolean;
  onOpen(): void;
  onAlive(): void;
  wake(): void;
}

/** One WebSocket for the channels that a client follows. It is open while a channel is followed. */
export class SocketHub {
  private socket: WebSocket | undefined;
  private opening: Promise<WebSocket> | undefined;
  /** Whether a socket has been open before, so the server supports WebSockets. */
  hasOpened = false;
  private readonly subscriptions = new Map<string, Subscription>();

  /** `url` returns the address for the next socket, with a ticket if the client has a token. */
  constructor(
    private readonly url: () => Promise<string>,
    private readonly openMsMax = OPEN_MS_MAX,
  ) {}

  /** The number of followed channels. */
  get size(): number {
    return this.subscriptions.size;
  }

  /** Whether the socket has room for this channel, and does not follow it yet. */
  accepts(channel: string): boolean {
    return this.subscriptions.size < SOCKET_CHANNELS_MAX && !this.subscriptions.has(channel);
  }

  /** Connections to one channel. */
  connect(channel: string, filter: EventFilter): Connect {
    const hub = this;
    return async function* (request) {
      let wake = (): void => undefined;
      const subscription: Subscription = {
        queue: [],
        filter,
        isOpen: false,
        isPaused: false,
        pausedAfter: undefined,
        lastEventId: request.lastEventId,
        error: undefined,
        isOver: false,
        onOpen: request.onOpen,
        onAlive: request.onAlive,
        wake: () => wake(),
      };
      hub.subscriptions.set(channel, subscription);
      const abort = (): void => {
        subscription.error ??= request.signal.reason;
        subscription.isOver = true;
        wake();
      };
      request.signal.addEventListener("abort", abort);
      try {
        const aborted = new Promise<never>((_, reject) => {
          request.signal.addEventListener("abort", () => reject(request.signal.reason), { once: true });
        });
        const socket = await Promise.race([hub.open(), aborted]);
        if (request.signal.aborted) throw request.signal.reason;
        hub.subscribe(socket, channel, subscription);
        for (;;) {
          const event = subscription.queue.shift();
          if (event !== undefined) {
            yield event;
            continue;
          }
          if (subscription.isOver) {
            if (subscription.error !== undefined) throw subscription.error;
            return "ended";
          }
          if (subscription.isPaused && subscription.pausedAfter !== undefined) {
            subscription.isPaused = false;
            subscription.lastEventId = subscription.pausedAfter;
            subscription.pausedAfter = undefined;
            hub.subscribe(socket, channel, subscription);
          }
          await new Promise<void>((resolve) => (wake = resolve));
        }
      } finally {
        request.signal.removeEventListener("abort", abort);
        hub.leave(channel, subscription);
      }
    };
  }

  private open(): Promise<WebSocket> {
    if (this.socket !== undefined && this.socket.readyState === WebSocket.OPEN) return Promise.resolve(this.socket);
    this.opening ??= this.begin().finally(() => (this.opening = undefined));
    return this.opening;
  }

  private async begin(): Promise<WebSocket> {
    const socket = new WebSocket(await this.url());
    let timer: ReturnType<typeof setTimeout> | undefined;
    try {
      await new Promise<void>((resolve, reject) => {
        timer = setTimeout(() => reject(new SocketUnavailableError()), this.openMsMax);
        socket.onopen = () => resolve();
        socket.onerror = socket.onclose = () => reject(new SocketUnavailableError());
      });
    } catch (error) {
      socket.close();
      throw error;
    } finally {
      clearTimeout(timer);
    }
    this.socket = socket;
    this.hasOpened = true;
    socket.onerror = null;
    socket.onmessage = ({ data }) => this.receive(String(data));
    socket.onclose = () => this.lose(socket);
    // All subscriptions that waited for the socket may have ended.
    if (this.subscriptions.size === 0) socket.close();
    return socket;
  }

  private subscribe(socket: WebSocket, channel: string, subscription: Subscription): void {
    const { events, steps, throttleMs } = subscription.filter;
    const message: Record<string, unknown> = { type: "subscribe", channel };
    if (subscription.lastEventId !== undefined) message.last_event_id = subscription.lastEventId;
    if (events !== undefined) message.events = events;
    if (steps !== undefined) message.steps = steps;
    if (throttleMs !== undefined) message.throttle_ms = throttleMs;
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify(message));
    else this.lose(socket);
  }

  private receive(text: string): void {
    const message = JSON.parse(text) as Envelope;
    for (const subscription of this.subscriptions.values()) subscription.onAlive();
    if (message.error !== undefined && message.channel === undefined) {
      // An error without a channel answers an invalid message: the subscriptions that are not open have failed.
      const { code, message: detail, retryable } = message.error;
      for (const waiting of this.subscriptions.values()) {
        if (!waiting.isOpen) this.finish(waiting, new WeirError(detail, { status: 0, code, retryable }));
      }
      return;
    }
    const subscription = message.channel === undefined ? undefined : this.subscriptions.get(message.channel);
    if (subscription === undefined) return;
    if (message.error !== undefined) {
      const { code, message: detail, retryable } = message.error;
      this.finish(subscription, new WeirError(detail, { status: 0, code, retryable }));
      return;
    }
    const { type, id, data } = message;
    if (subscription.isPaused) {
      // Events that arrive before the server confirms are dropped; they are sent again after the pause.
      if (type === "disconnected" && data?.reason === "unsubscribed") {
        subscription.pausedAfter = subscription.lastEventId ?? "";
        subscription.wake();
      }
      return;
    }
    if (type === "connected" && !subscription.isOpen) {
      subscription.isOpen = true;
      subscription.onOpen();
    }
    if (id !== undefined) subscription.lastEventId = id;
    subscription.queue.push({ type, id, data });
    if (type === "disconnected") this.finish(subscription, undefined);
    else if (subscription.queue.length >= QUEUE_MAX && subscription.lastEventId !== undefined) {
      subscription.isPaused = true;
      this.socket?.send(JSON.stringify({ type: "unsubscribe", channel: message.channel }));
    }
    subscription.wake();
  }

  private finish(subscription: Subscription, error: unknown): void {
    subscription.error ??= error;
    subscription.isOver = true;
    subscription.wake();
  }

  private lose(socket: WebSocket): void {
    if (this.socket === socket) this.socket = undefined;
    const error = new WeirError("the WebSocket was closed", { status: 0, code: "connection_lost", retryable: true });
    for (const subscription of this.subscriptions.values()) if (!subscription.isOver) this.finish(subscription, error);
  }

  private leave(channel: string, subscription: Subscription): void {
    if (this.subscriptions.get(channel) !== subscription) return;
    this.subscriptions.delete(channel);
    const { socket } = this;
    if (socket?.readyState !== WebSocket.OPEN) return;
    if (this.subscriptions.size === 0) socket.close();
    else if (!subscription.isOver) socket.send(JSON.stringify({ type: "unsubscribe", channel }));
  }
}
