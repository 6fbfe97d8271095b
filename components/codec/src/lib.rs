//! Weir's wire formats: JSON requests and events, NDJSON, SSE, problem+json.
