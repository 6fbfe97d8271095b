//! Foundations of the features.
//!
//! - `bindings`: the imports; `wording`: errors of the bindings as text.
//! - `clock`: the clocks and deadlines; `settings`: the environment.
//! - `store`: failures of the channel store as problems; `lease`: ownership among instances; `restoration`: whether the
//!   stored sessions and executions are counted.
//! - `notify`, `turns`: waiting within a task, between tasks, and for the one thread of the instance.

pub(crate) mod bindings;
pub(crate) mod clock;
pub(crate) mod lease;
pub(crate) mod notify;
pub(crate) mod restoration;
pub(crate) mod settings;
pub(crate) mod store;
pub(crate) mod turns;
pub(crate) mod wording;
