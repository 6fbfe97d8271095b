//! Feeds over WebSockets as sources (RFC 6455).
//!
//! - `client`: the handshake, and the failures of a connection.
//! - `source`: messages as records; a task reads the connection, sends pings and reconnects.

mod client;
mod source;

pub(crate) use client::{check_liveness, connect};
pub use source::{WebSocketCommitter, WebSocketSource, open};
