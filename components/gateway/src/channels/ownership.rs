//! Channel ownership: a channel belongs to the first user that was named with an event of it. The owner is an event of a channel of its own,
//! `owner-KIND:ID`, so that it is where the events are, as durable and as widely known. The store keeps that record as long as the
//! channel has events or followers, and removes it with the channel.
//!
//! The first record counts, and exactly one publisher writes it.

use weir_codec::{channels::route::Channel, http::problem::Problem};

use weir_core::channels::Cursor;

use crate::platform::{
    bindings::weir::stream::events::{self, Event},
    store,
};

/// How long others may not write the record after one has begun to. Where it could not be written, for instance on a full disk, the
/// channel takes no events for this long.
const CLAIM_MS: u64 = 5_000;
const START: Cursor = Cursor { epoch: 0, seq: 0 };

/// Whether a user may become the owner of a channel that has events already, and so read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Past {
    /// The user owns the past, too.
    Owned,
    /// A channel that has events stays without an owner.
    Withheld,
}

/// The user to whom a channel belongs.
pub(crate) async fn find(channel: &Channel) -> Result<Option<String>, Problem> {
    let page = events::read(name(channel), START, 1).await.map_err(store::problem)?;
    Ok(page.entries.first().map(|record| record.event.data.trim_matches('"').to_owned()))
}

/// Makes a user the owner of a channel that has none.
pub(crate) async fn settle(channel: &Channel, user: &Channel, past: Past) -> Result<(), Problem> {
    if find(channel).await?.is_some() || (past == Past::Withheld && has_events(channel).await?) {
        return Ok(());
    }
    let first = events::claim(format!("owner:{channel}"), CLAIM_MS).await.map_err(store::problem)?;
    // Also by the one who claimed: a record that failed may be there all the same.
    if find(channel).await?.is_some() {
        return Ok(());
    }
    if first {
        return write(channel, user.id()).await;
    }
    // Another has begun to, and will be done before long.
    Err(store::problem(events::Failure::Unavailable(1000)))
}

async fn has_events(channel: &Channel) -> Result<bool, Problem> {
    let page = events::read(channel.to_string(), START, 1).await.map_err(store::problem)?;
    Ok(!page.entries.is_empty())
}

async fn write(channel: &Channel, user: &str) -> Result<(), Problem> {
    // An id has no character that JSON escapes.
    let event = Event { name: "owner".to_owned(), data: format!("\"{user}\""), coalesce: None, finishes: false };
    events::append(name(channel), vec![event], None, None).await.map(drop).map_err(store::problem)
}

/// No path leads there: its kind is none of a channel that is followed.
fn name(channel: &Channel) -> String {
    format!("owner-{}:{}", channel.kind().name(), channel.id())
}
