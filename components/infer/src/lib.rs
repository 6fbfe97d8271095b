//! The infer component: tokenizes, batches and runs texts through wasi:nn.
