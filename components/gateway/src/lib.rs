//! The gateway component: `wasi:http` in, streams of results out.
//!
//! It routes, validates, negotiates and renders; `weir:stream/infer` does the inference. One instance serves many
//! requests at once: nothing here blocks, and nothing is shared but the settings.
//!
//! - `body`: request bodies, bounded in bytes and time.
//! - `process`: the two routes that do the work.
//! - `infer`: the gateway's side of `weir:stream/infer`.
//! - `reply`: responses.
//! - `settings`, `clock`, `request_id`: the environment.
//!
//! Imports `wasi:*` and `weir:stream/infer`, nothing else.

mod bindings;
mod body;
mod clock;
mod infer;
mod process;
mod reply;
mod request_id;
mod settings;

use spin_sdk::{
    http::{HeaderMap, Method, Request},
    http_service,
    wasip3::{
        http::types::{self, ErrorCode, Response},
        spawn,
    },
};
use weir_codec::{
    accept, content_type, models,
    problem::Problem,
    request::ProcessRequest,
    route::{self, Route},
};
use weir_core::process::Now;

use crate::{clock::Deadline, reply::Reply, settings::Settings};

/// How long the models may take to say whether they are ready.
const MODELS_TIMEOUT_MS: u64 = 5000;

#[http_service]
async fn handle(request: Request) -> Result<Response, ErrorCode> {
    let began = clock::now();
    let (parts, mut body) = request.into_parts();
    let call = Call {
        path: parts.uri.path(),
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
        Err(problem) => Reply::problem(&problem, &call.request_id),
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
        let headers = [
            ("content-type", framing.content_type().to_owned()),
            ("cache-control", "no-store".to_owned()),
            ("vary", "accept".to_owned()),
            // Proxies that buffer a response would undo the streaming.
            ("x-accel-buffering", "no".to_owned()),
            (request_id::HEADER, self.request_id.clone()),
        ];
        let (response, client) =
            reply::streaming(&headers).map_err(|error| Problem::internal(&format!("{error:?}")))?;
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

    /// The request in a body: its type, its size, its fields.
    async fn process_request(&self, body: types::Request, settings: &Settings) -> Result<ProcessRequest, Problem> {
        let content_type = self.header("content-type");
        if !content_type::is_json(content_type.as_deref()) {
            return Err(Problem::unsupported_media_type(content_type.as_deref().unwrap_or_default()));
        }
        if let Some(encoding) = self.header("content-encoding").filter(|name| !name.eq_ignore_ascii_case("identity")) {
            return Err(Problem::unsupported_encoding(&encoding));
        }
        let announced = self.header("content-length").and_then(|length| length.trim().parse().ok());
        let body = body::read(body, announced, settings, self.began).await?;
        Ok(ProcessRequest::from_json(&body)?)
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
