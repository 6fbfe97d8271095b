//! Leases of the memory and disk stores, which belong to one process. Leases end with the process, as do all holders of
//! their tokens. They are measured by a monotonic clock.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use weir_core::channels::{AcquireError, ChannelName, Fence, Leases, StaleFence};

use crate::clock::Clock;
use crate::error::{Error, lock};

/// The most leases.
const LEASES_MAX: usize = 1 << 20;

/// The result of a request for a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acquisition {
    /// The lease was acquired, with this fencing token.
    Acquired(u64),
    /// Another owner has it.
    Held {
        /// When it ends unless its owner renews it, in milliseconds from now.
        remaining_ms: u64,
    },
}

#[derive(Debug)]
pub(crate) struct LocalLeases {
    began: Instant,
    leases: Mutex<Leases>,
}

impl LocalLeases {
    pub(crate) fn new(clock: &Clock) -> Self {
        // Above the tokens of earlier processes, unless the clock was set back; none of those processes can write any
        // more.
        let leases = Leases::new(LEASES_MAX, clock.wall_ms().saturating_mul(1_000));
        Self { began: Instant::now(), leases: Mutex::new(leases) }
    }

    fn clock_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Acquires a lease. `committed` is called before any later write can be checked.
    pub(crate) fn acquire(
        &self,
        key: &ChannelName,
        owner: &str,
        ttl_ms: u64,
        committed: impl FnOnce(),
    ) -> Result<Acquisition, Error> {
        let mut leases = lock(&self.leases);
        match leases.acquire(key, owner, self.clock_ms(), ttl_ms) {
            Ok(token) => {
                committed();
                Ok(Acquisition::Acquired(token))
            }
            Err(AcquireError::Held { remaining_ms }) => Ok(Acquisition::Held { remaining_ms }),
            Err(full @ AcquireError::Full { .. }) => Err(Error::unavailable(full.to_string(), 1_000)),
        }
    }

    pub(crate) fn renew(&self, fence: &Fence, ttl_ms: u64) -> Result<(), Error> {
        Ok(lock(&self.leases).renew(fence, self.clock_ms(), ttl_ms)?)
    }

    pub(crate) fn release(&self, fence: &Fence) -> Result<(), Error> {
        Ok(lock(&self.leases).release(fence, self.clock_ms())?)
    }

    /// Checks the fence of a write. No lease is acquired until the guard is dropped, so that a write that is queued
    /// under the guard is performed before any later owner's.
    pub(crate) fn check(&self, fence: Option<&Fence>) -> Result<Option<MutexGuard<'_, Leases>>, Error> {
        let Some(fence) = fence else { return Ok(None) };
        let leases = lock(&self.leases);
        leases.check(fence)?;
        Ok(Some(leases))
    }

    pub(crate) fn sweep(&self) {
        lock(&self.leases).expire(self.clock_ms());
    }
}

impl From<StaleFence> for Error {
    fn from(_: StaleFence) -> Self {
        Self::Fenced
    }
}
