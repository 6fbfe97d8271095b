//! The interfaces of `weir:stream` that the host provides to gateway instances, one file for each, and the conversions of their
//! types.

pub(crate) mod convert;
mod events;
mod generate;
mod infer;
mod state;
mod steps;
