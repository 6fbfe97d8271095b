// The components that react.test.mjs mounts.
import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import {
  useChannel, useExecution, useFileAnalysisProgress, useGeneration, useProcessStream, useTranscript, useWorkflowProgress, WeirProvider,
} from "weir-client/react";
import { createClient } from "weir-client";

const calls = (window.calls = { complete: 0, error: [], connect: 0, disconnect: 0, gap: [], renders: 0 });
window.views = {};

function options(extra) {
  // Every render creates new functions.
  return {
    reconnectInterval: 20,
    onComplete: () => (calls.complete += 1),
    onError: (error) => calls.error.push(error.message),
    onConnect: () => (calls.connect += 1),
    onDisconnect: () => (calls.disconnect += 1),
    onGap: (gap) => calls.gap.push(gap),
    ...extra,
  };
}

const parts = {
  workflow({ id, name = "view", more }) {
    calls.renders += 1;
    const view = (window.views[name] = useWorkflowProgress(id, undefined, options(more)));
    return <p>{view.currentStep} {view.progress}</p>;
  },
  plainWorkflow({ id, name }) {
    const view = (window.views[name] = useWorkflowProgress(id));
    return <p>{view.currentStep}</p>;
  },
  file({ id }) {
    const view = (window.views.view = useFileAnalysisProgress(id, location.origin, options()));
    return <p>{view.analysisStep}</p>;
  },
  channel({ id }) {
    const view = (window.views.view = useChannel("user", id, undefined, options()));
    return <p>{view.count}</p>;
  },
  execution({ id }) {
    const view = (window.views.view = useExecution(id, undefined, options()));
    return <p>{view.state}</p>;
  },
  transcript({ id }) {
    const view = (window.views.view = useTranscript(id, undefined, options()));
    return <p>{view.segments.length}</p>;
  },
  process() {
    const view = (window.views.view = useProcessStream(undefined, { onError: (error) => calls.error.push(error.message) }));
    return <p>{view.status}</p>;
  },
  generation() {
    const view = (window.views.view = useGeneration(undefined, { reconnectInterval: 20, onError: (error) => calls.error.push(error.message) }));
    return <p>{view.text}</p>;
  },
};

const client = createClient();
function App() {
  const [shown, show] = useState([]);
  window.show = show;
  return shown.map(({ part, ...props }) => {
    const Part = parts[part];
    return <Part key={props.name ?? "view"} {...props} />;
  });
}
createRoot(document.getElementById("root")).render(
  <StrictMode>
    <WeirProvider client={client}><App /></WeirProvider>
  </StrictMode>,
);
