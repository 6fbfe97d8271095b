//! The gateway component: wasi:http in, streams of results out.
