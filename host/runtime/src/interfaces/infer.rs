//! `weir:stream/infer` for instances of gateway and adapter components: the items of a guest are sent to a call, and
//! the outcomes of the call to the guest.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::sync::Semaphore;
use wasmtime::component::{Accessor, GuestTaskId, HasSelf, Source, StreamConsumer, StreamReader, StreamResult};
use wasmtime::{AsContextMut, StoreContextMut};

use crate::bindings::gateway::weir::stream::infer::{Host, HostWithStore};
use crate::components::adapter::AdapterState;
use crate::components::gateway::state::GatewayState;
use crate::inference::call::{CallAbandoned, CallSender, Outcomes};
use crate::inference::gather::GatheredOutcomes;
use crate::inference::item::{SharedItem, shared_items};
use crate::interfaces::transfer::{GuestWriter, TRANSFER_MAX, Unsent, ValueReceiver, ValueSender};
use crate::stages::{self, Stage, Transfer};
use crate::types::{Item, ModelInfo, Outcome};
use weir_wasi::StoreData;

impl crate::types::Host for GatewayState {}

impl Host for GatewayState {}

impl HostWithStore<StoreData> for HasSelf<GatewayState> {
    async fn run(
        accessor: &Accessor<StoreData, Self>,
        items: StreamReader<Item>,
    ) -> wasmtime::Result<StreamReader<Outcome>> {
        accessor.with(|mut access| {
            let tasks: Vec<GuestTaskId> = access.as_context_mut().async_call_stack()?.collect();
            let state = access.get();
            let request = tasks.into_iter().find_map(|task| state.request_of(task));
            let owner = request.as_ref().map_or(0, |request| request.client);
            let trace = request.as_ref().and_then(|request| request.trace);
            let deadline = request.as_ref().map(|request| request.deadline);
            let (sender, outcomes) = state.calls.open_within(owner, trace, deadline);
            if let Some(request) = request {
                request.add_call(outcomes.handle());
            }
            shared_items(&mut access, items)?.pipe(&mut access, GuestItems::new(sender))?;
            StreamReader::new(&mut access, GuestWriter(outcomes))
        })
    }

    async fn models(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Vec<ModelInfo>> {
        Ok(accessor.with(|mut access| {
            let state = access.get();
            let is_draining = state.is_draining();
            let models = state.calls.pools().values().map(|pool| pool.info());
            let draining = |info| ModelInfo { ready: false, reason: Some("the server is stopping".to_owned()), ..info };
            models.map(|info| if is_draining { draining(info) } else { info }).collect()
        }))
    }
}

impl crate::types::Host for AdapterState {}

impl Host for AdapterState {}

/// For adapters: their items have no client, and are accepted while the server drains. Outcomes are gathered.
impl HostWithStore<StoreData> for HasSelf<AdapterState> {
    async fn run(
        accessor: &Accessor<StoreData, Self>,
        items: StreamReader<Item>,
    ) -> wasmtime::Result<StreamReader<Outcome>> {
        accessor.with(|mut access| {
            let (sender, outcomes) = access.get().calls.open();
            shared_items(&mut access, items)?.pipe(&mut access, GuestItems::new(sender))?;
            StreamReader::new(&mut access, GuestWriter(GatheredOutcomes::new(outcomes)))
        })
    }

    async fn models(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Vec<ModelInfo>> {
        Ok(accessor.with(|mut access| access.get().calls.pools().values().map(|pool| pool.info()).collect()))
    }
}

/// An item that a guest has written, and when it was read.
pub(super) struct ReadItem {
    item: SharedItem,
    time: Instant,
}

impl ReadItem {
    fn new(item: SharedItem) -> Self {
        Self { item, time: Instant::now() }
    }

    /// The item, with the time that remains until its deadline: it may have waited for earlier ones.
    fn into_item(self) -> SharedItem {
        let Self { mut item, time } = self;
        if let Some(deadline_ms) = &mut item.deadline_ms {
            let waited_ms = u32::try_from(time.elapsed().as_millis()).unwrap_or(u32::MAX);
            *deadline_ms = deadline_ms.saturating_sub(waited_ms);
        }
        item
    }
}

impl ValueSender for CallSender {
    type Value = ReadItem;

    #[allow(clippy::result_large_err, reason = "the error is the returned item, which is moved once")]
    fn try_send(&self, item: ReadItem) -> Result<(), ReadItem> {
        self.try_enqueue(item.into_item()).map_err(ReadItem::new)
    }

    async fn send(&self, item: ReadItem) -> bool {
        self.enqueue(item.into_item()).await.is_ok()
    }
}

impl ValueReceiver for Outcomes {
    type Value = Outcome;

    fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Outcome>> {
        self.poll_recv_many(cx, max).map(count_read)
    }
}

impl ValueReceiver for GatheredOutcomes {
    type Value = Outcome;

    fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Outcome>> {
        self.poll_recv_many(cx, max).map(count_read)
    }
}

/// Counts a list of outcomes that a guest reads.
fn count_read(outcomes: Vec<Outcome>) -> Vec<Outcome> {
    if !outcomes.is_empty() {
        stages::mark(Stage::Returned);
        stages::count(Transfer::OutcomesRead);
    }
    outcomes
}

/// Reads the items that a guest writes, and sends them to its call.
struct GuestItems {
    /// Items with a permit of the call, which are not in a queue yet.
    unsent: Unsent<CallSender>,
    /// Waits for room in the call.
    room: Option<RoomWait>,
    /// True once items of the write in progress were read: the write completes when they are in their queues.
    has_read: bool,
}

type RoomWait = Pin<Box<dyn Future<Output = Result<(), CallAbandoned>> + Send>>;

impl GuestItems {
    fn new(sender: CallSender) -> Self {
        Self { unsent: Unsent::new(sender), room: None, has_read: false }
    }

    /// Waits for room for `count` items in the call, and takes it.
    fn poll_room(
        &mut self,
        cx: &mut Context<'_>,
        room: &Arc<Semaphore>,
        count: u32,
    ) -> Poll<Result<(), CallAbandoned>> {
        if take(room, count) {
            return Poll::Ready(Ok(()));
        }
        if room.is_closed() {
            return Poll::Ready(Err(CallAbandoned));
        }
        // The wait releases its permits immediately and the loop acquires them again, so that a cancelled wait holds none.
        let wait = |room: Arc<Semaphore>| -> RoomWait {
            Box::pin(async move { room.acquire_many(count).await.map(drop).map_err(|_| CallAbandoned) })
        };
        let waiting = self.room.get_or_insert_with(|| wait(room.clone()));
        loop {
            ready!(waiting.as_mut().poll(cx))?;
            if take(room, count) {
                self.room = None;
                return Poll::Ready(Ok(()));
            }
            *waiting = wait(room.clone());
        }
    }
}

/// Takes `count` permits without waiting; false if there are fewer.
fn take(room: &Semaphore, count: u32) -> bool {
    room.try_acquire_many(count).map(|permits| permits.forget()).is_ok()
}

/// Takes up to `count` permits without waiting; returns how many.
fn take_up_to(room: &Semaphore, count: usize) -> usize {
    let count = count.min(room.available_permits());
    match room.try_acquire_many(u32::try_from(count).unwrap_or(u32::MAX)) {
        Ok(permits) => {
            permits.forget();
            count
        }
        Err(_) => 0,
    }
}

impl<D> StreamConsumer<D> for GuestItems {
    type Item = SharedItem;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, SharedItem>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if !self.has_read {
            let offered = source.remaining(&mut store);
            if offered == 0 {
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            // Room first, items second: what does not fit stays with the guest.
            let room = self.unsent.sender().room().clone();
            let items_max = offered.min(TRANSFER_MAX);
            let refill = self.unsent.sender().refill().min(items_max);
            let permits = match self.poll_room(cx, &room, u32::try_from(refill).unwrap_or(u32::MAX)) {
                Poll::Ready(Ok(())) => refill + take_up_to(&room, items_max - refill),
                Poll::Ready(Err(CallAbandoned)) => return Poll::Ready(Ok(StreamResult::Dropped)),
                Poll::Pending if finish => {
                    self.room = None;
                    return Poll::Ready(Ok(StreamResult::Cancelled));
                }
                Poll::Pending => return Poll::Pending,
            };
            let mut items = Vec::with_capacity(permits);
            source.read(&mut store, &mut items)?;
            stages::count(Transfer::ItemsRead);
            room.add_permits(permits.saturating_sub(items.len()));
            self.unsent.extend(items.into_iter().map(ReadItem::new).collect());
            self.has_read = true;
        }
        // While a queue is full, the write does not complete. Only a write in progress is polled, so all of its items
        // must be sent before it completes.
        let flushed = self.unsent.poll_flush(cx);
        if flushed.is_pending() {
            if !finish {
                return Poll::Pending;
            }
            self.unsent.send_detached();
        }
        self.has_read = false;
        match flushed {
            Poll::Ready(false) => Poll::Ready(Ok(StreamResult::Dropped)),
            _ => Poll::Ready(Ok(StreamResult::Completed)),
        }
    }
}

impl Drop for GuestItems {
    fn drop(&mut self) {
        self.unsent.send_detached();
    }
}
