// Follows a channel across broken connections and prints every event once, until the channel is finished.
//
//   node follow.mjs workflow/42 [http://localhost:8080]
//
// Node.js 18 or later, no packages. Browsers have `EventSource` for this.
const [channel, server = "http://localhost:8080"] = process.argv.slice(2);
if (!channel) throw new Error("usage: node follow.mjs KIND/ID [SERVER]");

const RETRY_MS = 1000;
const ATTEMPTS_MAX = 60; // without an event between them
let last; // the id of the latest event
let attempts = 0;

/** Reads one connection to its end. Returns whether the channel is finished. */
async function follow() {
  const headers = { accept: "application/x-ndjson", ...(last && { "last-event-id": last }) };
  const response = await fetch(`${server}/stream/${channel}`, { headers });
  if (response.status === 204) return true;
  if (!response.ok) {
    const error = new Error(`${response.status}: ${await response.text()}`);
    error.isFinal = response.status < 500 && response.status !== 429;
    throw error;
  }
  let rest = "";
  for await (const part of response.body.pipeThrough(new TextDecoderStream())) {
    const lines = (rest + part).split("\n");
    rest = lines.pop();
    for (const line of lines.filter((line) => line !== "")) {
      const event = JSON.parse(line);
      last = event.id ?? last;
      attempts = 0;
      console.log(event.type, JSON.stringify(event.data));
      if (event.type === "disconnected") return !event.data.resumable;
    }
  }
  return false;
}

for (;;) {
  try {
    if (await follow()) break;
  } catch (error) {
    attempts += 1;
    if (error.isFinal || attempts >= ATTEMPTS_MAX) throw error;
    console.error(`${error.message}; trying again`);
  }
  await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
}
