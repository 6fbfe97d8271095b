//! The items that wait for one model, from all callers: [`weir_core::inference::queue`] with a clock, wake-ups and
//! replies.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::futures::Notified;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use weir_core::inference::breaker::{Breaker, BreakerConfig, Permit};
use weir_core::inference::queue::{self as core, DropPolicy, PushOutcome, PushRefusal, QueueConfig, Rate, Ticket};
use weir_core::inference::retry::{Retry, RetryBudget, RetryBudgetConfig, RetryConfig};
use weir_core::random::SplitMix64;

use crate::inference::reply::OutcomeSender;
use crate::sleeper::Sleeper;
use crate::stages::{self, Stage};
use crate::types::{Failure, Item};

/// An item, the sender of its outcome, and its state in the queue.
pub(crate) struct Job {
    pub(crate) item: Item,
    pub(crate) reply: OutcomeSender,
    pub(crate) ticket: Ticket,
    pub(crate) retry: Retry,
    /// The permit of the circuit breaker; none for a warm-up, and without a circuit breaker.
    pub(crate) permit: Option<Permit>,
    /// The queue room of an item that waited for it; released once a replica has the item.
    pub(crate) queue_permit: Option<QueuePermit>,
    /// When the item arrived.
    pub(crate) start_time: Instant,
    /// Counts its tokens among those in flight while a replica has it.
    in_flight: Option<InFlightTokens>,
}

/// Counts tokens as in flight (with a replica, without an outcome) until it is dropped.
struct InFlightTokens(Arc<AtomicU64>, u64);

impl InFlightTokens {
    fn new(all: &Arc<AtomicU64>, tokens: u64) -> Self {
        all.fetch_add(tokens, Ordering::Relaxed);
        Self(all.clone(), tokens)
    }
}

impl Drop for InFlightTokens {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Job {
    pub(crate) fn new(item: Item, reply: OutcomeSender, ticket: Ticket, queue_permit: Option<QueuePermit>) -> Self {
        Self {
            item,
            reply,
            ticket,
            retry: Retry::new(),
            permit: None,
            queue_permit,
            in_flight: None,
            start_time: Instant::now(),
        }
    }

    /// The bytes of the item's texts.
    pub(crate) fn bytes(&self) -> usize {
        self.item.text.len() + self.item.text_pair.as_ref().map_or(0, String::len)
    }
}

/// Room in a queue for one item that waited for it.
pub(crate) struct QueuePermit {
    _item: OwnedSemaphorePermit,
    _tokens: OwnedSemaphorePermit,
}

/// The settings of a queue.
#[derive(Debug, Clone)]
pub(crate) struct QueueSettings {
    pub(crate) bounds: QueueConfig,
    pub(crate) retry: RetryConfig,
    pub(crate) budget: RetryBudgetConfig,
    /// `None`: no circuit breaker.
    pub(crate) breaker: Option<BreakerConfig>,
    /// The thread that calls [`Queue::tick`] while an item waits.
    pub(crate) check_thread: Arc<Sleeper>,
}

/// The queue of one model; replicas pull from it.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    settings: QueueSettings,
    /// Room for items that wait while the queue is full: half of the bounds, so that the other half remains for items
    /// that do not wait.
    item_permits: Arc<Semaphore>,
    token_permits: Arc<Semaphore>,
    /// Notified when items leave the queue.
    departures: Notify,
    replicas: usize,
    start_time: Instant,
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

struct Inner {
    waiting: core::Queue<Job>,
    /// Items of a lost replica: they are retried one at a time, to find the one that ended the replica.
    suspects: VecDeque<Job>,
    delayed: BinaryHeap<Reverse<DelayedRetry>>,
    /// The number of the next delayed retry.
    retry_seq: u64,
    /// The wakers of replicas that wait for items, by replica.
    idle: Vec<Option<Waker>>,
    /// Why no replica is available; `None` while one is, or is expected soon.
    unavailable: Option<String>,
    rate: Rate,
    breaker: Option<Breaker>,
    /// True if an item has succeeded since the last failure.
    has_succeeded: bool,
    budget: RetryBudget,
    random: SplitMix64,
}

/// An item that is retried at `at_ns`, ordered by time and then by number.
struct DelayedRetry {
    at_ns: u64,
    seq: u64,
    job: Job,
}

impl PartialEq for DelayedRetry {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for DelayedRetry {}

impl PartialOrd for DelayedRetry {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for DelayedRetry {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at_ns, self.seq).cmp(&(other.at_ns, other.seq))
    }
}

/// The estimate before the first outcome: English text has about four bytes per token.
const FIRST_TOKENS_PER_BYTE: f64 = 0.25;
/// Tokens that a model adds to every text.
const TOKENS_ADDED: u64 = 2;

/// The longest time of one outcome that is counted in the rate of a model.
const BUSY_NS_MAX: u64 = 1_000_000_000;

/// A replica's request for items.
pub(crate) struct TakeRequest {
    pub(crate) replica: usize,
    pub(crate) items_max: usize,
    pub(crate) tokens_max: u64,
    /// The replica has items without an outcome: no suspect may be added to them.
    pub(crate) is_busy: bool,
    /// The replica is computing a suspect: no item may be added to it.
    pub(crate) has_suspect: bool,
}

/// The items for a replica.
pub(crate) enum Assignment {
    Jobs(Vec<Job>),
    /// An item to be computed alone.
    Suspect(Box<Job>),
}

impl Queue {
    pub(crate) fn new(settings: QueueSettings, replicas: usize) -> Self {
        let bounds = settings.bounds;
        let tokens = usize::try_from(bounds.tokens_max / 2).unwrap_or(usize::MAX).clamp(1, u32::MAX as usize);
        Self {
            inner: Mutex::new(Inner {
                waiting: core::Queue::new(bounds),
                suspects: VecDeque::new(),
                delayed: BinaryHeap::new(),
                retry_seq: 0,
                idle: (0..replicas).map(|_| None).collect(),
                unavailable: None,
                rate: Rate::default(),
                breaker: settings.breaker.map(Breaker::new),
                has_succeeded: true,
                budget: RetryBudget::new(settings.budget, 0),
                random: SplitMix64::new(0x5EED),
            }),
            item_permits: Arc::new(Semaphore::new(bounds.items_max.div_ceil(2))),
            token_permits: Arc::new(Semaphore::new(tokens.min(Semaphore::MAX_PERMITS))),
            departures: Notify::new(),
            settings,
            replicas,
            start_time: Instant::now(),
            tokens_per_byte: AtomicU64::new(FIRST_TOKENS_PER_BYTE.to_bits()),
            in_flight: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Nanoseconds on the queue's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.start_time.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// The ticket of an item, with its tokens estimated from its bytes.
    pub(crate) fn ticket(&self, call: u64, owner: u64, item: &Item) -> Ticket {
        let bytes = item.text.len() + item.text_pair.as_ref().map_or(0, String::len);
        let tokens = bytes as f64 * f64::from_bits(self.tokens_per_byte.load(Ordering::Relaxed));
        let deadline_ns = item.deadline_ms.map(|ms| self.now_ns() + u64::from(ms) * 1_000_000);
        Ticket { call, owner, tokens: tokens as u64 + TOKENS_ADDED, deadline_ns }
    }

    /// Updates the estimates with an outcome: the bytes and the tokens of its text, and the time since the previous
    /// outcome.
    pub(crate) fn record_answer(&self, bytes: usize, tokens: u64, busy_ns: u64) {
        if tokens > TOKENS_ADDED && bytes > 0 {
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
        let inner = self.lock();
        let is_open = !job.reply.is_abandoned() && inner.unavailable.is_none();
        if is_open
            && inner.has_to_wait(now, job.ticket, self.in_flight.load(Ordering::Relaxed), self.replicas, is_paced)
        {
            return Err(Box::new(job));
        }
        self.insert(inner, job);
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

    fn insert(&self, mut inner: MutexGuard<'_, Inner>, mut job: Job) {
        stages::mark(Stage::Queued);
        let now = self.now_ns();
        // Checked under the lock: a call that is abandoned later finds its items in the queue and cancels them.
        if job.reply.is_abandoned() {
            drop(inner);
            count(&self.counts.abandoned, 1);
            return;
        }
        if let Some(reason) = &inner.unavailable {
            let failure = Failure::Unavailable(reason.clone());
            drop(inner);
            return job.reply.send(0, Err(failure));
        }
        if let Some(breaker) = &mut inner.breaker {
            match breaker.admit(now) {
                Ok(permit) => job.permit = Some(permit),
                Err(refused) => {
                    drop(inner);
                    count(&self.counts.refused, 1);
                    return job.reply.send(0, Err(Failure::CircuitOpen(milliseconds(refused.retry_after_ns))));
                }
            }
        }
        let ticket = job.ticket;
        let in_flight = self.in_flight.load(Ordering::Relaxed);
        let mut wait_ms = inner.rate.wait_ms(inner.waiting.tokens().saturating_add(in_flight), self.replicas);
        let outcome = if job.queue_permit.is_some() {
            inner.waiting.insert(now, ticket, job);
            PushOutcome::Waits
        } else if let Some(late_ms) = inner.late_ms(now, ticket, in_flight, self.replicas) {
            // Refused now instead of after its deadline.
            wait_ms = late_ms;
            PushOutcome::Refused(PushRefusal::Full, job)
        } else {
            inner.waiting.push(now, ticket, job)
        };
        if !matches!(outcome, PushOutcome::Refused(..)) {
            inner.budget.deposit(now);
        }
        let waker = if inner.waiting.takeable() > 0 { inner.idle.iter_mut().find_map(Option::take) } else { None };
        let refused = match outcome {
            PushOutcome::Waits => Vec::new(),
            PushOutcome::Dropped(jobs) => jobs.into_iter().map(|job| (job, Failure::Overloaded(wait_ms))).collect(),
            PushOutcome::Refused(PushRefusal::Full, job) => vec![(job, Failure::Overloaded(wait_ms))],
            PushOutcome::Refused(PushRefusal::Share, job) => vec![(job, Failure::Throttled(wait_ms))],
        };
        for (job, _) in &refused {
            inner.return_permit(job);
        }
        drop(inner);
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
        let mut inner = self.lock();
        let late = inner.expire(now);
        let assignment = inner.take(request, now, self.replicas);
        let next = match &assignment {
            // The replica is no longer idle. A wake-up that it may have received is passed on to an idle one.
            Some(_) => {
                inner.clear_waker(request.replica);
                if inner.waiting.takeable() == 0 { None } else { inner.idle.iter_mut().find_map(Option::take) }
            }
            None => {
                if let Some(slot) = inner.idle.get_mut(request.replica) {
                    *slot = Some(cx.waker().clone());
                }
                None
            }
        };
        drop(inner);
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
        let mut inner = self.lock();
        let late = inner.expire(now);
        inner.waiting.release(now);
        let mut due = Vec::new();
        while inner.delayed.peek().is_some_and(|Reverse(retry)| retry.at_ns <= now) {
            due.extend(inner.delayed.pop().map(|Reverse(retry)| retry.job));
        }
        for job in due {
            if job.reply.is_abandoned() {
                inner.return_permit(&job);
                count(&self.counts.abandoned, 1);
                continue;
            }
            let ticket = job.ticket;
            inner.waiting.insert(now, ticket, job);
        }
        let wake = inner.waiting.takeable() > 0 || !inner.suspects.is_empty();
        let waker = if wake { inner.idle.iter_mut().find_map(Option::take) } else { None };
        let busy = !inner.waiting.is_empty() || !inner.delayed.is_empty() || !inner.suspects.is_empty();
        drop(inner);
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
        let mut inner = self.lock();
        let mut cancelled = inner.waiting.cancel(call);
        let (removed, remaining): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut inner.suspects).into_iter().partition(|job| job.ticket.call == call);
        inner.suspects = VecDeque::from(remaining);
        cancelled.extend(removed);
        cancelled.iter().for_each(|job| inner.return_permit(job));
        drop(inner);
        self.departures.notify_waiters();
        count(&self.counts.abandoned, cancelled.len());
    }

    /// Records the outcome of an item. Returns the item, unless it failed transiently and was queued for a retry.
    pub(crate) fn settle(&self, job: Job, failure: Option<&Failure>) -> Option<Job> {
        let now = self.now_ns();
        let mut inner = self.lock();
        let ok = match failure {
            None => Some(true),
            Some(Failure::Engine(_) | Failure::Unavailable(_)) => Some(false),
            // These failures are not caused by the model.
            Some(_) => None,
        };
        inner.record(now, job.permit, ok);
        if !matches!(failure, Some(Failure::Unavailable(_))) {
            return Some(job);
        }
        self.retry(inner, now, job, false)
    }

    /// Queues the items of a lost replica to be retried one by one. Returns those that are not retried; an item that
    /// was computed alone is not, since it ended the replica.
    pub(crate) fn requeue_lost(&self, jobs: Vec<Job>, alone: bool) -> Vec<Job> {
        let now = self.now_ns();
        let mut culprits = Vec::new();
        {
            let mut inner = self.lock();
            let permit = jobs.iter().find_map(|job| job.permit);
            // A text that ends its replica does not count as a failure of the model; any other loss of a replica does.
            inner.record(now, permit, (!alone).then_some(false));
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
    fn retry(&self, mut inner: MutexGuard<'_, Inner>, now: u64, mut job: Job, suspect: bool) -> Option<Job> {
        job.in_flight = None;
        if job.reply.is_abandoned() {
            return None;
        }
        let random = inner.random.next_u64();
        let Some(delay_ns) = job.retry.next_delay_ns(&self.settings.retry, random) else { return Some(job) };
        if !inner.budget.withdraw(now) {
            return Some(job);
        }
        count(&self.counts.retried, 1);
        if suspect {
            // Without a further delay, since starting a new instance takes long enough.
            inner.suspects.push_back(job);
        } else {
            let seq = inner.retry_seq;
            inner.retry_seq += 1;
            let at_ns = now.saturating_add(delay_ns).min(job.ticket.deadline_ns.unwrap_or(u64::MAX));
            inner.delayed.push(Reverse(DelayedRetry { at_ns, seq, job }));
        }
        None
    }

    /// Removes the waker of a replica that no longer waits; its next poll registers it again. A wake-up that it may
    /// have received is passed on to another.
    pub(crate) fn remove_waiter(&self, replica: usize) {
        let mut inner = self.lock();
        inner.clear_waker(replica);
        let next = if inner.waiting.takeable() == 0 && inner.suspects.is_empty() {
            None
        } else {
            inner.idle.iter_mut().find_map(Option::take)
        };
        drop(inner);
        if let Some(waker) = next {
            waker.wake();
        }
    }

    /// Fails every waiting and every later item as `unavailable` with this reason; `None` admits items again.
    pub(crate) fn set_unavailable(&self, reason: Option<String>) {
        let mut inner = self.lock();
        inner.unavailable = reason.clone();
        let mut waiting = Vec::new();
        if reason.is_some() {
            waiting = inner.waiting.clear();
            waiting.extend(std::mem::take(&mut inner.suspects));
            waiting.extend(std::mem::take(&mut inner.delayed).into_iter().map(|Reverse(retry)| retry.job));
            waiting.iter().for_each(|job| inner.return_permit(job));
        }
        drop(inner);
        self.departures.notify_waiters();
        if let Some(reason) = reason {
            for job in waiting {
                job.reply.send(0, Err(Failure::Unavailable(reason.clone())));
            }
        }
    }

    /// Releases the items that a window holds back. Returns their number.
    pub(crate) fn flush(&self) -> usize {
        let mut inner = self.lock();
        let released = inner.waiting.flush();
        let waker = if released > 0 { inner.idle.iter_mut().find_map(Option::take) } else { None };
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        released
    }

    /// Items and tokens waiting now, and whether the circuit is closed.
    pub(crate) fn depth(&self) -> (usize, u64, bool) {
        let inner = self.lock();
        let closed = inner
            .breaker
            .as_ref()
            .is_none_or(|breaker| breaker.state() == weir_core::inference::breaker::BreakerState::Closed);
        (inner.waiting.len() + inner.suspects.len() + inner.delayed.len(), inner.waiting.tokens(), closed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code under the lock panics in the middle of a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item is refused if the expected wait times this factor exceeds its remaining time. The factor compensates for
/// errors of the estimate, so that admitted items finish in time.
const LATE_MARGIN: f64 = 1.2;

impl Inner {
    /// Whether an item waits outside of the queue for others of its call, and is not refused because of them.
    fn has_to_wait(&self, now: u64, ticket: Ticket, in_flight: u64, replicas: usize, is_paced: bool) -> bool {
        let Ticket { call, owner, tokens, .. } = ticket;
        let is_late = || self.late_ms(now, ticket, in_flight, replicas).is_some();
        if is_paced {
            return !self.waiting.has_half_room(call, owner, tokens) || is_late();
        }
        let bound = match self.waiting.has_room(owner, tokens) {
            Err(refusal) => refusal,
            Ok(()) if self.waiting.has_half_room(call, owner, tokens) && !is_late() => return false,
            Ok(()) => PushRefusal::Full,
        };
        self.waiting.is_filled_by(call, owner, bound)
    }

    /// The milliseconds by which an item queued now would probably miss its deadline; `None` if it would not, or has no
    /// deadline.
    fn late_ms(&self, now: u64, ticket: Ticket, in_flight: u64, replicas: usize) -> Option<u32> {
        let left_ms = ticket.deadline_ns?.saturating_sub(now) as f64 / 1e6;
        let ahead = self.waiting.until_served(ticket.call, ticket.tokens).saturating_add(in_flight);
        let wait_ms = f64::from(self.rate.wait_ms(ahead, replicas)) * LATE_MARGIN;
        (!self.waiting.is_empty() && wait_ms > left_ms).then(|| (wait_ms - left_ms).ceil().max(1.0) as u32)
    }

    fn expire(&mut self, now: u64) -> Vec<Job> {
        let mut late: Vec<Job> = std::iter::from_fn(|| self.waiting.poll_expired(now)).collect();
        let is_late = |job: &Job| job.ticket.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now);
        if self.suspects.iter().any(is_late) {
            let (removed, remaining): (Vec<Job>, Vec<Job>) =
                std::mem::take(&mut self.suspects).into_iter().partition(is_late);
            self.suspects = VecDeque::from(remaining);
            late.extend(removed);
        }
        late.iter().for_each(|job| self.return_permit(job));
        late
    }

    fn take(&mut self, request: &TakeRequest, now: u64, replicas: usize) -> Option<Assignment> {
        if request.has_suspect {
            return None;
        }
        if !self.suspects.is_empty() {
            // A suspect is computed alone: a busy replica gets no more items until it is idle.
            return match request.is_busy {
                true => None,
                false => self.suspects.pop_front().map(Box::new).map(Assignment::Suspect),
            };
        }
        let items = self.waiting.takeable().div_ceil(replicas).min(request.items_max).max(1);
        let tokens = self.waiting.tokens().div_ceil(replicas as u64).min(request.tokens_max);
        let jobs = self.waiting.take(now, items, tokens);
        if jobs.is_empty() { None } else { Some(Assignment::Jobs(jobs)) }
    }

    fn clear_waker(&mut self, replica: usize) {
        if let Some(slot) = self.idle.get_mut(replica) {
            *slot = None;
        }
    }

    /// Returns the breaker's permit of an item that was not computed.
    fn return_permit(&mut self, job: &Job) {
        if let (Some(breaker), Some(permit)) = (&mut self.breaker, job.permit) {
            breaker.cancel(permit);
        }
    }

    /// Records a result with the circuit breaker; `None` counts neither as a success nor as a failure. A failure counts
    /// only if it follows another without a success between them: a single text that the engine cannot compute must not
    /// open the circuit.
    fn record(&mut self, now: u64, permit: Option<Permit>, ok: Option<bool>) {
        let (Some(breaker), Some(permit)) = (&mut self.breaker, permit) else { return };
        match ok {
            Some(true) => {
                self.has_succeeded = true;
                breaker.record(now, permit, true);
            }
            Some(false)
                if self.has_succeeded && breaker.state() == weir_core::inference::breaker::BreakerState::Closed =>
            {
                self.has_succeeded = false;
                breaker.cancel(permit);
            }
            Some(false) => breaker.record(now, permit, false),
            None => breaker.cancel(permit),
        }
    }
}

impl Job {
    /// Releases the item's room in the queue, and sets its remaining time.
    fn hand_over(&mut self, now: u64, in_flight: &Arc<AtomicU64>) {
        self.queue_permit = None;
        self.in_flight = Some(InFlightTokens::new(in_flight, self.ticket.tokens));
        let left = self.ticket.deadline_ns.map(|deadline_ns| milliseconds(deadline_ns.saturating_sub(now)));
        self.item.deadline_ms = left;
    }
}

/// Whole milliseconds, rounded up.
fn milliseconds(ns: u64) -> u32 {
    u32::try_from(ns.div_ceil(1_000_000)).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
