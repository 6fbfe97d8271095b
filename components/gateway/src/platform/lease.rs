//! Ownership of executions and stored sessions among instances. `weir:stream/state` grants a lease and refuses writes with an earlier
//! token, so an instance that was paused past its lease changes nothing.
//!
//! A lease lasts three quarters of `WEIR_EVENTS_LEASE_MS` and is renewed every eighth; others look for expired ones every quarter. What a
//! dead instance owned is therefore owned again within `WEIR_EVENTS_LEASE_MS`.

use std::cell::Cell;

use weir_core::time::Now;

use crate::{
    http::request_id,
    platform::{
        bindings::weir::stream::{
            events::{Failure, Fence},
            state::{self, Acquisition},
        },
        clock::{self, Deadline},
        settings::Settings,
        store,
    },
};

const NS_PER_MS: u64 = 1_000_000;
/// What `WEIR_EVENTS_LEASE_MS` is when the settings cannot be read, which is reported elsewhere.
const DEFAULT_MS: u64 = 10_000;

/// A lease that this instance has acquired.
#[derive(Debug)]
pub(crate) struct StoreLease {
    fence: Fence,
    /// Until when no other instance can have acquired it, on the monotonic clock.
    fresh_until_ns: Cell<u64>,
    lost: Cell<bool>,
}

/// How long a lease lasts unless it is renewed, in milliseconds.
fn ttl_ms() -> u64 {
    (lease_ms() * 3 / 4).max(1)
}

/// How often a lease is renewed, in milliseconds.
fn renew_ms() -> u64 {
    (lease_ms() / 8).max(1)
}

/// How often an instance scans for state without an owner, in milliseconds.
pub(crate) fn scan_ms() -> u64 {
    (lease_ms() / 4).max(1)
}

fn lease_ms() -> u64 {
    Settings::current().map_or(DEFAULT_MS, |settings| settings.lease_ms)
}

/// The owner name of this instance: that of the host, so that the next instance of the same host need not wait for the end of the leases
/// of this one.
fn owner() -> String {
    thread_local! {
        static RANDOM: String = format!("{:032x}", u128::from_be_bytes(request_id::random()));
    }
    match Settings::current() {
        Ok(Settings { instance: Some(instance), .. }) => instance.clone(),
        _ => RANDOM.with(Clone::clone),
    }
}

/// Acquires the lease of a key; or in how many milliseconds another instance's ends, unless it is renewed.
pub(crate) async fn acquire(key: String) -> Result<Result<StoreLease, u64>, Failure> {
    let asked = clock::now();
    match state::acquire(key.clone(), owner(), ttl_ms()).await? {
        Acquisition::Held(remaining_ms) => Ok(Err(remaining_ms)),
        Acquisition::Acquired(token) => {
            let lease =
                StoreLease { fence: Fence { key, token }, fresh_until_ns: Cell::new(0), lost: Cell::new(false) };
            lease.refresh(asked);
            Ok(Ok(lease))
        }
    }
}

/// A lease of one request, exclusive among requests of the same instance as well. It is for short work: it is not renewed, and its holder
/// releases it.
#[derive(Debug)]
pub(crate) struct RequestLease {
    fence: Fence,
}

/// Acquires the lease of a key for one request, for the given number of milliseconds; or in how many milliseconds another request's ends.
pub(crate) async fn acquire_for_request(key: String, ttl_ms: u64) -> Result<Result<RequestLease, u64>, Failure> {
    let owner = format!("{:032x}", u128::from_be_bytes(request_id::random()));
    match state::acquire(key.clone(), owner, ttl_ms).await? {
        Acquisition::Held(remaining_ms) => Ok(Err(remaining_ms)),
        Acquisition::Acquired(token) => Ok(Ok(RequestLease { fence: Fence { key, token } })),
    }
}

impl RequestLease {
    /// What is written under the lease carries this.
    pub(crate) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Ends it now. Best effort: it ends by itself otherwise.
    pub(crate) async fn release(self) {
        let _ = state::release(self.fence).await;
    }
}

impl StoreLease {
    /// The fence for writes of the owned state.
    pub(crate) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// No other instance can have acquired it yet. Work that others notice begins only then.
    pub(crate) fn is_fresh(&self, now: Now) -> bool {
        !self.lost.get() && now.monotonic_ns < self.fresh_until_ns.get()
    }

    /// Another instance has acquired it.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// A write was refused.
    pub(crate) fn lose(&self) {
        self.lost.set(true);
    }

    /// Makes it last from now.
    pub(crate) async fn renew(&self) -> Result<(), Failure> {
        let asked = clock::now();
        let renewed = state::renew(self.fence.clone(), ttl_ms()).await;
        match &renewed {
            Ok(()) => self.refresh(asked),
            Err(Failure::Fenced) => self.lose(),
            Err(_) => {}
        }
        renewed
    }

    /// Renews it until it is lost. `renewed` is called after each renewal.
    pub(crate) async fn keep(&self, renewed: impl Fn()) {
        let mut is_reported = false;
        while !self.is_lost() {
            Deadline::after(clock::now(), renew_ms()).passed().await;
            match self.renew().await {
                Ok(()) => {
                    is_reported = false;
                    renewed();
                }
                Err(Failure::Fenced) => {}
                Err(failure) if !is_reported => {
                    is_reported = true;
                    eprintln!("warn: the lease of {} was not renewed: {}", self.fence.key, store::reason(&failure));
                }
                Err(_) => {}
            }
        }
    }

    /// Ends it now. Best effort: it ends by itself otherwise.
    pub(crate) async fn release(&self) {
        if self.is_lost() {
            return;
        }
        match state::release(self.fence.clone()).await {
            Ok(()) => self.fresh_until_ns.set(0),
            Err(Failure::Fenced) => self.lose(),
            Err(_) => {}
        }
    }

    /// An eighth is for clocks that do not run alike.
    fn refresh(&self, asked: Now) {
        let fresh_ns = ttl_ms().saturating_mul(NS_PER_MS) / 8 * 7;
        self.fresh_until_ns.set(asked.monotonic_ns.saturating_add(fresh_ns));
    }
}
