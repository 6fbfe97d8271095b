import { useState } from "preact/hooks";
import type { ChannelKind } from "../../../clients/typescript/src/events";
import { client, connectionWord, forget, storeOf, useStore } from "../api";
import { Banners, Copy, Log, Meter, State, Trouble } from "../parts";
import { go } from "../router";

const KINDS: ChannelKind[] = ["workflow", "file", "user", "pipeline", "session", "generation"];
const CHANNELS_MAX = 64;

/** Follows the channels of the query: `?c=workflow:42&c=user:ann`. */
export function Channels({ query }: { query: URLSearchParams }) {
  const followed = query.getAll("c").filter((name) => /^[a-z]+:./.test(name)).slice(0, CHANNELS_MAX);
  const [kind, setKind] = useState<ChannelKind>("workflow");
  const [id, setId] = useState("");
  const [from, setFrom] = useState<"start" | "id">("start");
  const [after, setAfter] = useState("");
  const [chosen, choose] = useState<string>();
  const shown = chosen !== undefined && followed.includes(chosen) ? chosen : followed[0];
  const show = (names: string[]): void => {
    const next = new URLSearchParams(names.map((name) => ["c", name]));
    go(names.length === 0 ? "/channels" : `/channels?${next}`, true);
  };
  const follow = (): void => {
    const name = `${kind}:${id.trim()}`;
    if (id.trim() === "") return;
    if (from === "id") {
      forget(kind, id.trim());
      storeOf(kind, id.trim(), { lastEventId: after.trim() });
    }
    choose(name);
    show([...followed.filter((old) => old !== name), name]);
  };
  return (
    <>
      <h1>Channels</h1>
      <div class="row">
        <select aria-label="Kind" value={kind} onChange={(event) => setKind(event.currentTarget.value as ChannelKind)}>
          {KINDS.map((one) => <option>{one}</option>)}
        </select>
        <input aria-label="Id" placeholder="42" value={id} onInput={(event) => setId(event.currentTarget.value)} onKeyDown={(event) => event.key === "Enter" && follow()} />
        <label>
          from{" "}
          <select value={from} onChange={(event) => setFrom(event.currentTarget.value as "start")}>
            <option value="start">the start</option>
            <option value="id">after an id</option>
          </select>
        </label>
        {from === "id" && <input aria-label="After the id" value={after} onInput={(event) => setAfter(event.currentTarget.value)} />}
        <button class="main" onClick={follow}>Follow</button>
      </div>
      <ul class="row" aria-label="Followed channels">
        {followed.map((name) => (
          <Entry key={name} name={name} isShown={name === shown} show={() => choose(name)} leave={() => { forget(...split(name)); show(followed.filter((old) => old !== name)); }} />
        ))}
      </ul>
      {followed.length > 0 && <p class="dim">{followed.length} of {CHANNELS_MAX} on one socket</p>}
      {shown !== undefined && <Channel key={shown} name={shown} />}
    </>
  );
}

const split = (name: string): [ChannelKind, string] => [name.slice(0, name.indexOf(":")) as ChannelKind, name.slice(name.indexOf(":") + 1)];

function Entry({ name, isShown, show, leave }: { name: string; isShown: boolean; show(): void; leave(): void }) {
  const snapshot = useStore(storeOf(...split(name)));
  return (
    <li class="tag">
      <button aria-pressed={isShown} onClick={show}>{name}</button> <State word={connectionWord(snapshot)} /> {snapshot.count.toLocaleString("en")} events{" "}
      <button onClick={leave} aria-label={`Unfollow ${name}`}>✕</button>
    </li>
  );
}

function Channel({ name }: { name: string }) {
  const [kind, id] = split(name);
  const store = storeOf(kind, id);
  const snapshot = useStore(store);
  return (
    <section aria-label={name}>
      <h2>{name}</h2>
      {(kind === "workflow" || kind === "file") && <Meter label={snapshot.step ?? "–"} value={snapshot.progress / 100} text={`${Math.round(snapshot.progress)} %`} tone="live" />}
      {snapshot.message && <p>{snapshot.message}</p>}
      <Banners snapshot={snapshot} store={store} />
      <Trouble error={snapshot.connection === "failed" ? undefined : (snapshot.failure ?? undefined)} />
      <Log snapshot={snapshot} name={name.replace(":", "-")} />
      <div class="row">
        <Copy label="Copy curl" text={`curl -N ${location.origin}/stream/${kind}/${encodeURIComponent(id)}`} />
      </div>
      {(kind === "workflow" || kind === "file" || kind === "user") && <Publish kind={kind} id={id} />}
    </section>
  );
}

function Publish({ kind, id }: { kind: "workflow" | "file" | "user"; id: string }) {
  const [step, setStep] = useState("parse");
  const [progress, setProgress] = useState("40");
  const [message, setMessage] = useState("reading");
  const [user, setUser] = useState("");
  const [last, setLast] = useState(false);
  const [answer, say] = useState<string | Error>("");
  const publish = async (): Promise<void> => {
    try {
      const report = { step, progress: Number(progress), message, ...(user ? { user_id: user } : {}), ...(last ? { last } : {}) };
      const published =
        kind === "user"
          ? await client.publish("user", id, { message })
          : await client.publish(kind === "file" ? "analysis" : "workflow", id, report);
      say(`published as ${published.id}`);
    } catch (error) {
      say(error as Error);
    }
  };
  return (
    <details open>
      <summary>Publish here</summary>
      <div class="row">
        {kind !== "user" && (
          <>
            <label>step <input size={8} value={step} onInput={(event) => setStep(event.currentTarget.value)} /></label>
            <label>progress <input type="number" min={0} max={100} value={progress} onInput={(event) => setProgress(event.currentTarget.value)} /></label>
          </>
        )}
        <label>message <input value={message} onInput={(event) => setMessage(event.currentTarget.value)} /></label>
        {kind !== "user" && (
          <>
            <label>user_id <input size={8} value={user} onInput={(event) => setUser(event.currentTarget.value)} /></label>
            <label><input type="checkbox" checked={last} onChange={(event) => setLast(event.currentTarget.checked)} /> last</label>
          </>
        )}
        <button onClick={() => void publish()}>Publish</button>
        {typeof answer === "string" ? <span class="dim" aria-live="polite">{answer}</span> : <Trouble error={answer} />}
      </div>
    </details>
  );
}
