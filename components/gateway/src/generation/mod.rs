//! Generated text. The events of a generation are appended to a channel, and every response, the first one and those to
//! clients that reconnect, is rendered from that channel.
//!
//! - `client`: the one client of `weir:stream/generate`; `convert`: its types as codec's.
//! - `rewrite`: the sentences of a summary in other words.
//! - `registry`: the generations of this instance; `start`: one of them up to its first event; `running`: from there to its last event;
//!   `batch`: its events that are appended together.
//! - `response`: a generation as a response; `routes`: the paths; `recovery`: the generations that a crash has
//!   interrupted.
//!
//! Generations belong to an instance, not to a request: with `detach` they continue when the client disconnects. If the
//! host has a stateful instance (`WEIR_KEEPER`), that instance runs all of them.

mod batch;
pub(crate) mod client;
mod convert;
mod recovery;
mod registry;
mod response;
pub(crate) mod rewrite;
mod routes;
mod running;
mod start;

pub(crate) use recovery::wake;
