//! Inference: the calls of callers, the queue of each model, and the replicas that compute.

pub mod call;
pub mod pool;
pub(crate) mod queue;
