//! `weir:stream/infer` for instances of gateway and adapter components: the items of a guest are sent to a call, and
//! the outcomes of the call to the guest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::sync::Semaphore;
use wasmtime::component::{
    Accessor, Destination, GuestTaskId, HasSelf, Source, StreamConsumer, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime::{AsContextMut, StoreContextMut};

use crate::bindings::gateway::weir::stream::infer::{Host, HostWithStore};
use crate::components::adapter::AdapterState;
use crate::components::gateway::state::GatewayState;
use crate::inference::call::{CallAbandoned, CallSender, Outcomes};
use crate::stages::{self, Stage};
use crate::types::{Item, ModelInfo, Outcome};
use weir_wasi::StoreData;

/// Most items read from a guest, or outcomes written to it, at once.
const TRANSFER_MAX: usize = 64;

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
            let (sender, outcomes) = state.calls.open_for(owner);
            if let Some(request) = request {
                request.add_call(outcomes.handle());
            }
            items.pipe(&mut access, GuestItems::new(sender))?;
            StreamReader::new(&mut access, GuestOutcomes(outcomes))
        })
    }

    async fn models(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Vec<ModelInfo>> {
        Ok(accessor.with(|mut access| {
            let state = access.get();
            let is_draining = state.is_draining();
            let models = state.calls.pools().values().map(|pool| pool.info());
            models.map(|info| ModelInfo { ready: info.ready && !is_draining, ..info }).collect()
        }))
    }
}

impl crate::types::Host for AdapterState {}

impl Host for AdapterState {}

/// For adapters: their items have no client, and are accepted while the server drains.
impl HostWithStore<StoreData> for HasSelf<AdapterState> {
    async fn run(
        accessor: &Accessor<StoreData, Self>,
        items: StreamReader<Item>,
    ) -> wasmtime::Result<StreamReader<Outcome>> {
        accessor.with(|mut access| {
            let (sender, outcomes) = access.get().calls.open();
            items.pipe(&mut access, GuestItems::new(sender))?;
            StreamReader::new(&mut access, GuestOutcomes(outcomes))
        })
    }

    async fn models(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Vec<ModelInfo>> {
        Ok(accessor.with(|mut access| access.get().calls.pools().values().map(|pool| pool.info()).collect()))
    }
}

/// Reads the items that a guest writes, and sends them to its call.
struct GuestItems {
    sender: CallSender,
    /// Items that were read from the guest and are not in a queue yet.
    unsent: VecDeque<Item>,
    pending: Option<Pending>,
    /// True once items of the write in progress were read: the write completes when they are in their queues.
    has_read: bool,
}

type Pending = Pin<Box<dyn Future<Output = Result<(), CallAbandoned>> + Send>>;

impl GuestItems {
    fn new(sender: CallSender) -> Self {
        Self { sender, unsent: VecDeque::new(), pending: None, has_read: false }
    }

    /// Waits for room for one item in the call.
    fn poll_room(&mut self, cx: &mut Context<'_>, room: &Arc<Semaphore>) -> Poll<Result<(), CallAbandoned>> {
        if take_up_to(room, 1) == 1 {
            return Poll::Ready(Ok(()));
        }
        if room.is_closed() {
            return Poll::Ready(Err(CallAbandoned));
        }
        // The wait releases its permit immediately and the loop acquires it again, so that a cancelled wait holds none.
        let wait = |room: Arc<Semaphore>| -> Pending {
            Box::pin(async move { room.acquire().await.map(drop).map_err(|_| CallAbandoned) })
        };
        let pending = self.pending.get_or_insert_with(|| wait(room.clone()));
        loop {
            ready!(pending.as_mut().poll(cx))?;
            if take_up_to(room, 1) == 1 {
                self.pending = None;
                return Poll::Ready(Ok(()));
            }
            *pending = wait(room.clone());
        }
    }

    /// Moves the unsent items into their queues.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), CallAbandoned>> {
        loop {
            if let Some(pending) = &mut self.pending {
                let sent = ready!(pending.as_mut().poll(cx));
                self.pending = None;
                sent?;
            }
            let Some(item) = self.unsent.pop_front() else { return Poll::Ready(Ok(())) };
            if let Err(item) = self.sender.try_enqueue(item) {
                let sender = self.sender.clone();
                self.pending = Some(Box::pin(async move { sender.enqueue(item).await }));
            }
        }
    }

    /// Sends the unsent items from a task of their own: the guest has ended its write or its stream.
    fn send_detached(&mut self) {
        let unsent = std::mem::take(&mut self.unsent);
        let pending = self.pending.take();
        if unsent.is_empty() && pending.is_none() {
            return;
        }
        let sender = self.sender.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(pending) = pending
                    && pending.await.is_err()
                {
                    return;
                }
                for item in unsent {
                    if sender.enqueue(item).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
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
    type Item = Item;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Item>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if !self.has_read {
            let offered = source.remaining(&mut store);
            if offered == 0 {
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            // Room first, items second: what does not fit stays with the guest.
            let room = self.sender.room().clone();
            let permits = match self.poll_room(cx, &room) {
                Poll::Ready(Ok(())) => 1 + take_up_to(&room, offered.min(TRANSFER_MAX) - 1),
                Poll::Ready(Err(CallAbandoned)) => return Poll::Ready(Ok(StreamResult::Dropped)),
                Poll::Pending if finish => {
                    self.pending = None;
                    return Poll::Ready(Ok(StreamResult::Cancelled));
                }
                Poll::Pending => return Poll::Pending,
            };
            let mut items = Vec::with_capacity(permits);
            source.read(&mut store, &mut items)?;
            room.add_permits(permits.saturating_sub(items.len()));
            self.unsent.extend(items);
            self.has_read = true;
        }
        // While a queue is full, the write does not complete. Only a write in progress is polled, so all of its items
        // must be sent before it completes.
        let flushed = self.poll_flush(cx);
        if flushed.is_pending() {
            if !finish {
                return Poll::Pending;
            }
            self.send_detached();
        }
        self.has_read = false;
        match flushed {
            Poll::Ready(Err(CallAbandoned)) => Poll::Ready(Ok(StreamResult::Dropped)),
            _ => Poll::Ready(Ok(StreamResult::Completed)),
        }
    }
}

impl Drop for GuestItems {
    fn drop(&mut self) {
        // Before items were read, only room was waited for, which is not needed any more.
        if self.has_read {
            self.send_detached();
        }
    }
}

/// Writes the outcomes of a call to its guest.
struct GuestOutcomes(Outcomes);

impl<D> StreamProducer<D> for GuestOutcomes {
    type Item = Outcome;
    type Buffer = VecBuffer<Outcome>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Outcome, VecBuffer<Outcome>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(TRANSFER_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.0.poll_recv_many(cx, room) {
            Poll::Ready(outcomes) if outcomes.is_empty() => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(outcomes) => {
                stages::mark(Stage::Returned);
                destination.set_buffer(outcomes.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}
