//! The channel store of Weir's native host: sequences of events that are stored, replayed and followed.
//!
//! - [`Store`]: append, read, follow and claim, and values under keys, over one of three kinds of storage
//! - [`Subscription`]: a reader that [`Store::follow`] returns: replay, then live events
//! - [`Store::acquire`], [`Fence`]: leases, and the token that fenced writes carry
//! - [`EventsConfig`]: the kind of storage, its location and every bound
//! - [`Callback`]: a subscriber that is a function
//! - [`Tap`]: all events that are appended, for [`write_events`] (a rotated file) and metrics
//! - `hub`: the channels in memory and their subscribers; the memory store consists of it
//! - `disk`: the hub with a file: an append is assigned its cursors, is written in one commit with others, and is then
//!   published
//! - `redis`: the hub as a mirror of Redis Streams, updated by one blocking read for all followed channels
//!
//! # Invariants
//!
//! - For every kind of storage: a reader gets every event after its cursor, in order and once, or a gap that names the
//!   missing cursors.
//! - A cursor (`epoch-seq`) that a reader may have seen is never assigned to another event.
//! - On disk an event is visible only once it is committed, and with `durable` flushed. Without `durable`, a file that
//!   was not closed continues in a new epoch.
//! - After a failed commit nothing is written until the file is recovered (`disk/recovery.rs`).
//! - Ages are measured by the store clock, which is never set; the wall clock only stamps events (`clock.rs`).
//! - A subscriber has a slot in its channel and nothing else: no task, no thread and no copy of an event.
//!
//! ```
//! use weir_core::channels::{ChannelName, Cursor, Delivery, Draft};
//! use weir_events::{EventsConfig, Store};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
//! let store = Store::open(EventsConfig::default()).await.unwrap();
//! let channel: ChannelName = "workflow:w1".parse().unwrap();
//! store.append(&channel, vec![Draft::new("workflow_progress", r#"{"progress":50}"#)]).await.unwrap();
//! let mut subscription = store.follow(&channel, Cursor::START).await.unwrap();
//! let Some(Delivery::Event { entry, .. }) = subscription.next().await else { panic!() };
//! assert_eq!(&*entry.data, r#"{"progress":50}"#);
//! # });
//! ```

mod backend;
mod callback;
mod claims;
mod clock;
mod config;
mod disk;
mod error;
mod file;
mod hub;
mod lease;
mod memory;
mod redis;
mod store;
mod subscription;
mod tap;

pub use backend::{Health, WriteContext};
pub use callback::Callback;
pub use config::{EventsConfig, Fallback, RedisConfig, StoreKind};
pub use error::{Error, OpenError};
pub use file::{FileConfig, write_events};
pub use lease::Acquisition;
pub use store::{Stats, Store};
pub use subscription::Subscription;
pub use tap::{Tap, TapItem};
pub use weir_core::channels::Fence;
