//! Ownership of executions and stored sessions among instances. `weir:stream/state` grants a lease and refuses writes with an earlier
//! token, so an instance that was paused past its lease changes nothing.
//!
//! A lease lasts three quarters of `WEIR_EVENTS_LEASE_MS` and is renewed every eighth of it; other instances scan for
//! expired ones every quarter. What a dead instance owned is therefore owned again within `WEIR_EVENTS_LEASE_MS`.

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
/// `WEIR_EVENTS_LEASE_MS` when the settings are invalid, which is reported elsewhere.
const DEFAULT_MS: u64 = 10_000;

/// A lease that this instance has acquired.
#[derive(Debug)]
pub(crate) struct StoreLease {
    fence: Fence,
    /// The time until which no other instance can have acquired it, in nanoseconds of the monotonic clock.
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

/// How long an instance retries a write to what it owns before it leaves it to recovery, in milliseconds.
pub(crate) fn patience_ms() -> u64 {
    lease_ms().saturating_mul(3)
}

fn lease_ms() -> u64 {
    Settings::current().map_or(DEFAULT_MS, |settings| settings.lease_ms)
}

/// The name under which this instance acquires leases: that of the host, so that the next instance of the same host
/// does not wait for the leases of this one to expire.
fn owner() -> String {
    thread_local! {
        static RANDOM: String = format!("{:032x}", u128::from_be_bytes(request_id::random()));
    }
    match Settings::current() {
        Ok(Settings { instance: Some(instance), .. }) => instance.clone(),
        _ => RANDOM.with(Clone::clone),
    }
}

/// Acquires the lease of a key. `Ok(Err(ms))` if another instance holds it, with the milliseconds until it expires
/// unless it is renewed.
pub(crate) async fn acquire(key: String) -> Result<Result<StoreLease, u64>, Failure> {
    let requested_at = clock::now();
    match state::acquire(key.clone(), owner(), ttl_ms()).await? {
        Acquisition::Held(remaining_ms) => Ok(Err(remaining_ms)),
        Acquisition::Acquired(token) => {
            let lease =
                StoreLease { fence: Fence { key, token }, fresh_until_ns: Cell::new(0), lost: Cell::new(false) };
            lease.refresh(requested_at);
            Ok(Ok(lease))
        }
    }
}

/// A lease of one request, exclusive among requests of the same instance as well. It is for short critical sections: it
/// is not renewed, and its holder releases it.
#[derive(Debug)]
pub(crate) struct RequestLease {
    fence: Fence,
}

/// Acquires the lease of a key for one request, for `ttl_ms` milliseconds. `Ok(Err(ms))` if another request holds it,
/// with the milliseconds until it expires.
pub(crate) async fn acquire_for_request(key: String, ttl_ms: u64) -> Result<Result<RequestLease, u64>, Failure> {
    let owner = format!("{:032x}", u128::from_be_bytes(request_id::random()));
    match state::acquire(key.clone(), owner, ttl_ms).await? {
        Acquisition::Held(remaining_ms) => Ok(Err(remaining_ms)),
        Acquisition::Acquired(token) => Ok(Ok(RequestLease { fence: Fence { key, token } })),
    }
}

impl RequestLease {
    /// The fence for writes under the lease.
    pub(crate) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Releases it. Best effort: it expires otherwise.
    pub(crate) async fn release(self) {
        let _ = state::release(self.fence).await;
    }
}

impl StoreLease {
    /// The fence for writes of the owned state.
    pub(crate) fn fence(&self) -> Fence {
        self.fence.clone()
    }

    /// Whether no other instance can have acquired it yet. Effects outside of the store begin only while this holds.
    pub(crate) fn is_fresh(&self, now: Now) -> bool {
        !self.lost.get() && now.monotonic_ns < self.fresh_until_ns.get()
    }

    /// Whether another instance has acquired it.
    pub(crate) fn is_lost(&self) -> bool {
        self.lost.get()
    }

    /// Marks it as lost, after a write was refused.
    pub(crate) fn lose(&self) {
        self.lost.set(true);
    }

    /// Renews it for its whole duration from now.
    pub(crate) async fn renew(&self) -> Result<(), Failure> {
        let requested_at = clock::now();
        let renewed = state::renew(self.fence.clone(), ttl_ms()).await;
        match &renewed {
            Ok(()) => self.refresh(requested_at),
            Err(Failure::Fenced) => self.lose(),
            Err(_) => {}
        }
        renewed
    }

    /// Renews it until it is lost. `renewed` is called after each renewal.
    pub(crate) async fn renew_until_lost(&self, renewed: impl Fn()) {
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

    /// Releases it. Best effort: it expires otherwise.
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

    /// Sets how long it is fresh: seven eighths of its duration, since the clocks of the instance and the store may run
    /// at different rates.
    fn refresh(&self, requested_at: Now) {
        let fresh_ns = ttl_ms().saturating_mul(NS_PER_MS) / 8 * 7;
        self.fresh_until_ns.set(requested_at.monotonic_ns.saturating_add(fresh_ns));
    }
}
