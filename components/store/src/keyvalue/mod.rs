//! The store in a bucket of `wasi:keyvalue`.
//!
//! - `host`: what the store needs of its host. `bucket`: the host of a component.
//! - `names`: the keys of the bucket. `format`: the stored forms. `records`: reading and writing them.
//! - `lock`: locks. Every write holds the lock of its key, and one with a fence also that of the lease.
//! - `followed`: copies of the channels that this instance follows, read again at intervals.
//! - `sweep`: the removal of expired keys.
//! - `store`: the operations.
//!
//! The events of a channel are one value, so an append is all or nothing. A write that the bucket refuses is a failure of its caller.
//!
//! **Invariant:** no borrow of the state of the instance lasts while the host is called.

mod bucket;
mod followed;
mod format;
mod host;
mod lock;
mod names;
mod records;
mod store;
mod sweep;
#[cfg(test)]
mod tests;

pub use bucket::{Bucket, BucketHost};
pub use host::{Host, HostError};
pub use store::Keyvalue;
