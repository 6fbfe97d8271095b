//! A channel as a source.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use weir_config::ChannelSource as Config;
use weir_core::adapter::{Header, Position, SourceRecord};
use weir_core::channels::{ChannelName, Cursor, Entry};
use weir_events::Store;

use super::{POSITION_KIND, channel_name, failure};
use crate::RECORD_ID_HEADER;
use crate::driver::{BoxFuture, Committer, DriverError, Read, Safe, Source};

/// The header of a record with the name of its event.
const EVENT_HEADER: &str = "event";
/// The least time between two writes of the position.
const COMMIT_INTERVAL: Duration = Duration::from_millis(200);

/// The cursors of the events that were read and are not committed, by the offset of their record.
type Cursors = Arc<Mutex<BTreeMap<u64, Cursor>>>;

/// A channel as a source.
pub struct ChannelSource {
    store: Store,
    channel: ChannelName,
    config: Config,
    after: Cursor,
    has_ended: bool,
    offset: u64,
    cursors: Cursors,
}

/// Stores the position.
pub struct ChannelCommitter {
    store: Store,
    key: ChannelName,
    cursors: Cursors,
    pending: Option<Cursor>,
    committed: Option<Instant>,
}

/// Begins after the stored position of the adapter.
///
/// # Errors
///
/// The configuration is invalid, or the store is unavailable.
pub async fn open(
    store: &Store,
    adapter: &str,
    config: &Config,
) -> Result<(ChannelSource, ChannelCommitter), DriverError> {
    let channel = channel_name("source.channel", &config.channel).map_err(DriverError::Config)?;
    let key = ChannelName::new(POSITION_KIND, adapter).map_err(|error| DriverError::Config(error.to_string()))?;
    let stored = store.get(&key).await.map_err(failure)?;
    // An invalid position is treated as one of another store: a gap is reported, followed by all retained events.
    let stored = stored.map(|value| Cursor::from_id(&String::from_utf8_lossy(&value)));
    let after = match (stored, config.start.as_str()) {
        (Some(cursor), _) => cursor,
        (None, "start") => Cursor::START,
        (None, "now") => last_cursor(store, &channel).await?,
        (None, other) => return Err(DriverError::Config(format!("source.start `{other}` must be start or now"))),
    };
    let cursors = Cursors::default();
    let source = ChannelSource {
        store: store.clone(),
        channel,
        config: config.clone(),
        after,
        has_ended: false,
        offset: 0,
        cursors: cursors.clone(),
    };
    Ok((source, ChannelCommitter { store: store.clone(), key, cursors, pending: None, committed: None }))
}

/// The cursor of the last event of a channel.
async fn last_cursor(store: &Store, channel: &ChannelName) -> Result<Cursor, DriverError> {
    let mut after = Cursor::START;
    loop {
        let page = store.read(channel, after, usize::MAX).await.map_err(failure)?;
        after = page.next;
        if page.entries.is_empty() {
            return Ok(after);
        }
    }
}

impl ChannelSource {
    async fn next(&mut self, max: usize) -> Result<Read, DriverError> {
        loop {
            if self.has_ended {
                return Ok(Read::End);
            }
            let page = self.store.read(&self.channel, self.after, max).await.map_err(failure)?;
            if let Some(gap) = &page.gap {
                tracing::warn!(
                    channel = %self.channel, from = %gap.missing_from, to = %gap.missing_to,
                    "events are no longer retained; the adapter continues after them"
                );
            }
            let is_empty = page.entries.is_empty() && !page.ended;
            if is_empty {
                // Resolves when an event is available, which the next read returns.
                let mut subscription = self.store.follow(&self.channel, self.after).await.map_err(failure)?;
                subscription.next().await;
                continue;
            }
            self.after = page.next;
            self.has_ended = page.ended;
            let is_selected = |entry: &Entry| {
                self.config.events.is_empty() || self.config.events.iter().any(|name| **name == *entry.name)
            };
            let selected: Vec<Arc<Entry>> = page.entries.into_iter().filter(|entry| is_selected(entry)).collect();
            let records: Vec<SourceRecord> = selected.iter().map(|entry| self.record(entry)).collect();
            if !records.is_empty() {
                return Ok(Read::Records(records));
            }
        }
    }

    fn record(&mut self, entry: &Entry) -> SourceRecord {
        let position = Position { partition: 0, offset: self.offset };
        self.cursors.lock().unwrap_or_else(PoisonError::into_inner).insert(self.offset, entry.cursor);
        self.offset += 1;
        SourceRecord {
            payload: entry.data.as_bytes().to_vec(),
            key: None,
            headers: vec![
                Header::new(EVENT_HEADER, &*entry.name),
                Header::new(RECORD_ID_HEADER, entry.cursor.to_string()),
            ],
            origin: self.channel.to_string(),
            position,
        }
    }
}

impl Source for ChannelSource {
    fn read(&mut self, max: usize) -> BoxFuture<'_, Result<Read, DriverError>> {
        Box::pin(self.next(max))
    }
}

impl ChannelCommitter {
    async fn store_position(&mut self) -> Result<(), DriverError> {
        if let Some(cursor) = self.pending {
            self.store.put(&self.key, cursor.to_string().into_bytes(), None).await.map_err(failure)?;
            self.pending = None;
            self.committed = Some(Instant::now());
        }
        Ok(())
    }
}

impl Committer for ChannelCommitter {
    fn commit<'a>(&'a mut self, safe: &'a Safe) -> BoxFuture<'a, Result<(), DriverError>> {
        Box::pin(async move {
            for commit in &safe.commits {
                let mut cursors = self.cursors.lock().unwrap_or_else(PoisonError::into_inner);
                let open = cursors.split_off(&(commit.offset + 1));
                let done = std::mem::replace(&mut *cursors, open);
                if let Some(cursor) = done.into_values().next_back() {
                    self.pending = Some(cursor);
                }
            }
            match self.committed {
                Some(committed) if committed.elapsed() < COMMIT_INTERVAL => Ok(()),
                _ => self.store_position().await,
            }
        })
    }

    fn finish(&mut self) -> BoxFuture<'_, Result<(), DriverError>> {
        Box::pin(self.store_position())
    }
}
