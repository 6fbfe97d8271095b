import { useState } from "preact/hooks";
import type { Uploaded } from "../../../clients/typescript/src/index";
import { client, connectionWord, useFollow } from "../api";
import { Banners, download, Log, Meter, number, State, Tabs, Trouble } from "../parts";

const BYTES_MAX = 256 * 1024;
const EXAMPLE = `The new night train from Stockholm to Berlin was wonderful for the first three hours. The compartment was spotless, and the attendant, Jonas Weber, brought tea and cardamom buns.

At Malmö the heating failed. The passengers were cold until Hamburg, and nobody from the railway said a word. Marta Lindqvist of the Göteborg Courier missed her connection.

In Berlin the company apologized, and paid for breakfast at the station. It was delicious.`;

/** Uploads a file and follows its analysis. A button closes the connection to show that it resumes. */
export function Demo() {
  const [uploaded, setUploaded] = useState<Uploaded>();
  const [sent, setSent] = useState<{ name: string; sent: number; total: number }>();
  const [error, fail] = useState<Error>();
  const [isOver, over] = useState(false);
  const [cuts, setCuts] = useState<string[]>([]);
  const [file, store] = useFollow("file", uploaded?.file_id ?? null);
  const [workflow] = useFollow("workflow", uploaded?.workflow_id ?? null);

  const upload = async (blob: Blob, name: string): Promise<void> => {
    fail(undefined);
    setUploaded(undefined);
    setCuts([]);
    if (blob.size > BYTES_MAX) return fail(new Error(`${name} has ${number(blob.size)} bytes; the limit is ${number(BYTES_MAX)} bytes`));
    setSent({ name, sent: 0, total: blob.size });
    try {
      setUploaded(await client.upload(blob, { name, onProgress: (bytes, total) => setSent({ name, sent: bytes, total }) }));
    } catch (cause) {
      fail(cause as Error);
    }
  };
  const cut = (): void => {
    const after = file.lastEventId ?? "the start";
    setCuts((old) => [...old, `cut after ${after}, with ${file.count} events`]);
    store?.stop();
    setTimeout(() => store?.reconnect(), 1000);
  };
  return (
    <>
      <h1>Streaming</h1>
      <div
        class={`drop${isOver ? " over" : ""}`}
        onDragOver={(event) => { event.preventDefault(); over(true); }}
        onDragLeave={() => over(false)}
        onDrop={(event) => {
          event.preventDefault();
          over(false);
          const dropped = event.dataTransfer?.files[0];
          if (dropped) void upload(dropped, dropped.name);
        }}
      >
        Drop a text file here, or{" "}
        <label>
          choose one <input type="file" accept=".txt,.md,.srt,.vtt,.jsonl,text/plain" onChange={(event) => { const [chosen] = event.currentTarget.files ?? []; if (chosen) void upload(chosen, chosen.name); }} />
        </label>{" "}
        or <button onClick={() => void upload(new Blob([EXAMPLE], { type: "text/plain" }), "night-train.txt")}>use the example night-train.txt</button>
        <p class="dim">At most 256 KiB</p>
      </div>
      <Trouble error={error} />
      {sent && <Meter label="Upload" value={sent.total === 0 ? 1 : sent.sent / sent.total} text={`${number(sent.total)} B`} />}
      {uploaded && (
        <>
          <Meter label="Analysis" value={file.progress / 100} text={`${Math.round(file.progress)} %`} tone="live" />
          <div class="row">
            <span data-step>{file.step ?? "not started"} {file.message ?? ""}</span>
            <span class="grow" />
            <State word={connectionWord(file)} />
            <button onClick={() => store?.reconnect()} disabled={file.isFinished}>Reconnect</button>
            <button onClick={cut} disabled={file.isFinished}>Simulate a cut</button>
          </div>
          <p class="dim">
            file <a href={`/channels?c=file:${uploaded.file_id}`}>{uploaded.file_id}</a>, workflow <a href={`/channels?c=workflow:${uploaded.workflow_id}`}>{uploaded.workflow_id}</a>
            {uploaded.execution_id && <>, run <a href={`/executions/${uploaded.execution_id}`}>{uploaded.execution_id}</a></>}; workflow at {Math.round(workflow.progress)} %
          </p>
          {cuts.map((line) => <p class="mono">{line}; resumed at the next event</p>)}
          <Banners snapshot={file} store={store} />
          <h2>Result</h2>
          <Outcome result={file.result} failure={file.failure} />
          <h2>Event log</h2>
          <Log snapshot={file} name={uploaded.file_id} />
          <Code id={uploaded.file_id} />
        </>
      )}
    </>
  );
}

function Outcome({ result, failure }: { result: any; failure: Error | null }) {
  if (failure !== null) return <p class="bad">{failure.message}</p>;
  if (result == null) return <p class="dim">No result yet.</p>;
  return (
    <>
      <p data-result>
        {result.sentiment && <b>{result.sentiment} </b>}
        {result.entities && `${result.entities.length} entities `}
        {result.summary}
      </p>
      <button onClick={() => download("analysis.json", JSON.stringify(result, null, 2))}>Download JSON</button>
    </>
  );
}

const LANGUAGES = ["React hooks", "JavaScript"] as const;
function Code({ id }: { id: string }) {
  const [language, choose] = useState<string>(LANGUAGES[0]);
  const code =
    language === "JavaScript"
      ? `const events = new EventSource("${location.origin}/stream/file/${id}");
events.addEventListener("analysis_progress", ({ data }) => console.log(JSON.parse(data).progress));`
      : `import { useFileAnalysisProgress } from "weir-client/react";

const { progress, analysisStep, result, isConnected } = useFileAnalysisProgress("${id}", "${location.origin}");`;
  return (
    <section aria-label="This page in code">
      <h2>This page in code</h2>
      <Tabs names={LANGUAGES} chosen={language} choose={choose} label="Code" />
      <pre tabIndex={0}>{code}</pre>
    </section>
  );
}
