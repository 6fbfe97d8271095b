import react from "@vitejs/plugin-react";
import { defineConfig } from "vite";

// The development server forwards requests to `weir serve`, so the page and the API have one origin. A page of another origin needs
// `auth.cors_origins`.
const server = process.env.WEIR_URL ?? "http://127.0.0.1:8080";
const paths = ["/stream", "/process-stream", "/v1", "/ws"];

export default defineConfig({
  plugins: [react()],
  server: { proxy: Object.fromEntries(paths.map((path) => [path, { target: server, ws: path === "/ws" }])) },
});
