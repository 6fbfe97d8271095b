import { useEffect, useState } from "preact/hooks";
import { client, connectionWord, useClientVersion, useFollow, useLoad } from "../api";
import { Banners, Copy, number, State, Trouble } from "../parts";

/** A stored transcript session. */
export function SessionView({ id }: { id: string }) {
  const [version] = useClientVersion();
  const session = client.sessions.open(id);
  const [snapshot, store] = useFollow("session", id);
  const { segments, partial, keywords, summary, isComplete } = snapshot;
  const state = useLoad((signal) => session.state({ signal }), [id, version, segments.length, isComplete]);
  const [speaker, setSpeaker] = useState("");
  const [intent, setIntent] = useState("");
  const [onlyRisks, setOnlyRisks] = useState(false);
  const [refusal, refuse] = useState<Error>();
  const [context, setContext] = useState<string>();
  useEffect(() => {
    const key = (event: Event): void => {
      if ((event as CustomEvent).detail === "r") store?.reconnect();
    };
    addEventListener("weir-key", key);
    return () => removeEventListener("weir-key", key);
  }, [store]);

  const speakers = [...new Set(segments.map(({ segment }) => segment.speaker_id ?? ""))];
  const intents = [...new Set(segments.map(({ semantic }) => semantic?.intent ?? "").filter(Boolean))];
  const shown = segments.filter(
    ({ segment, semantic }) =>
      (speaker === "" || (segment.speaker_id ?? "") === speaker) &&
      (intent === "" || semantic?.intent === intent) &&
      (!onlyRisks || (semantic?.risk_tags.length ?? 0) > 0),
  );
  const metrics = state.value?.metrics;
  return (
    <>
      <h1>
        Session <span class="mono">{id}</span> <Copy text={id} />
      </h1>
      <div class="row">
        <State word={isComplete ? "finished" : connectionWord(snapshot)} />
        {metrics && (
          <span class="dim">
            {number(metrics.chunks_ingested)} chunks, {number(metrics.segments_finalized)} segments, {number(metrics.chunks_per_sec)} chunks/s, mean {number(metrics.latency_ms_mean)} ms
          </span>
        )}
        <span class="grow" />
        <button onClick={() => session.end().catch(refuse)} disabled={isComplete}>End</button>
        <button onClick={() => session.context().then(setContext, refuse)}>Context for an LLM</button>
      </div>
      <Trouble error={state.error ?? refusal} />
      <Banners snapshot={snapshot} store={store} />
      {context !== undefined && (
        <section class="card" aria-label="Context">
          <pre tabIndex={0}>{context}</pre>
          <Copy text={context} /> <button onClick={() => setContext(undefined)}>Close</button>
        </section>
      )}
      <div class="row">
        <Choice label="Speaker" values={speakers} value={speaker} choose={setSpeaker} />
        <Choice label="Intent" values={intents} value={intent} choose={setIntent} />
        <label><input type="checkbox" checked={onlyRisks} onChange={(event) => setOnlyRisks(event.currentTarget.checked)} /> risks only</label>
        <span class="dim">Keywords: {Object.entries(keywords).map(([word, count]) => `${word} ${count}`).join(", ") || "none"}</span>
      </div>
      {summary && <p>Summary: {summary}</p>}
      <ol class="lines" aria-label="Transcript">
        {shown.slice(-500).map(({ segment, segment_id: number, semantic, sentiment, workflow }) => (
          <li key={number}>
            <span class="dim mono">{time(segment.start)}</span>
            <Speaker name={segment.speaker_id} all={speakers} />
            <span>
              {segment.text}
              {semantic?.keywords.map((word) => <span class="tag">#{word}</span>)}
              {semantic?.risk_tags.map((risk) => <span class="tag warn">⚠ {risk}</span>)}
            </span>
            <span class="dim">
              {sentiment && `${sentiment.label} ${sentiment.score.toFixed(2)} `}
              {workflow && `→ ${workflow}`}
            </span>
          </li>
        ))}
        {partial !== null && (
          <li class="partial">
            <span class="mono">{time(partial.start)}</span>
            <Speaker name={partial.speaker_id} all={speakers} />
            <span>{partial.text}</span>
            <span>partial</span>
          </li>
        )}
      </ol>
      {!isComplete && <Say feed={(text, who) => session.push(nextChunk(partial?.end ?? segments.at(-1)?.segment.end ?? 0, text, who)).then(() => undefined, refuse)} />}
    </>
  );
}

const nextChunk = (end: number, text: string, who: string) => ({ start: end, end: end + 1, text, ...(who ? { speaker_id: who } : {}) });
const time = (seconds: number): string => `${String(Math.floor(seconds / 60)).padStart(2, "0")}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;

function Choice({ label, values, value, choose }: { label: string; values: string[]; value: string; choose(value: string): void }) {
  return (
    <label>
      {label}{" "}
      <select value={value} onChange={(event) => choose(event.currentTarget.value)}>
        <option value="">all</option>
        {values.filter(Boolean).map((one) => <option>{one}</option>)}
      </select>
    </label>
  );
}

/** A speaker as letters with a colour and a border style, so that colour is not the only distinction. */
function Speaker({ name, all }: { name: string | null; all: string[] }) {
  const at = Math.max(0, all.indexOf(name ?? ""));
  return (
    <span>
      <span class={`speaker s${at % 8}`} title={name ?? "unknown"}>{(name ?? "?").slice(0, 2)}</span>
    </span>
  );
}

function Say({ feed }: { feed(text: string, who: string): Promise<void> }) {
  const [text, setText] = useState("");
  const [who, setWho] = useState("ann");
  const say = (): void => {
    if (text.trim() !== "") void feed(text, who);
    setText("");
  };
  return (
    <div class="row">
      <label>Speaker <input size={8} value={who} onInput={(event) => setWho(event.currentTarget.value)} /></label>
      <input class="grow" aria-label="Text" placeholder="Text of a chunk" value={text} onInput={(event) => setText(event.currentTarget.value)} onKeyDown={(event) => event.key === "Enter" && say()} />
      <button onClick={say}>Send chunk</button>
    </div>
  );
}
