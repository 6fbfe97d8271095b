//! Conversions between the types of WIT and those of core.

use weir_core::channels::{self as core, ChannelName, Draft};

use crate::bindings::exports::weir::stream::events::{Closed, Delivery, Entry, Event, Failure, Fence};

pub(crate) fn name(text: &str) -> Result<ChannelName, Failure> {
    text.parse().map_err(|error: core::NameError| Failure::Invalid(error.to_string()))
}

pub(crate) fn fence(fence: Fence) -> Result<core::Fence, Failure> {
    Ok(core::Fence { key: name(&fence.key)?, token: fence.token })
}

pub(crate) fn draft(event: Event) -> Draft {
    Draft {
        name: event.name.into(),
        data: event.data.into(),
        coalesce: event.coalesce.map(Into::into),
        finishes: event.finishes,
    }
}

pub(crate) fn entry(entry: &core::Entry, coalesced: u32) -> Entry {
    Entry {
        at: entry.cursor,
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

pub(crate) fn delivery(delivery: core::Delivery) -> Delivery {
    match delivery {
        core::Delivery::Event { entry: event, coalesced } => Delivery::Entry(entry(&event, coalesced)),
        core::Delivery::Gap(missing) => Delivery::Gap(missing),
        core::Delivery::Closed(core::CloseReason::Slow) => Delivery::Closed(Closed::Slow),
        core::Delivery::Closed(core::CloseReason::Lost) => Delivery::Closed(Closed::Lost),
    }
}
