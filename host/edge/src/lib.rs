//! Weir's edge: sockets, and the responses that need no component.
//!
//! - [`server`]: the HTTP listener: accepts connections, bounds and drains them.
//! - `connection`: one connection, of HTTP/1.1 or HTTP/2; `http2`: an HTTP/2 connection and its streams.
//! - `linger`: closes a connection whose client may still be sending.
//! - `dispatch`: dispatches a request to the host itself or to the gateway component.
//! - `head_checks`: the checks of the head of every request: transfer coding, host, path, origin.
//! - `response`, `body`, `peeked`, `request_id`: responses, including those of the host itself.
//! - `request_metrics`: the metrics that every request updates.
//! - `sse`: connections that are held for subscribers, and fed without a guest.
//! - `websocket`: WebSockets, which the component sees as requests with a line for each message.
//! - `share`: pools of permits with a share for each client.
//! - `shedding`: refuses requests that the component would refuse, while a model is overloaded.
//! - `timeouts`: timeouts for clients that do not send or do not read.
//! - `stats`: the statistics of the server, `/v1/stats`; `health`: the adapters in `/stream/health`.
//! - [`observe`]: the metrics of the process; `metric`: their names, labels and help texts.
//!
//! The edge handles connections, framing and limits; routes, validation and formats belong to the gateway component.
//!
//! # Invariants
//!
//! - No request is passed to a component or answered by the host before its head has passed `head_checks`.
//! - The headers of GRIP and `weir-hold` exist only between the gateway and the edge, which removes them from every
//!   request and every response.
//! - An open request holds its permits until the body of its response has ended.

mod body;
mod connection;
mod dispatch;
mod error;
mod head_checks;
mod health;
mod http2;
mod linger;
mod metric;
pub mod observe;
mod peeked;
mod request_id;
mod request_metrics;
mod response;
pub mod server;
mod share;
mod shedding;
mod sse;
mod state;
mod stats;
mod timeouts;
mod websocket;

pub use error::ServeError;
pub use head_checks::HeadCheckError;
pub use observe::{Observer, ObserverError};
pub use server::{Listener, Server};
