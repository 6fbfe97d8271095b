import { useCallback, useEffect, useRef, useState } from "react";
import type { WeirClient } from "../client.js";
import type { GenerationEvent, GenerationUsage } from "../events.js";
import { type GenerateOptions, successful } from "../generation.js";
import type { CallOptions } from "../send.js";
import type { GenerateRequest, ProcessEvent, ProcessRequest } from "../types.js";
import { useClient } from "./context.js";

/** `ready`: no request is running. `submitted`: the request has no response yet. */
export type StreamStatus = "ready" | "submitted" | "streaming" | "error";

export interface StreamOptions {
  token?: string | undefined;
  onError?(error: Error): void;
  onFinish?(): void;
}

interface StreamState<T> {
  status: StreamStatus;
  error: Error | null;
  value: T;
  firstMs: number | undefined;
  elapsedMs: number | undefined;
}

/** Runs one stream at a time. A new stream or unmounting stops the previous one. */
function useStream<R, E, T>(
  client: WeirClient,
  initial: T,
  begin: (client: WeirClient, request: R, signal: AbortSignal) => AsyncIterable<E>,
  add: (value: T, event: E) => T,
  options: StreamOptions,
): [StreamState<T>, (request: R) => void, () => void] {
  const start: StreamState<T> = { status: "ready", error: null, value: initial, firstMs: undefined, elapsedMs: undefined };
  const [state, setState] = useState(start);
  const running = useRef<AbortController | undefined>(undefined);
  const latest = useRef({ options, begin, add, start });
  useEffect(() => {
    latest.current = { options, begin, add, start };
  });
  const stop = useCallback(() => {
    if (running.current === undefined) return;
    running.current.abort();
    running.current = undefined;
    setState((old) => ({ ...old, status: "ready" }));
  }, []);
  const run = useCallback(
    (request: R) => {
      running.current?.abort();
      const stopper = (running.current = new AbortController());
      const began = performance.now();
      const { begin, add, start } = latest.current;
      const put = (change: (old: StreamState<T>) => StreamState<T>): void => {
        if (running.current === stopper) setState(change);
      };
      setState({ ...start, status: "submitted" });
      void (async () => {
        try {
          for await (const event of begin(client, request, stopper.signal)) {
            const ms = performance.now() - began;
            put((old) => ({ ...old, status: "streaming", value: add(old.value, event), firstMs: old.firstMs ?? ms, elapsedMs: ms }));
          }
          put((old) => ({ ...old, status: "ready", elapsedMs: performance.now() - began }));
          if (running.current === stopper) latest.current.options.onFinish?.();
        } catch (cause) {
          if (stopper.signal.aborted) return;
          const error = cause instanceof Error ? cause : new Error(String(cause));
          put((old) => ({ ...old, status: "error", error }));
          latest.current.options.onError?.(error);
        } finally {
          if (running.current === stopper) running.current = undefined;
        }
      })();
    },
    [client],
  );
  useEffect(
    () => () => {
      running.current?.abort();
      running.current = undefined;
    },
    [],
  );
  return [state, run, stop];
}

interface Stream<R> {
  run(request: R): void;
  stop(): void;
  status: StreamStatus;
  error: Error | null;
  /** The time from the request to the first event, in milliseconds. */
  firstMs: number | undefined;
  elapsedMs: number | undefined;
}

export interface ProcessStream extends Stream<ProcessRequest> {
  events: ProcessEvent[];
}

/** `POST /process-stream`. */
export function useProcessStream(apiUrl?: string, options: StreamOptions = {}): ProcessStream {
  const client = useClient(apiUrl, options.token);
  const [{ value: events, status, error, firstMs, elapsedMs }, run, stop] = useStream<ProcessRequest, ProcessEvent, ProcessEvent[]>(
    client,
    [],
    (client, request, signal) => client.process(request, { signal }),
    (events, event) => [...events, event],
    options,
  );
  return { run, stop, status, error, events, firstMs, elapsedMs };
}

interface Generated {
  text: string;
  pieces: number;
  generationId: string | undefined;
  finishReason: string | undefined;
  usage: GenerationUsage | undefined;
}
const NOTHING: Generated = { text: "", pieces: 0, generationId: undefined, finishReason: undefined, usage: undefined };

export interface Generation extends Stream<GenerateRequest> {
  /** The text of the first choice so far. */
  text: string;
  /** The number of parts of the text so far. */
  pieces: number;
  generationId: string | undefined;
  /** Why the text ended, such as `stop` or `length`. */
  finishReason: string | undefined;
  /** The token counts, at the end. */
  usage: GenerationUsage | undefined;
}

/** `POST /generate-stream`, which resumes after a broken connection. `stop` and unmounting cancel the generation. */
export function useGeneration(apiUrl?: string, options: StreamOptions & Omit<GenerateOptions, keyof CallOptions> = {}): Generation {
  const client = useClient(apiUrl, options.token);
  const { reconnect, maxReconnectAttempts, reconnectInterval } = options;
  const [{ value, status, error, firstMs, elapsedMs }, run, stop] = useStream<GenerateRequest, GenerationEvent, Generated>(
    client,
    NOTHING,
    (client, request, signal) => successful(client.generateEvents(request, { reconnect, maxReconnectAttempts, reconnectInterval, signal })),
    addGenerated,
    options,
  );
  return { run, stop, status, error, ...value, firstMs, elapsedMs };
}

function addGenerated(value: Generated, { type, data }: GenerationEvent): Generated {
  switch (type) {
    case "started":
      return { ...value, generationId: data.generation_id };
    case "token":
      return data.index === 0 ? { ...value, text: value.text + data.text, pieces: value.pieces + 1 } : value;
    case "done":
      return { ...value, finishReason: data.index === 0 ? data.finish_reason : value.finishReason, usage: data.usage ?? value.usage };
    default:
      return value;
  }
}
