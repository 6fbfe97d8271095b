//! The tables of the file: how they are read when it is opened, and how a change is written.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use redb::{ReadableTable, TableDefinition, WriteTransaction};
use weir_core::channels::{ChannelName, Cursor, Entry};

use crate::claims::ClaimEnd;
use crate::clock::{Clock, Moment, Uptime};
use crate::disk::record;

/// Events by the channel's number, epoch and sequence.
pub(crate) const EVENTS: TableDefinition<(u64, u64, u64), &[u8]> = TableDefinition::new("events");
/// By the channel's name: number of the channel, then epoch, sequence, flags and time by the store clock of its newest
/// event.
const CHANNELS: TableDefinition<&str, (u64, u64, u64, u64, u64)> = TableDefinition::new("channels");
/// By the key: the end by the wall clock. Only files of earlier versions have it.
const WALL_CLAIMS: TableDefinition<&str, u64> = TableDefinition::new("claims");
/// By the key: the end by the store clock and by the wall clock.
const CLAIMS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("claim_ends");
/// By the key: the value.
pub(crate) const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");
/// By the key: the size of its value, and its end by the store clock. It is read completely when the file is opened.
const VALUE_KEYS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("value_keys");
/// By the key: the user whose share the value counts towards. It is read completely when the file is opened; files of
/// earlier versions have none.
const VALUE_USERS: TableDefinition<&str, &str> = TableDefinition::new("value_users");
/// By the channel's name: the user whose share the channel counts towards. Files of earlier versions have none.
const CHANNEL_USERS: TableDefinition<&str, &str> = TableDefinition::new("channel_users");
/// Properties of the file, by the names below.
const STORE: TableDefinition<&str, u64> = TableDefinition::new("store");

/// The number of the next new channel. No number is assigned to two channels.
const NEXT_ID: &str = "next_id";
/// The number of the newest commit in the file.
const COMMIT: &str = "commit";
/// Epochs up to this one may have been assigned.
const EPOCH_MAX: &str = "epoch_max";
/// The store clock at the newest commit, and the machine's uptime at that moment.
const STORE_MS: &str = "store_ms";
const BOOT: &str = "boot";
const UPTIME_MS: &str = "uptime_ms";
/// The state in which the last process left the file: [`LEFT_WHOLE`] or [`LEFT_OPEN`].
const LEFT: &str = "left";
/// Every acknowledged event is in the file.
const LEFT_WHOLE: u64 = 0;
/// Readers may have seen events that are not in the file.
const LEFT_OPEN: u64 = 1;

const FINISHED: u64 = 1;
const BROKEN: u64 = 2;

/// The metadata of a channel on the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ChannelMeta {
    pub(crate) id: u64,
    /// The newest event.
    pub(crate) last: Cursor,
    pub(crate) finished: bool,
    /// True when readers may have seen events after the newest one in the file: the next event starts an epoch.
    pub(crate) broken: bool,
    /// When the newest event was appended, by the store clock.
    pub(crate) stored_ms: u64,
    /// A cursor that is not after the oldest event on the disk.
    first: Cursor,
    /// True when no events are on the disk.
    pub(crate) empty: bool,
    /// The user whose share the channel counts towards.
    pub(crate) user: Option<Arc<str>>,
}

/// The metadata of all channels on the disk.
pub(crate) type ChannelMetas = HashMap<ChannelName, ChannelMeta>;

/// The changes of one commit.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) appends: Vec<Append>,
    /// Claims that have ended or were released. They are removed before [`Self::claims`] are added.
    pub(crate) ended_claims: Vec<Arc<str>>,
    pub(crate) claims: Vec<(Arc<str>, ClaimEnd)>,
    /// Values to put, and keys to delete (without a value), in this order.
    pub(crate) values: Vec<(Arc<str>, Option<Put>)>,
    /// Channels to remove completely.
    pub(crate) forgotten: Vec<ChannelName>,
    /// Channels whose events are all to be removed.
    pub(crate) emptied: Vec<ChannelName>,
    /// Epochs to reserve.
    pub(crate) epoch_max: Option<u64>,
    /// True when the commit must be flushed, even if the store is not durable.
    pub(crate) flush: bool,
    pub(crate) closes: bool,
}

#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) record: Vec<u8>,
    pub(crate) end_ms: u64,
    /// The user whose share the value counts towards.
    pub(crate) user: Option<Arc<str>>,
}

#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) name: ChannelName,
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The oldest event to retain.
    pub(crate) first: Cursor,
    /// The user whose share the channel counts towards if it is new.
    pub(crate) user: Option<Arc<str>>,
}

impl Change {
    /// True when there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.appends.is_empty()
            && self.claims.is_empty()
            && self.values.is_empty()
            && self.ended_claims.is_empty()
            && self.forgotten.is_empty()
            && self.emptied.is_empty()
            && self.epoch_max.is_none()
            && !self.flush
            && !self.closes
    }

    /// The approximate size in memory, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        let entries = self.appends.iter().flat_map(|append| &append.entries).map(|entry| entry.bytes()).sum::<usize>();
        let values =
            self.values.iter().map(|(key, put)| 64 + key.len() + put.as_ref().map_or(0, |put| put.record.len()));
        entries + values.sum::<usize>() + 64 * (self.claims.len() + self.forgotten.len() + self.emptied.len())
    }
}

impl ChannelMeta {
    fn row(&self) -> (u64, u64, u64, u64, u64) {
        let flags = (u64::from(self.finished) * FINISHED) | (u64::from(self.broken) * BROKEN);
        (self.id, self.last.epoch, self.last.seq, flags, self.stored_ms)
    }

    fn from_row((id, epoch, seq, flags, stored_ms): (u64, u64, u64, u64, u64)) -> Self {
        Self {
            id,
            last: Cursor { epoch, seq },
            finished: flags & FINISHED != 0,
            broken: flags & BROKEN != 0,
            stored_ms,
            first: Cursor::START,
            empty: false,
            user: None,
        }
    }
}

/// A key with a value.
#[derive(Debug, Clone)]
pub(crate) struct KeyRow {
    pub(crate) key: ChannelName,
    pub(crate) bytes: usize,
    pub(crate) end_ms: u64,
    pub(crate) user: Option<Arc<str>>,
}

/// The content of the file, without events and values.
#[derive(Debug, Default)]
pub(crate) struct FileContent {
    pub(crate) channels: ChannelMetas,
    pub(crate) claims: Vec<(String, ClaimEnd)>,
    pub(crate) values: Vec<KeyRow>,
    /// The number of the newest commit.
    pub(crate) commit: u64,
    pub(crate) next_id: u64,
}

/// Opens a file for writing: sets the clock from it, reads its content, repairs it, and records in it that it is open.
pub(crate) fn begin(transaction: &WriteTransaction, durable: bool, clock: &Clock) -> Result<FileContent, redb::Error> {
    let mut content = read(transaction)?;
    let store = transaction.open_table(STORE)?;
    let number = |key: &str| -> Result<Option<u64>, redb::Error> { Ok(store.get(key)?.map(|value| value.value())) };
    match number(STORE_MS)? {
        Some(store_ms) => {
            let uptime = number(BOOT)?.zip(number(UPTIME_MS)?).map(|(boot, ms)| Uptime { boot, ms });
            clock.resume(Moment { store_ms, uptime });
        }
        None => {
            let newest_ms = content.channels.values().map(|meta| meta.stored_ms).max().unwrap_or_default();
            clock.set_store_ms(clock.wall_ms().max(newest_ms));
        }
    }
    content.channels.values().for_each(|meta| clock.observe_epoch(meta.last.epoch));
    clock.observe_epoch(number(EPOCH_MAX)?.unwrap_or_default());
    let broken = number(LEFT)? == Some(LEFT_OPEN);
    drop(store);
    if let Some(epoch_max) = clock.epochs_to_reserve() {
        clock.epochs_reserved(epoch_max);
    }
    mark_open(transaction, durable, clock)?;
    separate(transaction, &mut content)?;
    if broken {
        let mut channels = transaction.open_table(CHANNELS)?;
        for (name, meta) in &mut content.channels {
            meta.broken = true;
            channels.insert(name.as_str(), meta.row())?;
        }
    }
    let mut claims = transaction.open_table(CLAIMS)?;
    for row in transaction.open_table(WALL_CLAIMS)?.iter()? {
        let (key, end_ms) = row?;
        let end = ClaimEnd { store_ms: end_ms.value(), wall_ms: end_ms.value() };
        claims.insert(key.value(), (end.store_ms, end.wall_ms))?;
        content.claims.push((key.value().to_owned(), end));
    }
    transaction.delete_table(WALL_CLAIMS)?;
    for (key, _) in content.claims.extract_if(.., |(_, end)| end.passed(clock)) {
        claims.remove(&*key)?;
    }
    Ok(content)
}

/// Records that the file is open, and which epochs may be assigned.
pub(crate) fn mark_open(transaction: &WriteTransaction, durable: bool, clock: &Clock) -> Result<(), redb::Error> {
    let mut store = transaction.open_table(STORE)?;
    store.insert(LEFT, if durable { LEFT_WHOLE } else { LEFT_OPEN })?;
    store.insert(EPOCH_MAX, clock.epoch_max())?;
    Ok(())
}

/// Reads everything but events and values.
pub(crate) fn read(transaction: &WriteTransaction) -> Result<FileContent, redb::Error> {
    let mut content = FileContent::default();
    transaction.open_table(EVENTS)?;
    transaction.open_table(VALUES)?;
    let store = transaction.open_table(STORE)?;
    content.commit = store.get(COMMIT)?.map_or(0, |number| number.value());
    content.next_id = store.get(NEXT_ID)?.map_or(1, |number| number.value());
    // Each user's name is allocated once.
    let mut users = HashSet::new();
    let channel_users = transaction.open_table(CHANNEL_USERS)?;
    for row in transaction.open_table(CHANNELS)?.iter()? {
        let (name, row) = row?;
        match name.value().parse::<ChannelName>() {
            Ok(name) => {
                let user = channel_users.get(name.as_str())?.map(|user| intern(&mut users, user.value()));
                content.channels.insert(name, ChannelMeta { user, ..ChannelMeta::from_row(row.value()) });
            }
            Err(_) => tracing::error!("a channel on the disk has an invalid name and is ignored"),
        }
    }
    for row in transaction.open_table(CLAIMS)?.iter()? {
        let (key, row) = row?;
        let (store_ms, wall_ms) = row.value();
        content.claims.push((key.value().to_owned(), ClaimEnd { store_ms, wall_ms }));
    }
    let value_users = transaction.open_table(VALUE_USERS)?;
    for row in transaction.open_table(VALUE_KEYS)?.iter()? {
        let (key, row) = row?;
        let (bytes, end_ms) = row.value();
        match key.value().parse::<ChannelName>() {
            Ok(key) => {
                let user = value_users.get(key.as_str())?.map(|user| intern(&mut users, user.value()));
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                content.values.push(KeyRow { key, bytes, end_ms, user });
            }
            Err(_) => tracing::error!("a value on the disk has an invalid key and is ignored"),
        }
    }
    Ok(content)
}

/// The one shared copy of a name.
fn intern(names: &mut HashSet<Arc<str>>, name: &str) -> Arc<str> {
    if let Some(known) = names.get(name) {
        return Arc::clone(known);
    }
    let name: Arc<str> = name.into();
    names.insert(Arc::clone(&name));
    name
}

/// Assigns new numbers to channels that share one, and removes their events, since it is unknown which channel they
/// belong to. An earlier version could assign a number twice after a failed commit.
fn separate(transaction: &WriteTransaction, content: &mut FileContent) -> Result<(), redb::Error> {
    let mut ids = HashSet::new();
    let shared_ids: HashSet<u64> =
        content.channels.values().map(|meta| meta.id).filter(|id| !ids.insert(*id)).collect();
    let next_id = content.channels.values().map(|meta| meta.id.saturating_add(1)).fold(content.next_id, u64::max);
    let mut events = transaction.open_table(EVENTS)?;
    let mut channels = transaction.open_table(CHANNELS)?;
    content.next_id = next_id;
    for id in &shared_ids {
        tracing::error!(id, "channels on the disk share a number: their events are removed");
        events.retain_in((*id, 0, 0)..=(*id, u64::MAX, u64::MAX), |_, _| false)?;
    }
    for (name, meta) in content.channels.iter_mut().filter(|(_, meta)| shared_ids.contains(&meta.id)) {
        (meta.id, meta.broken, meta.empty) = (content.next_id, true, true);
        content.next_id += 1;
        channels.insert(name.as_str(), meta.row())?;
    }
    transaction.open_table(STORE)?.insert(NEXT_ID, content.next_id)?;
    Ok(())
}

/// Writes the number and the time of this commit.
pub(crate) fn stamp(transaction: &WriteTransaction, commit: u64, now: Moment) -> Result<(), redb::Error> {
    let mut store = transaction.open_table(STORE)?;
    store.insert(COMMIT, commit)?;
    store.insert(STORE_MS, now.store_ms)?;
    if let Some(Uptime { boot, ms }) = now.uptime {
        store.insert(BOOT, boot)?;
        store.insert(UPTIME_MS, ms)?;
    }
    Ok(())
}

/// Writes a change. `metas` has the metadata of the channels that it names, and is updated with them; `next_id` is the
/// number of the next new channel.
pub(crate) fn apply(
    transaction: &WriteTransaction,
    change: &Change,
    metas: &mut ChannelMetas,
    next_id: &mut u64,
) -> Result<(), redb::Error> {
    let mut events = transaction.open_table(EVENTS)?;
    let mut channels = transaction.open_table(CHANNELS)?;
    let mut store = transaction.open_table(STORE)?;
    let mut channel_users = transaction.open_table(CHANNEL_USERS)?;
    for name in &change.forgotten {
        if let Some(meta) = metas.remove(name) {
            channel_users.remove(name.as_str())?;
            events.retain_in((meta.id, 0, 0)..=(meta.id, u64::MAX, u64::MAX), |_, _| false)?;
            channels.remove(name.as_str())?;
        }
    }
    for name in &change.emptied {
        if let Some(meta) = metas.get_mut(name) {
            events.retain_in((meta.id, 0, 0)..=(meta.id, u64::MAX, u64::MAX), |_, _| false)?;
            meta.empty = true;
        }
    }
    let first_id = *next_id;
    for Append { name, entries, first, user } in &change.appends {
        let Some(newest) = entries.last() else { continue };
        let (id, on_disk, user) = match metas.get(name) {
            Some(meta) => (meta.id, meta.first, meta.user.clone()),
            None => {
                if let Some(user) = user {
                    channel_users.insert(name.as_str(), &**user)?;
                }
                (*next_id, *first, user.clone())
            }
        };
        *next_id = (*next_id).max(id + 1);
        if on_disk < *first {
            events.retain_in((id, 0, 0)..(id, first.epoch, first.seq), |_, _| false)?;
        }
        for entry in entries {
            let Cursor { epoch, seq } = entry.cursor;
            events.insert((id, epoch, seq), record::encode(id, name, entry).as_slice())?;
        }
        let meta = ChannelMeta {
            id,
            last: newest.cursor,
            finished: newest.finishes,
            broken: false,
            stored_ms: newest.stored_ms,
            first: *first,
            empty: false,
            user,
        };
        channels.insert(name.as_str(), meta.row())?;
        metas.insert(name.clone(), meta);
    }
    if *next_id != first_id {
        store.insert(NEXT_ID, *next_id)?;
    }
    let mut claims = transaction.open_table(CLAIMS)?;
    for key in &change.ended_claims {
        claims.remove(&**key)?;
    }
    for (key, end) in &change.claims {
        claims.insert(&**key, (end.store_ms, end.wall_ms))?;
    }
    if !change.values.is_empty() {
        let (mut values, mut keys) = (transaction.open_table(VALUES)?, transaction.open_table(VALUE_KEYS)?);
        let mut users = transaction.open_table(VALUE_USERS)?;
        for (key, put) in &change.values {
            match put.as_ref().and_then(|put| put.user.as_ref()) {
                Some(user) => drop(users.insert(&**key, &**user)?),
                None => drop(users.remove(&**key)?),
            }
            match put {
                Some(Put { record, end_ms, .. }) => {
                    values.insert(&**key, record.as_slice())?;
                    keys.insert(&**key, (record.len() as u64, *end_ms))?;
                }
                None => {
                    values.remove(&**key)?;
                    keys.remove(&**key)?;
                }
            }
        }
    }
    if let Some(epoch_max) = change.epoch_max {
        store.insert(EPOCH_MAX, epoch_max)?;
    }
    if change.closes {
        store.insert(LEFT, LEFT_WHOLE)?;
    }
    Ok(())
}
