import type { AnalysisProgressEvent, TemporalStatusEvent, WorkflowProgressEvent } from "../events.js";
import type { ChannelSnapshot } from "../store.js";
import { type Connection, type ProgressOptions, useChannelStore } from "./channel.js";

interface Progress extends Connection {
  /** 0 to 100. */
  progress: number;
  message: string | undefined;
  isComplete: boolean;
  /** Whether the workflow or analysis has failed, or the connection is not retried any more. */
  hasError: boolean;
  isCanceled: boolean;
  result: unknown;
}

export type WorkflowStatus = WorkflowProgressEvent["data"] | TemporalStatusEvent["data"];
export interface WorkflowProgress extends Progress {
  currentStep: string | null;
  status: WorkflowStatus | null;
}
export interface FileAnalysisProgress extends Progress {
  analysisStep: string | null;
  status: AnalysisProgressEvent["data"] | null;
}

function progressOf(snapshot: ChannelSnapshot, connection: Connection): Progress {
  const { progress, message, isComplete, hasError, isCanceled, result } = snapshot;
  return { ...connection, progress, message, isComplete, hasError: hasError || snapshot.error !== null, isCanceled, result };
}

/** The progress of a workflow. With `null` as its id, nothing is followed. */
export function useWorkflowProgress(
  workflowId: string | null | undefined,
  apiUrl?: string,
  options: ProgressOptions<WorkflowStatus> = {},
): WorkflowProgress {
  const [snapshot, connection] = useChannelStore("workflow", workflowId, apiUrl, options);
  return { ...progressOf(snapshot, connection), currentStep: snapshot.step, status: snapshot.status };
}

/** The progress of the analysis of a file. */
export function useFileAnalysisProgress(
  fileId: string | null | undefined,
  apiUrl?: string,
  options: ProgressOptions<AnalysisProgressEvent["data"]> = {},
): FileAnalysisProgress {
  const [snapshot, connection] = useChannelStore("file", fileId, apiUrl, options);
  return { ...progressOf(snapshot, connection), analysisStep: snapshot.step, status: snapshot.status };
}
