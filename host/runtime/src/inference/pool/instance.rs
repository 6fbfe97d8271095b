//! One instance of a replica: how it fares, and what it owes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::inference::queue::Job;
use crate::types::Item;

/// One instance of a replica.
#[derive(Default)]
pub(super) struct Running {
    pub(super) routes: Routes,
    pub(super) health: Health,
    /// It hung, and another runs in its place.
    pub(super) replaced: AtomicBool,
    pub(super) replaced_notify: tokio::sync::Notify,
}

/// How an instance fares.
#[derive(Default)]
pub(super) struct Health {
    phase: Mutex<Phase>,
    failure: Mutex<Option<String>>,
    failed: tokio::sync::Notify,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// It has not answered yet.
    #[default]
    Starting,
    /// It has answered, and counts as ready.
    Ready,
    /// It is lost.
    Over,
}

impl Health {
    /// It has answered; true unless it is lost already.
    pub(super) fn begin(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Starting {
            *phase = Phase::Ready;
        }
        *phase == Phase::Ready
    }

    /// It is lost; true if it counted as ready.
    pub(super) fn end(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *phase, Phase::Over) == Phase::Ready
    }

    pub(super) fn is_ready(&self) -> bool {
        *self.phase.lock().unwrap_or_else(PoisonError::into_inner) == Phase::Ready
    }

    pub(super) fn fail(&self, reason: String) {
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.failed.notify_one();
    }

    pub(super) async fn failed(&self) -> String {
        loop {
            self.failed.notified().await;
            if let Some(reason) = self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
                return reason;
            }
        }
    }
}

/// What an instance owes, by the id that its items have on the merged stream.
#[derive(Default)]
pub(super) struct Routes {
    next: AtomicU32,
    owing: Mutex<Owing>,
    /// Computations of the engine that have ended.
    pub(super) computed: Arc<AtomicU64>,
}

#[derive(Default)]
struct Owing {
    owed: HashMap<u64, Job>,
    /// When it last gave an answer, or got an item while it owed none.
    since: Option<Instant>,
    /// How many computations had ended when that was last looked at, and when they had become so many: a long text gives an
    /// answer only after many of them.
    computed: u64,
    computed_at: Option<Instant>,
    /// What it has is a suspect, alone.
    testing: bool,
    /// Waits until it owes nothing.
    waiter: Option<Waker>,
}

impl Routes {
    fn lock(&self) -> MutexGuard<'_, Owing> {
        self.owing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes jobs over; returns their items as they travel.
    pub(super) fn add(&self, jobs: Vec<Job>, testing: bool) -> Vec<Item> {
        let mut owing = self.lock();
        if owing.owed.is_empty() {
            owing.since = Some(Instant::now());
        }
        owing.testing = testing;
        let items = jobs.into_iter().map(|job| {
            // The upper half says whose it is: the component serves calls in turn.
            let id = job.ticket.call << 32 | u64::from(self.next.fetch_add(1, Ordering::Relaxed));
            let item = Item { id, ..job.item.clone() };
            owing.owed.insert(id, job);
            item
        });
        items.collect()
    }

    /// The job of an outcome, and the time since the outcome before or since it was handed over.
    pub(super) fn take(&self, id: u64) -> Option<(Job, Duration)> {
        let mut owing = self.lock();
        let job = owing.owed.remove(&id)?;
        let now = Instant::now();
        let busy = owing.since.map_or(Duration::ZERO, |since| now - since);
        owing.since = Some(now);
        let waker = if owing.owed.is_empty() {
            owing.testing = false;
            owing.waiter.take()
        } else {
            None
        };
        drop(owing);
        if let Some(waker) = waker {
            waker.wake();
        }
        Some((job, busy))
    }

    /// What is owed, and whether that is a suspect alone; nothing is owed any more.
    pub(super) fn clear(&self) -> (Vec<Job>, bool) {
        let mut owing = self.lock();
        let mut owed: Vec<(u64, Job)> = owing.owed.drain().collect();
        owed.sort_unstable_by_key(|(id, _)| *id as u32);
        (owed.into_iter().map(|(_, job)| job).collect(), std::mem::take(&mut owing.testing))
    }

    /// How long it has been silent, if it owes anything.
    pub(super) fn silent(&self) -> Option<Duration> {
        let computed = self.computed.load(Ordering::Relaxed);
        let mut owing = self.lock();
        if owing.computed != computed {
            (owing.computed, owing.computed_at) = (computed, Some(Instant::now()));
        }
        if owing.owed.is_empty() {
            return None;
        }
        owing.since.map(|since| owing.computed_at.map_or(since, |at| at.max(since)).elapsed())
    }

    /// Whether it owes anything and whether that is a suspect; who asks is woken when it owes nothing.
    pub(super) fn watch(&self, cx: &Context<'_>) -> (bool, bool) {
        let mut owing = self.lock();
        let owes = !owing.owed.is_empty();
        if owes {
            owing.waiter = Some(cx.waker().clone());
        }
        (owes, owing.testing)
    }
}
