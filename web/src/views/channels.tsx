import { useState } from "preact/hooks";
import type { ChannelKind } from "../../../clients/typescript/src/events";
import type { ChannelStore } from "../../../clients/typescript/src/store";
import { client, connectionWord, forget, type Options, storeOf, useStore } from "../api";
import { Banners, Copy, Log, Meter, State, Trouble } from "../parts";
import { go } from "../router";

const KINDS: ChannelKind[] = ["workflow", "file", "user", "pipeline", "session", "generation"];
const CHANNELS_MAX = 64;

/** Follows the channels of the query: `?c=workflow:42&c=user:ann`. A channel may have options: `?c=pipeline:ID?steps=a,b%26since=now`. */
export function Channels({ query }: { query: URLSearchParams }) {
  const followed = query.getAll("c").filter((name) => /^[a-z]+:./.test(name)).slice(0, CHANNELS_MAX);
  const [kind, setKind] = useState<ChannelKind>("workflow");
  const [id, setId] = useState("");
  const [from, setFrom] = useState<"start" | "now" | "id">("start");
  const [after, setAfter] = useState("");
  const [events, setEvents] = useState("");
  const [steps, setSteps] = useState("");
  const hasTimes = kind !== "session" && kind !== "generation";
  const [chosen, choose] = useState<string>();
  const shown = chosen !== undefined && followed.includes(chosen) ? chosen : followed[0];
  const show = (names: string[]): void => {
    const next = new URLSearchParams(names.map((name) => ["c", name]));
    go(names.length === 0 ? "/channels" : `/channels?${next}`, true);
  };
  const follow = (): void => {
    if (id.trim() === "") return;
    const options = new URLSearchParams();
    if (list(events) !== undefined) options.set("events", list(events)!.join(","));
    if (list(steps) !== undefined) options.set("steps", list(steps)!.join(","));
    if (from === "now" && hasTimes) options.set("since", "now");
    if (from === "id" && after.trim() !== "") options.set("after", after.trim());
    const name = `${kind}:${id.trim()}${options.size === 0 ? "" : `?${options}`}`;
    // A channel that is followed again begins again.
    if (!followed.includes(name)) forget(name);
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
            <option value="now" disabled={!hasTimes}>now</option>
            <option value="id">after an id</option>
          </select>
        </label>
        {from === "id" && <input aria-label="After the id" value={after} onInput={(event) => setAfter(event.currentTarget.value)} />}
        <label>events <input size={14} placeholder="all" value={events} onInput={(event) => setEvents(event.currentTarget.value)} /></label>
        <label>steps <input size={14} placeholder="all" value={steps} onInput={(event) => setSteps(event.currentTarget.value)} /></label>
        <button class="main" onClick={follow}>Follow</button>
      </div>
      <ul class="row" aria-label="Followed channels">
        {followed.map((name) => (
          <Entry key={name} name={name} isShown={name === shown} show={() => choose(name)} leave={() => { forget(name); show(followed.filter((old) => old !== name)); }} />
        ))}
      </ul>
      {followed.length > 0 && <p class="dim">{followed.length} of {CHANNELS_MAX} on one socket</p>}
      {shown !== undefined && <Channel key={shown} name={shown} />}
    </>
  );
}

/** Words that are separated by commas or spaces; none for an empty text. */
function list(text: string): string[] | undefined {
  const words = text.split(/[\s,]+/).filter(Boolean);
  return words.length === 0 ? undefined : words;
}

const split = (name: string): [ChannelKind, string, string] => {
  const [channel = "", ...query] = name.split("?");
  const colon = channel.indexOf(":");
  return [channel.slice(0, colon) as ChannelKind, channel.slice(colon + 1), query.join("?")];
};

function storeOfName(name: string): ChannelStore {
  const [kind, id, query] = split(name);
  const options = new URLSearchParams(query);
  const given = (key: string): string | undefined => options.get(key) ?? undefined;
  const follow: Options = { events: list(given("events") ?? ""), steps: list(given("steps") ?? ""), since: given("since"), lastEventId: given("after") };
  return storeOf(kind, id, follow, name);
}

function Entry({ name, isShown, show, leave }: { name: string; isShown: boolean; show(): void; leave(): void }) {
  const snapshot = useStore(storeOfName(name));
  return (
    <li class="tag">
      <button aria-pressed={isShown} onClick={show}>{name}</button> <State word={connectionWord(snapshot)} /> {snapshot.count.toLocaleString("en")} events{" "}
      <button onClick={leave} aria-label={`Unfollow ${name}`}>✕</button>
    </li>
  );
}

function Channel({ name }: { name: string }) {
  const [kind, id, query] = split(name);
  const store = storeOfName(name);
  const snapshot = useStore(store);
  return (
    <section aria-label={name}>
      <h2>{name}</h2>
      {(kind === "workflow" || kind === "file") && <Meter label={snapshot.step ?? "–"} value={snapshot.progress / 100} text={`${Math.round(snapshot.progress)} %`} tone="live" />}
      {snapshot.message && <p>{snapshot.message}</p>}
      <Banners snapshot={snapshot} store={store} />
      <Trouble error={snapshot.connection === "failed" ? undefined : (snapshot.failure ?? undefined)} />
      <Log snapshot={snapshot} name={`${kind}-${id}`} />
      <div class="row">
        <Copy label="Copy curl" text={`curl -N '${location.origin}/stream/${kind}/${encodeURIComponent(id)}${curlQuery(query)}'`} />
      </div>
      {(kind === "workflow" || kind === "file" || kind === "user") && <Publish kind={kind} id={id} />}
    </section>
  );
}

/** The parameters of the server among the options of a channel. */
function curlQuery(query: string): string {
  const options = new URLSearchParams(query);
  const after = options.get("after");
  if (after !== null) options.set("last_event_id", after);
  options.delete("after");
  options.delete("since");
  return options.size === 0 ? "" : `?${options}`;
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
