import { useEffect, useMemo, useState } from "preact/hooks";
import type { Execution, ExecutionStep, StepView } from "../../../clients/typescript/src/index";
import { client, connectionWord, useClientVersion, useFollow, useLoad } from "../api";
import { Banners, Copy, duration, Log, State, Tabs, Trouble } from "../parts";
import { go } from "../router";
import { inputOf, start } from "../runs";
import { Definition } from "./pipeline";
import { Timeline, type Bar } from "./timeline";

const TABS = ["Timeline", "Log", "Output", "Definition"] as const;

/** An execution: its steps from the server, updated by its events. */
export function Run({ id }: { id: string }) {
  const [version] = useClientVersion();
  const status = useLoad((signal) => client.executions.get(id, { signal }), [id, version]);
  const [snapshot, store] = useFollow("pipeline", status.error === undefined ? id : null);
  const pipeline = status.value?.pipeline;
  const definition = useLoad(async (signal) => (pipeline === undefined ? undefined : client.pipelines.get(pipeline, { signal })), [pipeline]);
  const [tab, setTab] = useState<string>("Timeline");
  const [chosen, choose] = useState<string | null>(null);
  const [refusal, refuse] = useState<Error>();

  // After a gap the events do not give the complete state, so it is read again. At the end the output is read.
  useEffect(() => {
    if (snapshot.gap !== null || snapshot.executionState === "completed" || snapshot.executionState === "failed" || snapshot.executionState === "cancelled") status.again();
  }, [snapshot.gap, snapshot.executionState]);
  useEffect(() => {
    const key = (event: Event): void => {
      if ((event as CustomEvent).detail === "r") store?.reconnect();
    };
    addEventListener("weir-key", key);
    return () => removeEventListener("weir-key", key);
  }, [store]);

  const state = liveState(status.value, snapshot.executionState);
  const bars = useMemo(() => merge(status.value, snapshot.steps), [status.value, snapshot.steps]);
  const isLive = (state === "running" || state === "compensating") && snapshot.connection === "open";
  const began = status.value?.started_at;
  const errors = snapshot.events.filter(({ type }) => type === "step_error" || type === "pipeline_error").length;

  const cancel = async (): Promise<void> => client.executions.cancel(id).catch(refuse);
  const again = async (): Promise<void> => {
    try {
      const known = inputOf(id);
      // The input of another client is entered anew.
      go(known === undefined ? `/pipelines/${pipeline}` : `/executions/${await start(pipeline!, known.input)}`);
    } catch (error) {
      refuse(error as Error);
    }
  };
  const bar = bars.find((one) => one.id === chosen);
  return (
    <>
      <h1>
        {pipeline ?? "Execution"} <span class="mono">{id}</span> <Copy text={id} />
      </h1>
      <div class="row">
        <span data-state aria-live="polite"><State word={state} /></span>
        {status.value?.duration_ms !== undefined && !isLive && <span>{duration(status.value.duration_ms)}</span>}
        {(status.value?.resumed ?? 0) > 0 && <span class="tag">resumed {status.value!.resumed} ×</span>}
        <span class="dim" data-connection>{connectionWord(snapshot)}</span>
        <span class="grow" />
        <button onClick={() => void cancel()} disabled={state !== "running" && state !== "compensating"}>Cancel</button>
        <button onClick={() => void again()} disabled={pipeline === undefined}>Run again</button>
      </div>
      <Trouble error={status.error ?? refusal} />
      <Banners snapshot={snapshot} store={store} onGap="Steps were read again from the server." />
      <Tabs names={TABS} chosen={tab} choose={setTab} label="Execution" />
      {tab === "Timeline" && <Timeline bars={bars} began={began} isLive={isLive} chosen={chosen} choose={choose} checkpoints={checkpoints(snapshot.events)} />}
      {tab === "Timeline" && bar !== undefined && (
        <section class="card" aria-label={`Step ${bar.id}`}>
          <b>{bar.id}</b> · kind {bar.kind ?? "?"} · after {bar.after.join(", ") || "nothing"} · attempt {bar.attempt} · run {bar.run}
          {bar.message && <p>{bar.message}</p>}
          {bar.error && <p class="bad">{bar.error}</p>}
          {bar.output !== undefined && <pre tabIndex={0}>{JSON.stringify(bar.output, null, 1)}</pre>}
        </section>
      )}
      {tab === "Log" && <Log snapshot={snapshot} name={id} initialFilter={chosen === null ? "" : `step:${chosen}`} />}
      {tab === "Output" && <pre tabIndex={0}>{JSON.stringify(snapshot.output ?? status.value?.output ?? status.value?.failure ?? null, null, 2)}</pre>}
      {tab === "Definition" && <Definition value={definition.value} />}
      {errors > 0 && tab !== "Log" && <p><button onClick={() => setTab("Log")}>{errors} errors in the log</button></p>}
      <p class="dim mono">id {snapshot.lastEventId ?? "–"}</p>
    </>
  );
}

function liveState(status: Execution | undefined, byEvents: string): string {
  if (byEvents === "completed" || byEvents === "failed" || byEvents === "cancelled") return byEvents;
  return status?.state ?? byEvents;
}

const checkpoints = (events: { type: string; data: any }[]): string[] =>
  events.filter(({ type }) => type === "checkpoint_saved").map(({ data }) => data.timestamp);

/** The steps of a status from the server, updated by later events. */
function merge(status: Execution | undefined, live: StepView[]): Bar[] {
  const bars = (status?.steps ?? []).map((step) => ofStatus(step));
  for (const view of live) {
    const at = bars.findIndex(({ id }) => id === view.id);
    const old = at < 0 ? undefined : bars[at]!;
    // The status may be newer than the events.
    const isOver = old !== undefined && /completed|failed|skipped/.test(old.state) && view.state === "running";
    const next: Bar = {
      id: view.id,
      after: old?.after ?? [],
      kind: view.kind ?? old?.kind,
      state: isOver ? old.state : view.state === "waiting" ? "retrying" : view.state,
      attempt: view.attempt,
      run: view.run,
      startedAt: view.startedAt ?? old?.startedAt,
      durationMs: view.durationMs ?? old?.durationMs,
      progress: view.progress ?? old?.progress,
      message: view.message,
      output: view.output,
      error: view.error ?? old?.error,
      retryInMs: view.retryInMs,
    };
    if (at < 0) bars.push(next);
    else bars[at] = next;
  }
  return bars;
}

function ofStatus(step: ExecutionStep): Bar {
  return {
    id: step.id,
    kind: step.kind,
    after: step.after ?? [],
    state: step.state,
    attempt: step.attempts,
    run: 1,
    startedAt: step.started_at,
    durationMs: step.duration_ms,
    progress: step.progress,
    error: step.error,
  };
}
