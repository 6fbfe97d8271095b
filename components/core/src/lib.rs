//! Weir's pure state machines: no IO, no clock, no randomness.
//!
//! - [`batch`]: which sequences share one run of a model.
//! - [`chunk`]: texts cut and sliced by code points.
//! - [`summary`]: which sentences say most of a text.
//! - [`tally`]: what the sentiments of the chunks say about the text.
//! - [`failure`]: why a text has no result.
//! - [`process`]: one text through all steps, as work, answers and events.

pub mod batch;
pub mod chunk;
pub mod failure;
pub mod process;
pub mod summary;
pub mod tally;
