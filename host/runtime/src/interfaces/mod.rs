//! The interfaces of `weir:stream` that the host provides to gateway instances.

pub(crate) mod events;
mod state;
