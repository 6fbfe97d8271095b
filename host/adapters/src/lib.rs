//! Adapters of the native host: records of other systems in, results out.
//!
//! ```text
//! Source ─▶ adapter component ─▶ queue of the model ─▶ adapter component ─▶ Sink ─▶ Committer
//! driver     decode               shared by all          encode              driver   position
//! ```
//!
//! - [`driver`]: the traits of a driver: [`Source`](driver::Source), [`Sink`](driver::Sink), [`Committer`](driver::Committer). To
//!   write one, read this file.
//! - [`supervisor`]: runs one adapter: it tracks records in flight, writes results, commits positions and reconnects.
//! - [`status`]: the state and the counters of each adapter.
//! - [`build`]: drivers from the configuration.
//! - [`mod@file`], [`redis`], [`nats`], [`http`], [`websocket`], [`channel`] and, with the feature `kafka`, `kafka`: the drivers.
//! - [`check`]: checks of connections.
//!
//! This crate does not depend on wasmtime: the supervisor starts calls of a [`Component`](supervisor::Component), which the command
//! line implements with the runtime.
//!
//! # Invariants
//!
//! - A position is committed only after every result up to it is written.
//! - Records that were read and not written are bounded (`in_flight_max`, and 64 MiB), and so are the results of a record.
//! - A failing adapter stops or reconnects without affecting other adapters.

pub mod build;
pub mod channel;
pub mod check;
pub mod driver;
pub mod file;
pub mod http;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod nats;
mod pending;
mod reader;
pub mod redis;
pub mod status;
pub mod supervisor;
mod traces;
mod transport;
pub mod websocket;

pub use redis::secret;

/// The header of a record with an id that is the same at each delivery. Results repeat it, so that a receiver can detect duplicates.
pub const RECORD_ID_HEADER: &str = "weir-record-id";
