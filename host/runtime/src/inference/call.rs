//! One caller's pair of streams: items in, outcomes out. It bounds what the caller may have open, ends when every item is
//! answered, and notices when the caller is gone.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll, ready};

use tokio::sync::{Semaphore, mpsc};
use wasmtime::StoreContextMut;
use wasmtime::component::{Destination, Source, StreamConsumer, StreamProducer, StreamResult, VecBuffer};

use crate::inference::pool::Pool;
use crate::inference::queue::{Job, Queue};
use crate::types::{Failure, Item, Outcome, Output, WhenFull};

/// The pools by model name.
pub(crate) type Pools = BTreeMap<String, Arc<Pool>>;

/// Where native code opens calls; cheap to clone.
#[derive(Clone)]
pub struct Call {
    pools: Arc<Pools>,
    items_max: usize,
    /// Numbers the calls.
    calls: Arc<AtomicU64>,
}

impl Call {
    pub(crate) fn new(pools: Arc<Pools>, items_max: usize) -> Self {
        Self { pools, items_max, calls: Arc::default() }
    }

    /// Opens a call: a sender of items and the stream of their outcomes.
    pub fn open(&self) -> (CallSender, Outcomes) {
        self.open_for(0)
    }

    /// As [`Call::open`], for one of several owners, who have a share of each queue (`infer.caller_items_max`).
    pub fn open_for(&self, owner: u64) -> (CallSender, Outcomes) {
        let (tx, rx) = mpsc::unbounded_channel();
        let shared = Arc::new(Shared {
            // From 1: what is on a merged stream without a call is a warm-up.
            id: 1 + self.calls.fetch_add(1, Ordering::Relaxed) % u64::from(u32::MAX),
            owner,
            pools: self.pools.clone(),
            gone: AtomicBool::new(false),
            open: Arc::new(Semaphore::new(self.items_max)),
        });
        let sender = CallSender { pools: self.pools.clone(), shared: shared.clone(), tx };
        (sender, Outcomes { rx, shared })
    }

    /// The pools behind it.
    pub(crate) fn pools(&self) -> &Pools {
        &self.pools
    }
}

/// What the two ends of a call share.
struct Shared {
    /// The call's number: the turns are between calls.
    id: u64,
    /// Whose call it is.
    owner: u64,
    pools: Arc<Pools>,
    /// True once nobody reads the outcomes any more.
    gone: AtomicBool,
    /// Room for items without an outcome, and for outcomes not yet read.
    open: Arc<Semaphore>,
}

impl Shared {
    fn abandon(&self) {
        if self.gone.swap(true, Ordering::SeqCst) {
            return;
        }
        self.open.close();
        for pool in self.pools.values() {
            pool.queue().cancel(self.id);
        }
    }
}

/// Nobody reads the outcomes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("nobody reads the outcomes any more")]
pub struct Gone;

/// The sending end of a call. Dropping it ends the items.
#[derive(Clone)]
pub struct CallSender {
    pools: Arc<Pools>,
    shared: Arc<Shared>,
    tx: mpsc::UnboundedSender<Outcome>,
}

impl CallSender {
    /// Sends an item; waits while the call or the model's queue is full. Cancelling it before it resolves loses nothing
    /// that was sent before.
    pub async fn send(&self, item: Item) -> Result<(), Gone> {
        let open = self.shared.open.clone().acquire_owned().await.map_err(|_| Gone)?;
        open.forget();
        self.place(item).await
    }

    /// The second half of `send`: the item already has its room in the call.
    async fn place(&self, item: Item) -> Result<(), Gone> {
        let Some((pool, reply)) = self.route(&item) else { return self.alive() };
        let queue = pool.queue();
        let ticket = queue.ticket(self.shared.id, self.shared.owner, &item);
        let places = if waits(&item, queue) { Some(queue.places(ticket.tokens).await.ok_or(Gone)?) } else { None };
        queue.push(Job::new(item, reply, ticket, places));
        self.alive()
    }

    /// As `place`, without waiting: gives the item back when the queue is full.
    #[allow(clippy::result_large_err, reason = "the item is what is given back, and it is moved once")]
    fn try_place(&self, item: Item) -> Result<(), Item> {
        let Some((pool, reply)) = self.route(&item) else { return Ok(()) };
        let queue = pool.queue();
        let ticket = queue.ticket(self.shared.id, self.shared.owner, &item);
        let places = if waits(&item, queue) {
            let Some(places) = queue.try_places(ticket.tokens) else {
                reply.forget();
                return Err(item);
            };
            Some(places)
        } else {
            None
        };
        queue.push(Job::new(item, reply, ticket, places));
        Ok(())
    }

    /// Finds the pool of an item, or answers it.
    fn route(&self, item: &Item) -> Option<(Arc<Pool>, Reply)> {
        let reply = Reply::new(self, item.id);
        match self.pools.get(&item.model) {
            Some(pool) => Some((pool.clone(), reply)),
            None => {
                reply.send(0, Err(Failure::UnknownModel(item.model.clone())));
                None
            }
        }
    }

    fn alive(&self) -> Result<(), Gone> {
        if self.shared.gone.load(Ordering::Relaxed) { Err(Gone) } else { Ok(()) }
    }
}

/// Whether an item waits for its place in the queue.
fn waits(item: &Item, queue: &Queue) -> bool {
    item.when_full == WhenFull::Wait && !queue.drops()
}

/// The receiving end of a call. Dropping it says that nobody waits any more: items not yet computed are skipped.
pub struct Outcomes {
    rx: mpsc::UnboundedReceiver<Outcome>,
    shared: Arc<Shared>,
}

impl Outcomes {
    /// The next outcome, in the order in which they exist; `None` once the sender is dropped and every item answered.
    pub async fn recv(&mut self) -> Option<Outcome> {
        let outcome = self.rx.recv().await?;
        self.shared.open.add_permits(1);
        Some(outcome)
    }

    fn poll_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Outcome>> {
        let mut outcomes = Vec::with_capacity(max.min(64));
        let read = ready!(self.rx.poll_recv_many(cx, &mut outcomes, max));
        self.shared.open.add_permits(read);
        Poll::Ready(outcomes)
    }
}

impl Outcomes {
    /// A way to give the call up from elsewhere.
    pub(crate) fn abandon(&self) -> Abandon {
        Abandon(Arc::downgrade(&self.shared))
    }
}

impl Drop for Outcomes {
    fn drop(&mut self) {
        self.shared.abandon();
    }
}

/// Gives a call up, if it still goes on: its items that are not yet computed are answered `unavailable` and skipped.
pub(crate) struct Abandon(Weak<Shared>);

impl Abandon {
    pub(crate) fn now(&self) {
        if let Some(shared) = self.0.upgrade() {
            shared.abandon();
        }
    }
}

/// The way back for one outcome. Dropped without an answer it answers `unavailable`: no item is ever lost in silence.
pub(crate) struct Reply {
    id: u64,
    shared: Arc<Shared>,
    tx: mpsc::UnboundedSender<Outcome>,
    answered: bool,
}

impl Reply {
    pub(crate) fn new(sender: &CallSender, id: u64) -> Self {
        Self { id, shared: sender.shared.clone(), tx: sender.tx.clone(), answered: false }
    }

    pub(crate) fn send(mut self, tokens: u32, result: Result<Output, Failure>) {
        self.answer(tokens, result);
    }

    /// Whether nobody waits for the answer.
    pub(crate) fn gone(&self) -> bool {
        self.shared.gone.load(Ordering::SeqCst)
    }

    /// Lets go without an answer: the item goes another way.
    fn forget(mut self) {
        self.answered = true;
    }

    fn answer(&mut self, tokens: u32, result: Result<Output, Failure>) {
        self.answered = true;
        // The receiver may be gone: then nobody waits for it.
        let _ = self.tx.send(Outcome { id: self.id, tokens, result });
    }
}

impl Drop for Reply {
    fn drop(&mut self) {
        if !self.answered {
            self.answer(0, Err(Failure::Unavailable("the replica that had this item was lost".into())));
        }
    }
}

/// Takes the items that a guest writes.
pub(crate) struct FromGuest {
    sender: CallSender,
    /// Taken from the guest and not yet in a queue.
    held: VecDeque<Item>,
    waiting: Option<Waiting>,
    /// The write in progress has given items: it completes when they are in their queues.
    taken: bool,
}

type Waiting = Pin<Box<dyn Future<Output = Result<(), Gone>> + Send>>;

/// The most items taken from a guest's write at a time.
const TAKE_ITEMS_MAX: usize = 64;

impl FromGuest {
    pub(crate) fn new(sender: CallSender) -> Self {
        Self { sender, held: VecDeque::new(), waiting: None, taken: false }
    }

    /// Moves what is held into the queues.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let sent = ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
                sent?;
            }
            let Some(item) = self.held.pop_front() else { return Poll::Ready(Ok(())) };
            if let Err(item) = self.sender.try_place(item) {
                let sender = self.sender.clone();
                self.waiting = Some(Box::pin(async move { sender.place(item).await }));
            }
        }
    }
}

impl<D> StreamConsumer<D> for FromGuest {
    type Item = Item;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if !self.taken {
            let offered = source.remaining(&mut store);
            if offered == 0 {
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            // Room first, items second: what does not fit stays with the guest.
            let open = self.sender.shared.open.clone();
            let room = match self.poll_room(cx, &open) {
                Poll::Ready(Ok(())) => 1 + take_up_to(&open, offered.min(TAKE_ITEMS_MAX) - 1),
                Poll::Ready(Err(Gone)) => return Poll::Ready(Ok(StreamResult::Dropped)),
                Poll::Pending if finish => {
                    self.waiting = None;
                    return Poll::Ready(Ok(StreamResult::Cancelled));
                }
                Poll::Pending => return Poll::Pending,
            };
            let mut items = Vec::with_capacity(room);
            source.read(&mut store, &mut items)?;
            open.add_permits(room.saturating_sub(items.len()));
            self.held.extend(items);
            self.taken = true;
        }
        // A full queue holds the write back. Only a write in progress is polled, so nothing may be left over after it.
        let flushed = self.poll_flush(cx);
        if flushed.is_pending() {
            if !finish {
                return Poll::Pending;
            }
            self.hand_over();
        }
        self.taken = false;
        match flushed {
            Poll::Ready(Err(Gone)) => Poll::Ready(Ok(StreamResult::Dropped)),
            _ => Poll::Ready(Ok(StreamResult::Completed)),
        }
    }
}

impl FromGuest {
    /// Waits for room for one item in the call.
    fn poll_room(&mut self, cx: &mut Context<'_>, open: &Arc<Semaphore>) -> Poll<Result<(), Gone>> {
        if take_up_to(open, 1) == 1 {
            return Poll::Ready(Ok(()));
        }
        if open.is_closed() {
            return Poll::Ready(Err(Gone));
        }
        // The wait gives its permit back at once and the loop takes it again: cancelling it holds nothing.
        let waiting = self.waiting.get_or_insert_with(|| {
            let open = open.clone();
            Box::pin(async move { open.acquire().await.map(drop).map_err(|_| Gone) })
        });
        loop {
            ready!(waiting.as_mut().poll(cx))?;
            if take_up_to(open, 1) == 1 {
                self.waiting = None;
                return Poll::Ready(Ok(()));
            }
            let open = open.clone();
            *waiting = Box::pin(async move { open.acquire().await.map(drop).map_err(|_| Gone) });
        }
    }
}

/// Takes up to `count` permits without waiting; says how many.
fn take_up_to(open: &Semaphore, count: usize) -> usize {
    let count = count.min(open.available_permits());
    match open.try_acquire_many(u32::try_from(count).unwrap_or(u32::MAX)) {
        Ok(permits) => {
            permits.forget();
            count
        }
        Err(_) => 0,
    }
}

impl FromGuest {
    /// Items on their way into a full queue go on without the guest, which has ended its write or its stream.
    fn hand_over(&mut self) {
        let held = std::mem::take(&mut self.held);
        let waiting = self.waiting.take();
        if held.is_empty() && waiting.is_none() {
            return;
        }
        let sender = self.sender.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(waiting) = waiting
                    && waiting.await.is_err()
                {
                    return;
                }
                for item in held {
                    if sender.place(item).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

impl Drop for FromGuest {
    fn drop(&mut self) {
        // Without items taken it only waits for room, and that is of no use any more.
        if self.taken {
            self.hand_over();
        }
    }
}

/// Gives a guest the outcomes of its items.
pub(crate) struct ToGuest(pub(crate) Outcomes);

impl<D> StreamProducer<D> for ToGuest {
    type Item = Outcome;
    type Buffer = VecBuffer<Outcome>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Outcome, VecBuffer<Outcome>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(TAKE_ITEMS_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.0.poll_many(cx, room) {
            Poll::Ready(outcomes) if outcomes.is_empty() => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(outcomes) => {
                destination.set_buffer(outcomes.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}

/// A reply and the stream that receives it.
#[cfg(test)]
pub(crate) fn test_reply(id: u64) -> (Reply, Outcomes) {
    let (sender, outcomes) = Call::new(Arc::default(), 16).open();
    (Reply::new(&sender, id), outcomes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_lost_reply_is_an_answer() {
        let (reply, mut outcomes) = test_reply(7);
        drop(reply);
        let outcome = outcomes.recv().await.unwrap();
        assert_eq!(outcome.id, 7);
        assert!(matches!(outcome.result, Err(Failure::Unavailable(_))));
        assert!(outcomes.recv().await.is_none());
    }
}
