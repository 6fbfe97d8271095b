import { useEffect, useState } from "preact/hooks";
import { client, useClientVersion, useLoad } from "../api";
import { clock, State, Trouble } from "../parts";
import { go } from "../router";

const LIMIT = 50;
const STATES = ["", "running", "compensating", "completed", "failed", "cancelled"];

/** The list of the user's executions. */
export function Runs({ query }: { query: URLSearchParams }) {
  const [version] = useClientVersion();
  const [limit, setLimit] = useState(LIMIT);
  const state = query.get("state") ?? "";
  const { value, error, again } = useLoad((signal) => client.executions.list({ signal, limit, ...(state === "" ? {} : { state }) }), [version, state, limit]);
  useEffect(() => {
    const timer = setInterval(() => !document.hidden && again(), 2000);
    return () => clearInterval(timer);
  }, []);
  return (
    <>
      <h1>Runs</h1>
      <div class="row">
        <label>
          State{" "}
          <select data-filter value={state} onChange={(event) => go(event.currentTarget.value === "" ? "/executions" : `/executions?state=${event.currentTarget.value}`, true)}>
            {STATES.map((one) => <option value={one}>{one || "all"}</option>)}
          </select>
        </label>
        <button onClick={() => go(state === "failed" ? "/executions" : "/executions?state=failed", true)} aria-pressed={state === "failed"}>Failed only</button>
      </div>
      <Trouble error={error} />
      <table>
        <thead>
          <tr><th>Execution</th><th>Pipeline</th><th>State</th><th class="num">Errors</th><th>Started</th></tr>
        </thead>
        <tbody>
          {value?.map((one) => (
            <tr key={one.execution_id}>
              <td class="mono"><a href={`/executions/${one.execution_id}`}>{one.execution_id}</a></td>
              <td><a href={`/pipelines/${one.pipeline}`}>{one.pipeline}</a></td>
              <td><State word={one.state} /></td>
              <td class="num">{one.errors ?? "–"}</td>
              <td>{one.started_at.slice(0, 10)} {clock(one.started_at)}</td>
            </tr>
          ))}
        </tbody>
      </table>
      {value?.length === 0 && <p class="dim">No executions. Start a pipeline on its page, or with <code>POST /pipelines/NAME</code>.</p>}
      {(value?.length ?? 0) >= limit && limit < 500 && <button onClick={() => setLimit(500)}>Load older</button>}
    </>
  );
}
