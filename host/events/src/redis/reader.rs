//! One blocking read for all channels that are followed in this process.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use redis::streams::StreamReadReply;
use redis::{Cmd, RedisError};

use crate::error::Error;
use crate::hub::{Channel, wake};
use crate::redis::link::ServerConnection;
use crate::redis::shared::Shared;
use crate::redis::stream::event;

/// The most entries of one stream in one reply.
const ENTRIES_MAX: usize = 256;
/// The time between two attempts to unblock a read, in milliseconds.
const UNBLOCK_RETRY_MS: u64 = 5;

/// Updates the mirrors until it is aborted; after a lost connection it connects again every `retry_ms`.
pub(crate) async fn run(shared: Arc<Shared>) {
    let mut run = None;
    loop {
        while shared.hub.len() == 0 {
            shared.followed.notified().await;
        }
        let Err(error) = feed(&shared, &mut run).await;
        tracing::debug!(%error, "Redis channels are not followed at the moment");
        tokio::time::sleep(Duration::from_millis(shared.link.config.retry_ms.max(1))).await;
    }
}

/// Updates the mirrors until the connection is lost. `known_run` is the run id of the server that they were read from
/// before.
async fn feed(shared: &Shared, known_run: &mut Option<Arc<str>>) -> Result<Infallible, Error> {
    // A read takes as long as it blocks; after that time and the timeout of any command the connection is considered
    // lost.
    let block_ms = shared.link.config.block_ms.max(1);
    let response_max = Duration::from_millis(block_ms + shared.link.config.timeout_ms);
    let ServerConnection { mut connection, run } = shared.link.connect(Some(response_max)).await?;
    // Mirrors may have been loaded from another run before this connection was opened.
    if known_run.as_ref() != Some(&run) {
        for channel in shared.hub.all() {
            shared.rewind(&channel).await?;
        }
    }
    *known_run = Some(run);
    let client: u64 = query(shared, redis::cmd("CLIENT").arg("ID"), &mut connection).await?;
    loop {
        let mut streams = Vec::new();
        for channel in shared.hub.all() {
            if channel.lock().diverged {
                let _loading = shared.loading.lock().await;
                shared.refresh(&channel).await?;
                // A channel without followers, which had events in memory while Redis was unavailable: pages are read
                // from Redis now.
                if shared.hub.forget(&channel.name, |_| true) {
                    continue;
                }
            }
            let source = channel.lock().source;
            streams.push((channel, source));
        }
        if streams.is_empty() {
            shared.followed.notified().await;
            continue;
        }
        let mut read = redis::cmd("XREAD");
        read.arg("BLOCK").arg(block_ms).arg("COUNT").arg(ENTRIES_MAX).arg("STREAMS");
        for (channel, _) in &streams {
            read.arg(shared.key(&channel.name));
        }
        for (_, source) in &streams {
            read.arg(format!("{}-{}", source.epoch, source.seq));
        }
        let reply = interruptible(shared, &read, &mut connection, client).await;
        let reply = reply.map_err(|error| shared.link.fail(error.to_string()))?;
        for (position, stream) in reply.into_iter().flat_map(|reply| reply.keys).enumerate() {
            // The reply names the streams that have entries, in the order of the command.
            let mirror = streams[position..].iter().find(|(channel, _)| shared.key(&channel.name) == stream.key);
            if let Some((channel, _)) = mirror {
                apply(channel, &stream.ids, shared.clock.now_ms());
            }
        }
    }
}

/// Waits for a read, and unblocks it early when another channel is followed.
async fn interruptible(
    shared: &Shared,
    read: &Cmd,
    connection: &mut MultiplexedConnection,
    client: u64,
) -> Result<Option<StreamReadReply>, RedisError> {
    let reply = read.query_async(connection);
    tokio::pin!(reply);
    tokio::select! {
        reply = &mut reply => return reply,
        () = shared.followed.notified() => {}
    }
    loop {
        // The read may not have reached the server yet; then it is unblocked again.
        let mut unblock = redis::cmd("CLIENT");
        unblock.arg("UNBLOCK").arg(client);
        // If this fails, the read ends when its time has passed.
        let _ = shared.link.command::<u64>(unblock).await;
        tokio::select! {
            reply = &mut reply => return reply,
            () = tokio::time::sleep(Duration::from_millis(UNBLOCK_RETRY_MS)) => {}
        }
    }
}

fn apply(channel: &Channel, entries: &[redis::streams::StreamId], now_ms: u64) {
    let mut state = channel.lock();
    if state.diverged {
        // The mirror is loaded again, which includes these entries.
        return;
    }
    let events: Vec<_> = entries.iter().filter_map(|entry| event(entry, |_| now_ms)).collect();
    if let Some(first) = events.first().filter(|first| first.cursor <= state.log.last()) {
        // The server lost entries and continues with an earlier cursor: readers get a gap, whatever the order of the
        // epochs.
        state.log.restart(first.cursor.previous());
    }
    state.log_and_offer(&events);
    // An entry that is not an event is skipped; readers see a hole in the sequence.
    if let Some(last) = entries.last().and_then(|entry| entry.id.parse().ok()) {
        state.source = last;
        state.log.skip_to(last);
    }
    wake(state);
}

async fn query<T: redis::FromRedisValue>(
    shared: &Shared,
    command: &Cmd,
    connection: &mut MultiplexedConnection,
) -> Result<T, Error> {
    command.query_async(connection).await.map_err(|error| shared.link.fail(error.to_string()))
}
