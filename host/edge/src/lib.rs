//! Weir's edge: sockets, and the responses that need no component.
//!
//! - [`server`]: the HTTP listener: accepts, bounds, drains.
//! - `connection`: one connection, of HTTP/1.1 or HTTP/2; `http2`: a connection of HTTP/2, stream by stream.
//! - `linger`: the end of a connection whose client may still be sending.
//! - `dispatch`: finds what answers a request: the host itself, or the gateway component.
//! - `head_checks`: the checks of the head of every request: transfer coding, host, path, origin.
//! - `response`, `body`, `request_id`: responses, those of the host itself among them.
//! - `sse`: connections that are held for subscribers, and fed without a guest.
//! - `websocket`: WebSockets, which to the component are requests with a line for each message.
//! - `share`: what clients share, and how much of it one may hold.
//! - `timeouts`: clients that do not send or do not read.
//! - `stats`: the snapshot of the server.
//! - [`observe`]: the metrics of the process; `metric`: their names, labels and help texts.
//!
//! The edge frames bytes and counts; routes, validation and formats belong to the gateway component.
//!
//! # Invariants
//!
//! - No request reaches a component or a response of the host before its head has passed `head_checks`.
//! - The headers of GRIP and `weir-hold` exist only between the gateway and the edge, which removes them from every request and
//!   every response.
//! - An open request holds its permits until the body of its response has ended.

mod body;
mod connection;
mod dispatch;
mod error;
mod head_checks;
mod http2;
mod linger;
mod metric;
pub mod observe;
mod request_id;
mod response;
pub mod server;
mod share;
mod sse;
mod state;
mod stats;
mod timeouts;
mod websocket;

pub use error::ServeError;
pub use head_checks::HeadCheckError;
pub use observe::{Observer, ObserverError};
pub use server::{Listener, Server};
