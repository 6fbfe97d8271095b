import { errorOf, WeirError } from "./errors.js";
import { decode } from "./ndjson.js";
import { createSseParser } from "./sse.js";

export type ConnectionState = "idle" | "connecting" | "open" | "reconnecting" | "closed" | "failed";

export interface StateInfo {
  /** Attempts since the last event. */
  attempt: number;
  retryInMs?: number | undefined;
  cause?: unknown;
}

/** The events of a channel that a subscription gets. Omitted events are not a gap. */
export interface EventFilter {
  /** Names of events, such as `step_complete`. */
  events?: readonly string[] | undefined;
  /** Ids of steps. */
  steps?: readonly string[] | undefined;
  /** The interval of progress events with the same key, in milliseconds; older ones are omitted. */
  throttleMs?: number | undefined;
}

export interface FollowOptions extends EventFilter {
  /** The id of the last event that the caller has. The stream begins after it. */
  lastEventId?: string | undefined;
  /**
   * Omits events of before this time, RFC 3339 by the server's clock; `now` is the time of the first connection. Events without a timestamp,
   * which are those of sessions and generations, are not omitted.
   */
  since?: "now" | (string & {}) | undefined;
  signal?: AbortSignal | undefined;
  /** Default true. */
  reconnect?: boolean | undefined;
  /** Most consecutive attempts without an event. Default 5. */
  maxReconnectAttempts?: number | undefined;
  /** Delay before the first attempt, in milliseconds. Default 3000, until the server sends another value. */
  reconnectInterval?: number | undefined;
  /** A connection that receives nothing for this time is closed, in milliseconds. Default 45,000. */
  stallMs?: number | undefined;
  onState?(state: ConnectionState, info: StateInfo): void;
}

/** An event in its wire format. */
export interface RawEvent {
  type: string;
  id?: string | undefined;
  data: any;
}

/** The parameters of one connection. */
export interface ConnectionRequest {
  lastEventId: string | undefined;
  signal: AbortSignal;
  /** Called when the connection is established. */
  onOpen(): void;
  /** Called when data is received, including heartbeats. */
  onAlive(): void;
  /** Called with the delay before the next connection, in milliseconds, that the server sent. */
  onRetry(ms: number): void;
}

/** Opens one connection to a channel. The stream ends with the connection; it returns "finished" if the channel will have no more events. */
export type Connect = (request: ConnectionRequest) => AsyncGenerator<RawEvent, "finished" | "ended", void>;

const RETRY_MS = 3000;
const RETRY_MS_MAX = 30_000;
/** The longest delay that a server can ask for. Timers end at once for more than 2^31 - 1. */
const RETRY_AFTER_MS_MAX = 3_600_000;
const STALL_MS = 45_000;
const ATTEMPTS_MAX = 5;

/**
 * The events of a channel over consecutive connections, each of which resumes after the last event of the previous one. Ends when the
 * channel is finished or `signal` aborts.
 *
 * @throws {@link WeirError} if the server refuses the request, or the last cause after the last attempt.
 */
export async function* resume(connect: Connect, options: FollowOptions = {}): AsyncGenerator<RawEvent, void, void> {
  const { signal } = options;
  const attemptsMax = options.reconnect === false ? 0 : (options.maxReconnectAttempts ?? ATTEMPTS_MAX);
  let lastEventId = options.lastEventId || undefined;
  let retryMs = options.reconnectInterval ?? RETRY_MS;
  let attempt = 0;
  let isFirst = true;
  let { since } = options;
  const say = (state: ConnectionState, info: Partial<StateInfo> = {}): void => options.onState?.(state, { attempt, ...info });

  while (!signal?.aborted) {
    say(isFirst ? "connecting" : "reconnecting");
    isFirst = false;
    const stop = new AbortController();
    const abort = (): void => stop.abort(signal?.reason);
    signal?.addEventListener("abort", abort);
    let stall: ReturnType<typeof setTimeout> | undefined;
    const stallMs = options.stallMs ?? STALL_MS;
    const onAlive = (): void => {
      clearTimeout(stall);
      stall = setTimeout(() => stop.abort(new Error(`nothing came for ${stallMs} ms`)), stallMs);
    };
    let cause: unknown;
    let serverRetryMs = 0;
    let events: ReturnType<Connect> | undefined;
    try {
      onAlive();
      events = connect({
        lastEventId,
        signal: stop.signal,
        onAlive,
        onOpen: () => say("open"),
        onRetry: (ms) => (retryMs = ms),
      });
      for (;;) {
        const { done, value } = await events.next();
        if (signal?.aborted) break;
        if (done) {
          if (value !== "finished") break;
          say("closed");
          return;
        }
        attempt = 0;
        if (value.id !== undefined) lastEventId = value.id;
        if (since === "now" && value.type === "connected") since = value.data?.timestamp;
        else if (since !== undefined && isBefore(value, since)) {
          onAlive();
          continue;
        }
        // The time that the consumer takes does not count as a stall of the connection.
        clearTimeout(stall);
        yield value;
        onAlive();
        if (value.type === "disconnected" && value.data?.reason === "finished") {
          say("closed");
          return;
        }
      }
    } catch (error) {
      if (signal?.aborted) break;
      cause = stop.signal.aborted ? stop.signal.reason : error;
      if (error instanceof WeirError) {
        if (!error.retryable) {
          say("failed", { cause: error });
          throw error;
        }
        serverRetryMs = error.retryAfterMs ?? 0;
      }
    } finally {
      clearTimeout(stall);
      signal?.removeEventListener("abort", abort);
      stop.abort();
      events?.return("ended").catch(() => undefined);
    }
    if (signal?.aborted) break;
    if (attempt >= attemptsMax) {
      cause ??= new WeirError("the connection ended", { status: 0, code: "connection_lost", retryable: true });
      say("failed", { cause });
      throw cause;
    }
    const backoff = Math.min(RETRY_MS_MAX, retryMs * 2 ** attempt) * (0.5 + Math.random() / 2);
    const waitMs = Math.max(backoff, Math.min(serverRetryMs, RETRY_AFTER_MS_MAX));
    attempt += 1;
    say("reconnecting", { retryInMs: waitMs, cause });
    await sleep(waitMs, signal);
  }
  say("closed");
}

/** Whether an event was appended before a time. A gap is not an event. */
function isBefore({ id, type, data }: RawEvent, since: string): boolean {
  return id !== undefined && type !== "gap" && Date.parse(data?.timestamp) < Date.parse(since);
}

/** Connections with server-sent events over `fetch`. `open` sends the request, `parse` reads the data of an event. */
export function sse(
  open: (headers: Record<string, string>, signal: AbortSignal) => Promise<Response>,
  parse: (data: string) => any = JSON.parse,
): Connect {
  return async function* (request) {
    const headers: Record<string, string> = { accept: "text/event-stream" };
    if (request.lastEventId !== undefined) headers["last-event-id"] = request.lastEventId;
    const response = await open(headers, request.signal);
    if (response.status === 204) return "finished";
    if (!response.ok || response.body === null) throw await errorOf(response);
    request.onOpen();
    const events: RawEvent[] = [];
    const parser = createSseParser({
      onRetry: request.onRetry,
      onMessage: ({ id, event, data }) => events.push({ type: event ?? "message", id, data: parse(data) }),
    });
    for await (const text of decode(response.body)) {
      request.onAlive();
      parser.feed(text);
      while (events.length > 0) yield events.shift()!;
    }
    return "ended";
  };
}

function sleep(ms: number, signal: AbortSignal | undefined): Promise<void> {
  return new Promise((resolve) => {
    const done = (): void => {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    };
    const timer = setTimeout(done, ms);
    signal?.addEventListener("abort", done);
    if (signal?.aborted) done();
  });
}
