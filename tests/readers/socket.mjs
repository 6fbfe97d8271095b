// node socket.mjs URL [HEADERS]: a WebSocket by a library that is not ours. HEADERS is a JSON object. Each line of the standard input
// is sent as a message; what happens is written as a line of JSON: {"open"}, {"message"}, {"refused"}, {"close","reason"}. A line
// `!close` closes, `!binary` sends bytes, `!cut` destroys the connection, `!pause` and `!resume` are about reading.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(`${process.env.WEIR_TEST_NPM}/index.js`);
const WebSocket = require("ws");
const [url, headers = "{}"] = process.argv.slice(2);
const socket = new WebSocket(url, { headers: JSON.parse(headers), perMessageDeflate: true });
const say = (what) => console.log(JSON.stringify(what));

socket.on("open", () => say({ open: true }));
socket.on("message", (data) => say({ message: JSON.parse(data.toString()) }));
socket.on("unexpected-response", (_, answer) => {
  let body = "";
  answer.on("data", (piece) => (body += piece));
  answer.on("end", () => {
    say({ refused: answer.statusCode, body });
    process.exit(0);
  });
});
socket.on("error", (error) => say({ error: error.message }));
socket.on("close", (code, reason) => {
  say({ close: code, reason: reason.toString() });
  process.exit(0);
});

const commands = {
  "!close": () => socket.close(1000, "done"),
  "!binary": () => socket.send(Buffer.from([1, 2, 3])),
  "!cut": () => socket.terminate(),
  "!pause": () => socket.pause(),
  "!resume": () => socket.resume(),
};
createInterface({ input: process.stdin }).on("line", (line) => (commands[line] ?? (() => socket.send(line)))());
