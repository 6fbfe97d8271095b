//! NATS JetStream: streams as sources, subjects as sinks.
//!
//! - `source`: a durable pull consumer. Messages are acknowledged after their results are written; those in flight are reported as in
//!   progress, so that the server does not deliver them again while the model is slow.
//! - `sink`: publishes results and waits until a stream has stored them.
//! - `connection`, `protocol`, `access` and `jetstream`: the client. It is not the crate `async-nats`, which enables a feature of `bytes`
//!   with which wasmtime and most of the host would be compiled again, and has twenty crates that nothing else needs. An adapter
//!   connects anew by itself, so that a connection here ends at its first failure.

mod access;
mod check;
mod connection;
mod jetstream;
mod protocol;
mod settings;
mod sink;
mod source;

pub use check::check;
pub(crate) use settings::check_settings;
pub use sink::NatsSink;
pub use source::{NatsCommitter, NatsSource, open};

/// The header of a message with the key of its record.
const KEY_HEADER: &str = "weir-key";
