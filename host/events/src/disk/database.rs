//! The file, and its metadata in memory. After a failed commit the two may differ; [`Database::recover`] makes them
//! agree.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use redb::{Durability, ReadableDatabase};
use weir_core::channels::{ChannelName, Cursor, Entry, Log, eviction_order};

use crate::clock::Clock;
use crate::config::EventsConfig;
use crate::disk::record;
use crate::disk::storage::Opener;
use crate::disk::tables::{self, Change, ChannelMeta, ChannelMetas, EVENTS, FileContent, VALUES};
use crate::error::{Error, OpenError, lock};

/// When a publisher should retry after the file could not be written.
pub(crate) const RETRY_AFTER_MS: u64 = 1_000;

#[derive(Debug)]
pub(crate) struct Database {
    opener: Opener,
    durable: bool,
    clock: Arc<Clock>,
    /// None while the file cannot be opened, and after it is closed.
    file: RwLock<Option<redb::Database>>,
    index: Mutex<FileIndex>,
}

/// The metadata of the file in memory.
#[derive(Debug, Default)]
struct FileIndex {
    channels: ChannelMetas,
    /// Channels that the current commit removes. They are not read from the file: a reader could otherwise load one
    /// into memory that is not on the disk after the commit.
    removals: HashSet<ChannelName>,
    /// How many of the channels are owner records.
    records: usize,
    /// The number of channels of each user, owner records not counted.
    users: HashMap<Arc<str>, usize>,
    /// The number of the next new channel. It never decreases, even if a commit fails.
    next_id: u64,
    /// Channels and keys whose content in the file may differ from what was acknowledged: they are not read until the
    /// file is recovered.
    unsettled: HashSet<Box<str>>,
}

impl FileIndex {
    fn replace(&mut self, channels: ChannelMetas) {
        self.channels.clear();
        self.users.clear();
        self.records = 0;
        self.extend(channels);
    }

    fn remove(&mut self, name: &ChannelName) {
        let Some(meta) = self.channels.remove(name) else { return };
        self.records -= usize::from(name.is_owner_record());
        if let Some(user) = meta.user
            && let Some(count) = self.users.get_mut(&user)
        {
            *count -= 1;
            if *count == 0 {
                self.users.remove(&user);
            }
        }
    }

    fn extend(&mut self, channels: ChannelMetas) {
        for (name, meta) in channels {
            let is_record = name.is_owner_record();
            let user = meta.user.clone();
            // A known channel keeps its user, so its count does not change.
            if self.channels.insert(name, meta).is_none() {
                self.records += usize::from(is_record);
                if let Some(user) = user {
                    *self.users.entry(user).or_default() += 1;
                }
            }
        }
    }
}

impl Database {
    /// Opens or creates the file, and reads the metadata of channels; returns its other content as well.
    pub(crate) fn open(
        config: &EventsConfig,
        opener: Opener,
        clock: Arc<Clock>,
    ) -> Result<(Self, FileContent), OpenError> {
        let path = || config.path.display().to_string();
        if let Some(folder) = config.path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            std::fs::create_dir_all(folder).map_err(|source| OpenError::Folder { path: path(), source })?;
        }
        let open = || -> Result<_, redb::Error> {
            let file = opener.open()?;
            let transaction = file.begin_write()?;
            let content = tables::begin(&transaction, config.durable, &clock)?;
            transaction.commit()?;
            Ok((file, content))
        };
        let (file, mut content) =
            open().map_err(|error| OpenError::Database { path: path(), source: Box::new(error) })?;
        let mut index = FileIndex { next_id: content.next_id, ..FileIndex::default() };
        index.replace(std::mem::take(&mut content.channels));
        let (file, index) = (RwLock::new(Some(file)), Mutex::new(index));
        Ok((Self { opener, durable: config.durable, clock, file, index }, content))
    }

    pub(crate) fn contains(&self, name: &ChannelName) -> bool {
        let index = lock(&self.index);
        index.channels.contains_key(name) && !index.removals.contains(name)
    }

    /// Records whether the next commit removes a channel.
    pub(crate) fn mark_removal(&self, name: &ChannelName, is_removed: bool) {
        let mut index = lock(&self.index);
        if is_removed {
            index.removals.insert(name.clone());
        } else {
            index.removals.remove(name);
        }
    }

    /// The number of owner records on the disk if `records` is true, otherwise that of all other channels.
    pub(crate) fn count(&self, records: bool) -> usize {
        let index = lock(&self.index);
        if records { index.records } else { index.channels.len() - index.records }
    }

    /// The number of channels that count towards the share of a user.
    pub(crate) fn count_of(&self, user: &str) -> usize {
        lock(&self.index).users.get(user).copied().unwrap_or(0)
    }

    /// The user whose share a channel counts towards.
    pub(crate) fn user(&self, name: &ChannelName) -> Option<Arc<str>> {
        lock(&self.index).channels.get(name).and_then(|meta| meta.user.clone())
    }

    /// Channels, owner records excluded, of one user or of all, in the order of eviction: those of the user that has
    /// the most, finished ones first, then the ones whose newest event is the oldest.
    pub(crate) fn least_needed(&self, user: Option<&str>) -> Vec<ChannelName> {
        let index = lock(&self.index);
        let channels = index
            .channels
            .iter()
            .filter(|(name, meta)| !name.is_owner_record() && (user.is_none() || meta.user.as_deref() == user));
        let ranked = channels.map(|(name, meta)| (meta.user.clone(), (!meta.finished, meta.stored_ms), name.clone()));
        eviction_order(ranked, |user| user.and_then(|user| index.users.get(user)).copied().unwrap_or(0))
    }

    /// Owner records that were written before a time and whose channels are not on the disk or have no events there,
    /// oldest first; if `missing` is true, only those whose channels are not on the disk.
    pub(crate) fn records_without_events(&self, stored_ms: u64, missing: bool) -> Vec<ChannelName> {
        let index = lock(&self.index);
        let old = index.channels.iter().filter(|(name, meta)| name.is_owner_record() && meta.stored_ms < stored_ms);
        let orphans = old.filter(|(name, _)| {
            let owned = name.owned().and_then(|owned| index.channels.get(&owned));
            owned.is_none_or(|meta| meta.empty && !missing)
        });
        let mut orphans: Vec<_> = orphans.map(|(name, meta)| (meta.stored_ms, name.clone())).collect();
        orphans.sort_unstable();
        orphans.into_iter().map(|(_, name)| name).collect()
    }

    /// Channels whose newest event was stored before a time, as (finished ones, others); owner records excluded, at
    /// most `count_max`.
    pub(crate) fn stored_before(&self, stored_ms: u64, count_max: usize) -> (Vec<ChannelName>, Vec<ChannelName>) {
        let channels = &lock(&self.index).channels;
        let is_old = |meta: &ChannelMeta| meta.stored_ms < stored_ms && (meta.finished || !meta.empty);
        let old = channels.iter().filter(|(name, meta)| !name.is_owner_record() && is_old(meta));
        let (finished, others): (Vec<_>, Vec<_>) = old.take(count_max).partition(|(_, meta)| meta.finished);
        let names = |list: Vec<(&ChannelName, &ChannelMeta)>| list.into_iter().map(|(name, _)| name.clone()).collect();
        (names(finished), names(others))
    }

    /// A channel and all its intact events; none if it is not on the disk.
    pub(crate) fn load(
        &self,
        name: &ChannelName,
        empty: impl Fn(Cursor) -> Log,
    ) -> Result<Option<(ChannelMeta, Log)>, Error> {
        let (file, meta) = self.settled(name)?;
        let (Some(file), Some(meta)) = (file.as_ref(), meta) else { return Ok(None) };
        let read = || -> Result<Vec<Entry>, redb::Error> {
            let events = file.begin_read()?.open_table(EVENTS)?;
            let mut entries = Vec::new();
            for row in events.range((meta.id, 0, 0)..=(meta.id, u64::MAX, u64::MAX))? {
                let (key, value) = row?;
                let (id, epoch, seq) = key.value();
                match record::decode(id, name, Cursor { epoch, seq }, value.value()) {
                    Some(entry) => entries.push(entry),
                    None => tracing::error!(epoch, seq, "an event on the disk is damaged and is treated as missing"),
                }
            }
            Ok(entries)
        };
        let entries = read().map_err(|error| unreadable(&error))?;
        let mut log = empty(entries.first().map_or(meta.last, |first| first.cursor.previous()));
        for entry in entries {
            log.push(Arc::new(entry));
        }
        // If the newest events are damaged, the next event still comes after them, and readers see a gap.
        log.skip_to(meta.last);
        if meta.finished {
            log.finish();
        }
        Ok(Some((meta, log)))
    }

    /// The value under a key, if there is one that has not expired.
    pub(crate) fn value(&self, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
        let (file, _) = self.settled(key)?;
        let Some(file) = file.as_ref() else { return Err(closed()) };
        let read = || -> Result<_, redb::Error> {
            let values = file.begin_read()?.open_table(VALUES)?;
            let row = values.get(key.as_str())?;
            Ok(row.map(|row| record::decode_value(key, row.value()).map(|(end_ms, value)| (end_ms, value.to_vec()))))
        };
        match read() {
            Ok(None) => Ok(None),
            Ok(Some(Some((end_ms, value)))) => Ok((end_ms > self.clock.now_ms()).then_some(value)),
            Ok(Some(None)) => Err(Error::Other(format!("the stored value of {key} is damaged"))),
            Err(error) => Err(unreadable(&error)),
        }
    }

    /// Commits a change atomically, under this number. `unflushed` are earlier changes that may not be on the disk.
    /// Returns true when this change and all earlier ones are on the disk.
    pub(crate) fn commit(
        &self,
        change: &Change,
        number: u64,
        unflushed: &[(u64, Change)],
    ) -> Result<bool, redb::Error> {
        let durable = self.durable || change.flush || change.closes || change.epoch_max.is_some();
        let write = || -> Result<_, redb::Error> {
            let file = self.reading();
            let file = file.as_ref().ok_or(redb::Error::DatabaseClosed)?;
            let mut transaction = file.begin_write()?;
            transaction.set_durability(if durable { Durability::Immediate } else { Durability::None })?;
            let (mut index, mut next_id) = self.metas_of(change);
            tables::apply(&transaction, change, &mut index, &mut next_id)?;
            // Set before the commit is attempted, so that a number that may be in the file is not assigned again.
            lock(&self.index).next_id = next_id;
            tables::stamp(&transaction, number, self.clock.moment())?;
            transaction.commit()?;
            Ok(index)
        };
        match write() {
            Ok(changed) => {
                let mut index = lock(&self.index);
                index.removals.clear();
                for name in &change.forgotten {
                    index.remove(name);
                }
                index.extend(changed);
            }
            Err(error) => {
                lock(&self.index).removals.clear();
                self.unsettle(unflushed.iter().map(|(_, change)| change).chain([change]));
                self.open_to_read();
                return Err(error);
            }
        }
        if let Some(epoch_max) = change.epoch_max {
            self.clock.epochs_reserved(epoch_max);
        }
        if change.closes
            && let Some(Err(error)) = self.writing().take().map(redb::Database::close)
        {
            // The commit is on the disk; a clean close only makes the next start faster.
            tracing::warn!(%error, "the channel store was not closed cleanly");
        }
        Ok(durable)
    }

    /// Makes the file contain all acknowledged changes after a failed commit: opens it again, so that its last commit
    /// is the one on the disk, writes those of `changes` (with the numbers of their commits) that it does not contain,
    /// and removes `ended_claims`. Then the metadata in memory is replaced by that of the file. Returns the content of
    /// the file; [`FileContent::commit`] is its newest commit.
    pub(crate) fn recover(
        &self,
        changes: &[(u64, Change)],
        ended_claims: &[Arc<str>],
    ) -> Result<FileContent, redb::Error> {
        let mut file = self.writing();
        // The file is locked until it is closed.
        drop(file.take());
        let recover = || -> Result<_, redb::Error> {
            let opened = self.opener.open()?;
            let mut transaction = opened.begin_write()?;
            transaction.set_durability(Durability::Immediate)?;
            let FileContent { mut commit, mut channels, mut next_id, .. } = tables::read(&transaction)?;
            next_id = next_id.max(lock(&self.index).next_id);
            for (number, change) in changes {
                if *number > commit {
                    tables::apply(&transaction, change, &mut channels, &mut next_id)?;
                    commit = *number;
                }
            }
            lock(&self.index).next_id = next_id;
            let ended = Change { ended_claims: ended_claims.to_vec(), ..Change::default() };
            tables::apply(&transaction, &ended, &mut channels, &mut next_id)?;
            // The file may be new, if the old one was removed.
            tables::mark_open(&transaction, self.durable, &self.clock)?;
            // No new number: if this fails, the next attempt must see whether the failed commit is in the file.
            tables::stamp(&transaction, commit, self.clock.moment())?;
            let content = tables::read(&transaction)?;
            transaction.commit()?;
            Ok((opened, FileContent { channels, ..content }))
        };
        match recover() {
            Ok((opened, mut content)) => {
                let mut index = lock(&self.index);
                index.replace(std::mem::take(&mut content.channels));
                index.unsettled.clear();
                *file = Some(opened);
                Ok(content)
            }
            Err(error) => {
                drop(file);
                self.unsettle(changes.iter().map(|(_, change)| change));
                self.open_to_read();
                Err(error)
            }
        }
    }

    /// The metadata that a change needs.
    fn metas_of(&self, change: &Change) -> (ChannelMetas, u64) {
        let appended = change.appends.iter().map(|append| &append.name);
        let names = appended.chain(&change.forgotten).chain(&change.emptied);
        let index = lock(&self.index);
        let metas = names.filter_map(|name| Some((name.clone(), index.channels.get(name)?.clone()))).collect();
        (metas, index.next_id)
    }

    /// Records that these changes may not be in the file.
    fn unsettle<'a>(&self, changes: impl IntoIterator<Item = &'a Change>) {
        let mut index = lock(&self.index);
        for change in changes {
            let appended = change.appends.iter().map(|append| &append.name);
            let channels = appended.chain(&change.forgotten).chain(&change.emptied).map(ChannelName::as_str);
            let keys = change.values.iter().map(|(key, _)| &**key);
            index.unsettled.extend(channels.chain(keys).map(Box::from));
        }
    }

    /// Tries to open the file again, so that settled channels and keys can be read until it is recovered.
    fn open_to_read(&self) {
        let mut file = self.writing();
        drop(file.take());
        *file = self.opener.open().ok();
    }

    /// The file, and the metadata of a channel or key in it, unless they may differ.
    fn settled(
        &self,
        name: &ChannelName,
    ) -> Result<(RwLockReadGuard<'_, Option<redb::Database>>, Option<ChannelMeta>), Error> {
        let file = self.reading();
        let index = lock(&self.index);
        if file.is_none() || index.unsettled.contains(name.as_str()) {
            return Err(closed());
        }
        Ok((file, index.channels.get(name).filter(|_| !index.removals.contains(name)).cloned()))
    }

    fn reading(&self) -> RwLockReadGuard<'_, Option<redb::Database>> {
        self.file.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> RwLockWriteGuard<'_, Option<redb::Database>> {
        self.file.write().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unreadable(error: &redb::Error) -> Error {
    Error::unavailable(format!("the channel store cannot be read: {error}"), RETRY_AFTER_MS)
}

pub(crate) fn closed() -> Error {
    Error::unavailable("the channel store is closed", RETRY_AFTER_MS)
}
