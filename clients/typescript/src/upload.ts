import { type CallOptions, queryOf, type Sender } from "./send.js";
import type { Uploaded } from "./types.js";

export interface UploadOptions extends CallOptions {
  /** Default: the built-in pipeline `analyze`. */
  pipeline?: string | undefined;
  /** The name of the file. */
  name?: string | undefined;
  /** Reports the bytes that were sent. Browsers call it repeatedly, other runtimes once at the end. */
  onProgress?(sent: number, total: number): void;
}

/** Uploads a file. With `reportsProgress`, an XMLHttpRequest of the browser sends it if the options have `onProgress`. */
export async function upload(send: Sender, reportsProgress: boolean, file: Blob | string, how: UploadOptions = {}): Promise<Uploaded> {
  const { onProgress } = how;
  const name = how.name ?? (typeof File === "function" && file instanceof File ? file.name : undefined);
  const headers = new Headers(how.headers);
  headers.set("content-type", (typeof file === "string" ? "" : file.type) || "text/plain; charset=utf-8");
  const usesXhr = onProgress !== undefined && reportsProgress && typeof XMLHttpRequest === "function";
  const path = `/upload${queryOf({ pipeline: how.pipeline, name })}`;
  const fetch = usesXhr ? fetchWithProgress(onProgress.bind(how)) : undefined;
  const response = await send(path, { body: file, headers, signal: how.signal, fetch });
  if (!usesXhr) {
    const total = typeof file === "string" ? new TextEncoder().encode(file).length : file.size;
    how.onProgress?.(total, total);
  }
  return (await response.json()) as Uploaded;
}

/** A `fetch` that reports the progress of a request's body, which the `fetch` of browsers does not. */
function fetchWithProgress(onProgress: (sent: number, total: number) => void): typeof fetch {
  return (url, { method = "GET", headers, body, signal } = {}) =>
    new Promise((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason);
      const request = new XMLHttpRequest();
      request.open(method, String(url));
      new Headers(headers).forEach((value, name) => request.setRequestHeader(name, value));
      const abort = (): void => request.abort();
      signal?.addEventListener("abort", abort);
      request.upload.onprogress = ({ loaded, total }) => onProgress(loaded, total);
      request.onload = () => resolve(responseOf(request));
      request.onerror = () => reject(new TypeError("the upload failed"));
      request.onabort = () => reject(signal?.reason);
      request.onloadend = () => signal?.removeEventListener("abort", abort);
      request.send(body as XMLHttpRequestBodyInit);
    });
}

function responseOf(request: XMLHttpRequest): Response {
  const headers = new Headers();
  for (const line of request.getAllResponseHeaders().trim().split("\r\n")) {
    const [name = "", ...value] = line.split(": ");
    if (name !== "") headers.append(name, value.join(": "));
  }
  return new Response(request.responseText || null, { status: request.status, headers });
}
