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
//! - `duplex`: the client's side of a stream in both directions.
//! - `infer`: the gateway's side of `weir:stream/infer`.
//! - `reply`: responses.
//! - `settings`, `clock`, `request_id`: the environment; `signal`: how parts of a task wait for each other.
//!
//! Imports `wasi:*`, `weir:stream/infer` and `weir:stream/session`, nothing else.

mod bindings;
mod body;
mod clock;
mod dialects;
mod duplex;
mod infer;
mod items;
mod process;
mod reply;
mod request_id;
mod settings;
mod signal;
mod streams;
mod transcript;

use spin_sdk::{
    http::{HeaderMap, Method, Request},
    http_service,
    wasip3::{
        http::types::{self, ErrorCode, Response},
        spawn,
    },
};
use weir_codec::{
    accept::{self, Answer as Form},
    ask::Ask,
    content_type,
    frame::Framing,
    models, output,
    problem::Problem,
    query::Query,
    request::ProcessRequest,
    route::{self, HUB_PREFIX, Route},
    task::Task,
    transcript::{config::SessionAsk, stream::read_texts},
};
use weir_core::process::Now;

use crate::{
    body::Arriving,
    clock::Deadline,
    items::Plan,
    reply::{Client, Reply},
    settings::Settings,
    streams::Source,
};

/// The forms in which a stream is answered.
const STREAM_FORMS: [&str; 2] = ["application/x-ndjson", "text/event-stream"];

/// How long the models may take to say whether they are ready.
const MODELS_TIMEOUT_MS: u64 = 5000;

#[http_service]
async fn handle(request: Request) -> Result<Response, ErrorCode> {
    let began = clock::now();
    let (parts, mut body) = request.into_parts();
    let call = Call {
        path: parts.uri.path(),
        query: parts.uri.query().unwrap_or_default(),
        method: &parts.method,
        headers: &parts.headers,
        request_id: request_id::of(&parts.headers),
        began,
    };
    let answer = match body.take_unstarted() {
        Some(body) => call.answer(body).await,
        None => Err(Problem::internal("the body was taken before it was read")),
    };
    let reply = match answer {
        Ok(Answer::Streaming(response)) => return Ok(response),
        Ok(Answer::Whole(reply)) => reply,
        Err(problem) => Reply::problem(&problem, Route::find(call.path), &call.request_id),
    };
    reply
        .with("cache-control", "no-store")
        .with(request_id::HEADER, call.request_id)
        .into_response(parts.method == Method::HEAD)
}

enum Answer {
    Whole(Reply),
    Streaming(Response),
}

/// A request without its body.
struct Call<'a> {
    path: &'a str,
    /// Without the question mark.
    query: &'a str,
    method: &'a Method,
    headers: &'a HeaderMap,
    request_id: String,
    began: Now,
}

impl Call<'_> {
    async fn answer(&self, body: types::Request) -> Result<Answer, Problem> {
        if self.method == Method::OPTIONS && self.path == "*" {
            return Ok(Answer::Whole(Reply::methods("GET, HEAD, POST, OPTIONS")));
        }
        let route = Route::find(self.path).ok_or_else(|| Problem::not_found(self.path))?;
        match (self.method.as_str(), route.posts()) {
            ("GET" | "HEAD", false) | ("POST", true) => {}
            ("OPTIONS", _) => return Ok(Answer::Whole(Reply::methods(route.allow()))),
            (method, _) => return Err(Problem::method_not_allowed(method, self.path, route.allow())),
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

    async fn process_stream(&self, body: types::Request) -> Result<Response, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let framing = accept::framing(self.header("accept").as_deref())
            .ok_or_else(|| Problem::not_acceptable(&["application/x-ndjson", "text/event-stream"]))?;
        let request = self.process_request(body, settings).await?;
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { process::stream(request, framing, settings, began, client).await });
        Ok(response)
    }

    async fn process_batch(&self, body: types::Request) -> Result<Reply, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        if !accept::json(self.header("accept").as_deref()) {
            return Err(Problem::not_acceptable(&["application/json"]));
        }
        let request = self.process_request(body, settings).await?;
        process::batch(request, settings, self.began).await.map(Reply::json)
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
                Problem::unsupported_item_type(&self.header("content-type").unwrap_or_default())
            }
            _ => problem,
        })?;
        let Ask { inputs, model, parameters } = Ask::from_json(&body, task, query)?;
        let plan = Plan::new(task, model, parameters, settings).within(settings, began);
        match form {
            Form::Stream(framing) => self.stream(Source::Inputs(inputs), plan, framing, settings),
            Form::Json => {
                let plan = plan.or_fail();
                let outputs = items::whole(&plan, inputs, settings, began).await?;
                Ok(Answer::Whole(Reply::json(output::answer_json(&outputs, &plan.model))))
            }
        }
    }

    /// A transcript session in one request: chunks on lines in, events out.
    async fn transcript(&self, body: types::Request) -> Result<Response, Problem> {
        let settings = Settings::current().map_err(Problem::internal)?;
        let framing =
            accept::framing(self.header("accept").as_deref()).ok_or_else(|| Problem::not_acceptable(&STREAM_FORMS))?;
        let ask = SessionAsk::from_query(self.query)?;
        let content_type = self.header("content-type");
        // A chunk is a line of JSON and a body of JSON is one chunk: both are read alike.
        if !content_type::is_ndjson(content_type.as_deref()) && !content_type::is_json(content_type.as_deref()) {
            return Err(Problem::unsupported_line_type(&content_type.unwrap_or_default(), false));
        }
        self.encoding()?;
        let body = self.arriving(body, settings).await?;
        let opened = transcript::open(&ask).await?;
        let (response, client) = self.streaming(framing)?;
        let began = self.began;
        spawn(async move { transcript::stream(body, opened, ask, framing, settings, began, client).await });
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
            return Err(Problem::unsupported_line_type(&content_type.unwrap_or_default(), true));
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
        spawn(async move { streams::stream(source, plan, framing, settings, began, client).await });
        Ok(Answer::Streaming(response))
    }

    /// A response that is written while it is sent.
    fn streaming(&self, framing: Framing) -> Result<(Response, Client), Problem> {
        let headers = [
            ("content-type", framing.content_type().to_owned()),
            ("cache-control", "no-store".to_owned()),
            ("vary", "accept".to_owned()),
            // Proxies that buffer a response would undo the streaming.
            ("x-accel-buffering", "no".to_owned()),
            (request_id::HEADER, self.request_id.clone()),
        ];
        reply::streaming(&headers).map_err(|error| Problem::internal(&format!("{error:?}")))
    }

    /// A body of JSON: its type, its size.
    async fn json(&self, body: types::Request, settings: &Settings) -> Result<Vec<u8>, Problem> {
        let content_type = self.header("content-type");
        if !content_type::is_json(content_type.as_deref()) {
            return Err(Problem::unsupported_media_type(content_type.as_deref().unwrap_or_default()));
        }
        self.encoding()?;
        let announced = self.header("content-length").and_then(|length| length.trim().parse().ok());
        body::read(body, announced, settings, self.began).await
    }

    /// Bodies come as they are.
    fn encoding(&self) -> Result<(), Problem> {
        match self.header("content-encoding").filter(|name| !name.eq_ignore_ascii_case("identity")) {
            Some(encoding) => Err(Problem::unsupported_encoding(&encoding)),
            None => Ok(()),
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
    let answer = Deadline::after(began, MODELS_TIMEOUT_MS).bound(infer::models()).await;
    answer.ok_or_else(|| Problem::not_ready(Vec::new()))
}

async fn readyz(began: Now) -> Result<Reply, Problem> {
    let models = served(began).await?;
    match models.iter().all(|model| model.ready) {
        true => Ok(Reply::json(models::ready_json(&models))),
        false => Err(Problem::not_ready(models)),
    }
}
