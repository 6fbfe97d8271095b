// The executions that this tab has started, and their inputs: the server keeps the input of an execution for itself.
import { client } from "./api";

/** The most inputs that are kept. */
const INPUTS_MAX = 50;
const inputs = new Map<string, unknown>();

/** Starts a pipeline; returns the id of the execution. */
export async function start(pipeline: string, input: unknown): Promise<string> {
  const { execution_id: id } = await client.pipelines.start(pipeline, input);
  inputs.set(id, input);
  for (const oldest of inputs.keys()) {
    if (inputs.size <= INPUTS_MAX) break;
    inputs.delete(oldest);
  }
  return id;
}

/** The input of an execution that this tab has started. */
export function inputOf(id: string): { input: unknown } | undefined {
  return inputs.has(id) ? { input: inputs.get(id) } : undefined;
}
