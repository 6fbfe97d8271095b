import { useState } from "preact/hooks";
import { client, useClientVersion, useLoad } from "../api";
import { Trouble } from "../parts";
import { go } from "../router";
import { start } from "../runs";

/** A definition, and a form that starts an execution. */
export function Pipeline({ name }: { name: string }) {
  const [version] = useClientVersion();
  const { value, error } = useLoad((signal) => client.pipelines.get(name, { signal }), [name, version]);
  const [input, setInput] = useState('{"text": "The night train to Vienna was wonderful."}');
  const [refusal, refuse] = useState<Error>();
  const submit = async (): Promise<void> => {
    try {
      go(`/executions/${await start(name, JSON.parse(input))}`);
    } catch (cause) {
      refuse(cause as Error);
    }
  };
  return (
    <>
      <h1>Pipeline {name}</h1>
      <Trouble error={error ?? refusal} />
      <label>
        Input (JSON)
        <textarea class="mono" value={input} onInput={(event) => setInput(event.currentTarget.value)} />
      </label>
      <div class="row">
        <button class="main" onClick={() => void submit()}>Start</button>
        <a href={`/executions`}>Runs</a>
      </div>
      <h2>Definition</h2>
      <Definition value={value} />
    </>
  );
}

export function Definition({ value }: { value: { steps: { id: string; kind: string; after?: string[] }[] } | undefined }) {
  if (value === undefined) return <p class="dim">Loading.</p>;
  return (
    <>
      <table>
        <thead>
          <tr><th>Step</th><th>Kind</th><th>After</th></tr>
        </thead>
        <tbody>
          {value.steps.map(({ id, kind, after = [] }) => (
            <tr><td>{id}</td><td>{kind}</td><td>{after.join(", ") || "–"}</td></tr>
          ))}
        </tbody>
      </table>
      <pre tabIndex={0}>{JSON.stringify(value, null, 2)}</pre>
    </>
  );
}
