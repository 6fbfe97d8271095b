// node dev.mjs [SERVER] [PORT]: serves the page, which is built from the sources at each reload, and forwards all other requests to a
// running `weir serve`.
import { execFileSync } from "node:child_process";
import { readFileSync } from "node:fs";
import http from "node:http";
import net from "node:net";

const target = new URL(process.argv[2] ?? "http://127.0.0.1:8080");
const port = Number(process.argv[3] ?? 8090);
const out = new URL("node_modules/.page.html", import.meta.url).pathname;
const isPage = ({ method, headers, url }) => method === "GET" && /text\/html/.test(headers.accept ?? "") && !/^\/(v1|stream|openapi)/.test(url);
const server = http.createServer((request, response) => {
  if (isPage(request)) {
    execFileSync(process.execPath, [new URL("build.mjs", import.meta.url).pathname, out]);
    const page = readFileSync(out, "utf8");
    const policy = /Content-Security-Policy: (.*?) -->/.exec(page)[1];
    response.writeHead(200, { "content-type": "text/html; charset=utf-8", "content-security-policy": policy });
    response.end(page);
    return;
  }
  const headers = { ...request.headers, host: target.host };
  if (headers.origin) headers.origin = target.origin;
  const onward = http.request({ host: target.hostname, port: target.port, method: request.method, path: request.url, headers }, (answer) => {
    response.writeHead(answer.statusCode, answer.headers);
    answer.pipe(response);
  });
  onward.on("error", () => response.destroy());
  response.on("close", () => onward.destroy());
  request.pipe(onward);
});
server.on("upgrade", (request, socket, head) => {
  const onward = net.connect(target.port, target.hostname, () => {
    const headers = Object.entries({ ...request.headers, host: target.host, origin: target.origin }).map(([name, value]) => `${name}: ${value}\r\n`);
    onward.write(`GET ${request.url} HTTP/1.1\r\n${headers.join("")}\r\n`);
    onward.write(head);
    socket.pipe(onward).pipe(socket);
  });
  onward.on("error", () => socket.destroy());
  socket.on("error", () => onward.destroy());
});
server.listen(port, "127.0.0.1", () => console.log(`http://127.0.0.1:${server.address().port}`));
