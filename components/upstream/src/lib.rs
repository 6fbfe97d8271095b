//! The upstream component: generated text from another server, so that every dialect of the gateway reaches it.
//!
//! - [`settings`]: the server, its models and its bounds, from the environment.
//! - [`models`]: the names that requests use, and the server's names for them.
//! - [`answer`]: the stream of the server as events of `weir:stream/generate`.
//! - [`convert`]: the types of that interface as codec's, and back.
//! - `service`: the streams and the requests; for wasm32 only, all else is tested natively.
//!
//! It has one server. Its environment has no key: the host adds that to the requests, or a proxy does.

/// The generated bindings of the world `upstream-service`.
#[allow(missing_docs)]
pub mod bindings {
    wit_bindgen::generate!({
        world: "upstream-service",
        path: "../../wit",
        additional_derives: [PartialEq, Clone],
        generate_all,
    });
}

pub mod answer;
pub mod convert;
pub mod models;
pub mod settings;

#[cfg(target_arch = "wasm32")]
mod service;
