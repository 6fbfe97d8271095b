//! Values under keys, in bounded room, some of which end.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use thiserror::Error;

use super::ChannelName;

/// Bytes that a value takes besides its own and its key's.
const VALUE_OVERHEAD_BYTES: usize = 128;

/// No room for a value: nothing that has not ended is ever let go of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{bytes} bytes do not fit: {held} of {bytes_max} bytes are held")]
pub struct ValuesFull {
    /// What the value would take, its key and bookkeeping included.
    pub bytes: usize,
    /// What the others take.
    pub held: usize,
    /// The most that all may take.
    pub bytes_max: usize,
}

/// A value that is held, or what stands for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value<V> {
    /// What was put.
    pub value: V,
    bytes: usize,
    end_ms: u64,
}

/// Values under keys, one under each. A key has the grammar of a channel's name.
///
/// `V` is the value itself, or whatever stands for it where it is kept elsewhere.
#[derive(Debug)]
pub struct Values<V> {
    bytes_max: usize,
    bytes: usize,
    held: BTreeMap<Arc<str>, Value<V>>,
    /// Those that end, the next one first.
    ends: BTreeSet<(u64, Arc<str>)>,
}

impl<V> Values<V> {
    /// The end of a value that has none.
    pub const NEVER_MS: u64 = u64::MAX;

    /// No values, and room for so many bytes of keys and values, 128 for each besides.
    pub fn new(bytes_max: usize) -> Self {
        Self { bytes_max, bytes: 0, held: BTreeMap::new(), ends: BTreeSet::new() }
    }

    /// Bytes held, bookkeeping included.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Values held, ended ones included that were not let go of yet.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// True when none is held.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Puts a value of so many bytes under a key until a time, and returns the one before.
    ///
    /// # Errors
    ///
    /// It does not fit; the one before stays.
    pub fn put(
        &mut self,
        key: &ChannelName,
        value: V,
        value_bytes: usize,
        end_ms: u64,
    ) -> Result<Option<Value<V>>, ValuesFull> {
        let bytes = key.as_str().len() + value_bytes + VALUE_OVERHEAD_BYTES;
        let others = self.bytes - self.held.get(key.as_str()).map_or(0, |before| before.bytes);
        if others.saturating_add(bytes) > self.bytes_max {
            return Err(ValuesFull { bytes, held: others, bytes_max: self.bytes_max });
        }
        Ok(self.set(key.as_str(), Some(Value { value, bytes, end_ms })))
    }

    /// Puts back a value that a store remembers, whether it fits or not.
    pub fn restore(&mut self, key: &ChannelName, value: V, value_bytes: usize, end_ms: u64) {
        let bytes = key.as_str().len() + value_bytes + VALUE_OVERHEAD_BYTES;
        self.set(key.as_str(), Some(Value { value, bytes, end_ms }));
    }

    /// The value under a key, if there is one that has not ended.
    pub fn value(&self, key: &ChannelName, now_ms: u64) -> Option<&V> {
        self.held.get(key.as_str()).filter(|held| held.end_ms > now_ms).map(|held| &held.value)
    }

    /// Takes a value away, and returns it.
    pub fn delete(&mut self, key: &ChannelName) -> Option<Value<V>> {
        self.set(key.as_str(), None)
    }

    /// Makes a key hold what it held before, such as a change returned; returns what it held until now.
    pub fn set(&mut self, key: &str, value: Option<Value<V>>) -> Option<Value<V>> {
        let (key, before) = match self.held.remove_entry(key) {
            Some((key, before)) => (key, Some(before)),
            None => (Arc::from(key), None),
        };
        if let Some(before) = &before {
            self.bytes -= before.bytes;
            self.ends.remove(&(before.end_ms, Arc::clone(&key)));
        }
        if let Some(value) = value {
            self.bytes += value.bytes;
            if value.end_ms != Self::NEVER_MS {
                self.ends.insert((value.end_ms, Arc::clone(&key)));
            }
            self.held.insert(key, value);
        }
        before
    }

    /// The keys of a kind after one that need not be there, in the order of their bytes, at most so many.
    pub fn keys(&self, kind: &str, after: &str, limit: usize, now_ms: u64) -> Vec<Arc<str>> {
        let first = format!("{kind}:");
        let from = if after < first.as_str() { Bound::Included(first.as_str()) } else { Bound::Excluded(after) };
        let of_kind =
            self.held.range::<str, _>((from, Bound::Unbounded)).take_while(|(key, _)| key.starts_with(&first));
        let live = of_kind.filter(|(_, held)| held.end_ms > now_ms);
        live.take(limit).map(|(key, _)| Arc::clone(key)).collect()
    }

    /// Lets go of what has ended, and returns it.
    pub fn expire(&mut self, now_ms: u64) -> Vec<(Arc<str>, Value<V>)> {
        let mut ended = Vec::new();
        while let Some((end_ms, key)) = self.ends.first() {
            if *end_ms > now_ms {
                break;
            }
            let key = Arc::clone(key);
            let Some(value) = self.set(&key, None) else { break };
            ended.push((key, value));
        }
        ended
    }
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
        let mut values = Values::new(10_000);
        for name in ["pipe:z", "pipeline:b", "pipeline:a", "pipeline:A", "pipelines:c", "a:b"] {
            values.put(&key(name), (), 0, Values::<()>::NEVER_MS).unwrap();
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
    fn what_does_not_fit_leaves_what_was_there() {
        let mut values = Values::new(2 * (3 + 10 + VALUE_OVERHEAD_BYTES));
        values.put(&key("k:1"), 1, 10, 100).unwrap();
        values.put(&key("k:2"), 2, 10, 200).unwrap();
        let full = ValuesFull { bytes: 142, held: 141, bytes_max: 282 };
        assert_eq!(values.put(&key("k:1"), 3, 11, 300), Err(full));
        assert_eq!((values.value(&key("k:1"), 99), values.value(&key("k:1"), 100)), (Some(&1), None));
        assert!(values.put(&key("k:3"), 3, 0, 300).is_err());
        assert_eq!(values.expire(100).len(), 1);
        values.put(&key("k:3"), 3, 10, 300).unwrap();
    }

    proptest! {
        #[test]
        fn it_holds_what_was_put_last_until_it_ends(
            ops in prop::collection::vec((0u64..20, 0u8..6, 0usize..300, prop::option::of(1u64..40), 0u8..4), 0..200),
        ) {
            let mut values = Values::new(1_000);
            let mut model: BTreeMap<String, (usize, usize, u64)> = BTreeMap::new();
            let mut now = 0;
            for (turn, (wait, name, bytes, ttl, act)) in ops.into_iter().enumerate() {
                now += wait;
                let name = format!("k:{name}");
                match act {
                    0 => {
                        let before = values.delete(&key(&name));
                        prop_assert_eq!(before.map(|before| before.value), model.remove(&name).map(|(value, ..)| value));
                    }
                    1 => {
                        let ended = values.expire(now);
                        let before = model.len();
                        model.retain(|_, (_, _, end)| *end > now);
                        prop_assert_eq!(ended.len(), before - model.len());
                    }
                    _ => {
                        let end = ttl.map_or(u64::MAX, |ttl| now + ttl);
                        let others: usize = model.iter().filter(|(key, _)| **key != name).map(|(_, (_, size, _))| size).sum();
                        let size = name.len() + bytes + VALUE_OVERHEAD_BYTES;
                        let put = values.put(&key(&name), turn, bytes, end);
                        prop_assert_eq!(put.is_ok(), others + size <= 1_000);
                        if put.is_ok() {
                            model.insert(name, (turn, size, end));
                        }
                    }
                }
                prop_assert_eq!(values.bytes(), model.values().map(|(_, size, _)| size).sum::<usize>());
                let live: Vec<String> =
                    model.iter().filter(|(_, (_, _, end))| *end > now).map(|(key, _)| key.clone()).collect();
                prop_assert_eq!(values.keys("k", "", 10, now).iter().map(ToString::to_string).collect::<Vec<_>>(), live);
                for name in 0..6 {
                    let name = format!("k:{name}");
                    let held = model.get(&name).filter(|(_, _, end)| *end > now).map(|(value, ..)| value);
                    prop_assert_eq!(values.value(&key(&name), now), held);
                }
            }
        }
    }
}
