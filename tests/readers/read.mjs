// node read.mjs READER URL COUNT NAME…: reads events of these names with a reader from npm, writes each as a line of JSON, and
// ends after COUNT of them. The packages are in WEIR_TEST_NPM.
import { createRequire } from "node:module";

const require = createRequire(`${process.env.WEIR_TEST_NPM}/index.js`);
const [reader, url, count, ...names] = process.argv.slice(2);
let left = Number(count);

function take(id, name, data) {
  if (left > 0) {
    console.log(JSON.stringify({ id, name, data: JSON.parse(data) }));
    left -= 1;
  }
  return left > 0;
}

if (reader === "eventsource") {
  // It connects again by itself, with the id of the last event.
  const { EventSource } = require("eventsource");
  const source = new EventSource(url);
  for (const name of names) {
    source.addEventListener(name, (event) => {
      if (!take(event.lastEventId, name, event.data)) {
        source.close();
      }
    });
  }
} else {
  // A parser alone: the connecting again is done here.
  const { createParser } = require("eventsource-parser");
  let last = "";
  while (left > 0) {
    const parser = createParser({
      onEvent(event) {
        last = event.id ?? last;
        if (names.includes(event.event)) {
          take(last, event.event, event.data);
        }
      },
    });
    try {
      const answer = await fetch(url, { headers: last === "" ? {} : { "last-event-id": last } });
      const decoder = new TextDecoder();
      for await (const piece of answer.body) {
        parser.feed(decoder.decode(piece, { stream: true }));
        if (left === 0) {
          break;
        }
      }
    } catch {
      // It was cut: again.
    }
  }
  process.exit(0);
}
