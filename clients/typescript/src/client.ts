import { WeirError } from "./errors.js";
import type { ChannelEvent, ChannelKind, GapEvent, GenerationEvent, PipelineEvent, SubscriptionEvent, TranscriptEvent } from "./events.js";
import { type Connect, type EventFilter, type FollowOptions, resume, sse } from "./follow.js";
import { cancelGeneration, chatStream, generate, generateEvents, type GenerateOptions } from "./generation.js";
import { parseNdjson } from "./ndjson.js";
import { bodyOf, type CallOptions, lines, queryOf, type Send, sender } from "./send.js";
import { openSession, type Session } from "./session.js";
import { SocketHub, SocketUnavailableError } from "./socket.js";
import type * as t from "./types.js";
import { upload, type UploadOptions } from "./upload.js";

/** Most channels over server-sent events with `transport: "auto"`, because browsers open at most six connections to a host. */
const SSE_CHANNELS_MAX = 2;

export interface ClientOptions {
  /** Sent as `Authorization: Bearer`. A function is called for every request, and once more after a 401. */
  token?: string | (() => string | Promise<string>) | undefined;
  fetch?: typeof fetch | undefined;
  /**
   * `auto`, the default: server-sent events for two channels, and one WebSocket for further ones. `ws`: one WebSocket for all channels. Both
   * use server-sent events if no WebSocket can be opened.
   */
  transport?: "auto" | "sse" | "ws" | undefined;
  headers?: HeadersInit | undefined;
  /** The timeout of requests whose response is not a stream. */
  timeoutMs?: number | undefined;
}

export interface ModelOption {
  /** The name of the model. Default: the model of the task in the server's configuration. */
  model?: string | undefined;
}

export interface WeirClient {
  readonly baseUrl: string;
  /** The label scores of each text, best first. Rejects if one of the texts fails. */
  classify(inputs: string | string[], parameters?: t.ClassifyParameters & CallOptions & ModelOption): Promise<t.LabelScore[][]>;
  tokens(inputs: string | string[], parameters?: t.TokensParameters & CallOptions & ModelOption): Promise<t.TokenEntity[][]>;
  embed(inputs: string | string[], parameters?: t.EmbedParameters & CallOptions & ModelOption): Promise<number[][]>;
  /** A line for each text, in the order of completion. */
  classifyStream(texts: Texts, parameters?: t.ClassifyParameters & CallOptions & ModelOption): AsyncIterable<t.ItemLine>;
  tokensStream(texts: Texts, parameters?: t.TokensParameters & CallOptions & ModelOption): AsyncIterable<t.ItemLine>;
  embedStream(texts: Texts, parameters?: t.EmbedParameters & CallOptions & ModelOption): AsyncIterable<t.ItemLine>;
  annotate(inputs: string | string[], options?: CallOptions): Promise<t.AnnotateAnswer>;
  process(request: t.ProcessRequest, options?: CallOptions): AsyncIterable<t.ProcessEvent>;
  processBatch(request: t.ProcessRequest, options?: CallOptions): Promise<t.BatchAnswer>;
  /** The generated text of the first choice, in parts. After a broken connection it resumes. Rejects if the generation fails. */
  generate(request: t.GenerateRequest, options?: GenerateOptions): AsyncIterable<string>;
  /** The events of generated text: `started`, `token`, `tool_call`, `done` and `error`. */
  generateEvents(request: t.GenerateRequest, options?: GenerateOptions): AsyncIterable<GenerationEvent | GapEvent>;
  /** A chat completion in the form of OpenAI's API. */
  chat(request: t.ChatRequest, options?: CallOptions): Promise<t.ChatCompletion>;
  /** The chunks of a chat completion. After a broken connection it resumes. Rejects if the generation fails. */
  chatStream(request: t.ChatRequest, options?: GenerateOptions): AsyncIterable<t.ChatChunk>;
  generations: {
    /** The response of a generation when it has ended, in the form of the route of its request. */
    get<T = unknown>(id: string, options?: CallOptions): Promise<T>;
    cancel(id: string, options?: CallOptions): Promise<void>;
    follow(id: string, options?: FollowOptions): AsyncIterable<GenerationEvent | SubscriptionEvent>;
  };
  /** A transcript in one request. */
  transcript(lines: Iterable<t.TranscriptLine> | AsyncIterable<t.TranscriptLine>, options?: CallOptions): AsyncIterable<TranscriptEvent>;
  upload(file: Blob | string, options?: UploadOptions): Promise<t.Uploaded>;
  /** The events of a channel. After a broken connection it resumes with the next event, or yields a `gap`. */
  follow<K extends ChannelKind>(kind: K, id: string, options?: FollowOptions): AsyncIterable<ChannelEvent<K>>;
  publish<K extends keyof t.PublishBodies>(kind: K, id: string, event: t.PublishBodies[K], options?: CallOptions): Promise<t.Published>;
  pipelines: {
    list(options?: CallOptions): Promise<t.PipelineListed[]>;
    get(name: string, options?: CallOptions): Promise<t.PipelineDefinition>;
    /** With `waitS`, the server waits for the result for at most this time, in seconds. */
    start(name: string, input: unknown, options?: CallOptions & { idempotencyKey?: string; waitS?: number }): Promise<t.Execution>;
  };
  executions: {
    list(options?: CallOptions & { state?: string; pipeline?: string; limit?: number; after?: string }): Promise<t.ExecutionListed[]>;
    get(id: string, options?: CallOptions): Promise<t.Execution>;
    cancel(id: string, options?: CallOptions): Promise<void>;
    follow(id: string, options?: FollowOptions): AsyncIterable<PipelineEvent | SubscriptionEvent>;
  };
  sessions: { create(config?: t.SessionConfig, options?: CallOptions): Promise<Session>; open(id: string): Session };
  index(options?: CallOptions): Promise<t.Index>;
  models(options?: CallOptions): Promise<t.Model[]>;
  /** The readiness of the server; does not reject for a 503. */
  ready(options?: CallOptions): Promise<t.Readiness>;
  health(options?: CallOptions): Promise<t.StreamHealth>;
  reliability(options?: CallOptions): Promise<t.Reliability>;
  stats(options?: CallOptions): Promise<t.Stats>;
  /** A snapshot every second. */
  watchStats(options?: FollowOptions): AsyncIterable<t.Stats>;
  ticket(path: string, options?: CallOptions): Promise<t.Ticket>;
  /** Sends any request, with the token and headers of this client. @throws {@link WeirError} for a status of 400 or above. */
  request(path: string, send?: Send): Promise<Response>;
}

/** The texts of a stream of items. */
export type Texts = Iterable<string | t.InputObject> | AsyncIterable<string | t.InputObject>;

/** Creates a client of the server at `baseUrl`. Default in a browser: the origin of the page. */
export function createClient(baseUrl = "", options: ClientOptions = {}): WeirClient {
  const base = baseUrl.replace(/\/+$/, "");
  const send = sender(base, options);
  const json = async <T>(path: string, how: Send = {}): Promise<T> => (await (await send(path, how)).json()) as T;
  const hub = new SocketHub(async () => {
    const address = new URL(`${base}/ws`, base === "" ? globalThis.location?.href : undefined);
    address.protocol = address.protocol === "https:" ? "wss:" : "ws:";
    if (options.token !== undefined) {
      const { ticket } = await json<t.Ticket>("/tickets", { json: { path: address.pathname } });
      address.searchParams.set("ticket", ticket);
    }
    return address.href;
  });
  let sseChannels = 0;
  let socketFailed = false;

  const task = async <T>(path: string, inputs: string | string[], parameters: (CallOptions & ModelOption) | undefined): Promise<T[]> => {
    const { signal, headers, model, ...rest } = parameters ?? {};
    const body: Record<string, unknown> = { inputs, parameters: rest };
    if (model !== undefined) body.model = model;
    const { outputs } = await json<{ outputs: (T | { error: { code: string; message: string } })[] }>(path, { json: body, signal, headers });
    return outputs.map((output) => {
      if (output !== null && typeof output === "object" && "error" in output) {
        throw new WeirError(output.error.message, { status: 200, code: output.error.code });
      }
      return output as T;
    });
  };

  async function* taskStream(path: string, texts: Texts, parameters: (CallOptions & ModelOption) | undefined): AsyncGenerator<t.ItemLine, void, void> {
    const { signal, headers, ...rest } = parameters ?? {};
    const query = queryOf(rest);
    for await (const line of lines<t.ItemLine | t.Done>(send, `${path}${query}`, texts, { signal, headers })) {
      if ("done" in line) return;
      yield line;
    }
  }

  async function* follow<K extends ChannelKind>(kind: K, id: string, how: FollowOptions = {}): AsyncGenerator<ChannelEvent<K>, void, void> {
    const channel = `${kind}:${id}`;
    const bySse = sse((headers, signal) =>
      send(`/stream/${kind}/${encodeURIComponent(id)}${filterQuery(how)}`, { headers, signal, accept: "text/event-stream", isStream: true }),
    );
    const connect: Connect = async function* (request) {
      const wantsSocket = options.transport === "ws" || (options.transport !== "sse" && sseChannels >= SSE_CHANNELS_MAX);
      if (wantsSocket && typeof WebSocket === "function" && !socketFailed && hub.accepts(channel)) {
        try {
          return yield* hub.connect(channel, how)(request);
        } catch (error) {
          // If a socket was open before, the server supports WebSockets and is only unreachable.
          if (!(error instanceof SocketUnavailableError) || hub.hasOpened || request.signal.aborted) throw error;
          socketFailed = true;
        }
      }
      sseChannels += 1;
      try {
        return yield* bySse(request);
      } finally {
        sseChannels -= 1;
      }
    };
    yield* resume(connect, how) as AsyncGenerator<ChannelEvent<K>, void, void>;
  }

  return {
    baseUrl: base,
    request: send,
    classify: (inputs, parameters) => task("/v1/classify", inputs, parameters),
    tokens: (inputs, parameters) => task("/v1/tokens", inputs, parameters),
    embed: (inputs, parameters) => task("/v1/embed", inputs, parameters),
    classifyStream: (texts, parameters) => taskStream("/v1/classify", texts, parameters),
    tokensStream: (texts, parameters) => taskStream("/v1/tokens", texts, parameters),
    embedStream: (texts, parameters) => taskStream("/v1/embed", texts, parameters),
    annotate: (inputs, how) => json("/v1/annotate", { json: { inputs: typeof inputs === "string" ? [inputs] : inputs }, ...how }),
    async *process(request, how) {
      const response = await send("/process-stream", { json: request, accept: "application/x-ndjson", isStream: true, ...how });
      yield* parseNdjson<t.ProcessEvent>(bodyOf(response));
    },
    processBatch: (request, how) => json("/process-batch", { json: request, ...how }),
    generate: (request, how) => generate(send, request, how),
    generateEvents: (request, how) => generateEvents(send, request, how),
    chat: (request, how) => json("/v1/chat/completions", { json: { ...request, stream: false }, ...how }),
    chatStream: (request, how) => chatStream(send, request, how),
    generations: {
      get: (id, how) => json(`/v1/generations/${encodeURIComponent(id)}`, how),
      cancel: (id, how) => cancelGeneration(send, id, how),
      follow: (id, how) => follow("generation", id, how),
    },
    transcript: (chunks, how) => lines<TranscriptEvent>(send, "/v1/transcript", chunks, how),
    upload: (file, how) => upload(send, options.fetch === undefined, file, how),
    follow,
    publish: (kind, id, event, how) => json(`/stream/publish/${kind}/${encodeURIComponent(id)}`, { json: event, ...how }),
    pipelines: {
      list: async (how) => (await json<{ pipelines: t.PipelineListed[] }>("/pipelines", how)).pipelines,
      get: (name, how) => json(`/pipelines/${encodeURIComponent(name)}`, how),
      start: (name, input, { idempotencyKey, waitS, ...how } = {}) => {
        const headers = new Headers(how.headers);
        if (idempotencyKey !== undefined) headers.set("idempotency-key", idempotencyKey);
        if (waitS !== undefined) headers.set("prefer", `wait=${waitS}`);
        return json(`/pipelines/${encodeURIComponent(name)}`, { json: input, ...how, headers });
      },
    },
    executions: {
      list: async ({ signal, headers, ...filter } = {}) =>
        (await json<{ executions: t.ExecutionListed[] }>(`/executions${queryOf(filter)}`, { signal, headers })).executions,
      get: (id, how) => json(`/executions/${encodeURIComponent(id)}`, how),
      cancel: async (id, how) => {
        await send(`/executions/${encodeURIComponent(id)}`, { method: "DELETE", ...how });
      },
      follow: (id, how) => follow("pipeline", id, how),
    },
    sessions: {
      create: async (config = {}, how) => {
        const { session_id } = await json<{ session_id: string }>("/sessions", { json: config, ...how });
        return openSession(session_id, send, follow);
      },
      open: (id) => openSession(id, send, follow),
    },
    index: (how) => json("/", how),
    models: async (how) => (await json<{ models: t.Model[] }>("/v1/models", how)).models,
    ready: async (how) => {
      const response = await send("/readyz", { ...how, allowStatus: 503 });
      const { status, models = [], exhausted = [] } = (await response.json()) as Partial<t.Readiness>;
      return { status: response.ok ? status : "unavailable", models, exhausted } as t.Readiness;
    },
    health: (how) => json("/stream/health", how),
    reliability: (how) => json("/reliability", how),
    stats: (how) => json("/v1/stats", how),
    async *watchStats(how) {
      const connect = sse((headers, signal) => send("/v1/stats", { headers, signal, accept: "text/event-stream", isStream: true }));
      for await (const event of resume(connect, how)) if (event.type === "stats") yield event.data as t.Stats;
    },
    ticket: (path, how) => json("/tickets", { json: { path }, ...how }),
  };
}

function filterQuery({ events, steps, throttleMs }: EventFilter): string {
  return queryOf({ events: events?.join(","), steps: steps?.join(","), throttle_ms: throttleMs });
}
