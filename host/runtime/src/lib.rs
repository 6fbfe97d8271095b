//! Weir's native host: components in wasmtime, each in a store of its own, joined by streams.
//!
//! ```text
//! gateway instance ─┐                                  ┌─ infer instance (replica 0 of a model, own thread)
//! gateway instance ─┼─▶ call ─▶ queue of the model ─▶ ─┤
//! native caller    ─┘   ids, order and ends of each    └─ infer instance (replica 1)
//! ```
//!
//! - [`engine`]: how wasmtime is set up, and the clock that interrupts a guest.
//! - [`component`]: where a component's code comes from: built in, or a file.
//! - [`bindings`]: the WIT of `weir:stream` in Rust.
//! - [`call`]: one caller's pair of streams; its bounds, its end, its disappearance.
//! - `queue`: the items that wait for one model.
//! - [`pool`]: the replicas of one model: threads with an infer instance each, fed from the queue.
//! - [`gateway`]: instances of the gateway component behind `wasi:http/handler`.
//! - `instances`: how requests get to instances, and how many there are.
//! - `keeper`: the one instance that has what outlives a request.
//! - `channels`: the channel store as the configuration has it, its metrics and its file.
//! - `events`, `state`: the channel store as gateway instances see it.
//! - `reliability`: what executions tell, as metrics.
//! - `steps`: components of the operator's that are steps of pipelines; `outgoing`: whom steps may call.
//! - [`stream`]: the embedding API, texts in and results by callback.
//! - [`runtime`]: all of it together.
//!
//! The host moves records and enforces limits; it knows nothing of what a text means.

pub mod bindings;
pub mod components;
pub mod inference;
mod interfaces;
pub mod runtime;
mod start;
pub mod stream;

pub use bindings::types;
pub use components::code::{ComponentError, Source};
pub use components::gateway;
pub use components::guest_log::TARGET as GUEST_LOG_TARGET;
pub use inference::call::{Call, CallSender, Outcomes};
pub use inference::pool::PoolStats;
pub use runtime::{Builtin, Runtime, StartError};
