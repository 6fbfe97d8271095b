// node socket.mjs URL [HEADERS]: a WebSocket of the package `ws`. HEADERS is a JSON object. Each line of the standard input is sent as a
// message; each event is printed as a line of JSON: {"open"}, {"message"}, {"refused"}, {"error"}, {"close","reason"}. The line `!close`
// closes the WebSocket, `!binary` sends bytes, `!cut` destroys the connection, `!pause` and `!resume` stop and start reading.
import { createRequire } from "node:module";
import { createInterface } from "node:readline";

const require = createRequire(`${process.env.WEIR_TEST_NPM}/index.js`);
const WebSocket = require("ws");
const [url, headers = "{}"] = process.argv.slice(2);
const socket = new WebSocket(url, { headers: JSON.parse(headers), perMessageDeflate: true });
const print = (what) => console.log(JSON.stringify(what));

socket.on("open", () => print({ open: true }));
socket.on("message", (data) => print({ message: JSON.parse(data.toString()) }));
socket.on("unexpected-response", (_, response) => {
  let body = "";
  response.on("data", (piece) => (body += piece));
  response.on("end", () => {
    print({ refused: response.statusCode, body });
    process.exit(0);
  });
});
socket.on("error", (error) => print({ error: error.message }));
socket.on("close", (code, reason) => {
  print({ close: code, reason: reason.toString() });
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
