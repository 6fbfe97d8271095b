//! The scheduling of items on a model.
//!
//! - [`queue`]: the items that wait for a model: fair between callers, ordered by deadline, bounded.
//! - [`batch`]: the sequences that share one run of a model; [`cost`]: an estimate of a run's duration.
//! - [`retry`]: the delays and the budget of retries; [`breaker`]: the circuit breaker.
//! - [`stream`]: the embedding API: a stream of items through a model, from push to result; [`order`],
//!   [`backpressure`]: its parts.
//! - [`text_step`]: steps that run a model on a text; [`chunk`]: slices of a text by code points; [`tally`],
//!   [`summary`]: the results of the parts combined to a result of the text.

pub mod backpressure;
pub mod batch;
pub mod breaker;
pub mod chunk;
pub mod cost;
pub mod order;
pub mod queue;
pub mod retry;
pub mod stream;
pub mod summary;
pub mod tally;
pub mod text_step;
