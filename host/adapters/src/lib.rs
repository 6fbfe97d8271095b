//! Adapters of the native host: records of other systems through the models, and their results back.
//!
//! ```text
//! Source ─▶ adapter component ─▶ queue of the model ─▶ adapter component ─▶ Sink ─▶ Committer
//! driver     decode               shared by all          encode              driver   position
//! ```
//!
//! - [`driver`]: the traits of a driver: [`Source`](driver::Source), [`Sink`](driver::Sink), [`Committer`](driver::Committer). To
//!   write one, read this file.
//! - [`supervisor`]: one adapter from its start to its end: in flight, writing, committing, reconnecting.
//! - [`status`]: the state and the counters of each adapter.
//! - [`build`]: drivers from the configuration.
//! - [`mod@file`], [`redis`]: the drivers.
//!
//! This crate knows nothing of wasmtime: the supervisor asks a [`Component`](supervisor::Component) for calls, which the command line
//! makes from the runtime.
//!
//! # Invariants
//!
//! - A position is committed only after every result up to it is written.
//! - Records that were read and not written are bounded (`in_flight_max`).
//! - A failing adapter stops or reconnects alone.

pub mod build;
pub mod driver;
pub mod file;
pub mod redis;
pub mod status;
pub mod supervisor;
