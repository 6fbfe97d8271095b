//! The channels, of a bounded number.

use std::collections::BTreeMap;

use weir_core::channels::{ChannelName, Cursor, Log, Retention, Subscriber};

/// A channel and its subscribers, by their ids.
pub(crate) struct Channel {
    pub(crate) log: Log,
    pub(crate) subscribers: Vec<(u64, Subscriber)>,
    /// The number of the last use, for the order of eviction.
    used: u64,
}

/// The channels by name.
#[derive(Default)]
pub(crate) struct Channels {
    by_name: BTreeMap<ChannelName, Channel>,
    uses: u64,
    epoch: u64,
}

impl Channels {
    /// A log without events, whose cursors differ from those of every earlier log.
    pub(crate) fn empty_log(&mut self, now_ms: u64) -> Log {
        self.epoch = now_ms.max(self.epoch + 1);
        Log::new(Retention::default(), Cursor::new(self.epoch, 0))
    }

    /// The channel of a name, if it exists.
    pub(crate) fn get(&mut self, name: &ChannelName) -> Option<&mut Channel> {
        let channel = self.by_name.get_mut(name)?;
        self.uses += 1;
        channel.used = self.uses;
        Some(channel)
    }

    /// The channel of a name, which is created if it does not exist. If there are `channels_max` others, the least recently used one
    /// without subscribers is removed; `None` if each of them has a subscriber.
    pub(crate) fn open(&mut self, name: &ChannelName, now_ms: u64, channels_max: usize) -> Option<&mut Channel> {
        if !self.by_name.contains_key(name) {
            if self.by_name.len() >= channels_max {
                let idle = self.by_name.iter().filter(|(_, channel)| channel.subscribers.is_empty());
                let least = idle.min_by_key(|(_, channel)| channel.used).map(|(name, _)| name.clone())?;
                self.by_name.remove(&least);
            }
            let log = self.empty_log(now_ms);
            self.by_name.insert(name.clone(), Channel { log, subscribers: Vec::new(), used: 0 });
        }
        self.get(name)
    }

    /// The number of subscribers of all channels.
    pub(crate) fn subscribers(&self) -> usize {
        self.by_name.values().map(|channel| channel.subscribers.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(id: &str) -> ChannelName {
        ChannelName::new("test", id).unwrap()
    }

    #[test]
    fn least_recently_used_channel_without_subscribers_is_evicted() {
        let mut channels = Channels::default();
        let followed = channels.open(&name("followed"), 1, 3).unwrap();
        let subscriber = Subscriber::new(Cursor::START, 1000, &followed.log);
        followed.subscribers.push((1, subscriber));
        channels.open(&name("old"), 1, 3).unwrap();
        channels.open(&name("used"), 1, 3).unwrap();
        assert!(channels.get(&name("old")).is_some());
        channels.open(&name("new"), 1, 3).unwrap();
        let exists = |channels: &mut Channels, id: &str| channels.get(&name(id)).is_some();
        assert!(!exists(&mut channels, "used"));
        assert!(["followed", "old", "new"].iter().all(|id| exists(&mut channels, id)));
        assert_eq!(channels.subscribers(), 1);
        assert!(channels.open(&name("other"), 1, 1).is_some(), "`old` and `new` have no subscribers");
    }

    #[test]
    fn channel_is_refused_if_every_other_has_a_subscriber() {
        let mut channels = Channels::default();
        let followed = channels.open(&name("followed"), 1, 1).unwrap();
        let subscriber = Subscriber::new(Cursor::START, 1000, &followed.log);
        followed.subscribers.push((1, subscriber));
        assert!(channels.open(&name("new"), 1, 1).is_none());
        assert!(channels.open(&name("followed"), 1, 1).is_some());
    }

    #[test]
    fn evicted_channel_gets_new_cursors() {
        let mut channels = Channels::default();
        let mut epochs = std::collections::BTreeSet::new();
        for id in ["a", "b", "a", "b"] {
            epochs.insert(channels.open(&name(id), 7, 1).unwrap().log.last().epoch);
        }
        assert_eq!(epochs.len(), 4);
    }
}
