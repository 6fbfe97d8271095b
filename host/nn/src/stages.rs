//! When one item passed the stages of its way through the process, for `cargo xtask bench path`. Recording is off unless a program turns
//! it on; a mark then costs one load. Only one item at a time can be followed: a mark replaces the one before.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// A point of the way, in the order of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// The edge has the head of the request.
    Head,
    /// A gateway instance begins with the request.
    Admitted,
    /// The item enters the queue of its model.
    Queued,
    /// A replica has taken the item.
    Taken,
    /// The engine begins to compute.
    ComputeBegin,
    /// The engine has computed.
    ComputeEnd,
    /// The outcome is on its way to the caller.
    Delivered,
    /// The outcome is handed to the gateway instance.
    Returned,
    /// The edge has the head of the response.
    Answered,
}

/// How many stages there are.
pub const STAGES: usize = 9;

static IS_ON: AtomicBool = AtomicBool::new(false);
static BEGAN: OnceLock<Instant> = OnceLock::new();
static MARKS_NS: [AtomicU64; STAGES] = [const { AtomicU64::new(0) }; STAGES];
static ENGINE_NS: AtomicU64 = AtomicU64::new(0);

/// Turns recording on.
pub fn record() {
    BEGAN.get_or_init(Instant::now);
    IS_ON.store(true, Ordering::Relaxed);
}

/// Nanoseconds on the clock of the marks.
pub fn now_ns() -> u64 {
    BEGAN.get().map_or(0, |began| u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX))
}

/// The last mark of each stage, in nanoseconds on their clock.
pub fn marks_ns() -> [u64; STAGES] {
    std::array::from_fn(|stage| MARKS_NS[stage].load(Ordering::Relaxed))
}

/// Processor time that engines have used since recording began, nanoseconds.
pub fn engine_ns() -> u64 {
    ENGINE_NS.load(Ordering::Relaxed)
}

/// Marks a stage.
pub fn mark(stage: Stage) {
    if IS_ON.load(Ordering::Relaxed) {
        MARKS_NS[stage as usize].store(now_ns(), Ordering::Relaxed);
    }
}

/// Computes, and counts the processor time that this takes its thread.
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

/// The processor time of this thread, nanoseconds; 0 where the system does not say.
fn thread_ns() -> u64 {
    #[cfg(unix)]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        u64::try_from(time.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(time.tv_nsec).unwrap_or(0)
    }
    #[cfg(not(unix))]
    0
}
