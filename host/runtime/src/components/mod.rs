//! Components in wasmtime: where their code comes from, how an instance is set up, and what it may take.

pub mod code;
pub mod engine;
pub mod gateway;
pub(crate) mod guest_log;
pub(crate) mod limits;
pub(crate) mod outgoing;
pub(crate) mod steps;
