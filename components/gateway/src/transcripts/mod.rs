//! Transcript sessions, in one request and stored. A stored session consists of its last checkpoint, in the memory of
//! this instance and in the store, and of the later events in its channel.
//!
//! Events are appended to the channel first, then written to the client, then the checkpoint follows. A session
//! continues from its checkpoint and the later events of its channel, so after a crash at any point nothing that a
//! client has read is lost or repeated. The client submits unacknowledged input again with its `seq`.
//!
//! - `one_shot`: `/v1/transcript` and `/v1/annotate`; `convert`: the records of `weir:stream/session`; `enrich`: the queries of its events to models.
//! - `routes`: the paths of stored sessions.
//! - `registry`: the sessions of this instance, and which request holds each; `sweep`: the task that expires idle
//!   sessions.
//! - `running`: a session that runs from its checkpoint and its channel; `feed`: a request that feeds one.
//! - `log`: its events on their way into the channel and the checkpoint; `persistence`: its values in the store.

mod convert;
mod enrich;
mod feed;
mod log;
pub(crate) mod one_shot;
mod persistence;
mod registry;
pub(crate) mod routes;
mod running;
mod sweep;
