//! The state that the store and its reader share: the mirrors of followed channels, and the commands that load and append.

use std::sync::Arc;

use redis::Script;
use redis::streams::StreamRangeReply;
use tokio::sync::Notify;
use weir_core::channels::{ChannelName, Cursor, Draft, Entry, Log, Page, page, resolve};

use crate::backend::WriteContext;
use crate::clock::Clock;
use crate::config::{EventsConfig, Fallback};
use crate::error::Error;
use crate::hub::{Channel, Hub, State, wake};
use crate::redis::lease::{RedisLeases, fence_arguments};
use crate::redis::link::{Link, ServerConnection};
use crate::redis::state;
use crate::redis::stream::{Fields, StreamMeta, event, key, meta_key};

/// Weir assigns no epochs from this one on: an entry with such an epoch was written by another program.
const EPOCH_END: u64 = 1 << 62;
/// How long a channel's last cursor is stored after its events have expired, in milliseconds.
pub(super) const REMEMBERED_MS: u64 = 86_400_000;

/// The state that the store and its reader share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) config: Arc<EventsConfig>,
    pub(super) clock: Arc<Clock>,
    pub(super) hub: Arc<Hub>,
    pub(super) link: Arc<Link>,
    pub(super) append: Script,
    pub(super) values: state::State,
    pub(super) leases: RedisLeases,
    /// Notified when another channel is followed.
    pub(super) followed: Notify,
    /// Held while a mirror is loaded, so that each is loaded once.
    pub(super) loading: tokio::sync::Mutex<()>,
}

impl Shared {
    pub(super) fn falls_back(&self) -> bool {
        self.link.config.fallback == Fallback::Memory
    }

    pub(super) fn key(&self, name: &ChannelName) -> String {
        key(&self.link.config.prefix, name)
    }

    pub(super) fn meta_key(&self, name: &ChannelName) -> String {
        meta_key(&self.link.config.prefix, name)
    }

    pub(super) async fn append(
        &self,
        name: &ChannelName,
        drafts: &[Draft],
        write: WriteContext<'_>,
    ) -> Result<Vec<Cursor>, Error> {
        let mut epoch = self.clock.fresh_epoch();
        // If the clock of another server is ahead, a greater epoch is needed; a third server may assign that one in the
        // meantime.
        for _ in 0..4 {
            let reply: Vec<String> = self
                .link
                .request(|server| async move { self.run_append(server, name, drafts, epoch, write).await })
                .await?;
            let number = |at: usize| reply.get(at).and_then(|text| text.parse::<u64>().ok()).unwrap_or_default();
            match reply.first().map(String::as_str) {
                Some("ok") => {
                    self.observe(number(1));
                    return Ok((number(2)..=number(3)).map(|seq| Cursor::new(number(1), seq)).collect());
                }
                Some("finished") => return Err(Error::Finished),
                Some("fenced") => return Err(Error::Fenced),
                Some("epoch") => epoch = epoch.max(number(1).saturating_add(1)),
                _ => break,
            }
        }
        Err(Error::unavailable("the clocks of the servers are too far apart", 1_000))
    }

    async fn run_append(
        &self,
        mut server: ServerConnection,
        name: &ChannelName,
        drafts: &[Draft],
        epoch: u64,
        write: WriteContext<'_>,
    ) -> Result<Vec<String>, redis::RedisError> {
        let retention = self.config.retention;
        let mut call = self.append.prepare_invoke();
        let (lease, token) = fence_arguments(&self.link, write.fence);
        call.key(self.key(name)).key(self.meta_key(name)).key(lease);
        // A kind that is too long for an owner record has none; the keys of the channel itself are passed instead.
        let record = name.owner_record().unwrap_or_else(|| name.clone());
        call.key(self.key(&record)).key(self.meta_key(&record));
        call.arg(&*server.run).arg(epoch).arg(u8::from(self.config.durable));
        call.arg(retention.events_max.max(1)).arg(retention.bytes_max).arg(retention.age_ms_max.max(1));
        call.arg(retention.age_ms_max.saturating_add(REMEMBERED_MS)).arg(token);
        let user = write.user.filter(|_| !name.is_owner_record()).unwrap_or_default();
        call.arg(&self.link.config.prefix)
            .arg(name.as_str())
            .arg(user)
            .arg(self.config.channel_shares(self.config.channels_max).user_max());
        for draft in drafts {
            call.arg(&*draft.name).arg(&*draft.data);
            call.arg(draft.coalesce.as_deref().unwrap_or_default()).arg(u8::from(draft.finishes));
        }
        call.invoke_async(&mut server.connection).await
    }

    /// Appends to the memory of this process only.
    pub(super) fn append_in_memory(&self, name: &ChannelName, drafts: Vec<Draft>) -> Result<Vec<Cursor>, Error> {
        let mut drafts = Some(drafts);
        loop {
            let channel = self.hub.insert(name, None, || self.empty_mirror())?;
            let mut state = channel.lock();
            if state.is_removed {
                continue;
            }
            if !state.diverged || state.next.epoch <= state.source.epoch {
                state.diverged = true;
                let after = state.log.last().epoch.saturating_add(1);
                state.next = Cursor::new(self.clock.fresh_epoch().max(after), 1);
            }
            let entries = state.stamp(drafts.take().unwrap_or_default(), &self.clock)?;
            state.log_and_offer(&entries);
            wake(state);
            return Ok(entries.iter().map(|entry| entry.cursor).collect());
        }
    }

    /// Loads the mirror of a channel again if a reader's cursor is after its newest event: the mirror of another server
    /// may be ahead.
    pub(super) async fn catch_up(&self, name: &ChannelName, after: Cursor) -> Result<(), Error> {
        let channel = self.mirror(name).await?;
        {
            let mut state = channel.lock();
            if after.is_unknown() || after <= state.log.last() {
                return Ok(());
            }
            state.diverged = true;
        }
        self.mirror(name).await.map(drop)
    }

    /// A page, read from Redis directly.
    pub(super) async fn read(&self, name: &ChannelName, after: Cursor, limit: usize) -> Result<Page, Error> {
        let (mut from, mut is_known) = (first_after(after), true);
        // Events that are too old are removed by the next append; until then they are skipped.
        let (entries, meta, oldest_ms) = loop {
            let Range { entries, meta, now_ms } = self.range(name, &from, limit).await?;
            // By the server's clock, which stamped the events: the local clock may differ.
            let oldest_ms = now_ms.saturating_sub(self.config.retention_of(name).age_ms_max);
            match entries.last() {
                Some(newest) if entries.len() == limit && newest.time_ms < oldest_ms => from = id_after(newest.cursor),
                // The cursor is not of this channel: all retained events come after the gap.
                None if is_known && meta.last != Cursor::START && resolve(after, meta.last) != after => {
                    (from, is_known) = (first_after(Cursor::UNKNOWN), false);
                }
                _ => break (entries, meta, oldest_ms),
            }
        };
        let last = meta.last.max(entries.last().map_or(Cursor::START, |entry| entry.cursor));
        if meta.last == Cursor::START && entries.is_empty() {
            // The channel is unknown.
            let last = if after == Cursor::START { Cursor::START } else { self.clock.beginning() };
            return Ok(page(after, last, false, std::iter::empty(), limit, 0));
        }
        // A range that starts at the greatest cursor may contain the entry that the reader has seen.
        let all = after.is_unknown() || !is_known;
        let is_new = |entry: &Arc<Entry>| (all || entry.cursor > after) && entry.time_ms >= oldest_ms;
        let entries = entries.into_iter().filter(is_new);
        Ok(page(after, last, meta.finished, entries, limit, self.config.page_bytes_max))
    }

    /// Entries of a stream and its metadata, read atomically.
    async fn range(&self, name: &ChannelName, from: &str, count: usize) -> Result<Range, Error> {
        let mut query = redis::pipe();
        query.atomic();
        query.cmd("XRANGE").arg(self.key(name)).arg(from).arg("+").arg("COUNT").arg(count);
        query.cmd("HMGET").arg(self.meta_key(name)).arg("epoch").arg("seq").arg("finished");
        query.cmd("TIME");
        let (range, fields, (seconds, micros)): (StreamRangeReply, Fields, (u64, u64)) =
            self.link.request(|mut server| async move { query.query_async(&mut server.connection).await }).await?;
        let now_ms = seconds.saturating_mul(1_000).saturating_add(micros / 1_000);
        let meta = StreamMeta::from_fields(fields);
        self.observe(meta.last.epoch);
        // From here on, ages are measured by the store clock of this process.
        let here_ms = self.clock.now_ms();
        let stored_ms = |time_ms: u64| here_ms.saturating_sub(now_ms.saturating_sub(time_ms));
        Ok(Range { entries: range.ids.iter().filter_map(|entry| event(entry, stored_ms)).collect(), meta, now_ms })
    }

    /// Makes later epochs of this process greater than one that was read.
    fn observe(&self, epoch: u64) {
        if epoch < EPOCH_END {
            self.clock.observe_epoch(epoch);
        }
    }

    /// The mirror of a channel; loaded if there is none or if it differs from Redis.
    pub(super) async fn mirror(&self, name: &ChannelName) -> Result<Arc<Channel>, Error> {
        let is_current = |channel: &Arc<Channel>| !channel.lock().diverged;
        if let Some(channel) = self.hub.resident(name).filter(is_current) {
            return Ok(channel);
        }
        let _loading = self.loading.lock().await;
        if let Some(channel) = self.hub.resident(name) {
            return match self.refresh(&channel).await {
                Err(error) if !self.falls_back() => Err(error),
                _ => Ok(channel),
            };
        }
        let state = match self.load(name).await {
            Ok(log) => State::new(log),
            Err(Error::Unavailable { .. }) if self.falls_back() => self.empty_mirror(),
            Err(error) => return Err(error),
        };
        self.hub.insert(name, None, || state)
    }

    /// Loads a mirror again if it differs from Redis; its subscribers get the events that they have not seen.
    pub(super) async fn refresh(&self, channel: &Channel) -> Result<(), Error> {
        if !channel.lock().diverged {
            return Ok(());
        }
        let log = self.load(&channel.name).await?;
        let mut state = channel.lock();
        if !state.diverged {
            return Ok(());
        }
        // A server that lost its data may continue before the cursor that was read.
        let source = if log.last() < state.source { Cursor::START } else { state.source };
        let fresh: Vec<Arc<Entry>> = log.all_after(source).map(Arc::clone).collect();
        // The log gets the earlier events, so that replays find them; new events are offered to subscribers.
        let mut before =
            Log::new(self.config.retention, log.first().map_or(log.last(), |first| first.cursor.previous()));
        log.all_after(Cursor::START).take_while(|entry| entry.cursor <= source).for_each(|entry| {
            before.push(Arc::clone(entry));
        });
        let last = log.last();
        state.log = before;
        state.log_and_offer(&fresh);
        state.log.skip_to(last);
        if log.finished() {
            state.log.finish();
        }
        state.source = state.log.last();
        state.sealed = state.log.finished();
        state.diverged = false;
        wake(state);
        Ok(())
    }

    /// Makes the reader start at the beginning of a stream if the server has lost events that were already read:
    /// otherwise new entries with an earlier epoch would never be read.
    pub(super) async fn rewind(&self, channel: &Channel) -> Result<(), Error> {
        let Range { meta, .. } = self.range(&channel.name, "-", 1).await?;
        let mut state = channel.lock();
        if meta.last < state.source {
            state.source = Cursor::START;
        }
        Ok(())
    }

    /// The log of all entries of a channel in Redis.
    async fn load(&self, name: &ChannelName) -> Result<Log, Error> {
        // The script appends and trims atomically, so that no more than `events_max` entries are retained.
        let Range { entries, meta, .. } = self.range(name, "-", self.config.retention.events_max.max(1)).await?;
        let before = entries.first().map_or(meta.last, |first| first.cursor.previous());
        let mut log = Log::new(self.config.retention, before);
        for entry in entries {
            log.push(entry);
        }
        log.skip_to(meta.last);
        log.expire(self.clock.now_ms());
        if meta.finished {
            log.finish();
        }
        Ok(log)
    }

    /// An empty mirror, marked as different from Redis.
    fn empty_mirror(&self) -> State {
        let mut state = State::new(Log::new(self.config.retention, Cursor::START));
        state.diverged = true;
        state
    }
}

/// Entries of a stream, read atomically.
struct Range {
    entries: Vec<Arc<Entry>>,
    meta: StreamMeta,
    /// The server's clock.
    now_ms: u64,
}

/// The first id of the range after a cursor, in the form of `XRANGE`.
fn first_after(after: Cursor) -> String {
    if after == Cursor::START || after.is_unknown() { "-".to_owned() } else { id_after(after) }
}

/// The first id after a cursor. For the greatest cursor it is that cursor's own id, since Redis refuses a range that
/// starts after it.
fn id_after(Cursor { epoch, seq }: Cursor) -> String {
    match (seq.checked_add(1), epoch.checked_add(1)) {
        (Some(seq), _) => format!("{epoch}-{seq}"),
        (None, Some(epoch)) => format!("{epoch}-0"),
        (None, None) => format!("{epoch}-{seq}"),
    }
}
