// The page: its header, its routes and its keys.
import { render } from "preact";
import { useEffect, useReducer, useRef, useState } from "preact/hooks";
import { client, hasToken, setToken, useClientVersion, useLoad, useOverall } from "./api";
import { State } from "./parts";
import { go, useLocation } from "./router";
import { Channels } from "./views/channels";
import { Demo } from "./views/demo";
import { Home } from "./views/home";
import { Pipeline } from "./views/pipeline";
import { Run } from "./views/run";
import { Runs } from "./views/runs";
import { SessionView } from "./views/session";
import { Server } from "./views/server";

const PLACES = [
  ["h", "/", "Home"],
  ["r", "/executions", "Runs"],
  ["c", "/channels", "Channels"],
  ["s", "/server", "Server"],
  ["d", "/demo/streaming", "Demo"],
] as const;

function View({ path, query }: { path: string; query: URLSearchParams }) {
  const [, first, second, ...rest] = path.split("/").map(decodeURIComponent);
  if (path === "/") return <Home />;
  if (first === "executions" && second) return <Run key={second} id={second} />;
  if (first === "executions") return <Runs query={query} />;
  if (first === "channels") return <Channels query={query} />;
  if (first === "sessions" && second) return <SessionView key={second} id={second} />;
  if (first === "pipelines" && second) return <Pipeline key={second} name={second} />;
  if (first === "server") return <Server />;
  if (first === "demo" && second === "streaming" && rest.length === 0) return <Demo />;
  return (
    <p>
      There is nothing at <code>{path}</code>. <a href="/">Home</a>
    </p>
  );
}

function App() {
  const { path, query } = useLocation();
  const [version] = useClientVersion();
  const index = useLoad((signal) => client.index({ signal }), [version]);
  const word = useOverall();
  const [helps, help] = useState(false);
  useKeys(help);
  useEffect(() => {
    const place = PLACES.find(([, at]) => at !== "/" && path.startsWith(at))?.[2] ?? "";
    document.title = `${word === "reconnecting" || word === "failed" ? `(${word}) ` : ""}${place ? `${place} · ` : ""}weir`;
  }, [path, word]);
  return (
    <>
      <header>
        <b>weir {index.value?.version ?? ""}</b>
        <nav aria-label="Views">
          {PLACES.map(([, at, name]) => (
            <a href={at} aria-current={(at === "/" ? path === "/" : path.startsWith(at)) ? "page" : undefined}>
              {name}
            </a>
          ))}
        </nav>
        <span aria-live="polite" data-overall>
          <State word={word} />
        </span>
        <Token />
        <Theme />
        <button onClick={() => help(true)} aria-label="Keys">?</button>
      </header>
      <main>
        <View path={path} query={query} />
      </main>
      {helps && <Help close={() => help(false)} />}
    </>
  );
}

function Theme() {
  const [theme, choose] = useState(localStorage.getItem("weir-theme") ?? "auto");
  useEffect(() => {
    if (theme === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = theme;
    localStorage.setItem("weir-theme", theme);
  }, [theme]);
  return (
    <select aria-label="Theme" value={theme} onChange={(event) => choose(event.currentTarget.value)}>
      <option>auto</option>
      <option>light</option>
      <option>dark</option>
    </select>
  );
}

/** A form for the token of servers with authentication. It is stored for this tab only. */
function Token() {
  const [isOpen, open] = useState(false);
  const [text, type] = useState("");
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => input.current?.focus(), [isOpen]);
  if (!isOpen) return <button onClick={() => open(true)}>{hasToken() ? "Token set" : "Token"}</button>;
  const set = (): void => {
    setToken(text.trim());
    open(false);
    type("");
  };
  return (
    <span class="row">
      <label>
        Token <input type="password" ref={input} value={text} onInput={(event) => type(event.currentTarget.value)} onKeyDown={(event) => event.key === "Enter" && set()} />
      </label>
      <button onClick={set}>{text === "" ? "Remove" : "Set"}</button>
    </span>
  );
}

function useKeys(help: (isOpen: boolean) => void): void {
  const [, render] = useReducer((count: number) => count + 1, 0);
  useEffect(() => {
    let afterG = 0;
    const press = (event: KeyboardEvent): void => {
      const target = event.target as HTMLElement;
      if (event.key === "Escape") {
        help(false);
        target.blur?.();
        return;
      }
      if (event.ctrlKey || event.metaKey || event.altKey || /^(INPUT|TEXTAREA|SELECT)$/.test(target.tagName)) return;
      const place = PLACES.find(([key]) => key === event.key);
      if (Date.now() - afterG < 1500 && place !== undefined) {
        afterG = 0;
        go(place[1]);
      } else if (event.key === "g") afterG = Date.now();
      else if (event.key === "?") help(true);
      else if (event.key === "/") {
        event.preventDefault();
        document.querySelector<HTMLElement>("[data-filter]")?.focus();
      } else if (event.key === "f" || event.key === "r") dispatchEvent(new CustomEvent("weir-key", { detail: event.key }));
    };
    addEventListener("keydown", press);
    render(0);
    return () => removeEventListener("keydown", press);
  }, []);
}

function Help({ close }: { close(): void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => dialog.current!.showModal(), []);
  const keys = [...PLACES.map(([key, , name]) => [`g ${key}`, name]), ["/", "filter"], ["f", "follow the end of the log"], ["r", "reconnect"], ["Esc", "close"], ["?", "this list"]];
  return (
    <dialog ref={dialog} onClose={close} aria-label="Keys">
      <h1>Keys</h1>
      <table>
        <tbody>
          {keys.map(([key, what]) => (
            <tr>
              <th scope="row"><kbd>{key}</kbd></th>
              <td>{what}</td>
            </tr>
          ))}
        </tbody>
      </table>
      <p>
        <button onClick={() => dialog.current!.close()}>Close</button>
      </p>
    </dialog>
  );
}

render(<App />, document.getElementById("app")!);
