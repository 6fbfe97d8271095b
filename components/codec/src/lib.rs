//! Weir's wire formats: what comes in as JSON and what goes out as JSON, NDJSON, SSE and `application/problem+json`.
//!
//! - [`json`]: a bounded, exact reader of JSON objects that says what is wrong and where.
//! - [`request`]: the body of `/process-stream` and `/process-batch`.
//! - [`event`]: the events of a process, and the one answer of a batch.
//! - [`frame`]: events as NDJSON or SSE.
//! - [`accept`], [`content_type`]: negotiation.
//! - [`problem`]: RFC 9457 problem details.
//! - [`models`]: what is served, and readiness.

pub mod accept;
pub mod content_type;
pub mod event;
pub mod frame;
pub mod json;
pub mod models;
pub mod problem;
pub mod request;
