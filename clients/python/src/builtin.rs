//! The components that the build script embeds.

include!(concat!(env!("OUT_DIR"), "/builtin.rs"));
