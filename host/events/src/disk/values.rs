//! Which keys have a value on the disk. Only the writer changes this, with what it is about to commit. It restores what cannot be
//! committed, and reads all of it again when the file was recovered.

use std::sync::{Arc, Mutex};

use weir_core::channels::{ChannelName, Value, Values};

use crate::clock::Clock;
use crate::disk::tables::{Change, KeyRow, Put};
use crate::error::{Error, lock};

#[derive(Debug)]
pub(crate) struct Kept {
    clock: Arc<Clock>,
    bytes_max: usize,
    values: Mutex<Values<()>>,
}

/// What keys held before a commit, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Undo(Vec<(Arc<str>, Option<Value<()>>)>);

impl Kept {
    pub(crate) fn new(bytes_max: usize, rows: &[KeyRow], clock: Arc<Clock>) -> Self {
        let kept = Self { clock, bytes_max, values: Mutex::new(Values::new(bytes_max)) };
        kept.replace(rows);
        kept
    }

    /// Holds what the file has, and nothing else.
    pub(crate) fn replace(&self, rows: &[KeyRow]) {
        let mut values = Values::new(self.bytes_max);
        rows.iter().for_each(|(key, bytes, end_ms)| values.restore(key, (), *bytes, *end_ms));
        *lock(&self.values) = values;
    }

    pub(crate) fn has(&self, key: &ChannelName) -> bool {
        lock(&self.values).value(key, self.clock.now_ms()).is_some()
    }

    pub(crate) fn keys(&self, kind: &str, after: &str, limit: usize) -> Vec<String> {
        let keys = lock(&self.values).keys(kind, after, limit, self.clock.now_ms());
        keys.iter().map(ToString::to_string).collect()
    }

    /// Adds a value to a change, and lets go of what has ended, so that it fits if it can.
    pub(crate) fn put(
        &self,
        change: &mut Change,
        undo: &mut Undo,
        key: &ChannelName,
        record: Vec<u8>,
        end_ms: u64,
    ) -> Result<(), Error> {
        self.expire(change, undo, self.clock.now_ms());
        let before = lock(&self.values).put(key, (), record.len(), end_ms)?;
        let key: Arc<str> = key.as_str().into();
        undo.0.push((Arc::clone(&key), before));
        change.values.push((key, Some(Put { record, end_ms })));
        Ok(())
    }

    pub(crate) fn delete(&self, change: &mut Change, undo: &mut Undo, key: &ChannelName) {
        // Also where it is not known of: a put that failed may be on the disk all the same.
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

    /// Takes back what could not be committed.
    pub(crate) fn undo(&self, undo: Undo) {
        let mut values = lock(&self.values);
        for (key, before) in undo.0.into_iter().rev() {
            values.set(&key, before);
        }
    }
}
