//! Conversions between the types of the WIT interfaces and those of the channel store and of core.

use weir_core::channels::{self, ChannelName, Draft};
use weir_core::failure as core;
use weir_events::{Error, StoreKind};

use crate::bindings::gateway::weir::stream::events::{
    Closed, Cursor, Delivery, Entry, Event, Failure, Fence, Gap, Page,
};
use crate::types;

/// The name of a channel, or of a key of state.
///
/// # Errors
///
/// `invalid`, with the reason.
pub(crate) fn name(text: &str) -> Result<ChannelName, Failure> {
    text.parse().map_err(|error: channels::NameError| Failure::Invalid(error.to_string()))
}

pub(crate) fn fence(lease: Fence) -> Result<weir_events::Fence, Failure> {
    Ok(weir_events::Fence { key: name(&lease.key)?, token: lease.token })
}

pub(crate) fn core_cursor(cursor: Cursor) -> channels::Cursor {
    channels::Cursor::new(cursor.epoch, cursor.seq)
}

pub(crate) fn cursor(cursor: channels::Cursor) -> Cursor {
    Cursor { epoch: cursor.epoch, seq: cursor.seq }
}

pub(crate) fn draft(event: Event) -> Draft {
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

pub(crate) fn page(page: channels::Page) -> Page {
    Page {
        gap: page.gap.map(gap),
        entries: page.entries.iter().map(|event| entry(event, 0)).collect(),
        next: cursor(page.next),
        ended: page.ended,
    }
}

pub(crate) fn delivery(delivery: channels::Delivery) -> Delivery {
    match delivery {
        channels::Delivery::Event { entry: event, coalesced } => Delivery::Entry(entry(&event, coalesced)),
        channels::Delivery::Gap(missing) => Delivery::Gap(gap(missing)),
        channels::Delivery::Closed(channels::CloseReason::Slow) => Delivery::Closed(Closed::Slow),
        channels::Delivery::Closed(channels::CloseReason::Lost) => Delivery::Closed(Closed::Lost),
    }
}

/// The name of a store in `weir:stream/events`.
pub(crate) fn store_name(kind: StoreKind) -> &'static str {
    match kind {
        StoreKind::Memory => "memory",
        StoreKind::Disk => "disk",
        StoreKind::Redis => "redis",
    }
}

/// The failure of an operation of the store. The reason of an unavailable or full store is logged, and not passed to
/// the guest.
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
        Error::ShareExceeded { reason, retry_after_ms } => {
            tracing::debug!(reason, "a user has its share of the channel store");
            Failure::ShareExceeded(u32::try_from(retry_after_ms).unwrap_or(u32::MAX))
        }
        Error::Full { reason, retry_after_ms } => {
            tracing::warn!(reason, "the channel store is full");
            Failure::Full(u32::try_from(retry_after_ms).unwrap_or(u32::MAX))
        }
        Error::Other(text) => Failure::Other(text),
    }
}

/// Converts an item's failure to the type of core.
pub fn core_failure(failure: types::Failure) -> core::Failure {
    use types::Failure as Wire;
    match failure {
        Wire::InvalidInput(reason) => core::Failure::InvalidInput(reason),
        Wire::UnknownModel(name) => core::Failure::UnknownModel { name, served: Vec::new() },
        Wire::TooLong(counts) => core::Failure::TooLong { tokens: counts.tokens, tokens_max: counts.tokens_max },
        Wire::Overloaded(retry_after_ms) => core::Failure::Overloaded { retry_after_ms },
        Wire::Throttled(retry_after_ms) => core::Failure::Throttled { retry_after_ms },
        Wire::CircuitOpen(retry_after_ms) => core::Failure::CircuitOpen { retry_after_ms },
        Wire::Unavailable(reason) => core::Failure::Unavailable(reason),
        Wire::DeadlineExceeded => core::Failure::DeadlineExceeded,
        Wire::Engine(reason) => core::Failure::Engine(reason),
        Wire::Other(reason) => core::Failure::Other(reason),
    }
}
