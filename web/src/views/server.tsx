import { useEffect, useRef, useState } from "preact/hooks";
import type { Setting, Stats } from "../../../clients/typescript/src/index";
import { client, useClientVersion, useLoad } from "../api";
import { duration, number, Spark, State, Trouble } from "../parts";

const SAMPLES = 60;

interface ModelStats {
  name: string;
  ready: boolean;
  replicas?: number;
  queue_items?: number;
  tokens_total?: number;
  items_total?: number;
  batch_items_mean?: number | null;
  p50_ms?: number | null;
  p99_ms?: number | null;
  failures_total?: number;
  circuit?: string;
}

/** A snapshot of the server every second, while the tab is visible. */
function useStats(): [Stats[], Error | undefined] {
  const [version] = useClientVersion();
  const [samples, put] = useState<Stats[]>([]);
  const [error, fail] = useState<Error>();
  useEffect(() => {
    let stop: AbortController | undefined;
    const show = (): void => {
      stop?.abort();
      if (document.hidden) return;
      const signal = (stop = new AbortController()).signal;
      void (async () => {
        try {
          for await (const stats of client.watchStats({ signal, reconnectInterval: 1000, maxReconnectAttempts: 1000 })) {
            if (signal.aborted) return;
            put((old) => [...old.slice(1 - SAMPLES), stats]);
            fail(undefined);
          }
        } catch (cause) {
          if (!signal.aborted) fail(cause as Error);
        }
      })();
    };
    show();
    document.addEventListener("visibilitychange", show);
    return () => {
      document.removeEventListener("visibilitychange", show);
      stop?.abort();
    };
  }, [version]);
  return [samples, error];
}

export function Server() {
  const [samples, error] = useStats();
  const [version] = useClientVersion();
  const ready = useLoad((signal) => client.ready({ signal }), [version, samples.length > 0]);
  const health = useLoad((signal) => client.health({ signal }), [version, samples.length > 0]);
  const stats = samples.at(-1);
  const age = useAge(stats);
  const models: ModelStats[] = stats?.models ?? ready.value?.models ?? [];
  const of = (name: string, field: keyof ModelStats): number[] => samples.map((sample) => Number((sample.models as ModelStats[])?.find((model) => model.name === name)?.[field] ?? 0));
  return (
    <>
      <h1>Server</h1>
      <div class="row" data-server>
        <State word={ready.value?.status === "ready" ? "ready" : "loading"} />
        {stats?.uptime_s !== undefined && <span>uptime {duration(stats.uptime_s * 1000)}</span>}
        {facts(stats).map(([name, value]) => <span>{name} <b>{number(value)}</b></span>)}
        <span class="dim">{stats === undefined ? "" : `updated ${age} s ago`}</span>
      </div>
      <Trouble error={error} />
      <table>
        <thead>
          <tr>
            <th>Model</th><th>State</th><th class="num">Replicas</th><th class="num">Queue (items)</th><th class="num">Tokens/s</th><th class="num">Batch (mean)</th>
            <th class="num">p50 ms</th><th class="num">p99 ms</th><th class="num">Failures</th><th>Circuit</th>
          </tr>
        </thead>
        <tbody>
          {models.map((model) => {
            const queue = of(model.name, "queue_items");
            const tokens = rates(of(model.name, "tokens_total"));
            return (
              <tr key={model.name}>
                <th scope="row">{model.name}</th>
                <td><State word={model.ready ? "ready" : "loading"} /></td>
                <td class="num">{shown(model.replicas)}</td>
                <td class="num"><Spark values={queue} label={`Queue of ${model.name}`} /> {shown(model.queue_items)}</td>
                <td class="num"><Spark values={tokens} label={`Tokens per second of ${model.name}`} /> {shown(tokens.at(-1))}</td>
                <td class="num">{shown(model.batch_items_mean)}</td>
                <td class="num">{shown(model.p50_ms)}</td>
                <td class="num">{shown(model.p99_ms)}</td>
                <td class="num">{shown(model.failures_total)}</td>
                <td>{model.circuit ?? "–"}</td>
              </tr>
            );
          })}
        </tbody>
      </table>
      {stats?.configuration && <Configuration settings={stats.configuration} />}
      {health.value && (
        <p>
          Services: {Object.entries(health.value.services).map(([name, state]) => <span class="tag">{name} {state}</span>)} {health.value.active_streams} streams
        </p>
      )}
    </>
  );
}

/** The settings that are not the defaults. The server gives no value of a text, which may be a secret. */
function Configuration({ settings }: { settings: Setting[] }) {
  return (
    <details data-configuration>
      <summary>Configuration ({settings.length} {settings.length === 1 ? "key" : "keys"} changed from the defaults)</summary>
      {settings.length > 0 && (
        <table>
          <thead><tr><th>Key</th><th>Value</th></tr></thead>
          <tbody>
            {settings.map(({ key, value }) => (
              <tr key={key}>
                <th scope="row">{key}</th>
                <td>{value === undefined ? <span class="dim">set</span> : String(value)}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
    </details>
  );
}

const shown = (value: number | null | undefined): string => (value == null ? "–" : number(value));
const rates = (totals: number[]): number[] => totals.slice(1).map((total, at) => Math.max(0, total - totals[at]!));

const FACTS: [string, string][] = [
  ["requests_open", "requests open"], ["requests_rejected_total", "rejected"], ["subscribers", "subscribers"], ["websockets_open", "WebSockets"],
  ["channels", "channels"], ["events_published_total", "events"], ["gaps_total", "gaps"], ["closed_slow_total", "closed as slow"],
];
const facts = (stats: Stats | undefined): [string, number][] =>
  FACTS.flatMap(([field, name]): [string, number][] => (typeof stats?.[field] === "number" ? [[name, stats[field]]] : []));

function useAge(stats: Stats | undefined): number {
  const [age, put] = useState(0);
  const at = useRef(Date.now());
  useEffect(() => {
    at.current = Date.now();
    put(0);
    const timer = setInterval(() => !document.hidden && put(Math.round((Date.now() - at.current) / 1000)), 1000);
    return () => clearInterval(timer);
  }, [stats]);
  return age;
}
