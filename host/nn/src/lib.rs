//! wasi:nn for wasmtime: graph registry, tract, models on disk.
