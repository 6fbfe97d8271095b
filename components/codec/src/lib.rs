//! Weir's wire formats: JSON, NDJSON, server-sent events and `application/problem+json`, by feature.
//!
//! - [`json`]: bounded, exact readers of JSON whose errors have the reason and the path.
//! - [`http`]: negotiation, targets, framings and problems.
//! - [`inference`]: tasks on texts, item by item.
//! - [`adapter`]: the formats of records of other systems.
//! - [`generation`]: generated text in the dialects of several APIs.
//! - [`channels`]: publishing, subscribing, GRIP.
//! - [`transcripts`]: transcript sessions, captions.
//! - [`pipelines`]: definitions, executions, `/process-stream` and `/process-batch`.
//!
//! The feature `schema` derives JSON Schema for all of it and adds `openapi`, which writes the gateway's
//! `openapi.json`; the component itself is built without.

pub mod adapter;
pub mod channels;
pub mod generation;
pub mod http;
pub mod inference;
pub mod json;
#[cfg(feature = "schema")]
pub mod openapi;
pub mod pipelines;
pub mod transcripts;
