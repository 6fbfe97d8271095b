//! Values under keys, with bounded memory and optional expiry.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use super::{ChannelName, ShareExceeded, Shares};

/// The memory of a value besides its own bytes and its key's.
const VALUE_OVERHEAD_BYTES: usize = 128;

/// An entry of [`Values`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value<V> {
    /// The value, or its substitute.
    pub value: V,
    bytes: usize,
    end_ms: u64,
    /// The user towards whose share it counts.
    user: Option<Arc<str>>,
}

/// Values under keys, one under each. A key has the grammar of a channel's name.
///
/// `V` is the value itself, or its substitute where it is stored elsewhere.
#[derive(Debug)]
pub struct Values<V> {
    bytes: Shares,
    entries: BTreeMap<Arc<str>, Value<V>>,
    /// The number of keys of each kind.
    kinds: BTreeMap<Box<str>, usize>,
    /// The keys that expire, in the order of their expiry.
    ends: BTreeSet<(u64, Arc<str>)>,
}

impl<V> Values<V> {
    /// The end of a value that does not expire.
    pub const NEVER_MS: u64 = u64::MAX;

    /// No values, and room for `bytes_max` bytes of keys and values, with 128 bytes of overhead for each. One user may
    /// use `user_percent_max` percent of it.
    pub fn new(bytes_max: usize, user_percent_max: u8) -> Self {
        let bytes = Shares::new(bytes_max, user_percent_max);
        Self { bytes, entries: BTreeMap::new(), kinds: BTreeMap::new(), ends: BTreeSet::new() }
    }

    /// The bytes in use, overhead included, by user and in total.
    pub fn bytes(&self) -> &Shares {
        &self.bytes
    }

    /// The number of values of a kind, including expired ones that were not removed yet.
    pub fn count(&self, kind: &str) -> usize {
        self.kinds.get(kind).copied().unwrap_or(0)
    }

    /// The number of values, including expired ones that were not removed yet.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True when there is no value.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Stores a value of `value_bytes` bytes under a key until `end_ms`, and returns the previous one. It counts
    /// towards the share of the user, if there is one.
    ///
    /// # Errors
    ///
    /// It exceeds the share of the user or the total; the previous value is unchanged.
    pub fn put(
        &mut self,
        key: &ChannelName,
        value: V,
        value_bytes: usize,
        end_ms: u64,
        user: Option<&str>,
    ) -> Result<Option<Value<V>>, ShareExceeded> {
        let bytes = value_bytes_of(key, value_bytes);
        let before = self.entries.get(key.as_str());
        match before.filter(|before| before.user.as_deref() != user) {
            // The previous value counts towards the share of another user.
            Some(before) => {
                let (other, less) = (before.user.clone(), before.bytes);
                self.bytes.remove(other.as_deref(), less);
                let fits = self.bytes.check(user, bytes, 0);
                self.bytes.add(other.as_deref(), less);
                fits?;
            }
            None => self.bytes.check(user, bytes, before.map_or(0, |before| before.bytes))?,
        }
        Ok(self.set(key.as_str(), Some(Value { value, bytes, end_ms, user: user.map(Arc::from) })))
    }

    /// Restores a stored value, without a check of the bounds.
    pub fn restore(&mut self, key: &ChannelName, value: V, value_bytes: usize, end_ms: u64, user: Option<&str>) {
        let bytes = value_bytes_of(key, value_bytes);
        self.set(key.as_str(), Some(Value { value, bytes, end_ms, user: user.map(Arc::from) }));
    }

    /// The value under a key, if there is one that has not expired.
    pub fn value(&self, key: &ChannelName, now_ms: u64) -> Option<&V> {
        self.entries.get(key.as_str()).filter(|entry| entry.end_ms > now_ms).map(|entry| &entry.value)
    }

    /// Removes a value, and returns it.
    pub fn delete(&mut self, key: &ChannelName) -> Option<Value<V>> {
        self.set(key.as_str(), None)
    }

    /// Sets or removes the entry of a key, without a check of the bounds, such as to undo a change with the entry that
    /// it returned. Returns the previous entry.
    pub fn set(&mut self, key: &str, value: Option<Value<V>>) -> Option<Value<V>> {
        let (key, before) = match self.entries.remove_entry(key) {
            Some((key, before)) => (key, Some(before)),
            None => (Arc::from(key), None),
        };
        if let Some(before) = &before {
            self.bytes.remove(before.user.as_deref(), before.bytes);
            self.ends.remove(&(before.end_ms, Arc::clone(&key)));
        }
        self.count_kind(&key, before.is_some(), value.is_some());
        if let Some(mut value) = value {
            value.user = self.bytes.add(value.user.as_deref(), value.bytes);
            if value.end_ms != Self::NEVER_MS {
                self.ends.insert((value.end_ms, Arc::clone(&key)));
            }
            self.entries.insert(key, value);
        }
        before
    }

    fn count_kind(&mut self, key: &str, existed: bool, exists: bool) {
        let kind = key.split_once(':').map_or(key, |(kind, _)| kind);
        match (existed, exists) {
            (false, true) => *self.kinds.entry(kind.into()).or_default() += 1,
            (true, false) => {
                if let Some(count) = self.kinds.get_mut(kind) {
                    *count -= 1;
                    if *count == 0 {
                        self.kinds.remove(kind);
                    }
                }
            }
            _ => {}
        }
    }

    /// The keys of a kind after a key that need not exist, in the order of their bytes, at most `limit`.
    pub fn keys(&self, kind: &str, after: &str, limit: usize, now_ms: u64) -> Vec<Arc<str>> {
        let first = format!("{kind}:");
        let from = if after < first.as_str() { Bound::Included(first.as_str()) } else { Bound::Excluded(after) };
        let of_kind =
            self.entries.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&first));
        let current = of_kind.filter(|(_, entry)| entry.end_ms > now_ms);
        current.take(limit).map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Removes expired values, and returns them.
    pub fn expire(&mut self, now_ms: u64) -> Vec<(Arc<str>, Value<V>)> {
        let mut expired = Vec::new();
        while let Some((end_ms, key)) = self.ends.first() {
            if *end_ms > now_ms {
                break;
            }
            let key = Arc::clone(key);
            let Some(value) = self.set(&key, None) else { break };
            expired.push((key, value));
        }
        expired
    }
}

/// The bytes with which a value counts towards the bounds, its key and overhead included.
pub fn value_bytes_of(key: &ChannelName, value_bytes: usize) -> usize {
    key.as_str().len() + value_bytes + VALUE_OVERHEAD_BYTES
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn key(text: &str) -> ChannelName {
        text.parse().unwrap()
    }

    #[test]
    fn keys_are_of_one_kind_in_order_and_in_pages() {
        let mut values = Values::new(10_000, 100);
        for name in ["pipe:z", "pipeline:b", "pipeline:a", "pipeline:A", "pipelines:c", "a:b"] {
            values.put(&key(name), (), 0, Values::<()>::NEVER_MS, None).unwrap();
        }
        let keys = |after: &str, limit| values.keys("pipeline", after, limit, 0).join(" ");
        assert_eq!(keys("", 10), "pipeline:A pipeline:a pipeline:b");
        assert_eq!(keys("", 2), "pipeline:A pipeline:a");
        assert_eq!(keys("pipeline:a", 2), "pipeline:b");
        assert_eq!(keys("pipeline:aa", 2), "pipeline:b");
        assert_eq!(keys("pipeline:b", 2), "");
        assert_eq!(keys("z", 2), "");
        assert_eq!(keys("", 0), "");
    }

    #[test]
    fn value_that_does_not_fit_leaves_the_earlier_one() {
        let mut values = Values::new(2 * (3 + 10 + VALUE_OVERHEAD_BYTES), 100);
        values.put(&key("k:1"), 1, 10, 100, None).unwrap();
        values.put(&key("k:2"), 2, 10, 200, None).unwrap();
        let full = ShareExceeded::Total { more: 142, used: 141, max: 282 };
        assert_eq!(values.put(&key("k:1"), 3, 11, 300, None), Err(full));
        assert_eq!((values.value(&key("k:1"), 99), values.value(&key("k:1"), 100)), (Some(&1), None));
        assert!(values.put(&key("k:3"), 3, 0, 300, None).is_err());
        assert_eq!(values.expire(100).len(), 1);
        values.put(&key("k:3"), 3, 10, 300, None).unwrap();
    }

    #[test]
    fn value_of_another_user_moves_to_its_share() {
        let mut values = Values::new(1_000, 50);
        values.put(&key("k:1"), 1, 100, 100, Some("a")).unwrap();
        assert_eq!((values.bytes().of(Some("a")), values.count("k")), (231, 1));
        values.put(&key("k:1"), 2, 100, 100, Some("b")).unwrap();
        assert_eq!((values.bytes().of(Some("a")), values.bytes().of(Some("b"))), (0, 231));
        let error = values.put(&key("k:2"), 3, 200, 100, Some("b")).unwrap_err();
        assert_eq!(error, ShareExceeded::User { more: 331, used: 231, max: 500 });
        values.put(&key("k:2"), 3, 200, 100, Some("a")).unwrap();
        assert_eq!(values.expire(100).len(), 2);
        assert_eq!((values.bytes().of(Some("a")), values.bytes().total(), values.count("k")), (0, 0, 0));
    }

    proptest! {
        #[test]
        fn values_equal_a_model_within_the_shares(
            percent in 30u8..=100,
            ops in prop::collection::vec(
                (0u64..20, 0u8..6, 0usize..300, prop::option::of(1u64..40), 0u8..4, prop::option::of(0u8..2)), 0..200),
        ) {
            let mut values = Values::new(1_000, percent);
            let mut model: BTreeMap<String, (usize, usize, u64, Option<String>)> = BTreeMap::new();
            let mut now = 0;
            for (turn, (wait, name, bytes, ttl, act, user)) in ops.into_iter().enumerate() {
                now += wait;
                let name = format!("k:{name}");
                let user = user.map(|user| format!("u{user}"));
                match act {
                    0 => {
                        let before = values.delete(&key(&name));
                        prop_assert_eq!(before.map(|before| before.value), model.remove(&name).map(|(value, ..)| value));
                    }
                    1 => {
                        let ended = values.expire(now);
                        let before = model.len();
                        model.retain(|_, (_, _, end, _)| *end > now);
                        prop_assert_eq!(ended.len(), before - model.len());
                    }
                    _ => {
                        let end = ttl.map_or(u64::MAX, |ttl| now + ttl);
                        let others = || model.iter().filter(|(key, _)| **key != name).map(|(_, value)| value);
                        let total: usize = others().map(|(_, size, ..)| size).sum();
                        let own: usize =
                            others().filter(|(.., owner)| *owner == user).map(|(_, size, ..)| size).sum();
                        let size = name.len() + bytes + VALUE_OVERHEAD_BYTES;
                        let fits_user = user.is_none() || own + size <= 10 * usize::from(percent);
                        let put = values.put(&key(&name), turn, bytes, end, user.as_deref());
                        prop_assert_eq!(put.is_ok(), total + size <= 1_000 && fits_user);
                        if put.is_ok() {
                            model.insert(name, (turn, size, end, user));
                        }
                    }
                }
                prop_assert_eq!(values.bytes().total(), model.values().map(|(_, size, ..)| size).sum::<usize>());
                for user in ["u0", "u1"] {
                    let own = model.values().filter(|(.., owner)| owner.as_deref() == Some(user));
                    prop_assert_eq!(values.bytes().of(Some(user)), own.map(|(_, size, ..)| size).sum::<usize>());
                }
                prop_assert_eq!(values.count("k"), model.len());
                let live: Vec<String> =
                    model.iter().filter(|(_, (_, _, end, _))| *end > now).map(|(key, _)| key.clone()).collect();
                prop_assert_eq!(values.keys("k", "", 10, now).iter().map(ToString::to_string).collect::<Vec<_>>(), live);
                for name in 0..6 {
                    let name = format!("k:{name}");
                    let used = model.get(&name).filter(|(_, _, end, _)| *end > now).map(|(value, ..)| value);
                    prop_assert_eq!(values.value(&key(&name), now), used);
                }
            }
        }
    }
}
