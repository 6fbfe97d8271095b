import { useEffect, useState } from "preact/hooks";
import { duration, State } from "../parts";

/** A step of an execution. */
export interface Bar {
  id: string;
  kind?: string | undefined;
  after: string[];
  state: string;
  attempt: number;
  run: number;
  startedAt?: string | undefined;
  durationMs?: number | undefined;
  /** 0 to 1. */
  progress?: number | undefined;
  message?: string | undefined;
  output?: unknown;
  error?: string | undefined;
  retryInMs?: number | null | undefined;
}

/** Idle periods longer than this share of the busy time are omitted from the axis. */
const QUIET_SHARE = 0.5;
const QUIET_MS_MIN = 2000;

/** Maps times to an axis from 0 to 1, without long idle periods. */
export function axis(spans: [number, number][]): (ms: number) => number {
  const sorted = [...spans].sort(([a], [b]) => a - b);
  const cuts: [number, number][] = [];
  let end = sorted[0]?.[0] ?? 0;
  const first = end;
  let busy = 0;
  for (const [from, to] of sorted) {
    if (from > end) cuts.push([end, from]);
    busy += Math.max(0, to - Math.max(from, end));
    end = Math.max(end, to);
  }
  const long = cuts.filter(([from, to]) => to - from > Math.max(QUIET_MS_MIN, busy * QUIET_SHARE));
  const before = (ms: number): number => long.reduce((sum, [from, to]) => sum + Math.max(0, Math.min(ms, to) - from), 0);
  const total = Math.max(1, end - first - before(end));
  return (ms) => Math.max(0, Math.min(1, (ms - first - before(ms)) / total));
}

interface Given {
  bars: Bar[];
  began: string | undefined;
  isLive: boolean;
  chosen: string | null;
  choose(id: string | null): void;
  checkpoints: string[];
}

export function Timeline({ bars, began, isLive, chosen, choose, checkpoints }: Given) {
  const [now, tick] = useState(Date.now);
  // Without a connection the clock stops, because the state may be out of date.
  useEffect(() => {
    if (!isLive) return;
    const timer = setInterval(() => !document.hidden && tick(Date.now()), 100);
    return () => clearInterval(timer);
  }, [isLive]);
  const spans = bars.flatMap(({ startedAt, durationMs, state }): [number, number][] => {
    if (startedAt === undefined) return [];
    const from = Date.parse(startedAt);
    return [[from, durationMs !== undefined ? from + durationMs : state === "running" ? Math.max(from, now) : from]];
  });
  if (began !== undefined) spans.push([Date.parse(began), Date.parse(began)]);
  const place = axis(spans);
  const ends = Math.max(0, ...spans.map(([, to]) => to)) - Math.min(...spans.map(([from]) => from), Infinity);
  return (
    <section aria-label="Timeline">
      <div class="timeline" data-timeline>
        {bars.map((bar) => <Row key={bar.id} bar={bar} place={place} now={now} isChosen={bar.id === chosen} choose={() => choose(bar.id === chosen ? null : bar.id)} />)}
        {checkpoints.length > 0 && (
          <>
            <span class="dim">checkpoints</span>
            <span class="dim">{checkpoints.length}</span>
            <span class="track" aria-hidden="true">
              {checkpoints.slice(-100).map((at) => <i class="tick" style={{ left: `${place(Date.parse(at)) * 100}%` }} />)}
            </span>
          </>
        )}
      </div>
      {Number.isFinite(ends) && ends > 0 && <p class="dim">0 to {duration(ends)}; long idle periods are omitted</p>}
    </section>
  );
}

function Row({ bar, place, now, isChosen, choose }: { bar: Bar; place(ms: number): number; now: number; isChosen: boolean; choose(): void }) {
  const { id, state, startedAt, durationMs, progress, after, attempt, retryInMs, error } = bar;
  const from = startedAt === undefined ? undefined : Date.parse(startedAt);
  const to = from === undefined ? 0 : durationMs !== undefined ? from + durationMs : Math.max(from, now);
  const isLive = state === "running" || state === "retrying";
  const word =
    state === "completed" && durationMs !== undefined
      ? `completed ${duration(durationMs)}`
      : state === "retrying"
        ? `retrying, attempt ${attempt + 1} in ${duration(retryInMs ?? 0)}`
        : state === "running" && progress !== undefined
          ? `running ${Math.round(progress * 100)} %`
          : state === "waiting" && after.length > 0
            ? `waiting for ${after.join(", ")}`
            : state;
  return (
    <>
      <button aria-pressed={isChosen} onClick={choose}>{id}</button>
      <State word={word} />
      <span class="track" aria-hidden="true" title={error}>
        {from !== undefined && (
          <i class={state === "failed" ? "bad" : isLive ? "live" : ""} style={{ left: `${place(from) * 100}%`, width: `${(place(to) - place(from)) * 100}%` }} />
        )}
      </span>
    </>
  );
}
