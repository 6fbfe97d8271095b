//! Channel ownership: a channel belongs to the first user that was named with an event of it. The owner is an event of a channel of its own,
//! `owner-KIND:ID`, so that it is where the events are, as durable and as widely known. The store keeps that record as long as the
//! channel has events or followers, and removes it with the channel.
//!
//! The first record of an owner counts. Records are written under a lease, which is released at once, so that a record that could not
//! be written, for instance on a full disk, delays no later attempt.
//!
//! The record of a channel without an owner has its publishers: one, or several. A publisher without read access can then name an owner
//! only for a channel in which all events are its own.

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

/// The longest that the lease of a record lasts where it is not released.
const LEASE_MS: u64 = 5_000;
/// When a publisher should come back where another writes the record.
const RETRY_MS_MAX: u32 = 1_000;
const START: Cursor = Cursor { epoch: 0, seq: 0 };
/// More records than one channel has: one publisher, several, and the owner.
const RECORDS_MAX: u32 = 8;
/// Channels whose publisher is known to be recorded, in this instance.
const RECORDED_MAX: usize = 4096;

const OWNER: &str = "owner";
const PUBLISHER: &str = "publisher";
const PUBLISHERS: &str = "publishers";

/// Whether a user may become the owner of a channel that has events already, and so read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PastEvents<'a> {
    /// The user owns the past, too.
    Owned,
    /// A channel that has events stays without an owner, unless this publisher has published all of them.
    PublishedBy(&'a str),
    /// A channel that has events stays without an owner.
    Withheld,
}

/// What the record of a channel says.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Record {
    None,
    Owner(String),
    /// No owner, and one user has published.
    Publisher(String),
    /// No owner, and several users have published.
    Publishers,
}

/// The owner of a channel.
pub(crate) async fn find(channel: &Channel) -> Result<Option<String>, Problem> {
    match read(channel).await? {
        Record::Owner(owner) => Ok(Some(owner)),
        _ => Ok(None),
    }
}

/// Makes a channel a user's, if it has no owner yet. Returns whether it has one then.
pub(crate) async fn settle(channel: &Channel, user: &Channel, past: PastEvents<'_>) -> Result<bool, Problem> {
    match read(channel).await? {
        Record::Owner(_) => return Ok(true),
        record if !may_settle(channel, &record, past).await? => return Ok(false),
        _ => {}
    }
    under_lease(channel, async |lease| {
        // Another request may have written it, even one whose lease has ended.
        match read(channel).await? {
            Record::Owner(_) => Ok(true),
            record if !may_settle(channel, &record, past).await? => Ok(false),
            _ => write(channel, OWNER, user.id(), lease).await.map(|()| true),
        }
    })
    .await
}

/// Records the publisher of a channel without an owner, before its event is appended.
pub(crate) async fn record_publisher(channel: &Channel, publisher: &str) -> Result<(), Problem> {
    if is_user(channel) || recorded(channel, publisher).is_some() {
        return Ok(());
    }
    write_publisher(channel, publisher).await
}

/// Records the publisher again where the event that was appended begins another life of the channel: its record may have gone with the one
/// before.
pub(crate) async fn confirm_publisher(channel: &Channel, publisher: &str, at: Cursor) -> Result<(), Problem> {
    if is_user(channel) {
        return Ok(());
    }
    if at.seq == 1 || recorded(channel, publisher).is_some_and(|epoch| epoch != at.epoch) {
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
    /// The channels and publishers that this instance has recorded, each with the epoch of the channel.
    static RECORDED: RefCell<HashMap<(String, String), u64>> = RefCell::default();
}

fn recorded(channel: &Channel, publisher: &str) -> Option<u64> {
    RECORDED.with_borrow(|all| all.get(&(channel.to_string(), publisher.to_owned())).copied())
}

/// The channel of a user belongs to the user by its name.
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

/// What is to be recorded when this user publishes, too.
fn with_publisher<'a>(record: &Record, publisher: &'a str) -> Option<(&'static str, &'a str)> {
    match record {
        Record::None => Some((PUBLISHER, publisher)),
        Record::Publisher(other) if other != publisher => Some((PUBLISHERS, "")),
        Record::Owner(_) | Record::Publisher(_) | Record::Publishers => None,
    }
}

async fn may_settle(channel: &Channel, record: &Record, past: PastEvents<'_>) -> Result<bool, Problem> {
    let is_own = match (past, record) {
        (PastEvents::Owned, _) => true,
        (PastEvents::PublishedBy(publisher), Record::Publisher(only)) => only == publisher,
        (PastEvents::PublishedBy(_) | PastEvents::Withheld, _) => false,
    };
    Ok(is_own || !has_events(channel).await?)
}

async fn read(channel: &Channel) -> Result<Record, Problem> {
    let page = events::read(name(channel), START, RECORDS_MAX).await.map_err(store::problem)?;
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

/// Does something while no other request writes the record.
async fn under_lease<T>(
    channel: &Channel,
    work: impl AsyncFnOnce(&RequestLease) -> Result<T, Problem>,
) -> Result<T, Problem> {
    let lease = match lease::acquire_for_request(name(channel), LEASE_MS).await.map_err(store::problem)? {
        Ok(lease) => lease,
        // Another writes it, and will be done before long.
        Err(remaining_ms) => {
            let retry_ms = u32::try_from(remaining_ms).unwrap_or(u32::MAX).min(RETRY_MS_MAX);
            return Err(store::problem(events::Failure::Unavailable(retry_ms)));
        }
    };
    let result = work(&lease).await;
    lease.release().await;
    result
}

async fn write(channel: &Channel, event: &str, user: &str, lease: &RequestLease) -> Result<(), Problem> {
    // An id has no character that JSON escapes.
    let event = Event { name: event.to_owned(), data: format!("\"{user}\""), coalesce: None, finishes: false };
    match events::append(name(channel), vec![event], Some(lease.fence()), None).await {
        Ok(_) => Ok(()),
        // The lease has ended, and another request writes the record.
        Err(events::Failure::Fenced) => Err(store::problem(events::Failure::Unavailable(RETRY_MS_MAX))),
        Err(failure) => Err(store::problem(failure)),
    }
}

/// No path leads there: its kind is none of a channel that is followed.
fn name(channel: &Channel) -> String {
    format!("owner-{}:{}", channel.kind().name(), channel.id())
}
