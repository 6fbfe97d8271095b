/** Maximum length of a line, in characters. */
export const LINE_CHARS_MAX = 1 << 22;

/**
 * The values of an NDJSON stream, one for each line; blank lines are skipped. Ending the iteration cancels the stream.
 *
 * @throws SyntaxError for a line that is not JSON, Error for a line of more than `maxChars` characters.
 */
export async function* parseNdjson<T = unknown>(
  stream: ReadableStream<Uint8Array>,
  maxChars: number = LINE_CHARS_MAX,
): AsyncGenerator<T, void, void> {
  let rest = "";
  for await (const text of decode(stream)) {
    const lines = (rest + text).split("\n");
    rest = lines.pop() ?? "";
    if (rest.length > maxChars) throw new Error(`a line has more than ${maxChars} characters`);
    for (const line of lines) if (line.trim() !== "") yield JSON.parse(line) as T;
  }
  if (rest.trim() !== "") yield JSON.parse(rest) as T;
}

/** Decodes a UTF-8 stream, in parts as they arrive. It uses the reader of the stream, because not all browsers can iterate streams. */
export async function* decode(stream: ReadableStream<Uint8Array>): AsyncGenerator<string, void, void> {
  const decoder = new TextDecoder();
  const reader = stream.getReader();
  let isDone = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      isDone = done;
      const text = done ? decoder.decode() : decoder.decode(value, { stream: true });
      if (text !== "") yield text;
      if (done) return;
    }
  } finally {
    if (!isDone) await reader.cancel().catch(() => undefined);
  }
}
