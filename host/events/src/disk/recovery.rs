//! Recovery of the file after a failed commit: makes the file and memory agree again.
//!
//! Commits are numbered, and each writes its number into the file. After a failed commit it is unknown whether the file
//! contains it, and earlier commits that were not flushed may be lost too. So changes stay in memory until a flush has
//! succeeded. Recovery opens the file again, reads the number of its newest commit, writes the changes of later commits
//! again, and publishes or discards the events of the failed commit. Until then nothing else is written.

use std::sync::Arc;

use weir_core::channels::Entry;

use crate::clock::Clock;
use crate::disk::database::Database;
use crate::disk::tables::{Change, FileContent, KeyRow};
use crate::hub::Channel;

/// The most bytes of changes that wait in memory for a flush.
const UNFLUSHED_BYTES_MAX: usize = 16 << 20;
/// The shortest time between two attempts to recover the file, in milliseconds.
const RETRY_MIN_MS: u64 = 100;

#[derive(Debug)]
pub(crate) struct Recovery {
    clock: Arc<Clock>,
    /// The number of the newest commit that was attempted.
    number: u64,
    /// Changes that were committed and may not be on the disk, with their numbers.
    unflushed: Vec<(u64, Change)>,
    unflushed_bytes: usize,
    failed: Option<Failed>,
}

/// A failed commit.
#[derive(Debug)]
struct Failed {
    number: u64,
    /// Its events, which may or may not be in the file.
    appends: Vec<(Arc<Channel>, Vec<Arc<Entry>>)>,
    /// When the next attempt is due, by the store clock.
    retry_at_ms: u64,
}

impl Recovery {
    /// `number` is that of the newest commit in the file.
    pub(crate) fn new(number: u64, clock: Arc<Clock>) -> Self {
        Self { clock, number, unflushed: Vec::new(), unflushed_bytes: 0, failed: None }
    }

    /// True when there are changes that may not be on the disk.
    pub(crate) fn unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// True when a commit failed and the file is not recovered yet.
    pub(crate) fn needed(&self) -> bool {
        self.failed.is_some()
    }

    /// True when the next attempt is due.
    pub(crate) fn due(&self) -> bool {
        self.failed.as_ref().is_none_or(|failed| failed.retry_at_ms <= self.clock.now_ms())
    }

    pub(crate) fn commit(&mut self, database: &Database, mut change: Change) -> Result<(), redb::Error> {
        let bytes = change.bytes();
        change.flush |= self.unflushed_bytes.saturating_add(bytes) > UNFLUSHED_BYTES_MAX;
        self.number += 1;
        match database.commit(&change, self.number, &self.unflushed) {
            Ok(true) => self.flushed(),
            Ok(false) => {
                self.unflushed.push((self.number, change));
                self.unflushed_bytes += bytes;
            }
            Err(error) => {
                let retry_at_ms = self.clock.now_ms();
                self.failed = Some(Failed { number: self.number, appends: Vec::new(), retry_at_ms });
                return Err(error);
            }
        }
        Ok(())
    }

    /// Records events of the commit that has just failed: recovery publishes or discards them.
    pub(crate) fn undecided(&mut self, channel: Arc<Channel>, entries: Vec<Arc<Entry>>) {
        match &mut self.failed {
            Some(failed) => failed.appends.push((channel, entries)),
            None => channel.discard(&entries),
        }
    }

    /// Tries to recover the file; returns the keys of its values.
    pub(crate) fn recover(
        &mut self,
        database: &Database,
        ended_claims: &[Arc<str>],
    ) -> Result<Vec<KeyRow>, redb::Error> {
        let began_ms = self.clock.now_ms();
        match database.recover(&self.unflushed, ended_claims) {
            Ok(FileContent { commit, values, .. }) => {
                if let Some(failed) = self.failed.take() {
                    let settle = if commit >= failed.number { Channel::publish } else { Channel::discard };
                    failed.appends.iter().for_each(|(channel, entries)| settle(channel, entries));
                }
                self.flushed();
                Ok(values)
            }
            Err(error) => {
                if let Some(failed) = &mut self.failed {
                    // Opening a large file takes long. The next attempt waits at least as long, to leave the disk to
                    // other programs.
                    let now_ms = self.clock.now_ms();
                    failed.retry_at_ms = now_ms + RETRY_MIN_MS.max(now_ms.saturating_sub(began_ms));
                }
                Err(error)
            }
        }
    }

    fn flushed(&mut self) {
        self.unflushed.clear();
        self.unflushed_bytes = 0;
    }
}
