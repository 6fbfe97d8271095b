"use client";
/**
 * React hooks of Weir.
 *
 * @module
 */
export { type Channel, type Connection, type ProgressOptions, useChannel } from "./channel.js";
export { useClient, WeirProvider } from "./context.js";
export { type ExecutionView, type TranscriptView, useExecution, useTranscript } from "./execution.js";
export { type FileAnalysisProgress, useFileAnalysisProgress, useWorkflowProgress, type WorkflowProgress, type WorkflowStatus } from "./progress.js";
export {
  type Generation,
  type ProcessStream,
  type StreamOptions,
  type StreamStatus,
  useGeneration,
  useProcessStream,
} from "./streams.js";
