import type { WeirClient } from "./client.js";
import type { ChannelEvent, ChannelKind, Gap, Segment, TranscriptEvent } from "./events.js";
import type { ConnectionState, FollowOptions } from "./follow.js";

/** Most events that a store retains. */
export const EVENTS_MAX = 500;
/** How long the connection stays open after the last listener is removed, so that a remounted component can use it again. */
export const LINGER_MS = 250;
/** Stores of one client above which unused ones are removed. */
const STORES_MAX = 200;

/** The state of a step of an execution, from its events. */
export interface StepView {
  id: string;
  state: "running" | "waiting" | "completed" | "failed";
  kind?: string | undefined;
  attempt: number;
  run: number;
  /** 0 to 1. */
  progress?: number | undefined;
  message?: string | undefined;
  /** RFC 3339. */
  startedAt?: string | undefined;
  durationMs?: number | undefined;
  output?: unknown;
  error?: string | undefined;
  retryInMs?: number | null | undefined;
}

/** The latest events of a channel, and the state that is reduced from all of them. */
export interface ChannelSnapshot {
  connection: ConnectionState;
  attempt: number;
  retryInMs: number | undefined;
  /** An error of the connection. */
  error: Error | null;
  lastEventId: string | undefined;
  gap: Gap | null;
  /** Whether the channel has had its last event. */
  isFinished: boolean;
  /** The latest events, at most 500. */
  events: ChannelEvent[];
  /** The number of all received events. */
  count: number;
  last: ChannelEvent | undefined;

  /** The progress of a workflow, file or execution, 0 to 100. */
  progress: number;
  step: string | null;
  message: string | undefined;
  status: any;
  result: unknown;
  isComplete: boolean;
  /** Whether the workflow, file or execution has failed; an error of the connection is `error`. */
  hasError: boolean;
  failure: Error | null;
  isCanceled: boolean;

  /** For executions. */
  steps: StepView[];
  executionState: "pending" | "running" | "completed" | "failed" | "cancelled";
  output: unknown;

  /** For transcript sessions. */
  segments: Extract<TranscriptEvent, { type: "final_segment" }>[];
  partial: Segment | null;
  keywords: Record<string, number>;
  summary: string | undefined;
}

/** The state before the first event, and during server-side rendering. */
export const INITIAL: ChannelSnapshot = Object.freeze({
  connection: "idle",
  attempt: 0,
  retryInMs: undefined,
  error: null,
  lastEventId: undefined,
  gap: null,
  isFinished: false,
  events: [],
  count: 0,
  last: undefined,
  progress: 0,
  step: null,
  message: undefined,
  status: null,
  result: undefined,
  isComplete: false,
  hasError: false,
  failure: null,
  isCanceled: false,
  steps: [],
  executionState: "pending",
  output: undefined,
  segments: [],
  partial: null,
  keywords: {},
  summary: undefined,
});

/** Follows one channel for any number of listeners over one connection, which is open while there are listeners. */
export class ChannelStore {
  snapshot: ChannelSnapshot = INITIAL;
  private readonly listeners = new Set<() => void>();
  /** Events that are not in the snapshot yet; they are reduced in batches. */
  private pending: ChannelEvent[] = [];
  private stopper: AbortController | undefined;
  private linger: ReturnType<typeof setTimeout> | undefined;
  private isScheduled = false;
  private isStopped = false;
  /** The time from which events are followed, after the first connection with `since: "now"`. */
  private since: string | undefined;
  private options: Omit<FollowOptions, "signal" | "onState"> = {};

  constructor(
    private readonly client: WeirClient,
    readonly kind: ChannelKind,
    readonly id: string,
    private readonly schedule: (flush: () => void) => void = (flush) => queueMicrotask(flush),
  ) {}

  /** Sets the options of later connections. */
  configure(options: Omit<FollowOptions, "signal" | "onState">): void {
    this.options = options;
  }

  readonly subscribe = (listener: () => void): (() => void) => {
    clearTimeout(this.linger);
    this.listeners.add(listener);
    if (this.stopper === undefined && !this.snapshot.isFinished && !this.isStopped) void this.open();
    return () => {
      this.listeners.delete(listener);
      if (this.listeners.size === 0) this.linger = setTimeout(() => this.close(), LINGER_MS);
    };
  };

  /** Whether the store has listeners or a connection. */
  get isUsed(): boolean {
    return this.listeners.size > 0 || this.stopper !== undefined;
  }

  /** Reconnects after the last event. */
  readonly reconnect = (): void => {
    this.isStopped = false;
    if (this.snapshot.isFinished) return;
    this.close();
    void this.open();
  };

  /** Closes the connection until {@link reconnect}. */
  readonly stop = (): void => {
    this.isStopped = true;
    this.close();
    this.put({ connection: "closed" });
  };

  private close(): void {
    this.stopper?.abort();
    this.stopper = undefined;
  }

  private async open(): Promise<void> {
    const stopper = (this.stopper = new AbortController());
    const isCurrent = (): boolean => this.stopper === stopper;
    const follow: FollowOptions = {
      ...this.options,
      signal: stopper.signal,
      onState: (connection, { attempt, retryInMs }) => {
        if (isCurrent()) this.put({ connection, attempt, retryInMs, ...(connection === "open" ? { error: null } : {}) });
      },
    };
    if (this.since !== undefined) follow.since = this.since;
    this.fold();
    const { lastEventId } = this.snapshot;
    if (lastEventId !== undefined) follow.lastEventId = lastEventId;
    try {
      for await (const event of this.client.follow(this.kind, this.id, follow)) {
        if (!isCurrent()) return;
        if (event.type === "connected" && this.options.since === "now") this.since ??= event.data.timestamp;
        this.pending.push(event);
        if (this.pending.length >= EVENTS_MAX) this.fold();
        this.announce();
      }
      if (isCurrent()) this.put({ isFinished: true, connection: "closed" });
    } catch (error) {
      if (isCurrent()) this.put({ connection: "failed", error: error instanceof Error ? error : new Error(String(error)) });
    } finally {
      if (isCurrent()) this.stopper = undefined;
    }
  }

  private put(change: Partial<ChannelSnapshot>): void {
    this.fold();
    this.snapshot = { ...this.snapshot, ...change };
    this.announce();
  }

  private fold(): void {
    if (this.pending.length === 0) return;
    this.snapshot = reduce(this.snapshot, this.pending);
    this.pending = [];
  }

  private announce(): void {
    if (this.isScheduled) return;
    this.isScheduled = true;
    this.schedule(() => {
      this.isScheduled = false;
      this.fold();
      for (const listener of this.listeners) listener();
    });
  }
}

/** Reduces events to the next state. */
export function reduce(before: ChannelSnapshot, events: ChannelEvent[]): ChannelSnapshot {
  const next = { ...before };
  for (const event of events) Object.assign(next, changeOf(next, event));
  next.events = [...before.events, ...events].slice(-EVENTS_MAX);
  next.count += events.length;
  next.last = events.at(-1) ?? before.last;
  return next;
}

/** The changes of an event. */
function changeOf(before: ChannelSnapshot, event: ChannelEvent): Partial<ChannelSnapshot> {
  const change: Partial<ChannelSnapshot> = {};
  if (event.id !== undefined) change.lastEventId = event.id;
  switch (event.type) {
    case "gap":
      change.gap = { from: event.data.missing_from, to: event.data.missing_to };
      break;
    case "disconnected":
      if (event.data.reason === "finished") change.isFinished = true;
      break;
    case "workflow_progress":
    case "analysis_progress": {
      const { data } = event;
      Object.assign(change, {
        progress: data.progress,
        step: data.step,
        message: data.message,
        status: data,
        isCanceled: data.canceled === true,
        hasError: data.error !== undefined,
        failure: data.error === undefined ? null : new Error(data.error),
        isComplete: data.progress >= 100 && data.error === undefined && data.canceled !== true,
      });
      if (data.result !== undefined) change.result = data.result;
      break;
    }
    case "temporal_status": {
      const { data } = event;
      const failed = ["FAILED", "TERMINATED", "TIMED_OUT"].includes(data.status);
      Object.assign(change, {
        status: data,
        isComplete: data.status === "COMPLETED",
        isCanceled: data.status === "CANCELED",
        hasError: failed,
        failure: failed ? new Error(data.message ?? data.status) : null,
      });
      if (data.status === "COMPLETED") change.progress = 100;
      if (data.result !== undefined) change.result = data.result;
      break;
    }
    case "notification":
      change.message = event.data.message;
      break;
    default:
      if ("event_type" in event.data) Object.assign(change, reduceExecution(before, event.data));
      else if ("type" in event.data) Object.assign(change, reduceTranscript(before, event.data as TranscriptEvent));
  }
  return change;
}

function reduceExecution(before: ChannelSnapshot, event: any): Partial<ChannelSnapshot> {
  const { event_type: type, step_id: id, data, metadata, timestamp } = event;
  const change: Partial<ChannelSnapshot> = { status: event };
  const step = (patch: Partial<StepView>): void => {
    const old = before.steps.find((one) => one.id === id);
    const run = metadata?.run ?? old?.run ?? 1;
    const next: StepView = { state: "running", attempt: 1, ...old, ...patch, id, run };
    if (metadata?.attempt !== undefined) next.attempt = metadata.attempt;
    change.steps = old === undefined ? [...before.steps, next] : before.steps.map((one) => (one === old ? next : one));
    change.step = id;
  };
  switch (type) {
    case "pipeline_start":
      change.executionState = "running";
      break;
    case "step_start":
      step({ state: "running", kind: data.kind, startedAt: timestamp, error: undefined, progress: undefined, retryInMs: undefined });
      break;
    case "step_progress":
      step({ progress: data.progress, message: data.message });
      break;
    case "step_output":
      step({ output: data.output });
      break;
    case "step_complete":
      step({ state: "completed", kind: data.kind, progress: 1, output: data.output, durationMs: data.duration_ms });
      break;
    case "step_error": {
      const state = data.retry_in_ms == null ? "failed" : "waiting";
      step({ state, kind: data.kind, error: data.error, retryInMs: data.retry_in_ms, durationMs: data.duration_ms });
      break;
    }
    case "pipeline_complete":
      Object.assign(change, { executionState: "completed", isComplete: true, progress: 100, output: data.output, result: data.output });
      break;
    case "pipeline_error":
      Object.assign(change, {
        executionState: data.cancelled ? "cancelled" : "failed",
        isCanceled: data.cancelled === true,
        hasError: data.cancelled !== true,
        failure: data.cancelled ? null : new Error(data.error),
      });
  }
  return change;
}

function reduceTranscript(before: ChannelSnapshot, event: TranscriptEvent): Partial<ChannelSnapshot> {
  switch (event.type) {
    case "partial_segment":
      return { partial: event.segment };
    case "final_segment": {
      const keywords = { ...before.keywords };
      for (const keyword of event.semantic?.keywords ?? []) keywords[keyword] = (keywords[keyword] ?? 0) + 1;
      return { segments: [...before.segments.slice(-(EVENTS_MAX - 1)), event], partial: null, keywords };
    }
    case "summary_due":
      return event.summary === undefined ? {} : { summary: event.summary };
    case "session_ended":
    case "session_expired":
    case "session_deleted":
      return { isComplete: true, partial: null };
    default:
      return {};
  }
}

const stores = new WeakMap<WeirClient, Map<string, ChannelStore>>();

/** The store of a channel for a client. Callers with the same `variant` share it. */
export function channelStore(client: WeirClient, kind: ChannelKind, id: string, variant = ""): ChannelStore {
  let ofClient = stores.get(client);
  if (ofClient === undefined) stores.set(client, (ofClient = new Map()));
  const key = `${kind}:${id}\n${variant}`;
  let store = ofClient.get(key);
  if (store === undefined) {
    for (const [old, { isUsed }] of ofClient) {
      if (ofClient.size < STORES_MAX) break;
      if (!isUsed) ofClient.delete(old);
    }
    ofClient.set(key, (store = new ChannelStore(client, kind, id)));
  }
  return store;
}
