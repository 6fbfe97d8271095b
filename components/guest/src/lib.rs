//! Parts that several components share.
//!
//! - [`notify`]: notifications between the futures of a task.
//! - [`read`]: reads of streams.

pub mod notify;
pub mod read;
