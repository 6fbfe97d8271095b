//! One instance of a replica: its health, and the items that it has in flight.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};
use std::time::{Duration, Instant};

use crate::inference::item::SharedItem;
use crate::inference::queue::Job;
use crate::types::Failure;

/// One instance of a replica.
#[derive(Default)]
pub(super) struct Instance {
    pub(super) in_flight: InFlight,
    pub(super) health: Health,
    /// True when the instance hung and another instance replaces it.
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
    /// The warm-up has no outcome yet.
    #[default]
    Starting,
    /// The warm-up has succeeded.
    Ready,
    Lost,
}

impl Health {
    /// Marks the instance as ready; returns false if it is already lost.
    pub(super) fn mark_ready(&self) -> bool {
        let mut phase = self.phase.lock().unwrap_or_else(PoisonError::into_inner);
        if *phase == Phase::Starting {
            *phase = Phase::Ready;
        }
        *phase == Phase::Ready
    }

    /// Marks the instance as lost; returns whether it was ready.
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

/// The items of an instance that have no outcome yet, by their id on its stream.
#[derive(Default)]
pub(super) struct InFlight {
    next: AtomicU32,
    state: Mutex<InFlightState>,
    /// The number of completed computations of the engine.
    pub(super) computed: Arc<AtomicU64>,
}

#[derive(Default)]
struct InFlightState {
    jobs: HashMap<u64, Job>,
    /// The time of the last outcome, or of the first item after the instance was idle.
    since: Option<Instant>,
    /// The number of completed computations at the last check, and the time at which it changed: a long text has its
    /// outcome only after many computations.
    computed: u64,
    computed_at: Option<Instant>,
    /// True if the only item is a suspect.
    has_suspect: bool,
    /// Woken when there is no item left.
    waiter: Option<Waker>,
}

impl InFlight {
    fn lock(&self) -> MutexGuard<'_, InFlightState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds jobs; returns their items, with their ids on the stream.
    pub(super) fn add(&self, jobs: Vec<Job>, has_suspect: bool) -> Vec<SharedItem> {
        let mut state = self.lock();
        if state.jobs.is_empty() {
            state.since = Some(Instant::now());
        }
        state.has_suspect = has_suspect;
        let items = jobs.into_iter().map(|job| {
            // The upper half is the id of the call: the component serves calls in turn.
            let id = job.ticket.call << 32 | u64::from(self.next.fetch_add(1, Ordering::Relaxed));
            // The host has its trace already.
            let item = SharedItem { id, traceparent: None, ..job.item.clone() };
            state.jobs.insert(id, job);
            item
        });
        items.collect()
    }

    /// Removes the job of an outcome; returns it with the time since the previous outcome, or since the instance was
    /// idle.
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

    /// Answers the items whose request has no more time. They stay in flight until the instance gives their outcomes,
    /// which are discarded.
    pub(super) fn answer_late(&self, now_ns: u64) {
        for job in self.lock().jobs.values_mut() {
            if job.answer_by_ns.is_some_and(|at| at <= now_ns) && !job.reply.is_sent() {
                job.reply.send_early(Err(Failure::DeadlineExceeded));
            }
        }
    }

    /// Removes all jobs; returns them in the order in which they were added, and whether the only one is a suspect.
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

    /// Whether there are items, and whether the only one is a suspect. The task is woken when there are none.
    pub(super) fn register(&self, cx: &Context<'_>) -> (bool, bool) {
        let mut state = self.lock();
        let is_busy = !state.jobs.is_empty();
        if is_busy {
            state.waiter = Some(cx.waker().clone());
        }
        (is_busy, state.has_suspect)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use weir_core::inference::queue::Ticket;

    use super::*;
    use crate::inference::call::test_reply;
    use crate::inference::reply::OutcomeLists;
    use crate::types::{ClassifyOptions, Output, Overflow, Task, WhenFull};

    #[tokio::test]
    async fn late_item_in_flight_has_one_outcome_and_that_of_its_replica_is_discarded() {
        let item = SharedItem {
            id: 7,
            model: "m".into(),
            text: "".into(),
            text_pair: None,
            overflow: Overflow::Truncate,
            deadline_ms: Some(1),
            when_full: WhenFull::Fail,
            traceparent: None,
            task: Task::Classify(ClassifyOptions { top_k: None, activation: None }),
        };
        let (reply, mut outcomes) = test_reply(7);
        let mut job = Job::new(item, reply, Ticket { call: 1, owner: 0, tokens: 1, deadline_ns: Some(5) }, None);
        job.answer_by_ns = Some(10);
        let in_flight = InFlight::default();
        let items = in_flight.add(vec![job], false);
        in_flight.answer_late(9);
        assert!(outcomes.recv().now_or_never().is_none(), "its request has time");
        in_flight.answer_late(10);
        in_flight.answer_late(11);
        let outcome = outcomes.recv().await.unwrap();
        assert_eq!(outcome.id, 7);
        assert!(matches!(outcome.result, Err(Failure::DeadlineExceeded)));
        assert!(in_flight.silence().is_some(), "the replica has the item until it gives an outcome");
        let (job, _) = in_flight.remove(items[0].id).unwrap();
        OutcomeLists::default().add(job.reply, 3, Ok(Output::Embedding(Vec::new())));
        assert!(outcomes.recv().await.is_none());
    }
}
