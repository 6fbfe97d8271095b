//! The session component: transcript sessions over streams.
//!
//! - [`active`]: one session between its inputs and its outputs.
//! - [`convert`]: core's types as WIT records.
//! - [`rules`]: a cache of rules, which sessions with the same configuration share.
//! - `service`: the streams, for wasm32 only; everything else is tested natively.
//!
//! It imports `wasi:clocks`, the parts of `wasi:cli` that Rust's standard library needs, and no interface of Weir.

/// The generated bindings of the world `session-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        world: "session-service",
        path: "../../wit",
        additional_derives: [Clone, PartialEq],
        generate_all,
        with: {
            "weir:stream/session@0.1.0/chunk": weir_core::transcripts::Chunk,
            "weir:stream/session@0.1.0/segment": weir_core::transcripts::Segment,
        },
    });
}

/// The records of `weir:stream/session`.
pub use bindings::exports::weir::stream::session as types;

pub mod active;
pub mod convert;
pub mod rules;

#[cfg(target_arch = "wasm32")]
mod service;
