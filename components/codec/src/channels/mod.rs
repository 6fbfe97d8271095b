//! Channels on the wire: what publishers send, what subscribers read, and how a connection is handed to the host.
//!
//! - [`route`]: the paths of channels, and their ids.
//! - [`publish`]: the bodies of publishers; [`event`]: the events that subscribers read.
//! - [`subscribe`]: the cursor in a request; [`filter`]: which events it asks for; [`subscription`]: an event as bytes of one connection; [`socket`]: the messages of a
//!   WebSocket that follows many channels.
//! - [`grip`]: the Generic Realtime Intermediary Protocol; [`hold`]: the terms of a hold that only Weir's own host reads.

pub mod event;
pub mod filter;
pub mod grip;
pub mod hold;
pub mod publish;
pub mod route;
pub mod socket;
pub mod subscribe;
pub mod subscription;
