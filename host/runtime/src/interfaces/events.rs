//! `weir:stream/events` for gateway instances, over the channel store.

use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Destination, HasSelf, StreamProducer, StreamReader, StreamResult, VecBuffer};
use weir_events::{Store, Subscription, WriteContext};

use crate::bindings::gateway::weir::stream::events::{
    Condition, Cursor, Delivery, Event, Failure, Fence, Host, HostWithStore, Page,
};
use crate::components::gateway::state::GatewayState;
use crate::interfaces::convert::{core_cursor, cursor, delivery, draft, failure, fence, name, page, store_name};
use weir_wasi::StoreData;

/// The size in bytes at which a batch for a guest ends; a batch has at least one event, even if that is larger.
const BATCH_BYTES_MAX: usize = 64 * 1024;
/// Most deliveries in a batch for a guest.
const BATCH_DELIVERIES_MAX: usize = 64;

impl Host for GatewayState {}

impl HostWithStore<StoreData> for HasSelf<GatewayState> {
    async fn append(
        accessor: &Accessor<StoreData, Self>,
        channel: String,
        events: Vec<Event>,
        lease: Option<Fence>,
        user: Option<String>,
    ) -> wasmtime::Result<Result<Vec<Cursor>, Failure>> {
        let store = store(accessor);
        let (name, fence) = match (name(&channel), lease.map(fence).transpose()) {
            (Ok(name), Ok(fence)) => (name, fence),
            (Err(invalid), _) | (_, Err(invalid)) => return Ok(Err(invalid)),
        };
        let drafts = events.into_iter().map(draft).collect();
        let write = WriteContext { fence: fence.as_ref(), user: user.as_deref() };
        let cursors = store.append_as(&name, drafts, write).await;
        Ok(cursors.map(|cursors| cursors.into_iter().map(cursor).collect()).map_err(failure))
    }

    async fn read(
        accessor: &Accessor<StoreData, Self>,
        channel: String,
        after: Cursor,
        limit: u32,
    ) -> wasmtime::Result<Result<Page, Failure>> {
        let store = store(accessor);
        match name(&channel) {
            Ok(name) => Ok(store.read(&name, core_cursor(after), limit as usize).await.map(page).map_err(failure)),
            Err(invalid) => Ok(Err(invalid)),
        }
    }

    async fn follow(
        accessor: &Accessor<StoreData, Self>,
        channel: String,
        after: Cursor,
        user: Option<String>,
    ) -> wasmtime::Result<Result<StreamReader<Delivery>, Failure>> {
        let store = store(accessor);
        let name = match name(&channel) {
            Ok(name) => name,
            Err(invalid) => return Ok(Err(invalid)),
        };
        match store.follow_as(&name, core_cursor(after), user.as_deref()).await {
            Ok(subscription) => accessor.with(|access| StreamReader::new(access, Deliveries(subscription)).map(Ok)),
            Err(error) => Ok(Err(failure(error))),
        }
    }

    async fn claim(
        accessor: &Accessor<StoreData, Self>,
        key: String,
        ttl_ms: u64,
    ) -> wasmtime::Result<Result<bool, Failure>> {
        Ok(store(accessor).claim(&key, ttl_ms).await.map_err(failure))
    }

    async fn health(accessor: &Accessor<StoreData, Self>) -> wasmtime::Result<Condition> {
        let store = store(accessor);
        let health = store.health().await;
        if let Some(detail) = health.detail.as_deref().filter(|_| !health.ok || health.fallback) {
            tracing::warn!(detail, fallback = health.fallback, "the channel store is degraded");
        }
        // An error means that the store does not answer, which the next health check reports.
        let exhausted = if health.ok { store.exhausted().await.unwrap_or_default() } else { Vec::new() };
        Ok(Condition {
            store: store_name(health.store).to_owned(),
            ok: health.ok,
            fallback: health.fallback,
            detail: health.detail,
            followers: u32::try_from(store.stats().subscribers).unwrap_or(u32::MAX),
            exhausted: exhausted.into_iter().map(str::to_owned).collect(),
            life: health.life.map(|life| life.to_string()),
        })
    }
}

/// The channel store of an instance.
pub(crate) fn store(accessor: &Accessor<StoreData, HasSelf<GatewayState>>) -> Store {
    accessor.with(|mut access| access.get().events.clone())
}

/// Writes the deliveries of a subscription to a guest. Deliveries that the guest has not read wait in the store, within
/// its bound.
struct Deliveries(Subscription);

impl<D> StreamProducer<D> for Deliveries {
    type Item = Delivery;
    type Buffer = VecBuffer<Delivery>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Delivery, VecBuffer<Delivery>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(BATCH_DELIVERIES_MAX).min(BATCH_DELIVERIES_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut batch = Vec::new();
        match self.0.poll_batch(cx, &mut batch, room, BATCH_BYTES_MAX) {
            Poll::Ready(()) if batch.is_empty() => return Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(()) => {}
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
        }
        destination.set_buffer(batch.into_iter().map(delivery).collect::<Vec<_>>().into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}
