//! What the gateway imports of Weir, generated from `wit/`.

#![allow(missing_docs, clippy::all, unreachable_pub)]

wit_bindgen::generate!({
    world: "gateway-imports",
    path: "../../wit",
});
