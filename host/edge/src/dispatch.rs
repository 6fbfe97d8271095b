//! Dispatches a request to its handler: the host itself, or the gateway component.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::header::{ACCEPT, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT, VARY};
use http::{HeaderValue, Method, Request, Response, StatusCode, response};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use metrics::counter;
use weir_codec::http::accept::{self, ResponseMode};
use weir_codec::http::content_type;
use weir_codec::http::cors::{Headers, OriginRefused};
use weir_codec::http::framing::Framing;
use weir_codec::http::problem::Problem;
use weir_codec::http::router::RouteMatch;
use weir_codec::http::target;
use weir_runtime::gateway::{self, AdmissionError, BodyBytes, BodyError};
use weir_runtime::stages::{self, Stage};
use weir_telemetry::{Span, SpanKind, TRACEPARENT};

use crate::body::{OpenRequest, RequestBody, ResponseBody};
use crate::head_checks::{self, METRICS_ALLOW, METRICS_PATH, STATS_PATH};
use crate::health::{self, HEALTH_PATH};
use crate::peeked::PeekedBody;
use crate::request_id;
use crate::request_metrics;
use crate::response::{self as edge_response, EdgeProblem, EdgeResponse, edge_problem, problem_response};
use crate::share::{ClientKey, Permit, PermitRefusal};
use crate::sse::gzip;
use crate::sse::hold::{self, HeldResponse, HoldError, HoldInstruction};
use crate::state::EdgeState;
use crate::stats::StatsStream;
use crate::websocket::handshake::{self, Handshake, HandshakeError};

/// The content types of `/v1/stats`.
const STATS_FORMS: [&str; 2] = ["application/json", "text/event-stream"];
/// Most bytes of a probe's response, and how long it may take.
const PROBE_BYTES_MAX: usize = 1 << 20;
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// The memory of a body in an instance that reads it line by line: the longest line, and the bytes that are read ahead.
const STREAMED_BODY_BYTES: u64 = 256 << 10;

/// The longest body of which the first frame is read before the request is dispatched. Others are read by the component
/// alone.
const FIRST_READ_BYTES_MAX: u64 = 64 << 10;

/// A request's client, by address, the request's id, and its span.
#[derive(Clone, Copy)]
struct RequestSource<'a> {
    client: u64,
    request_id: &'a str,
    /// The span of the request, if it is traced.
    span: Option<&'a Span>,
}

/// Answers a request. `client` is the number of the client's address.
pub(crate) async fn handle<B: RequestBody>(
    state: &Arc<EdgeState>,
    mut request: Request<B>,
    client: u64,
) -> EdgeResponse {
    let start = Instant::now();
    stages::mark(Stage::Head);
    hold::strip(request.headers_mut());
    let method = request.method().clone();
    let id = request_id::of(request.headers(), || state.new_request_id());
    // The component sees the same id, so that its logs and responses name it too.
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(request_id::HEADER, value);
    }
    let version = request.version();
    let admitted = state.head_checks.admit(&mut request);
    let cors = state.head_checks.cors_headers(&request);
    let span = start_span(&mut request, &id);
    let source = RequestSource { client, request_id: &id, span: span.as_ref() };
    let mut response = match admitted {
        Ok(()) => route(state, request, &cors, source).await,
        Err(problem) => EdgeResponse::Http(edge_response::closing_problem(&problem, version, &id)),
    };
    stages::mark(Stage::Answered);
    head_checks::add_cors_headers(response.headers_mut(), &cors);
    let status = response.status();
    request_metrics::record_response(&method, status, start.elapsed());
    if let Some(span) = &span {
        span.set_number("http.response.status_code", i64::from(status.as_u16()));
        if status.is_server_error() {
            span.fail(status.to_string());
        }
    }
    tracing::debug!(%method, status = status.as_u16(), request_id = id, "answered");
    response
}

/// Starts the span of a request, in the trace of its `traceparent`. The component gets the header with the context of this span. Probes and
/// scrapes are not traced.
fn start_span<B>(request: &mut Request<B>, id: &str) -> Option<Span> {
    let path = request.uri().path();
    if matches!(path, METRICS_PATH | STATS_PATH | "/livez" | "/readyz") {
        return None;
    }
    let parent = request.headers().get(TRACEPARENT).and_then(|value| value.to_str().ok()?.parse().ok());
    let span = Span::start(request.method().as_str(), SpanKind::Server, parent)?;
    span.set("http.request.method", request.method().as_str());
    span.set("url.path", path);
    span.set("weir.request_id", id);
    if let Ok(value) = HeaderValue::from_str(&span.context().to_string()) {
        request.headers_mut().insert(TRACEPARENT, value);
    }
    Some(span)
}

/// Routes a request that has passed the checks of its head.
async fn route<B: RequestBody>(
    state: &Arc<EdgeState>,
    request: Request<B>,
    cors: &Result<Headers, OriginRefused>,
    source: RequestSource<'_>,
) -> EdgeResponse {
    if let Some(preflight) = state.head_checks.preflight(&request) {
        return EdgeResponse::Http(match preflight {
            Ok((allow, headers)) => edge_response::methods(allow, &headers, source.request_id),
            Err(problem) => problem_response(&problem, source.request_id),
        });
    }
    match request.uri().path() {
        METRICS_PATH | STATS_PATH => metrics(state, request, cors, source).await,
        // Probes have permits of their own, so that they are answered when the server is full and while it drains.
        "/livez" | "/readyz" => match state.probes.try_take(source.client) {
            Ok(permit) => probe(state, request, permit, source).await,
            Err(refusal) => refuse(refusal, source),
        },
        _ if state.is_draining() => EdgeResponse::Http(edge_problem(EdgeProblem::Draining, source.request_id)),
        HEALTH_PATH if *request.method() == Method::GET && state.adapters.get().is_some() => {
            match state.requests.try_take(source.client) {
                Ok(permit) => {
                    let response =
                        forward(state, request, Some(OpenRequest::new(permit, source.span.cloned())), source).await;
                    health::with_adapters(state, response, source.request_id).await
                }
                Err(refused) => refuse(refused, source),
            }
        }
        _ => forward_or_shed(state, request.map(PeekedBody::new), source).await,
    }
}

/// Passes a request to the gateway component, unless the component would probably refuse it or no permit is free.
async fn forward_or_shed<B: RequestBody>(
    state: &EdgeState,
    mut request: Request<PeekedBody<B>>,
    source: RequestSource<'_>,
) -> EdgeResponse {
    let length = request.body().size_hint().exact().unwrap_or(0);
    if (1..=FIRST_READ_BYTES_MAX).contains(&length) && !request.headers().contains_key(EXPECT) {
        request.body_mut().read_arrived().await;
    }
    let kind = state.shedder.kind_of(&request, source.client);
    // While no item waits, the next one is accepted.
    if let Some(kind) = kind
        && state.runtime.has_waiting_items()
        && let Some(response) = state.shedder.refuse(kind, source.request_id)
    {
        return EdgeResponse::Http(response);
    }
    let permit = match state.requests.try_take(source.client) {
        Ok(permit) => permit,
        Err(refusal) => return refuse(refusal, source),
    };
    let response = forward(state, request, Some(OpenRequest::new(permit, source.span.cloned())), source).await;
    state.shedder.record(kind, &response, source.request_id);
    response
}

/// Answers `/metrics` and `/v1/stats`. If a token is required, the gateway authorizes the request, since it has the
/// keys.
async fn metrics<B: RequestBody>(
    state: &Arc<EdgeState>,
    request: Request<B>,
    cors: &Result<Headers, OriginRefused>,
    source: RequestSource<'_>,
) -> EdgeResponse {
    let id = source.request_id;
    if let Err(refusal) = cors {
        return EdgeResponse::Http(problem_response(&refusal.clone().into(), id));
    }
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return EdgeResponse::Http(edge_response::methods(METRICS_ALLOW, &Headers::new(), id)),
        ref method => {
            let problem = Problem::method_not_allowed(method.as_str(), request.uri().path(), METRICS_ALLOW);
            return EdgeResponse::Http(problem_response(&problem, id));
        }
    }
    let is_stats = request.uri().path() == STATS_PATH;
    let accept = request.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).map(str::to_owned);
    let mode = accept::response_mode(accept.as_deref());
    if is_stats && matches!(mode, None | Some(ResponseMode::Stream(Framing::Ndjson))) {
        return EdgeResponse::Http(problem_response(&Problem::not_acceptable(&STATS_FORMS), id));
    }
    let is_stream = is_stats && mode != Some(ResponseMode::Json) && *request.method() == Method::GET;
    let pool = if is_stream { &state.watchers } else { &state.scrapes };
    let permit = match pool.try_take(source.client) {
        Ok(permit) => permit,
        Err(refusal) => return refuse(refusal, source),
    };
    if state.needs_token {
        let response = forward(state, request, None, source).await;
        if response.status() != StatusCode::NO_CONTENT {
            return response;
        }
    }
    if is_stream {
        let stream = ResponseBody::Stats(Box::new(StatsStream::new(state.clone(), permit)));
        return EdgeResponse::Http(edge_response::stats(stream, Some(Framing::Sse), id));
    }
    if is_stats {
        return EdgeResponse::Http(edge_response::stats(ResponseBody::full_with(state.stats(), permit), None, id));
    }
    state.runtime.report();
    EdgeResponse::Http(edge_response::metrics(state.observer.render(), id, permit))
}

/// The refusal of a client without a permit.
fn refuse(refusal: PermitRefusal, source: RequestSource<'_>) -> EdgeResponse {
    counter!("weir_http_rejected_total").increment(1);
    let problem = match refusal {
        PermitRefusal::Total => EdgeProblem::Full,
        PermitRefusal::Client => EdgeProblem::ClientShare,
    };
    EdgeResponse::Http(edge_problem(problem, source.request_id))
}

/// Answers a probe. The component's response is read completely first, so that a client that does not read it holds no
/// permit.
async fn probe<B: RequestBody>(
    state: &EdgeState,
    request: Request<B>,
    permit: Permit,
    source: RequestSource<'_>,
) -> EdgeResponse {
    let failed = |problem| EdgeResponse::Http(edge_problem(problem, source.request_id));
    let EdgeResponse::Http(response) = forward(state, request, None, source).await else {
        return failed(EdgeProblem::Failed);
    };
    let (head, body) = response.into_parts();
    let body = tokio::time::timeout(PROBE_TIMEOUT, Limited::new(body, PROBE_BYTES_MAX).collect()).await;
    drop(permit);
    match body {
        Ok(Ok(body)) => EdgeResponse::Http(Response::from_parts(head, ResponseBody::full(body.to_bytes()))),
        Ok(Err(_)) => failed(EdgeProblem::InstanceLost),
        Err(_) => failed(EdgeProblem::Timeout),
    }
}

/// Passes a request to the gateway component.
async fn forward<B: RequestBody>(
    state: &EdgeState,
    mut request: Request<B>,
    mut open: Option<OpenRequest>,
    source: RequestSource<'_>,
) -> EdgeResponse {
    let bytes = body_bytes(&request, state.config.body_bytes_max);
    request.extensions_mut().insert(bytes);
    if handshake::is_handshake(&request) {
        return open_websocket(state, request, open, source).await;
    }
    let (is_get, is_head) = (request.method() == Method::GET, request.method() == Method::HEAD);
    // A request on a WebSocket route may also stream lines in both directions. The gateway matches routes by the
    // normalized path.
    let is_socket = target::normalize_path(request.uri().path()).is_ok_and(|path| RouteMatch::is_socket(&path));
    let gzip = state.gzip && gzip::is_accepted(request.headers());
    let request = request.map(|body| gateway::request_body(body.map_err(|error| -> BodyError { error.into() })));
    match state.gateway.handle(request, source.client).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            if let Some(refusal) = assign_user(state, &mut head, &mut open, is_socket, source) {
                return refusal;
            }
            match hold::take_instruction(&mut head.headers) {
                Ok(Some(instruction)) if is_get => {
                    hold_stream(state, instruction, gzip, (head, body), open, source).await
                }
                Ok(_) => {
                    let body = match head.headers.contains_key(CONTENT_LENGTH) && !is_head {
                        true => ResponseBody::with_first_frame(body, open).await,
                        // The head of a stream is sent without waiting for its body.
                        false => ResponseBody::streamed(body, open),
                    };
                    EdgeResponse::Http(Response::from_parts(head, body))
                }
                Err(error) => invalid_hold(&error, source),
            }
        }
        Err(error) => gateway_failure(&error, source),
    }
}

/// Opens a WebSocket, as a request to the gateway.
async fn open_websocket<B>(
    state: &EdgeState,
    request: Request<B>,
    mut open: Option<OpenRequest>,
    source: RequestSource<'_>,
) -> EdgeResponse {
    let version = request.version();
    let (handshake, request) = match Handshake::begin(request, state.deflate) {
        Ok(parts) => parts,
        Err(HandshakeError::Version) => {
            let mut response = edge_problem(EdgeProblem::WebSocketVersion, source.request_id);
            handshake::add_version(&mut response);
            return EdgeResponse::Http(response);
        }
        Err(error) => {
            let problem = Problem::invalid_handshake(&error.to_string());
            return EdgeResponse::Http(edge_response::closing_problem(&problem, version, source.request_id));
        }
    };
    match state.gateway.handle(request, source.client).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            if let Some(refusal) = assign_user(state, &mut head, &mut open, true, source) {
                return refusal;
            }
            match handshake.complete(Response::from_parts(head, body), open) {
                (response, Some(upgrade)) => EdgeResponse::WebSocket(response, Box::new(upgrade)),
                (response, None) => EdgeResponse::Http(response),
            }
        }
        Err(error) => gateway_failure(&error, source),
    }
}

/// Counts a request for the user that the gateway names in its response, and a WebSocket as a connection of the user.
/// Returns the refusal if the user has too many.
fn assign_user(
    state: &EdgeState,
    head: &mut response::Parts,
    open: &mut Option<OpenRequest>,
    is_socket: bool,
    source: RequestSource<'_>,
) -> Option<EdgeResponse> {
    let (Some(user), Some(open)) = (hold::take_user(&mut head.headers), open) else { return None };
    if let Err(refusal) = open.assign(ClientKey::User(user.as_str().into())) {
        return Some(refuse(refusal, source));
    }
    // A request that ends with an error does not become a connection.
    if is_socket && head.status.is_success() {
        match state.subscribers.connect(&user) {
            Ok(permit) => open.set_connection(permit),
            Err(refusal) => {
                let problem = hold::too_many(&refusal);
                let response = edge_response::replacing_problem(&problem, &head.headers, source.request_id);
                return Some(EdgeResponse::Http(response));
            }
        }
    }
    None
}

/// The response to a request that the gateway did not answer.
fn gateway_failure(error: &gateway::HandleError, source: RequestSource<'_>) -> EdgeResponse {
    let id = source.request_id;
    if let Some(refusal) = gateway::admission_error(error) {
        counter!("weir_http_rejected_total").increment(1);
        let problem = match refusal {
            AdmissionError::Full => EdgeProblem::Full,
            AdmissionError::ClientShare => EdgeProblem::ClientShare,
        };
        return EdgeResponse::Http(edge_problem(problem, id));
    }
    let problem = if gateway::is_lost_instance(error) {
        EdgeProblem::InstanceLost
    } else if gateway::is_timeout(error) {
        EdgeProblem::Timeout
    } else {
        EdgeProblem::Failed
    };
    tracing::error!(error = format!("{error:#}"), request_id = id, "a request failed");
    EdgeResponse::Http(edge_problem(problem, id))
}

/// Holds a connection as the gateway instructs. The request to the gateway ends here, and its permit is released.
async fn hold_stream(
    state: &EdgeState,
    instruction: HoldInstruction,
    gzip: bool,
    (mut head, body): (response::Parts, gateway::ResponseBody),
    open: Option<OpenRequest>,
    source: RequestSource<'_>,
) -> EdgeResponse {
    let first = match hold::first(body).await {
        Ok(first) => first,
        Err(HoldError::InstanceLost) => {
            return EdgeResponse::Http(edge_problem(EdgeProblem::InstanceLost, source.request_id));
        }
        Err(error) => return invalid_hold(&error, source),
    };
    drop(open);
    match instruction.subscribe(&state.subscribers, &state.events, source.client).await {
        // The store may have disconnected all subscribers before this one was added, so this one would not be
        // disconnected.
        Ok(_) if state.is_draining() => EdgeResponse::Http(edge_problem(EdgeProblem::Draining, source.request_id)),
        Ok(mut feed) => {
            head.headers.remove(CONTENT_LENGTH);
            if state.gzip {
                head.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
            }
            let first = match gzip && feed.can_gzip() {
                true => {
                    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                    feed.start_gzip(&first).into()
                }
                false => first,
            };
            EdgeResponse::Held(Box::new(HeldResponse { head, first, feed }))
        }
        Err(problem) => {
            EdgeResponse::Http(edge_response::replacing_problem(&problem, &head.headers, source.request_id))
        }
    }
}

fn invalid_hold(error: &HoldError, source: RequestSource<'_>) -> EdgeResponse {
    tracing::error!(%error, request_id = source.request_id, "a connection cannot be held as the gateway instructs");
    EdgeResponse::Http(edge_problem(EdgeProblem::Failed, source.request_id))
}

/// The memory of a request's body in an instance. The gateway reads JSON completely, and other types line by line.
fn body_bytes<B: Body>(request: &Request<B>, bytes_max: u64) -> BodyBytes {
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let bytes_max = match content_type {
        Some(_) if !content_type::is_json(content_type) => bytes_max.min(STREAMED_BODY_BYTES),
        _ => bytes_max,
    };
    let body = request.body();
    match body.size_hint().exact() {
        _ if body.is_end_stream() => BodyBytes(0),
        // A body over the bound is refused before it is read.
        Some(bytes) => BodyBytes(bytes.min(bytes_max)),
        None => BodyBytes(bytes_max),
    }
}
