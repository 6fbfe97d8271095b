//! Weir's wire formats: what comes in as JSON and what goes out as JSON, NDJSON, SSE and `application/problem+json`.
//!
//! - [`json`], [`tree`]: a bounded, exact reader of JSON objects that says what is wrong and where.
//! - [`request`]: the body of `/process-stream` and `/process-batch`.
//! - [`event`]: the events of a process, and the one answer of a batch.
//! - [`task`], [`ask`], [`query`]: what is asked item by item, in a JSON body, on a line, in a query string.
//! - [`lines`]: NDJSON in, cut into lines.
//! - [`output`], [`session`]: what comes back for each item, whole or as a stream.
//! - [`hub`], [`tei`]: the dialects of the Hugging Face inference API and of text-embeddings-inference.
//! - [`frame`]: events as NDJSON or SSE; [`sse`]: with ids, retries and comments, for subscriptions.
//! - [`channel`], [`publish`], [`stream_event`]: the channels of workflows, files and users: their paths, what publishers
//!   send and what subscribers read; `raw`: JSON that passes through; [`timestamp`]: RFC 3339.
//! - [`grip`]: the Generic Realtime Intermediary Protocol: the guest decides and the host holds; [`hold`]: what Weir's own
//!   host is told besides.
//! - [`subscribe`], [`subscription`], [`socket`]: where a subscription goes on, and what its client reads; what a WebSocket that
//!   follows many channels says.
//! - [`pipeline`]: definitions, executions and their events, checkpoints, `/process-stream` as a pipeline.
//! - [`transcript`]: transcript sessions: chunks and their events, configuration, checkpoints, captions.
//! - [`accept`], [`content_type`]: negotiation.
//! - [`problem`]: RFC 9457 problem details.
//! - [`models`]: what is served, and readiness.
//! - [`host`], [`cors`]: the name that a request is for, and the page that it comes from.
//! - [`found`], [`target`], [`route`], [`request_id`]: percent-encoding, paths with their methods, and `X-Request-Id`.
//! - [`retry_after`]: `Retry-After` of other services.
//!
//! The feature `schema` derives JSON Schema for all of it and adds `openapi`, which writes the gateway's
//! `openapi.json`; the component itself is built without.

pub mod accept;
pub mod ask;
pub mod channel;
pub mod content_type;
pub mod cors;
pub mod event;
pub mod found;
pub mod frame;
pub mod grip;
pub mod hold;
pub mod host;
pub mod hub;
pub mod json;
pub mod lines;
pub mod models;
mod nearest;
#[cfg(feature = "schema")]
pub mod openapi;
pub mod output;
pub mod pipeline;
pub mod problem;
pub mod publish;
pub mod query;
mod raw;
pub mod readiness;
pub mod request;
pub mod request_id;
pub mod retry_after;
pub mod route;
pub mod session;
pub mod socket;
pub mod sse;
pub mod stream_event;
pub mod subscribe;
pub mod subscription;
pub mod target;
pub mod task;
pub mod tei;
pub mod timestamp;
pub mod transcript;
pub mod tree;
