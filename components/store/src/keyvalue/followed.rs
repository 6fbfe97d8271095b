//! The channels that this instance follows.
//!
//! A channel is copied when its first follower comes, and read again at intervals, which grow while nothing is appended. All followers
//! of a channel share the copy.

use std::cell::RefCell;
use std::collections::BTreeMap;

use weir_core::channels::{ChannelName, CloseReason, Cursor, Delivery, Log, Subscriber};

use super::{
    format,
    host::Host,
    names,
    records::{Records, WHOLE},
};
use crate::{Failure, OUTBOX_BYTES_MAX};

/// Most channels with followers.
const CHANNELS_MAX: usize = 1000;
const INTERVAL_MS_MIN: u64 = 100;
const INTERVAL_MS_MAX: u64 = 1000;
/// How long a channel may be unreadable before its followers are closed, in milliseconds. They may follow again.
const UNREADABLE_MS_MAX: u64 = 10_000;

#[derive(Default)]
pub(super) struct Followed {
    by_name: BTreeMap<ChannelName, Copied>,
    last_id: u64,
}

/// The copy of a channel, and its followers.
struct Copied {
    log: Log,
    subscribers: Vec<(u64, Subscriber)>,
    interval_ms: u64,
    read_at_ms: u64,
    /// Since when it cannot be read.
    unreadable_since_ms: Option<u64>,
}

impl Followed {
    /// Registers a follower of a channel that has just been read; `None` if too many channels are followed.
    pub(super) fn follow(
        &mut self,
        channel: &ChannelName,
        after: Cursor,
        log: Option<Log>,
        now_ms: u64,
    ) -> Option<u64> {
        if !self.by_name.contains_key(channel) {
            if self.by_name.len() >= CHANNELS_MAX {
                return None;
            }
            self.by_name.insert(channel.clone(), Copied::new(now_ms));
        }
        let copied = self.by_name.get_mut(channel)?;
        copied.update(log, now_ms);
        let subscriber = Subscriber::new(after, OUTBOX_BYTES_MAX, &copied.log);
        self.last_id += 1;
        copied.subscribers.push((self.last_id, subscriber));
        Some(self.last_id)
    }

    pub(super) fn poll(&mut self, channel: &ChannelName, follower: u64) -> (Vec<Delivery>, bool) {
        let Some(Copied { log, subscribers, .. }) = self.by_name.get_mut(channel) else { return (Vec::new(), true) };
        let Some((_, subscriber)) = subscribers.iter_mut().find(|(other, _)| *other == follower) else {
            return (Vec::new(), true);
        };
        let deliveries = std::iter::from_fn(|| subscriber.poll(log)).collect();
        (deliveries, subscriber.ended())
    }

    pub(super) fn unfollow(&mut self, channel: &ChannelName, follower: u64) {
        let Some(copied) = self.by_name.get_mut(channel) else { return };
        copied.subscribers.retain(|(other, _)| *other != follower);
        if copied.subscribers.is_empty() {
            self.by_name.remove(channel);
        }
    }

    pub(super) fn followers(&self) -> usize {
        self.by_name.values().map(|copied| copied.subscribers.len()).sum()
    }

    pub(super) fn is_followed(&self, channel: &ChannelName) -> bool {
        self.by_name.contains_key(channel)
    }

    /// Lets a channel be read at the next poll, because this instance has appended to it.
    pub(super) fn expect_events(&mut self, channel: &ChannelName) {
        if let Some(copied) = self.by_name.get_mut(channel) {
            copied.read_at_ms = 0;
        }
    }

    /// The newest cursor of a channel that is to be read now, and whether it is finished.
    fn due(&self, channel: &ChannelName, now_ms: u64) -> Option<(Cursor, bool)> {
        let copied = self.by_name.get(channel).filter(|copied| now_ms >= copied.read_at_ms)?;
        Some((copied.log.last(), copied.log.finished()))
    }
}

/// Reads a channel that is followed, if it is time.
pub(super) fn refresh<H: Host>(followed: &RefCell<Followed>, records: &Records<H>, channel: &ChannelName) {
    let now_ms = records.host.clock_ms();
    let Some(newest) = followed.borrow().due(channel, now_ms) else { return };
    let key = names::channel(channel);
    let read = records.get(&key).and_then(|bytes| {
        // Bytes without a newest cursor are damaged, which is found by decoding them.
        let is_unchanged = bytes.as_ref().is_some_and(|bytes| format::newest(bytes) == Ok(newest));
        match is_unchanged {
            true => Ok(None),
            false => records.decoded(&key, bytes, |bytes| format::decode_log(bytes, WHOLE)).map(Some),
        }
    });
    let mut followed = followed.borrow_mut();
    let Some(copied) = followed.by_name.get_mut(channel) else { return };
    match read {
        Ok(Some(log)) => copied.update(log, now_ms),
        Ok(None) => copied.wait_longer(now_ms),
        Err(failure) => copied.fail(&failure, now_ms),
    }
}

impl Copied {
    fn new(now_ms: u64) -> Self {
        let (log, read_at_ms) = (Log::new(WHOLE, Cursor::START), now_ms);
        Self { log, subscribers: Vec::new(), interval_ms: INTERVAL_MS_MIN, read_at_ms, unreadable_since_ms: None }
    }

    /// Takes over what was read.
    fn update(&mut self, log: Option<Log>, now_ms: u64) {
        let before = (self.log.last(), self.log.finished());
        match log {
            // The bucket has lost the channel, or an earlier state of it was restored: cursors may name other events.
            None if before.0 != Cursor::START => self.replace(Log::new(WHOLE, Cursor::START)),
            Some(log) if log.last() < before.0 => self.replace(log),
            Some(log) => self.advance(&log),
            None => {}
        }
        match (self.log.last(), self.log.finished()) == before {
            true => self.wait_longer(now_ms),
            false => self.wait(INTERVAL_MS_MIN, now_ms),
        }
    }

    fn advance(&mut self, log: &Log) {
        for entry in log.all_after(self.log.last()) {
            self.log.push(entry.clone());
            for (_, subscriber) in &mut self.subscribers {
                subscriber.handle_appended(entry);
            }
        }
        self.log.skip_to(log.last());
        if log.finished() {
            self.log.finish();
        }
    }

    fn replace(&mut self, log: Log) {
        self.log = log;
        self.close();
    }

    fn close(&mut self) {
        for (_, subscriber) in &mut self.subscribers {
            subscriber.close(CloseReason::Lost);
        }
    }

    fn fail(&mut self, failure: &Failure, now_ms: u64) {
        let since_ms = *self.unreadable_since_ms.get_or_insert(now_ms);
        let is_temporary = matches!(failure, Failure::Unavailable(_));
        if !is_temporary || now_ms.saturating_sub(since_ms) >= UNREADABLE_MS_MAX {
            self.close();
        }
        self.read_at_ms = now_ms.saturating_add(INTERVAL_MS_MAX);
    }

    fn wait_longer(&mut self, now_ms: u64) {
        self.wait((self.interval_ms * 2).min(INTERVAL_MS_MAX), now_ms);
    }

    fn wait(&mut self, interval_ms: u64, now_ms: u64) {
        self.interval_ms = interval_ms;
        self.read_at_ms = now_ms.saturating_add(interval_ms);
        self.unreadable_since_ms = None;
    }
}
