//! `weir:stream/generate` for gateway instances: the commands of a guest are sent to a call, and the events of the call
//! to the guest.

use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime::component::{Accessor, GuestTaskId, HasSelf, Source, StreamConsumer, StreamReader, StreamResult};
use wasmtime::{AsContextMut, StoreContextMut};
use weir_wasi::StoreData;

use crate::bindings::gateway::weir::stream::generate::{Host, HostWithStore};
use crate::bindings::generate_types::{self, Command, Event, GenerateModel};
use crate::components::gateway::state::GatewayState;
use crate::generation::{CommandSender, EventReceiver};
use crate::interfaces::transfer::{GuestWriter, TRANSFER_MAX, Unsent, ValueReceiver, ValueSender};

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
            commands.pipe(&mut access, GuestCommands(Unsent::new(sender)))?;
            StreamReader::new(&mut access, GuestWriter(events))
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

impl ValueSender for CommandSender {
    type Value = Command;

    #[allow(clippy::result_large_err, reason = "the error is the returned command, which is moved once")]
    fn try_send(&self, command: Command) -> Result<(), Command> {
        Err(command)
    }

    async fn send(&self, command: Command) -> bool {
        self.send(command).await.is_ok()
    }
}

impl ValueReceiver for EventReceiver {
    type Value = Event;

    fn poll_recv_many(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Vec<Event>> {
        self.poll_recv_many(cx, max.min(TRANSFER_MAX))
    }
}

/// Reads the commands that a guest writes, one at a time, and sends them to its call. The write of a start command
/// completes when there is room for the generation.
struct GuestCommands(Unsent<CommandSender>);

impl<D> StreamConsumer<D> for GuestCommands {
    type Item = Command;

    fn poll_consume(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<D>,
        mut source: Source<'_, Command>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        if self.0.is_empty() {
            if source.remaining(&mut store) == 0 {
                return Poll::Ready(Ok(StreamResult::Completed));
            }
            let mut commands = Vec::with_capacity(1);
            source.read(&mut store, &mut commands)?;
            self.0.extend(commands);
        }
        match self.0.poll_flush(cx) {
            Poll::Ready(true) => Poll::Ready(Ok(StreamResult::Completed)),
            Poll::Ready(false) => Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Pending if finish => {
                self.0.send_detached();
                Poll::Ready(Ok(StreamResult::Completed))
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Drop for GuestCommands {
    fn drop(&mut self) {
        self.0.send_detached();
    }
}
