//! Transcript sessions that are stored: a session is its last checkpoint, in the memory of this instance and in the store, and the
//! events that its channel has since.
//!
//! Events are appended to the channel first, then the client gets them, then the checkpoint follows; the channel is the log that
//! carries a session on from its checkpoint, so that a crash between any two loses and doubles nothing of what a client was told.
//! What it was not told it submits again with its `seq`.
//!
//! - `keeping`: the sessions of this instance, and who holds each.
//! - `live`: a session that is run from its checkpoint and its channel.
//! - `feed`: a request that feeds one; `storing`: what it says, on its way into the channel and the checkpoint.
//! - `sweep`: who looks after sessions at rest.
//! - `store`: what outlives this instance.

mod feed;
mod keeping;
mod live;
mod store;
mod storing;
mod sweep;

use std::rc::Rc;

use spin_sdk::wasip3::{
    http::types::{self, Response},
    spawn,
};
use weir_auth::{identity::Identity, refusal, scope::Action};
use weir_codec::{
    channels::{
        publish::user_channel,
        route::{Channel, ChannelKind},
    },
    http::{accept, content_type, problem::Problem, request_id::uuid},
    json::field::{FieldError, FieldReason, RequestError},
    transcripts::{
        config::SessionAsk,
        route::SessionRoute,
        stored::{self, Head, Phase},
    },
};

use self::{
    feed::Source,
    keeping::{Entry, Keeping, PATIENCE_MS},
    live::now_ms,
};
use crate::{
    Answer, Call, LINES_OR_JSON, STREAM_FORMS,
    access::Access,
    bindings::weir::stream::{
        events::{self, Event, Failure},
        session::{InputBody, OutputBody},
    },
    http::{body::Arriving, request_id, response::Reply},
    owners, publish,
};

/// Most bytes of a segment of a stored session: every event must fit into the channel.
const SEGMENT_BYTES_MAX: usize = 32 << 10;
/// Most bytes that the window and the queues of a stored session may come to: its checkpoint must fit into the store.
const KEPT_BYTES_MAX: usize = 768 << 10;
/// The event that a deleted session ends with.
const DELETED: &str = "session_deleted";

/// The host has started this instance: sessions that are in the store are looked after again.
pub(crate) fn wake() {
    if std::env::var_os("WEIR_KEEPER").is_none() {
        return;
    }
    if let Ok(keeping) = Keeping::current() {
        spawn(sweep::restore(keeping));
    }
}

/// Answers a path of the sessions.
pub(crate) async fn answer(call: &Call<'_>, route: SessionRoute, body: types::Request) -> Result<Answer, Problem> {
    let identity = call.identify().await?;
    let keeping = Keeping::current()?;
    match route {
        SessionRoute::All => create(call, keeping, &identity, body).await.map(Answer::Whole),
        SessionRoute::One(channel) if call.method.as_str() == "DELETE" => {
            let entry = find(call, keeping, &identity, Action::Cancel, &channel).await?;
            delete(call, keeping, &entry).await.map(Answer::Whole)
        }
        SessionRoute::One(channel) => {
            let entry = find(call, keeping, &identity, Action::Read, &channel).await?;
            refresh(call, keeping, &entry).await?;
            state(keeping, &entry, identity.user()).await.map(Answer::Whole)
        }
        SessionRoute::Context(channel) => {
            let entry = find(call, keeping, &identity, Action::Read, &channel).await?;
            refresh(call, keeping, &entry).await?;
            context(call, keeping, &entry, identity.user()).await.map(Answer::Whole)
        }
        SessionRoute::Chunks(channel) => {
            let entry = find(call, keeping, &identity, Action::Publish, &channel).await?;
            let content_type = call.header("content-type");
            // A chunk is a line of JSON and a body of JSON is one chunk: both are read alike.
            if !content_type::is_ndjson(content_type.as_deref()) && !content_type::is_json(content_type.as_deref()) {
                return Err(Problem::unsupported_media_type(content_type.as_deref(), &LINES_OR_JSON));
            }
            call.encoding()?;
            let body = call.arriving(body, keeping.settings).await?;
            feed(call, keeping, &entry, Source::Lines(body)).await.map(Answer::Streaming)
        }
        SessionRoute::End(channel) => {
            let entry = find(call, keeping, &identity, Action::Publish, &channel).await?;
            drop(Arriving::open(body));
            feed(call, keeping, &entry, Source::End).await.map(Answer::Streaming)
        }
    }
}

/// The session of a path, if it is there and this user may do that with it: both are one answer.
async fn find(
    call: &Call<'_>,
    keeping: &'static Keeping,
    identity: &Identity,
    action: Action,
    channel: &Channel,
) -> Result<Rc<Entry>, Problem> {
    let entry = keeping.find(channel.id()).await?.filter(|entry| !entry.is_deleted());
    let owner = entry.as_ref().and_then(|entry| entry.head().owner);
    identity.authorize(action, channel, owner.as_deref()).map_err(|error| refusal::not_found(error, &call.path))?;
    entry.ok_or_else(|| refusal::not_found(weir_auth::identity::NotFound, &call.path))
}

/// What is asked for may be newer in the store than here.
async fn refresh(call: &Call<'_>, keeping: &'static Keeping, entry: &Entry) -> Result<(), Problem> {
    match keeping.refresh(entry).await? {
        true => Ok(()),
        false => Err(gone(call)),
    }
}

fn gone(call: &Call<'_>) -> Problem {
    refusal::not_found(weir_auth::identity::NotFound, &call.path)
}

/// Whether a session of a channel is kept, in memory or in the store.
pub(crate) async fn exists(channel: &Channel) -> Result<bool, Problem> {
    if let Some(is_deleted) = Keeping::current()?.is_deleted(channel.id()) {
        return Ok(!is_deleted);
    }
    Ok(store::get(channel).await?.is_some())
}

/// A session that begins.
async fn create(
    call: &Call<'_>,
    keeping: &'static Keeping,
    identity: &Identity,
    body: types::Request,
) -> Result<Reply, Problem> {
    let access = Access::current()?;
    access.publishes(identity, call.began)?;
    let ask = SessionAsk::from_json(&call.json(body, keeping.settings).await?)?;
    storable(&ask)?;
    expires(&ask, keeping.settings.sessions.expire_ms_max)?;
    let owner = access.required().then(|| identity.user());
    let _place = keeping.reserve(owner)?;
    let id = uuid(u128::from_be_bytes(request_id::random()));
    let channel = Channel::new(ChannelKind::Session, &id).map_err(|error| Problem::internal(&error.to_string()))?;
    let checkpoint = live::begin(&ask).await?;
    if let Some(user) = owner.and_then(user_channel) {
        owners::settle(&channel, &user, owners::Past::Owned).await?;
    }
    let head = Head::new(owner.map(Into::into), now_ms(), &ask);
    let entry = keeping.insert(channel, head, checkpoint, true, true);
    if let Err(problem) = keeping.own_new(&entry).await {
        keeping.remove(&entry);
        return Err(problem);
    }
    let put = keeping.put(&entry).await;
    if let Err(problem) = put {
        // Who is told that there is none must not find one later.
        let _ = keeping.forget(&entry).await;
        return Err(problem);
    }
    entry.release_owned().await;
    keeping.evict();
    sweep::begin(keeping);
    Ok(Reply::created(stored::created_json(&id)).with("location", format!("/sessions/{id}")))
}

/// Whether every event fits into the channel, and every checkpoint into the store.
fn storable(ask: &SessionAsk) -> Result<(), RequestError> {
    let config = &ask.config;
    let bytes = config.limits.segment_bytes_max;
    let queued = config.routing.queued_max.min(config.routing.queue_len_max.iter().sum());
    let segments = config.context.max_segments + queued + 1;
    let refuse = |field: &str, message: String| {
        Err(RequestError::Invalid(vec![FieldError::new(field, FieldReason::OutOfRange, message)]))
    };
    if bytes > SEGMENT_BYTES_MAX {
        let field = "limits.segment_bytes_max";
        return refuse(
            field,
            format!("`{field}` of a stored session may be at most {SEGMENT_BYTES_MAX}, and is {bytes}"),
        );
    }
    if segments * bytes > KEPT_BYTES_MAX {
        let message = format!(
            "a stored session may keep at most {KEPT_BYTES_MAX} bytes; its window and queues may come to {segments} segments of {bytes}"
        );
        return refuse("context.max_segments", message);
    }
    Ok(())
}

/// Whether the session expires when it is left alone, as soon as the operator says; 0 allows sessions that do not expire.
fn expires(ask: &SessionAsk, expire_ms_max: u64) -> Result<(), RequestError> {
    let expire_ms = ask.config.idle.expire_ms;
    if expire_ms_max == 0 || (1..=expire_ms_max).contains(&expire_ms) {
        return Ok(());
    }
    let asked = if expire_ms == 0 { "0, which is never".to_owned() } else { expire_ms.to_string() };
    let message = format!("`idle.expire_ms` of a stored session must be 1 to {expire_ms_max} here, and is {asked}");
    Err(RequestError::Invalid(vec![FieldError::new("idle.expire_ms", FieldReason::OutOfRange, message)]))
}

/// Feeds a session, in the place of whoever feeds it now.
async fn feed(
    call: &Call<'_>,
    keeping: &'static Keeping,
    entry: &Rc<Entry>,
    source: Source,
) -> Result<Response, Problem> {
    let framing =
        accept::framing(call.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
    open_for_input(entry)?;
    let user = entry.head().owner.as_deref().and_then(user_channel);
    if let Some(user) = user {
        owners::settle(&entry.channel, &user, owners::Past::Owned).await?;
    }
    let lease = entry.lease().await;
    keeping.own(entry, PATIENCE_MS).await?.ok_or_else(|| gone(call))?;
    let live = live::open(keeping, entry).await?;
    // It may have ended while this waited.
    open_for_input(entry)?;
    let (response, client) = call.streaming(framing)?;
    spawn(feed::feed(keeping, lease, live, source, framing, call.began, client));
    Ok(response)
}

fn open_for_input(entry: &Entry) -> Result<(), Problem> {
    match entry.phase() {
        Phase::Open => Ok(()),
        Phase::Ended => Err(storing::finished()),
        Phase::Expired => {
            let detail = "the session was left alone for too long, and takes no more";
            Err(Problem::refused(409, "session_expired", "The session has expired", detail, None))
        }
    }
}

/// What a session is.
async fn state(keeping: &'static Keeping, entry: &Entry, user: &str) -> Result<Reply, Problem> {
    match live::ask(keeping, entry, InputBody::State, user).await? {
        OutputBody::State(state) => {
            let body = stored::session_json(entry.channel.id(), &entry.head(), entry.is_held(), &state);
            Ok(Reply::json(body))
        }
        _ => Err(Problem::internal("the session answered something else")),
    }
}

/// What a language model is shown: text, or JSON.
async fn context(call: &Call<'_>, keeping: &'static Keeping, entry: &Entry, user: &str) -> Result<Reply, Problem> {
    const FORMS: [&str; 2] = ["application/json", "text/plain"];
    let accepted = call.header("accept");
    let plain = accept::plain_text(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
    match live::ask(keeping, entry, InputBody::Context, user).await? {
        OutputBody::Context((text, _)) if plain => Ok(Reply::ok("text/plain; charset=utf-8", text.into_bytes())),
        OutputBody::Context((_, json)) => Ok(Reply::json(json.into_bytes())),
        _ => Err(Problem::internal("the session answered something else")),
    }
}

/// Ends a session at once, with all that is known of it but its channel.
async fn delete(call: &Call<'_>, keeping: &'static Keeping, entry: &Rc<Entry>) -> Result<Reply, Problem> {
    let lease = entry.lease().await;
    let owned = keeping.own(entry, PATIENCE_MS).await?.ok_or_else(|| gone(call))?;
    let data = format!("{{\"type\":\"{DELETED}\"}}");
    let event = Event { name: DELETED.to_owned(), data, coalesce: None, finishes: true };
    match events::append(entry.channel.to_string(), vec![event], Some(owned.fence()), entry.owner()).await {
        // It has its last event already where the session has ended, or was being deleted when this server was.
        Ok(_) | Err(Failure::Finished) => {}
        Err(failure) => return Err(publish::problem(failure)),
    }
    keeping.forget(entry).await?;
    owned.release().await;
    drop(lease);
    Ok(Reply::empty())
}
