//! WebSockets. They end at the host: to the gateway component a WebSocket is a `POST` whose body has a line for each message of the
//! client, and whose response has a line for each message to it. The component knows nothing of frames, and its decisions
//! (authorization, which channels are followed) hold under every host.

pub(crate) mod connection;
pub(crate) mod handshake;
