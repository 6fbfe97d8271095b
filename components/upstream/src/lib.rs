//! The upstream component: `weir:stream/generate` by another server, so that every dialect of the gateway reaches that server.
//!
//! - [`settings`]: the server, its models and its bounds, from the environment.
//! - [`models`]: the names of models in requests, and the server's names for them.
//! - [`response`]: converts the response of the server to events of `weir:stream/generate`.
//! - [`convert`]: conversions between the types of that interface and those of codec and core.
//! - `service`: the streams and the requests; compiled for wasm32 only, so that the other modules can be tested natively.
//!
//! An instance has one server. Its environment does not contain the server's key: the host, or a proxy, adds it to the requests.

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

pub mod convert;
pub mod models;
pub mod response;
pub mod settings;

#[cfg(target_arch = "wasm32")]
mod service;
