//! Dispatch: from the path of a request to the feature that handles it.

use std::cell::RefCell;

use spin_sdk::{
    http::{Method, Request},
    wasip3::http::types::{self, ErrorCode, Response},
};
use weir_auth::{credential::Credentials, refusal};
use weir_codec::{
    channels::route::ChannelRoute,
    http::{
        problem::Problem,
        route::{self, HUB_PREFIX, Route},
        router::RouteMatch,
    },
    inference::models::{self, Model},
};
use weir_core::time::Now;

use crate::{
    auth::Access,
    generation, health,
    http::{
        request::{LIVEZ, RequestContext},
        request_id,
        response::{BufferedResponse, RouteResponse},
    },
    inference::{client::served_models, dialects},
    page,
    pipelines::Pipelines,
    platform::{
        clock,
        settings::{Grip, Settings},
    },
    transcripts,
};

/// Paths that the host serves. It first asks the gateway whether the user may read them; 204 means yes.
const METRICS: &str = "/metrics";
const STATS: &str = "/v1/stats";

/// Handles a request.
pub(crate) async fn handle(incoming: Request) -> Result<Response, ErrorCode> {
    let began = clock::now();
    Pipelines::wake();
    generation::wake();
    let (parts, mut body) = incoming.into_parts();
    let mut request = RequestContext {
        path: parts.uri.path().into(),
        query: parts.uri.query().unwrap_or_default(),
        host: parts.uri.authority().map(|authority| authority.as_str()),
        method: &parts.method,
        headers: &parts.headers,
        request_id: request_id::of(&parts.headers),
        cors_headers: Vec::new(),
        user: RefCell::default(),
        began,
    };
    let result = match (request.enter(), body.take_unstarted()) {
        (Ok(()), Some(body)) => respond(&mut request, body).await,
        (Ok(()), None) => Err(Problem::internal("the request has no unread body")),
        (Err(problem), _) => Err(problem),
    };
    let user = request.user_header();
    let mut reply = match result {
        Ok(RouteResponse::Streaming(response)) => return Ok(response),
        Ok(RouteResponse::Whole(reply)) => reply,
        Err(problem) => {
            let reply = BufferedResponse::problem(&problem, &request.path, &request.request_id);
            match refusal::challenge(&problem) {
                Some(challenge) => reply.with("www-authenticate", challenge),
                None => reply,
            }
        }
    };
    // A cache must not serve a browser's page to a program.
    if Settings::current().is_ok_and(|settings| page::is_offered(&request, settings)) {
        reply = reply.with("vary", "accept");
    }
    for (name, value) in request.cors_headers.into_iter().chain(user) {
        reply = reply.with(name, value);
    }
    reply
        .with("cache-control", "no-store")
        .with(request_id::HEADER, request.request_id)
        .into_response(parts.method == Method::HEAD)
}

async fn respond(request: &mut RequestContext<'_>, body: types::Request) -> Result<RouteResponse, Problem> {
    if request.method == Method::OPTIONS && matches!(&*request.path, "*" | "/*") {
        transcripts::routes::wake();
        Access::wake(request.began);
        return Ok(RouteResponse::Whole(BufferedResponse::methods("GET, HEAD, POST, OPTIONS")));
    }
    let settings = Settings::current().map_err(Problem::internal)?;
    if let Some(reply) = page::response(request, settings) {
        return Ok(RouteResponse::Whole(reply));
    }
    if matches!(&*request.path, METRICS | STATS) && settings.grip == Grip::Host {
        request.identify().await?;
        return Ok(RouteResponse::Whole(BufferedResponse::empty()));
    }
    let route_match = RouteMatch::match_path(&request.path)?;
    match request.method.as_str() {
        "GET" if RouteMatch::is_socket(&request.path) => return Err(Problem::upgrade_required(&request.path)),
        method if route_match.takes(method) => {}
        "OPTIONS" => return options(request, route_match.allow()).map(RouteResponse::Whole),
        method => return Err(Problem::method_not_allowed(method, &request.path, route_match.allow())),
    }
    if let Err(unknown) = route_match.check_query(request.method.as_str(), request.query) {
        // A secret under another name than `ticket` has an error of its own.
        Credentials::find([], request.query)?;
        return Err(unknown.into());
    }
    match route_match {
        RouteMatch::Own(route) => respond_own(request, route, body).await,
        RouteMatch::Generation(route) => request.generation(route, body).await,
        RouteMatch::Channels(ChannelRoute::Health) => health::health(request.began).await.map(RouteResponse::Whole),
        RouteMatch::Channels(route) => request.answer_channels(route, body).await,
        RouteMatch::Sessions(route) => transcripts::routes::respond(request, route, body).await,
        RouteMatch::Pipelines(route) => {
            let identity = request.identify().await?;
            request.pipelines(route, body, &identity).await.map(RouteResponse::Whole)
        }
    }
}

/// The response to `OPTIONS`: the methods of a path and, for a CORS preflight, the CORS headers.
fn options(request: &mut RequestContext<'_>, allow: &'static str) -> Result<BufferedResponse, Problem> {
    let preflight = match &*request.path {
        LIVEZ => None,
        _ => Access::current()?.preflight(&request.credentials(), allow)?,
    };
    if let Some(headers) = preflight {
        request.cors_headers = headers;
    }
    Ok(BufferedResponse::methods(allow))
}

/// The models of every kind, by name.
async fn all_models(began: Now) -> Result<Vec<Model>, Problem> {
    let (mut models, generate) = (served_models(began).await?, generation::client::listed_models(began).await?);
    models.extend(generate);
    models.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(models)
}

/// Handles the routes of texts, models, probes and documents.
async fn respond_own(
    request: &RequestContext<'_>,
    route: Route,
    body: types::Request,
) -> Result<RouteResponse, Problem> {
    let open = matches!(route, Route::Index | Route::Livez | Route::Readyz | Route::OpenApi);
    if !open && Access::current()?.required() {
        request.identify().await?;
    }
    let reply = match route {
        Route::ProcessStream => return request.process_stream(body).await.map(RouteResponse::Streaming),
        Route::ProcessBatch => request.process_batch(body).await?,
        Route::Task(task) => return request.task(task, body).await,
        Route::Transcript => return request.transcript(body).await.map(RouteResponse::Streaming),
        Route::Annotate => return request.annotate(body).await,
        Route::Hub => {
            let settings = Settings::current().map_err(Problem::internal)?;
            let body = request.json(body, settings).await?;
            let name = request.path.strip_prefix(HUB_PREFIX).unwrap_or_default();
            dialects::hub(name, &body, settings, request.began).await?
        }
        Route::Predict => {
            let settings = Settings::current().map_err(Problem::internal)?;
            let body = request.json(body, settings).await?;
            dialects::predict(&body, settings, request.began).await?
        }
        Route::TeiEmbed | Route::Rerank | Route::Embeddings | Route::Moderations => {
            let settings = Settings::current().map_err(Problem::internal)?;
            let body = request.json(body, settings).await?;
            match route {
                Route::TeiEmbed => dialects::embed(&body, settings, request.began).await?,
                Route::Rerank => dialects::rerank(&body, settings, request.began).await?,
                Route::Embeddings => dialects::embeddings(&body, settings, request.began).await?,
                _ => dialects::moderations(&body, settings, request.began, &request.request_id).await?,
            }
        }
        Route::EmbedSparse => {
            let detail = "no model of this server computes sparse embeddings; use `/embed`";
            return Err(Problem::refused(424, "inference_failed", "No sparse embeddings", detail, None));
        }
        Route::Index => BufferedResponse::json(route::index_json(env!("CARGO_PKG_VERSION"))),
        // Liveness is independent of the settings and the models.
        Route::Livez => BufferedResponse::json(br#"{"status":"alive"}"#.as_slice()),
        Route::Readyz => health::readyz(request.began).await?,
        Route::Models => BufferedResponse::json(models::models_json(&all_models(request.began).await?)),
        Route::OpenApi => BufferedResponse::json(include_bytes!("../openapi.json").as_slice()),
    };
    Ok(RouteResponse::Whole(reply))
}
