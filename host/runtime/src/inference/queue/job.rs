//! An item in the queue of a model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::OwnedSemaphorePermit;
use weir_core::inference::breaker::Permit;
use weir_core::inference::queue::Ticket;
use weir_core::inference::retry::Retry;
use weir_telemetry::SpanContext;

use crate::inference::item::SharedItem;
use crate::inference::reply::OutcomeSender;

/// An item, the sender of its outcome, and its state in the queue.
pub(crate) struct Job {
    pub(crate) item: SharedItem,
    pub(crate) reply: OutcomeSender,
    pub(crate) ticket: Ticket,
    pub(crate) retry: Retry,
    /// The permit of the circuit breaker; none for a warm-up, and without a circuit breaker.
    pub(crate) permit: Option<Permit>,
    /// The queue room of an item that waited for it; released once a replica has the item.
    pub(crate) queue_permit: Option<QueuePermit>,
    /// When the item arrived.
    pub(crate) start_time: Instant,
    /// The span that its batch links, if that is sampled.
    pub(crate) trace: Option<SpanContext>,
    /// When it is answered `deadline-exceeded` even while a replica computes it, on the clock of its queue.
    pub(crate) answer_by_ns: Option<u64>,
    /// Counts its tokens among those in flight while a replica has it.
    pub(super) in_flight: Option<InFlightTokens>,
}

/// Counts tokens as in flight (with a replica, without an outcome) until it is dropped.
pub(super) struct InFlightTokens(Arc<AtomicU64>, u64);

impl InFlightTokens {
    fn new(all: &Arc<AtomicU64>, tokens: u64) -> Self {
        all.fetch_add(tokens, Ordering::Relaxed);
        Self(all.clone(), tokens)
    }
}

impl Drop for InFlightTokens {
    fn drop(&mut self) {
        self.0.fetch_sub(self.1, Ordering::Relaxed);
    }
}

impl Job {
    pub(crate) fn new(
        item: SharedItem,
        reply: OutcomeSender,
        ticket: Ticket,
        queue_permit: Option<QueuePermit>,
    ) -> Self {
        Self {
            item,
            reply,
            ticket,
            retry: Retry::new(),
            permit: None,
            queue_permit,
            in_flight: None,
            start_time: Instant::now(),
            trace: None,
            answer_by_ns: None,
        }
    }

    /// Whether it is the first item of an instance, which belongs to no call.
    pub(crate) fn is_warm_up(&self) -> bool {
        self.ticket.call == 0
    }

    /// Releases the item's room in the queue, and sets its remaining time.
    pub(super) fn hand_over(&mut self, now: u64, in_flight: &Arc<AtomicU64>) {
        self.queue_permit = None;
        self.in_flight = Some(InFlightTokens::new(in_flight, self.ticket.tokens));
        let left = self.ticket.deadline_ns.map(|deadline_ns| milliseconds(deadline_ns.saturating_sub(now)));
        self.item.deadline_ms = left;
    }
}

/// Room in a queue for one item that waited for it.
pub(crate) struct QueuePermit {
    pub(super) _item: OwnedSemaphorePermit,
    pub(super) _tokens: OwnedSemaphorePermit,
}

/// Whole milliseconds, rounded up.
pub(super) fn milliseconds(ns: u64) -> u32 {
    u32::try_from(ns.div_ceil(1_000_000)).unwrap_or(u32::MAX)
}
