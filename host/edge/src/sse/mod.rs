//! Connections that are held for subscribers: server-sent events or NDJSON, fed by the host without a guest.
//!
//! - `hold`: what the gateway says about a connection (GRIP).
//! - `subscribers`: the subscribers of the process and of each user, counted.
//! - `feed`: the events for one subscriber, rendered.
//! - `connection`: a connection of HTTP/1.1 that carries one feed and nothing else.
//! - `gzip`: a compressed stream that costs a connection twelve bytes.

pub(crate) mod connection;
pub(crate) mod feed;
pub(crate) mod gzip;
pub(crate) mod hold;
pub(crate) mod subscribers;
