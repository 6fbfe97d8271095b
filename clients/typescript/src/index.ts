/**
 * Client of Weir: its routes, and channels that resume.
 *
 * @module
 */
export {
  createClient,
  createClient as createPipAIClient,
  type ClientOptions,
  type ModelOption,
  type Texts,
  type WeirClient,
} from "./client.js";
export { WeirError, type FieldError, type Problem } from "./errors.js";
export type * from "./events.js";
export type { GenerateOptions } from "./generation.js";
export type { ConnectionState, EventFilter, FollowOptions, StateInfo } from "./follow.js";
export { parseNdjson } from "./ndjson.js";
export type { CallOptions, Send } from "./send.js";
export type { Session } from "./session.js";
export { createSseParser, SseTooLongError, type SseHandlers, type SseMessage, type SseParser } from "./sse.js";
export { ChannelStore, channelStore, type ChannelSnapshot, type StepView } from "./store.js";
export type * from "./types.js";
export type { UploadOptions } from "./upload.js";
export type { components, operations, paths } from "./openapi.js";
