//! Inference: the calls, the queue of each model, and the replicas that compute.
//!
//! - [`call`]: one caller's pair of streams: its bounds, its end, and its abandonment.
//! - `gather`: the outcomes of a call in lists.
//! - `queue`: the items that wait for one model.
//! - [`pool`]: the replicas of one model: threads with an infer instance each, fed from the queue.
//! - [`item`]: items with shared texts; `reply`: the sender of one outcome.
//! - [`failure`]: the failures of items as text and as codes.

pub mod call;
pub mod failure;
pub(crate) mod gather;
pub mod item;
pub mod pool;
pub(crate) mod queue;
mod reply;
