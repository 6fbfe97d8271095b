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

/// Most bytes of a segment of a stored session: every event must fit into the channel.
const SEGMENT_BYTES_MAX: usize = 32 << 10;
/// Most bytes that the window and the queues of a stored session may come to: its checkpoint must fit into the store.
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
        let mut ask = SessionRequest::from_query(self.query)?;
        let content_type = self.header("content-type");
        let is_captions = content_type::is_captions(content_type.as_deref());
        // A chunk is a line of JSON and a body of JSON is one chunk: both are read alike.
        if !is_captions
            && !content_type::is_ndjson(content_type.as_deref())
            && !content_type::is_json(content_type.as_deref())
        {
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &TRANSCRIPTS));
        }
        self.encoding()?;
        let source = match is_captions {
            true => {
                // Two people may speak at once.
                ask.config.overlap = true;
                one_shot::InputSource::captions(&self.whole(body, settings).await?)?
            }
            false => one_shot::InputSource::Lines(self.body_reader(body, settings).await?),
        };
        let opened = one_shot::open(&ask).await?;
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { one_shot::stream(source, opened, ask, framing, settings, began, client).await });
        Ok(response)
    }

    /// What texts say by their words: on lines, answered as a stream, or in a JSON body, answered at once.
    pub(crate) async fn annotate(&self, body: types::Request) -> Result<RouteResponse, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let (content_type, accepted) = (self.header("content-type"), self.header("accept"));
        let ask = SessionRequest::annotate_from_query(self.query)?;
        let plain = content_type::is_plain(content_type.as_deref());
        if plain || content_type::is_ndjson(content_type.as_deref()) {
            let framing = accept::framing(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
            self.encoding()?;
            let body = self.body_reader(body, settings).await?;
            let (response, client) = self.streaming(framing)?;
            let began = self.began;
            spawn(async move {
                one_shot::annotate_stream(body, plain, ask, framing, settings, began, client).await;
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
        one_shot::annotate_whole(&ask, texts).await.map(|body| RouteResponse::Whole(BufferedResponse::json(body)))
    }
}

/// The host has started this instance: the sweep of stored sessions starts.
pub(crate) fn wake() {
    if std::env::var_os("WEIR_KEEPER").is_none() {
        return;
    }
    if let Ok(registry) = SessionRegistry::current() {
        registry.restoration.begin();
        spawn(sweep::restore(registry));
    }
}

/// Answers a path of the sessions.
pub(crate) async fn answer(
    call: &RequestContext<'_>,
    route: SessionRoute,
    body: types::Request,
) -> Result<RouteResponse, Problem> {
    let identity = call.identify().await?;
    let registry = SessionRegistry::current()?;
    match route {
        SessionRoute::All => create(call, registry, &identity, body).await.map(RouteResponse::Whole),
        SessionRoute::One(channel) if call.method.as_str() == "DELETE" => {
            let entry = find(call, registry, &identity, Action::Cancel, &channel).await?;
            delete(call, registry, &entry).await.map(RouteResponse::Whole)
        }
        SessionRoute::One(channel) => {
            let entry = find(call, registry, &identity, Action::Read, &channel).await?;
            refresh(call, registry, &entry).await?;
            state(registry, &entry, identity.user()).await.map(RouteResponse::Whole)
        }
        SessionRoute::Context(channel) => {
            let entry = find(call, registry, &identity, Action::Read, &channel).await?;
            refresh(call, registry, &entry).await?;
            context(call, registry, &entry, identity.user()).await.map(RouteResponse::Whole)
        }
        SessionRoute::Chunks(channel) => {
            let entry = find(call, registry, &identity, Action::Publish, &channel).await?;
            let content_type = call.header("content-type");
            // A chunk is a line of JSON and a body of JSON is one chunk: both are read alike.
            if !content_type::is_ndjson(content_type.as_deref()) && !content_type::is_json(content_type.as_deref()) {
                return Err(Problem::unsupported_media_type(content_type.as_deref(), &LINES_OR_JSON));
            }
            call.encoding()?;
            let body = call.body_reader(body, registry.settings).await?;
            feed(call, registry, &entry, FeedSource::Lines(body)).await.map(RouteResponse::Streaming)
        }
        SessionRoute::End(channel) => {
            let entry = find(call, registry, &identity, Action::Publish, &channel).await?;
            drop(BodyReader::open(body));
            feed(call, registry, &entry, FeedSource::End).await.map(RouteResponse::Streaming)
        }
    }
}

/// The session of a path, if it is there and this user may do that with it: both are one answer.
async fn find(
    call: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    identity: &Identity,
    action: Action,
    channel: &Channel,
) -> Result<Rc<Entry>, Problem> {
    let entry = registry.find(channel.id()).await?.filter(|entry| !entry.is_deleted());
    let owner = entry.as_ref().and_then(|entry| entry.head().owner);
    identity.authorize(action, channel, owner.as_deref()).map_err(|error| refusal::not_found(error, &call.path))?;
    entry.ok_or_else(|| refusal::not_found(weir_auth::identity::NotFound, &call.path))
}

/// What is asked for may be newer in the store than here.
async fn refresh(call: &RequestContext<'_>, registry: &'static SessionRegistry, entry: &Entry) -> Result<(), Problem> {
    match registry.refresh(entry).await? {
        true => Ok(()),
        false => Err(gone(call)),
    }
}

fn gone(call: &RequestContext<'_>) -> Problem {
    refusal::not_found(weir_auth::identity::NotFound, &call.path)
}

/// True when a session of this channel exists, in memory or in the store.
pub(crate) async fn exists(channel: &Channel) -> Result<bool, Problem> {
    if let Some(is_deleted) = SessionRegistry::current()?.is_deleted(channel.id()) {
        return Ok(!is_deleted);
    }
    Ok(persistence::get(channel).await?.is_some())
}

/// A session that begins.
async fn create(
    call: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    identity: &Identity,
    body: types::Request,
) -> Result<BufferedResponse, Problem> {
    let access = Access::current()?;
    access.check_publish_rate(identity, call.began)?;
    let ask = SessionRequest::from_json(&call.json(body, registry.settings).await?)?;
    storable(&ask)?;
    expires(&ask, registry.settings.sessions.expire_ms_max)?;
    let owner = access.required().then(|| identity.user());
    registry.restoration.counted().await?;
    let reservation = registry.reserve(owner)?;
    let id = uuid(u128::from_be_bytes(request_id::random()));
    let channel = Channel::new(ChannelKind::Session, &id).map_err(|error| Problem::internal(&error.to_string()))?;
    let checkpoint = running::begin(&ask).await?;
    if let Some(user) = owner.and_then(user_channel) {
        ownership::settle(&channel, &user, ownership::PastEvents::Owned).await?;
    }
    let head = Head::new(owner.map(Into::into), now_ms(), &ask);
    // The entry counts from here on: with both, the session would count twice.
    drop(reservation);
    let entry = registry.insert(channel, head, checkpoint, true, true);
    if let Err(problem) = registry.own_new(&entry).await {
        registry.remove(&entry);
        return Err(problem);
    }
    let put = registry.put(&entry).await;
    if let Err(problem) = put {
        // A client that was answered 404 must not find the session later.
        let _ = registry.forget(&entry).await;
        return Err(problem);
    }
    entry.release_owned().await;
    registry.evict();
    sweep::begin(registry);
    Ok(BufferedResponse::created(stored::created_json(&id)).with("location", format!("/sessions/{id}")))
}

/// Whether every event fits into the channel, and every checkpoint into the store.
fn storable(ask: &SessionRequest) -> Result<(), RequestError> {
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
fn expires(ask: &SessionRequest, expire_ms_max: u64) -> Result<(), RequestError> {
    let expire_ms = ask.config.idle.expire_ms;
    if expire_ms_max == 0 || (1..=expire_ms_max).contains(&expire_ms) {
        return Ok(());
    }
    let asked = if expire_ms == 0 { "0, which is never".to_owned() } else { expire_ms.to_string() };
    let message = format!("`idle.expire_ms` of a stored session must be 1 to {expire_ms_max} here, and is {asked}");
    Err(RequestError::Invalid(vec![FieldError::new("idle.expire_ms", FieldReason::OutOfRange, message)]))
}

/// Feeds a session; the request that feeds it now is stopped.
async fn feed(
    call: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Rc<Entry>,
    source: FeedSource,
) -> Result<Response, Problem> {
    let framing =
        accept::framing(call.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
    open_for_input(entry)?;
    let user = entry.head().owner.as_deref().and_then(user_channel);
    if let Some(user) = user {
        ownership::settle(&entry.channel, &user, ownership::PastEvents::Owned).await?;
    }
    let lease = entry.lease().await;
    registry.own(entry, PATIENCE_MS).await?.ok_or_else(|| gone(call))?;
    let session = running::open(registry, entry).await?;
    // It may have ended while this waited.
    open_for_input(entry)?;
    let (response, client) = call.streaming(framing)?;
    spawn(feed::feed(registry, lease, session, source, framing, call.began, client));
    Ok(response)
}

fn open_for_input(entry: &Entry) -> Result<(), Problem> {
    match entry.phase() {
        Phase::Open => Ok(()),
        Phase::Ended => Err(log::finished()),
        Phase::Expired => {
            let detail = "the session was left alone for too long, and takes no more";
            Err(Problem::refused(409, "session_expired", "The session has expired", detail, None))
        }
    }
}

/// What a session is.
async fn state(registry: &'static SessionRegistry, entry: &Entry, user: &str) -> Result<BufferedResponse, Problem> {
    match running::ask(registry, entry, InputBody::State, user).await? {
        OutputBody::State(state) => {
            let body = stored::session_json(entry.channel.id(), &entry.head(), entry.is_held(), &state);
            Ok(BufferedResponse::json(body))
        }
        _ => Err(Problem::internal("the session answered something else")),
    }
}

/// What a language model is shown: text, or JSON.
async fn context(
    call: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Entry,
    user: &str,
) -> Result<BufferedResponse, Problem> {
    const FORMS: [&str; 2] = ["application/json", "text/plain"];
    let accepted = call.header("accept");
    let plain = accept::plain_text(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
    match running::ask(registry, entry, InputBody::Context, user).await? {
        OutputBody::Context((text, _)) if plain => {
            Ok(BufferedResponse::ok("text/plain; charset=utf-8", text.into_bytes()))
        }
        OutputBody::Context((_, json)) => Ok(BufferedResponse::json(json.into_bytes())),
        _ => Err(Problem::internal("the session answered something else")),
    }
}

/// Ends a session at once, with all that is known of it but its channel.
async fn delete(
    call: &RequestContext<'_>,
    registry: &'static SessionRegistry,
    entry: &Rc<Entry>,
) -> Result<BufferedResponse, Problem> {
    let lease = entry.lease().await;
    let owned = registry.own(entry, PATIENCE_MS).await?.ok_or_else(|| gone(call))?;
    let data = format!("{{\"type\":\"{DELETED}\"}}");
    let event = Event { name: DELETED.to_owned(), data, coalesce: None, finishes: true };
    match events::append(entry.channel.to_string(), vec![event], Some(owned.fence()), entry.owner()).await {
        // It has its last event already where the session has ended, or was being deleted when this server was.
        Ok(_) | Err(Failure::Finished) => {}
        Err(failure) => return Err(store::problem(failure)),
    }
    registry.forget(entry).await?;
    owned.release().await;
    drop(lease);
    Ok(BufferedResponse::empty())
}
