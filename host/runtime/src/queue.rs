//! The items that wait for one model, from all callers.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::call::Reply;
use crate::types::{Failure, Item};

/// An item on its way to a replica.
pub(crate) struct Job {
    pub(crate) item: Item,
    pub(crate) reply: Reply,
    /// The place in the queue; free again once a replica has taken the item. A warm-up has none.
    pub(crate) _place: Option<OwnedSemaphorePermit>,
}

/// One queue for each model; replicas pull from it.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    places: Arc<Semaphore>,
    replicas: usize,
    /// Items that were dropped because their caller was gone.
    skipped: AtomicUsize,
}

struct Inner {
    jobs: VecDeque<Job>,
    /// One slot for each replica: filled while it waits for items.
    idle: Vec<Option<Waker>>,
    /// Why no replica can answer, while that is so.
    down: Option<String>,
}

impl Queue {
    pub(crate) fn new(items_max: usize, replicas: usize) -> Self {
        let idle = (0..replicas).map(|_| None).collect();
        Self {
            inner: Mutex::new(Inner { jobs: VecDeque::new(), idle, down: None }),
            places: Arc::new(Semaphore::new(items_max)),
            replicas,
            skipped: AtomicUsize::new(0),
        }
    }

    /// The places of the queue: an item needs one to enter.
    pub(crate) fn places(&self) -> &Arc<Semaphore> {
        &self.places
    }

    /// Adds an item and wakes a replica; answers it at once while no replica can.
    pub(crate) fn push(&self, job: Job) {
        let mut inner = self.lock();
        if let Some(reason) = &inner.down {
            let failure = Failure::Unavailable(reason.clone());
            drop(inner);
            job.reply.send(Err(failure));
            return;
        }
        inner.jobs.push_back(job);
        let waker = inner.idle.iter_mut().find_map(Option::take);
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Takes up to `max` items for `replica`, but never more than its share of what waits. Items whose caller is gone are
    /// dropped here and never computed.
    pub(crate) fn poll_take(&self, replica: usize, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Job>> {
        let mut inner = self.lock();
        let before = inner.jobs.len();
        inner.jobs.retain(|job| !job.reply.gone());
        self.skipped.fetch_add(before - inner.jobs.len(), Ordering::Relaxed);
        if inner.jobs.is_empty() {
            if let Some(slot) = inner.idle.get_mut(replica) {
                *slot = Some(cx.waker().clone());
            }
            return Poll::Pending;
        }
        // It is not idle any more: a wake-up must go to one that is.
        if let Some(slot) = inner.idle.get_mut(replica) {
            *slot = None;
        }
        let share = inner.jobs.len().div_ceil(self.replicas).min(max).max(1);
        let taken: Vec<Job> = inner.jobs.drain(..share).map(|job| Job { _place: None, ..job }).collect();
        // A wake-up may have gone to a replica that found nothing left, or that was lost: pass it on.
        let next = if inner.jobs.is_empty() { None } else { inner.idle.iter_mut().find_map(Option::take) };
        drop(inner);
        if let Some(waker) = next {
            waker.wake();
        }
        Poll::Ready(taken)
    }

    /// Forgets that `replica` waits; its next poll will say so again. A wake-up that it may have had goes to another.
    pub(crate) fn leave(&self, replica: usize) {
        let mut inner = self.lock();
        if let Some(slot) = inner.idle.get_mut(replica) {
            *slot = None;
        }
        let next = if inner.jobs.is_empty() { None } else { inner.idle.iter_mut().find_map(Option::take) };
        drop(inner);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    /// From now on every item is answered `unavailable` with this reason, those that wait as well; `None` ends that.
    pub(crate) fn down(&self, reason: Option<String>) {
        let mut inner = self.lock();
        inner.down = reason.clone();
        let waiting = if reason.is_some() { std::mem::take(&mut inner.jobs) } else { VecDeque::new() };
        drop(inner);
        if let Some(reason) = reason {
            for job in waiting {
                job.reply.send(Err(Failure::Unavailable(reason.clone())));
            }
        }
    }

    /// Items waiting now.
    pub(crate) fn len(&self) -> usize {
        self.lock().jobs.len()
    }

    /// Items that were dropped because their caller was gone.
    pub(crate) fn skipped(&self) -> usize {
        self.skipped.load(Ordering::Relaxed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code between lock and unlock can panic half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;
    use crate::call::{self, Outcomes};
    use crate::types::{ClassifyOptions, Overflow, Task};

    fn job(id: u64) -> (Job, Outcomes) {
        let item = Item {
            id,
            model: "m".into(),
            text: String::new(),
            text_pair: None,
            overflow: Overflow::Truncate,
            deadline_ms: None,
            when_full: crate::types::WhenFull::Wait,
            task: Task::Classify(ClassifyOptions { top_k: None, activation: None }),
        };
        let (reply, outcomes) = call::test_reply(id);
        (Job { item, reply, _place: None }, outcomes)
    }

    fn take(queue: &Queue, replica: usize, max: usize) -> Option<Vec<u64>> {
        match queue.poll_take(replica, &mut Context::from_waker(Waker::noop()), max) {
            Poll::Ready(jobs) => Some(jobs.iter().map(|job| job.item.id).collect()),
            Poll::Pending => None,
        }
    }

    #[test]
    fn a_replica_takes_its_share() {
        let queue = Queue::new(16, 2);
        let kept: Vec<Outcomes> = (0..5)
            .map(|id| {
                let (job, outcomes) = job(id);
                queue.push(job);
                outcomes
            })
            .collect();
        assert_eq!(take(&queue, 0, 64), Some(vec![0, 1, 2]));
        assert_eq!(take(&queue, 1, 64), Some(vec![3]));
        assert_eq!(take(&queue, 1, 64), Some(vec![4]));
        assert_eq!(take(&queue, 1, 64), None);
        drop(kept);
    }

    #[test]
    fn what_nobody_waits_for_is_skipped() {
        let queue = Queue::new(16, 1);
        let (first, gone) = job(0);
        let (second, _kept) = job(1);
        queue.push(first);
        queue.push(second);
        drop(gone);
        assert_eq!(take(&queue, 0, 64), Some(vec![1]));
        assert_eq!(queue.skipped(), 1);
    }

    #[tokio::test]
    async fn while_down_every_item_is_answered() {
        let queue = Queue::new(16, 1);
        let (waiting, mut first) = job(0);
        queue.push(waiting);
        queue.down(Some("it is gone".into()));
        let (late, mut second) = job(1);
        queue.push(late);
        for outcomes in [&mut first, &mut second] {
            let outcome = outcomes.recv().await.unwrap();
            assert_eq!(outcome.result, Err(Failure::Unavailable("it is gone".into())));
        }
        queue.down(None);
        let (job, _kept) = job(2);
        queue.push(job);
        assert_eq!(take(&queue, 0, 1), Some(vec![2]));
    }
}
