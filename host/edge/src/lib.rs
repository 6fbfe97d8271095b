//! Weir's edge: sockets, and what must be answered before a component runs.
//!
//! - [`server`]: the HTTP listener: accepts, bounds, hands requests to the gateway, drains.
//! - `answer`: the few answers that the host gives by itself: `/metrics`, and problems when no component can answer.
//! - `entry`: what is checked of every request: its host, its path, the page that it comes from.
//! - `socket`: WebSockets, which to the component are requests with a line for each message.
//! - `connection`: one connection, of HTTP/1.1 or HTTP/2.
//! - `hold`: answers that say "hold this connection" (GRIP); `feed`: what it is fed with; `held`: a socket and its feed; `gzip`: the
//!   same compressed.
//! - `http2`: a connection of HTTP/2, stream by stream; `header_watch`: its header timeout.
//! - `share`: what clients share, and how much of it one may have.
//! - `stall`: clients that do not read; `head`: clients that do not send.
//! - [`observe`]: the metrics of the process; `metric`: their names, labels and help texts.
//!
//! The edge frames bytes and counts; routes, validation and formats are the gateway component's.

mod body;
mod connection;
mod entry;
mod http2;
mod metric;
pub mod observe;
mod response;
pub mod server;
mod share;
mod sse;
mod timeouts;
mod websocket;

pub use entry::EntryError;
pub use observe::{Observer, ObserverError};
pub use server::{Listener, ServeError, Server};
