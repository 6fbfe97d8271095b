import type { components } from "./openapi.js";

export type FieldError = components["schemas"]["FieldError"];
export type Problem = components["schemas"]["Problem"];

/** What a {@link WeirError} has beside its message. */
export interface WeirErrorInit {
  status: number;
  code: string;
  retryable?: boolean;
  retryAfterMs?: number | undefined;
  requestId?: string | undefined;
  errors?: FieldError[] | undefined;
  cause?: unknown;
}

/** A request that the server refused or could not answer. */
export class WeirError extends Error {
  override name = "WeirError";
  /** The HTTP status; 0 where there was none. */
  readonly status: number;
  /** A constant for programs, such as `not_found`. */
  readonly code: string;
  /** Whether the same request may succeed later. */
  readonly retryable: boolean;
  readonly retryAfterMs: number | undefined;
  readonly requestId: string | undefined;
  /** The fields that are wrong. */
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

/** The error of a response whose status is not 2xx; reads its body. */
export async function errorOf(response: Response): Promise<WeirError> {
  const problem = (await response.json().catch(() => ({}))) as Partial<Problem> & { error?: string };
  const after = Number(response.headers.get("retry-after") ?? NaN);
  const fields = problem.errors?.map((field) => field.message).join("; ");
  const detail = problem.detail ?? problem.title ?? problem.error ?? `HTTP ${response.status} ${response.statusText}`.trim();
  return new WeirError(fields && !detail.includes(fields) ? `${detail}: ${fields}` : detail, {
    status: response.status,
    code: problem.code ?? `http_${response.status}`,
    retryable: problem.retryable ?? (response.status >= 500 || response.status === 429),
    retryAfterMs: problem.retry_after_ms ?? (Number.isFinite(after) ? after * 1000 : undefined),
    requestId: problem.request_id ?? response.headers.get("x-request-id") ?? undefined,
    errors: problem.errors ?? undefined,
  });
}
