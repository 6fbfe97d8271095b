//! The channel store of Weir's native host: events in sequence, kept, replayed and followed.
//!
//! - [`Store`]: append, read, follow and claim, and what is kept between events, over one of three kinds
//! - [`Subscription`]: what [`Store::follow`] gives: replay, then live
//! - [`Store::acquire`], [`Fence`]: leases, and the token that what is owned is written with
//! - [`EventsConfig`]: which kind, where, and every bound
//! - [`Groups`]: several consumers that work one channel together (Redis only)
//! - [`Callback`]: a subscriber that is a function
//! - [`Tap`]: everything that is appended, for [`write_events`] (a rotated file) and metrics
//! - `hub`: the channels in memory and who follows them; the memory store is this and nothing more
//! - `disk`: the same with a file behind it: places, then one fsync for many, then everybody is told
//! - `redis`: the same as a mirror of Redis Streams, fed by one blocking read for all followed channels
//!
//! What is promised, whatever the kind: a reader gets every event after its cursor, in order and once, or a gap that says which
//! places it cannot have. A place (`epoch-seq`) that anybody may have seen is never given to another event.
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

pub use callback::Callback;
pub use config::{EventsConfig, Fallback, RedisConfig, StoreKind};
pub use error::{Error, OpenError};
pub use file::{FileConfig, write_events};
pub use lease::Acquisition;
pub use redis::groups::{Groups, Work};
pub use store::{Health, Stats, Store, Write};
pub use subscription::Subscription;
pub use tap::{Tap, Tapped};
pub use weir_core::channels::Fence;
