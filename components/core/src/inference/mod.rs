//! The scheduling of items on a model.
//!
//! - [`queue`]: the items that wait for a model: fair between callers, ordered by deadline, bounded.
//! - [`batch`]: which sequences share one run of a model; [`cost`]: what a run costs, learned while it runs.
//! - [`retry`], [`breaker`]: when to try again, and when to stop trying.
//! - [`stream`]: the embedding API: a stream of items through a model, from push to result; [`order`], [`backpressure`]: its parts.
//! - [`rewrite`]: summaries that a language model has rewritten, and when they count.
//! - [`text_step`]: the steps that ask a model about a text; [`chunk`]: texts cut by code points; [`tally`], [`summary`]: the results of the parts joined to a result of the whole.

pub mod backpressure;
pub mod batch;
pub mod breaker;
pub mod chunk;
pub mod cost;
pub mod order;
pub mod queue;
pub mod retry;
pub mod rewrite;
pub mod stream;
pub mod summary;
pub mod tally;
pub mod text_step;
