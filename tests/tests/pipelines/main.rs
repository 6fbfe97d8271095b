//! Pipelines: executions, their steps, crashes, and several instances on one store.

mod crashes;
mod executions;
mod instances;
mod steps;
