//! Weir's native host: components in wasmtime, each in a store of its own, joined by streams.
//!
//! ```text
//! gateway instance ─┐                                  ┌─ infer instance (replica 0 of a model, own thread)
//! gateway instance ─┼─▶ call ─▶ queue of the model ─▶ ─┤
//! native caller    ─┘                                  └─ infer instance (replica 1)
//! ```
//!
//! - [`bindings`]: the WIT of `weir:stream` in Rust.
//! - [`inference`]: calls, the queue of each model, and the replicas.
//! - [`generation`]: calls that generate text, and the instance of each language model.
//! - [`components`]: wasmtime, and the instances of gateway, step and adapter components.
//! - `interfaces`: the interfaces that the host provides to gateway instances, one file for each interface of
//!   `weir:stream`.
//! - `sleeper`: puts a thread to sleep while it has no work.
//! - `start`: creates the parts of a runtime from the configuration.
//! - [`runtime`]: the host as one value.
//! - [`stream`]: the embedding API: texts in, results by callback.
//!
//! The host moves records and enforces limits; it does not interpret texts.
//!
//! # Invariants
//!
//! - Every item of a call gets exactly one outcome: an outcome sender that is dropped sends `unavailable`, and the
//!   items that a lost instance had in flight are retried or fail.
//! - A failing item is an outcome with a failure, never the end of a stream.
//! - An infer instance sees one model: the read-only folder `/models/NAME` and the graph `NAME`. A gateway instance
//!   sees at most the folders of keys and of pipelines, and can send no outgoing requests, except for the stateful
//!   instance to `pipelines.http_allow`.
//! - A guest sees the settings that `start::guest_env` lists, no other setting, no path of the host and no secret.
//! - Components do not write to the standard error of the process: their lines are written to the log, at a bounded
//!   rate.

pub mod bindings;
pub mod components;
pub mod generation;
pub mod inference;
mod interfaces;
pub mod runtime;
mod sleeper;
mod start;
pub mod stream;

pub use bindings::generate_types;
pub use bindings::types;
pub use components::code::{ComponentError, ComponentSource};
pub use components::gateway;
pub use components::guest_log::TARGET as GUEST_LOG_TARGET;
pub use generation::{CommandSender, EventReceiver, Generations};
pub use inference::call::{CallOpener, CallSender, Outcomes};
pub use inference::pool::PoolStats;
pub use interfaces::convert::core_failure;
pub use runtime::Runtime;
pub use start::{Builtin, StartError};
pub use weir_nn::stages;
