//! What outlives this process of a session: `weir:stream/state`, under the name of its channel.

use weir_codec::{channel::Channel, problem::Problem};

/// Whether what is put can be had again.
pub(crate) const KEEPS: bool = false;

pub(crate) async fn put(_channel: &Channel, _bytes: Vec<u8>, _ttl_ms: Option<u64>) -> Result<(), Problem> {
    Ok(())
}

pub(crate) async fn get(_channel: &Channel) -> Result<Option<Vec<u8>>, Problem> {
    Ok(None)
}

pub(crate) async fn delete(_channel: &Channel) -> Result<(), Problem> {
    Ok(())
}

pub(crate) async fn ids(_after: &str) -> Result<Vec<String>, Problem> {
    Ok(Vec::new())
}
