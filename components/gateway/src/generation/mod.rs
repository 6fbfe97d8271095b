//! Generated text. A generation is a channel: its events are appended there, and every answer, the first one and those to clients that
//! come back, is rendered from there.
//!
//! - `client`: the one client of `weir:stream/generate`; `convert`: its types as codec's.
//! - `registry`: the generations of this instance; `running`: one of them, from its start to its last event; `batch`: the events of it that
//!   are appended together.
//! - `answer`: a generation as a response; `routes`: the paths; `recovery`: the generations that a crash has interrupted.
//!
//! Generations belong to an instance, not to a request: with `detach` they continue when the client has left. Where the host has a
//! stateful instance (`WEIR_KEEPER`), it has all of them.

mod answer;
mod batch;
pub(crate) mod client;
mod convert;
mod recovery;
mod registry;
mod routes;
mod running;

pub(crate) use recovery::wake;
