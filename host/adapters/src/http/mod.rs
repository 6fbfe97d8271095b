//! Feeds over HTTP as sources, and webhooks as sinks.
//!
//! - `client`: HTTP/1.1 connections, with TLS.
//! - `request`: single requests, for checks and for commands to a running server.
//! - `source`: a feed of server-sent events or of lines of JSON, which is resumed after a lost connection.
//! - `sink`: a POST for each result, signed by Standard Webhooks, with an idempotency key.

pub(crate) mod client;
mod request;
mod sink;
mod source;

pub(crate) use request::get_head;
pub use request::{HttpRequest, HttpResponse};
pub use sink::HttpSink;
pub use source::{HttpCommitter, HttpProgress, HttpSource, open};
