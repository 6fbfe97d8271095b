//! One instance of a replica: its health, and the items that it has in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::inference::queue::Job;
use crate::types::Item;

/// One instance of a replica.
#[derive(Default)]
pub(super) struct Instance {
    pub(super) in_flight: InFlight,
    pub(super) health: Health,
    /// It hung, and another instance runs in its place.
    pub(super) replaced: AtomicBool,
    pub(super) replaced_notify: tokio::sync::Notify,
}

#[derive(Default)]
pub(super) struct Health {
    phase: Mutex<Phase>,
    failure: Mutex<Option<String>>,
    failed: tokio::sync::Notify,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Its warm-up has no outcome yet.
    #[default]
    Starting,
    /// Its warm-up has succeeded.
    Ready,
    Lost,
}

impl Health {
    /// Marks it as ready; returns false when it is lost already.
    pub(super) fn mark_ready(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Starting {
            *phase = Phase::Ready;
        }
        *phase == Phase::Ready
    }

    /// Marks it as lost; returns whether it was ready.
    pub(super) fn mark_lost(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *phase, Phase::Lost) == Phase::Ready
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) == Phase::Ready
    }

    /// Ends the instance with an error.
    pub(super) fn fail(&self, reason: String) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.failed.notify_one();
    }

    /// Resolves with the reason of [`Health::fail`].
    pub(super) async fn failed(&self) -> String {
        loop {
            self.failed.notified().await;
            if let Some(reason) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return reason;
            }
        }
    }
}

/// The items that an instance has and has not answered, by their id on its stream.
#[derive(Default)]
pub(super) struct InFlight {
    next: AtomicU32,
    state: Mutex<InFlightState>,
    /// Finished computations of the engine.
    pub(super) computed: Arc<AtomicU64>,
}

#[derive(Default)]
struct InFlightState {
    jobs: HashMap<u64, Job>,
    /// The time of the last outcome, or of the first item since it was idle.
    since: Option<Instant>,
    /// Finished computations when they were last read, and when they last changed: a long text gives an outcome only after
    /// many of them.
    computed: u64,
    computed_at: Option<Instant>,
    /// It has one item, a suspect.
    has_suspect: bool,
    /// Woken when it has no item.
    waiter: Option<Waker>,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, InFlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds jobs; returns their items, with their ids on the stream.
    pub(super) fn add(&self, jobs: Vec<Job>, has_suspect: bool) -> Vec<Item> {
        let mut state = self.lock();
        if state.jobs.is_empty() {
            state.since = Some(Instant::now());
        }
        state.has_suspect = has_suspect;
        let items = jobs.into_iter().map(|job| {
            // The upper half is the call: the component serves calls in turn.
            let id = job.ticket.call << 32 | u64::from(self.next.fetch_add(1, Ordering::Relaxed));
            let item = Item { id, ..job.item.clone() };
            state.jobs.insert(id, job);
            item
        });
        items.collect()
    }

    /// Removes the job of an outcome; returns it with the time since the outcome before, or since the instance was idle.
    pub(super) fn remove(&self, id: u64) -> Option<(Job, Duration)> {
        let mut state = self.lock();
        let job = state.jobs.remove(&id)?;
        let now = Instant::now();
        let busy = state.since.map_or(Duration::ZERO, |since| now - since);
        state.since = Some(now);
        let waker = if state.jobs.is_empty() {
            state.has_suspect = false;
            state.waiter.take()
        } else {
            None
        };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some((job, busy))
    }

    /// Removes all jobs, in the order in which they were added; returns them, and whether they are one suspect.
    pub(super) fn clear(&self) -> (Vec<Job>, bool) {
        let mut state = self.lock();
        let mut jobs: Vec<(u64, Job)> = state.jobs.drain().collect();
        jobs.sort_unstable_by_key(|(id, _)| *id as u32);
        (jobs.into_iter().map(|(_, job)| job).collect(), std::mem::take(&mut state.has_suspect))
    }

    /// The time since the last sign of progress; `None` while there is no item.
    pub(super) fn silence(&self) -> Option<Duration> {
        let computed = self.computed.load(Ordering::Relaxed);
        let mut state = self.lock();
        if state.computed != computed {
            (state.computed, state.computed_at) = (computed, Some(Instant::now()));
        }
        if state.jobs.is_empty() {
            return None;
        }
        state.since.map(|since| state.computed_at.map_or(since, |at| at.max(since)).elapsed())
    }

    /// Whether there is an item, and whether it is a suspect. The task is woken when there is none.
    pub(super) fn register(&self, cx: &Context<'_>) -> (bool, bool) {
        let mut state = self.lock();
        let is_busy = !state.jobs.is_empty();
        if is_busy {
            state.waiter = Some(cx.waker().clone());
        }
        (is_busy, state.has_suspect)
    }
}
