//! Timestamps of the stages that one item passes in the process, for `cargo xtask bench path`. Recording is off unless a program turns
//! it on; while it is off, a mark costs one atomic load. Only one item at a time can be traced: a mark replaces the one before.
//! Transfers between the host and its components are counted too.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A stage, in the order in which an item passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The edge has received the head of the request.
    Head,
    /// A gateway instance begins to handle the request.
    Admitted,
    /// The item enters the queue of its model.
    Queued,
    /// A replica has taken the item.
    Taken,
    /// The engine begins to compute.
    ComputeBegin,
    /// The engine has computed.
    ComputeEnd,
    /// The outcome is sent to the caller's stream.
    Delivered,
    /// The gateway instance receives the outcome.
    Returned,
    /// The edge has received the head of the response.
    Answered,
}

/// The number of stages.
pub const STAGES: usize = 9;

/// A list of values that crosses the boundary between the host and a component, or the socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transfer {
    /// Items that the host reads from a gateway instance.
    ItemsRead,
    /// Items that a replica takes.
    ItemsTaken,
    /// Outcomes that a replica gives.
    OutcomesGiven,
    /// Outcomes that a gateway instance reads.
    OutcomesRead,
    /// Bytes of a body that a gateway instance has written.
    Body,
}

/// The number of kinds of [`Transfer`].
pub const TRANSFERS: usize = 5;

static TRANSFER_COUNTS: [AtomicU64; TRANSFERS] = [const { AtomicU64::new(0) }; TRANSFERS];
static IS_ON: AtomicBool = AtomicBool::new(false);
static START: OnceLock<Instant> = OnceLock::new();
static MARKS_NS: [AtomicU64; STAGES] = [const { AtomicU64::new(0) }; STAGES];
static ENGINE_NS: AtomicU64 = AtomicU64::new(0);

/// Turns recording on.
pub fn record() {
    START.get_or_init(Instant::now);
    IS_ON.store(true, Ordering::Relaxed);
}

/// Nanoseconds since recording was turned on; 0 before that.
pub fn now_ns() -> u64 {
    START.get().map_or(0, |start| u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// The last mark of each stage, on the clock of [`now_ns`].
pub fn marks_ns() -> [u64; STAGES] {
    std::array::from_fn(|stage| MARKS_NS[stage].load(Ordering::Relaxed))
}

/// Processor time of engines since recording was turned on, in nanoseconds.
pub fn engine_ns() -> u64 {
    ENGINE_NS.load(Ordering::Relaxed)
}

/// Records the current time for a stage.
pub fn mark(stage: Stage) {
    if IS_ON.load(Ordering::Relaxed) {
        MARKS_NS[stage as usize].store(now_ns(), Ordering::Relaxed);
    }
}

/// Counts a transfer.
pub fn count(transfer: Transfer) {
    if IS_ON.load(Ordering::Relaxed) {
        TRANSFER_COUNTS[transfer as usize].fetch_add(1, Ordering::Relaxed);
    }
}

/// The number of transfers of each kind since recording was turned on.
pub fn transfer_counts() -> [u64; TRANSFERS] {
    std::array::from_fn(|kind| TRANSFER_COUNTS[kind].load(Ordering::Relaxed))
}

/// Calls `compute`, and counts the processor time of this thread meanwhile.
pub(crate) fn compute<T>(compute: impl FnOnce() -> T) -> T {
    if !IS_ON.load(Ordering::Relaxed) {
        return compute();
    }
    mark(Stage::ComputeBegin);
    let before = thread_ns();
    let computed = compute();
    ENGINE_NS.fetch_add(thread_ns().saturating_sub(before), Ordering::Relaxed);
    mark(Stage::ComputeEnd);
    computed
}

/// The processor time of this thread in nanoseconds; 0 where the system does not provide it.
fn thread_ns() -> u64 {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
    }
    #[cfg(not(unix))]
    0
}
