//! The state of a queue, behind its lock.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::task::Waker;

use weir_core::inference::breaker::{Breaker, BreakerConfig, BreakerState, Permit};
use weir_core::inference::queue::{self as core, PushRefusal, QueueConfig, Rate, Ticket};
use weir_core::inference::retry::{RetryBudget, RetryBudgetConfig, RetryConfig};
use weir_core::random::SplitMix64;

use super::job::Job;
use crate::sleeper::Sleeper;

/// The settings of a queue.
#[derive(Debug, Clone)]
pub(crate) struct QueueSettings {
    pub(crate) bounds: QueueConfig,
    /// The most tokens that the model reads of a text that is not split.
    pub(crate) text_tokens_max: u64,
    pub(crate) retry: RetryConfig,
    pub(crate) budget: RetryBudgetConfig,
    /// `None`: no circuit breaker.
    pub(crate) breaker: Option<BreakerConfig>,
    /// The thread that calls `Queue::tick` while an item waits.
    pub(crate) check_thread: Arc<Sleeper>,
}

/// The items of a queue that wait, and what decides when they are taken or refused.
pub(super) struct State {
    pub(super) waiting: core::Queue<Job>,
    /// Items of a lost replica: they are retried one at a time, to find the one that ended the replica.
    pub(super) suspects: VecDeque<Job>,
    pub(super) delayed: BinaryHeap<Reverse<DelayedRetry>>,
    /// The number of the next delayed retry.
    pub(super) retry_seq: u64,
    /// The wakers of replicas that wait for items, by replica.
    pub(super) idle: Vec<Option<Waker>>,
    /// Why no replica is available; `None` while one is, or is expected soon.
    pub(super) unavailable: Option<String>,
    pub(super) rate: Rate,
    pub(super) breaker: Option<Breaker>,
    /// True if an item has succeeded since the last failure.
    pub(super) has_succeeded: bool,
    pub(super) budget: RetryBudget,
    pub(super) random: SplitMix64,
}

/// An item that is retried at `at_ns`, ordered by time and then by number.
pub(super) struct DelayedRetry {
    pub(super) at_ns: u64,
    pub(super) seq: u64,
    pub(super) job: Job,
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

/// An item is refused if the expected wait times this factor exceeds its remaining time. The factor compensates for
/// errors of the estimate, so that admitted items finish in time.
const LATE_MARGIN: f64 = 1.2;

impl State {
    pub(super) fn new(settings: &QueueSettings, replicas: usize) -> Self {
        Self {
            waiting: core::Queue::new(settings.bounds),
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
        }
    }

    pub(super) fn is_circuit_closed(&self) -> bool {
        self.breaker.as_ref().is_none_or(|breaker| breaker.state() == BreakerState::Closed)
    }

    /// Whether an item waits outside of the queue for others of its call, and is not refused because of them.
    pub(super) fn has_to_wait(
        &self,
        now: u64,
        ticket: Ticket,
        in_flight: u64,
        replicas: usize,
        is_paced: bool,
    ) -> bool {
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
    pub(super) fn late_ms(&self, now: u64, ticket: Ticket, in_flight: u64, replicas: usize) -> Option<u32> {
        let left_ms = ticket.deadline_ns?.saturating_sub(now) as f64 / 1e6;
        let ahead = self.waiting.until_served(ticket.call, ticket.tokens).saturating_add(in_flight);
        let wait_ms = f64::from(self.rate.wait_ms(ahead, replicas)) * LATE_MARGIN;
        (!self.waiting.is_empty() && wait_ms > left_ms).then(|| (wait_ms - left_ms).ceil().max(1.0) as u32)
    }

    pub(super) fn expire(&mut self, now: u64) -> Vec<Job> {
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

    pub(super) fn take(&mut self, request: &TakeRequest, now: u64, replicas: usize) -> Option<Assignment> {
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

    pub(super) fn clear_waker(&mut self, replica: usize) {
        if let Some(slot) = self.idle.get_mut(replica) {
            *slot = None;
        }
    }

    /// Returns the breaker's permit of an item that was not computed.
    pub(super) fn return_permit(&mut self, job: &Job) {
        if let (Some(breaker), Some(permit)) = (&mut self.breaker, job.permit) {
            breaker.cancel(permit);
        }
    }

    /// Records a result with the circuit breaker; `None` counts neither as a success nor as a failure. A failure counts
    /// only if it follows another without a success between them: a single text that the engine cannot compute must not
    /// open the circuit.
    pub(super) fn record(&mut self, now: u64, permit: Option<Permit>, ok: Option<bool>) {
        let (Some(breaker), Some(permit)) = (&mut self.breaker, permit) else { return };
        match ok {
            Some(true) => {
                self.has_succeeded = true;
                breaker.record(now, permit, true);
            }
            Some(false) if self.has_succeeded && breaker.state() == BreakerState::Closed => {
                self.has_succeeded = false;
                breaker.cancel(permit);
            }
            Some(false) => breaker.record(now, permit, false),
            None => breaker.cancel(permit),
        }
    }
}
