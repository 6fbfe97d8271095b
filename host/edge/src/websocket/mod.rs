//! WebSockets. They terminate at the host: the gateway component sees a WebSocket as a `POST` whose body has a line for
//! each message of the client, and whose response has a line for each message to it. So the component needs no framing,
//! and its decisions (authorization, which channels are followed) apply under every host.

pub(crate) mod connection;
pub(crate) mod handshake;
