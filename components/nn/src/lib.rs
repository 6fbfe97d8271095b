//! `wasi:nn` as a component, for hosts without it: the engine `builtin` of `weir-nn`, compiled for wasm32 with its vector instructions.
//!
//! A graph is loaded by the name of its folder in `/models`, which has the layout of `weir models`, or from the bytes of an ONNX file that
//! contains its weights. A graph that the engine does not support is refused with the reason.
//!
//! Arguments are checked as in the native host: an invalid graph, name or tensor is an error. A panic would end the instance, because a
//! component cannot catch one; `host/nn/tests/hostile_graphs.rs` searches for graphs that panic, and `host/nn/tests/component.rs` loads and
//! computes invalid ones with this component.
//!
//! `wizer-initialize` loads every graph of `/models`, for a tool that then stores the memory of the instance in a new component, such as
//! `wasmtime wizer`. That component contains its graphs and reads no folder.
//!
//! | variable | default | |
//! |---|---|---|
//! | `WEIR_MODELS_PRECISION` | `auto` | `int8`, `f32`, or `auto`: `int8` for classifiers with weights in int8, else `f32` |

#[cfg(target_arch = "wasm32")]
mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:nn;
            world nn {
                export wasi:nn/errors@0.2.0-rc-2024-10-28;
                export wasi:nn/tensor@0.2.0-rc-2024-10-28;
                export wasi:nn/inference@0.2.0-rc-2024-10-28;
                export wasi:nn/graph@0.2.0-rc-2024-10-28;
                export wizer-initialize: func();
            }
        ",
        path: "../../wit/deps/nn.wit",
        world: "weir:nn/nn",
        generate_all,
    });
}

#[cfg(target_arch = "wasm32")]
mod graphs;
#[cfg(target_arch = "wasm32")]
mod service;
