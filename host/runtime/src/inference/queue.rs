//! The items that wait for one model, from all callers: [`weir_core::inference::queue`] with a clock, wake-ups and
//! replies.

mod clock;
mod job;
mod state;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, Semaphore};
use weir_core::inference::queue::{DropPolicy, PushOutcome, PushRefusal, Ticket};

pub(crate) use self::job::{Job, QueuePermit};
pub(crate) use self::state::{Assignment, QueueSettings, TakeRequest};

use self::clock::Clock;
use self::job::milliseconds;
use self::state::{DelayedRetry, State};
use crate::inference::item::SharedItem;
use crate::stages::{self, Stage};
use crate::types::{Failure, Overflow};

/// The queue of one model; replicas pull from it.
pub(crate) struct Queue {
    state: Mutex<State>,
    settings: QueueSettings,
    /// Room for items that wait while the queue is full: half of the bounds, so that the other half remains for items
    /// that do not wait.
    item_permits: Arc<Semaphore>,
    token_permits: Arc<Semaphore>,
    /// Notified when items leave the queue.
    departures: Notify,
    replicas: usize,
    clock: Clock,
    /// The estimated tokens per byte of text, as the bits of an f64; updated with each outcome.
    tokens_per_byte: AtomicU64,
    /// The estimated tokens in flight.
    in_flight: Arc<AtomicU64>,
    pub(crate) counts: Counts,
}

/// Counters since the start.
#[derive(Default)]
pub(crate) struct Counts {
    /// Items assigned to replicas.
    pub(crate) handed_over: AtomicU64,
    /// Items that a replica answered.
    pub(crate) answered: AtomicU64,
    /// Items that were dropped because their call was abandoned.
    pub(crate) abandoned: AtomicU64,
    /// Items whose deadline passed while they waited.
    pub(crate) expired: AtomicU64,
    /// Items that were refused because the queue was full or too long for their deadline, or dropped from it.
    pub(crate) overloaded: AtomicU64,
    /// Items that were refused because their owner has its share.
    pub(crate) throttled: AtomicU64,
    /// Items that were refused because the circuit was open.
    pub(crate) refused: AtomicU64,
    /// Attempts after the first.
    pub(crate) retried: AtomicU64,
}

fn count(counter: &AtomicU64, more: usize) {
    counter.fetch_add(more as u64, Ordering::Relaxed);
}

/// The estimate before the first outcome: English text has about four bytes per token.
const FIRST_TOKENS_PER_BYTE: f64 = 0.25;
/// Tokens that a model adds to every text.
const TOKENS_ADDED: u64 = 2;

/// The longest time of one outcome that is counted in the rate of a model.
const BUSY_NS_MAX: u64 = 1_000_000_000;

impl Queue {
    pub(crate) fn new(settings: QueueSettings, replicas: usize) -> Self {
        Self::with_clock(settings, replicas, Clock::system())
    }

    fn with_clock(settings: QueueSettings, replicas: usize, clock: Clock) -> Self {
        let bounds = settings.bounds;
        let tokens = usize::try_from(bounds.tokens_max / 2).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize);
        Self {
            state: Mutex::new(State::new(&settings, replicas)),
            item_permits: Arc::new(Semaphore::new(bounds.items_max.div_ceil(2))),
            token_permits: Arc::new(Semaphore::new(tokens.min(Semaphore::MAX_PERMITS))),
            departures: Notify::new(),
            settings,
            replicas,
            clock,
            tokens_per_byte: AtomicU64::new(FIRST_TOKENS_PER_BYTE.to_bits()),
            in_flight: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Nanoseconds on the queue's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        self.clock.now_ns()
    }

    /// A time on the queue's clock.
    pub(crate) fn ns_at(&self, time: Instant) -> u64 {
        self.clock.ns_at(time)
    }

    /// The ticket of an item, with the tokens that will be computed for it, estimated from its bytes.
    pub(crate) fn ticket(&self, call: u64, owner: u64, item: &SharedItem) -> Ticket {
        let tokens = item.text_bytes() as f64 * f64::from_bits(self.tokens_per_byte.load(Ordering::Relaxed));
        let tokens = (tokens as u64 + TOKENS_ADDED).min(self.item_tokens_max(item));
        let deadline_ns = item.deadline_ms.map(|ms| self.now_ns() + u64::from(ms) * 1_000_000);
        Ticket { call, owner, tokens, deadline_ns }
    }

    /// The most tokens that are computed for an item: a text that is not split is truncated or refused.
    fn item_tokens_max(&self, item: &SharedItem) -> u64 {
        match item.overflow {
            Overflow::Split => u64::MAX,
            Overflow::Truncate | Overflow::TruncateLeft | Overflow::Fail => self.settings.text_tokens_max,
        }
    }

    /// Updates the estimates with an outcome: the bytes and the tokens of its text, and the time since the previous
    /// outcome.
    pub(crate) fn record_answer(&self, item: &SharedItem, tokens: u64, busy_ns: u64) {
        let bytes = item.text_bytes();
        // Only a part of a truncated text has the tokens.
        let is_whole = tokens < self.item_tokens_max(item);
        if tokens > TOKENS_ADDED && bytes > 0 && is_whole {
            let old = f64::from_bits(self.tokens_per_byte.load(Ordering::Relaxed));
            let new = old + 0.02 * ((tokens - TOKENS_ADDED) as f64 / bytes as f64 - old);
            self.tokens_per_byte.store(new.clamp(0.001, 4.0).to_bits(), Ordering::Relaxed);
        }
        // Bounded, since a pause of the whole machine does not measure the rate of the model.
        self.lock().rate.served(tokens, busy_ns.min(BUSY_NS_MAX));
    }

    /// Waits for room for an item.
    pub(crate) async fn permit(&self, tokens: u64) -> Option<QueuePermit> {
        let item = self.item_permits.clone().acquire_owned().await.ok()?;
        let tokens = self.token_permits.clone().acquire_many_owned(self.clamp_tokens(tokens)).await.ok()?;
        Some(QueuePermit { _item: item, _tokens: tokens })
    }

    /// As [`Queue::permit`], without waiting.
    pub(crate) fn try_permit(&self, tokens: u64) -> Option<QueuePermit> {
        let item = self.item_permits.clone().try_acquire_owned().ok()?;
        let tokens = self.token_permits.clone().try_acquire_many_owned(self.clamp_tokens(tokens)).ok()?;
        Some(QueuePermit { _item: item, _tokens: tokens })
    }

    fn clamp_tokens(&self, tokens: u64) -> u32 {
        // A text larger than the total room waits until all of the room is free.
        let all = (self.settings.bounds.tokens_max / 2).clamp(1, u64::from(u32::MAX));
        u32::try_from(tokens.min(all)).unwrap_or(u32::MAX)
    }

    /// Whether a full queue drops the new item or the oldest, so that items do not wait for room.
    pub(crate) fn drops(&self) -> bool {
        self.settings.bounds.drop_policy != DropPolicy::None
    }

    /// Adds an item and wakes a replica. An item that cannot be queued is answered at once.
    pub(crate) fn push(&self, job: Job) {
        self.insert(self.lock(), job);
    }

    /// As [`Queue::push`], for one of several items of a call. Returns the item if earlier items of its call take the
    /// room that it needs, of which they may take half: the caller offers it again after a departure. `is_paced`: an
    /// item of the call was returned before; then its items are not refused but wait for room.
    pub(crate) fn offer(&self, job: Job, is_paced: bool) -> Result<(), Box<Job>> {
        let now = self.now_ns();
        let state = self.lock();
        let is_open = !job.reply.is_abandoned() && state.unavailable.is_none();
        if is_open
            && state.has_to_wait(now, job.ticket, self.in_flight.load(Ordering::Relaxed), self.replicas, is_paced)
        {
            return Err(Box::new(job));
        }
        self.insert(state, job);
        Ok(())
    }

    /// Resolves when items have left the queue since this was called.
    pub(crate) fn departure(&self) -> Notified<'_> {
        self.departures.notified()
    }

    /// Answers an item whose deadline passed before it was queued.
    pub(crate) fn expire(&self, job: Job) {
        self.answer_late(vec![job]);
    }

    fn insert(&self, mut state: MutexGuard<'_, State>, mut job: Job) {
        stages::mark(Stage::Queued);
        let now = self.now_ns();
        // Checked under the lock: a call that is abandoned later finds its items in the queue and cancels them.
        if job.reply.is_abandoned() {
            drop(state);
            count(&self.counts.abandoned, 1);
            return;
        }
        if let Some(reason) = &state.unavailable {
            let failure = Failure::Unavailable(reason.clone());
            drop(state);
            return job.reply.send(0, Err(failure));
        }
        if let Some(breaker) = &mut state.breaker {
            match breaker.admit(now) {
                Ok(permit) => job.permit = Some(permit),
                Err(refused) => {
                    drop(state);
                    count(&self.counts.refused, 1);
                    return job.reply.send(0, Err(Failure::CircuitOpen(milliseconds(refused.retry_after_ns))));
                }
            }
        }
        let ticket = job.ticket;
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let mut wait_ms = state.rate.wait_ms(state.waiting.tokens().saturating_add(in_flight), self.replicas);
        let outcome = if job.queue_permit.is_some() {
            state.waiting.insert(now, ticket, job);
            PushOutcome::Waits
        } else if let Some(late_ms) = state.late_ms(now, ticket, in_flight, self.replicas) {
            // Refused now instead of after its deadline.
            wait_ms = late_ms;
            PushOutcome::Refused(PushRefusal::Full, job)
        } else {
            state.waiting.push(now, ticket, job)
        };
        if !matches!(outcome, PushOutcome::Refused(..)) {
            state.budget.deposit(now);
        }
        let waker = if state.waiting.takeable() > 0 { state.idle.iter_mut().find_map(Option::take) } else { None };
        let refused = match outcome {
            PushOutcome::Waits => Vec::new(),
            PushOutcome::Dropped(jobs) => jobs.into_iter().map(|job| (job, Failure::Overloaded(wait_ms))).collect(),
            PushOutcome::Refused(PushRefusal::Full, job) => vec![(job, Failure::Overloaded(wait_ms))],
            PushOutcome::Refused(PushRefusal::Share, job) => vec![(job, Failure::Throttled(wait_ms))],
        };
        for (job, _) in &refused {
            state.return_permit(job);
        }
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.settings.check_thread.wake();
        for (job, failure) in refused {
            let counter =
                if matches!(failure, Failure::Throttled(_)) { &self.counts.throttled } else { &self.counts.overloaded };
            count(counter, 1);
            job.reply.send(0, Err(failure));
        }
    }

    /// Takes items for a replica, at most its share of the waiting items.
    pub(crate) fn poll_take(&self, request: &TakeRequest, cx: &mut Context<'_>) -> Poll<Assignment> {
        let now = self.now_ns();
        let mut state = self.lock();
        let late = state.expire(now);
        let assignment = state.take(request, now, self.replicas);
        let next = match &assignment {
            // The replica is no longer idle. A wake-up that it may have received is passed on to an idle one.
            Some(_) => {
                state.clear_waker(request.replica);
                if state.waiting.takeable() == 0 { None } else { state.idle.iter_mut().find_map(Option::take) }
            }
            None => {
                if let Some(slot) = state.idle.get_mut(request.replica) {
                    *slot = Some(cx.waker().clone());
                }
                None
            }
        };
        drop(state);
        if let Some(waker) = next {
            waker.wake();
        }
        self.answer_late(late);
        match assignment {
            None => Poll::Pending,
            Some(Assignment::Jobs(mut jobs)) => {
                self.departures.notify_waiters();
                jobs.iter_mut().for_each(|job| job.hand_over(now, &self.in_flight));
                Poll::Ready(Assignment::Jobs(jobs))
            }
            Some(Assignment::Suspect(mut job)) => {
                job.hand_over(now, &self.in_flight);
                Poll::Ready(Assignment::Suspect(job))
            }
        }
    }

    /// Fails items past their deadline, and releases those whose window or delay has ended. Must be called every few
    /// milliseconds while an item waits; returns whether one does.
    pub(crate) fn tick(&self) -> bool {
        let now = self.now_ns();
        let mut state = self.lock();
        let late = state.expire(now);
        state.waiting.release(now);
        let mut due = Vec::new();
        while state.delayed.peek().is_some_and(|Reverse(retry)| retry.at_ns <= now) {
            due.extend(state.delayed.pop().map(|Reverse(retry)| retry.job));
        }
        for job in due {
            if job.reply.is_abandoned() {
                state.return_permit(&job);
                count(&self.counts.abandoned, 1);
                continue;
            }
            let ticket = job.ticket;
            state.waiting.insert(now, ticket, job);
        }
        let wake = state.waiting.takeable() > 0 || !state.suspects.is_empty();
        let waker = if wake { state.idle.iter_mut().find_map(Option::take) } else { None };
        let busy = !state.waiting.is_empty() || !state.delayed.is_empty() || !state.suspects.is_empty();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.answer_late(late);
        busy
    }

    fn answer_late(&self, late: Vec<Job>) {
        if late.is_empty() {
            return;
        }
        self.departures.notify_waiters();
        count(&self.counts.expired, late.len());
        late.into_iter().for_each(|job| job.reply.send(0, Err(Failure::DeadlineExceeded)));
    }

    /// Removes the items of an abandoned call.
    pub(crate) fn cancel(&self, call: u64) {
        let mut state = self.lock();
        let mut cancelled = state.waiting.cancel(call);
        let (removed, remaining): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut state.suspects).into_iter().partition(|job| job.ticket.call == call);
        state.suspects = VecDeque::from(remaining);
        cancelled.extend(removed);
        cancelled.iter().for_each(|job| state.return_permit(job));
        drop(state);
        self.departures.notify_waiters();
        count(&self.counts.abandoned, cancelled.len());
    }

    /// Records the outcome of an item. Returns the item, unless it failed transiently and was queued for a retry.
    pub(crate) fn settle(&self, job: Job, failure: Option<&Failure>) -> Option<Job> {
        let now = self.now_ns();
        let mut state = self.lock();
        let ok = match failure {
            None => Some(true),
            Some(Failure::Engine(_) | Failure::Unavailable(_)) => Some(false),
            // These failures are not caused by the model.
            Some(_) => None,
        };
        state.record(now, job.permit, ok);
        if !matches!(failure, Some(Failure::Unavailable(_))) {
            return Some(job);
        }
        self.retry(state, now, job, false)
    }

    /// Queues the items of a lost replica to be retried one by one. Returns those that are not retried; an item that
    /// was computed alone is not, since it ended the replica.
    pub(crate) fn requeue_lost(&self, jobs: Vec<Job>, alone: bool) -> Vec<Job> {
        let now = self.now_ns();
        let mut culprits = Vec::new();
        {
            let mut state = self.lock();
            let permit = jobs.iter().find_map(|job| job.permit);
            // A text that ends its replica does not count as a failure of the model; any other loss of a replica does.
            state.record(now, permit, (!alone).then_some(false));
        }
        for job in jobs {
            if alone {
                culprits.push(job);
            } else {
                culprits.extend(self.retry(self.lock(), now, job, true));
            }
        }
        self.tick();
        culprits
    }

    /// Queues an item for another attempt; returns it if it may have no more attempts.
    fn retry(&self, mut state: MutexGuard<'_, State>, now: u64, mut job: Job, suspect: bool) -> Option<Job> {
        job.in_flight = None;
        if job.reply.is_abandoned() || job.reply.is_sent() {
            return None;
        }
        let random = state.random.next_u64();
        let Some(delay_ns) = job.retry.next_delay_ns(&self.settings.retry, random) else { return Some(job) };
        if !state.budget.withdraw(now) {
            return Some(job);
        }
        count(&self.counts.retried, 1);
        if suspect {
            // Without a further delay, since starting a new instance takes long enough.
            state.suspects.push_back(job);
        } else {
            let seq = state.retry_seq;
            state.retry_seq += 1;
            let at_ns = now.saturating_add(delay_ns).min(job.ticket.deadline_ns.unwrap_or(u64::MAX));
            state.delayed.push(Reverse(DelayedRetry { at_ns, seq, job }));
        }
        None
    }

    /// Removes the waker of a replica that no longer waits; its next poll registers it again. A wake-up that it may
    /// have received is passed on to another.
    pub(crate) fn remove_waiter(&self, replica: usize) {
        let mut state = self.lock();
        state.clear_waker(replica);
        let next = if state.waiting.takeable() == 0 && state.suspects.is_empty() {
            None
        } else {
            state.idle.iter_mut().find_map(Option::take)
        };
        drop(state);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    /// Fails every waiting and every later item as `unavailable` with this reason; `None` admits items again.
    pub(crate) fn set_unavailable(&self, reason: Option<String>) {
        let mut state = self.lock();
        state.unavailable = reason.clone();
        let mut waiting = Vec::new();
        if reason.is_some() {
            waiting = state.waiting.clear();
            waiting.extend(std::mem::take(&mut state.suspects));
            waiting.extend(std::mem::take(&mut state.delayed).into_iter().map(|Reverse(retry)| retry.job));
            waiting.iter().for_each(|job| state.return_permit(job));
        }
        drop(state);
        self.departures.notify_waiters();
        if let Some(reason) = reason {
            for job in waiting {
                job.reply.send(0, Err(Failure::Unavailable(reason.clone())));
            }
        }
    }

    /// Releases the items that a window holds back. Returns their number.
    pub(crate) fn flush(&self) -> usize {
        let mut state = self.lock();
        let released = state.waiting.flush();
        let waker = if released > 0 { state.idle.iter_mut().find_map(Option::take) } else { None };
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
        released
    }

    /// Items and tokens waiting now, and whether the circuit is closed.
    pub(crate) fn depth(&self) -> (usize, u64, bool) {
        let state = self.lock();
        let items = state.waiting.len() + state.suspects.len() + state.delayed.len();
        (items, state.waiting.tokens(), state.is_circuit_closed())
    }

    /// The expected time to compute the waiting items on one replica, in nanoseconds; 0 if no item waits.
    pub(crate) fn waiting_ns(&self) -> u64 {
        let state = self.lock();
        if !state.suspects.is_empty() {
            return u64::MAX;
        }
        (state.waiting.tokens() as f64 / state.rate.tokens_per_second() * 1e9) as u64
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // No code under the lock panics in the middle of a change.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
