import { WeirError } from "./errors.js";
import type { GapEvent, GenerationEvent } from "./events.js";
import { type Connect, type RawEvent, resume, sse, type StateInfo, type ConnectionState } from "./follow.js";
import type { CallOptions, Sender } from "./send.js";
import type { ChatChunk, ChatRequest, GenerateRequest } from "./types.js";

export interface GenerateOptions extends CallOptions {
  /**
   * Resume after a broken connection. The generation then continues without a connection; it is cancelled when the iteration ends before the
   * last event, or `signal` aborts. If false, the server cancels it when the connection ends. Default true.
   */
  reconnect?: boolean | undefined;
  /** Most consecutive attempts without an event. Default 5. */
  maxReconnectAttempts?: number | undefined;
  /** Delay before the first attempt, in milliseconds. Default 3000, until the server sends another value. */
  reconnectInterval?: number | undefined;
  /** Called with the id of the generation, which is also that of its channel. */
  onGenerationId?(id: string): void;
  onState?(state: ConnectionState, info: StateInfo): void;
}

/** A request whose response is a stream of events, and the requests that resume the stream. */
interface Streaming {
  path: string;
  json: unknown;
  /** The path of the stream of a generation that has begun. */
  resumePath(id: string): string;
  parse(data: string): unknown;
  isLast(event: RawEvent): boolean;
}

/** The events of generated text. After a broken connection it resumes with the next event, or yields a `gap`. */
export async function* generateEvents(send: Sender, request: GenerateRequest, options: GenerateOptions = {}): AsyncGenerator<GenerationEvent | GapEvent, void, void> {
  const streaming: Streaming = {
    path: "/generate-stream",
    json: { ...request, stream: true },
    resumePath: (id) => `/stream/generation/${id}`,
    parse: JSON.parse,
    // The last choice has the usage of the request.
    isLast: ({ type, data }) => (type === "done" && data.usage != null) || (type === "error" && data.type === "error"),
  };
  for await (const event of stream(send, streaming, options)) {
    // Those of the subscription, after the stream was resumed.
    if (event.type !== "connected" && event.type !== "disconnected") yield event as GenerationEvent | GapEvent;
  }
}

/** The generated text of the first choice, in parts. */
export async function* generate(send: Sender, request: GenerateRequest, options?: GenerateOptions): AsyncGenerator<string, void, void> {
  for await (const { type, data } of successful(generateEvents(send, request, options))) {
    if (type === "token" && data.index === 0) yield data.text;
  }
}

/** The events of a generation; its failure, and a gap, are thrown. */
export async function* successful(events: AsyncIterable<GenerationEvent | GapEvent>): AsyncGenerator<GenerationEvent, void, void> {
  for await (const event of events) {
    if (event.type === "error") throw new WeirError(event.data.message, event.data);
    if (event.type === "gap") throw new WeirError("a part of the text is no longer stored", { status: 0, code: "gap" });
    yield event;
  }
}

const DONE = "[DONE]";

/** The chunks of a chat completion. After a broken connection it resumes with the next chunk. */
export async function* chatStream(send: Sender, request: ChatRequest, options: GenerateOptions = {}): AsyncGenerator<ChatChunk, void, void> {
  const streaming: Streaming = {
    path: "/v1/chat/completions",
    json: { ...request, stream: true },
    resumePath: (id) => `/v1/generations/${id}?stream=true`,
    parse: (data) => (data === DONE ? DONE : JSON.parse(data)),
    isLast: ({ data }) => data === DONE || data.error !== undefined,
  };
  for await (const { data } of stream(send, streaming, options)) {
    if (data === DONE) return;
    if (data.error !== undefined) throw new WeirError(data.error.message, { status: 200, code: data.error.code ?? data.error.type });
    yield data as ChatChunk;
  }
}

async function* stream(send: Sender, streaming: Streaming, options: GenerateOptions): AsyncGenerator<RawEvent, void, void> {
  const { signal, reconnect = true } = options;
  let id: string | undefined;
  let isOver = false;
  let hasFailed = false;
  const found = (name: string | null | undefined): void => {
    if (name == null || id !== undefined) return;
    id = name;
    options.onGenerationId?.(name);
  };
  const begin = async (headers: Headers, stop: AbortSignal): Promise<Response> => {
    const path = streaming.path + (reconnect ? "?detach=true" : "");
    try {
      return await send(path, { json: streaming.json, headers, signal: stop, isStream: true });
    } catch (cause) {
      if (cause instanceof WeirError) throw cause;
      // Without a response it is unknown whether the generation has begun, so the request is not repeated.
      throw new WeirError("the request has no response", { status: 0, code: "connection_failed", cause });
    }
  };
  const open = sse(async (own, stop) => {
    const headers = new Headers(options.headers);
    for (const [name, value] of Object.entries(own)) headers.set(name, value);
    const response = id === undefined ? await begin(headers, stop) : await send(streaming.resumePath(id), { headers, signal: stop, isStream: true });
    found(response.headers.get("x-weir-generation"));
    return response;
  }, streaming.parse);
  const connect: Connect = async function* (request) {
    const events = open(request);
    try {
      for (;;) {
        const { done, value } = await events.next();
        if (done) {
          isOver ||= value === "finished";
          return value;
        }
        // Pages of other origins cannot read the header.
        if (value.type === "started") found(value.data.generation_id);
        isOver = streaming.isLast(value);
        yield value;
        if (isOver) return "finished";
        if (id === undefined) throw new WeirError("the response has no id of its generation", { status: 200, code: "no_generation_id" });
      }
    } finally {
      await events.return("ended");
    }
  };
  const { maxReconnectAttempts, reconnectInterval, onState } = options;
  const follow = { signal, reconnect, maxReconnectAttempts, reconnectInterval, ...(onState && { onState: onState.bind(options) }) };
  try {
    yield* resume(connect, follow);
    if (!isOver) signal?.throwIfAborted();
  } catch (error) {
    hasFailed = !signal?.aborted;
    throw error;
  } finally {
    // After a failure the generation can still be followed by its id.
    if (reconnect && id !== undefined && !isOver && !hasFailed) await cancelGeneration(send, id).catch(() => undefined);
  }
}

export async function cancelGeneration(send: Sender, id: string, options?: CallOptions): Promise<void> {
  await send(`/v1/generations/${encodeURIComponent(id)}`, { method: "DELETE", ...options });
}
