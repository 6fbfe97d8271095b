//! A reader that follows a channel: no task and no thread, only a slot in the channel and its waker.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use futures::Stream;
use weir_core::channels::{ChannelName, CloseReason, Cursor, Delivery};

use crate::error::Error;
use crate::hub::{Channel, Hub, State};

/// A reader that follows a channel: the retained events after its cursor, then live events.
///
/// It ends after the channel's last event, or with [`Delivery::Closed`]. Its events are shared, never copied. The
/// events that wait for it are bounded by `outbox_bytes_max`, whether it is polled or not. Dropping it ends it.
#[derive(Debug)]
pub struct Subscription {
    hub: Arc<Hub>,
    channel: Arc<Channel>,
    slot: usize,
}

impl Subscription {
    /// Follows a channel after a cursor. None when the channel is not in memory any more.
    pub(crate) fn open(hub: &Arc<Hub>, channel: &Arc<Channel>, after: Cursor) -> Result<Option<Self>, Error> {
        let slot = hub.add_subscriber(channel, after)?;
        Ok(slot.map(|slot| Self { hub: Arc::clone(hub), channel: Arc::clone(channel), slot }))
    }

    /// The channel that it follows.
    pub fn channel(&self) -> &ChannelName {
        &self.channel.name
    }

    /// The cursor to resume from: everything up to it was delivered or reported as a gap.
    pub fn delivered(&self) -> Cursor {
        let state = self.channel.lock();
        state.slots[self.slot].as_ref().map_or(Cursor::START, |slot| slot.subscriber.delivered())
    }

    /// The next delivery; none at the end.
    pub async fn next(&mut self) -> Option<Delivery> {
        std::future::poll_fn(|context| self.poll_delivery(context)).await
    }

    /// The next delivery, if one is waiting; the caller is not woken for a later one.
    pub fn try_next(&mut self) -> Option<Delivery> {
        self.take(&mut self.channel.lock())
    }

    /// Adds the waiting deliveries, at most `deliveries_max`, to `batch`, so that several events share one write. It
    /// stops after the event with which their size reaches `bytes_max`. Ready when something was added, or when the
    /// subscription has ended.
    pub fn poll_batch(
        &mut self,
        context: &mut Context<'_>,
        batch: &mut Vec<Delivery>,
        deliveries_max: usize,
        bytes_max: usize,
    ) -> Poll<()> {
        let mut state = self.channel.lock();
        let before = batch.len();
        let mut bytes = 0;
        while batch.len() - before < deliveries_max && bytes < bytes_max {
            let Some(delivery) = self.take(&mut state) else { break };
            if let Delivery::Event { entry, .. } = &delivery {
                bytes += entry.bytes();
            }
            batch.push(delivery);
        }
        if batch.len() > before || self.has_ended(&state) { Poll::Ready(()) } else { self.wait(&mut state, context) }
    }

    fn poll_delivery(&mut self, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        let mut state = self.channel.lock();
        match self.take(&mut state) {
            Some(delivery) => Poll::Ready(Some(delivery)),
            None if self.has_ended(&state) => Poll::Ready(None),
            None => self.wait(&mut state, context),
        }
    }

    fn take(&self, state: &mut State) -> Option<Delivery> {
        let State { log, slots, .. } = state;
        let delivery = slots[self.slot].as_mut()?.subscriber.poll(log)?;
        let counters = &self.hub.counters;
        match &delivery {
            Delivery::Event { coalesced, .. } => {
                counters.delivered.fetch_add(1, Ordering::Relaxed);
                if *coalesced > 0 {
                    counters.coalesced.fetch_add(u64::from(*coalesced), Ordering::Relaxed);
                }
            }
            Delivery::Gap(_) => drop(counters.gaps.fetch_add(1, Ordering::Relaxed)),
            Delivery::Closed(CloseReason::Slow) => drop(counters.closed_slow.fetch_add(1, Ordering::Relaxed)),
            Delivery::Closed(CloseReason::Lost) => {}
        }
        Some(delivery)
    }

    fn has_ended(&self, state: &State) -> bool {
        state.slots[self.slot].as_ref().is_none_or(|slot| slot.subscriber.ended())
    }

    fn wait<T>(&self, state: &mut State, context: &Context<'_>) -> Poll<T> {
        if let Some(slot) = state.slots[self.slot].as_mut()
            && !slot.waker.as_ref().is_some_and(|waker| waker.will_wake(context.waker()))
        {
            slot.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }
}

impl Stream for Subscription {
    type Item = Delivery;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Delivery>> {
        self.poll_delivery(context)
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.hub.remove_subscriber(&self.channel, self.slot);
    }
}
