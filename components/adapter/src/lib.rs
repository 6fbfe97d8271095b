//! The adapter component: records of other systems in, records with results out.
//!
//! - [`transform`]: the state of one call: decodes records, hands out their items for inference, encodes results.
//! - [`sessions`]: the sessions of the task `transcript`.
//! - [`convert`]: conversions between the types of core and codec and the WIT records.
//! - `service`: the streams; compiled for wasm32 only, so that the other modules can be tested natively.
//!
//! It imports `weir:stream/infer`, `wasi:clocks` and the parts of `wasi:cli` that Rust's standard library needs.

/// The generated bindings of the world `adapter-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        world: "adapter-service",
        path: "../../wit",
        additional_derives: [Clone, PartialEq],
        generate_all,
        with: {
            "weir:stream/types@0.1.0/label-score": weir_codec::inference::output::LabelScore,
            "weir:stream/adapter@0.1.0/header": weir_core::adapter::Header,
            "weir:stream/adapter@0.1.0/position": weir_core::adapter::Position,
            "weir:stream/adapter@0.1.0/source-record": weir_core::adapter::SourceRecord,
        },
    });
}

pub mod convert;
pub mod sessions;
pub mod transform;

#[cfg(target_arch = "wasm32")]
mod service;
