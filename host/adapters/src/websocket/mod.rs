//! Feeds over WebSockets as sources (RFC 6455).
//!
//! - `client`: the handshake, and the failures of a connection.
//! - `source`: a connection on a task of its own: messages, pings, and connections made anew.

mod client;
mod source;

pub(crate) use client::{check_liveness, connect};
pub use source::{WebSocketCommitter, WebSocketSource, open};
