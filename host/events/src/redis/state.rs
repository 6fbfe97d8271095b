//! What is kept between events in Redis: a key for each value, and two sorted sets for each kind, the keys in the order of their
//! bytes and the ends of those that end. Looking through all keys of the server instead (`SCAN`) would take as long as there
//! are keys of anybody, and gives no order to page in.

use redis::Script;
use weir_core::channel::ChannelName;

use crate::error::Error;
use crate::redis::link::Link;

/// The scripts of it.
#[derive(Debug)]
pub(crate) struct State {
    put: Script,
    keys: Script,
}

impl State {
    pub(crate) fn new() -> Self {
        Self { put: Script::new(include_str!("put.lua")), keys: Script::new(include_str!("keys.lua")) }
    }

    pub(crate) async fn put(
        &self,
        link: &Link,
        key: &ChannelName,
        value: &[u8],
        ttl_ms: Option<u64>,
    ) -> Result<(), Error> {
        let mut put = self.put.prepare_invoke();
        put.key(value_key(link, key)).key(names_key(link, key.kind())).key(ends_key(link, key.kind()));
        put.arg(key.as_str()).arg(value).arg(ttl_ms.unwrap_or(0));
        link.ask(|mut live| async move { put.invoke_async(&mut live.connection).await }).await
    }

    pub(crate) async fn delete(&self, link: &Link, key: &ChannelName) -> Result<(), Error> {
        let mut delete = redis::pipe();
        delete.atomic();
        delete.cmd("DEL").arg(value_key(link, key)).ignore();
        delete.cmd("ZREM").arg(names_key(link, key.kind())).arg(key.as_str()).ignore();
        delete.cmd("ZREM").arg(ends_key(link, key.kind())).arg(key.as_str()).ignore();
        link.ask(|mut live| async move { delete.query_async(&mut live.connection).await }).await
    }

    pub(crate) async fn keys(&self, link: &Link, kind: &str, after: &str, limit: usize) -> Result<Vec<String>, Error> {
        let mut keys = self.keys.prepare_invoke();
        keys.key(names_key(link, kind)).key(ends_key(link, kind));
        keys.arg(format!("{}@@state:", link.config.prefix));
        keys.arg(if after.is_empty() { "-".to_owned() } else { format!("({after}") }).arg(limit);
        link.ask(|mut live| async move { keys.invoke_async(&mut live.connection).await }).await
    }
}

/// The value under a key, where there is one.
pub(crate) async fn value(link: &Link, key: &ChannelName) -> Result<Option<Vec<u8>>, Error> {
    let mut get = redis::cmd("GET");
    get.arg(value_key(link, key));
    link.command(get).await
}

// Kinds begin with a letter, so none of these is the stream of a channel (`workflow:ID`) or what is known of it (`@workflow:ID`).

fn value_key(link: &Link, key: &ChannelName) -> String {
    format!("{}@@state:{key}", link.config.prefix)
}

fn names_key(link: &Link, kind: &str) -> String {
    format!("{}@@state-keys:{kind}", link.config.prefix)
}

fn ends_key(link: &Link, kind: &str) -> String {
    format!("{}@@state-ends:{kind}", link.config.prefix)
}
