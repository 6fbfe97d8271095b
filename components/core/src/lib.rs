//! Weir's pure state machines: no IO, no clock, no randomness.
//!
//! - [`chunk`]: texts cut and sliced by code points.
//! - [`tally`]: what the sentiments of the chunks say about the text.
//! - [`failure`]: why a text has no result.
//! - [`process`]: one text through all steps, as work, answers and events.

pub mod chunk;
pub mod failure;
pub mod process;
pub mod tally;
