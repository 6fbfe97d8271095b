//! The file: tables, what is known of each channel, and what one commit changes.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use redb::{Durability, ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use weir_core::channel::{ChannelName, Cursor, Entry};

use crate::clock::now_ms;
use crate::config::EventsConfig;
use crate::disk::{RETRY_AFTER_MS, record};
use crate::error::{Error, OpenError, lock};

/// By the channel's number, epoch and sequence.
const EVENTS: TableDefinition<(u64, u64, u64), &[u8]> = TableDefinition::new("events");
/// By the channel's name: number, epoch, sequence, flags, time of the newest event in milliseconds since 1970.
const CHANNELS: TableDefinition<&str, (u64, u64, u64, u64, u64)> = TableDefinition::new("channels");
/// By the key: when it ends, in milliseconds since 1970.
const CLAIMS: TableDefinition<&str, u64> = TableDefinition::new("claims");
/// By the key: what is kept between events.
const VALUES: TableDefinition<&str, &[u8]> = TableDefinition::new("values");
/// By the key: how many bytes its value has, and when it ends, in milliseconds since 1970. It is read whole when the file is opened.
const VALUE_KEYS: TableDefinition<&str, (u64, u64)> = TableDefinition::new("value_keys");
/// The file itself.
const STORE: TableDefinition<&str, u64> = TableDefinition::new("store");

/// How the file was left.
const LEFT: &str = "left";
/// Every answered event is in it.
const LEFT_WHOLE: u64 = 0;
/// Events may have been seen that are not in it.
const LEFT_OPEN: u64 = 1;

const FINISHED: u64 = 1;
const BROKEN: u64 = 2;

/// What is known of a channel that is on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Meta {
    pub(crate) id: u64,
    /// The newest event.
    pub(crate) last: Cursor,
    pub(crate) finished: bool,
    /// True when events after the newest may have been seen: the next one begins an epoch.
    pub(crate) broken: bool,
    /// When the newest event was appended, in milliseconds since 1970.
    pub(crate) time_ms: u64,
    /// The oldest event that is on the disk, or before it.
    first: Cursor,
    /// True when no events are on the disk.
    empty: bool,
}

/// What one commit changes.
#[derive(Debug, Default)]
pub(crate) struct Change {
    pub(crate) appends: Vec<Append>,
    /// Keys and ends.
    pub(crate) claims: Vec<(Box<str>, u64)>,
    pub(crate) ended_claims: Vec<Arc<str>>,
    /// Values to put and, where there is none, to delete, in this order.
    pub(crate) values: Vec<(Arc<str>, Option<Put>)>,
    /// Channels that go as a whole.
    pub(crate) forgotten: Vec<ChannelName>,
    /// Channels whose events all go.
    pub(crate) emptied: Vec<ChannelName>,
    /// True when the commit must be on the disk when it is done, whatever the configuration.
    pub(crate) flush: bool,
    pub(crate) closes: bool,
}

#[derive(Debug)]
pub(crate) struct Put {
    pub(crate) record: Vec<u8>,
    pub(crate) end_ms: u64,
}

#[derive(Debug)]
pub(crate) struct Append {
    pub(crate) name: ChannelName,
    pub(crate) entries: Vec<Arc<Entry>>,
    /// The oldest event to keep.
    pub(crate) first: Cursor,
}

#[derive(Debug)]
pub(crate) struct Database {
    path: PathBuf,
    durable: bool,
    file: Mutex<Option<Arc<redb::Database>>>,
    channels: Mutex<HashMap<ChannelName, Meta>>,
}

impl Database {
    /// Opens or makes the file, and reads what it knows of channels; answers what else it holds, too.
    pub(crate) fn open(config: &EventsConfig) -> Result<(Self, Held), OpenError> {
        let path = config.path.clone();
        let shown = path.display().to_string();
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|source| OpenError::Folder { path: shown.clone(), source })?;
        }
        let open = || -> Result<_, redb::Error> {
            let file = redb::Database::create(&path)?;
            let begun = begin(&file, config.durable)?;
            Ok((file, begun))
        };
        let (file, (channels, held)) =
            open().map_err(|error| OpenError::Database { path: shown, source: Box::new(error) })?;
        let file = Mutex::new(Some(Arc::new(file)));
        Ok((Self { path, durable: config.durable, file, channels: Mutex::new(channels) }, held))
    }

    pub(crate) fn knows(&self, name: &ChannelName) -> bool {
        lock(&self.channels).contains_key(name)
    }

    pub(crate) fn meta(&self, name: &ChannelName) -> Option<Meta> {
        lock(&self.channels).get(name).copied()
    }

    /// How many channels are on the disk.
    pub(crate) fn len(&self) -> usize {
        lock(&self.channels).len()
    }

    /// Finished channels first, then the longest unused.
    pub(crate) fn least_needed(&self) -> Vec<ChannelName> {
        let mut all: Vec<(bool, u64, ChannelName)> = {
            let channels = lock(&self.channels);
            channels.iter().map(|(name, meta)| (!meta.finished, meta.time_ms, name.clone())).collect()
        };
        all.sort_unstable();
        all.into_iter().map(|(_, _, name)| name).collect()
    }

    /// Channels whose newest event is older than a time, finished ones and others; at most so many.
    pub(crate) fn older(&self, time_ms: u64, count_max: usize) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let channels = lock(&self.channels);
        let old = channels.iter().filter(|(_, meta)| meta.time_ms < time_ms && (meta.finished || !meta.empty));
        let (finished, others): (Vec<_>, Vec<_>) = old.take(count_max).partition(|(_, meta)| meta.finished);
        let names = |list: Vec<(&ChannelName, &Meta)>| list.into_iter().map(|(name, _)| name.clone()).collect();
        (names(finished), names(others))
    }

    /// All events of a channel that read back, in order.
    pub(crate) fn entries(&self, id: u64) -> Result<Vec<Entry>, Error> {
        let file = self.file().ok_or_else(super::closed)?;
        let read = || -> Result<Vec<Entry>, redb::Error> {
            let events = file.begin_read()?.open_table(EVENTS)?;
            let mut entries = Vec::new();
            for row in events.range((id, 0, 0)..=(id, u64::MAX, u64::MAX))? {
                let (key, value) = row?;
                let (_, epoch, seq) = key.value();
                match record::decode(id, Cursor { epoch, seq }, value.value()) {
                    Some(entry) => entries.push(entry),
                    None => tracing::error!(epoch, seq, "an event on the disk does not read back and is missing"),
                }
            }
            Ok(entries)
        };
        read().map_err(|error| Error::unavailable(format!("the channel store cannot be read: {error}"), RETRY_AFTER_MS))
    }

    /// The value under a key, if there is one that has not ended.
    pub(crate) fn value(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
        let file = self.file().ok_or_else(super::closed)?;
        let read = || -> Result<_, redb::Error> {
            let values = file.begin_read()?.open_table(VALUES)?;
            let row = values.get(key.as_str())?;
            Ok(row.map(|row| record::decode_value(key, row.value()).map(|(end_ms, value)| (end_ms, value.to_vec()))))
        };
        match read() {
            Ok(None) => Ok(None),
            Ok(Some(Some((end_ms, value)))) => Ok((end_ms > now_ms()).then_some(value)),
            Ok(Some(None)) => Err(Error::Other(format!("the value of {key} does not read back"))),
            Err(error) => Err(Error::unavailable(format!("the channel store cannot be read: {error}"), RETRY_AFTER_MS)),
        }
    }

    /// Makes a change: all of it or nothing.
    pub(crate) fn commit(&self, change: &Change) -> Result<(), redb::Error> {
        let file = match self.file() {
            Some(file) => file,
            // After a failure the file is opened anew.
            None => {
                let file = Arc::new(redb::Database::create(&self.path)?);
                *lock(&self.file) = Some(Arc::clone(&file));
                file
            }
        };
        let made = self.write(&file, change);
        if made.is_err() || change.closes {
            *lock(&self.file) = None;
        }
        let metas = made?;
        let mut channels = lock(&self.channels);
        for name in &change.forgotten {
            channels.remove(name);
        }
        channels.extend(metas);
        Ok(())
    }

    fn file(&self) -> Option<Arc<redb::Database>> {
        lock(&self.file).as_ref().map(Arc::clone)
    }

    fn write(&self, file: &redb::Database, change: &Change) -> Result<Vec<(ChannelName, Meta)>, redb::Error> {
        let mut transaction = file.begin_write()?;
        let durable = self.durable || change.flush || change.closes;
        transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
        let metas = self.change(&transaction, change)?;
        transaction.commit()?;
        Ok(metas)
    }

    fn change(&self, transaction: &WriteTransaction, change: &Change) -> Result<Vec<(ChannelName, Meta)>, redb::Error> {
        let mut known = lock(&self.channels).clone_of(change);
        let mut events = transaction.open_table(EVENTS)?;
        let mut channels = transaction.open_table(CHANNELS)?;
        for name in &change.forgotten {
            if let Some(meta) = known.remove(name) {
                events.retain_in((meta.id, 0, 0)..=(meta.id, u64::MAX, u64::MAX), |_, _| false)?;
                channels.remove(name.as_str())?;
            }
        }
        for name in &change.emptied {
            if let Some(meta) = known.get_mut(name) {
                events.retain_in((meta.id, 0, 0)..=(meta.id, u64::MAX, u64::MAX), |_, _| false)?;
                meta.empty = true;
            }
        }
        let mut next_id = None;
        for Append { name, entries, first } in &change.appends {
            let Some(newest) = entries.last() else { continue };
            let id = match known.get(name) {
                Some(meta) => meta.id,
                None => {
                    let mut store = transaction.open_table(STORE)?;
                    let id = match next_id {
                        Some(id) => id,
                        None => store.get("next_id")?.map_or(1, |id| id.value()),
                    };
                    next_id = Some(id + 1);
                    store.insert("next_id", id + 1)?;
                    id
                }
            };
            let on_disk = known.get(name).map_or(*first, |meta| meta.first);
            if on_disk < *first {
                events.retain_in((id, 0, 0)..(id, first.epoch, first.seq), |_, _| false)?;
            }
            for entry in entries {
                let Cursor { epoch, seq } = entry.cursor;
                events.insert((id, epoch, seq), record::encode(id, entry).as_slice())?;
            }
            let meta = Meta {
                id,
                last: newest.cursor,
                finished: newest.finishes,
                broken: false,
                time_ms: newest.time_ms,
                first: *first,
                empty: false,
            };
            channels.insert(name.as_str(), meta.row())?;
            known.insert(name.clone(), meta);
        }
        let mut claims = transaction.open_table(CLAIMS)?;
        for (key, end_ms) in &change.claims {
            claims.insert(&**key, end_ms)?;
        }
        for key in &change.ended_claims {
            claims.remove(&**key)?;
        }
        if !change.values.is_empty() {
            let (mut values, mut keys) = (transaction.open_table(VALUES)?, transaction.open_table(VALUE_KEYS)?);
            for (key, put) in &change.values {
                match put {
                    Some(Put { record, end_ms }) => {
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
        if change.closes {
            transaction.open_table(STORE)?.insert(LEFT, LEFT_WHOLE)?;
        }
        Ok(known.into_iter().collect())
    }
}

impl Meta {
    fn row(&self) -> (u64, u64, u64, u64, u64) {
        let flags = (u64::from(self.finished) * FINISHED) | (u64::from(self.broken) * BROKEN);
        (self.id, self.last.epoch, self.last.seq, flags, self.time_ms)
    }

    fn from_row((id, epoch, seq, flags, time_ms): (u64, u64, u64, u64, u64)) -> Self {
        Self {
            id,
            last: Cursor { epoch, seq },
            finished: flags & FINISHED != 0,
            broken: flags & BROKEN != 0,
            time_ms,
            first: Cursor::START,
            empty: false,
        }
    }
}

/// What a change needs to know.
trait CloneOf {
    fn clone_of(&self, change: &Change) -> HashMap<ChannelName, Meta>;
}

impl CloneOf for HashMap<ChannelName, Meta> {
    fn clone_of(&self, change: &Change) -> HashMap<ChannelName, Meta> {
        let appended = change.appends.iter().map(|append| &append.name);
        let names = appended.chain(&change.forgotten).chain(&change.emptied);
        names.filter_map(|name| Some((name.clone(), *self.get(name)?))).collect()
    }
}

/// A key, how many bytes its value has, and when it ends.
pub(crate) type KeyRow = (ChannelName, usize, u64);

/// What the file holds besides channels.
#[derive(Debug, Default)]
pub(crate) struct Held {
    /// Keys and ends.
    pub(crate) claims: Vec<(String, u64)>,
    pub(crate) values: Vec<KeyRow>,
}

/// Reads what is in the file, and says in it that it is open.
fn begin(file: &redb::Database, durable: bool) -> Result<(HashMap<ChannelName, Meta>, Held), redb::Error> {
    let transaction = file.begin_write()?;
    let (mut known, mut held) = (HashMap::new(), Held::default());
    {
        transaction.open_table(EVENTS)?;
        let mut store = transaction.open_table(STORE)?;
        let broken = store.get(LEFT)?.is_some_and(|left| left.value() == LEFT_OPEN);
        store.insert(LEFT, if durable { LEFT_WHOLE } else { LEFT_OPEN })?;
        let mut channels = transaction.open_table(CHANNELS)?;
        for row in channels.iter()? {
            let (name, row) = row?;
            match name.value().parse::<ChannelName>() {
                Ok(name) => drop(known.insert(name, Meta::from_row(row.value()))),
                Err(_) => tracing::error!("a channel on the disk has no proper name and is left alone"),
            }
        }
        if broken {
            for (name, meta) in &mut known {
                meta.broken = true;
                channels.insert(name.as_str(), meta.row())?;
            }
        }
        let now_ms = now_ms();
        let mut claims = transaction.open_table(CLAIMS)?;
        claims.retain(|_, end_ms| end_ms > now_ms)?;
        for row in claims.iter()? {
            let (key, end_ms) = row?;
            held.claims.push((key.value().to_owned(), end_ms.value()));
        }
        transaction.open_table(VALUES)?;
        for row in transaction.open_table(VALUE_KEYS)?.iter()? {
            let (key, row) = row?;
            let (bytes, end_ms) = row.value();
            match key.value().parse::<ChannelName>() {
                Ok(key) => held.values.push((key, usize::try_from(bytes).unwrap_or(usize::MAX), end_ms)),
                Err(_) => tracing::error!("a value on the disk has no proper key and is left alone"),
            }
        }
    }
    transaction.commit()?;
    Ok((known, held))
}
