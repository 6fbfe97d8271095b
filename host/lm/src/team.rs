//! Threads that compute one function together, phase by phase.
//!
//! Waiting threads spin for tens of microseconds, because phases are as short, and then sleep: a thread that spins longer takes a
//! processor from the threads that it waits for. A panic of one thread ends the function for all.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// A function of the whole team.
pub(crate) type Task = Arc<dyn Fn(&Member<'_>) -> Result<(), TeamFailure> + Send + Sync>;

/// A thread of the team panicked: the function was not computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TeamFailure;

/// The calling thread and its helpers.
#[derive(Debug)]
pub(crate) struct Team {
    shared: Arc<Shared>,
    helpers: Vec<JoinHandle<()>>,
}

/// A thread that computes a function of the team.
#[derive(Debug)]
pub(crate) struct Member<'a> {
    /// The index of the thread; 0 is the calling thread.
    pub(crate) index: usize,
    /// The number of threads of the team.
    pub(crate) count: usize,
    barrier: &'a Barrier,
}

struct Shared {
    barrier: Barrier,
    /// Counts tasks.
    epoch: AtomicU64,
    is_stopping: AtomicBool,
    task: Mutex<Option<Task>>,
    changed: Condvar,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("epoch", &self.epoch).finish_non_exhaustive()
    }
}

/// Iterations of a spin loop, which take some tens of microseconds.
const SPINS: u32 = 1500;

impl Team {
    /// Starts the helpers of a team of `threads`.
    ///
    /// # Errors
    /// If the system cannot start a thread.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            barrier: Barrier::new(threads),
            epoch: AtomicU64::new(0),
            is_stopping: AtomicBool::new(false),
            task: Mutex::new(None),
            changed: Condvar::new(),
        });
        let mut team = Self { shared, helpers: Vec::new() };
        for index in 1..threads {
            let shared = Arc::clone(&team.shared);
            let builder = std::thread::Builder::new().name(format!("weir-lm-{index}"));
            team.helpers.push(builder.spawn(move || shared.help(index, threads))?);
        }
        Ok(team)
    }

    /// Computes a function with all threads, this one included.
    ///
    /// # Errors
    /// If a helper panics, or a thread panicked in an earlier function.
    ///
    /// # Panics
    /// If the function panics on this thread.
    pub(crate) fn run(&self, task: &Task) -> Result<(), TeamFailure> {
        let Shared { barrier, epoch, task: slot, changed, .. } = &*self.shared;
        if barrier.is_broken.load(Ordering::Acquire) {
            return Err(TeamFailure);
        }
        if !self.helpers.is_empty() {
            let mut slot = lock(slot);
            *slot = Some(Arc::clone(task));
            // Under the lock, so that a helper that is about to sleep does not miss it.
            epoch.fetch_add(1, Ordering::Release);
            drop(slot);
            changed.notify_all();
        }
        let guard = BreakOnPanic(barrier);
        let member = Member { index: 0, count: self.helpers.len() + 1, barrier };
        let result = task(&member).and_then(|()| member.wait());
        drop(guard);
        if !self.helpers.is_empty() {
            lock(slot).take();
        }
        result
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::Release);
        self.shared.barrier.break_up();
        drop(lock(&self.shared.task));
        self.shared.changed.notify_all();
        for helper in self.helpers.drain(..) {
            // Its panic, if it had one, was reported as `TeamFailure`.
            let _ = helper.join();
        }
    }
}

impl Shared {
    fn help(&self, index: usize, count: usize) {
        let mut last_epoch = 0;
        loop {
            let Some(task) = self.next_task(&mut last_epoch) else { return };
            let member = Member { index, count, barrier: &self.barrier };
            // The error of a broken task is reported by the calling thread.
            let computed = catch_unwind(AssertUnwindSafe(|| task(&member).and_then(|()| member.wait())));
            if computed.is_err() {
                self.barrier.break_up();
            }
        }
    }

    /// The next task; `None` if the team stops.
    fn next_task(&self, last_epoch: &mut u64) -> Option<Task> {
        let is_new = |last: u64| self.epoch.load(Ordering::Acquire) != last || self.is_stopping.load(Ordering::Acquire);
        for _ in 0..SPINS {
            if is_new(*last_epoch) {
                break;
            }
            std::hint::spin_loop();
        }
        let mut slot = lock(&self.task);
        loop {
            if self.is_stopping.load(Ordering::Acquire) {
                return None;
            }
            let epoch = self.epoch.load(Ordering::Acquire);
            if epoch != *last_epoch {
                *last_epoch = epoch;
                // There is no task when it has ended already, which happens only after a failure.
                if let Some(task) = slot.clone() {
                    return Some(task);
                }
            }
            slot = self.changed.wait(slot).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Member<'_> {
    /// Waits until every thread of the team has called this.
    ///
    /// # Errors
    /// If a thread panicked.
    pub(crate) fn wait(&self) -> Result<(), TeamFailure> {
        self.barrier.wait()
    }
}

/// The share of thread `index` of `count`: shares are consecutive and as equal as possible.
pub(crate) fn share(units: usize, index: usize, count: usize) -> std::ops::Range<usize> {
    units * index / count..units * (index + 1) / count
}

/// A barrier whose threads spin first and then sleep.
#[derive(Debug)]
struct Barrier {
    threads: usize,
    arrived: AtomicUsize,
    generation: AtomicU64,
    is_broken: AtomicBool,
    sleep: Mutex<()>,
    passed: Condvar,
}

impl Barrier {
    fn new(threads: usize) -> Self {
        Self {
            threads,
            arrived: AtomicUsize::new(0),
            generation: AtomicU64::new(0),
            is_broken: AtomicBool::new(false),
            sleep: Mutex::new(()),
            passed: Condvar::new(),
        }
    }

    fn wait(&self) -> Result<(), TeamFailure> {
        if self.threads == 1 {
            return Ok(());
        }
        let generation = self.generation.load(Ordering::Acquire);
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            self.arrived.store(0, Ordering::Release);
            let guard = lock(&self.sleep);
            self.generation.store(generation + 1, Ordering::Release);
            drop(guard);
            self.passed.notify_all();
            return self.outcome();
        }
        let is_over =
            || self.generation.load(Ordering::Acquire) != generation || self.is_broken.load(Ordering::Acquire);
        for _ in 0..SPINS {
            if is_over() {
                return self.outcome();
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.sleep);
        while !is_over() {
            guard = self.passed.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        drop(guard);
        self.outcome()
    }

    fn outcome(&self) -> Result<(), TeamFailure> {
        if self.is_broken.load(Ordering::Acquire) { Err(TeamFailure) } else { Ok(()) }
    }

    /// Releases all threads with an error, and makes every later wait fail.
    fn break_up(&self) {
        let guard = lock(&self.sleep);
        self.is_broken.store(true, Ordering::Release);
        drop(guard);
        self.passed.notify_all();
    }
}

struct BreakOnPanic<'a>(&'a Barrier);

impl Drop for BreakOnPanic<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.break_up();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_computes_every_phase_of_every_task() {
        for threads in 1..=4 {
            let team = Team::new(threads).unwrap();
            for _ in 0..50 {
                let total = Arc::new(AtomicUsize::new(0));
                let sum = Arc::clone(&total);
                let task: Task = Arc::new(move |member| {
                    for phase in 1..=20 {
                        sum.fetch_add(phase, Ordering::Relaxed);
                        member.wait()?;
                        assert!(sum.load(Ordering::Relaxed) >= member.count * phase * (phase + 1) / 2);
                        member.wait()?;
                    }
                    Ok(())
                });
                assert_eq!(team.run(&task), Ok(()));
                assert_eq!(total.load(Ordering::Relaxed), threads * 210);
            }
        }
    }

    #[test]
    fn panic_of_a_helper_ends_the_task_and_every_later_one() {
        let team = Team::new(3).unwrap();
        let task: Task = Arc::new(|member| {
            assert!(member.index != 2, "as the test wants");
            member.wait()?;
            Ok(())
        });
        assert_eq!(team.run(&task), Err(TeamFailure));
        let task: Task = Arc::new(|_| Ok(()));
        assert_eq!(team.run(&task), Err(TeamFailure));
    }

    #[test]
    fn panic_of_the_calling_thread_ends_all_helpers() {
        let team = Team::new(2).unwrap();
        let task: Task = Arc::new(|member| {
            assert!(member.index != 0, "as the test wants");
            member.wait()
        });
        assert!(catch_unwind(AssertUnwindSafe(|| team.run(&task))).is_err());
        drop(team);
    }

    #[test]
    fn shares_are_consecutive_and_complete() {
        for units in 0..40 {
            for count in 1..=5 {
                let shares: Vec<_> = (0..count).flat_map(|index| share(units, index, count)).collect();
                assert_eq!(shares, (0..units).collect::<Vec<_>>());
            }
        }
    }
}
