//! Transcript sessions on the wire.
//!
//! - [`input`]: chunks as lines of JSON, and their errors.
//! - [`event`]: the outputs of a session as lines of JSON: events, refusals, metrics and the context window.
//! - [`semantic`]: the semantic block of a text, and the input and output lines of `/v1/annotate`.
//! - [`annotate_stream`]: the stream of `/v1/annotate`, line by line.
//! - [`outbox`]: queues the events of a session for models, its channel and its client.
//! - [`stored`]: the stored form of a session, and its events read back.
//! - [`route`]: the paths of stored sessions.
//! - [`config`]: the configuration of a session, as JSON and as a query string.
//! - [`checkpoint`]: encodes and decodes the state of a session.
//! - [`captions`]: SRT and WebVTT files as chunks.

pub mod annotate_stream;
pub mod captions;
pub mod checkpoint;
pub mod config;
pub mod event;
pub mod input;
pub mod outbox;
pub mod route;
pub mod semantic;
pub mod stored;
