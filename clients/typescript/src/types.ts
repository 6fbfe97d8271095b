import type { components } from "./openapi.js";

type Schemas = components["schemas"];

export type ClassifyParameters = Schemas["ClassifyParameters"];
export type TokensParameters = Schemas["TokensParameters"];
export type EmbedParameters = Schemas["EmbedParameters"];
export type LabelScore = Schemas["LabelScore"];
export type TokenEntity = Schemas["TokenEntity"];
export type InputObject = Schemas["InputObject"];
export type ItemLine = Schemas["ItemLine"];
export type Done = Schemas["Done"];
export type ProcessRequest = Schemas["ProcessRequest"];
export type ProcessEvent = Schemas["ProcessEvent"];
export type BatchAnswer = Schemas["BatchAnswer"];
export type Model = Schemas["Model"];
export type Readiness = Schemas["Readiness"];
export type Index = Schemas["Index"];
export type Chunk = Schemas["Chunk"];
export type TranscriptLine = Schemas["TranscriptLine"];
export type StateWire = Schemas["StateWire"];
export type ContextWire = Schemas["ContextWire"];
export type AnnotateInput = Schemas["AnnotateInput"];
export type AnnotateAnswer = Schemas["AnnotateAnswer"];

/** A request for generated text. */
export interface GenerateRequest {
  prompt?: string;
  messages?: ChatMessage[];
  model?: string;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  seed?: number;
  stop?: string | string[];
  [parameter: string]: unknown;
}

/** A message of a chat. */
export interface ChatMessage {
  role: "system" | "user" | "assistant" | "tool" | (string & {});
  content: string | null;
  [member: string]: unknown;
}
/** A request for a chat completion, as in OpenAI's API. */
export interface ChatRequest {
  messages: ChatMessage[];
  /** Default: the model of the server's configuration. */
  model?: string;
  max_tokens?: number;
  temperature?: number;
  top_p?: number;
  seed?: number;
  stop?: string | string[];
  tools?: unknown[];
  [parameter: string]: unknown;
}
interface ChatUsage {
  prompt_tokens: number;
  completion_tokens: number;
  total_tokens: number;
}
export interface ChatCompletion {
  id: string;
  model: string;
  created: number;
  choices: { index: number; message: ChatMessage; finish_reason: string }[];
  usage: ChatUsage;
}
export interface ChatChunk {
  id: string;
  model: string;
  created: number;
  choices: { index: number; delta: Partial<ChatMessage>; finish_reason: string | null }[];
  usage?: ChatUsage | null;
}

/** The response to a published event. */
export interface Published {
  status: "published";
  channel: string;
  /** The cursor of the event. */
  id: string;
  user_channel?: string;
  user_event_id?: string;
}

interface ProgressBody {
  step: string;
  /** 0 to 100. */
  progress: number;
  message?: string;
  error?: string;
  canceled?: boolean;
  metadata?: Record<string, unknown>;
  result?: unknown;
  user_id?: string;
  /** Whether this is the last event of the channel. */
  last?: boolean;
}
interface TemporalBody {
  event: "temporal_status";
  status: "RUNNING" | "COMPLETED" | "FAILED" | "CANCELED" | "TERMINATED" | "CONTINUED_AS_NEW" | "TIMED_OUT";
  run_id?: string;
  message?: string;
  metadata?: Record<string, unknown>;
  result?: unknown;
  user_id?: string;
  last?: boolean;
}
interface NotificationBody {
  message: string;
  title?: string;
  level?: "info" | "success" | "warning" | "error";
  metadata?: Record<string, unknown>;
}
/** The events that can be published, by route. */
export interface PublishBodies {
  workflow: ProgressBody | TemporalBody;
  analysis: ProgressBody;
  user: NotificationBody;
}
export type PublishBody = PublishBodies[keyof PublishBodies];

export type ExecutionState = "running" | "compensating" | "completed" | "failed" | "cancelled" | (string & {});
export type StepState = "pending" | "running" | "waiting" | "completed" | "failed" | "skipped" | (string & {});

interface ExecutionLinks {
  self: string;
  events: string;
  websocket: string;
}
/** The state of a step. */
export interface ExecutionStep {
  id: string;
  state: StepState;
  attempts: number;
  kind?: string;
  after?: string[];
  /** RFC 3339. */
  started_at?: string;
  duration_ms?: number;
  /** 0 to 1. */
  progress?: number;
  error?: string;
  code?: string;
  retryable?: boolean;
}
/** The state of an execution. The response of `POST /pipelines/{name}` without waiting has no optional members. */
export interface Execution {
  execution_id: string;
  pipeline: string;
  state: ExecutionState;
  started_at?: string;
  duration_ms?: number;
  events?: number;
  resumed?: number;
  steps?: ExecutionStep[];
  output?: unknown;
  failure?: { error: string; code: string; retryable: boolean; failed_step?: string } | null;
  links: ExecutionLinks;
}
/** An execution in a list. */
export interface ExecutionListed {
  execution_id: string;
  pipeline: string;
  state: ExecutionState;
  started_at: string;
  errors?: number;
  links: ExecutionLinks;
}
/** A pipeline in a list. */
export interface PipelineListed {
  name: string;
  valid: boolean;
  steps: { id: string; kind: string }[];
  error?: string;
  errors?: unknown[];
}
/** The definition of a pipeline. */
export interface PipelineDefinition {
  name: string;
  steps: { id: string; kind: string; after?: string[]; [member: string]: unknown }[];
  [member: string]: unknown;
}
export interface ReliabilityRates {
  sr: number | null;
  cr: number | null;
  tcl_ms: number | null;
  wct_ms: number | null;
  executions_completed: number;
  executions_failed: number;
  executions_cancelled: number;
  [count: string]: number | null;
}
export interface Reliability {
  total: ReliabilityRates;
  window: ReliabilityRates & { seconds: number };
}
export interface StreamHealth {
  status: "healthy" | "degraded" | "unhealthy";
  services: Record<string, string>;
  active_streams: number;
  timestamp: string;
  details?: Record<string, string>;
}
export interface Ticket {
  ticket: string;
  expires_at: string;
}
/** The configuration of a session: the body of `POST /sessions`. */
export interface SessionConfig {
  max_gap_sec?: number;
  overlap?: boolean;
  annotate?: ("keywords" | "intent" | "sentiment" | "entities")[];
  summary?: { every_finals?: number; at_end?: boolean };
  context?: { max_segments?: number; max_time_sec?: number };
  idle?: { expire_ms?: number };
  [member: string]: unknown;
}
/** The response to an upload. */
export interface Uploaded {
  file_id: string;
  workflow_id: string;
  execution_id?: string;
  links?: Record<string, string>;
}
/** A setting that is not the default. A text has no value: it may be a secret. */
export interface Setting {
  key: string;
  value?: number | boolean | string;
}

/** A snapshot of the server: `GET /v1/stats`. */
export interface Stats {
  timestamp: string;
  uptime_s?: number;
  configuration?: Setting[];
  [member: string]: any;
}
