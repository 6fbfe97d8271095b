import type { ClientOptions } from "./client.js";
import { errorOf, WeirError } from "./errors.js";
import { parseNdjson } from "./ndjson.js";

export interface CallOptions {
  signal?: AbortSignal | undefined;
  headers?: HeadersInit | undefined;
}

/** The parameters of a request. */
export interface Send extends CallOptions {
  method?: string;
  body?: BodyInit | ReadableStream<Uint8Array> | undefined;
  json?: unknown;
  accept?: string;
  /** The response is a stream, so `timeoutMs` does not apply. */
  isStream?: boolean;
  /** A status of 400 or above that does not reject. */
  allowStatus?: number;
  /** Sends this request instead of the `fetch` of the client. */
  fetch?: typeof fetch | undefined;
}

/** Sends a request. Rejects with a {@link WeirError} for a status of 400 or above. */
export type Sender = (path: string, send?: Send) => Promise<Response>;

/** Creates a {@link Sender} with the token and headers of a client. */
export function sender(base: string, options: ClientOptions): Sender {
  const attempt = async (path: string, how: Send): Promise<Response> => {
    const headers = new Headers(options.headers);
    new Headers(how.headers).forEach((value, name) => headers.set(name, value));
    if (!headers.has("accept")) headers.set("accept", how.accept ?? "application/json");
    const init: RequestInit & { duplex?: "half" } = { method: how.method ?? "GET", headers, cache: "no-store" };
    if (how.json !== undefined || how.body !== undefined) {
      init.method = how.method ?? "POST";
      if (how.json !== undefined) headers.set("content-type", "application/json");
      init.body = how.json !== undefined ? JSON.stringify(how.json) : (how.body as BodyInit);
      if (how.body instanceof ReadableStream) init.duplex = "half";
    }
    const token = typeof options.token === "function" ? await options.token() : options.token;
    if (token) headers.set("authorization", `Bearer ${token}`);
    const signals = [how.signal, options.timeoutMs !== undefined && !how.isStream ? AbortSignal.timeout(options.timeoutMs) : undefined];
    const signal = anySignal(signals.filter((signal) => signal != null));
    if (signal !== undefined) init.signal = signal;
    return (how.fetch ?? options.fetch ?? globalThis.fetch)(base + path, init);
  };
  return async (path, how = {}) => {
    let response = await attempt(path, how);
    if (response.status === 401 && typeof options.token === "function" && !(how.body instanceof ReadableStream)) {
      await response.body?.cancel();
      response = await attempt(path, how);
    }
    if (!response.ok && response.status !== how.allowStatus) throw await errorOf(response);
    return response;
  };
}

/** Parameters as a query string; an array has a pair for each of its values. */
export function queryOf(parameters: object): string {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(parameters)) {
    for (const one of Array.isArray(value) ? value : [value]) if (one != null) query.append(name, String(one));
  }
  const text = query.toString();
  return text === "" ? "" : `?${text}`;
}

function anySignal(signals: AbortSignal[]): AbortSignal | undefined {
  return signals.length < 2 ? signals[0] : AbortSignal.any(signals);
}

/** Sends lines of JSON and yields lines of JSON; in full duplex if the runtime can stream request bodies, such as Node. */
export async function* lines<T>(
  send: Sender,
  path: string,
  values: Iterable<unknown> | AsyncIterable<unknown>,
  how: CallOptions = {},
): AsyncGenerator<T, void, void> {
  const headers = new Headers(how.headers);
  headers.set("content-type", "application/x-ndjson");
  const body = streamsBodies() ? lineStream(values) : await wholeLines(values);
  const response = await send(path, { ...how, headers, body, method: "POST", accept: "application/x-ndjson", isStream: true });
  yield* parseNdjson<T>(bodyOf(response));
}

/** Browsers stream request bodies only over HTTP/2, which they do not use without TLS; Node and Deno stream over HTTP/1.1. */
function streamsBodies(): boolean {
  return typeof document === "undefined" && typeof ReadableStream === "function";
}

function lineStream(values: Iterable<unknown> | AsyncIterable<unknown>): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder();
  const source = Symbol.asyncIterator in values ? values[Symbol.asyncIterator]() : values[Symbol.iterator]();
  return new ReadableStream({
    async pull(controller) {
      const { done, value } = await source.next();
      if (done) controller.close();
      else controller.enqueue(encoder.encode(`${JSON.stringify(value)}\n`));
    },
    async cancel() {
      await source.return?.();
    },
  });
}

async function wholeLines(values: Iterable<unknown> | AsyncIterable<unknown>): Promise<string> {
  let text = "";
  for await (const value of values) text += `${JSON.stringify(value)}\n`;
  return text;
}

export function bodyOf(response: Response): ReadableStream<Uint8Array> {
  if (response.body === null) throw new WeirError("the answer has no body", { status: response.status, code: "no_body" });
  return response.body;
}

