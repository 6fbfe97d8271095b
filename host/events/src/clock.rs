//! The clocks of a store, and the epochs that are derived from them.
//!
//! A store has two clocks. The wall clock (milliseconds since 1970) stamps events and may be set at any time. The store
//! clock measures ages and expiries: it starts at the wall clock, advances with the monotonic clock, and continues from
//! its last value when the store is opened again. So setting the wall clock, in either direction, expires no event and
//! hides none.

use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use weir_core::channels::{Cursor, Values};

use crate::error::lock;

/// Low bits of an epoch that distinguish processes.
const RANDOM_BITS: u32 = 16;
/// The greatest wall clock time that fits an epoch.
const WALL_MS_MAX: u64 = (1 << (64 - RANDOM_BITS)) - 1;
/// How far epochs are reserved in advance: milliseconds of the wall clock, and a number of epochs.
const RESERVED_MS: u64 = 86_400_000;
const RESERVED: u64 = 1 << 20;

/// A source of times; tests use `TestClock`.
pub(crate) trait TimeSource: Send + Sync + fmt::Debug {
    /// Milliseconds since 1970 by the wall clock.
    fn wall_ms(&self) -> u64;
    /// Milliseconds since an arbitrary moment in this process, by a clock that is never set.
    fn monotonic_ms(&self) -> u64;
    /// How long the machine has been up, where the system reports it.
    fn uptime(&self) -> Option<Uptime>;
}

/// How long the machine has been up: a clock that continues across processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Uptime {
    /// A hash of the boot id: it differs for each start of the machine.
    pub(crate) boot: u64,
    /// The time since that start, in milliseconds.
    pub(crate) ms: u64,
}

/// The clocks of this machine.
#[derive(Debug)]
struct System {
    start: Instant,
    boot: Option<u64>,
}

impl System {
    fn new() -> Self {
        let id = std::fs::read("/proc/sys/kernel/random/boot_id").ok();
        let hash =
            |id: Vec<u8>| id.iter().fold(0_u64, |sum, byte| sum.wrapping_mul(0x0100_0000_01b3) ^ u64::from(*byte));
        Self { start: Instant::now(), boot: id.map(hash) }
    }
}

impl TimeSource for System {
    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }

    fn monotonic_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }

    fn uptime(&self) -> Option<Uptime> {
        let uptime = std::fs::read_to_string("/proc/uptime").ok()?;
        let seconds: f64 = uptime.split(' ').next()?.parse().ok()?;
        Some(Uptime { boot: self.boot?, ms: (seconds * 1_000.0) as u64 })
    }
}

/// A moment of the store clock, as it is stored in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) store_ms: u64,
    pub(crate) uptime: Option<Uptime>,
}

/// The clocks of a store, and the epochs that it has assigned.
#[derive(Debug)]
pub(crate) struct Clock {
    source: Arc<dyn TimeSource>,
    /// How far the store clock is ahead of the monotonic clock.
    offset_ms: Mutex<u64>,
    epoch_latest: AtomicU64,
    /// Epochs derived from the wall clock are at or below this.
    epoch_max: AtomicU64,
}

impl Clock {
    pub(crate) fn system() -> Self {
        Self::new(Arc::new(System::new()))
    }

    pub(crate) fn new(source: Arc<dyn TimeSource>) -> Self {
        let offset_ms = source.wall_ms().saturating_sub(source.monotonic_ms());
        Self {
            source,
            offset_ms: Mutex::new(offset_ms),
            epoch_latest: AtomicU64::new(0),
            epoch_max: AtomicU64::new(u64::MAX),
        }
    }

    /// Milliseconds since 1970 by the wall clock.
    pub(crate) fn wall_ms(&self) -> u64 {
        self.source.wall_ms()
    }

    /// Milliseconds of the store clock.
    pub(crate) fn now_ms(&self) -> u64 {
        self.source.monotonic_ms().saturating_add(*lock(&self.offset_ms))
    }

    /// The current moment, to be stored in a file.
    pub(crate) fn moment(&self) -> Moment {
        Moment { store_ms: self.now_ms(), uptime: self.source.uptime() }
    }

    /// Continues from a moment that was stored in a file. The time since then counts if the machine was not restarted;
    /// across a restart only the wall clock has measured it, and the wall clock may have been set.
    pub(crate) fn resume(&self, from: Moment) {
        let since_ms = match (from.uptime, self.source.uptime()) {
            (Some(then), Some(now)) if then.boot == now.boot => now.ms.saturating_sub(then.ms),
            _ => 0,
        };
        self.set_store_ms(from.store_ms.saturating_add(since_ms));
    }

    /// Sets the store clock.
    pub(crate) fn set_store_ms(&self, store_ms: u64) {
        *lock(&self.offset_ms) = store_ms.saturating_sub(self.source.monotonic_ms());
    }

    /// The end of a value that is put now, by the store clock; without a time to live it never ends.
    pub(crate) fn end_ms(&self, ttl_ms: Option<u64>) -> u64 {
        ttl_ms.map_or(Values::<()>::NEVER_MS, |ttl_ms| self.now_ms().saturating_add(ttl_ms))
    }

    /// An epoch that no channel had before: greater than all that this store has assigned or observed
    /// ([`Self::observe_epoch`]), even if the wall clock was set. Its random bits distinguish it from the epoch of
    /// another process in the same millisecond.
    pub(crate) fn fresh_epoch(&self) -> u64 {
        let random = RandomState::new().hash_one(0) & ((1 << RANDOM_BITS) - 1);
        let candidate = (self.wall_ms().min(WALL_MS_MAX) << RANDOM_BITS) | random;
        let candidate = if candidate <= self.epoch_max.load(Ordering::Relaxed) { candidate } else { 0 };
        let next = |latest: u64| candidate.max(latest.saturating_add(1));
        let update = |latest| Some(next(latest));
        let before = self.epoch_latest.fetch_update(Ordering::Relaxed, Ordering::Relaxed, update);
        next(before.unwrap_or_default())
    }

    /// Makes all later epochs greater than this one.
    pub(crate) fn observe_epoch(&self, epoch: u64) {
        self.epoch_latest.fetch_max(epoch, Ordering::Relaxed);
    }

    /// The greatest epoch that was assigned or observed.
    pub(crate) fn epoch_latest(&self) -> u64 {
        self.epoch_latest.load(Ordering::Relaxed)
    }

    /// The bound of epochs to reserve in a file, so that the next process starts after all that this one assigns; none
    /// if the current reservation is sufficient.
    pub(crate) fn epochs_to_reserve(&self) -> Option<u64> {
        let bound = |ms: u64, count: u64| {
            let by_wall = self.wall_ms().saturating_add(ms).min(WALL_MS_MAX) << RANDOM_BITS;
            by_wall.max(self.epoch_latest()).saturating_add(count)
        };
        let reserved = self.epoch_max.load(Ordering::Relaxed);
        let short = reserved == u64::MAX || reserved < bound(RESERVED_MS / 2, RESERVED / 2);
        short.then(|| bound(RESERVED_MS, RESERVED))
    }

    /// The bound of the epochs that are reserved.
    pub(crate) fn epoch_max(&self) -> u64 {
        self.epoch_max.load(Ordering::Relaxed)
    }

    /// Records that epochs are reserved up to this bound.
    pub(crate) fn epochs_reserved(&self, epoch_max: u64) {
        self.epoch_max.store(epoch_max, Ordering::Relaxed);
    }

    /// The cursor before the first event of a channel that the store does not know.
    pub(crate) fn beginning(&self) -> Cursor {
        Cursor::new(self.fresh_epoch(), 0)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A source of times that a test sets.
    #[derive(Debug, Default)]
    pub(crate) struct TestClock {
        pub(crate) wall_ms: AtomicU64,
        pub(crate) monotonic_ms: AtomicU64,
        pub(crate) boot: AtomicU64,
    }

    impl TimeSource for TestClock {
        fn wall_ms(&self) -> u64 {
            self.wall_ms.load(Ordering::Relaxed)
        }

        fn monotonic_ms(&self) -> u64 {
            self.monotonic_ms.load(Ordering::Relaxed)
        }

        fn uptime(&self) -> Option<Uptime> {
            Some(Uptime { boot: self.boot.load(Ordering::Relaxed), ms: self.monotonic_ms() })
        }
    }

    impl TestClock {
        pub(crate) fn at(wall_ms: u64) -> Arc<Self> {
            Arc::new(Self { wall_ms: AtomicU64::new(wall_ms), ..Self::default() })
        }

        /// Advances both clocks.
        pub(crate) fn advance(&self, ms: u64) {
            self.wall_ms.fetch_add(ms, Ordering::Relaxed);
            self.monotonic_ms.fetch_add(ms, Ordering::Relaxed);
        }

        /// Sets the wall clock.
        pub(crate) fn set(&self, wall_ms: u64) {
            self.wall_ms.store(wall_ms, Ordering::Relaxed);
        }
    }

    #[test]
    fn epochs_grow() {
        let clock = Clock::system();
        let epochs: Vec<u64> = (0..1_000).map(|_| clock.fresh_epoch()).collect();
        assert!(epochs.is_sorted_by(|a, b| a < b));
        assert!(epochs[0] >> RANDOM_BITS >= 1_600_000_000_000);
    }

    #[test]
    fn epochs_grow_when_the_wall_clock_is_set_back_or_far_ahead() {
        let source = TestClock::at(1_700_000_000_000);
        let clock = Clock::new(source.clone());
        let mut latest = clock.fresh_epoch();
        for wall_ms in [0, 1_600_000_000_000, u64::MAX, 0, 1_700_000_000_001] {
            source.set(wall_ms);
            let epoch = clock.fresh_epoch();
            assert!(epoch > latest, "{epoch} after {latest}");
            latest = epoch;
        }
    }

    #[test]
    fn epochs_stay_within_the_reservation() {
        let source = TestClock::at(1_700_000_000_000);
        let clock = Clock::new(source.clone());
        let reserved = clock.epochs_to_reserve().expect("nothing is reserved yet");
        clock.epochs_reserved(reserved);
        assert_eq!(clock.epochs_to_reserve(), None);
        source.set(1_900_000_000_000);
        assert!(clock.fresh_epoch() <= reserved);
        assert!(clock.epochs_to_reserve() > Some(reserved));
    }

    #[test]
    fn store_clock_advances_with_the_monotonic_clock_only() {
        let source = TestClock::at(1_000_000);
        let clock = Clock::new(source.clone());
        source.advance(500);
        source.set(9_000_000);
        assert_eq!(clock.now_ms(), 1_000_500);
        source.set(0);
        source.advance(500);
        assert_eq!((clock.now_ms(), clock.wall_ms()), (1_001_000, 500));
    }

    #[test]
    fn time_between_two_processes_counts_where_the_machine_stayed_up() {
        let source = TestClock::at(1_000_000);
        let moment = Clock::new(source.clone()).moment();
        source.advance(700);
        source.set(5);
        let next = Clock::new(source.clone());
        next.resume(moment);
        assert_eq!(next.now_ms(), 1_000_700);
        source.boot.store(1, Ordering::Relaxed);
        next.resume(moment);
        assert_eq!(next.now_ms(), 1_000_000);
    }
}
