import { useCallback, useEffect, useRef, useState } from "react";
import type { WeirClient } from "../client.js";
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

export interface Generation extends Stream<GenerateRequest> {
  text: string;
  /** The number of parts of the text so far. */
  pieces: number;
}

/** `POST /generate-stream`. */
export function useGeneration(apiUrl?: string, options: StreamOptions = {}): Generation {
  const client = useClient(apiUrl, options.token);
  const [{ value, status, error, firstMs, elapsedMs }, run, stop] = useStream<GenerateRequest, string, { text: string; pieces: number }>(
    client,
    { text: "", pieces: 0 },
    (client, request, signal) => client.generate(request, { signal }),
    ({ text, pieces }, piece) => ({ text: text + piece, pieces: pieces + 1 }),
    options,
  );
  return { run, stop, status, error, ...value, firstMs, elapsedMs };
}
