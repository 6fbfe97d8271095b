import { useCallback } from "react";
import type { ChannelSnapshot, StepView } from "../store.js";
import { type Connection, type ProgressOptions, useChannelStore } from "./channel.js";
import { useClient } from "./context.js";

export interface ExecutionView extends Connection {
  state: ChannelSnapshot["executionState"];
  /** The steps, in the order of their start. */
  steps: StepView[];
  output: unknown;
  failure: Error | null;
  isComplete: boolean;
  cancel(): Promise<void>;
}

/** The state of an execution of a pipeline, from its events. */
export function useExecution(executionId: string | null | undefined, apiUrl?: string, options: ProgressOptions = {}): ExecutionView {
  const client = useClient(apiUrl, options.token);
  const [snapshot, connection] = useChannelStore("pipeline", executionId, apiUrl, options);
  const cancel = useCallback(async () => {
    if (executionId != null) await client.executions.cancel(executionId);
  }, [client, executionId]);
  const { executionState: state, steps, output, failure, isComplete } = snapshot;
  return { ...connection, state, steps, output, failure, isComplete, cancel };
}

export interface TranscriptView extends Connection {
  /** The latest 500 final segments. */
  segments: ChannelSnapshot["segments"];
  /** The partial segment. */
  partial: ChannelSnapshot["partial"];
  /** The number of final segments with each keyword. */
  keywords: Record<string, number>;
  summary: string | undefined;
  isComplete: boolean;
}

/** The state of a stored transcript session, from its events. */
export function useTranscript(sessionId: string | null | undefined, apiUrl?: string, options: ProgressOptions = {}): TranscriptView {
  const [snapshot, connection] = useChannelStore("session", sessionId, apiUrl, options);
  const { segments, partial, keywords, summary, isComplete } = snapshot;
  return { ...connection, segments, partial, keywords, summary, isComplete };
}
