//! The store for hosts other than `weir`: `weir:stream/events`, `weir:stream/state` and `weir:stream/steps`.
//!
//! A component of the store is an [`Instance`] and the macro [`bindings::export`]: `components/store-memory` has a [`Memory`], the
//! components `components/store-keyvalue*` have a [`Keyvalue`].
//!
//! - `service`: the exports, over the trait [`Store`]; `convert`: conversions between the types of WIT and those of core.
//! - `memory`: core's logs, values, claims and leases in the memory of the component. Its content is lost with its instance, and instances
//!   share nothing.
//! - `keyvalue`: the same in a bucket of `wasi:keyvalue`, which several instances share. What it stores is as durable as the bucket.
//!
//! `docs/guides/hosts.md` describes how each host is configured. `GET /stream/health` names the store `memory` or `keyvalue`.
//!
//! Every step is unknown: such a host runs no components of its operator.

/// The generated bindings, and the macro that exports an [`Instance`].
pub mod bindings {
    #![allow(missing_docs, clippy::all, unreachable_pub)]
    wit_bindgen::generate!({
        inline: "
            package weir:store;
            world store {
                import wasi:clocks/monotonic-clock@0.3.0;
                import wasi:clocks/system-clock@0.3.0;
                export weir:%stream/events@0.1.0;
                export weir:%stream/state@0.1.0;
                export weir:%stream/steps@0.1.0;
            }
        ",
        path: "../../wit",
        world: "weir:store/store",
        generate_all,
        pub_export_macro: true,
        default_bindings_module: "weir_store::bindings",
        with: {
            "weir:stream/events@0.1.0/cursor": weir_core::channels::Cursor,
            "weir:stream/events@0.1.0/gap": weir_core::channels::Gap,
        },
    });
}

mod channels;
mod convert;
mod keyvalue;
mod memory;
mod service;

use std::rc::Rc;

use weir_core::channels::{ChannelName, Cursor, Delivery, Draft, Fence, Page};

pub use bindings::exports::weir::stream::{
    events::{Condition, Failure},
    state::Acquisition,
};
pub use keyvalue::{Bucket, BucketHost, Host, HostError, Keyvalue};
pub use memory::Memory;

/// Most events of a page, and keys of a list.
const PAGE_EVENTS_MAX: usize = 1000;
/// Most bytes of a page.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Most bytes of the undelivered events of a follower.
const OUTBOX_BYTES_MAX: usize = 256 << 10;
/// After which time a caller retries when the store is unavailable, in milliseconds.
const RETRY_MS: u32 = 1000;

/// The store of a component.
pub trait Instance: 'static {
    /// Its kind.
    type Store: Store;

    /// The one store of the instance.
    fn store() -> Rc<Self::Store>;
}

/// What the interfaces need of a store. Names, and the bounds of one event and one value, are checked by the caller.
pub trait Store: 'static {
    /// Appends events, all or none, with adjacent cursors.
    fn append(
        &self,
        channel: &ChannelName,
        drafts: Vec<Draft>,
        fence: Option<Fence>,
    ) -> impl Future<Output = Result<Vec<Cursor>, Failure>>;

    /// The events after a cursor, at most `limit`.
    fn read(&self, channel: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Failure>;

    /// Registers a follower, and returns its id.
    fn follow(&self, channel: &ChannelName, after: Cursor) -> Result<u64, Failure>;

    /// The deliveries for a follower, and whether its channel has ended for it.
    fn poll(&self, channel: &ChannelName, follower: u64) -> (Vec<Delivery>, bool);

    /// Removes a follower.
    fn unfollow(&self, channel: &ChannelName, follower: u64);

    /// Claims a key: true for exactly one caller until the time has passed.
    fn claim(&self, key: &str, ttl_ms: u64) -> impl Future<Output = Result<bool, Failure>>;

    /// Its health.
    fn health(&self) -> Condition;

    /// Stores a value, for `ttl_ms` milliseconds or until it is deleted.
    fn put(
        &self,
        key: &ChannelName,
        value: Vec<u8>,
        ttl_ms: Option<u64>,
        fence: Option<Fence>,
        user: Option<&str>,
    ) -> impl Future<Output = Result<(), Failure>>;

    /// The value of a key.
    fn value(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Failure>;

    /// Deletes a key and its value.
    fn delete(&self, key: &ChannelName, fence: Option<Fence>) -> impl Future<Output = Result<(), Failure>>;

    /// The keys of a kind after another, in order, at most `limit`.
    fn keys(&self, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Failure>;

    /// The number of keys of a kind.
    fn count(&self, kind: &str) -> Result<u64, Failure>;

    /// Acquires a lease.
    fn acquire(
        &self,
        key: &ChannelName,
        owner: &str,
        ttl_ms: u64,
    ) -> impl Future<Output = Result<Acquisition, Failure>>;

    /// Extends a lease.
    fn renew(&self, fence: &Fence, ttl_ms: u64) -> impl Future<Output = Result<(), Failure>>;

    /// Ends a lease.
    fn release(&self, fence: &Fence) -> impl Future<Output = Result<(), Failure>>;
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let now = bindings::wasi::clocks::system_clock::now();
    u64::try_from(now.seconds).unwrap_or(0) * 1000 + u64::from(now.nanoseconds) / 1_000_000
}

/// Milliseconds of a clock that never goes back.
pub fn clock_ms() -> u64 {
    bindings::wasi::clocks::monotonic_clock::now() / 1_000_000
}

/// Resolves after a time.
pub async fn wait_ms(ms: u64) {
    bindings::wasi::clocks::monotonic_clock::wait_for(ms.saturating_mul(1_000_000)).await;
}
