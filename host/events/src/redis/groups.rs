//! Consumer groups: each event of a channel is delivered to one consumer of a group, and to another if the first does
//! not acknowledge it.

use std::sync::Arc;
use std::time::Duration;

use redis::streams::{StreamAutoClaimReply, StreamId, StreamReadReply};
use weir_core::channels::{ChannelName, Cursor, Entry};

use crate::error::Error;
use crate::redis::link::Link;
use crate::redis::stream::{event, key};

/// The most events that one call returns.
const EVENTS_MAX: usize = 1_000;

/// Consumer groups of Redis Streams. The names of groups and consumers follow the grammar of channel ids.
#[derive(Debug, Clone)]
pub struct Groups {
    link: Arc<Link>,
}

/// An event that was assigned to a consumer and is not acknowledged yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingEvent {
    /// Its cursor, with which it is acknowledged.
    pub cursor: Cursor,
    /// The event; none when retention has removed it, or another program wrote an entry that is not an event.
    pub entry: Option<Arc<Entry>>,
}

impl Groups {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Creates a group that starts after a cursor; an existing group is not changed. True when it was created.
    ///
    /// # Errors
    ///
    /// Redis does not answer.
    pub async fn create(&self, channel: &ChannelName, group: &str, after: Cursor) -> Result<bool, Error> {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(self.key(channel)).arg(valid_name(group)?);
        create.arg(format!("{}-{}", after.epoch, after.seq)).arg("MKSTREAM");
        match self.link.command::<String>(create).await {
            Ok(_) => Ok(true),
            Err(Error::Other(reason)) if reason.contains("BUSYGROUP") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Events that are not assigned to a consumer of the group yet, at most `limit`; waits up to `wait_ms` for the
    /// first.
    ///
    /// # Errors
    ///
    /// Redis does not answer, or there is no such group.
    pub async fn read(
        &self,
        channel: &ChannelName,
        group: &str,
        consumer: &str,
        limit: usize,
        wait_ms: u64,
    ) -> Result<Vec<PendingEvent>, Error> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP")
            .arg(valid_name(group)?)
            .arg(valid_name(consumer)?)
            .arg("COUNT")
            .arg(limit.clamp(1, EVENTS_MAX));
        if wait_ms > 0 {
            read.arg("BLOCK").arg(wait_ms);
        }
        read.arg("STREAMS").arg(self.key(channel)).arg(">");
        let reply: Option<StreamReadReply> = if wait_ms > 0 {
            // A blocking read would block all other commands on the shared connection.
            let response_max = Duration::from_millis(wait_ms.saturating_add(self.link.config.timeout_ms));
            let mut server = self.link.connect(Some(response_max)).await?;
            let reply = read.query_async(&mut server.connection).await;
            reply.map_err(|error| match error.code() {
                Some(_) => Error::Other(format!("Redis refused: {error}")),
                None => self.link.fail(error.to_string()),
            })?
        } else {
            self.link.command(read).await?
        };
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|stream| pending_events(&stream.ids)).collect())
    }

    /// Acknowledges events; returns how many of them were pending.
    ///
    /// # Errors
    ///
    /// Redis does not answer.
    pub async fn acknowledge(&self, channel: &ChannelName, group: &str, cursors: &[Cursor]) -> Result<u64, Error> {
        if cursors.is_empty() {
            return Ok(0);
        }
        let mut acknowledge = redis::cmd("XACK");
        acknowledge.arg(self.key(channel)).arg(valid_name(group)?);
        for cursor in cursors {
            acknowledge.arg(format!("{}-{}", cursor.epoch, cursor.seq));
        }
        self.link.command(acknowledge).await
    }

    /// Reassigns events that were assigned to a consumer at least `idle_ms` ago and are not acknowledged, at most
    /// `limit`, oldest first. Events that retention has removed are not pending any more.
    ///
    /// # Errors
    ///
    /// Redis does not answer, or there is no such group.
    pub async fn claim_stale(
        &self,
        channel: &ChannelName,
        group: &str,
        consumer: &str,
        idle_ms: u64,
        limit: usize,
    ) -> Result<Vec<PendingEvent>, Error> {
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(self.key(channel)).arg(valid_name(group)?).arg(valid_name(consumer)?).arg(idle_ms).arg("0-0");
        claim.arg("COUNT").arg(limit.clamp(1, EVENTS_MAX));
        let reply: StreamAutoClaimReply = self.link.command(claim).await?;
        Ok(pending_events(&reply.claimed))
    }

    fn key(&self, channel: &ChannelName) -> String {
        key(&self.link.config.prefix, channel)
    }
}

fn pending_events(entries: &[StreamId]) -> Vec<PendingEvent> {
    let pending = |entry: &StreamId| {
        Some(PendingEvent { cursor: entry.id.parse().ok()?, entry: event(entry, |time_ms| time_ms) })
    };
    entries.iter().filter_map(pending).collect()
}

/// The name of a group or consumer, in the grammar of channel ids.
fn valid_name(name: &str) -> Result<&str, Error> {
    match ChannelName::new("group", name) {
        Ok(_) => Ok(name),
        Err(error) => Err(Error::Invalid(error.to_string())),
    }
}
