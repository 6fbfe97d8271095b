//! A guest that drives wasi:nn on behalf of the tests.
