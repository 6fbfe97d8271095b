//! Instances of the gateway component: how a request gets to one, how one runs, and how many there are.
//!
//! - `admission`: the requests that wait, and what each instance has.
//! - `run`: one instance, from its start to its end.
//! - `front`: the instances that come and go.
//!
//! The instance that has executions and stored sessions is `crate::keeper`, which runs on the same parts.

pub(crate) mod admission;
pub(crate) mod front;
pub(crate) mod run;
