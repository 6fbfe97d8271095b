import type { components } from "./openapi.js";

export type FieldError = components["schemas"]["FieldError"];
export type Problem = components["schemas"]["Problem"];

/** The properties of a {@link WeirError} besides its message. */
export interface WeirErrorInit {
  status: number;
  code: string;
  retryable?: boolean;
  retryAfterMs?: number | undefined;
  requestId?: string | undefined;
  errors?: FieldError[] | undefined;
  cause?: unknown;
}

/** An error response, or a failed connection. */
export class WeirError extends Error {
  override name = "WeirError";
  /** The HTTP status; 0 if there was no response. */
  readonly status: number;
  /** A constant for programs, such as `not_found`. */
  readonly code: string;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly requestId: string | undefined;
  /** The invalid fields of the request. */
  readonly errors: FieldError[] | undefined;

  constructor(message: string, init: WeirErrorInit) {
    super(message, init.cause === undefined ? undefined : { cause: init.cause });
    this.status = init.status;
    this.code = init.code;
    this.retryable = init.retryable ?? false;
    this.retryAfterMs = init.retryAfterMs;
    this.requestId = init.requestId;
    this.errors = init.errors;
  }
}

/** Reads the body of a response whose status is not 2xx, and returns its error. */
export async function errorOf(response: Response): Promise<WeirError> {
  const problem = (await response.json().catch(() => ({}))) as Partial<Problem> & { error?: string };
  const fields = problem.errors?.map((field) => field.message).join("; ");
  const detail = problem.detail ?? problem.title ?? problem.error ?? `HTTP ${response.status} ${response.statusText}`.trim();
  return new WeirError(fields && !detail.includes(fields) ? `${detail}: ${fields}` : detail, {
    status: response.status,
    code: problem.code ?? `http_${response.status}`,
    retryable: problem.retryable ?? (response.status >= 500 || response.status === 429),
    retryAfterMs: problem.retry_after_ms ?? retryAfterMs(response.headers),
    requestId: problem.request_id ?? response.headers.get("x-request-id") ?? undefined,
    errors: problem.errors ?? undefined,
  });
}

/** The delay of a `Retry-After` header in milliseconds: its seconds, or the time until its date (RFC 9110, section 10.2.3). */
function retryAfterMs(headers: Headers): number | undefined {
  const text = headers.get("retry-after")?.trim() ?? "";
  if (/^\d+(\.\d+)?$/.test(text)) return Number(text) * 1000;
  const date = Date.parse(text);
  if (Number.isNaN(date)) return undefined;
  // The clock of the server, if the response has it, because the one of the client may differ.
  const now = Date.parse(headers.get("date") ?? "");
  return Math.max(0, date - (Number.isNaN(now) ? Date.now() : now));
}
