//! Weir's native host: components in wasmtime, each in a store of its own, joined by streams.
//!
//! ```text
//! gateway instance ─┐                                  ┌─ infer instance (replica 0 of a model, own thread)
//! gateway instance ─┼─▶ call ─▶ queue of the model ─▶ ─┤
//! native caller    ─┘   ids, order and ends of each    └─ infer instance (replica 1)
//! ```
//!
//! - [`bindings`]: the WIT of `weir:stream` in Rust.
//! - [`inference`]: calls, the queue of each model, and the replicas.
//! - [`generation`]: calls that generate text, and the instance of each language model.
//! - [`components`]: wasmtime, and the instances of the gateway component and of steps.
//! - `interfaces`: what the host provides to gateway instances, one file for each interface of `weir:stream`.
//! - `sleeper`: a thread that sleeps while it has nothing to do.
//! - `start`: the start from the configuration.
//! - [`runtime`]: all of it as one value.
//! - [`stream`]: the embedding API, texts in and results by callback.
//!
//! The host moves records and enforces limits; it knows nothing of what a text means.
//!
//! # Invariants
//!
//! - Every item of a call gets exactly one outcome: a reply that is dropped unsent answers `unavailable`, and so does
//!   every item that a lost instance had in flight.
//! - A failing item is an outcome with a failure, never the end of a stream.
//! - An infer instance sees one model: the read-only folder `/models/NAME` and the graph `NAME`. A gateway instance sees at most the
//!   folders of keys and of pipelines, and no outgoing request leaves it, but for those of the stateful instance to
//!   `pipelines.http_allow`.
//! - A guest sees the settings that `start::guest_env` lists, no other setting, no path of the host and no secret.
//! - Components do not write to the standard error of the process: their lines go through the log, which bounds them.

pub mod bindings;
pub mod components;
pub mod generation;
pub mod inference;
mod interfaces;
pub mod runtime;
mod sleeper;
mod start;
pub mod stream;

pub use bindings::types;
pub use components::code::{ComponentError, ComponentSource};
pub use components::gateway;
pub use components::guest_log::TARGET as GUEST_LOG_TARGET;
pub use inference::call::{CallOpener, CallSender, Outcomes};
pub use inference::pool::PoolStats;
pub use runtime::Runtime;
pub use start::{Builtin, StartError};
pub use weir_nn::stages;
