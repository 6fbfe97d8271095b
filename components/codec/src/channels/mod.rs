//! Channels on the wire: bodies of publishers, events for subscribers, and the headers that hand a connection to the host.
//!
//! - [`route`]: the paths of channels, and their ids.
//! - [`publish`]: the bodies of publishers; [`event`]: the events that subscribers read.
//! - [`subscribe`]: the cursor of a request; [`filter`]: the events that a subscription receives; [`subscription`]: events as bytes of
//!   one connection; [`socket`]: the messages of a WebSocket that follows several channels.
//! - [`grip`]: the Generic Realtime Intermediary Protocol; [`hold`]: the header with the terms of a hold, for Weir's own host.

pub mod event;
pub mod filter;
pub mod grip;
pub mod hold;
pub mod publish;
pub mod route;
pub mod socket;
pub mod subscribe;
pub mod subscription;
