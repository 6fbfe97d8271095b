// The client of this tab, its followed channels, and the state of their connections.
import { useEffect, useReducer, useState } from "preact/hooks";
import { createClient, type WeirClient, WeirError } from "../../clients/typescript/src/index";
import type { ChannelKind } from "../../clients/typescript/src/events";
import type { FollowOptions } from "../../clients/typescript/src/follow";
import { type ChannelSnapshot, ChannelStore, INITIAL } from "../../clients/typescript/src/store";

const TOKEN = "weir-token";
const token = (): string => sessionStorage.getItem(TOKEN) ?? "";

export let client: WeirClient = make();
const changed = new Set<() => void>();

function make(): WeirClient {
  const options = token() === "" ? {} : { token };
  return createClient(location.origin, { ...options, transport: "ws" });
}

/** Sets the token of all later requests. It is stored for this tab only. */
export function setToken(text: string): void {
  if (text === "") sessionStorage.removeItem(TOKEN);
  else sessionStorage.setItem(TOKEN, text);
  client = make();
  clientVersion += 1;
  for (const store of stores.values()) store.stop();
  stores.clear();
  announce();
}

export const hasToken = (): boolean => token() !== "";

function announce(): void {
  for (const listener of changed) listener();
}

/** Renders at most once per frame, and not in a hidden tab. */
const frame = (flush: () => void): void => void requestAnimationFrame(flush);

const stores = new Map<string, ChannelStore>();
export type Options = Omit<FollowOptions, "signal" | "onState">;

/** The store of a channel. Subscriptions with different options have different keys. */
export function storeOf(kind: ChannelKind, id: string, options: Options = {}, key = `${kind}:${id}`): ChannelStore {
  let store = stores.get(key);
  if (store === undefined) {
    store = new ChannelStore(client, kind, id, frame);
    store.configure({ reconnectInterval: 1000, maxReconnectAttempts: 100, ...options });
    stores.set(key, store);
  }
  return store;
}

/** Removes a channel, so that it is followed from its first event the next time. */
export function forget(key: string): void {
  stores.get(key)?.stop();
  stores.delete(key);
}

/** The state of a channel, which is followed while the component is mounted. */
export function useStore(store: ChannelStore | undefined): ChannelSnapshot {
  const [, render] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    if (store === undefined) return;
    let leave: (() => void) | undefined;
    const show = (): void => {
      // A hidden tab follows nothing. When it is visible again, it resumes after its last event.
      if (document.hidden) {
        leave?.();
        leave = undefined;
      } else leave ??= store.subscribe(listen);
    };
    let said = "";
    const listen = (): void => {
      render(0);
      const { connection, isFinished } = store.snapshot;
      if (said !== (said = `${connection} ${isFinished}`)) announce();
    };
    show();
    document.addEventListener("visibilitychange", show);
    return () => {
      document.removeEventListener("visibilitychange", show);
      leave?.();
      announce();
    };
  }, [store]);
  return store?.snapshot ?? INITIAL;
}

export function useFollow(kind: ChannelKind, id: string | null, options: Options = {}): [ChannelSnapshot, ChannelStore | undefined] {
  const [version] = useClientVersion();
  const store = id === null || version < 0 ? undefined : storeOf(kind, id, options);
  return [useStore(store), store];
}

let clientVersion = 0;
/** Renders again after every change of a connection and of the token. The returned number changes with the token. */
export function useClientVersion(): [number] {
  const [, render] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    const listen = (): void => render(0);
    changed.add(listen);
    return () => void changed.delete(listen);
  }, []);
  return [clientVersion];
}

/** The state of a connection in words. */
export function connectionWord({ connection, isFinished, attempt }: ChannelSnapshot): string {
  if (isFinished) return "finished";
  switch (connection) {
    case "open":
      return "live";
    case "reconnecting":
      return `reconnecting (${Math.max(1, attempt)})`;
    case "idle":
      return "idle";
    case "closed":
      return "closed";
    default:
      return connection;
  }
}

/** The worst connection state of all followed channels. */
export function useOverall(): string {
  useClientVersion();
  const shown = [...stores.values()].filter((store) => store.isUsed).map(({ snapshot }) => snapshot);
  const worst = ["failed", "reconnecting", "connecting", "open"].find((state) => shown.some((one) => one.connection === state));
  return worst === "open" ? "live" : (worst ?? "idle");
}

export interface Loaded<T> {
  value: T | undefined;
  error: Error | undefined;
  again(): void;
}

/** Loads a value, and loads it again on `again` or when `inputs` change. */
export function useLoad<T>(load: (signal: AbortSignal) => Promise<T>, inputs: readonly unknown[]): Loaded<T> {
  const [count, again] = useReducer((count: number) => count + 1, 0);
  const [state, put] = useState<{ value?: T; error?: Error }>({});
  useEffect(() => {
    const stop = new AbortController();
    load(stop.signal).then(
      (value) => !stop.signal.aborted && put({ value }),
      (error: Error) => !stop.signal.aborted && put((old) => ({ value: old.value, error })),
    );
    return () => stop.abort();
  }, [count, ...inputs]);
  return { value: state.value, error: state.error, again: () => again(0) };
}

export function explain(error: Error): string {
  if (error instanceof WeirError && error.status > 0) {
    return `${error.message} (${error.status} ${error.code}${error.requestId ? `, request ${error.requestId}` : ""})`;
  }
  return error.message;
}
