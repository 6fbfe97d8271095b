//! The session component: transcript sessions over streams.
//!
//! - [`live`]: one session between its inputs and its outputs.
//! - [`rules`]: rules that sessions of the same configuration share.
//! - `service`: the streams; for wasm32 only, all else is tested natively.
//!
//! It imports `wasi:clocks` and what else Rust's standard library asks of `wasi:cli`, nothing of Weir.

/// The generated bindings of the world `session-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        world: "session-service",
        path: "../../wit",
        additional_derives: [Clone, PartialEq],
        generate_all,
    });
}

/// The records of `weir:stream/session`.
pub use bindings::exports::weir::stream::session as types;

pub mod live;
pub mod rules;

#[cfg(target_arch = "wasm32")]
mod service;
