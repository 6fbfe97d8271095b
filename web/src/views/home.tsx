import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { Model } from "../../../clients/typescript/src/index";
import { client, useClientVersion, useLoad } from "../api";
import { Copy, duration, Meter, number, State, Tabs, Trouble } from "../parts";
import { codeFor, LANGUAGES, type Language } from "./snippets";

export type Task = "sentiment" | "entities" | "summary" | "everything" | "generate";
const TASKS: { task: Task; name: string; kind: string }[] = [
  { task: "sentiment", name: "Sentiment", kind: "text-classification" },
  { task: "entities", name: "Entities", kind: "token-classification" },
  { task: "summary", name: "Summary", kind: "feature-extraction" },
  { task: "everything", name: "Everything", kind: "text-classification" },
  { task: "generate", name: "Generate", kind: "text-generation" },
];
const EXAMPLES: Record<string, string> = {
  review: "The concert in Geneva was wonderful. The train home was late.",
  news: "Ada Lindqvist of the Göteborg Courier travelled from Stockholm to Berlin on the first night train. The compartment was spotless and the attendant, Jonas Weber, brought tea. At Malmö the heating failed, and the passengers were cold until Hamburg.",
  call: "Can you send the price list? This is unacceptable, I want to cancel. I will send it today.",
};
const CHARS_MAX = 5000;

interface Outcome {
  events: unknown[];
  text: string;
  pieces: number;
  firstMs?: number;
  allMs?: number;
  error?: Error;
  isRunning: boolean;
}
const NONE: Outcome = { events: [], text: "", pieces: 0, isRunning: false };

export function Home() {
  const [version] = useClientVersion();
  const models = useLoad((signal) => client.models({ signal }), [version]);
  const pipelines = useLoad((signal) => client.pipelines.list({ signal }), [version]);
  const [task, setTask] = useState<Task>("sentiment");
  const [text, setText] = useState(EXAMPLES.review!);
  const [model, setModel] = useState("");
  const [outcome, put] = useState(NONE);
  const running = useRef<AbortController | undefined>(undefined);
  useEffect(() => () => running.current?.abort(), []);

  const ofKind = (kind: string): Model[] => (models.value ?? []).filter((one) => one.kind === kind);
  const chosen = TASKS.find((one) => one.task === task)!;
  const candidates = ofKind(chosen.kind);
  const length = [...text].length;

  const run = async (): Promise<void> => {
    running.current?.abort();
    const stop = (running.current = new AbortController());
    const began = performance.now();
    let current: Outcome = { ...NONE, isRunning: true };
    let isScheduled = false;
    const show = (change: Partial<Outcome>): void => {
      current = { ...current, ...change };
      if (isScheduled) return;
      isScheduled = true;
      // Renders at most once per frame, regardless of the rate of events.
      requestAnimationFrame(() => {
        isScheduled = false;
        if (running.current === stop) put(current);
      });
    };
    put(current);
    try {
      for await (const event of stream(task, text, model || undefined, stop.signal)) {
        const firstMs = current.firstMs ?? performance.now() - began;
        if (typeof event === "string") show({ text: current.text + event, pieces: current.pieces + 1, firstMs });
        else show({ events: [...current.events, event].slice(-500), firstMs });
      }
      show({ allMs: performance.now() - began, isRunning: false });
    } catch (error) {
      if (!stop.signal.aborted) show({ error: error as Error, isRunning: false });
    }
  };
  const stop = (): void => {
    running.current?.abort();
    put((old) => ({ ...old, isRunning: false }));
  };

  return (
    <>
      <section class="card" aria-labelledby="try">
        <h1 id="try">Try it</h1>
        <fieldset>
          <legend class="hidden">Task</legend>
          {TASKS.map(({ task: one, name, kind }) => {
            const isMissing = models.value !== undefined && ofKind(kind).length === 0;
            return (
              <label>
                <input type="radio" name="task" value={one} checked={task === one} disabled={isMissing} onChange={() => { setTask(one); setModel(""); put(NONE); }} /> {name}
                {isMissing && <span class="dim"> (no model for it is served)</span>}
              </label>
            );
          })}
        </fieldset>
        <p>
          <textarea aria-label="Text" value={text} onInput={(event) => setText(event.currentTarget.value)} onKeyDown={(event) => (event.ctrlKey || event.metaKey) && event.key === "Enter" && void run()} />
        </p>
        <div class="row">
          <span>
            Examples:{" "}
            {Object.entries(EXAMPLES).map(([name, example]) => (
              <button onClick={() => setText(example)}>{name}</button>
            ))}
          </span>
          {candidates.length > 1 && (task === "sentiment" || task === "entities" || task === "generate") && (
            <label>
              Model{" "}
              <select value={model} onChange={(event) => setModel(event.currentTarget.value)}>
                <option value="">default</option>
                {candidates.map(({ name }) => <option>{name}</option>)}
              </select>
            </label>
          )}
          <button class="main" onClick={() => void run()} disabled={length === 0 || length > CHARS_MAX}>Run <kbd>Ctrl ⏎</kbd></button>
          <button onClick={stop} disabled={!outcome.isRunning}>Stop</button>
          <span class="grow" />
          <span class={length > CHARS_MAX ? "bad" : "dim"}>{length.toLocaleString("en")} of 5,000 characters</span>
        </div>
      </section>
      <div class="split">
        <section aria-labelledby="result">
          <h2 id="result">Result</h2>
          <p class="dim" data-times>
            {outcome.firstMs !== undefined && `${duration(outcome.firstMs)} to the first event`}
            {outcome.allMs !== undefined && `, ${duration(outcome.allMs)} in total`}
            {task === "generate" && outcome.pieces > 0 && tokenCounts(outcome)}
          </p>
          <Trouble error={outcome.error} />
          <Result task={task} text={text} outcome={outcome} />
        </section>
        <Same task={task} text={text} model={model} events={outcome.events} />
      </div>
      <Trouble error={models.error} />
      <p>
        Models:{" "}
        {models.value?.map(({ name, ready }) => (
          <span class="tag">{name} <State word={ready ? "ready" : "loading"} /></span>
        ))}
      </p>
      <p>
        Pipelines:{" "}
        {pipelines.value?.map(({ name, valid }) => (
          <span class="tag"><a href={`/pipelines/${name}`}>{name}</a> {!valid && <State word="failed" />}</span>
        ))}
        {pipelines.value?.length === 0 && <span class="dim">none. A folder of definitions adds them: <code>weir serve --set pipelines.dir=DIR</code></span>}
      </p>
    </>
  );
}

async function* stream(task: Task, text: string, model: string | undefined, signal: AbortSignal): AsyncGenerator<unknown> {
  const given = model === undefined ? {} : { model };
  switch (task) {
    case "sentiment":
      yield (await client.classify(text, { signal, ...given }))[0];
      return;
    case "entities":
      yield (await client.tokens(text, { signal, aggregation_strategy: "simple", ...given }))[0];
      return;
    case "generate":
      for await (const event of client.generateEvents({ messages: [{ role: "user", content: text }], ...given }, { signal })) {
        if (event.type === "error") throw new Error(event.data.message);
        yield event.type === "token" && event.data.index === 0 ? event.data.text : event;
      }
      return;
    default:
      yield* client.process({ text, include_sentiment: task === "everything", include_summary: true, include_entities: task === "everything" }, { signal });
  }
}

/** The number of generated tokens and their rate after the first one. The server counts tokens at the end, until then parts are counted. */
function tokenCounts({ events, pieces, firstMs = 0, allMs }: Outcome): string {
  const usage = (events as any[]).find((event) => event.type === "done" && event.data.usage != null)?.data.usage;
  const tokens: number = usage?.completion_tokens ?? pieces;
  const rate = allMs !== undefined && pieces > 1 && allMs > firstMs ? `, ${number(((tokens - 1) * 1000) / (allMs - firstMs))} tokens/s` : "";
  return `, ${number(tokens)} ${usage === undefined ? "parts" : "tokens"}${rate}`;
}

interface Span {
  start: number;
  end: number;
  label?: string;
  entity_group?: string;
}

function Result({ task, text, outcome: { events, text: generated } }: { task: Task; text: string; outcome: Outcome }) {
  if (task === "generate") return <pre aria-live="off">{generated}</pre>;
  if (events.length === 0) return <p class="dim">No result yet.</p>;
  if (task === "sentiment") {
    return (
      <>
        {(events[0] as { label: string; score: number }[]).map(({ label, score }) => <Meter label={label} value={score} />)}
      </>
    );
  }
  if (task === "entities") return <Marked text={text} spans={events[0] as Span[]} />;
  const last = new Map((events as any[]).map((event) => [event.status as string, event]));
  const [done, chunked, overall, short, found] = ["sentiment_progress", "chunked", "sentiment_complete", "summarization_complete", "entities_complete"].map((status) => last.get(status));
  return (
    <>
      {done !== undefined && <Meter label={`Chunk ${done.chunk_result.chunk}`} value={done.progress} text={`of ${chunked?.chunks}`} tone="live" />}
      {overall !== undefined && (
        <p>
          <b>{overall.overall_sentiment}</b> overall: {overall.positive_chunks} positive, {overall.negative_chunks} negative
        </p>
      )}
      {short !== undefined && <p>{short.summary}</p>}
      {found !== undefined && <Marked text={text} spans={found.entities} />}
      {last.has("completed") && short === undefined && found === undefined && overall === undefined && <p class="dim">The text is too short to be summarized.</p>}
    </>
  );
}

/** Marks spans of a text. Their offsets count code points. */
function Marked({ text, spans }: { text: string; spans: Span[] }) {
  const points = [...text];
  let at = 0;
  const parts = spans.map(({ start, end, label, entity_group: group }) => {
    const before = points.slice(at, start).join("");
    at = end;
    return (
      <>
        {before}
        <mark>{points.slice(start, end).join("")}<sub>{group ?? label}</sub></mark>
      </>
    );
  });
  return (
    <p>
      {parts}
      {points.slice(at).join("")}
    </p>
  );
}

function Same({ task, text, model, events }: { task: Task; text: string; model: string; events: unknown[] }) {
  const [language, choose] = useState<Language>("curl");
  const code = useMemo(() => codeFor(language, task, text, model), [language, task, text, model]);
  return (
    <section aria-labelledby="same">
      <h2 id="same">The same request with</h2>
      <Tabs names={LANGUAGES} chosen={language} choose={(name) => choose(name as Language)} label="Language" />
      <pre tabIndex={0}>{code}</pre>
      <Copy text={code} />
      <details>
        <summary>Raw events ({events.length})</summary>
        <pre tabIndex={0}>{events.map((event) => JSON.stringify(event)).join("\n")}</pre>
      </details>
    </section>
  );
}
