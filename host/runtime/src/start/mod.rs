//! What is set up when the runtime starts.

pub(crate) mod event_store;
pub(crate) mod pipeline_metrics;
