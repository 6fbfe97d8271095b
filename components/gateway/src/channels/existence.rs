//! Whether a channel exists, for its subscribers.
//!
//! Weir knows this of its own sessions and executions. The channels of workflows, files and users belong to systems
//! outside of Weir, which may publish at any time, so these can always be followed.

use weir_auth::{
    identity::{Identity, NotFound},
    refusal,
    scope::Action,
};
use weir_codec::{
    channels::route::{Channel, ChannelKind},
    http::problem::Problem,
};

use weir_core::channels::Cursor;

use super::authorize::authorize;
use crate::{
    pipelines::Pipelines,
    platform::{bindings::weir::stream::events, store},
    transcripts,
};

/// The cursor before the oldest event.
const START: Cursor = Cursor { epoch: 0, seq: 0 };

/// Checks that a user may follow a channel, and that it exists.
///
/// Permission is checked first: a user that may not follow a channel gets the same response whether it exists or not.
pub(crate) async fn authorize_follow(identity: &Identity, channel: &Channel, path: &str) -> Result<(), Problem> {
    authorize(identity, Action::Read, channel, path).await?;
    if exists(channel).await? { Ok(()) } else { Err(refusal::not_found(NotFound, path)) }
}

/// True when a stored session or execution has the channel, or when the channel has events.
async fn exists(channel: &Channel) -> Result<bool, Problem> {
    let is_known = match channel.kind() {
        ChannelKind::Workflow | ChannelKind::File | ChannelKind::User => true,
        // A generation exists once its channel has its first event.
        ChannelKind::Generation => false,
        ChannelKind::Session => transcripts::routes::exists(channel).await?,
        ChannelKind::Pipeline => {
            let pipelines = Pipelines::current().map_err(Problem::internal)?;
            pipelines.exists(channel.id()).await.map_err(store::problem)?
        }
    };
    Ok(is_known || has_events(channel).await?)
}

/// Whether the channel has events, or had some that are not retained.
async fn has_events(channel: &Channel) -> Result<bool, Problem> {
    let page = events::read(channel.to_string(), START, 1).await.map_err(store::problem)?;
    Ok(!page.entries.is_empty() || page.ended || page.next.seq > 0)
}
