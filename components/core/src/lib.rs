//! Weir's pure state machines: no IO, no clock, no randomness.
//!
//! - [`batch`]: which sequences share one run of a model.
//! - [`channel`]: events in sequence, kept, replayed and followed; the exact sequence or an explicit gap.
//! - [`chunk`]: texts cut and sliced by code points.
//! - [`summary`]: which sentences say most of a text.
//! - [`tally`]: what the sentiments of the chunks say about the text.
//! - [`cost`]: what a run of a model costs, learned while it runs.
//! - [`failure`]: why a text has no result.
//! - [`queue`]: the items that wait for a model: fair, dated, bounded.
//! - [`pipeline`]: steps of a graph that run, fail, are retried and undone, as events and checkpoints.
//! - [`process`]: one text through all steps, as work, answers and events.
//! - [`retry`]: when to try again, and how often at most.
//! - [`breaker`]: what fails too often is left alone for a while.
//! - [`order`]: results of one stream put back in order.
//! - [`backpressure`]: gates that push back, by acknowledgement or by size.
//! - [`stream`]: a stream of items through a model, from push to result, by all of the above.
//! - [`quota`]: how often somebody may ask, and how many connections may be open.
//! - [`session`]: chunks of a transcript in, segments and what they say out.
//! - [`turns`]: whose bounded slice of work runs next on one thread, fair by user.
//! - [`random`]: a seeded generator.
//! - [`text_file`]: text files of the operator: UTF-8, with or without a byte order mark.

pub mod backpressure;
pub mod batch;
pub mod breaker;
pub mod channel;
pub mod chunk;
pub mod cost;
pub mod failure;
mod named;
pub mod order;
pub mod pipeline;
pub mod process;
pub mod queue;
pub mod quota;
pub mod random;
pub mod retry;
pub mod session;
pub mod stream;
pub mod summary;
pub mod tally;
pub mod text_file;
pub mod turns;
