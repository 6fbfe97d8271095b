//! Publishing: events of publishers, and of the gateway itself, into the store.

use weir_auth::{identity::Identity, refusal, scope::Action};
use weir_codec::{
    channels::{
        event::{StreamEvent, published_json},
        publish::{Notification, Progress, WorkflowBody, user_channel},
        route::{Channel, ChannelKind, ChannelRoute},
    },
    http::problem::Problem,
};
use weir_core::{channels::Cursor, time::Now};

use super::ownership;
use crate::{
    auth::Access,
    http::response::BufferedResponse,
    platform::{
        bindings::weir::stream::events::{self, Event},
        store,
    },
};

/// Maximum size of a coalesce key, in bytes.
const KEY_BYTES_MAX: usize = 64;

/// Appends an event to a channel, and a copy to the channel of the user that it names.
///
/// The copy is appended second: if that fails, the publisher gets an error although the event is in the first channel,
/// and a retry appends it there again.
pub(crate) async fn publish(
    route: &ChannelRoute,
    body: &[u8],
    identity: &Identity,
    path: &str,
    now: Now,
) -> Result<BufferedResponse, Problem> {
    let access = Access::current()?;
    access.check_publish_rate(identity, now)?;
    match route {
        ChannelRoute::PublishWorkflow(channel) => {
            let body = WorkflowBody::from_json(body)?;
            let user = body.user_id().and_then(user_channel);
            append(access, channel, &StreamEvent::from(&body), user, identity, path, now).await
        }
        ChannelRoute::PublishAnalysis(channel) => {
            let body = Progress::analysis_from_json(body)?;
            let user = body.user_id.as_deref().and_then(user_channel);
            append(access, channel, &StreamEvent::AnalysisProgress(&body), user, identity, path, now).await
        }
        ChannelRoute::PublishUser(channel) => {
            let body = Notification::from_json(body)?;
            append(access, channel, &StreamEvent::Notification(&body), None, identity, path, now).await
        }
        _ => Err(Problem::not_found(path)),
    }
}

async fn append(
    access: &Access,
    channel: &Channel,
    event: &StreamEvent<'_>,
    user: Option<Channel>,
    identity: &Identity,
    path: &str,
    now: Now,
) -> Result<BufferedResponse, Problem> {
    let authorize = |owner: Option<&str>| identity.authorize_publish(channel, owner, user.as_ref());
    if authorize(None).is_err() {
        let owner = ownership::find(channel).await?;
        authorize(owner.as_deref()).map_err(|error| refusal::not_found(error, path))?;
    }
    let record_kind = if access.required() { Some(record(channel, user.as_ref(), identity).await?) } else { None };
    let data = event.data(channel, now.unix_ns / 1_000_000);
    let data = String::from_utf8(data).map_err(|_| Problem::internal("an event that is not UTF-8"))?;
    let finishes = event.finishes();
    let coalesce = (event.coalesces() && !finishes).then(|| event.name().to_owned());
    let name = event.name();
    let copy = user.as_ref().map(|user| {
        // In the channel of a user, progress coalesces for each workflow separately.
        let key = format!("{name}:{}", channel.id());
        let coalesce = coalesce.is_some().then_some(key).filter(|key| is_key(key));
        (user, Event { name: name.to_owned(), data: data.clone(), coalesce, finishes: false })
    });
    // The channel counts towards the share of the named user, or else of the publisher.
    let publisher = access.required().then(|| identity.user());
    let named_user = copy.as_ref().map(|(user, _)| user.id()).or_else(|| channel_user(channel));
    let share = publisher.map(|publisher| named_user.unwrap_or(publisher));
    let at = append_to_store(channel, Event { name: name.to_owned(), data, coalesce, finishes }, share).await?;
    match record_kind {
        // The store may have removed the channel and its record after the record was read.
        Some(RecordKind::Owner) if at.seq == 1 => {
            if let Some(user) = &user {
                ownership::assign(channel, user, ownership::PastEvents::Owned).await?;
            }
        }
        Some(RecordKind::Publisher) => ownership::confirm_publisher(channel, identity.user(), at).await?,
        _ => {}
    }
    let id = at.to_string();
    let copy_id = match copy {
        Some((user, event)) => {
            let at = append_to_store(user, event, publisher.map(|_| user.id())).await?;
            Some((user, at.to_string()))
        }
        None => None,
    };
    let copy_id = copy_id.as_ref().map(|(user, id)| (*user, id.as_str()));
    Ok(BufferedResponse::json(published_json(channel, &id, copy_id)))
}

/// Appends an event of the gateway itself, with its data. A new channel counts towards the share of the user, if one is
/// given.
pub(crate) async fn append_event(
    channel: &Channel,
    event: &StreamEvent<'_>,
    data: String,
    share: Option<&str>,
) -> Result<Cursor, Problem> {
    let finishes = event.finishes();
    let coalesce = (event.coalesces() && !finishes).then(|| event.name().to_owned());
    append_to_store(channel, Event { name: event.name().to_owned(), data, coalesce, finishes }, share).await
}

/// The user of a user channel.
fn channel_user(channel: &Channel) -> Option<&str> {
    (channel.kind() == ChannelKind::User).then(|| channel.id())
}

/// The record that was written before an event is appended.
enum RecordKind {
    Owner,
    Publisher,
}

/// Records the owner of a channel, or its publisher.
async fn record(channel: &Channel, user: Option<&Channel>, identity: &Identity) -> Result<RecordKind, Problem> {
    if let Some(user) = user {
        // A publisher without read access must not gain it by naming itself, nor give another user access to events that
        // other publishers wrote.
        let past = if identity.authorize(Action::Read, channel, None).is_ok() {
            ownership::PastEvents::Owned
        } else if user.id() == identity.user() {
            ownership::PastEvents::Withheld
        } else {
            ownership::PastEvents::PublishedBy(identity.user())
        };
        if ownership::assign(channel, user, past).await? {
            return Ok(RecordKind::Owner);
        }
    }
    ownership::record_publisher(channel, identity.user()).await?;
    Ok(RecordKind::Publisher)
}

/// Appends one event; returns its cursor. A new channel counts towards the share of a user.
async fn append_to_store(channel: &Channel, event: Event, share: Option<&str>) -> Result<Cursor, Problem> {
    let share = share.map(str::to_owned);
    let cursors = events::append(channel.to_string(), vec![event], None, share).await.map_err(store::problem)?;
    cursors.first().copied().ok_or_else(|| Problem::internal("the store returned no cursor"))
}

/// Whether the store accepts a text as a coalesce key.
fn is_key(text: &str) -> bool {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"_.:-".contains(&byte);
    text.len() <= KEY_BYTES_MAX && text.bytes().all(good)
}
