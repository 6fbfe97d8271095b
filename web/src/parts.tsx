// Components and functions that several views share.
import type { ComponentChildren } from "preact";
import { useEffect, useLayoutEffect, useRef, useState } from "preact/hooks";
import type { ChannelEvent } from "../../clients/typescript/src/events";
import type { ChannelSnapshot, ChannelStore } from "../../clients/typescript/src/store";
import { explain } from "./api";

/** Formats a duration: `1 m 04 s`, `1.4 s`, `12 ms`. */
export function duration(ms: number): string {
  if (ms < 1) return `${ms.toFixed(1)} ms`;
  if (ms < 1000) return `${Math.round(ms)} ms`;
  const seconds = ms / 1000;
  if (seconds < 60) return `${seconds.toFixed(1)} s`;
  const pad = (value: number): string => String(Math.floor(value)).padStart(2, "0");
  if (seconds < 3600) return `${Math.floor(seconds / 60)} m ${pad(seconds % 60)} s`;
  return `${Math.floor(seconds / 3600)} h ${pad((seconds % 3600) / 60)} m`;
}

export const number = (value: number): string => value.toLocaleString("en", { maximumFractionDigits: 1 });
export const clock = (rfc3339: string | undefined): string => rfc3339?.slice(11, 23) ?? "";

/** A state as a symbol and a word. */
export function State({ word }: { word: string }) {
  const [shape, tone] = STATES[word.split(" ")[0]!] ?? ["·", "dim"];
  return (
    <span class={tone}>
      <span aria-hidden="true">{shape}</span> {word}
    </span>
  );
}
const STATES: Record<string, [string, string]> = {
  live: ["●", "good"], ready: ["●", "good"], completed: ["✓", "good"], finished: ["✓", "good"], open: ["●", "good"],
  running: ["◐", ""], connecting: ["◌", "dim"], reconnecting: ["◌", "warn"], retrying: ["↻", "warn"], compensating: ["↶", "warn"], stale: ["◌", "warn"],
  failed: ["✗", "bad"], cancelled: ["⊘", "warn"], waiting: ["·", "dim"], skipped: ["–", "dim"], loading: ["◌", "warn"],
};

export function Copy({ text, label = "Copy" }: { text: string | (() => string); label?: string }) {
  const [done, say] = useState(false);
  return (
    <button
      onClick={async () => {
        await navigator.clipboard.writeText(typeof text === "string" ? text : text());
        say(true);
        setTimeout(() => say(false), 1500);
      }}
    >
      {done ? "Copied" : label}
    </button>
  );
}

export function download(name: string, text: string): void {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text]));
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
}

export function Tabs({ names, chosen, choose, label }: { names: readonly string[]; chosen: string; choose(name: string): void; label: string }) {
  const move = (event: KeyboardEvent): void => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (step === undefined) return;
    const next = names[(names.indexOf(chosen) + step + names.length) % names.length]!;
    choose(next);
    (event.currentTarget as HTMLElement).querySelector<HTMLElement>(`[data-tab="${next}"]`)?.focus();
  };
  return (
    <div role="tablist" aria-label={label} onKeyDown={move}>
      {names.map((name) => (
        <button role="tab" data-tab={name} aria-selected={name === chosen} tabIndex={name === chosen ? 0 : -1} onClick={() => choose(name)}>
          {name}
        </button>
      ))}
    </div>
  );
}

/** The error of a request. */
export function Trouble({ error, children }: { error: Error | undefined; children?: ComponentChildren }) {
  if (error === undefined) return null;
  return (
    <div class="banner" role="alert">
      <span>{explain(error)}</span>
      {children}
    </div>
  );
}

/** Banners for a lost connection and for events that are no longer stored. */
export function Banners({ snapshot, store, onGap }: { snapshot: ChannelSnapshot; store: ChannelStore | undefined; onGap?: string }) {
  const { connection, attempt, retryInMs, error, gap } = snapshot;
  const [lostAt, setLostAt] = useState<string>();
  const [closedGap, closeGap] = useState<unknown>(null);
  const isLost = connection === "reconnecting" || connection === "failed";
  useEffect(() => setLostAt(isLost ? new Date().toLocaleTimeString() : undefined), [isLost]);
  return (
    <div aria-live="polite">
      {isLost && (
        <div class="banner" data-banner="lost">
          <span>
            <span aria-hidden="true">⚠ </span>
            {connection === "failed" ? `The connection failed: ${error === null ? "" : explain(error)}.` : `Connection lost at ${lostAt ?? ""}.`} The data
            shown may be out of date. {connection === "reconnecting" && `Attempt ${Math.max(1, attempt)}${retryInMs ? `, next in ${duration(retryInMs)}` : ""}.`}
          </span>
          <button onClick={() => store?.reconnect()}>Reconnect now</button>
        </div>
      )}
      {gap !== null && gap !== closedGap && (
        <div class="banner" data-banner="gap">
          <span>
            <span aria-hidden="true">⚠ </span>
            {gapSize(gap.from, gap.to)} no longer stored: {gap.from} to {gap.to}. {onGap}
          </span>
          <button aria-label="Close" onClick={() => closeGap(gap)}>✕</button>
        </div>
      )}
    </div>
  );
}

function gapSize(from: string, to: string): string {
  const [[fromEpoch, first], [toEpoch, last]] = [from.split("-"), to.split("-")] as [[string, string], [string, string]];
  const count = Number(last) - Number(first) + 1;
  return fromEpoch === toEpoch && count > 0 ? `${number(count)} event${count === 1 ? " is" : "s are"}` : "Events are";
}

/** Rows of a log that follows its end: a few more than are visible. */
const ROWS_FOLLOWING = 30;
/** Rows of a paused log. A button shows older ones, up to the events in the store. */
const ROWS = 200;

/** Distance from the end of a log, in pixels, within which it follows. */
const AT_END = 8;

const isAtEnd = ({ scrollTop, scrollHeight, clientHeight }: Element): boolean => scrollHeight - scrollTop - clientHeight < AT_END;

/** A log of events, which follows its end unless the user scrolls up. */
export function Log({ snapshot, name, initialFilter = "" }: { snapshot: ChannelSnapshot; name: string; initialFilter?: string }) {
  const [filter, setFilter] = useState(initialFilter);
  const [onlyErrors, setOnlyErrors] = useState(false);
  const [isFollowing, follow] = useState(true);
  const [rowsMax, setRowsMax] = useState(ROWS);
  const [opened, open] = useState<ChannelEvent | null>(null);
  const box = useRef<HTMLDivElement>(null);
  const list = useRef<HTMLOListElement>(null);
  const frozen = useRef({ events: snapshot.events, count: snapshot.count });
  if (isFollowing) frozen.current = { events: snapshot.events, count: snapshot.count };
  const { events, count } = frozen.current;
  const matching = filter === "" && !onlyErrors ? events : events.filter((event) => matches(event, filter) && (!onlyErrors || isError(event)));
  const shown = matching.slice(isFollowing ? -ROWS_FOLLOWING : -rowsMax);
  /** Position to which this component scrolled last, 0 while it is paused. */
  const end = useRef(0);
  // A log that only grows is no longer at its end either, until this component scrolls it.
  const wasScrolledUp = (log: Element): boolean => log.scrollTop < end.current - AT_END && !isAtEnd(log);
  /** Distance of the end of the rows from the top of the log before older rows are added. */
  const keptEnd = useRef<number | null>(null);
  const rowsEnd = (): number => list.current!.getBoundingClientRect().bottom - box.current!.getBoundingClientRect().top;
  const pause = (): void => {
    keptEnd.current = rowsEnd();
    follow(false);
  };
  const loadOlder = (): void => {
    keptEnd.current = rowsEnd();
    setRowsMax(500);
  };
  /** Position to which this component scrolled the paused log, until the browser reports it. */
  const placed = useRef(-1);
  // The rows that the user sees remain where they are.
  useLayoutEffect(() => {
    const log = box.current!;
    if (keptEnd.current === null || isFollowing) return;
    const before = log.scrollTop;
    log.scrollTop += rowsEnd() - keptEnd.current;
    keptEnd.current = null;
    if (log.scrollTop !== before) placed.current = log.scrollTop;
  }, [isFollowing, rowsMax]);
  useEffect(() => {
    const log = box.current;
    if (!isFollowing || log === null) {
      end.current = 0;
      return;
    }
    // The user may have scrolled up since then, without a `scroll` event yet: it comes with the next frame.
    if (wasScrolledUp(log)) return pause();
    log.scrollTop = log.scrollHeight;
    end.current = log.scrollTop;
  });
  useEffect(() => {
    const key = (event: Event): void => {
      if ((event as CustomEvent).detail !== "f") return;
      if (isFollowing) pause();
      else follow(true);
    };
    addEventListener("weir-key", key);
    return () => removeEventListener("weir-key", key);
  }, [isFollowing]);
  const scrolled = (): void => {
    const log = box.current!;
    const isPlaced = log.scrollTop === placed.current;
    placed.current = -1;
    if (isPlaced) return;
    if (isAtEnd(log)) follow(true);
    else if (wasScrolledUp(log)) pause();
  };
  const errors = events.filter(isError).length;
  return (
    <section aria-label="Log">
      <div class="row">
        <label>
          Filter <input data-filter value={filter} placeholder="step:entities type:step_error text" onInput={(event) => setFilter(event.currentTarget.value)} />
        </label>
        <label>
          <input type="checkbox" checked={onlyErrors} onChange={(event) => setOnlyErrors(event.currentTarget.checked)} /> errors only ({errors})
        </label>
        <span class="dim" data-count>{number(snapshot.count)} events</span>
        <span class="grow" />
        <button onClick={() => { follow(false); box.current!.scrollTop = 0; }}>Top</button>
        <button onClick={() => follow(true)}>Bottom</button>
        <button onClick={() => download(`${name}.ndjson`, snapshot.events.map((event) => `${JSON.stringify(event)}\n`).join(""))}>Download .ndjson</button>
      </div>
      <div class="log" ref={box} onScroll={scrolled} tabIndex={0} role="region" aria-label="Events">
        {!isFollowing && matching.length > shown.length && rowsMax < 500 && <button onClick={loadOlder}>Load older</button>}
        <ol ref={list}>
          {shown.map((event) => (
            <li class={event.type === "gap" ? "gap" : ""}>
              <span class="dim">{clock((event.data as { timestamp?: string } | null)?.timestamp)}</span>
              <span class="dim">{event.id ? `…${event.id.slice(-8)}` : ""}</span>
              <span class={isError(event) ? "bad" : ""}>{event.type}</span>
              <span>{summary(event)}</span>
              <button aria-expanded={opened === event} aria-label={`JSON of ${event.type} ${event.id ?? ""}`} onClick={() => open(opened === event ? null : event)}>JSON</button>
              {opened === event && <pre>{JSON.stringify(event, null, 1)}</pre>}
            </li>
          ))}
        </ol>
        {!isFollowing && (
          <button class="pill" onClick={() => follow(true)}>
            paused · {number(snapshot.count - count)} new ↓
          </button>
        )}
      </div>
    </section>
  );
}

export function isError(event: ChannelEvent): boolean {
  return /error|failed/.test(event.type) || (event.data as { error?: unknown } | null)?.error != null;
}

function matches(event: ChannelEvent, filter: string): boolean {
  return filter.split(/\s+/).every((word) => {
    const [field, value] = word.includes(":") ? word.split(":", 2) : ["", word];
    if (field === "type") return event.type.includes(value!);
    if (field === "step") return stepOf(event).includes(value!);
    return JSON.stringify(event).toLowerCase().includes(word.toLowerCase());
  });
}

const stepOf = (event: ChannelEvent): string => {
  const data = event.data as { step_id?: string | null; step?: string };
  return data.step_id ?? data.step ?? "";
};

/** A summary of an event in one line. */
export function summary(event: ChannelEvent): string {
  const data = event.data as any;
  if (event.type === "gap") return `events ${data.missing_from} to ${data.missing_to} are no longer stored`;
  if (data.event_type !== undefined) {
    const { progress, message, error, retry_in_ms: retry, duration_ms: ms } = data.data ?? {};
    const parts = [data.step_id, progress?.toFixed?.(2), message, error, retry != null && `retry in ${duration(retry)}`, ms != null && duration(ms)];
    return parts.filter(Boolean).join("  ");
  }
  if (data.segment !== undefined) return `${data.segment.speaker_id ?? ""} ${data.segment.text}`;
  return [data.step, data.progress !== undefined && `${data.progress} %`, data.status, data.title, data.message, data.reason, data.error].filter(Boolean).join("  ");
}

export function Meter({ label, value, tone = "", text }: { label: string; value: number; tone?: string; text?: string }) {
  const percent = Math.max(0, Math.min(1, value)) * 100;
  return (
    <div class="meter">
      <span>{label}</span>
      <span class="track" aria-hidden="true">
        <i class={tone} style={{ width: `${percent}%` }} />
      </span>
      <span class="mono">{text ?? value.toFixed(2)}</span>
    </div>
  );
}

/** A line chart of the latest values. The table beside it has the number. */
export function Spark({ values, label }: { values: number[]; label: string }) {
  const top = Math.max(1, ...values);
  const points = values.map((value, at) => `${(at / Math.max(1, values.length - 1)) * 100},${22 - (value / top) * 20}`).join(" ");
  return (
    <svg class="spark" viewBox="0 0 100 24" preserveAspectRatio="none" role="img" aria-label={label}>
      <polyline points={points} fill="none" stroke="currentColor" stroke-width="2" vector-effect="non-scaling-stroke" />
    </svg>
  );
}
