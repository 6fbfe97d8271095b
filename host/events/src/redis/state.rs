//! What is kept between events in Redis: a key for each value, and two sorted sets for each kind, the keys in the order of their
//! bytes and the ends of those that end. Looking through all keys of the server instead (`SCAN`) would take as long as there
//! are keys of anybody, and gives no order to page in.

use redis::Script;
use weir_core::channels::{ChannelName, Fence};

use crate::error::Error;
use crate::redis::lease::fence_arguments;
use crate::redis::link::Link;

/// The scripts of it.
#[derive(Debug)]
pub(crate) struct State {
    put: Script,
    delete: Script,
    keys: Script,
}

impl State {
    pub(crate) fn new() -> Self {
        let (put, delete) = (Script::new(include_str!("put.lua")), Script::new(include_str!("delete.lua")));
        Self { put, delete, keys: Script::new(include_str!("keys.lua")) }
    }

    pub(crate) async fn put(
        &self,
        link: &Link,
        key: &ChannelName,
        value: &[u8],
        ttl_ms: Option<u64>,
        fence: Option<&Fence>,
    ) -> Result<(), Error> {
        let mut put = self.put.prepare_invoke();
        put.key(value_key(link, key)).key(names_key(link, key.kind())).key(ends_key(link, key.kind()));
        let (lease, token) = fence_arguments(link, fence);
        put.key(lease).arg(key.as_str()).arg(value).arg(ttl_ms.unwrap_or(0)).arg(token);
        let done: u8 = link.ask(|mut live| async move { put.invoke_async(&mut live.connection).await }).await?;
        if done == 0 { Err(Error::Fenced) } else { Ok(()) }
    }

    pub(crate) async fn delete(&self, link: &Link, key: &ChannelName, fence: Option<&Fence>) -> Result<(), Error> {
        let (lease, token) = fence_arguments(link, fence);
        let mut delete = self.delete.prepare_invoke();
        delete.key(value_key(link, key)).key(names_key(link, key.kind())).key(ends_key(link, key.kind())).key(lease);
        delete.arg(key.as_str()).arg(token);
        let done: u8 = link.ask(|mut live| async move { delete.invoke_async(&mut live.connection).await }).await?;
        if done == 0 { Err(Error::Fenced) } else { Ok(()) }
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
