import { useCallback, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import type { ChannelEvent, ChannelKind, Gap } from "../events.js";
import type { ConnectionState, FollowOptions } from "../follow.js";
import { type ChannelSnapshot, type ChannelStore, channelStore, INITIAL } from "../store.js";
import { useClient } from "./context.js";

/** Options of the hooks. Callbacks may change with every render without a new connection. */
export interface ProgressOptions<S = unknown> extends Omit<FollowOptions, "signal" | "onState"> {
  token?: string | undefined;
  /** If false, nothing is followed. Default true. */
  enabled?: boolean | undefined;
  /** Called when the connection fails, or the workflow, file or execution. */
  onError?(error: Error): void;
  /** Called once per id, when the workflow, file or execution is complete. */
  onComplete?(status: S): void;
  onConnect?(): void;
  onDisconnect?(): void;
  onGap?(gap: Gap): void;
}

/** The state of a hook's connection. */
export interface Connection {
  isConnected: boolean;
  connection: ConnectionState;
  /** Attempts to connect since the last event. */
  attempt: number;
  error: Error | null;
  gap: Gap | null;
  lastEventId: string | undefined;
  reconnect(): void;
  stop(): void;
}

const nothing = (): (() => void) => () => undefined;
const initial = (): ChannelSnapshot => INITIAL;

/** The state of a channel. Components with the same channel share a connection. */
export function useChannelStore(
  kind: ChannelKind,
  id: string | null | undefined,
  apiUrl: string | undefined,
  options: ProgressOptions<any>,
): [ChannelSnapshot, Connection] {
  const client = useClient(apiUrl, options.token);
  const { events, steps, throttleMs, lastEventId, since } = options;
  const variant = JSON.stringify([events, steps, throttleMs, lastEventId, since]);
  const isFollowed = id != null && options.enabled !== false;
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options;
  });
  const store = useMemo(
    (): ChannelStore | undefined => (isFollowed ? channelStore(client, kind, id, variant) : undefined),
    [client, kind, id, variant, isFollowed],
  );
  const subscribe = useMemo(
    () =>
      store === undefined
        ? nothing
        : (listener: () => void) => {
            const { reconnect, maxReconnectAttempts, reconnectInterval, stallMs, ...filter } = latest.current;
            store.configure({
              reconnect,
              maxReconnectAttempts,
              reconnectInterval,
              stallMs,
              events: filter.events,
              steps: filter.steps,
              throttleMs: filter.throttleMs,
              lastEventId: filter.lastEventId,
              since: filter.since,
            });
            return store.subscribe(listener);
          },
    [store],
  );
  const snapshot = useSyncExternalStore(subscribe, () => store?.snapshot ?? INITIAL, initial);

  const isConnected = snapshot.connection === "open";
  const wasConnected = useRef(false);
  useEffect(() => {
    if (isConnected) latest.current.onConnect?.();
    else if (wasConnected.current) latest.current.onDisconnect?.();
    wasConnected.current = isConnected;
  }, [isConnected]);
  const failure = snapshot.error ?? snapshot.failure;
  useEffect(() => {
    if (failure !== null) latest.current.onError?.(failure);
  }, [failure]);
  const { gap } = snapshot;
  useEffect(() => {
    if (gap !== null) latest.current.onGap?.(gap);
  }, [gap]);
  // Called once per id: a component that StrictMode mounts twice keeps its refs.
  const completed = useRef<ChannelStore | undefined>(undefined);
  const { isComplete } = snapshot;
  useEffect(() => {
    if (!isComplete || store === undefined || completed.current === store) return;
    completed.current = store;
    latest.current.onComplete?.(store.snapshot.status);
  }, [isComplete, store]);

  const reconnect = useCallback(() => store?.reconnect(), [store]);
  const stop = useCallback(() => store?.stop(), [store]);
  const { connection, attempt } = snapshot;
  return [snapshot, { isConnected, connection, attempt, error: failure, gap, lastEventId: snapshot.lastEventId, reconnect, stop }];
}

export interface Channel<K extends ChannelKind> extends Connection {
  /** The latest events, at most 500. */
  events: ChannelEvent<K>[];
  last: ChannelEvent<K> | undefined;
  /** The number of all received events. */
  count: number;
  isFinished: boolean;
}

/** The events of a channel. */
export function useChannel<K extends ChannelKind>(
  kind: K,
  id: string | null | undefined,
  apiUrl?: string,
  options: ProgressOptions = {},
): Channel<K> {
  const [{ events, last, count, isFinished }, connection] = useChannelStore(kind, id, apiUrl, options);
  return { ...connection, events: events as ChannelEvent<K>[], last: last as ChannelEvent<K> | undefined, count, isFinished };
}
