//! Channel ownership: a channel belongs to the first user that is named in one of its events. The owner is stored as an
//! event of a separate channel, `owner-KIND:ID`, so that it is as durable and as widely replicated as the events. The
//! store keeps that record as long as the channel has events or followers, and removes it with the channel.
//!
//! The first owner record of a channel is the valid one. Records are written under a lease, which is released at once,
//! so that a write that fails, for instance on a full disk, does not delay later attempts.
//!
//! A channel without an owner has a record of its publishers: the name of the only one, or that there are several. A
//! publisher without read access can then name an owner only for a channel whose events are all its own.

use std::{cell::RefCell, collections::HashMap};

use weir_codec::{
    channels::route::{Channel, ChannelKind},
    http::problem::Problem,
};

use weir_core::channels::Cursor;

use crate::platform::{
    bindings::weir::stream::events::{self, Event},
    lease::{self, RequestLease},
    store,
};

/// The time after which an unreleased lease of a record expires, in milliseconds.
const LEASE_MS: u64 = 5_000;
/// The longest `Retry-After` for a publisher while another request writes the record, in milliseconds.
const RETRY_MS_MAX: u32 = 1_000;
const START: Cursor = Cursor { epoch: 0, seq: 0 };
/// Above the number of records of one channel: the publisher, several publishers, and the owner.
const RECORDS_MAX: u32 = 8;
/// Maximum number of entries in the cache of recorded publishers.
const RECORDED_MAX: usize = 4096;

const OWNER: &str = "owner";
const PUBLISHER: &str = "publisher";
const PUBLISHERS: &str = "publishers";

/// Whether a user may become the owner of a channel that already has events, and thereby read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PastEvents<'a> {
    /// Yes.
    Owned,
    /// Only if this publisher has published all of them.
    PublishedBy(&'a str),
    /// No: the channel stays without an owner.
    Withheld,
}

/// The content of a channel's record.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Record {
    None,
    Owner(String),
    /// No owner, and one user has published.
    Publisher(String),
    /// No owner, and several users have published.
    Publishers,
}

/// The owner of a channel, if it has one.
pub(crate) async fn find(channel: &Channel) -> Result<Option<String>, Problem> {
    match read(channel).await? {
        Record::Owner(owner) => Ok(Some(owner)),
        _ => Ok(None),
    }
}

/// Records a user as the owner of a channel that has none. Returns whether the channel has an owner afterwards.
pub(crate) async fn assign(channel: &Channel, user: &Channel, past: PastEvents<'_>) -> Result<bool, Problem> {
    match read(channel).await? {
        Record::Owner(_) => return Ok(true),
        record if !may_assign(channel, &record, past).await? => return Ok(false),
        _ => {}
    }
    under_lease(channel, async |lease| {
        // Another request may have written it, even one whose lease has ended.
        match read(channel).await? {
            Record::Owner(_) => Ok(true),
            record if !may_assign(channel, &record, past).await? => Ok(false),
            _ => write(channel, OWNER, user.id(), lease).await.map(|()| true),
        }
    })
    .await
}

/// Records the publisher of a channel without an owner, before its event is appended.
pub(crate) async fn record_publisher(channel: &Channel, publisher: &str) -> Result<(), Problem> {
    if is_user(channel) || recorded_epoch(channel, publisher).is_some() {
        return Ok(());
    }
    write_publisher(channel, publisher).await
}

/// Records the publisher again if the appended event is the first of a new channel of the same name: the record may
/// have been removed with the previous one.
pub(crate) async fn confirm_publisher(channel: &Channel, publisher: &str, at: Cursor) -> Result<(), Problem> {
    if is_user(channel) {
        return Ok(());
    }
    if at.seq == 1 || recorded_epoch(channel, publisher).is_some_and(|epoch| epoch != at.epoch) {
        write_publisher(channel, publisher).await?;
    }
    RECORDED.with_borrow_mut(|all| {
        if all.len() >= RECORDED_MAX {
            all.clear();
        }
        all.insert((channel.to_string(), publisher.to_owned()), at.epoch);
    });
    Ok(())
}

thread_local! {
    /// The pairs of channel and publisher that this instance has recorded, each with the epoch of the channel.
    static RECORDED: RefCell<HashMap<(String, String), u64>> = RefCell::default();
}

fn recorded_epoch(channel: &Channel, publisher: &str) -> Option<u64> {
    RECORDED.with_borrow(|all| all.get(&(channel.to_string(), publisher.to_owned())).copied())
}

/// A user channel belongs to the user in its name, so it needs no record.
fn is_user(channel: &Channel) -> bool {
    channel.kind() == ChannelKind::User
}

async fn write_publisher(channel: &Channel, publisher: &str) -> Result<(), Problem> {
    if with_publisher(&read(channel).await?, publisher).is_none() {
        return Ok(());
    }
    under_lease(channel, async |lease| match with_publisher(&read(channel).await?, publisher) {
        Some((name, data)) => write(channel, name, data, lease).await,
        None => Ok(()),
    })
    .await
}

/// The name and data of the record to write when this user publishes; none if the record is complete.
fn with_publisher<'a>(record: &Record, publisher: &'a str) -> Option<(&'static str, &'a str)> {
    match record {
        Record::None => Some((PUBLISHER, publisher)),
        Record::Publisher(other) if other != publisher => Some((PUBLISHERS, "")),
        Record::Owner(_) | Record::Publisher(_) | Record::Publishers => None,
    }
}

async fn may_assign(channel: &Channel, record: &Record, past: PastEvents<'_>) -> Result<bool, Problem> {
    let is_own = match (past, record) {
        (PastEvents::Owned, _) => true,
        (PastEvents::PublishedBy(publisher), Record::Publisher(only)) => only == publisher,
        (PastEvents::PublishedBy(_) | PastEvents::Withheld, _) => false,
    };
    Ok(is_own || !has_events(channel).await?)
}

async fn read(channel: &Channel) -> Result<Record, Problem> {
    let page = events::read(record_channel(channel), START, RECORDS_MAX).await.map_err(store::problem)?;
    let user = |event: &Event| event.data.trim_matches('"').to_owned();
    let mut records = page.entries.iter().map(|entry| &entry.event);
    if let Some(owner) = records.clone().find(|event| event.name == OWNER) {
        return Ok(Record::Owner(user(owner)));
    }
    Ok(match records.next_back() {
        None => Record::None,
        Some(event) if event.name == PUBLISHER => Record::Publisher(user(event)),
        Some(_) => Record::Publishers,
    })
}

async fn has_events(channel: &Channel) -> Result<bool, Problem> {
    let page = events::read(channel.to_string(), START, 1).await.map_err(store::problem)?;
    Ok(!page.entries.is_empty())
}

/// Runs an action while no other request can write the record.
async fn under_lease<T>(
    channel: &Channel,
    action: impl AsyncFnOnce(&RequestLease) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let lease = match lease::acquire_for_request(record_channel(channel), LEASE_MS).await.map_err(store::problem)? {
        Ok(lease) => lease,
        // Another request is writing the record.
        Err(remaining_ms) => {
            let retry_ms = u32::try_from(remaining_ms).unwrap_or(u32::MAX).min(RETRY_MS_MAX);
            return Err(store::problem(events::Failure::Unavailable(retry_ms)));
        }
    };
    let result = action(&lease).await;
    lease.release().await;
    result
}

async fn write(channel: &Channel, event: &str, user: &str, lease: &RequestLease) -> Result<(), Problem> {
    // The id of a user has no character that JSON escapes.
    let event = Event { name: event.to_owned(), data: format!("\"{user}\""), coalesce: None, finishes: false };
    match events::append(record_channel(channel), vec![event], Some(lease.fence()), None).await {
        Ok(_) => Ok(()),
        // The lease has ended, and another request writes the record.
        Err(events::Failure::Fenced) => Err(store::problem(events::Failure::Unavailable(RETRY_MS_MAX))),
        Err(failure) => Err(store::problem(failure)),
    }
}

/// The name of the record's channel. Its kind is not a channel kind, so no client can follow it.
fn record_channel(channel: &Channel) -> String {
    format!("owner-{}:{}", channel.kind().name(), channel.id())
}
