//! Weir's pure state machines: no IO, no clock, no randomness.
//!
//! - [`batch`]: which sequences share one run of a model.
//! - [`chunk`]: texts cut and sliced by code points.
//! - [`summary`]: which sentences say most of a text.
//! - [`tally`]: what the sentiments of the chunks say about the text.
//! - [`cost`]: what a run of a model costs, learned while it runs.
//! - [`failure`]: why a text has no result.
//! - [`queue`]: the items that wait for a model: fair, dated, bounded.
//! - [`process`]: one text through all steps, as work, answers and events.

pub mod batch;
pub mod chunk;
pub mod cost;
pub mod failure;
pub mod process;
pub mod queue;
pub mod summary;
pub mod tally;
