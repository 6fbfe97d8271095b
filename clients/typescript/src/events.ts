/** The kinds of channels, as in `GET /stream/{kind}/{id}`. */
export type ChannelKind = "workflow" | "file" | "user" | "pipeline" | "session" | "generation";

interface Stamped {
  timestamp: string;
}

/** The data of all progress events. */
export interface ProgressData extends Stamped {
  step: string;
  /** 0 to 100. */
  progress: number;
  message?: string;
  error?: string;
  canceled?: boolean;
  metadata?: Record<string, unknown>;
  result?: unknown;
  user_id?: string;
}

interface Event<N extends string, D> {
  type: N;
  /** The cursor, `epoch-seq`; absent for events that are not stored. */
  id?: string | undefined;
  data: D;
}

export type WorkflowProgressEvent = Event<"workflow_progress", ProgressData & { workflow_id: string }>;
export type AnalysisProgressEvent = Event<"analysis_progress", ProgressData & { file_id: string }>;
export type NotificationEvent = Event<
  "notification",
  Stamped & {
    user_id: string;
    title?: string;
    message: string;
    level: "info" | "success" | "warning" | "error";
    metadata?: Record<string, unknown>;
  }
>;
export type TemporalStatus = "RUNNING" | "COMPLETED" | "FAILED" | "CANCELED" | "TERMINATED" | "CONTINUED_AS_NEW" | "TIMED_OUT";
export type TemporalStatusEvent = Event<
  "temporal_status",
  Stamped & {
    workflow_id: string;
    status: TemporalStatus;
    run_id?: string;
    message?: string;
    metadata?: Record<string, unknown>;
    result?: unknown;
    user_id?: string;
  }
>;

/** Events between two cursors, both included, that are no longer stored. */
export interface Gap {
  from: string;
  to: string;
}

export type ConnectedEvent = Event<"connected", Stamped & { channel: string }>;
export type GapEvent = Event<"gap", Stamped & { missing_from: string; missing_to: string }>;
export type ErrorEvent = Event<"error", Stamped & { code: string; message: string; retryable: boolean }>;
export type DisconnectedEvent = Event<
  "disconnected",
  Stamped & {
    reason: "finished" | "slow" | "closing" | "expired" | "unsubscribed";
    message: string;
    resumable: boolean;
  }
>;
/** Events of the subscription itself. */
export type SubscriptionEvent = ConnectedEvent | GapEvent | ErrorEvent | DisconnectedEvent;

export type PipelineEventType =
  | "pipeline_start"
  | "step_start"
  | "step_progress"
  | "step_output"
  | "step_complete"
  | "step_error"
  | "checkpoint_saved"
  | "pipeline_complete"
  | "pipeline_error";
/** An event of an execution. */
export type PipelineEvent = Event<
  PipelineEventType,
  {
    event_type: PipelineEventType;
    execution_id: string;
    step_id: string | null;
    timestamp: string;
    // eslint-disable-next-line @typescript-eslint/no-explicit-any -- its members depend on the type, see docs/reference/events.md
    data: any;
    metadata: { seq?: number; attempt?: number; run?: number; compensates?: string; resumed?: boolean } | null;
  }
>;

/** A segment of a transcript. Times are in seconds. */
export interface Segment {
  start: number;
  end: number;
  text: string;
  speaker_id: string | null;
}
export interface Semantic {
  keywords: string[];
  risk_tags: string[];
  intent?: string;
  actions?: { text: string; speaker_id?: string | null }[];
  matches?: { risk: string; keyword: string }[];
}
/** An event of a transcript session: a line of a response, or the data of an event of its channel. */
export type TranscriptEvent =
  | { type: "partial_segment"; segment: Segment; seq?: number; event_id?: number }
  | {
      type: "final_segment";
      segment: Segment;
      segment_id: number;
      semantic?: Semantic;
      workflow?: string;
      sentiment?: { label: string; score: number };
      sentiment_error?: { code: string; message: string };
      entities?: unknown[];
      seq?: number;
      event_id?: number;
    }
  | { type: "summary_due"; kind: string; finals: number; keywords: string[]; context: string; prompt: string; summary?: string; event_id?: number }
  | { type: "segment_dropped"; segment_id: number; workflow: string }
  | { type: "session_expiring"; in_ms: number }
  | { type: "session_expired" | "session_ended" | "session_deleted"; event_id?: number }
  | { type: "error"; error: { code: string; message: string; field?: string }; line?: number }
  | { type: "repeated"; seq: number; seq_last: number };
export type SessionEvent = { [E in TranscriptEvent as E["type"]]: Event<E["type"], E> }[TranscriptEvent["type"]];

/** An event of generated text. */
export type GenerationEvent =
  | Event<"started", { type: "started"; generation_id: string; model: string; prompt_tokens: number; choices: number }>
  | Event<"token", { type: "token"; index: number; text: string }>
  | Event<"tool_call", { type: "tool_call"; index: number; call: number; id?: string; name?: string; arguments: string }>
  | Event<"done", { type: "done"; index: number; finish_reason: string; stop?: string | null; usage?: GenerationUsage | null }>
  | Event<"error", { type: "error"; code: string; message: string; status: number; retryable: boolean }>;

/** The token counts of a generation. */
export interface GenerationUsage {
  prompt_tokens: number;
  cached_tokens: number;
  completion_tokens: number;
}

interface EventsOf {
  workflow: WorkflowProgressEvent | TemporalStatusEvent;
  file: AnalysisProgressEvent;
  user: NotificationEvent | WorkflowProgressEvent | AnalysisProgressEvent | TemporalStatusEvent;
  pipeline: PipelineEvent;
  session: SessionEvent;
  generation: GenerationEvent;
}
/** The events of a channel of a kind, including those of the subscription. */
export type ChannelEvent<K extends ChannelKind = ChannelKind> = EventsOf[K] | SubscriptionEvent;
/** Any event of any channel. */
export type StreamEvent = ChannelEvent;
