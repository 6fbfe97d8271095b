//! To whom a channel belongs: the first user that was named with an event of it. Kept as events of a channel of its own, so
//! that it is where the events are, as durable and as widely known.
//!
//! A record is written again while events come, or it would go before they do; the first that is still kept counts, and
//! exactly one publisher writes the first.

use weir_codec::{channel::Channel, problem::Problem};
use weir_core::process::Now;

use crate::{
    bindings::weir::stream::events::{self, Cursor, Event},
    publish,
};

/// A record older than this is written again.
const REFRESH_MS: u64 = 600_000;
/// How long others may not write the first record after one has begun to. Where it could not be written, for instance on a full disk, the
/// channel takes no events for this long.
const CLAIM_MS: u64 = 5_000;
/// Records read at once: an hour's, where events are kept as long as they are unless told.
const RECORDS_MAX: u32 = 64;

/// The user to whom a channel belongs.
pub(crate) async fn find(channel: &Channel) -> Result<Option<String>, Problem> {
    Ok(read(channel).await?.map(|owner| owner.user))
}

/// Makes a channel a user's, if it is nobody's yet.
pub(crate) async fn settle(channel: &Channel, user: &Channel, now: Now) -> Result<(), Problem> {
    let mut known = read(channel).await?;
    if known.is_none() {
        let first = events::claim(format!("owner:{channel}"), CLAIM_MS).await.map_err(publish::problem)?;
        // Also by the one who claimed: a record that failed may be there all the same.
        known = read(channel).await?;
        if first && known.is_none() {
            return write(channel, user.id()).await;
        }
    }
    match known {
        Some(owner) if now.unix_ns / 1_000_000 >= owner.written_ms.saturating_add(REFRESH_MS) => {
            write(channel, &owner.user).await
        }
        Some(_) => Ok(()),
        // Another has begun to, and will be done before long.
        None => Err(publish::problem(events::Failure::Unavailable(1000))),
    }
}

struct Owner {
    user: String,
    /// When it was last written.
    written_ms: u64,
}

async fn read(channel: &Channel) -> Result<Option<Owner>, Problem> {
    let page = events::read(name(channel), Cursor { epoch: 0, seq: 0 }, RECORDS_MAX).await.map_err(publish::problem)?;
    let owner = |(first, last): (&events::Entry, &events::Entry)| Owner {
        user: first.event.data.trim_matches('"').to_owned(),
        written_ms: last.time_ms,
    };
    Ok(page.entries.first().zip(page.entries.last()).map(owner))
}

async fn write(channel: &Channel, user: &str) -> Result<(), Problem> {
    // An id has no character that JSON escapes.
    let event = Event { name: "owner".to_owned(), data: format!("\"{user}\""), coalesce: None, finishes: false };
    events::append(name(channel), vec![event], None).await.map(drop).map_err(publish::problem)
}

/// No path leads there: its kind is none of a channel that is followed.
fn name(channel: &Channel) -> String {
    format!("owner-{}:{}", channel.kind().name(), channel.id())
}
