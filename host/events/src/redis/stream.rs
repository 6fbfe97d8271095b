//! The conversion of entries of Redis Streams to events, and the names of keys.

use std::sync::Arc;

use redis::streams::StreamId;
use redis::{FromRedisValue, Value};
use weir_core::channels::{ChannelName, Cursor, Draft, Entry};

/// The stream of a channel: `pip-ai:workflow:ID`.
pub(crate) fn key(prefix: &str, name: &ChannelName) -> String {
    format!("{prefix}{name}")
}

/// The key of a channel's metadata: epoch, sequence, run id of the server, finished, bytes, user. Kinds begin with a
/// letter, so it is never the stream of another channel.
pub(crate) fn meta_key(prefix: &str, name: &ChannelName) -> String {
    format!("{prefix}@{name}")
}

/// The key of a claim. It differs from the key of the metadata of any channel.
pub(crate) fn claim_key(prefix: &str, key: &str) -> String {
    format!("{prefix}@@claim:{key}")
}

/// The event of an entry; none when another program wrote an entry that is not an event. `stored_ms` converts the
/// server's time of an event to the store clock.
pub(crate) fn event(entry: &StreamId, stored_ms: impl Fn(u64) -> u64) -> Option<Arc<Entry>> {
    let cursor = entry.id.parse().ok()?;
    let text = |field: &str| -> Option<String> {
        entry.map.get(field).and_then(|value: &Value| String::from_redis_value_ref(value).ok())
    };
    let key = text("coalesce").unwrap_or_default();
    let draft = Draft {
        name: text("event")?.into(),
        data: text("data")?.into(),
        coalesce: (!key.is_empty()).then(|| key.into()),
        finishes: text("finish").as_deref() == Some("1"),
    };
    let time_ms = text("time")?.parse().ok()?;
    Some(Arc::new(draft.at(cursor, time_ms).stored_at(stored_ms(time_ms))))
}

/// The metadata of a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct StreamMeta {
    pub(crate) last: Cursor,
    pub(crate) finished: bool,
}

/// Epoch, sequence and finished, as Redis returns them.
pub(crate) type Fields = (Option<u64>, Option<u64>, Option<u8>);

impl StreamMeta {
    pub(crate) fn from_fields((epoch, seq, finished): Fields) -> Self {
        let last = Cursor { epoch: epoch.unwrap_or_default(), seq: seq.unwrap_or_default() };
        Self { last, finished: finished == Some(1) }
    }
}
