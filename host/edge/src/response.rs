//! The response to a request, and the responses of the host itself.

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER, VARY};
use http::{HeaderMap, Response, StatusCode, Version};
use weir_codec::http::cors::Headers;
use weir_codec::http::framing::Framing;
use weir_codec::http::problem::{self, Problem};

use crate::body::ResponseBody;
use crate::request_id;
use crate::share::Permit;
use crate::sse::hold::HeldResponse;
use crate::websocket::connection::Upgrade;

/// The response to a request.
pub(crate) enum EdgeResponse {
    /// An ordinary HTTP response.
    Http(Response<ResponseBody>),
    /// A stream of events that this host feeds.
    Held(Box<HeldResponse>),
    /// The head of an upgrade, after which the connection is a WebSocket.
    WebSocket(Response<ResponseBody>, Box<Upgrade>),
}

impl EdgeResponse {
    /// The response on a connection that also carries other requests: a held stream becomes an ordinary body.
    pub(crate) fn into_http(self) -> Response<ResponseBody> {
        match self {
            // Upgrades of this kind exist in HTTP/1.1 only, whose connection handles the upgrade before this is called.
            Self::Http(response) | Self::WebSocket(response, _) => response,
            Self::Held(held) => {
                let HeldResponse { head, first, feed } = *held;
                Response::from_parts(head, ResponseBody::held(first, feed))
            }
        }
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        match self {
            Self::Http(response) | Self::WebSocket(response, _) => response.headers(),
            Self::Held(held) => &held.head.headers,
        }
    }

    pub(crate) fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Http(response) | Self::WebSocket(response, _) => response.headers_mut(),
            Self::Held(held) => &mut held.head.headers,
        }
    }

    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Http(response) | Self::WebSocket(response, _) => response.status(),
            Self::Held(held) => held.head.status,
        }
    }
}

/// A problem that the host reports instead of the gateway component.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EdgeProblem {
    /// As many requests are open as the configuration allows.
    Full,
    /// The client holds its share of the open requests.
    ClientShare,
    /// The server is stopping.
    Draining,
    /// The WebSocket version of the client is not supported.
    WebSocketVersion,
    /// The instance that had the request was lost.
    InstanceLost,
    /// The component gave no response in time.
    Timeout,
    /// The component failed.
    Failed,
}

impl EdgeProblem {
    /// The status, the code, the detail, and whether a retry may help.
    fn parts(self) -> (StatusCode, &'static str, &'static str, bool) {
        match self {
            Self::Full => (
                StatusCode::SERVICE_UNAVAILABLE,
                "overloaded",
                "the server has as many requests open as `http.requests_max` allows; retry later",
                true,
            ),
            Self::ClientShare => (
                StatusCode::TOO_MANY_REQUESTS,
                "client_share",
                "the client has as many requests open as `http.client_share_percent` allows one client; finish some, then retry",
                true,
            ),
            Self::Draining => (
                StatusCode::SERVICE_UNAVAILABLE,
                "draining",
                "the server is stopping: it finishes open requests and takes no new ones",
                true,
            ),
            Self::WebSocketVersion => {
                (StatusCode::UPGRADE_REQUIRED, "upgrade_required", "WebSockets are served in version 13", false)
            }
            Self::InstanceLost => (
                StatusCode::SERVICE_UNAVAILABLE,
                "instance_lost",
                "the instance that had this request was lost; the request can be sent again",
                true,
            ),
            Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "request_timeout", "no response in time", true),
            Self::Failed => (StatusCode::INTERNAL_SERVER_ERROR, "internal", "the gateway component failed", false),
        }
    }
}

/// A problem as a response (RFC 9457), in the same form as problems of the gateway component.
pub(crate) fn edge_problem(problem: EdgeProblem, request_id: &str) -> Response<ResponseBody> {
    let (status, code, detail, retryable) = problem.parts();
    let body = serde_json::json!({
        "type": format!("urn:weir:problem:{}", code.replace('_', "-")),
        "title": status.canonical_reason().unwrap_or_default(),
        "status": status.as_u16(),
        "detail": detail,
        "code": code,
        "request_id": request_id,
        "retryable": retryable,
    });
    let body = ResponseBody::full(Bytes::from(format!("{body}\n")));
    let mut response = response(status, HeaderValue::from_static(problem::CONTENT_TYPE), body, request_id);
    if matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS) {
        response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

/// A problem as a response that replaces one of the gateway, whose CORS headers it copies.
pub(crate) fn replacing_problem(problem: &Problem, replaced: &HeaderMap, request_id: &str) -> Response<ResponseBody> {
    let mut response = problem_response(problem, request_id);
    let is_cors = |name: &HeaderName| name == VARY || name.as_str().starts_with("access-control-");
    for (name, value) in replaced.iter().filter(|(name, _)| is_cors(name)) {
        response.headers_mut().append(name, value.clone());
    }
    response
}

/// A problem as a response.
pub(crate) fn problem_response(problem: &Problem, request_id: &str) -> Response<ResponseBody> {
    let mut body = problem.to_json(request_id);
    body.push(b'\n');
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let content_type = HeaderValue::from_static(problem::CONTENT_TYPE);
    let mut response = response(status, content_type, ResponseBody::full(Bytes::from(body)), request_id);
    for (name, value) in problem.headers() {
        if let Ok(value) = HeaderValue::from_str(&value) {
            response.headers_mut().insert(name, value);
        }
    }
    response
}

/// As [`problem_response`], for a request whose end cannot be determined: HTTP/1.1 closes the connection after the
/// response.
pub(crate) fn closing_problem(problem: &Problem, version: Version, request_id: &str) -> Response<ResponseBody> {
    let mut response = problem_response(problem, request_id);
    if version < Version::HTTP_2 {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

/// The methods of a path, for a CORS preflight or another `OPTIONS` request.
pub(crate) fn methods(allow: &'static str, cors: &Headers, request_id: &str) -> Response<ResponseBody> {
    let mut response = Response::new(ResponseBody::full(Bytes::new()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let headers = response.headers_mut();
    headers.insert(ALLOW, HeaderValue::from_static(allow));
    for (name, value) in cors {
        if let Ok(value) = HeaderValue::from_str(value) {
            headers.insert(*name, value);
        }
    }
    add_common(headers, request_id);
    response
}

/// The response of `/metrics`.
pub(crate) fn metrics(text: String, request_id: &str, permit: Permit) -> Response<ResponseBody> {
    let content_type = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
    let body = ResponseBody::full_with(Bytes::from(text), permit);
    response(StatusCode::OK, content_type, body, request_id)
}

/// The response of `/v1/stats`.
pub(crate) fn stats(body: ResponseBody, framing: Option<Framing>, request_id: &str) -> Response<ResponseBody> {
    let content_type = framing.map_or("application/json", Framing::content_type);
    let mut response = response(StatusCode::OK, HeaderValue::from_static(content_type), body, request_id);
    response.headers_mut().insert(VARY, HeaderValue::from_static("accept"));
    response
}

fn response(
    status: StatusCode,
    content_type: HeaderValue,
    body: ResponseBody,
    request_id: &str,
) -> Response<ResponseBody> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, content_type);
    add_common(response.headers_mut(), request_id);
    response
}

fn add_common(headers: &mut HeaderMap, request_id: &str) {
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Ok(id) = HeaderValue::from_str(request_id) {
        headers.insert(request_id::HEADER, id);
    }
}
