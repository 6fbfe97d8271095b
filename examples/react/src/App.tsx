import { useState } from "react";
import { useProcessStream, useWorkflowProgress } from "weir-client/react";

export function App() {
  return (
    <main>
      <Workflow />
      <Text />
    </main>
  );
}

/** Follows a workflow. Workers publish its progress with `POST /stream/publish/workflow/42`. */
function Workflow() {
  const [id, setId] = useState("42");
  const { progress, currentStep, connection, gap, error, isComplete, reconnect } = useWorkflowProgress(id, undefined, {
    onComplete: () => console.log(`workflow ${id} is complete`),
  });
  return (
    <section>
      <h2>Workflow</h2>
      <label>
        Id <input value={id} onChange={(event) => setId(event.target.value)} />
      </label>
      <p>
        <progress max={100} value={progress} /> {currentStep ?? "no event yet"} {isComplete && "complete"} ({connection})
      </p>
      {gap && <p>Events {gap.from} to {gap.to} are no longer stored.</p>}
      {error && (
        <p role="alert">
          {error.message} <button onClick={reconnect}>Reconnect</button>
        </p>
      )}
    </section>
  );
}

/** Processes a text and lists the events of its steps. */
function Text() {
  const [text, setText] = useState("The concert in Geneva was wonderful. The train home was late.");
  const { run, stop, status, events, error } = useProcessStream();
  return (
    <section>
      <h2>Text</h2>
      <textarea aria-label="Text" rows={4} cols={60} value={text} onChange={(event) => setText(event.target.value)} />
      <p>
        <button onClick={() => run({ text, include_entities: true })}>Run</button>
        <button onClick={stop} disabled={status !== "streaming"}>Stop</button> {status}
      </p>
      {error && <p role="alert">{error.message}</p>}
      <ol>
        {events.map((event, index) => (
          <li key={index}>
            <code>{JSON.stringify(event)}</code>
          </li>
        ))}
      </ol>
    </section>
  );
}
