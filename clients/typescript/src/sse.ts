/** A message of a stream of server-sent events. `id` belongs to this message only and is not inherited by later ones. */
export interface SseMessage {
  id: string | undefined;
  event: string | undefined;
  data: string;
}

/** The callbacks of a parser. */
export interface SseHandlers {
  onMessage(message: SseMessage): void;
  /** A `retry:` field, in milliseconds. */
  onRetry?(ms: number): void;
  onComment?(text: string): void;
}

/** A message exceeds the maximum length of the parser. */
export class SseTooLongError extends Error {
  override name = "SseTooLongError";
}

export interface SseParser {
  /** Parses the next characters of the stream, which may be split at any place. */
  feed(chunk: string): void;
}

/** Maximum length of a message, in characters. */
export const SSE_CHARS_MAX = 1 << 20;

/**
 * A parser of server-sent events according to the HTML standard (9.2.6), with bounded memory.
 *
 * @throws {@link SseTooLongError} from `feed` for a message of more than `maxChars` characters.
 */
export function createSseParser(handlers: SseHandlers, maxChars: number = SSE_CHARS_MAX): SseParser {
  let rest = "";
  let isFirst = true;
  let afterReturn = false;
  let chars = 0;
  let data: string[] = [];
  let event: string | undefined;
  let id: string | undefined;

  const line = (text: string): void => {
    if (text === "") {
      if (data.length > 0) handlers.onMessage({ id, event, data: data.join("\n") });
      data = [];
      event = id = undefined;
      chars = 0;
      return;
    }
    chars += text.length;
    if (text[0] === ":") {
      handlers.onComment?.(text.slice(text[1] === " " ? 2 : 1));
      return;
    }
    const colon = text.indexOf(":");
    const name = colon < 0 ? text : text.slice(0, colon);
    const value = colon < 0 ? "" : text.slice(colon + (text[colon + 1] === " " ? 2 : 1));
    if (name === "data") data.push(value);
    else if (name === "event") event = value || undefined;
    else if (name === "id" && !value.includes("\0")) id = value;
    else if (name === "retry" && /^[0-9]+$/.test(value)) handlers.onRetry?.(parseInt(value, 10));
  };

  return {
    feed(chunk) {
      if (chunk === "") return;
      if (isFirst) {
        isFirst = false;
        if (chunk[0] === "\uFEFF") chunk = chunk.slice(1);
      }
      if (afterReturn && chunk !== "") {
        afterReturn = false;
        if (chunk[0] === "\n") chunk = chunk.slice(1);
      }
      const text = rest + chunk;
      let from = 0;
      for (let at = rest.length; at < text.length; at++) {
        const code = text.charCodeAt(at);
        if (code !== 10 && code !== 13) continue;
        line(text.slice(from, at));
        if (code === 13) {
          if (text.charCodeAt(at + 1) === 10) at++;
          else if (at + 1 === text.length) afterReturn = true;
        }
        from = at + 1;
      }
      rest = text.slice(from);
      if (chars + rest.length > maxChars) throw new SseTooLongError(`a message has more than ${maxChars} characters`);
    },
  };
}
