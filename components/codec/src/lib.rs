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
//! - [`grip`], [`websocket_events`]: the guest decides and the host holds: the Generic Realtime Intermediary Protocol.
//! - [`subscribe`], [`socket`]: where a subscription goes on; what a WebSocket that follows many channels says.
//! - [`accept`], [`content_type`]: negotiation.
//! - [`problem`]: RFC 9457 problem details.
//! - [`models`]: what is served, and readiness.
//! - [`route`], [`request_id`]: paths with their methods, and `X-Request-Id`.
//!
//! The feature `schema` derives JSON Schema for all of it and adds `openapi`, which writes the gateway's
//! `openapi.json`; the component itself is built without.

pub mod accept;
pub mod ask;
pub mod channel;
pub mod content_type;
pub mod event;
pub mod frame;
pub mod grip;
pub mod hub;
pub mod json;
pub mod lines;
pub mod models;
#[cfg(feature = "schema")]
pub mod openapi;
pub mod output;
pub mod problem;
pub mod publish;
pub mod query;
mod raw;
pub mod request;
pub mod request_id;
pub mod route;
pub mod session;
pub mod socket;
pub mod sse;
pub mod stream_event;
pub mod subscribe;
pub mod task;
pub mod tei;
pub mod timestamp;
pub mod tree;
pub mod websocket_events;
