//! State in Redis: a key for each value, and two sorted sets for each kind: all keys in the order of their bytes, and
//! expiring keys by their end. Hashes contain the bytes of each key and of each user, so that shares apply to all
//! servers together and across restarts. Scanning all keys of the server (`SCAN`) would take time in proportion to the
//! keys of all applications, and has no order for pages.

use std::sync::Arc;

use redis::Script;
use weir_core::channels::{ChannelName, Fence, ShareExceeded, Shares, value_bytes_of};

use crate::backend::WriteContext;
use crate::config::EventsConfig;
use crate::error::Error;
use crate::redis::lease::fence_arguments;
use crate::redis::link::Link;

/// The scripts that read and write state.
#[derive(Debug)]
pub(crate) struct State {
    config: Arc<EventsConfig>,
    put: Script,
    delete: Script,
    keys: Script,
}

impl State {
    pub(crate) fn new(config: Arc<EventsConfig>) -> Self {
        let (put, delete) = (Script::new(include_str!("put.lua")), Script::new(include_str!("delete.lua")));
        Self { config, put, delete, keys: Script::new(include_str!("keys.lua")) }
    }

    pub(crate) async fn put(
        &self,
        link: &Link,
        key: &ChannelName,
        value: &[u8],
        ttl_ms: Option<u64>,
        write: WriteContext<'_>,
    ) -> Result<(), Error> {
        let mut put = self.put.prepare_invoke();
        put.key(value_key(link, key)).key(names_key(link, key.kind())).key(ends_key(link, key.kind()));
        for name in count_keys(link) {
            put.key(name);
        }
        let (lease, token) = fence_arguments(link, write.fence);
        put.key(lease).arg(key.as_str()).arg(value).arg(ttl_ms.unwrap_or(0)).arg(token);
        let (bytes, EventsConfig { state_bytes_max, user_percent_max, .. }) =
            (value_bytes_of(key, value.len()), &*self.config);
        let user_max = Shares::new(*state_bytes_max, *user_percent_max).user_max();
        put.arg(bytes).arg(write.user.unwrap_or_default()).arg(user_max).arg(*state_bytes_max);
        let outcome: u8 =
            link.request(|mut server| async move { put.invoke_async(&mut server.connection).await }).await?;
        match outcome {
            0 => Err(Error::Fenced),
            2 => Err(Error::state(ShareExceeded::User {
                more: bytes,
                used: self.bytes_of(link, write.user).await?,
                max: user_max,
            })),
            3 => Err(Error::state(ShareExceeded::Total {
                more: bytes,
                used: self.bytes(link).await?,
                max: *state_bytes_max,
            })),
            _ => Ok(()),
        }
    }

    /// Bytes of all values, bookkeeping included.
    pub(crate) async fn bytes(&self, link: &Link) -> Result<usize, Error> {
        let mut get = redis::cmd("GET");
        get.arg(total_key(link));
        let bytes: Option<usize> = link.command(get).await?;
        Ok(bytes.unwrap_or(0))
    }

    async fn bytes_of(&self, link: &Link, user: Option<&str>) -> Result<usize, Error> {
        let mut get = redis::cmd("HGET");
        get.arg(users_key(link)).arg(user.unwrap_or_default());
        let bytes: Option<usize> = link.command(get).await?;
        Ok(bytes.unwrap_or(0))
    }

    /// The number of keys of a kind.
    pub(crate) async fn count(&self, link: &Link, kind: &str) -> Result<usize, Error> {
        let mut count = redis::cmd("ZCARD");
        count.arg(names_key(link, kind));
        link.command(count).await
    }

    pub(crate) async fn delete(&self, link: &Link, key: &ChannelName, fence: Option<&Fence>) -> Result<(), Error> {
        let (lease, token) = fence_arguments(link, fence);
        let mut delete = self.delete.prepare_invoke();
        delete.key(value_key(link, key)).key(names_key(link, key.kind())).key(ends_key(link, key.kind()));
        for name in count_keys(link) {
            delete.key(name);
        }
        delete.key(lease).arg(key.as_str()).arg(token);
        let outcome: u8 =
            link.request(|mut server| async move { delete.invoke_async(&mut server.connection).await }).await?;
        if outcome == 0 { Err(Error::Fenced) } else { Ok(()) }
    }

    pub(crate) async fn keys(&self, link: &Link, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        let mut keys = self.keys.prepare_invoke();
        keys.key(names_key(link, kind)).key(ends_key(link, kind));
        for name in count_keys(link) {
            keys.key(name);
        }
        keys.arg(format!("{}@@state:", link.config.prefix));
        keys.arg(if after.is_empty() { "-".to_owned() } else { format!("({after}") }).arg(limit);
        link.request(|mut server| async move { keys.invoke_async(&mut server.connection).await }).await
    }
}

/// The value under a key, if there is one.
pub(crate) async fn value(link: &Link, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
    let mut get = redis::cmd("GET");
    get.arg(value_key(link, key));
    link.command(get).await
}

// Kinds begin with a letter, so none of these is the stream of a channel (`workflow:ID`) or its metadata
// (`@workflow:ID`).

fn value_key(link: &Link, key: &ChannelName) -> String {
    format!("{}@@state:{key}", link.config.prefix)
}

fn names_key(link: &Link, kind: &str) -> String {
    format!("{}@@state-keys:{kind}", link.config.prefix)
}

fn ends_key(link: &Link, kind: &str) -> String {
    format!("{}@@state-ends:{kind}", link.config.prefix)
}

/// The keys of: the bytes and the user of each key, the bytes of each user, the bytes of all values, and the expiring
/// keys of all kinds.
fn count_keys(link: &Link) -> [String; 4] {
    let prefix = &link.config.prefix;
    [format!("{prefix}@@state-sizes"), users_key(link), total_key(link), format!("{prefix}@@state-all-ends")]
}

fn users_key(link: &Link) -> String {
    format!("{}@@state-users", link.config.prefix)
}

fn total_key(link: &Link) -> String {
    format!("{}@@state-bytes", link.config.prefix)
}
