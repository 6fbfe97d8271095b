//! Consumers that work one channel together: each event goes to one of them, and to another if that one does not finish.

use std::sync::Arc;
use std::time::Duration;

use redis::streams::{StreamAutoClaimReply, StreamId, StreamReadReply};
use weir_core::channels::{ChannelName, Cursor, Entry};

use crate::error::Error;
use crate::redis::link::Link;
use crate::redis::stream::{event, key};

/// The most events that one call hands out.
const EVENTS_MAX: usize = 1_000;

/// Consumer groups of Redis Streams. A group has a name of the grammar of channel ids, and so have its consumers.
#[derive(Debug, Clone)]
pub struct Groups {
    link: Arc<Link>,
}

/// An event that a consumer was given, until it is acknowledged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Work {
    /// Its place, which acknowledges it.
    pub cursor: Cursor,
    /// The event; none when retention has let go of it, or somebody else wrote it and it is none.
    pub entry: Option<Arc<Entry>>,
}

impl Groups {
    pub(crate) fn new(link: Arc<Link>) -> Self {
        Self { link }
    }

    /// Makes a group that begins after a cursor; one that is there stays as it is. True when it was made.
    ///
    /// # Errors
    ///
    /// Redis does not answer.
    pub async fn create(&self, channel: &ChannelName, group: &str, after: Cursor) -> Result<bool, Error> {
        let mut create = redis::cmd("XGROUP");
        create.arg("CREATE").arg(self.key(channel)).arg(word(group)?);
        create.arg(format!("{}-{}", after.epoch, after.seq)).arg("MKSTREAM");
        match self.link.command::<String>(create).await {
            Ok(_) => Ok(true),
            Err(Error::Other(reason)) if reason.contains("BUSYGROUP") => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Events that no consumer of the group was given yet, at most `limit`; waits up to `wait_ms` for the first.
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
    ) -> Result<Vec<Work>, Error> {
        let mut read = redis::cmd("XREADGROUP");
        read.arg("GROUP").arg(word(group)?).arg(word(consumer)?).arg("COUNT").arg(limit.clamp(1, EVENTS_MAX));
        if wait_ms > 0 {
            read.arg("BLOCK").arg(wait_ms);
        }
        read.arg("STREAMS").arg(self.key(channel)).arg(">");
        let reply: Option<StreamReadReply> = if wait_ms > 0 {
            // A read that blocks would hold up everybody on the shared connection.
            let answer_max = Duration::from_millis(wait_ms.saturating_add(self.link.config.timeout_ms));
            let mut live = self.link.connect(Some(answer_max)).await?;
            let reply = read.query_async(&mut live.connection).await;
            reply.map_err(|error| match error.code() {
                Some(_) => Error::Other(format!("Redis refused: {error}")),
                None => self.link.fail(error.to_string()),
            })?
        } else {
            self.link.command(read).await?
        };
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|stream| work(&stream.ids)).collect())
    }

    /// Says that events are done; returns how many of them were owed.
    ///
    /// # Errors
    ///
    /// Redis does not answer.
    pub async fn acknowledge(&self, channel: &ChannelName, group: &str, done: &[Cursor]) -> Result<u64, Error> {
        if done.is_empty() {
            return Ok(0);
        }
        let mut acknowledge = redis::cmd("XACK");
        acknowledge.arg(self.key(channel)).arg(word(group)?);
        for cursor in done {
            acknowledge.arg(format!("{}-{}", cursor.epoch, cursor.seq));
        }
        self.link.command(acknowledge).await
    }

    /// Takes over events that a consumer was given at least `idle_ms` ago and has not acknowledged, at most `limit`, from the
    /// oldest. What retention has let go of is not owed any more.
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
    ) -> Result<Vec<Work>, Error> {
        let mut claim = redis::cmd("XAUTOCLAIM");
        claim.arg(self.key(channel)).arg(word(group)?).arg(word(consumer)?).arg(idle_ms).arg("0-0");
        claim.arg("COUNT").arg(limit.clamp(1, EVENTS_MAX));
        let reply: StreamAutoClaimReply = self.link.command(claim).await?;
        Ok(work(&reply.claimed))
    }

    fn key(&self, channel: &ChannelName) -> String {
        key(&self.link.config.prefix, channel)
    }
}

fn work(entries: &[StreamId]) -> Vec<Work> {
    let work = |entry: &StreamId| Some(Work { cursor: entry.id.parse().ok()?, entry: event(entry, |time_ms| time_ms) });
    entries.iter().filter_map(work).collect()
}

/// The name of a group or consumer, in the grammar of channel ids.
fn word(name: &str) -> Result<&str, Error> {
    match ChannelName::new("group", name) {
        Ok(_) => Ok(name),
        Err(error) => Err(Error::Invalid(error.to_string())),
    }
}
