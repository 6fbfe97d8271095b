//! The index of the values on the disk. Only the writer changes it, together with the change that it is about to
//! commit. The writer reverts its changes when the commit fails, and replaces the whole index when the file was
//! recovered.

use std::sync::{Arc, Mutex};

use weir_core::channels::{ChannelName, Value, Values};

use crate::clock::Clock;
use crate::config::EventsConfig;
use crate::disk::tables::{Change, KeyRow, Put};
use crate::error::{Error, lock};

#[derive(Debug)]
pub(crate) struct StoredValues {
    clock: Arc<Clock>,
    config: Arc<EventsConfig>,
    values: Mutex<Values<()>>,
}

/// The previous entries of the keys that a commit changes, in the order of the changes.
#[derive(Debug, Default)]
pub(crate) struct Undo(Vec<(Arc<str>, Option<Value<()>>)>);

impl StoredValues {
    pub(crate) fn new(config: &Arc<EventsConfig>, rows: &[KeyRow], clock: Arc<Clock>) -> Self {
        let values = Mutex::new(Values::new(config.state_bytes_max, config.user_percent_max));
        let stored = Self { clock, config: Arc::clone(config), values };
        stored.replace(rows);
        stored
    }

    /// Replaces all keys by those of the file.
    pub(crate) fn replace(&self, rows: &[KeyRow]) {
        let mut values = Values::new(self.config.state_bytes_max, self.config.user_percent_max);
        for KeyRow { key, bytes, end_ms, user } in rows {
            values.restore(key, (), *bytes, *end_ms, user.as_deref());
        }
        *lock(&self.values) = values;
    }

    pub(crate) fn has(&self, key: &ChannelName) -> bool {
        lock(&self.values).value(key, self.clock.now_ms()).is_some()
    }

    pub(crate) fn keys(&self, kind: &str, after: &str, limit: usize) -> Vec<String> {
        let keys = lock(&self.values).keys(kind, after, limit, self.clock.now_ms());
        keys.iter().map(ToString::to_string).collect()
    }

    pub(crate) fn count(&self, kind: &str) -> usize {
        lock(&self.values).count(kind)
    }

    /// The bytes of all values, bookkeeping included.
    pub(crate) fn bytes(&self) -> usize {
        lock(&self.values).bytes().total()
    }

    /// The bytes of all values of a user.
    #[cfg(test)]
    pub(crate) fn bytes_of(&self, user: &str) -> usize {
        lock(&self.values).bytes().of(Some(user))
    }

    /// Adds a value to a change, and removes expired values first, to make room.
    pub(crate) fn put(&self, change: &mut Change, undo: &mut Undo, key: &ChannelName, put: Put) -> Result<(), Error> {
        self.expire(change, undo, self.clock.now_ms());
        let before = lock(&self.values).put(key, (), put.record.len(), put.end_ms, put.user.as_deref());
        let before = before.map_err(Error::state)?;
        let key: Arc<str> = key.as_str().into();
        undo.0.push((Arc::clone(&key), before));
        change.values.push((key, Some(put)));
        Ok(())
    }

    pub(crate) fn delete(&self, change: &mut Change, undo: &mut Undo, key: &ChannelName) {
        // An unknown key is deleted too: a put that failed may be on the disk nevertheless.
        let before = lock(&self.values).delete(key);
        let key: Arc<str> = key.as_str().into();
        undo.0.push((Arc::clone(&key), before));
        change.values.push((key, None));
    }

    pub(crate) fn expire(&self, change: &mut Change, undo: &mut Undo, now_ms: u64) {
        for (key, before) in lock(&self.values).expire(now_ms) {
            undo.0.push((Arc::clone(&key), Some(before)));
            change.values.push((key, None));
        }
    }

    /// Reverts changes that could not be committed.
    pub(crate) fn undo(&self, undo: Undo) {
        let mut values = lock(&self.values);
        for (key, before) in undo.0.into_iter().rev() {
            values.set(&key, before);
        }
    }
}
