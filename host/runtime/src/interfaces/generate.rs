//! `weir:stream/generate` for gateway instances: the commands of a guest are sent to a call, and the events of the call
//! to the guest.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime::component::{
    Accessor, Destination, GuestTaskId, HasSelf, Source, StreamConsumer, StreamProducer, StreamReader, StreamResult,
    VecBuffer,
};
use wasmtime::{AsContextMut, StoreContextMut};

use crate::bindings::gateway::weir::stream::generate::{Host, HostWithStore};
use crate::bindings::generate_types::{self, Command, Event, GenerateModel};
use crate::components::gateway::state::GatewayState;
use crate::generation::{CommandSender, EventReceiver};
use weir_wasi::StoreData;

/// Most events written to a guest at once.
const TRANSFER_MAX: usize = 64;

impl generate_types::Host for GatewayState {}

impl Host for GatewayState {}

impl HostWithStore<StoreData> for HasSelf<GatewayState> {
    async fn run(
        accessor: &Accessor<StoreData, Self>,
        commands: StreamReader<Command>,
    ) -> wasmtime::Result<StreamReader<Event>> {
        accessor.with(|mut access| {
            let tasks: Vec<GuestTaskId> = access.as_context_mut().async_call_stack()?.collect();
            let state = access.get();
            let request = tasks.into_iter().find_map(|task| state.request_of(task));
            let owner = request.as_ref().map_or(0, |request| request.client);
            let (sender, events) = state.generations.open_for(owner);
            if let Some(request) = request {
                request.add_generations(events.handle());
            }
            commands.pipe(&mut access, GuestCommands { sender, unsent: VecDeque::new(), pending: None })?;
            StreamReader::new(&mut access, GuestEvents(events))
        })
    }

    async fn models(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Vec<GenerateModel>> {
        Ok(accessor.with(|mut access| {
            let state = access.get();
            let is_draining = state.is_draining();
            let models = state.generations.models().into_iter();
            models.map(|model| GenerateModel { ready: model.ready && !is_draining, ..model }).collect()
        }))
    }
}

/// Reads the commands that a guest writes, one at a time, and sends them to its call. The write of a start command
/// completes when there is room for the generation.
struct GuestCommands {
    sender: CommandSender,
    unsent: VecDeque<Command>,
    pending: Option<Pending>,
}

type Pending = Pin<Box<dyn Future<Output = bool> + Send>>;

impl GuestCommands {
    /// Sends the commands that were read; resolves with whether the caller still reads events.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<bool> {
        loop {
            if let Some(pending) = &mut self.pending {
                let is_open = std::task::ready!(pending.as_mut().poll(cx));
                self.pending = None;
                if !is_open {
                    return Poll::Ready(false);
                }
            }
            let Some(command) = self.unsent.pop_front() else { return Poll::Ready(true) };
            let sender = self.sender.clone();
            self.pending = Some(Box::pin(async move { sender.send(command).await.is_ok() }));
        }
    }

    /// Sends the commands that were read from a task of their own: the guest has ended its write or its stream.
    fn send_detached(&mut self) {
        let (unsent, pending) = (std::mem::take(&mut self.unsent), self.pending.take());
        if unsent.is_empty() && pending.is_none() {
            return;
        }
        let sender = self.sender.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Some(pending) = pending
                    && !pending.await
                {
                    return;
                }
                for command in unsent {
                    if sender.send(command).await.is_err() {
                        return;
                    }
                }
            });
        }
    }
}

impl<D> StreamConsumer<D> for GuestCommands {
    type Item = Command;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Command>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if self.pending.is_none() {
            if source.remaining(&mut store) == 0 {
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            let mut commands = Vec::with_capacity(1);
            source.read(&mut store, &mut commands)?;
            self.unsent.extend(commands);
        }
        match self.poll_flush(cx) {
            Poll::Ready(true) => Poll::Ready(Ok(StreamResult::Completed)),
            Poll::Ready(false) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending if finish => {
                self.send_detached();
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for GuestCommands {
    fn drop(&mut self) {
        self.send_detached();
    }
}

/// Writes the events of a call to its guest.
struct GuestEvents(EventReceiver);

impl<D> StreamProducer<D> for GuestEvents {
    type Item = Event;
    type Buffer = VecBuffer<Event>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Event, VecBuffer<Event>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(TRANSFER_MAX).min(TRANSFER_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        match self.0.poll_recv_many(cx, room) {
            Poll::Ready(events) if events.is_empty() => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(events) => {
                destination.set_buffer(events.into());
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending if finish => Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => Poll::Pending,
        }
    }
}
