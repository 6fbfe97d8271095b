import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { createClient } from "weir-client";
import { WeirProvider } from "weir-client/react";
import { App } from "./App";

createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <WeirProvider client={createClient(location.origin)}>
      <App />
    </WeirProvider>
  </StrictMode>,
);
