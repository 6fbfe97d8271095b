//! The persistent state of sessions: `weir:stream/state`, under the names of their channels.

use weir_codec::{channels::route::Channel, http::problem::Problem};

use crate::platform::{
    bindings::weir::stream::{
        events::{Failure, Fence},
        state,
    },
    store,
};

/// Keys in one page.
const KEYS: u32 = 500;

/// Stores a session in the share of its owner, for `ttl_ms` milliseconds if given.
pub(super) async fn put(
    channel: &Channel,
    bytes: Vec<u8>,
    ttl_ms: Option<u64>,
    fence: Fence,
    owner: Option<String>,
) -> Result<(), Failure> {
    state::put(channel.to_string(), bytes, ttl_ms, Some(fence), owner).await
}

/// The stored state of a session, if there is one.
pub(super) async fn get(channel: &Channel) -> Result<Option<Vec<u8>>, Problem> {
    state::get(channel.to_string()).await.map_err(store::problem)
}

/// Deletes the stored state of a session.
pub(super) async fn delete(channel: &Channel, fence: Fence) -> Result<(), Failure> {
    state::delete(channel.to_string(), Some(fence)).await
}

/// One page of stored sessions after the given one, in the order of their names.
pub(super) async fn after(channel: Option<&Channel>) -> Result<Vec<Channel>, Problem> {
    let after = channel.map(Channel::to_string).unwrap_or_default();
    let keys = state::keys("session".to_owned(), after, KEYS).await.map_err(store::problem)?;
    Ok(keys.iter().filter_map(|key| Channel::from_name(key)).collect())
}
