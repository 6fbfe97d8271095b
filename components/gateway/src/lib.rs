//! The gateway component: `wasi:http` in, streams of results out.
//!
//! It routes, validates, negotiates and renders; `weir:stream/infer` does the inference and `weir:stream/session` holds
//! transcript sessions. One instance serves many
//! requests at once: nothing here blocks, and nothing is shared but the settings.
//!
//! - `body`: request bodies, bounded in bytes and time.
//! - `process`: the two routes that take a text apart.
//! - `items`, `streams`: the routes that work text by text, answered whole and as a stream.
//! - `dialects`: the same in the words of other servers.
//! - `transcript`: a transcript session in one request, and what texts say by their words.
//! - `sessions`: transcript sessions that are stored; `annotating`: what models say of their segments.
//! - `duplex`: the client's side of a stream in both directions.
//! - `infer`: the gateway's side of `weir:stream/infer`.
//! - `lease`: what this instance owns among those that share a store.
//! - `access`: who asks, and whether they may; `claims`: which claims the store remembers; `owners`: to whom a channel belongs;
//!   `existence`: whether it exists.
//! - `publish`, `subscribe`, `sockets`: what goes into channels, and what comes out of them, one by one or many at once.
//! - `held`: a subscription where an intermediary in front holds the connection.
//! - `pipelines`: executions of pipelines, which outlive the requests that begin them.
//! - `reply`: responses.
//! - `wording`: errors of bindings as text.
//! - `turns`: whose slice of work runs next in this instance.
//! - `settings`, `clock`, `request_id`: the environment; `signal`: how parts of a task wait for each other.
//!
//! Imports `wasi:*` and `weir:stream/*`, nothing else.

mod access;
mod annotating;
mod bindings;
mod claims;
mod clock;
mod existence;
mod held;
mod http;
mod inference;
mod lease;
mod owners;
mod pipelines;
mod process;
mod publish;
mod sessions;
mod settings;
mod signal;
mod sockets;
mod subscribe;
mod transcript;
mod turns;
mod wording;

use std::{borrow::Cow, cell::RefCell};

use spin_sdk::{
    http::{HeaderMap, Method, Request},
    http_service,
    wasip3::{
        http::types::{self, ErrorCode, Response},
        spawn,
    },
};
use weir_auth::{cors, guard, identity::Identity, limits::Limits, refusal, scope::Scopes};
use weir_codec::{
    channels::{
        event::{ServiceHealth, health_json, ticket_json},
        hold::USER_HEADER,
        publish::TicketBody,
        route::{Channel, ChannelRoute},
    },
    http::{
        accept::{self, Answer as Form},
        content_type,
        framing::Framing,
        host,
        problem::Problem,
        route::{self, HUB_PREFIX, Route},
        router::Found,
        target,
    },
    inference::{models, output, query::Query, readiness::StepModels, request::Ask, task::Task},
    json::field::{FieldError, FieldReason, RequestError},
    pipelines::process_request::ProcessRequest,
    transcripts::{annotate_stream::read_texts, config::SessionAsk},
};
use weir_core::{pipelines::TIMEOUT_MS_MAX, process::Now};

use crate::{
    access::{Access, Asking},
    bindings::weir::stream::{events, state},
    clock::Deadline,
    http::{
        body::Arriving,
        response::{Client, Reply},
    },
    inference::{batch, dialects, requests::Plan, stream::Source},
    pipelines::{Inside, Pipelines},
    settings::{Grip, Settings},
};

/// The forms in which a stream is answered.
const STREAM_FORMS: [&str; 2] = ["application/x-ndjson", "text/event-stream"];

/// How long the models may take to say whether they are ready.
const MODELS_TIMEOUT_MS: u64 = 5000;
/// How long the channel store may take to say how it is.
const STORE_TIMEOUT_MS: u64 = 5000;
/// Answered whatever the settings and the models say.
const LIVEZ: &str = "/livez";
/// Answered by a host that has metrics, which asks here who may read them: 204 for one who may.
const METRICS: &str = "/metrics";
/// The media types of a body that is read whole.
const JSON: [&str; 1] = ["application/json"];
/// The media types of a transcript: lines, or captions.
const TRANSCRIPTS: [&str; 4] = ["application/x-ndjson", "application/json", "text/vtt", "application/x-subrip"];
/// The media types of a body of lines, or of one of them.
pub(crate) const LINES_OR_JSON: [&str; 2] = ["application/x-ndjson", "application/json"];

#[http_service]
async fn handle(request: Request) -> Result<Response, ErrorCode> {
    let began = clock::now();
    Pipelines::wake();
    let (parts, mut body) = request.into_parts();
    let mut call = Call {
        path: parts.uri.path().into(),
        query: parts.uri.query().unwrap_or_default(),
        host: parts.uri.authority().map(|authority| authority.as_str()),
        method: &parts.method,
        headers: &parts.headers,
        request_id: http::request_id::of(&parts.headers),
        page: Vec::new(),
        user: RefCell::default(),
        began,
    };
    let answer = match (call.enter(), body.take_unstarted()) {
        (Ok(()), Some(body)) => call.answer(body).await,
        (Ok(()), None) => Err(Problem::internal("the body was taken before it was read")),
        (Err(problem), _) => Err(problem),
    };
    let user = call.user_header();
    let mut reply = match answer {
        Ok(Answer::Streaming(response)) => return Ok(response),
        Ok(Answer::Whole(reply)) => reply,
        Err(problem) => {
            let reply = Reply::problem(&problem, Route::find(&call.path), &call.request_id);
            match refusal::challenge(&problem) {
                Some(challenge) => reply.with("www-authenticate", challenge),
                None => reply,
            }
        }
    };
    for (name, value) in call.page.into_iter().chain(user) {
        reply = reply.with(name, value);
    }
    reply
        .with("cache-control", "no-store")
        .with(http::request_id::HEADER, call.request_id)
        .into_response(parts.method == Method::HEAD)
}

enum Answer {
    Whole(Reply),
    Streaming(Response),
}

/// A request without its body.
struct Call<'a> {
    /// In its normal form.
    path: Cow<'a, str>,
    /// Without the question mark.
    query: &'a str,
    /// `Host` or `:authority`
    host: Option<&'a str>,
    method: &'a Method,
    headers: &'a HeaderMap,
    request_id: String,
    /// The headers of every answer, for the page that the request comes from.
    page: cors::Headers,
    /// Who was identified, for the host that counts the requests of users.
    user: RefCell<Option<String>>,
    began: Now,
}

impl Call<'_> {
    /// Looks at the head of the request: its bounds, and the page that it comes from.
    fn enter(&mut self) -> Result<(), Problem> {
        if let Cow::Owned(normal) = target::normalize_path(&self.path)? {
            self.path = Cow::Owned(normal);
        }
        target::check_query(self.query)?;
        let hosts = self.headers.get_all("host").iter().map(|host| host.as_bytes());
        // Hosts other than ours may leave both out.
        self.host = host::of_request(self.host, hosts, false)?;
        if self.path == LIVEZ {
            return Ok(());
        }
        let access = Access::current()?;
        let asking = self.asking();
        let page = access.page(&asking);
        let target = format!("{}?{}", self.path, self.query);
        let checked = Limits::default().check_head(&target, asking.headers.iter().copied());
        let checked = checked.map_err(Problem::from).and_then(|()| access.check_host(&asking));
        // Caches must not give to one page what was answered to another.
        let (page, refused) =
            page.map_or_else(|refused| (vec![cors::Cors::vary()], Err(refused)), |page| (page, Ok(())));
        self.page = page;
        refused?;
        checked
    }

    /// Finds out who sends the request. A ticket is used up by it.
    async fn identify(&self) -> Result<Identity, Problem> {
        let access = Access::current()?;
        let identity = access.identify(&self.asking(), self.began).await?;
        if access.required() {
            *self.user.borrow_mut() = Some(identity.user().to_owned());
        }
        Ok(identity)
    }

    /// The header that names the user to the host that holds connections; no other intermediary would take it out.
    fn user_header(&self) -> Option<(&'static str, String)> {
        let user = self.user.borrow().clone()?;
        let is_host = Settings::current().is_ok_and(|settings| matches!(settings.grip, Grip::Host));
        is_host.then_some((USER_HEADER, user))
    }

    /// What the request says of who sends it.
    fn asking(&self) -> Asking<'_> {
        let headers: Vec<_> = self.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        let changes = !matches!(*self.method, Method::GET | Method::HEAD);
        Asking { headers, path: &self.path, query: self.query, host: self.host, changes }
    }

    async fn answer(&mut self, body: types::Request) -> Result<Answer, Problem> {
        if self.method == Method::OPTIONS && matches!(&*self.path, "*" | "/*") {
            sessions::wake();
            Access::wake(self.began);
            return Ok(Answer::Whole(Reply::methods("GET, HEAD, POST, OPTIONS")));
        }
        let settings = Settings::current().map_err(Problem::internal)?;
        if self.path == METRICS && settings.grip == Grip::Host {
            self.identify().await?;
            return Ok(Answer::Whole(Reply::empty()));
        }
        let found = Found::at(&self.path)?;
        match self.method.as_str() {
            "GET" if Found::is_socket(&self.path) => return Err(Problem::upgrade_required(&self.path)),
            method if found.takes(method) => {}
            "OPTIONS" => return self.options(found.allow()).map(Answer::Whole),
            method => return Err(Problem::method_not_allowed(method, &self.path, found.allow())),
        }
        match found {
            Found::Own(route) => self.own(route, body).await,
            Found::Channels(route) => self.channels(route, body).await,
            Found::Sessions(route) => sessions::answer(self, route, body).await,
            Found::Pipelines(route) => {
                let identity = self.identify().await?;
                self.pipelines(route, body, &identity).await.map(Answer::Whole)
            }
        }
    }

    /// The methods of a path; for a page that asks before it asks, what it may send.
    fn options(&mut self, allow: &'static str) -> Result<Reply, Problem> {
        let preflight = match &*self.path {
            LIVEZ => None,
            _ => Access::current()?.preflight(&self.asking(), allow)?,
        };
        if let Some(headers) = preflight {
            self.page = headers;
        }
        Ok(Reply::methods(allow))
    }

    /// Texts, models, probes and documents.
    async fn own(&self, route: Route, body: types::Request) -> Result<Answer, Problem> {
        let open = matches!(route, Route::Index | Route::Livez | Route::Readyz | Route::OpenApi);
        if !open && Access::current()?.required() {
            self.identify().await?;
        }
        let reply = match route {
            Route::ProcessStream => return self.process_stream(body).await.map(Answer::Streaming),
            Route::ProcessBatch => self.process_batch(body).await?,
            Route::Task(task) => return self.task(task, body).await,
            Route::Transcript => return self.transcript(body).await.map(Answer::Streaming),
            Route::Annotate => return self.annotate(body).await,
            Route::Hub => {
                let settings = Settings::current().map_err(Problem::internal)?;
                let body = self.json(body, settings).await?;
                let name = self.path.strip_prefix(HUB_PREFIX).unwrap_or_default();
                dialects::hub(name, &body, settings, self.began).await?
            }
            Route::Predict => {
                let settings = Settings::current().map_err(Problem::internal)?;
                let body = self.json(body, settings).await?;
                dialects::predict(&body, settings, self.began).await?
            }
            Route::GenerateStream => return Err(Problem::not_implemented("this server does not generate text")),
            Route::Index => Reply::json(route::index_json(env!("CARGO_PKG_VERSION"))),
            // Alive means able to answer, whatever the settings and the models say.
            Route::Livez => Reply::json(br#"{"status":"alive"}"#.as_slice()),
            Route::Readyz => readyz(self.began).await?,
            Route::Models => Reply::json(models::models_json(&served(self.began).await?)),
            Route::OpenApi => Reply::json(include_bytes!("../openapi.json").as_slice()),
        };
        Ok(Answer::Whole(reply))
    }

    /// Channels: who asks is asked first, whatever they ask for.
    async fn channels(&self, route: ChannelRoute, body: types::Request) -> Result<Answer, Problem> {
        if route == ChannelRoute::Health {
            return health(self.began).await.map(Answer::Whole);
        }
        let identity = self.identify().await?;
        match route {
            ChannelRoute::Subscribe(channel) => self.subscribe(channel, &identity).await,
            ChannelRoute::PublishWorkflow(_) | ChannelRoute::PublishAnalysis(_) | ChannelRoute::PublishUser(_) => {
                let settings = Settings::current().map_err(Problem::internal)?;
                let body = self.json(body, settings).await?;
                // The time of the event is when all of it is here.
                publish::publish(&route, &body, &identity, &self.path, clock::now()).await.map(Answer::Whole)
            }
            ChannelRoute::Tickets => {
                let settings = Settings::current().map_err(Problem::internal)?;
                let body = self.json(body, settings).await?;
                self.ticket(&body, &identity).await.map(Answer::Whole)
            }
            ChannelRoute::Socket(channel) => self.socket(Some(channel), identity, body).await,
            ChannelRoute::Sockets => self.socket(None, identity, body).await,
            ChannelRoute::Health => Err(Problem::not_found(&self.path)),
        }
    }

    /// Follows a channel; 204 when it is finished and the client has all of it.
    async fn subscribe(&self, channel: Channel, identity: &Identity) -> Result<Answer, Problem> {
        const FORMS: [&str; 2] = ["text/event-stream", "application/x-ndjson"];
        let settings = Settings::current().map_err(Problem::internal)?;
        existence::may_follow(identity, &channel, &self.path).await?;
        let framing =
            accept::subscription(self.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
        let after = subscribe::cursor(self.headers.get("last-event-id").map(|id| id.as_bytes()), self.query)?;
        if !subscribe::goes_on(&channel, after).await? {
            return Ok(Answer::Whole(Reply::empty()));
        }
        if self.method == Method::HEAD {
            let reply = Reply::ok(framing.content_type(), b"".as_slice()).with("x-accel-buffering", "no");
            return Ok(Answer::Whole(reply));
        }
        let ends_s = identity.expires_at_s();
        if settings.grip != Grip::Off {
            let user = Access::current()?.required().then(|| identity.user().to_owned());
            let reply = held::answer(channel, after, framing, settings, ends_s, user).await?;
            return Ok(Answer::Whole(reply.with("vary", "accept").with("x-accel-buffering", "no")));
        }
        let place = Access::current()?.connect(identity, settings.grip)?;
        let followed = subscribe::follow(channel, after, framing, settings, ends_s, place).await?;
        let (response, client) = self.streaming(framing)?;
        spawn(followed.run(client));
        Ok(Answer::Streaming(response))
    }

    /// Talks with a client that follows many channels. `first` is the one that the path names.
    async fn socket(
        &self,
        first: Option<Channel>,
        identity: Identity,
        body: types::Request,
    ) -> Result<Answer, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let content_type = self.header("content-type");
        if !content_type::is_ndjson(content_type.as_deref()) {
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &["application/x-ndjson"]));
        }
        self.encoding()?;
        let first = match first {
            None => None,
            Some(channel) => {
                existence::may_follow(&identity, &channel, &self.path).await?;
                Some((channel, subscribe::cursor(None, self.query)?))
            }
        };
        let place = Access::current()?.connect(&identity, settings.grip)?;
        let socket = sockets::Socket { identity, path: self.path.clone().into_owned(), settings, _place: place };
        let body = self.arriving(body, settings).await?;
        let (response, client) = self.streaming(Framing::Ndjson)?;
        let began = self.began;
        spawn(sockets::converse(socket, first, body, began, client));
        Ok(Answer::Streaming(response))
    }

    /// A ticket for a page that cannot send a header.
    async fn ticket(&self, body: &[u8], identity: &Identity) -> Result<Reply, Problem> {
        let access = Access::current()?;
        if !access.required() {
            return Err(Problem::not_implemented("this server asks nobody who they are, so a ticket opens nothing"));
        }
        let TicketBody { path, scopes } = TicketBody::from_json(body)?;
        // A ticket is compared with the normal form of the path that it opens.
        let path = target::normalize_path(&path)?;
        let limit = scopes.map(|scopes| Scopes::read(scopes.iter().map(String::as_str))).transpose();
        let limit = limit.map_err(|error| {
            let error = FieldError::new("scope", FieldReason::NotAllowed, format!("`scope`: {error}"));
            RequestError::Invalid(vec![error])
        })?;
        let now = clock::now();
        let guard: std::rc::Rc<guard::Guard> = access.guard(now.monotonic_ns)?;
        let (random, now_s) = (http::request_id::random(), now.unix_ns / 1_000_000_000);
        let issued = guard.issue_ticket(identity, &path, limit, &random, &claims::label().await?, now_s)?;
        Ok(Reply::created(ticket_json(&issued.ticket, issued.expires_s.saturating_mul(1000))))
    }

    async fn process_stream(&self, body: types::Request) -> Result<Response, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let framing = accept::framing(self.header("accept").as_deref())
            .ok_or_else(|| Problem::not_acceptable(&["application/x-ndjson", "text/event-stream"]))?;
        let request = self.process_request(body, settings).await?;
        let began = self.began;
        let timeout_ms = step_timeout_ms(settings);
        let inside = Inside::stream(&request, timeout_ms, began);
        let inside = inside.map_err(|error| Problem::internal(&error))?;
        let (response, client) = self.streaming(framing)?;
        spawn(async move { process::stream(inside, framing, settings, began, client).await });
        Ok(response)
    }

    async fn process_batch(&self, body: types::Request) -> Result<Reply, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        if !accept::json(self.header("accept").as_deref()) {
            return Err(Problem::not_acceptable(&["application/json"]));
        }
        let request = self.process_request(body, settings).await?;
        let inside = Inside::batch(&request, step_timeout_ms(settings), self.began);
        let inside = inside.map_err(|error| Problem::internal(&error))?;
        process::batch(inside, settings, self.began).await.map(Reply::json)
    }

    /// The request in a body.
    async fn process_request(&self, body: types::Request, settings: &Settings) -> Result<ProcessRequest, Problem> {
        Ok(ProcessRequest::from_json(&self.json(body, settings).await?)?)
    }

    /// Texts one by one: in a JSON body or on lines, answered at once or as a stream.
    async fn task(&self, task: Task, body: types::Request) -> Result<Answer, Problem> {
        const FORMS: [&str; 3] = ["application/json", "application/x-ndjson", "text/event-stream"];
        let settings = Settings::current().map_err(Problem::internal)?;
        let (began, accepted) = (self.began, self.header("accept"));
        let query = Query::read(self.query, task)?;
        if content_type::is_ndjson(self.header("content-type").as_deref()) {
            let framing = accept::framing(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS[1..]))?;
            self.encoding()?;
            let plan = Plan::new(task, query.model, query.parameters, settings);
            let source = Source::Lines(self.arriving(body, settings).await?);
            return self.stream(source, plan, framing, settings);
        }
        let form = accept::answer(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&FORMS))?;
        let body = self.json(body, settings).await.map_err(|problem| match problem.code {
            "unsupported_media_type" => {
                Problem::unsupported_media_type(self.header("content-type").as_deref(), &FORMS[..2])
            }
            _ => problem,
        })?;
        let Ask { inputs, model, parameters } = Ask::from_json(&body, task, query)?;
        let plan = Plan::new(task, model, parameters, settings).within(settings, began);
        match form {
            Form::Stream(framing) => self.stream(Source::Inputs(inputs), plan, framing, settings),
            Form::Json => {
                let plan = plan.or_fail();
                let outputs = batch::whole(&plan, inputs, settings, began).await?;
                Ok(Answer::Whole(Reply::json(output::answer_json(&outputs, &plan.model))))
            }
        }
    }

    /// A transcript session in one request: chunks on lines in, events out.
    async fn transcript(&self, body: types::Request) -> Result<Response, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let framing =
            accept::framing(self.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
        let mut ask = SessionAsk::from_query(self.query)?;
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
                transcript::Source::captions(&self.whole(body, settings).await?)?
            }
            false => transcript::Source::Lines(self.arriving(body, settings).await?),
        };
        let opened = transcript::open(&ask).await?;
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { transcript::stream(source, opened, ask, framing, settings, began, client).await });
        Ok(response)
    }

    /// What texts say by their words: on lines, answered as a stream, or in a JSON body, answered at once.
    async fn annotate(&self, body: types::Request) -> Result<Answer, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let (content_type, accepted) = (self.header("content-type"), self.header("accept"));
        let ask = SessionAsk::annotate_from_query(self.query)?;
        let plain = content_type::is_plain(content_type.as_deref());
        if plain || content_type::is_ndjson(content_type.as_deref()) {
            let framing = accept::framing(accepted.as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
            self.encoding()?;
            let body = self.arriving(body, settings).await?;
            let (response, client) = self.streaming(framing)?;
            let began = self.began;
            spawn(async move {
                transcript::annotate_stream(body, plain, ask, framing, settings, began, client).await;
            });
            return Ok(Answer::Streaming(response));
        }
        if !content_type::is_json(content_type.as_deref()) {
            const FORMS: [&str; 3] = ["application/x-ndjson", "text/plain", "application/json"];
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &FORMS));
        }
        if !accept::json(accepted.as_deref()) {
            return Err(Problem::not_acceptable(&["application/json"]));
        }
        let texts = read_texts(&self.json(body, settings).await?)?;
        transcript::annotate_whole(&ask, texts).await.map(|body| Answer::Whole(Reply::json(body)))
    }

    /// The body of a stream. A client that waits to be asked for it gets no answer before it is.
    async fn arriving(&self, body: types::Request, settings: &Settings) -> Result<Arriving, Problem> {
        let mut arriving = Arriving::open(body);
        if self.header("expect").is_some() {
            let timeout_ms = settings.body_timeout_ms;
            let began = Deadline::after(self.began, timeout_ms).bound(arriving.wait()).await;
            began.ok_or_else(|| Problem::body_timeout(timeout_ms))?;
        }
        Ok(arriving)
    }

    /// Answers with a stream of results.
    fn stream(
        &self,
        source: Source,
        plan: Plan,
        framing: Framing,
        settings: &'static Settings,
    ) -> Result<Answer, Problem> {
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { inference::stream::stream(source, plan, framing, settings, began, client).await });
        Ok(Answer::Streaming(response))
    }

    /// A response that is written while it is sent.
    fn streaming(&self, framing: Framing) -> Result<(Response, Client), Problem> {
        let mut headers = vec![
            ("content-type", framing.content_type().to_owned()),
            ("cache-control", "no-store".to_owned()),
            ("vary", "accept".to_owned()),
            // Proxies that buffer a response would undo the streaming.
            ("x-accel-buffering", "no".to_owned()),
            (http::request_id::HEADER, self.request_id.clone()),
        ];
        headers.extend(self.page.iter().cloned());
        headers.extend(self.user_header());
        http::response::streaming(&headers).map_err(|error| Problem::internal(&wording::in_words(&error)))
    }

    /// A body of JSON: its type, its size.
    async fn json(&self, body: types::Request, settings: &Settings) -> Result<Vec<u8>, Problem> {
        let content_type = self.header("content-type");
        if !content_type::is_json(content_type.as_deref()) {
            return Err(Problem::unsupported_media_type(content_type.as_deref(), &JSON));
        }
        self.encoding()?;
        self.whole(body, settings).await
    }

    /// A body of any type, read whole.
    async fn whole(&self, body: types::Request, settings: &Settings) -> Result<Vec<u8>, Problem> {
        let announced = self.header("content-length").and_then(|length| length.trim().parse().ok());
        http::body::read(body, announced, settings, self.began).await
    }

    /// Bodies come as they are. An empty list of codings is none.
    fn encoding(&self) -> Result<(), Problem> {
        let Some(encoding) = self.header("content-encoding") else { return Ok(()) };
        let is_none = |name: &str| name.is_empty() || name.eq_ignore_ascii_case("identity");
        match encoding.split(',').map(str::trim).all(is_none) {
            true => Ok(()),
            false => Err(Problem::unsupported_encoding(&encoding)),
        }
    }

    /// A header; several of the same name are one list, as RFC 9110 section 5.3 has it.
    fn header(&self, name: &str) -> Option<String> {
        let values: Vec<_> = self.headers.get_all(name).iter().collect();
        if values.is_empty() {
            return None;
        }
        let values: Vec<_> = values.into_iter().map(|value| String::from_utf8_lossy(value.as_bytes())).collect();
        Some(values.join(", "))
    }
}

async fn served(began: Now) -> Result<Vec<models::Model>, Problem> {
    let answer = Deadline::after(began, MODELS_TIMEOUT_MS).bound(inference::client::models()).await;
    answer.ok_or_else(|| Problem::not_ready(Vec::new()))
}

async fn readyz(began: Now) -> Result<Reply, Problem> {
    let models = served(began).await?;
    if !models.iter().all(|model| model.ready) {
        return Err(Problem::not_ready(models));
    }
    let unmet = unmet_steps(&models)?;
    if !unmet.is_empty() {
        return Err(Problem::steps_not_ready(&unmet, models));
    }
    // Without authentication and off loopback there are no channels to be ready for, which is no fault.
    let access = Access::current()?;
    if access.required() {
        access.check_keys(began.monotonic_ns)?;
    }
    match store(began).await {
        Ok(condition) => {
            let exhausted = exhausted(condition.exhausted, began).await?;
            Ok(Reply::json(models::ready_json(&models, &exhausted)))
        }
        Err(detail) => Err(Problem::store_not_ready(&detail)),
    }
}

/// The bounds that all users together have reached: those of the store, and those of sessions and executions. They make the server no
/// less ready: what needs no state is served, and what does is answered 503 until there is room.
async fn exhausted(mut exhausted: Vec<String>, began: Now) -> Result<Vec<String>, Problem> {
    let settings = Settings::current().map_err(Problem::internal)?;
    let mut bounds = vec![("session", "sessions.live_max", settings.sessions.live_max)];
    // Executions in a store that others share may be theirs.
    if !settings.shared {
        bounds.push(("execution", "pipelines.executions_max", settings.pipelines.executions_max as u64));
    }
    for (kind, key, max) in bounds {
        let count = Deadline::after(began, STORE_TIMEOUT_MS).bound(state::count(kind.to_owned())).await;
        if count.is_some_and(|count| count.is_ok_and(|count| count >= max)) {
            exhausted.push(key.to_owned());
        }
    }
    Ok(exhausted)
}

/// What is wrong with the models that the configuration names for the steps.
fn unmet_steps(models: &[models::Model]) -> Result<Vec<String>, Problem> {
    let settings = Settings::current().map_err(Problem::internal)?;
    let steps = StepModels {
        sentiment: &settings.sentiment_model,
        summary: &settings.summary_model,
        entities: &settings.entities_model,
    };
    Ok(steps.unmet(models))
}

/// How the channel store is, or why it takes no events.
async fn store(began: Now) -> Result<events::Condition, String> {
    match Deadline::after(began, STORE_TIMEOUT_MS).bound(events::health()).await {
        None => Err("it does not answer".to_owned()),
        Some(condition) if condition.ok => Ok(condition),
        // What is the matter in detail is for the log of the host, not for whoever asks.
        Some(_) => Err("it takes no events".to_owned()),
    }
}

/// Asks the channel store and the models how they are.
async fn health(began: Now) -> Result<Reply, Problem> {
    let (store, models) = futures::join!(store(began), served(began));
    let usable = store.is_ok();
    let (events, streams) = match store {
        Ok(condition) => {
            let detail = condition.fallback.then(|| "memory has taken over".to_owned());
            let events = ServiceHealth { name: condition.store, healthy: !condition.fallback, detail };
            (events, condition.followers)
        }
        Err(detail) => (ServiceHealth { name: "events".to_owned(), healthy: false, detail: Some(detail) }, 0),
    };
    let inference = match models {
        Ok(models) => {
            let waiting: Vec<&str> = models.iter().filter(|m| !m.ready).map(|m| m.name.as_str()).collect();
            let waiting = (!waiting.is_empty()).then(|| format!("not ready: {}", waiting.join(", ")));
            let problems: Vec<String> = waiting.into_iter().chain(unmet_steps(&models)?).collect();
            let detail = (!problems.is_empty()).then(|| problems.join("; "));
            ServiceHealth { name: "inference".to_owned(), healthy: problems.is_empty(), detail }
        }
        Err(problem) => ServiceHealth { name: "inference".to_owned(), healthy: false, detail: Some(problem.detail) },
    };
    let unix_ms = clock::now().unix_ns / 1_000_000;
    let (_, body) = health_json(&[events, inference], streams.into(), unix_ms);
    // Degraded is still of use; without a store there is nothing to stream.
    Ok(if usable { Reply::json(body) } else { Reply::error(503, body) })
}

/// The timeout of a step of `/process-stream` and `/process-batch`: the request ends before it.
fn step_timeout_ms(settings: &Settings) -> u64 {
    settings.request_timeout_ms.saturating_mul(2).min(TIMEOUT_MS_MAX)
}
