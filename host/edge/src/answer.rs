//! The answers that the host gives by itself.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use http::{HeaderMap, Method, Response, StatusCode};
use weir_codec::problem::{self, Problem};

use crate::body::ReplyBody;

/// The header that names a request in logs and answers.
pub(crate) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What went wrong before or behind the gateway component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// As many requests are open as the configuration allows.
    Full,
    /// The server is stopping.
    Draining,
    /// The path has no such method.
    Method,
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
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is stopping: it finishes what it has and takes nothing new",
                true,
            ),
            Self::Method => (StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", "`/metrics` takes GET, HEAD", false),
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
    let mut response = Response::new(ReplyBody::full(Bytes::from(body.to_string())));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if status == StatusCode::SERVICE_UNAVAILABLE {
        headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// A problem of the host's own with an answer that the gateway had given: what that said to the page that asked stays.
pub(crate) fn refused(problem: &Problem, answered: &HeaderMap, request_id: &str) -> Response<ReplyBody> {
    let mut response = Response::new(ReplyBody::full(Bytes::from(problem.to_json(request_id))));
    *response.status_mut() = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    let kept = |name: &HeaderName| name == VARY || name.as_str().starts_with("access-control-");
    for (name, value) in answered.iter().filter(|(name, _)| kept(name)) {
        headers.append(name, value.clone());
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::CONTENT_TYPE));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(seconds) = problem.retry_after_s() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(REQUEST_ID, id);
    }
    response
}

/// `/metrics`.
pub(crate) fn metrics(method: &Method, text: impl FnOnce() -> String, request_id: &str) -> Response<ReplyBody> {
    if method != Method::GET && method != Method::HEAD {
        let mut response = problem(Trouble::Method, request_id);
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    let mut response = Response::new(ReplyBody::full(Bytes::from(text())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"));
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
