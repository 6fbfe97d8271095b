//! The channel store as gateway instances see it: `weir:stream/events` over [`Store`].

use std::pin::Pin;
use std::task::{Context, Poll};

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Destination, HasSelf, StreamProducer, StreamReader, StreamResult, VecBuffer};
use weir_core::channels::{self, ChannelName, Draft};
use weir_events::{Error, Store, StoreKind, Subscription};

use crate::bindings::gateway::weir::stream::events::{
    Closed, Condition, Cursor, Delivery, Entry, Event, Failure, Fence, Gap, Host, HostWithStore, Page,
};
use crate::components::gateway::GatewayState;

/// Bytes of events from which no more are handed over at once; one is, whatever its size.
const HANDED_BYTES_MAX: usize = 64 * 1024;
/// Most deliveries handed over at once.
const HANDED_MAX: usize = 64;

impl Host for GatewayState {}

impl HostWithStore<GatewayState> for HasSelf<GatewayState> {
    async fn append(
        accessor: &Accessor<GatewayState, Self>,
        channel: String,
        events: Vec<Event>,
        lease: Option<Fence>,
    ) -> wasmtime::Result<Result<Vec<Cursor>, Failure>> {
        let store = store(accessor);
        let Some(name) = name(&channel) else { return Ok(Err(no_name(&channel))) };
        let drafts = events.into_iter().map(draft).collect();
        let fence = match lease.map(fence).transpose() {
            Ok(fence) => fence,
            Err(invalid) => return Ok(Err(invalid)),
        };
        let places = store.append_fenced(&name, drafts, fence.as_ref()).await;
        Ok(places.map(|places| places.into_iter().map(cursor).collect()).map_err(failure))
    }

    async fn read(
        accessor: &Accessor<GatewayState, Self>,
        channel: String,
        after: Cursor,
        limit: u32,
    ) -> wasmtime::Result<Result<Page, Failure>> {
        let store = store(accessor);
        let Some(name) = name(&channel) else { return Ok(Err(no_name(&channel))) };
        Ok(store.read(&name, place(after), limit as usize).await.map(page).map_err(failure))
    }

    async fn follow(
        accessor: &Accessor<GatewayState, Self>,
        channel: String,
        after: Cursor,
    ) -> wasmtime::Result<Result<StreamReader<Delivery>, Failure>> {
        let store = store(accessor);
        let Some(name) = name(&channel) else { return Ok(Err(no_name(&channel))) };
        match store.follow(&name, place(after)).await {
            Ok(subscription) => accessor.with(|access| StreamReader::new(access, Following(subscription)).map(Ok)),
            Err(error) => Ok(Err(failure(error))),
        }
    }

    async fn claim(
        accessor: &Accessor<GatewayState, Self>,
        key: String,
        ttl_ms: u64,
    ) -> wasmtime::Result<Result<bool, Failure>> {
        Ok(store(accessor).claim(&key, ttl_ms).await.map_err(failure))
    }

    async fn health(accessor: &Accessor<GatewayState, Self>) -> wasmtime::Result<Condition> {
        let store = store(accessor);
        let health = store.health().await;
        let name = match health.store {
            StoreKind::Memory => "memory",
            StoreKind::Disk => "disk",
            StoreKind::Redis => "redis",
        };
        if let Some(detail) = health.detail.as_deref().filter(|_| !health.ok || health.fallback) {
            tracing::warn!(detail, fallback = health.fallback, "the channel store is not well");
        }
        Ok(Condition {
            store: name.to_owned(),
            ok: health.ok,
            fallback: health.fallback,
            detail: health.detail,
            followers: u32::try_from(store.stats().subscribers).unwrap_or(u32::MAX),
        })
    }
}

pub(crate) fn store(accessor: &Accessor<GatewayState, HasSelf<GatewayState>>) -> Store {
    accessor.with(|mut access| access.get().events.clone())
}

/// Gives a guest what it follows. Whatever waits for it waits in the store, within its bound.
struct Following(Subscription);

impl<D> StreamProducer<D> for Following {
    type Item = Delivery;
    type Buffer = VecBuffer<Delivery>;

    fn poll_produce<'a>(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut store: StoreContextMut<'a, D>,
        mut destination: Destination<'a, Delivery, VecBuffer<Delivery>>,
        finish: bool,
    ) -> Poll<wasmtime::Result<StreamResult>> {
        let room = destination.remaining(&mut store).unwrap_or(HANDED_MAX).min(HANDED_MAX);
        if room == 0 {
            return Poll::Ready(Ok(StreamResult::Completed));
        }
        let mut batch = Vec::new();
        match self.0.poll_batch(cx, &mut batch, room, HANDED_BYTES_MAX) {
            Poll::Ready(()) if batch.is_empty() => return Poll::Ready(Ok(StreamResult::Dropped)),
            Poll::Ready(()) => {}
            Poll::Pending if finish => return Poll::Ready(Ok(StreamResult::Cancelled)),
            Poll::Pending => return Poll::Pending,
        }
        destination.set_buffer(batch.into_iter().map(delivery).collect::<Vec<_>>().into());
        Poll::Ready(Ok(StreamResult::Completed))
    }
}

pub(crate) fn name(text: &str) -> Option<ChannelName> {
    text.parse().ok()
}

pub(crate) fn no_name(text: &str) -> Failure {
    let why = text.parse::<ChannelName>().err().map(|error| error.to_string());
    Failure::Invalid(why.unwrap_or_default())
}

/// The fence of a write.
pub(crate) fn fence(lease: Fence) -> Result<weir_events::Fence, Failure> {
    match name(&lease.key) {
        Some(key) => Ok(weir_events::Fence { key, token: lease.token }),
        None => Err(no_name(&lease.key)),
    }
}

fn place(cursor: Cursor) -> channels::Cursor {
    channels::Cursor::new(cursor.epoch, cursor.seq)
}

fn cursor(place: channels::Cursor) -> Cursor {
    Cursor { epoch: place.epoch, seq: place.seq }
}

fn draft(event: Event) -> Draft {
    Draft {
        name: event.name.into(),
        data: event.data.into(),
        coalesce: event.coalesce.map(Into::into),
        finishes: event.finishes,
    }
}

fn entry(entry: &channels::Entry, coalesced: u32) -> Entry {
    Entry {
        at: cursor(entry.cursor),
        time_ms: entry.time_ms,
        event: Event {
            name: entry.name.to_string(),
            data: entry.data.to_string(),
            coalesce: entry.coalesce.as_ref().map(ToString::to_string),
            finishes: entry.finishes,
        },
        coalesced,
    }
}

fn gap(gap: channels::Gap) -> Gap {
    Gap { missing_from: cursor(gap.missing_from), missing_to: cursor(gap.missing_to) }
}

fn page(page: channels::Page) -> Page {
    Page {
        gap: page.gap.map(gap),
        entries: page.entries.iter().map(|of_page| entry(of_page, 0)).collect(),
        next: cursor(page.next),
        ended: page.ended,
    }
}

fn delivery(delivery: channels::Delivery) -> Delivery {
    match delivery {
        channels::Delivery::Event { entry: event, coalesced } => Delivery::Entry(entry(&event, coalesced)),
        channels::Delivery::Gap(missing) => Delivery::Gap(gap(missing)),
        channels::Delivery::Closed(channels::Closed::Slow) => Delivery::Closed(Closed::Slow),
        channels::Delivery::Closed(channels::Closed::Lost) => Delivery::Closed(Closed::Lost),
    }
}

pub(crate) fn failure(error: Error) -> Failure {
    match error {
        Error::Invalid(text) => Failure::Invalid(text),
        Error::Finished => Failure::Finished,
        Error::Fenced => Failure::Fenced,
        Error::TooLarge(text) => Failure::TooLarge(text),
        Error::Unavailable { reason, retry_after_ms } => {
            tracing::warn!(reason, "the channel store does not answer");
            Failure::Unavailable(u32::try_from(retry_after_ms).unwrap_or(u32::MAX))
        }
        Error::Other(text) => Failure::Other(text),
    }
}
