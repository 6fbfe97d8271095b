/// <reference lib="esnext.disposable" preserve="true" />
import type { ChannelEvent, ChannelKind, SessionEvent, SubscriptionEvent, TranscriptEvent } from "./events.js";
import type { FollowOptions } from "./follow.js";
import { parseNdjson } from "./ndjson.js";
import { bodyOf, type CallOptions, lines, type Sender } from "./send.js";
import type { Chunk, ContextWire, StateWire } from "./types.js";

/** A stored transcript session. Disposing of it ends the session. */
export interface Session extends AsyncDisposable {
  readonly id: string;
  /** Sends a chunk. Returns the events of the response. */
  push(chunk: Chunk, options?: CallOptions): Promise<TranscriptEvent[]>;
  /** Sends chunks in one request. Yields events as they arrive. */
  feed(chunks: Iterable<Chunk> | AsyncIterable<Chunk>, options?: CallOptions): AsyncIterable<TranscriptEvent>;
  end(options?: CallOptions): Promise<TranscriptEvent[]>;
  delete(options?: CallOptions): Promise<void>;
  /** The context for a language model. */
  context(options?: CallOptions): Promise<string>;
  contextWindow(options?: CallOptions): Promise<ContextWire>;
  state(options?: CallOptions): Promise<StateWire>;
  /** The events of its channel. */
  events(options?: FollowOptions): AsyncIterable<SessionEvent | SubscriptionEvent>;
}

type Follow = <K extends ChannelKind>(kind: K, id: string, options?: FollowOptions) => AsyncIterable<ChannelEvent<K>>;

export function openSession(id: string, send: Sender, follow: Follow): Session {
  const path = `/sessions/${encodeURIComponent(id)}`;
  const collect = async (events: AsyncIterable<TranscriptEvent>): Promise<TranscriptEvent[]> => {
    const all: TranscriptEvent[] = [];
    for await (const event of events) all.push(event);
    return all;
  };
  const feed = (chunks: Iterable<Chunk> | AsyncIterable<Chunk>, how?: CallOptions) => lines<TranscriptEvent>(send, `${path}/chunks`, chunks, how);
  const end = async (how?: CallOptions) => {
    const response = await send(`${path}/end`, { method: "POST", accept: "application/x-ndjson", isStream: true, ...how });
    return collect(parseNdjson<TranscriptEvent>(bodyOf(response)));
  };
  return {
    id,
    push: (chunk, how) => collect(feed([chunk], how)),
    feed,
    end,
    delete: async (how) => {
      await send(path, { method: "DELETE", ...how });
    },
    context: async (how) => (await send(`${path}/context`, { accept: "text/plain", ...how })).text(),
    contextWindow: async (how) => (await (await send(`${path}/context`, how)).json()) as ContextWire,
    state: async (how) => (await (await send(path, how)).json()) as StateWire,
    events: (how) => follow("session", id, how),
    async [Symbol.asyncDispose]() {
      await end();
    },
  };
}
