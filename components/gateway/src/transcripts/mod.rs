//! Transcript sessions, in one request and stored. A stored session is its last checkpoint, in the memory of this instance and in the
//! store, and the events that its channel has since.
//!
//! Events are appended to the channel first, then written to the client, then the checkpoint follows. A session continues from its
//! checkpoint and the later events of its channel, so a crash at any point loses and repeats nothing that a client has read. The client
//! submits the rest again with its `seq`.
//!
//! - `one_shot`: `/v1/transcript` and `/v1/annotate`; `convert`: the records of `weir:stream/session`; `enrich`: the queries of its events to models.
//! - `routes`: the paths of stored sessions.
//! - `registry`: the sessions of this instance, and which request holds each; `sweep`: the task that expires sessions at rest.
//! - `running`: a session that is run from its checkpoint and its channel; `feed`: a request that feeds one.
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
