//! Making the file and memory one again after a failed commit.
//!
//! Commits are numbered, and each writes its number into the file. After one has failed, nobody knows whether it is in the file,
//! and those before it that were not flushed may be lost with it. So they are kept in memory until a flush has succeeded, and
//! the file is opened anew: the number that it has says what is in it, the rest is written again, and the events of the failed
//! commit are published or given up. In between nothing else is written.

use std::sync::Arc;

use weir_core::channels::Entry;

use crate::clock::Clock;
use crate::disk::database::Database;
use crate::disk::tables::{Change, Held, KeyRow};
use crate::disk::writer::{give_up, publish};
use crate::hub::Channel;

/// The most bytes of changes that are kept until they are flushed.
const UNFLUSHED_BYTES_MAX: usize = 16 << 20;
/// The shortest time between two attempts to recover the file, in milliseconds.
const RETRY_MIN_MS: u64 = 100;

#[derive(Debug)]
pub(crate) struct Recovery {
    clock: Arc<Clock>,
    /// The number of the newest commit that was tried.
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
    /// Its events, of which nobody knows whether they are in the file.
    appends: Vec<(Arc<Channel>, Vec<Arc<Entry>>)>,
    /// When the next attempt is due, by the store clock.
    retry_at_ms: u64,
}

impl Recovery {
    /// The newest commit of the file has this number.
    pub(crate) fn new(number: u64, clock: Arc<Clock>) -> Self {
        Self { clock, number, unflushed: Vec::new(), unflushed_bytes: 0, failed: None }
    }

    /// True when there are changes that may not be on the disk.
    pub(crate) fn unflushed(&self) -> bool {
        !self.unflushed.is_empty()
    }

    /// True when a commit failed, and the file was not recovered since.
    pub(crate) fn needed(&self) -> bool {
        self.failed.is_some()
    }

    /// True when it is time for the next attempt.
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

    /// Takes note of events of the commit that has just failed.
    pub(crate) fn undecided(&mut self, channel: Arc<Channel>, entries: Vec<Arc<Entry>>) {
        match &mut self.failed {
            Some(failed) => failed.appends.push((channel, entries)),
            None => give_up(&channel, &entries),
        }
    }

    /// Tries to recover the file; returns the keys of values that it has.
    pub(crate) fn recover(
        &mut self,
        database: &Database,
        ended_claims: &[Arc<str>],
    ) -> Result<Vec<KeyRow>, redb::Error> {
        let began_ms = self.clock.now_ms();
        match database.recover(&self.unflushed, ended_claims) {
            Ok(Held { commit, values, .. }) => {
                if let Some(failed) = self.failed.take() {
                    let settle = if commit >= failed.number { publish } else { give_up };
                    failed.appends.iter().for_each(|(channel, entries)| settle(channel, entries));
                }
                self.flushed();
                Ok(values)
            }
            Err(error) => {
                if let Some(failed) = &mut self.failed {
                    // Opening a large file takes its time; the disk is left to others as long.
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
