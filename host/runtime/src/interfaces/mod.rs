//! The interfaces of `weir:stream` that the host provides to gateway instances (and `infer` to adapters), one file for
//! each, and the conversions of their types.

pub(crate) mod convert;
mod events;
mod generate;
mod infer;
mod state;
mod steps;
mod transfer;
