//! One caller's pair of streams: items in, outcomes out. A call bounds the items that its caller may have open, ends
//! when every item has its outcome, and is abandoned when its caller drops the outcomes.

use std::collections::BTreeMap;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::sync::{Semaphore, mpsc};
use weir_core::inference::queue::Ticket;
use weir_telemetry::SpanContext;

use crate::inference::item::SharedItem;
use crate::inference::pool::Pool;
use crate::inference::queue::{Job, Queue, QueuePermit};
use crate::inference::reply::OutcomeSender;
use crate::types::{Failure, Outcome, WhenFull};

/// The part of a call's items for which a guest waits when the call is full.
const REFILL_PARTS: usize = 8;

/// The pools by model name.
pub(crate) type Pools = BTreeMap<String, Arc<Pool>>;

/// Opens calls; cheap to clone.
#[derive(Clone)]
pub struct CallOpener {
    pools: Arc<Pools>,
    items_max: usize,
    next_id: Arc<AtomicU64>,
}

impl CallOpener {
    pub(crate) fn new(pools: Arc<Pools>, items_max: usize) -> Self {
        Self { pools, items_max, next_id: Arc::default() }
    }

    /// Opens a call: a sender of items and the stream of their outcomes.
    pub fn open(&self) -> (CallSender, Outcomes) {
        self.open_for(0)
    }

    /// As [`CallOpener::open`], for one of several owners, each of which has a share of each queue
    /// (`infer.caller_items_max`).
    pub fn open_for(&self, owner: u64) -> (CallSender, Outcomes) {
        self.open_within(owner, None, None)
    }

    /// As [`CallOpener::open_for`], for items that belong to a span unless they name another one. `deadline` is that of
    /// the request of the call: an item with a deadline that does not wait for room is answered `deadline-exceeded` when
    /// both have passed, even while a replica computes it.
    pub(crate) fn open_within(
        &self,
        owner: u64,
        trace: Option<SpanContext>,
        deadline: Option<Instant>,
    ) -> (CallSender, Outcomes) {
        let (tx, rx) = mpsc::unbounded_channel();
        let call = Arc::new(CallState {
            // Ids start at 1: call 0 is that of warm-ups.
            id: 1 + self.next_id.fetch_add(1, Ordering::Relaxed) % u64::from(u32::MAX),
            owner,
            trace,
            deadline,
            pools: self.pools.clone(),
            is_abandoned: Arc::default(),
            items_max: self.items_max,
            room: Arc::new(Semaphore::new(self.items_max)),
            refill: (self.items_max / REFILL_PARTS).max(1),
            is_paced: AtomicBool::new(false),
        });
        let sender = CallSender { call: call.clone(), tx };
        (sender, Outcomes { rx, received: Vec::new().into_iter(), call })
    }

    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }
}

/// The state that the two ends of a call share.
struct CallState {
    /// Identifies the call in the queues, which serve calls in turn.
    id: u64,
    owner: u64,
    /// The span of items that name no other one.
    trace: Option<SpanContext>,
    /// The deadline of its request.
    deadline: Option<Instant>,
    pools: Arc<Pools>,
    /// True once the outcomes are dropped.
    is_abandoned: Arc<AtomicBool>,
    /// The most items without a read outcome.
    items_max: usize,
    /// A permit is taken for each item, and returned when its outcome is read.
    room: Arc<Semaphore>,
    /// For how many items the writer of a full call waits.
    refill: usize,
    /// True once an item that would have been refused has waited for earlier ones.
    is_paced: AtomicBool,
}

impl CallState {
    fn abandon(&self) {
        if self.is_abandoned.swap(true, Ordering::SeqCst) {
            return;
        }
        self.room.close();
        for pool in self.pools.values() {
            pool.queue().cancel(self.id);
        }
    }
}

/// The receiver of the outcomes was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the receiver of the outcomes was dropped")]
pub struct CallAbandoned;

/// The sending end of a call. The items end when the last clone is dropped.
#[derive(Clone)]
pub struct CallSender {
    call: Arc<CallState>,
    tx: mpsc::UnboundedSender<Vec<Outcome>>,
}

impl CallSender {
    /// Sends an item; waits while the call is full, and while the queue is full as [`WhenFull`] says. If the future is dropped before it resolves,
    /// no item that was sent before is lost.
    ///
    /// # Errors
    ///
    /// The receiver of the outcomes was dropped.
    pub async fn send(&self, item: impl Into<SharedItem>) -> Result<(), CallAbandoned> {
        let item = item.into();
        let room = self.call.room.clone().acquire_owned().await.map_err(|_| CallAbandoned)?;
        room.forget();
        self.enqueue(item).await
    }

    /// The permits of the call's items: one must be forgotten for each item that is sent.
    pub(crate) fn room(&self) -> &Arc<Semaphore> {
        &self.call.room
    }

    /// For how many items a guest waits when the call is full, so that it is woken once for all of them. The others of its items
    /// are meanwhile enough for the replicas.
    pub(crate) fn refill(&self) -> usize {
        self.call.refill
    }

    /// The second half of `send`: the item already has its permit in the call.
    pub(crate) async fn enqueue(&self, item: SharedItem) -> Result<(), CallAbandoned> {
        let Some((pool, reply)) = self.pool_of(&item) else { return self.check_open() };
        let queue = pool.queue();
        let ticket = queue.ticket(self.call.id, self.call.owner, &item);
        if waits_for_room(&item, queue) {
            let permit = queue.permit(ticket.tokens).await.ok_or(CallAbandoned)?;
            queue.push(self.job(item, reply, ticket, queue, Some(permit)));
            return self.check_open();
        }
        if item.when_full == WhenFull::Wait {
            queue.push(self.job(item, reply, ticket, queue, None));
            return self.check_open();
        }
        let mut job = self.job(item, reply, ticket, queue, None);
        loop {
            let mut departure = pin!(queue.departure());
            // Registered first, so that no departure after the offer is missed.
            departure.as_mut().enable();
            match queue.offer(job, self.call.is_paced.load(Ordering::Relaxed)) {
                Ok(()) => return self.check_open(),
                Err(returned) => job = *returned,
            }
            self.call.is_paced.store(true, Ordering::Relaxed);
            let Some(deadline_ns) = ticket.deadline_ns else {
                departure.await;
                continue;
            };
            let left = Duration::from_nanos(deadline_ns.saturating_sub(queue.now_ns()));
            if tokio::time::timeout(left, departure).await.is_err() {
                queue.expire(job);
                return self.check_open();
            }
        }
    }

    /// As `enqueue`, without waiting: returns the item when the queue is full.
    #[allow(clippy::result_large_err, reason = "the error is the returned item, which is moved once")]
    pub(crate) fn try_enqueue(&self, item: SharedItem) -> Result<(), SharedItem> {
        let Some((pool, reply)) = self.pool_of(&item) else { return Ok(()) };
        let queue = pool.queue();
        let ticket = queue.ticket(self.call.id, self.call.owner, &item);
        if waits_for_room(&item, queue) {
            let Some(permit) = queue.try_permit(ticket.tokens) else {
                reply.discard();
                return Err(item);
            };
            queue.push(self.job(item, reply, ticket, queue, Some(permit)));
            return Ok(());
        }
        if item.when_full == WhenFull::Wait {
            queue.push(self.job(item, reply, ticket, queue, None));
            return Ok(());
        }
        let is_paced = self.call.is_paced.load(Ordering::Relaxed);
        queue.offer(self.job(item, reply, ticket, queue, None), is_paced).map_err(|job| {
            job.reply.discard();
            job.item
        })
    }

    fn job(
        &self,
        item: SharedItem,
        reply: OutcomeSender,
        ticket: Ticket,
        queue: &Queue,
        permit: Option<QueuePermit>,
    ) -> Job {
        let own = item.traceparent.as_deref().and_then(|traceparent| traceparent.parse().ok());
        let trace = own.or(self.call.trace).filter(SpanContext::is_sampled);
        let request_deadline = self.call.deadline.filter(|_| item.when_full == WhenFull::Fail);
        let mut job = Job::new(item, reply, ticket, permit);
        job.trace = trace;
        job.answer_by_ns = ticket.deadline_ns.zip(request_deadline).map(|(own_ns, at)| own_ns.max(queue.ns_at(at)));
        job
    }

    /// The pool of an item's model. An item of an unknown model is answered with a failure.
    fn pool_of(&self, item: &SharedItem) -> Option<(Arc<Pool>, OutcomeSender)> {
        let reply = self.reply(item.id);
        match self.call.pools.get(&*item.model) {
            Some(pool) => Some((pool.clone(), reply)),
            None => {
                reply.send(0, Err(Failure::UnknownModel(item.model.to_string())));
                None
            }
        }
    }

    fn reply(&self, id: u64) -> OutcomeSender {
        OutcomeSender::new(id, self.call.is_abandoned.clone(), self.tx.clone())
    }

    fn check_open(&self) -> Result<(), CallAbandoned> {
        if self.call.is_abandoned.load(Ordering::Relaxed) { Err(CallAbandoned) } else { Ok(()) }
    }
}

/// Whether an item waits for a permit of the queue. With a drop policy it does not wait, and is dropped or drops others.
fn waits_for_room(item: &SharedItem, queue: &Queue) -> bool {
    item.when_full == WhenFull::Wait && !queue.drops()
}

/// The receiving end of a call. Dropping it abandons the call: items not yet computed are skipped.
pub struct Outcomes {
    rx: mpsc::UnboundedReceiver<Vec<Outcome>>,
    /// The outcomes of the last received list that are not read yet.
    received: std::vec::IntoIter<Outcome>,
    call: Arc<CallState>,
}

impl Outcomes {
    /// The next outcome, in the order of completion; `None` once the sender is dropped and every item has its outcome.
    pub async fn recv(&mut self) -> Option<Outcome> {
        loop {
            if let Some(outcome) = self.received.next() {
                self.call.room.add_permits(1);
                return Some(outcome);
            }
            self.received = self.rx.recv().await?.into_iter();
        }
    }

    /// Waits for an outcome, and returns up to `max` of those available; empty once the sender is dropped and every
    /// item has its outcome.
    pub async fn recv_many(&mut self, max: usize) -> Vec<Outcome> {
        std::future::poll_fn(|cx| self.poll_recv_many(cx, max)).await
    }

    /// Up to `max` outcomes; empty once the sender is dropped and every item has its outcome.
    pub(crate) fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Outcome>> {
        while self.received.len() == 0 {
            match ready!(self.rx.poll_recv(cx)) {
                Some(list) => self.received = list.into_iter(),
                None => return Poll::Ready(Vec::new()),
            }
        }
        let mut outcomes: Vec<Outcome> = self.received.by_ref().take(max).collect();
        while outcomes.len() < max
            && let Ok(list) = self.rx.try_recv()
        {
            self.received = list.into_iter();
            outcomes.extend(self.received.by_ref().take(max - outcomes.len()));
        }
        self.call.room.add_permits(outcomes.len());
        Poll::Ready(outcomes)
    }

    /// The next outcomes, as a replica has sent them, whose items stay open until they are [released](Outcomes::release); `None` once
    /// the sender is dropped and every item has its outcome.
    pub(crate) fn poll_list(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<Outcome>>> {
        if self.received.len() > 0 {
            return Poll::Ready(Some(std::mem::take(&mut self.received).collect()));
        }
        self.rx.poll_recv(cx)
    }

    /// Returns the permits of items whose outcomes were read with [`Outcomes::poll_list`].
    pub(crate) fn release(&self, count: usize) {
        self.call.room.add_permits(count);
    }

    /// The most items without a read outcome.
    pub(crate) fn items_max(&self) -> usize {
        self.call.items_max
    }

    /// Items without a read outcome.
    pub(crate) fn open_items(&self) -> usize {
        self.call.items_max.saturating_sub(self.call.room.available_permits())
    }

    /// A handle by which another task can abandon the call.
    pub(crate) fn handle(&self) -> CallHandle {
        CallHandle(Arc::downgrade(&self.call))
    }
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        self.call.abandon();
    }
}

/// A weak handle of a call: it does not keep the call alive.
pub(crate) struct CallHandle(Weak<CallState>);

impl CallHandle {
    /// Whether the call has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.0.strong_count() == 0
    }

    /// Abandons the call, if it is still open: its items that are not yet computed are skipped.
    pub(crate) fn abandon(&self) {
        if let Some(call) = self.0.upgrade() {
            call.abandon();
        }
    }
}

/// A reply and the stream that receives it.
#[cfg(test)]
pub(crate) fn test_reply(id: u64) -> (OutcomeSender, Outcomes) {
    let (sender, outcomes) = CallOpener::new(Arc::default(), 16).open();
    (sender.reply(id), outcomes)
}

/// A call of `items_max` items, the replies to `open` open ones, with ids from 0, and the stream that receives them.
#[cfg(test)]
pub(crate) fn test_call(items_max: usize, open: usize) -> (Vec<OutcomeSender>, Outcomes) {
    let (sender, outcomes) = CallOpener::new(Arc::default(), items_max).open();
    let permits = sender.room().try_acquire_many(u32::try_from(open).expect("few items")).expect("the call has room");
    permits.forget();
    ((0..open as u64).map(|id| sender.reply(id)).collect(), outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn dropped_reply_answers_unavailable() {
        let (reply, mut outcomes) = test_reply(7);
        drop(reply);
        let outcome = outcomes.recv().await.unwrap();
        assert_eq!(outcome.id, 7);
        assert!(matches!(outcome.result, Err(Failure::Unavailable(_))));
        assert!(outcomes.recv().await.is_none());
    }
}
