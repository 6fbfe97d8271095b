//! Weir's engine as a Python extension, `weir_stream._engine`. The package `weir_stream` gives it its public form.
//!
//! - `process`: the threads of the engine, and the rules of forks and signals.
//! - `engine`: models in this process; `call`: texts to a model and their results in the order of completion.
//! - `stream`: a [`weir_runtime::stream::TextStream`] with a file descriptor that an event loop watches.
//! - `generate`: generated text; `transcript`: transcript sessions, which need no engine.
//! - `server`: a server in this process.
//! - `convert`: tasks, outputs and failures as Python values.
//!
//! # Invariants
//!
//! - No thread of the engine runs Python code or waits for the interpreter: results wait in a list, and a byte in a socket wakes the event
//!   loop. The end of the interpreter therefore has nothing to wait for.
//! - A thread of Python that waits for the engine releases the interpreter and looks for signals every 50 ms.

mod builtin;
mod call;
mod convert;
mod engine;
mod generate;
mod process;
mod server;
mod stream;
mod transcript;

use pyo3::prelude::*;

/// The engine of `weir_stream`.
#[pymodule]
fn _engine(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<call::Call>()?;
    module.add_class::<stream::Stream>()?;
    module.add_class::<generate::Generation>()?;
    module.add_class::<server::Server>()?;
    module.add_class::<transcript::Session>()?;
    module.add_class::<transcript::Annotator>()
}
