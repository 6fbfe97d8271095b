//! The infer component: tokenizes, batches and runs texts through `wasi:nn`.
//!
//! Read in this order:
//! - [`config`]: the configuration in a model directory.
//! - [`tokenize`]: texts into sequences of token ids; `wordpiece`: the same in one pass, for most texts of BERT's tokenizer.
//! - [`settings`]: what the host says about its engine.
//! - [`sentences`]: texts into sentences.
//! - [`job`]: one item as sequences to compute, and their results as one outcome; [`classify`], [`entities`], [`embed`] and [`summarize`]
//!   have the parts of each task.
//! - `graph`, `models` and `service`: the parts that touch the world: `wasi:nn`, the `/models` directory, the streams.
//!
//! All but the last line is pure and tested natively; the last exists for wasm32 only.

/// The generated bindings of the world `infer-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        world: "infer-service",
        path: "../../wit",
        additional_derives: [PartialEq],
        generate_all,
    });
}

/// The records of `weir:stream/types`.
pub use bindings::weir::stream::types;

pub mod classify;
pub mod code_points;
pub mod config;
pub mod embed;
pub mod entities;
pub mod job;
pub mod sentences;
pub mod settings;
pub mod summarize;
pub mod tokenize;
pub mod windows;
mod wordpiece;

#[cfg(target_arch = "wasm32")]
mod graph;
#[cfg(target_arch = "wasm32")]
mod models;
#[cfg(target_arch = "wasm32")]
mod service;
