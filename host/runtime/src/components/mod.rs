//! Components in wasmtime.
//!
//! - [`code`]: the code of a component: built into the program, or a file.
//! - `engine`: the settings of wasmtime, and the clock that interrupts a guest.
//! - [`adapter`]: adapter components, one instance for each running adapter.
//! - [`gateway`]: the instances of the gateway component.
//! - `steps`: components of the operator that are steps of pipelines.
//! - `ended`: detects the end of a stream of a guest.
//! - `woken`: a future that is polled only when it was woken.
//! - `heartbeat`: detects guests that compute without yielding.
//! - `guest_log`, `limits`, `outgoing`: the log lines, the resource limits and the outgoing requests of a guest.

pub mod adapter;
pub mod code;
pub(crate) mod ended;
pub(crate) mod engine;
pub mod gateway;
pub(crate) mod guest_log;
pub(crate) mod heartbeat;
pub(crate) mod limits;
pub(crate) mod outgoing;
pub(crate) mod steps;
pub(crate) mod woken;
