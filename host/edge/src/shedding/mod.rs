//! Load shedding: refuses requests that the gateway component would probably refuse, before they reach it.
//!
//! The component refuses a request to a model whose queue is full, or too long for the request's deadline, only after it has
//! read and parsed the request, which costs about as much as a successful request does outside of the engine. At several
//! times the capacity of a model, refusals would take the processor time of responses. Therefore, while the component
//! refuses requests, the edge counts outcomes by kind of request, and refuses the excess itself with the component's last
//! refusal of the same kind.
//!
//! A kind is a client (its address and credentials), a target, and the model that the body names, so that an overload by one
//! client or of one model has no effect on others. Only requests for inference with a JSON body are refused; probes, streams
//! of lines, generations, sessions, pipelines, subscriptions and WebSockets are not, and no request is refused while no item
//! waits. Without recent refusals nothing is counted.

mod model;
mod window;

use std::borrow::Cow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use http::header::{AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, RETRY_AFTER};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use metrics::counter;
use weir_codec::http::content_type;
use weir_codec::http::router::RouteMatch;
use weir_config::{Http, Switch};

use crate::body::{RequestBody, ResponseBody};
use crate::peeked::PeekedBody;
use crate::request_id;
use crate::response::EdgeResponse;
use crate::shedding::window::{Window, WindowConfig};

/// Most kinds of requests that are counted at once.
const KINDS_MAX: usize = 1024;
/// The number of windows for which outcomes are counted after a refusal.
const ACTIVE_WINDOWS: u64 = 4;
/// The headers of API keys.
const API_KEYS: [HeaderName; 2] = [HeaderName::from_static("x-api-key"), HeaderName::from_static("x-goog-api-key")];

/// The kind of a request: a keyed hash, so that clients cannot choose it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct RequestKind(u64);

/// Counts the outcomes of requests by kind, and refuses the excess.
pub(crate) struct Shedder {
    is_on: bool,
    window: WindowConfig,
    start: Instant,
    /// The time until which outcomes are counted, in nanoseconds from `start`.
    active_until_ns: AtomicU64,
    hasher: RandomState,
    kinds: Mutex<HashMap<RequestKind, KindState>>,
}

struct KindState {
    window: Window,
    /// The component's last refusal of this kind.
    refusal: Option<Refusal>,
}

impl Shedder {
    pub(crate) fn new(config: &Http) -> Self {
        Self {
            is_on: config.shed == Switch::On,
            window: WindowConfig {
                window_ns: config.shed_window_ms as f64 * 1e6,
                ratio: 1.0 + f64::from(config.shed_probe_percent) / 100.0,
            },
            start: Instant::now(),
            active_until_ns: AtomicU64::new(0),
            hasher: RandomState::new(),
            kinds: Mutex::default(),
        }
    }

    /// The kind of a request, if outcomes are counted now and the request may be refused.
    pub(crate) fn kind_of<B: RequestBody>(&self, request: &Request<PeekedBody<B>>, client: u64) -> Option<RequestKind> {
        if !self.is_active() || *request.method() != Method::POST || RouteMatch::is_stateful(request.uri().path()) {
            return None;
        }
        let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        if !content_type::is_json(content_type) {
            return None;
        }
        let mut hasher = self.hasher.build_hasher();
        hasher.write_u64(client);
        for name in [AUTHORIZATION].into_iter().chain(API_KEYS) {
            let value = request.headers().get(name).map(HeaderValue::as_bytes).unwrap_or_default();
            hasher.write_usize(value.len());
            hasher.write(value);
        }
        let target = request.uri().path_and_query().map(|target| target.as_str()).unwrap_or_default();
        hasher.write_usize(target.len());
        hasher.write(target.as_bytes());
        hasher.write(model::named_in(request.body().first()?).unwrap_or_default());
        Some(RequestKind(hasher.finish()))
    }

    /// The response to a request of this kind, if it is refused.
    pub(crate) fn refuse(&self, kind: RequestKind, request_id: &str) -> Option<Response<ResponseBody>> {
        let mut kinds = self.lock();
        let KindState { window, refusal } = kinds.get_mut(&kind)?;
        let refusal = refusal.as_ref()?;
        if !window.refuses(&self.window, self.now_ns()) {
            return None;
        }
        counter!("weir_http_shed_total").increment(1);
        Some(refusal.response(request_id))
    }

    /// Counts the outcome of a request that was passed on. `kind` is `None` for a request that is not counted.
    pub(crate) fn record(&self, kind: Option<RequestKind>, response: &EdgeResponse, request_id: &str) {
        let status = response.status();
        let is_refused = matches!(status, StatusCode::SERVICE_UNAVAILABLE | StatusCode::TOO_MANY_REQUESTS)
            && response.headers().contains_key(RETRY_AFTER);
        if !self.is_on || (!is_refused && kind.is_none()) {
            return;
        }
        let now_ns = self.now_ns();
        if is_refused {
            self.activate(now_ns);
        }
        let Some(kind) = kind else { return };
        // A request that missed its deadline counts as refused: its computation was useless.
        let is_accepted = !is_refused && status != StatusCode::GATEWAY_TIMEOUT;
        let mut kinds = self.lock();
        if !kinds.contains_key(&kind) {
            if kinds.len() >= KINDS_MAX {
                kinds.retain(|_, state| !state.window.is_idle(&self.window, now_ns));
            }
            if kinds.len() >= KINDS_MAX {
                return;
            }
        }
        let state = kinds.entry(kind).or_insert_with(|| KindState { window: Window::new(now_ns), refusal: None });
        state.window.record(&self.window, now_ns, is_accepted);
        if is_refused && let Some(refusal) = Refusal::of(response, request_id) {
            state.refusal = Some(refusal);
        }
    }

    /// Counts outcomes for the next [`ACTIVE_WINDOWS`].
    fn activate(&self, now_ns: u64) {
        let until_ns = now_ns.saturating_add(ACTIVE_WINDOWS * self.window.window_ns as u64);
        self.active_until_ns.store(until_ns, Ordering::Relaxed);
    }

    fn is_active(&self) -> bool {
        let until_ns = self.active_until_ns.load(Ordering::Relaxed);
        until_ns > 0 && self.now_ns() < until_ns
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RequestKind, KindState>> {
        self.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A refusal of the component, for further requests of the same kind.
struct Refusal {
    status: StatusCode,
    headers: HeaderMap,
    /// The body before and after the request's id; without an id all of it is before.
    body: (Bytes, Option<Bytes>),
}

impl Refusal {
    /// The refusal in a response, if the whole body is available.
    fn of(response: &EdgeResponse, request_id: &str) -> Option<Self> {
        let EdgeResponse::Http(response) = response else { return None };
        let bytes = response.body().first_bytes()?;
        let length = response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse::<usize>().ok()?;
        (length == bytes.len()).then(|| Self::new(response.status(), response.headers(), bytes, request_id))
    }

    fn new(status: StatusCode, headers: &HeaderMap, body: &Bytes, request_id: &str) -> Self {
        // Headers that are specific to one response, and those that the edge adds to every response.
        let is_own = |name: &HeaderName| {
            [CONTENT_LENGTH, CONNECTION, request_id::HEADER].contains(name)
                || name.as_str().starts_with("access-control-")
        };
        let headers = headers.iter().filter(|(name, _)| !is_own(name));
        let headers = headers.map(|(name, value)| (name.clone(), value.clone())).collect();
        let id = quoted(request_id);
        let member = format!("\"request_id\":\"{id}\"");
        let body = match body.windows(member.len()).position(|part| part == member.as_bytes()) {
            // The id ends before the closing quotation mark.
            Some(at) => {
                let end = at + member.len() - 1;
                (body.slice(..end - id.len()), Some(body.slice(end..)))
            }
            None => (body.clone(), None),
        };
        Self { status, headers, body }
    }

    fn response(&self, request_id: &str) -> Response<ResponseBody> {
        let body = match &self.body {
            (all, None) => all.clone(),
            (before, Some(after)) => {
                let id = quoted(request_id);
                let mut body = BytesMut::with_capacity(before.len() + id.len() + after.len());
                body.extend_from_slice(before);
                body.extend_from_slice(id.as_bytes());
                body.extend_from_slice(after);
                body.freeze()
            }
        };
        let mut response = Response::new(ResponseBody::full(body));
        *response.status_mut() = self.status;
        *response.headers_mut() = self.headers.clone();
        if let Ok(id) = HeaderValue::from_str(request_id) {
            response.headers_mut().insert(request_id::HEADER, id);
        }
        response
    }
}

/// A request's id as it is in a JSON string: its characters are graphic ASCII.
fn quoted(request_id: &str) -> Cow<'_, str> {
    match request_id.contains(['"', '\\']) {
        true => request_id.replace('\\', "\\\\").replace('"', "\\\"").into(),
        false => request_id.into(),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::{BodyExt, Full};

    use super::*;

    fn refused() -> EdgeResponse {
        let response = Response::builder().status(503).header(RETRY_AFTER, "2");
        EdgeResponse::Http(response.body(ResponseBody::full(Bytes::new())).expect("a response"))
    }

    #[tokio::test]
    async fn repeated_refusal_has_the_id_of_its_own_request() {
        let headers = [(RETRY_AFTER, "2"), (CONTENT_LENGTH, "70"), (request_id::HEADER, "x")];
        let mut headers: HeaderMap =
            headers.into_iter().map(|(name, value)| (name, HeaderValue::from_static(value))).collect();
        headers.insert("access-control-allow-origin", HeaderValue::from_static("https://a.example"));
        for (first, second) in [("e", "f"), ("a\"b", "c\\d"), ("edge-1-2", "edge-1-30")] {
            let body = |id: &str| {
                format!("{{\"detail\":\"the queue is full: {first:?}\",\"request_id\":\"{}\"}}\n", quoted(id))
            };
            let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, &headers, &Bytes::from(body(first)), first);
            let response = refusal.response(second);
            assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
            assert_eq!(response.headers()[RETRY_AFTER], "2");
            assert_eq!(response.headers()[request_id::HEADER], second);
            assert_eq!(response.headers().len(), 2);
            let bytes = response.into_body().collect().await.expect("a body").to_bytes();
            assert_eq!(String::from_utf8_lossy(&bytes), body(second));
        }
    }

    #[tokio::test]
    async fn kinds_differ_by_client_credentials_target_and_model() {
        let shedder = Shedder::new(&Http::default());
        shedder.activate(shedder.now_ns());
        let kind = async |client: u64, path: &str, token: &str, body: &'static str| {
            let mut body = PeekedBody::new(Full::from(body));
            body.read_arrived().await;
            let request = Request::post(path).header(AUTHORIZATION, token).body(body);
            shedder.kind_of(&request.expect("a request"), client)
        };
        let one = kind(1, "/v1/classify", "a", r#"{"model":"x"}"#).await;
        assert!(one.is_some());
        assert_eq!(one, kind(1, "/v1/classify", "a", r#"{"inputs":"t","model":"x"}"#).await);
        for other in [
            kind(2, "/v1/classify", "a", r#"{"model":"x"}"#).await,
            kind(1, "/v1/tokens", "a", r#"{"model":"x"}"#).await,
            kind(1, "/v1/classify", "b", r#"{"model":"x"}"#).await,
            kind(1, "/v1/classify", "a", r#"{"model":"y"}"#).await,
        ] {
            assert!(other.is_some() && other != one);
        }
    }

    #[test]
    fn number_of_kinds_is_bounded() {
        let shedder = Shedder::new(&Http::default());
        for number in 0..2 * KINDS_MAX as u64 {
            shedder.record(Some(RequestKind(number)), &refused(), "a");
        }
        assert_eq!(shedder.lock().len(), KINDS_MAX);
    }

    #[test]
    fn nothing_is_counted_before_a_refusal() {
        let shedder = Shedder::new(&Http::default());
        let ok = EdgeResponse::Http(Response::new(ResponseBody::full(Bytes::new())));
        shedder.record(None, &ok, "a");
        assert!(!shedder.is_active());
        shedder.record(None, &refused(), "a");
        assert!(shedder.is_active() && shedder.lock().is_empty());
    }
}
