//! The infer component: tokenizes, batches and runs texts through `wasi:nn`.
//!
//! Read in this order:
//! - [`config`]: the configuration in a model directory.
//! - [`tokenize`]: from texts to sequences of token ids; `wordpiece`: the same in one pass, for most texts of BERT's
//!   tokenizer.
//! - [`windows`]: windows over texts that are longer than the model takes; [`code_points`]: texts indexed by code
//!   points.
//! - [`settings`]: the settings of the host for its engine.
//! - [`sentences`]: from texts to sentences.
//! - [`job`]: from one item to the sequences to compute, and from their results to one outcome; [`classify`],
//!   [`entities`], [`embed`] and [`summarize`]: the parts of each task.
//! - `graph`, `models` and `service`: the interfaces to the host: `wasi:nn`, the `/models` directory, the streams.
//!
//! The modules of the last entry exist for wasm32 only; all others are pure and tested natively.

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
