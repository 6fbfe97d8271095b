//! The answers that the host gives by itself.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use http::{HeaderMap, Response, StatusCode, Version};
use weir_codec::http::cors::Headers;
use weir_codec::http::problem::{self, Problem};

use crate::body::ReplyBody;
use crate::share::Permit;

/// The header that names a request in logs and answers.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The path of the metrics, which the host answers.
pub(crate) const METRICS: &str = "/metrics";

/// What went wrong before or behind the gateway component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// As many requests are open as the configuration allows.
    Full,
    /// The client holds all of it that one client may.
    ClientShare,
    /// The server is stopping.
    Draining,
    /// A WebSocket of another version.
    Version,
    /// The instance that had the request was lost.
    Lost,
    /// The component did not answer in time.
    Stuck,
    /// The component failed.
    Failed,
}

impl Trouble {
    fn parts(self) -> (StatusCode, &'static str, &'static str, bool) {
        match self {
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "the server has as many requests open as it is configured to take; retry later",
                true,
            ),
            Self::ClientShare => (
                StatusCode::TOO_MANY_REQUESTS,
                "client_share",
                "the client has as much open as `http.client_share_percent` lets one client have; finish some of it, then retry",
                true,
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is stopping: it finishes what it has and takes nothing new",
                true,
            ),
            Self::Version => {
                (StatusCode::UPGRADE_REQUIRED, "upgrade_required", "WebSockets are served in version 13", false)
            }
            Self::Lost => (
                StatusCode::SERVICE_UNAVAILABLE,
                "instance_lost",
                "the instance that had this request was lost; the request can be sent again",
                true,
            ),
            Self::Stuck => (StatusCode::GATEWAY_TIMEOUT, "request_timeout", "no answer in time", true),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "the gateway component failed", false),
        }
    }
}

/// A problem in the form of RFC 9457, as the gateway component gives them.
pub(crate) fn problem(trouble: Trouble, request_id: &str) -> Response<ReplyBody> {
    let (status, code, detail, retryable) = trouble.parts();
    let body = serde_json::json!({
        "type": format!("urn:weir:problem:{}", code.replace('_', "-")),
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "retryable": retryable,
    });
    let mut response = Response::new(ReplyBody::full(Bytes::from(format!("{body}\n"))));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// A problem with an answer that the gateway had given: what that said to the page that asked stays.
pub(crate) fn refused(problem: &Problem, answered: &HeaderMap, request_id: &str) -> Response<ReplyBody> {
    let mut response = of_problem(problem, request_id);
    let kept = |name: &HeaderName| name == VARY || name.as_str().starts_with("access-control-");
    for (name, value) in answered.iter().filter(|(name, _)| kept(name)) {
        response.headers_mut().append(name, value.clone());
    }
    response
}

/// A problem of the host's own.
pub(crate) fn of_problem(problem: &Problem, request_id: &str) -> Response<ReplyBody> {
    let mut body = problem.to_json(request_id);
    body.push(b'\n');
    let mut response = Response::new(ReplyBody::full(Bytes::from(body)));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in problem.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(name, value);
        }
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// As [`of_problem`], for a request whose end cannot be known: HTTP/1.1 closes the connection behind the answer.
pub(crate) fn of_last_problem(problem: &Problem, version: Version, request_id: &str) -> Response<ReplyBody> {
    let mut response = of_problem(problem, request_id);
    if version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The methods of a path, for a preflight or for who asks without being a page.
pub(crate) fn methods(allow: &'static str, page: &Headers, request_id: &str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in page {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(*name, value);
        }
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// `/metrics`, for who may read them.
pub(crate) fn metrics(text: String, request_id: &str, permit: Permit) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full_with(Bytes::from(text), permit));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// The caller's request id when it is one, else a new one.
pub(crate) fn request_id(headers: &HeaderMap, fresh: impl FnOnce() -> String) -> String {
    let given = headers.get(REQUEST_ID).and_then(|value| value.to_str().ok());
    match given {
        Some(id) if (1..=128).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_graphic()) => id.to_string(),
        _ => fresh(),
    }
}
