//! The items that wait for one model, from all callers: [`weir_core::inference::queue`] with the time, the wake-ups and the answers.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Instant;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use weir_core::inference::breaker::{Breaker, BreakerConfig, Permit};
use weir_core::inference::queue::{self as core, DropPolicy, Pushed, QueueConfig, Rate, Refused, Ticket};
use weir_core::inference::retry::{Retry, RetryBudget, RetryBudgetConfig, RetryConfig};
use weir_core::random::SplitMix64;

use crate::inference::call::Reply;
use crate::types::{Failure, Item};

/// An item on its way to a replica.
pub(crate) struct Job {
    pub(crate) item: Item,
    pub(crate) reply: Reply,
    pub(crate) ticket: Ticket,
    pub(crate) retry: Retry,
    /// The circuit breaker's leave; none for a warm-up.
    pub(crate) permit: Option<Permit>,
    /// The places in the queue that it waited for; free again once a replica has taken the item.
    pub(crate) places: Option<Places>,
    /// Counts it among what replicas have, while one has it.
    handed: Option<Handed>,
}

/// Tokens that replicas have been given and not answered yet.
struct Handed(Arc<AtomicU64>, u64);

impl Handed {
    fn new(all: &Arc<AtomicU64>, tokens: u64) -> Self {
        all.fetch_add(tokens, Ordering::Relaxed);
        Self(all.clone(), tokens)
    }
}

impl Drop for Handed {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Job {
    /// An item that has not been tried yet.
    pub(crate) fn new(item: Item, reply: Reply, ticket: Ticket, places: Option<Places>) -> Self {
        Self { item, reply, ticket, retry: Retry::new(), permit: None, places, handed: None }
    }

    /// The bytes of its texts.
    pub(crate) fn bytes(&self) -> usize {
        self.item.text.len() + self.item.text_pair.as_ref().map_or(0, String::len)
    }
}

/// Room in a queue that a stream waited for.
pub(crate) struct Places {
    _item: OwnedSemaphorePermit,
    _tokens: OwnedSemaphorePermit,
}

/// How a queue is set up.
#[derive(Debug, Clone)]
pub(crate) struct QueueSettings {
    pub(crate) bounds: QueueConfig,
    pub(crate) retry: RetryConfig,
    pub(crate) budget: RetryBudgetConfig,
    /// None: no circuit breaker.
    pub(crate) breaker: Option<BreakerConfig>,
}

/// One queue for each model; replicas pull from it.
pub(crate) struct Queue {
    inner: Mutex<Inner>,
    settings: QueueSettings,
    /// Room for the items of streams, which wait for it: half of the bounds, so that requests find the other half.
    item_places: Arc<Semaphore>,
    token_places: Arc<Semaphore>,
    replicas: usize,
    began: Instant,
    /// Tokens to a byte of text, learned; the bits of an f64.
    tokens_per_byte: AtomicU64,
    /// Tokens that replicas have, as estimated.
    handed: Arc<AtomicU64>,
    pub(crate) counts: Counts,
}

/// What happened so far.
#[derive(Default)]
pub(crate) struct Counts {
    /// Items handed to replicas.
    pub(crate) handed_over: AtomicU64,
    /// Items that a replica answered.
    pub(crate) answered: AtomicU64,
    /// Items that were dropped because their caller was gone.
    pub(crate) abandoned: AtomicU64,
    /// Items whose deadline passed while they waited.
    pub(crate) expired: AtomicU64,
    /// Items that were refused because the queue was full or too long for their deadline, or dropped from it.
    pub(crate) overloaded: AtomicU64,
    /// Items that were refused because their caller had its share.
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
    /// Items that a lost replica had: tried again one at a time, so that the culprit is found.
    suspects: VecDeque<Job>,
    /// Items that are tried again later: when, a number, the item.
    later: BinaryHeap<Reverse<Later>>,
    laters: u64,
    /// One slot for each replica: filled while it waits for items.
    idle: Vec<Option<Waker>>,
    /// Why no replica can answer, while that is so.
    down: Option<String>,
    rate: Rate,
    breaker: Option<Breaker>,
    /// Something has succeeded since the last failure.
    succeeded: bool,
    budget: RetryBudget,
    random: SplitMix64,
}

struct Later(u64, u64, Job);

impl PartialEq for Later {
    fn eq(&self, other: &Self) -> bool {
        (self.0, self.1) == (other.0, other.1)
    }
}

impl Eq for Later {}

impl PartialOrd for Later {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Later {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.0, self.1).cmp(&(other.0, other.1))
    }
}

/// The guess before anything is known: English has about four bytes to a token.
const FIRST_TOKENS_PER_BYTE: f64 = 0.25;
/// Tokens that a model adds to every text.
const TOKENS_ADDED: u64 = 2;

/// The longest that one answer can count for in the pace of a model.
const BUSY_NS_MAX: u64 = 1_000_000_000;

/// What a replica asks for.
pub(crate) struct Ask {
    pub(crate) replica: usize,
    pub(crate) items_max: usize,
    pub(crate) tokens_max: u64,
    /// It owes answers: no suspect may join them.
    pub(crate) owes: bool,
    /// It is computing a suspect: nothing may join that.
    pub(crate) testing: bool,
}

/// What a replica gets.
pub(crate) enum Taken {
    Jobs(Vec<Job>),
    /// To be computed alone.
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
                later: BinaryHeap::new(),
                laters: 0,
                idle: (0..replicas).map(|_| None).collect(),
                down: None,
                rate: Rate::default(),
                breaker: settings.breaker.map(Breaker::new),
                succeeded: true,
                budget: RetryBudget::new(settings.budget, 0),
                random: SplitMix64::new(0x5EED),
            }),
            item_places: Arc::new(Semaphore::new(bounds.items_max.div_ceil(2))),
            token_places: Arc::new(Semaphore::new(tokens.min(Semaphore::MAX_PERMITS))),
            settings,
            replicas,
            began: Instant::now(),
            tokens_per_byte: AtomicU64::new(FIRST_TOKENS_PER_BYTE.to_bits()),
            handed: Arc::default(),
            counts: Counts::default(),
        }
    }

    /// Nanoseconds on the queue's clock.
    pub(crate) fn now_ns(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// What an item asks for, as far as can be told before it is tokenized.
    pub(crate) fn ticket(&self, call: u64, owner: u64, item: &Item) -> Ticket {
        let bytes = item.text.len() + item.text_pair.as_ref().map_or(0, String::len);
        let tokens = bytes as f64 * f64::from_bits(self.tokens_per_byte.load(Ordering::Relaxed));
        let deadline_ns = item.deadline_ms.map(|ms| self.now_ns() + u64::from(ms) * 1_000_000);
        Ticket { call, owner, tokens: tokens as u64 + TOKENS_ADDED, deadline_ns }
    }

    /// Takes note of an answer: how many tokens the bytes were, and how long it took since the one before.
    pub(crate) fn served(&self, bytes: usize, tokens: u64, busy_ns: u64) {
        if tokens > TOKENS_ADDED && bytes > 0 {
            let old = f64::from_bits(self.tokens_per_byte.load(Ordering::Relaxed));
            let new = old + 0.02 * ((tokens - TOKENS_ADDED) as f64 / bytes as f64 - old);
            self.tokens_per_byte.store(new.clamp(0.001, 4.0).to_bits(), Ordering::Relaxed);
        }
        // A pause of the whole machine is not the model's pace.
        self.lock().rate.served(tokens, busy_ns.min(BUSY_NS_MAX));
    }

    /// Waits for room for an item of a stream.
    pub(crate) async fn places(&self, tokens: u64) -> Option<Places> {
        let item = self.item_places.clone().acquire_owned().await.ok()?;
        let tokens = self.token_places.clone().acquire_many_owned(self.token_permits(tokens)).await.ok()?;
        Some(Places { _item: item, _tokens: tokens })
    }

    /// As [`Queue::places`], without waiting.
    pub(crate) fn try_places(&self, tokens: u64) -> Option<Places> {
        let item = self.item_places.clone().try_acquire_owned().ok()?;
        let tokens = self.token_places.clone().try_acquire_many_owned(self.token_permits(tokens)).ok()?;
        Some(Places { _item: item, _tokens: tokens })
    }

    fn token_permits(&self, tokens: u64) -> u32 {
        // A text larger than the whole room waits until all of it is free.
        let all = (self.settings.bounds.tokens_max / 2).clamp(1, u64::from(u32::MAX));
        u32::try_from(tokens.min(all)).unwrap_or(u32::MAX)
    }

    /// Whether the new item or the oldest goes when there is no room, so that streams need not wait for any.
    pub(crate) fn drops(&self) -> bool {
        self.settings.bounds.drop_policy != DropPolicy::None
    }

    /// Adds an item and wakes a replica. What cannot wait is answered at once.
    pub(crate) fn push(&self, mut job: Job) {
        let now = self.now_ns();
        let mut inner = self.lock();
        // Under the lock: who gives a call up cancels its items after this.
        if job.reply.gone() {
            drop(inner);
            count(&self.counts.abandoned, 1);
            return;
        }
        if let Some(reason) = &inner.down {
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
        let handed = self.handed.load(Ordering::Relaxed);
        let mut wait_ms = inner.rate.wait_ms(inner.waiting.tokens().saturating_add(handed), self.replicas);
        let pushed = if job.places.is_some() {
            inner.waiting.insert(now, ticket, job);
            Pushed::Waits
        } else if let Some(late_ms) = inner.late_ms(now, ticket, handed, self.replicas) {
            // Better to say so now than to keep it until its time is up.
            wait_ms = late_ms;
            Pushed::Refused(Refused::Full, job)
        } else {
            inner.waiting.push(now, ticket, job)
        };
        if !matches!(pushed, Pushed::Refused(..)) {
            inner.budget.deposit(now);
        }
        let waker = if inner.waiting.takeable() > 0 { inner.idle.iter_mut().find_map(Option::take) } else { None };
        let gone = match pushed {
            Pushed::Waits => Vec::new(),
            Pushed::Dropped(jobs) => jobs.into_iter().map(|job| (job, Failure::Overloaded(wait_ms))).collect(),
            Pushed::Refused(Refused::Full, job) => vec![(job, Failure::Overloaded(wait_ms))],
            Pushed::Refused(Refused::Share, job) => vec![(job, Failure::Throttled(wait_ms))],
        };
        for (job, _) in &gone {
            inner.give_back(job);
        }
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        for (job, failure) in gone {
            let counter =
                if matches!(failure, Failure::Throttled(_)) { &self.counts.throttled } else { &self.counts.overloaded };
            count(counter, 1);
            job.reply.send(0, Err(failure));
        }
    }

    /// Takes items for a replica, but never more than its share of what waits.
    pub(crate) fn poll_take(&self, ask: &Ask, cx: &mut Context<'_>) -> Poll<Taken> {
        let now = self.now_ns();
        let mut inner = self.lock();
        let late = inner.expire(now);
        let taken = inner.take(ask, now, self.replicas);
        let next = match &taken {
            // It is not idle any more: a wake-up that it may have had goes to one that is.
            Some(_) => {
                inner.forget(ask.replica);
                if inner.waiting.takeable() == 0 { None } else { inner.idle.iter_mut().find_map(Option::take) }
            }
            None => {
                if let Some(slot) = inner.idle.get_mut(ask.replica) {
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
        match taken {
            None => Poll::Pending,
            Some(Taken::Jobs(mut jobs)) => {
                jobs.iter_mut().for_each(|job| job.hand_over(now, &self.handed));
                Poll::Ready(Taken::Jobs(jobs))
            }
            Some(Taken::Suspect(mut job)) => {
                job.hand_over(now, &self.handed);
                Poll::Ready(Taken::Suspect(job))
            }
        }
    }

    /// Answers what is late, lets out what a window or a delay held back. To be called every few milliseconds while
    /// anything waits; says whether it does.
    pub(crate) fn tick(&self) -> bool {
        let now = self.now_ns();
        let mut inner = self.lock();
        let late = inner.expire(now);
        inner.waiting.release(now);
        let mut due = Vec::new();
        while inner.later.peek().is_some_and(|Reverse(Later(at, ..))| *at <= now) {
            due.extend(inner.later.pop().map(|Reverse(Later(_, _, job))| job));
        }
        for job in due {
            if job.reply.gone() {
                inner.give_back(&job);
                count(&self.counts.abandoned, 1);
                continue;
            }
            let ticket = job.ticket;
            inner.waiting.insert(now, ticket, job);
        }
        let wake = inner.waiting.takeable() > 0 || !inner.suspects.is_empty();
        let waker = if wake { inner.idle.iter_mut().find_map(Option::take) } else { None };
        let busy = !inner.waiting.is_empty() || !inner.later.is_empty() || !inner.suspects.is_empty();
        drop(inner);
        if let Some(waker) = waker {
            waker.wake();
        }
        self.answer_late(late);
        busy
    }

    fn answer_late(&self, late: Vec<Job>) {
        count(&self.counts.expired, late.len());
        late.into_iter().for_each(|job| job.reply.send(0, Err(Failure::DeadlineExceeded)));
    }

    /// Takes out the items of a call that is given up.
    pub(crate) fn cancel(&self, call: u64) {
        let mut inner = self.lock();
        let mut cancelled = inner.waiting.cancel(call);
        let (gone, kept): (Vec<Job>, Vec<Job>) =
            std::mem::take(&mut inner.suspects).into_iter().partition(|job| job.ticket.call == call);
        inner.suspects = VecDeque::from(kept);
        cancelled.extend(gone);
        cancelled.iter().for_each(|job| inner.give_back(job));
        drop(inner);
        count(&self.counts.abandoned, cancelled.len());
    }

    /// Takes note that an item was answered by a replica; true when it failed in a way that may pass and will be tried
    /// again, and then it is kept.
    pub(crate) fn settle(&self, job: Job, failure: Option<&Failure>) -> Option<Job> {
        let now = self.now_ns();
        let mut inner = self.lock();
        let ok = match failure {
            None => Some(true),
            Some(Failure::Engine(_) | Failure::Unavailable(_)) => Some(false),
            // These say nothing about the model.
            Some(_) => None,
        };
        inner.record(now, job.permit, ok);
        if !matches!(failure, Some(Failure::Unavailable(_))) {
            return Some(job);
        }
        self.try_again(inner, now, job, false)
    }

    /// Takes back what a lost replica owed. Items are tried again one by one; what was lost alone has shown itself to be
    /// the cause, and is given back.
    pub(crate) fn lost(&self, jobs: Vec<Job>, alone: bool) -> Vec<Job> {
        let now = self.now_ns();
        let mut culprits = Vec::new();
        {
            let mut inner = self.lock();
            let permit = jobs.iter().find_map(|job| job.permit);
            // A text that ends its replica says nothing about the model; a replica that is lost without one does.
            inner.record(now, permit, (!alone).then_some(false));
        }
        for job in jobs {
            if alone {
                culprits.push(job);
            } else {
                culprits.extend(self.try_again(self.lock(), now, job, true));
            }
        }
        self.tick();
        culprits
    }

    /// Puts an item back, to be tried again; gives it back when it may not be.
    fn try_again(&self, mut inner: MutexGuard<'_, Inner>, now: u64, mut job: Job, suspect: bool) -> Option<Job> {
        job.handed = None;
        if job.reply.gone() {
            return None;
        }
        let random = inner.random.next_u64();
        let Some(delay_ns) = job.retry.next_delay_ns(&self.settings.retry, random) else { return Some(job) };
        if !inner.budget.withdraw(now) {
            return Some(job);
        }
        count(&self.counts.retried, 1);
        if suspect {
            // The time that a new instance takes is delay enough.
            inner.suspects.push_back(job);
        } else {
            let number = inner.laters;
            inner.laters += 1;
            let at = now.saturating_add(delay_ns).min(job.ticket.deadline_ns.unwrap_or(u64::MAX));
            inner.later.push(Reverse(Later(at, number, job)));
        }
        None
    }

    /// Forgets that `replica` waits; its next poll will say so again. A wake-up that it may have had goes to another.
    pub(crate) fn leave(&self, replica: usize) {
        let mut inner = self.lock();
        inner.forget(replica);
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

    /// From now on every item is answered `unavailable` with this reason, those that wait as well; `None` ends that.
    pub(crate) fn down(&self, reason: Option<String>) {
        let mut inner = self.lock();
        inner.down = reason.clone();
        let mut waiting = Vec::new();
        if reason.is_some() {
            waiting = inner.waiting.clear();
            waiting.extend(std::mem::take(&mut inner.suspects));
            waiting.extend(std::mem::take(&mut inner.later).into_iter().map(|Reverse(Later(_, _, job))| job));
        }
        drop(inner);
        if let Some(reason) = reason {
            for job in waiting {
                job.reply.send(0, Err(Failure::Unavailable(reason.clone())));
            }
        }
    }

    /// Lets what waits go now, whatever its window says. Returns how many items that releases.
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
        (inner.waiting.len() + inner.suspects.len() + inner.later.len(), inner.waiting.tokens(), closed)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code between lock and unlock can panic half-way through a change.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An item is refused when the wait that is expected, times this, is more than it has. What is let in is then done in
/// time although the expectation errs.
const LATE_MARGIN: f64 = 1.2;

impl Inner {
    /// By how much an item is likely to be late if it came in now; none when it is not, or has no deadline.
    fn late_ms(&self, now: u64, ticket: Ticket, handed: u64, replicas: usize) -> Option<u32> {
        let left_ms = ticket.deadline_ns?.saturating_sub(now) as f64 / 1e6;
        let ahead = self.waiting.until_served(ticket.call, ticket.tokens).saturating_add(handed);
        let wait_ms = f64::from(self.rate.wait_ms(ahead, replicas)) * LATE_MARGIN;
        (!self.waiting.is_empty() && wait_ms > left_ms).then(|| (wait_ms - left_ms).ceil().max(1.0) as u32)
    }

    fn expire(&mut self, now: u64) -> Vec<Job> {
        let mut late: Vec<Job> = std::iter::from_fn(|| self.waiting.poll_expired(now)).collect();
        let is_late = |job: &Job| job.ticket.deadline_ns.is_some_and(|deadline_ns| deadline_ns <= now);
        if self.suspects.iter().any(is_late) {
            let (gone, kept): (Vec<Job>, Vec<Job>) = std::mem::take(&mut self.suspects).into_iter().partition(is_late);
            self.suspects = VecDeque::from(kept);
            late.extend(gone);
        }
        late.iter().for_each(|job| self.give_back(job));
        late
    }

    fn take(&mut self, ask: &Ask, now: u64, replicas: usize) -> Option<Taken> {
        if ask.testing {
            return None;
        }
        if !self.suspects.is_empty() {
            // Nothing joins what a suspect is waiting for to end.
            return if ask.owes { None } else { self.suspects.pop_front().map(Box::new).map(Taken::Suspect) };
        }
        let items = self.waiting.takeable().div_ceil(replicas).min(ask.items_max).max(1);
        let tokens = self.waiting.tokens().div_ceil(replicas as u64).min(ask.tokens_max);
        let jobs = self.waiting.take(now, items, tokens);
        if jobs.is_empty() { None } else { Some(Taken::Jobs(jobs)) }
    }

    fn forget(&mut self, replica: usize) {
        if let Some(slot) = self.idle.get_mut(replica) {
            *slot = None;
        }
    }

    /// The call was not made, or says nothing about the model.
    fn give_back(&mut self, job: &Job) {
        if let (Some(breaker), Some(permit)) = (&mut self.breaker, job.permit) {
            breaker.cancel(permit);
        }
    }

    /// Tells the circuit breaker. Of failures only those count that follow another without a success between them: a
    /// text that the engine cannot take, among others that it can, is no reason to leave the model alone.
    fn record(&mut self, now: u64, permit: Option<Permit>, ok: Option<bool>) {
        let (Some(breaker), Some(permit)) = (&mut self.breaker, permit) else { return };
        match ok {
            Some(true) => {
                self.succeeded = true;
                breaker.record(now, permit, true);
            }
            Some(false) if self.succeeded && breaker.state() == weir_core::inference::breaker::BreakerState::Closed => {
                self.succeeded = false;
                breaker.cancel(permit);
            }
            Some(false) => breaker.record(now, permit, false),
            None => breaker.cancel(permit),
        }
    }
}

impl Job {
    /// Leaves the queue: its places are free, and its deadline is counted from now.
    fn hand_over(&mut self, now: u64, handed: &Arc<AtomicU64>) {
        self.places = None;
        self.handed = Some(Handed::new(handed, self.ticket.tokens));
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
