// node read.mjs READER URL COUNT NAME…: reads events of these names with a package from npm, prints each as a line of JSON, and
// exits after COUNT of them. The packages are in WEIR_TEST_NPM.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.WEIR_TEST_NPM}/index.js`);
const [reader, url, count, ...names] = process.argv.slice(2);
let remaining = Number(count);

function print(id, name, data) {
  if (remaining > 0) {
    console.log(JSON.stringify({ id, name, data: JSON.parse(data) }));
    remaining -= 1;
  }
  return remaining > 0;
}

if (reader === "eventsource") {
  // The package reconnects, with the id of the last event.
  const { EventSource } = require("eventsource");
  const source = new EventSource(url);
  for (const name of names) {
    source.addEventListener(name, (event) => {
      if (!print(event.lastEventId, name, event.data)) {
        source.close();
      }
    });
  }
} else {
  // The package is only a parser, so this program reconnects.
  const { createParser } = require("eventsource-parser");
  let last = "";
  while (remaining > 0) {
    const parser = createParser({
      onEvent(event) {
        last = event.id ?? last;
        if (names.includes(event.event)) {
          print(last, event.event, event.data);
        }
      },
    });
    try {
      const response = await fetch(url, { headers: last === "" ? {} : { "last-event-id": last } });
      const decoder = new TextDecoder();
      for await (const piece of response.body) {
        parser.feed(decoder.decode(piece, { stream: true }));
        if (remaining === 0) {
          break;
        }
      }
    } catch {
      // The connection was cut: reconnect.
    }
  }
  process.exit(0);
}
