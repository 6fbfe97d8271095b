//! Rust bindings of the WIT package `weir:stream`. The types are generated once and shared by all interfaces.

/// The infer component, as the host calls it.
#[allow(missing_docs, clippy::all)]
pub mod infer {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "infer-exports",
        exports: { default: async },
        additional_derives: [Clone, PartialEq],
    });
}

/// The generate component, as the host calls it.
#[allow(missing_docs, clippy::all)]
pub mod generate {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "generate-exports",
        exports: { default: async },
        additional_derives: [Clone, PartialEq],
        with: { "weir:stream/types": crate::bindings::types },
    });
}

/// The generate component's import, as the host provides it.
#[allow(missing_docs, clippy::all)]
pub mod lm {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "lm-host",
        imports: {
            "weir:stream/lm.models": async | store | trappable,
            "weir:stream/lm.[static]model.open": async | store | trappable,
            "weir:stream/lm.[method]model.step": async | store | trappable,
            default: trappable,
        },
        with: {
            "weir:stream/types": crate::bindings::types,
            "weir:stream/lm.model": crate::generation::lm::LanguageModel,
        },
        additional_derives: [Clone, PartialEq],
    });
}

/// The gateway component's import, as the host provides it.
#[allow(missing_docs, clippy::all)]
pub mod gateway {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "gateway-host",
        imports: { default: async | store | trappable },
        with: {
            "weir:stream/types": crate::bindings::types,
            "weir:stream/generate-types": crate::bindings::generate_types,
        },
    });
}

/// A step component of a pipeline, as the host calls it.
#[allow(missing_docs, clippy::all)]
pub mod step {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "step-component",
        exports: { default: async },
    });
}

/// The adapter component, as the host calls it.
#[allow(missing_docs, clippy::all)]
pub mod adapter {
    wasmtime::component::bindgen!({
        path: "../../wit",
        world: "adapter-exports",
        exports: { default: async },
    });
}

pub use generate::weir::stream::generate_types;
pub use infer::weir::stream::types;
