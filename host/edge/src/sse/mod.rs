//! Connections that are held for subscribers: server-sent events or NDJSON, fed by the host without a guest.
//!
//! - `hold`: the hold instructions of the gateway (GRIP).
//! - `subscribers`: the counts of held connections and of the connections of each user.
//! - `feed`: the rendered events for one subscriber.
//! - `connection`: an HTTP/1.1 connection that carries only one feed.
//! - `gzip`: a compressed stream that needs twelve bytes of state for each connection.

pub(crate) mod connection;
pub(crate) mod feed;
pub(crate) mod gzip;
pub(crate) mod hold;
pub(crate) mod subscribers;
