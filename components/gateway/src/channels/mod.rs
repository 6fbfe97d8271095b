//! Channels: publishing, subscribing and their authorization.
//!
//! - `routes`: the paths of channels.
//! - `ownership`: the owners of channels; `authorize`: permission by scope or ownership; `existence`: whether a channel exists.
//! - `publish`, `subscribe`: one event in, the events of one channel out; `multiplex`: many channels over one socket.
//! - `grip`: a subscription whose connection an intermediary holds (GRIP).

pub(crate) mod authorize;
pub(crate) mod existence;
pub(crate) mod grip;
pub(crate) mod multiplex;
pub(crate) mod ownership;
pub(crate) mod publish;
pub(crate) mod routes;
pub(crate) mod subscribe;
