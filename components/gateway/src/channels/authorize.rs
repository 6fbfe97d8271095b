//! Permission to read a channel or to publish to it.

use weir_auth::{identity::Identity, refusal, scope::Action};
use weir_codec::{channels::route::Channel, http::problem::Problem};

use super::ownership;

/// Checks that a user may perform an action on a channel: by a scope, or as its owner. A forbidden channel gets the
/// same problem as a missing one.
pub(crate) async fn authorize(
    identity: &Identity,
    action: Action,
    channel: &Channel,
    path: &str,
) -> Result<(), Problem> {
    if identity.authorize(action, channel, None).is_ok() {
        return Ok(());
    }
    let owner = ownership::find(channel).await?;
    identity.authorize(action, channel, owner.as_deref()).map_err(|error| refusal::not_found(error, path))
}
