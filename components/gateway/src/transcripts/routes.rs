//! The paths of transcripts: `/v1/transcript`, `/v1/annotate` and stored sessions.

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
        annotate_stream::read_texts,
        config::SessionRequest,
        route::SessionRoute,
        stored::{self, Head, Phase},
    },
};

use super::{
    feed::{self, FeedSource},
    log, one_shot, persistence,
    registry::{Entry, PATIENCE_MS, SessionRegistry},
    running::{self, now_ms},
    sweep,
};
use crate::{
    auth::Access,
    channels::ownership,
    http::{
        body::BodyReader,
        request::{LINES_OR_JSON, RequestContext, STREAM_FORMS},
        request_id,
        response::{BufferedResponse, RouteResponse},
    },
    platform::{
        bindings::weir::stream::{
            events::{self, Event, Failure},
            session::{InputBody, OutputBody},
        },
        settings::Settings,
        store,
    },
};

/// Maximum size of a segment of a stored session, in bytes: every event must fit into the channel.
const SEGMENT_BYTES_MAX: usize = 32 << 10;
/// Maximum size of the window and the queues of a stored session, in bytes: its checkpoint must fit into the store.
const KEPT_BYTES_MAX: usize = 768 << 10;
/// The event that a deleted session ends with.
const DELETED: &str = "session_deleted";

/// The media types of a transcript: lines, or captions.
const TRANSCRIPTS: [&str; 4] = ["application/x-ndjson", "application/json", "text/vtt", "application/x-subrip"];

impl RequestContext<'_> {
    /// A transcript session in one request: chunks on lines in, events out.
    pub(crate) async fn transcript(&self, body: types::Request) -> Result<Response, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let framing =
            accept::framing(self.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
        let mut session_request = SessionRequest::from_query(self.query)?;
        let content_type = self.header("content-type");
        let is_captions = content_type::is_captions(content_type.as_deref());
        // A line of JSON is a chunk, and a JSON body is a single chunk, so both are read as lines.
        if !is_captions
            && !content_type::is_ndjson(content_type.as_deref())
            && !content_type::is_json(content_type.as_deref())
        {
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &TRANSCRIPTS));
        }
        self.encoding()?;
        let source = match is_captions {
            true => {
                // The cues of captions may overlap.
                session_request.config.overlap = true;
                one_shot::InputSource::captions(&self.whole(body, settings).await?)?
            }
            false => one_shot::InputSource::Lines(self.body_reader(body, settings).await?),
        };
        let opened = one_shot::open(&session_request).await?;
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { one_shot::stream(source, opened, session_request, framing, settings, began, client).await });
        Ok(response)
    }

    /// Annotates texts by rules: on lines, with a stream, or in a JSON body, with one response.
    pub(crate) async fn annotate(&self, body: types::Request) -> Result<RouteResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let (content_type, accepted) = (self.header("content-type"), self.header("accept"));
        let session_request = SessionRequest::annotate_from_query(self.query)?;
        let plain = content_type::is_plain(content_type.as_deref());
        if plain || content_type::is_ndjson(content_type.as_deref()) {
            let framing = accept::framing(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
            self.encoding()?;
            let body = self.body_reader(body, settings).await?;
            let (response, client) = self.streaming(framing)?;
            let began = self.began;
            spawn(async move {
                one_shot::annotate_stream(body, plain, session_request, framing, settings, began, client).await;
            });
            return Ok(RouteResponse::Streaming(response));
        }
        if !content_type::is_json(content_type.as_deref()) {
            const FORMS: [&str; 3] = ["application/x-ndjson", "text/plain", "application/json"];
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &FORMS));
        }
        if !accept::json(accepted.as_deref()) {
            return Err(Problem::not_acceptable(&["application/json"]));
        }
        let texts = read_texts(&self.json(body, settings).await?)?;
        one_shot::annotate_whole(&session_request, texts)
            .await
            .map(|body| RouteResponse::Whole(BufferedResponse::json(body)))
    }
}

/// Called when the host has started this instance: starts the sweep of stored sessions, once.
pub(crate) fn wake() {
    // Invalid settings are reported to each request.
    if let Ok(registry) = SessionRegistry::current()
        && registry.settings.keeper
        && registry.restoration.begin()
    {
        spawn(sweep::restore(registry));
    }
}

/// Handles a path of the sessions.
pub(crate) async fn respond(
    request: &RequestContext<'_>,
    route: SessionRoute,
    body: types::Request,
) -> Result<RouteResponse, Problem> {
    let identity = request.identify().await?;
    let registry = SessionRegistry::current()?;
    match route {
        SessionRoute::All => create(request, registry, &identity, body).await.map(RouteResponse::Whole),
        SessionRoute::One(channel) if request.method.as_str() == "DELETE" => {
            let entry = find(request, registry, &identity, Action::Cancel, &channel).await?;
            delete(request, registry, &entry).await.map(RouteResponse::Whole)
        }
        SessionRoute::One(channel) => {
            let entry = find(request, registry, &identity, Action::Read, &channel).await?;
            refresh(request, registry, &entry).await?;
            state(registry, &entry, identity.user()).await.map(RouteResponse::Whole)
        }
        SessionRoute::Context(channel) => {
            let entry = find(request, registry, &identity, Action::Read, &channel).await?;
            refresh(request, registry, &entry).await?;
            context(request, registry, &entry, identity.user()).await.map(RouteResponse::Whole)
        }
        SessionRoute::Chunks(channel) => {
            let entry = find(request, registry, &identity, Action::Publish, &channel).await?;
            let content_type = request.header("content-type");
            // A line of JSON is a chunk, and a JSON body is a single chunk, so both are read as lines.
            if !content_type::is_ndjson(content_type.as_deref()) && !content_type::is_json(content_type.as_deref()) {
                return Err(Problem::unsupported_media_type(content_type.as_deref(), &LINES_OR_JSON));
            }
            request.encoding()?;
            let body = request.body_reader(body, registry.settings).await?;
            feed(request, registry, &entry, FeedSource::Lines(body)).await.map(RouteResponse::Streaming)
        }
        SessionRoute::End(channel) => {
            let entry = find(request, registry, &identity, Action::Publish, &channel).await?;
            drop(BodyReader::open(body));
            feed(request, registry, &entry, FeedSource::End).await.map(RouteResponse::Streaming)
        }
    }
}

/// The session of a path, if it exists and this user may perform `action` on it. The response is the same in both other
/// cases.
async fn find(
    request: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    identity: &Identity,
    action: Action,
    channel: &Channel,
) -> Result<Rc<Entry>, Problem> {
    let entry = registry.find(channel.id()).await?.filter(|entry| !entry.is_deleted());
    let owner = entry.as_ref().and_then(|entry| entry.head().owner);
    identity.authorize(action, channel, owner.as_deref()).map_err(|error| refusal::not_found(error, &request.path))?;
    entry.ok_or_else(|| refusal::not_found(weir_auth::identity::NotFound, &request.path))
}

/// Refreshes an entry from the store, which may have a newer state; 404 if the session was deleted.
async fn refresh(
    request: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Entry,
) -> Result<(), Problem> {
    match registry.refresh(entry).await? {
        true => Ok(()),
        false => Err(gone(request)),
    }
}

fn gone(request: &RequestContext<'_>) -> Problem {
    refusal::not_found(weir_auth::identity::NotFound, &request.path)
}

/// True when a session of this channel exists, in memory or in the store.
pub(crate) async fn exists(channel: &Channel) -> Result<bool, Problem> {
    if let Some(is_deleted) = SessionRegistry::current()?.is_deleted(channel.id()) {
        return Ok(!is_deleted);
    }
    Ok(persistence::get(channel).await?.is_some())
}

/// Creates a stored session.
async fn create(
    request: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    identity: &Identity,
    body: types::Request,
) -> Result<BufferedResponse, Problem> {
    let access = Access::current()?;
    access.check_publish_rate(identity, request.began)?;
    let session_request = SessionRequest::from_json(&request.json(body, registry.settings).await?)?;
    storable(&session_request)?;
    expires(&session_request, registry.settings.sessions.expire_ms_max)?;
    let owner = access.required().then(|| identity.user());
    registry.restoration.counted().await?;
    let reservation = registry.reserve(owner)?;
    let id = uuid(u128::from_be_bytes(request_id::random()));
    let channel = Channel::new(ChannelKind::Session, &id).map_err(|error| Problem::internal(&error.to_string()))?;
    let checkpoint = running::begin(&session_request).await?;
    if let Some(user) = owner.and_then(user_channel) {
        ownership::assign(&channel, &user, ownership::PastEvents::Owned).await?;
    }
    let head = Head::new(owner.map(Into::into), now_ms(), &session_request);
    // The entry counts the session from here on.
    drop(reservation);
    let entry = registry.insert(channel, head, checkpoint, true, true);
    if let Err(problem) = registry.acquire_new(&entry).await {
        registry.remove(&entry);
        return Err(problem);
    }
    let put = registry.put(&entry).await;
    if let Err(problem) = put {
        // A client that got an error must not find the session later.
        let _ = registry.delete(&entry).await;
        return Err(problem);
    }
    entry.release_store_lease().await;
    registry.evict();
    sweep::begin(registry);
    Ok(BufferedResponse::created(stored::created_json(&id)).with("location", format!("/sessions/{id}")))
}

/// Checks that every event fits into the channel, and every checkpoint into the store.
fn storable(session_request: &SessionRequest) -> Result<(), RequestError> {
    let config = &session_request.config;
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

/// Checks that an idle session expires within the bound of the operator; a bound of 0 permits sessions that do not
/// expire.
fn expires(session_request: &SessionRequest, expire_ms_max: u64) -> Result<(), RequestError> {
    let expire_ms = session_request.config.idle.expire_ms;
    if expire_ms_max == 0 || (1..=expire_ms_max).contains(&expire_ms) {
        return Ok(());
    }
    let value = if expire_ms == 0 { "0, which is never".to_owned() } else { expire_ms.to_string() };
    let message = format!("`idle.expire_ms` of a stored session must be 1 to {expire_ms_max} here, and is {value}");
    Err(RequestError::Invalid(vec![FieldError::new("idle.expire_ms", FieldReason::OutOfRange, message)]))
}

/// Feeds a session; the request that feeds it now is stopped.
async fn feed(
    request: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Rc<Entry>,
    source: FeedSource,
) -> Result<Response, Problem> {
    let framing =
        accept::framing(request.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
    open_for_input(entry)?;
    let user = entry.head().owner.as_deref().and_then(user_channel);
    if let Some(user) = user {
        ownership::assign(&entry.channel, &user, ownership::PastEvents::Owned).await?;
    }
    let lease = entry.lease().await;
    registry.acquire(entry, PATIENCE_MS).await?.ok_or_else(|| gone(request))?;
    let session = running::open(registry, entry).await?;
    // It may have ended while this request waited.
    open_for_input(entry)?;
    let (response, client) = request.streaming(framing)?;
    spawn(feed::feed(registry, lease, session, source, framing, request.began, client));
    Ok(response)
}

fn open_for_input(entry: &Entry) -> Result<(), Problem> {
    match entry.phase() {
        Phase::Open => Ok(()),
        Phase::Ended => Err(log::finished()),
        Phase::Expired => {
            let detail = "the session was idle for too long and accepts no more input";
            Err(Problem::refused(409, "session_expired", "The session has expired", detail, None))
        }
    }
}

/// The response with the state of a session.
async fn state(registry: &'static SessionRegistry, entry: &Entry, user: &str) -> Result<BufferedResponse, Problem> {
    match running::query(registry, entry, InputBody::State, user).await? {
        OutputBody::State(state) => {
            let body = stored::session_json(entry.channel.id(), &entry.head(), entry.is_held(), &state);
            Ok(BufferedResponse::json(body))
        }
        _ => Err(Problem::internal("the session answered something else")),
    }
}

/// The response with the context of a session for a language model, as text or JSON.
async fn context(
    request: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Entry,
    user: &str,
) -> Result<BufferedResponse, Problem> {
    const FORMS: [&str; 2] = ["application/json", "text/plain"];
    let accepted = request.header("accept");
    let plain = accept::plain_text(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
    match running::query(registry, entry, InputBody::Context, user).await? {
        OutputBody::Context((text, _)) if plain => {
            Ok(BufferedResponse::ok("text/plain; charset=utf-8", text.into_bytes()))
        }
        OutputBody::Context((_, json)) => Ok(BufferedResponse::json(json.into_bytes())),
        _ => Err(Problem::internal("the session answered something else")),
    }
}

/// Deletes a session and its state. Its channel remains, with a last event.
async fn delete(
    request: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Rc<Entry>,
) -> Result<BufferedResponse, Problem> {
    let lease = entry.lease().await;
    let store_lease = registry.acquire(entry, PATIENCE_MS).await?.ok_or_else(|| gone(request))?;
    let data = format!("{{\"type\":\"{DELETED}\"}}");
    let event = Event { name: DELETED.to_owned(), data, coalesce: None, finishes: true };
    match events::append(entry.channel.to_string(), vec![event], Some(store_lease.fence()), entry.owner()).await {
        // The channel has its last event already if the session has ended, or if a crash interrupted an earlier
        // deletion.
        Ok(_) | Err(Failure::Finished) => {}
        Err(failure) => return Err(store::problem(failure)),
    }
    registry.delete(entry).await?;
    store_lease.release().await;
    drop(lease);
    Ok(BufferedResponse::empty())
}
