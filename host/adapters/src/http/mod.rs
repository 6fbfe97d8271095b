//! Feeds over HTTP as sources, and webhooks as sinks.
//!
//! - `client`: connections of HTTP/1.1, with TLS.
//! - [`get`]: one GET, for checks and for questions to a running server.
//! - `source`: a feed of server-sent events or of lines of JSON, read on after a lost connection.
//! - `sink`: a POST for each result, signed by Standard Webhooks, with an idempotency key.

pub(crate) mod client;
mod get;
mod sink;
mod source;

pub(crate) use get::get_head;
pub use get::{GetResponse, get};
pub use sink::HttpSink;
pub use source::{HttpCommitter, HttpProgress, HttpSource, open};
