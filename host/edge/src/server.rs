//! The HTTP listener: accepts connections, bounds them, hands requests to the gateway, and drains at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, response};
use http_body::Body;
use http_body_util::{BodyExt, Limited};
use metrics::{counter, gauge, histogram};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use weir_codec::http::content_type;
use weir_codec::http::cors::{Headers, OriginRefused};
use weir_codec::http::problem::Problem;
use weir_codec::http::router::Found;
use weir_codec::http::target;
use weir_config::{AuthMode, Config, Http, Switch};
use weir_events::Store;
use weir_runtime::Runtime;
use weir_runtime::gateway::{self, AdmissionError, BodyBytes, BodyError, ResponseBody, Gateway};

use crate::response::{self as answer, Trouble};
use crate::body::{Open, ReplyBody};
use crate::connection;
use crate::entry::{self, Entry, EntryError};
use crate::sse::gzip;
use crate::sse::hold::{self, Held, HoldError, Holds, Instruction};
use crate::observe::Observer;
use crate::share::{ClientKey, Permit, Refused, SharedPool};
use crate::websocket::{self as socket, Handshake, HandshakeError, Talk};

/// Probes that a component has at once: more than any prober sends.
const PROBES_MAX: u32 = 64;
/// The most that a probe is answered with, and the time that it may take.
const PROBE_BYTES_MAX: usize = 1 << 20;
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
/// Answers of `/metrics` on their way.
const SCRAPES_MAX: u32 = 16;
/// What an instance keeps of a body that it reads line by line: the longest line, and what is read ahead.
const STREAMED_BYTES: u64 = 256 << 10;

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}: {}", remedy(address, source))]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The runtime was started without a gateway.
    #[error("the runtime was started without a gateway")]
    NoGateway,
    /// A setting cannot be used.
    #[error(transparent)]
    Setting(#[from] EntryError),
}

/// What a person can do about an address that cannot be listened on.
fn remedy(address: &str, error: &std::io::Error) -> String {
    let port = address.rsplit_once(':').map_or(address, |(_, port)| port);
    match error.kind() {
        std::io::ErrorKind::AddrInUse => format!(
            "port {port} is in use; stop the program that listens there, or take another port with --listen (port 0 takes a \
             free one)"
        ),
        std::io::ErrorKind::PermissionDenied => {
            format!("this user may not listen on port {port}; take one from 1024 on with --listen")
        }
        std::io::ErrorKind::AddrNotAvailable => {
            "this machine has no such address; 127.0.0.1 is always there, and 0.0.0.0 means all that it has".to_owned()
        }
        _ => "--listen takes another address".to_owned(),
    }
}

/// A socket that listens. Connections wait in the kernel until a [`Server`] serves them.
pub struct Listener {
    socket: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on an address, `http.listen`.
    ///
    /// # Errors
    ///
    /// The address is taken, not one of this machine, or not for this user.
    pub async fn bind(listen: &str) -> Result<Self, ServeError> {
        let failed = |source| ServeError::Listen { address: listen.to_owned(), source };
        let socket = TcpListener::bind(listen).await.map_err(failed)?;
        let address = socket.local_addr().map_err(failed)?;
        Ok(Self { socket, address })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A server that is not yet serving.
pub struct Server {
    listener: TcpListener,
    shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: Http,
    runtime: Arc<Runtime>,
    gateway: Gateway,
    events: Store,
    observer: Observer,
    entry: Entry,
    /// Whether requests show who sends them.
    needs_token: bool,
    connections: Arc<SharedPool>,
    places: Arc<SharedPool>,
    /// Those of `/livez` and `/readyz` that a component has.
    probes: Arc<SharedPool>,
    /// Answers of `/metrics` that are not sent yet.
    scrapes: Arc<SharedPool>,
    holds: Holds,
    gzip: bool,
    ids: AtomicU64,
    draining: AtomicBool,
    /// True when WebSockets are to end: nothing else would end them.
    pub(crate) leaving: watch::Sender<bool>,
}

impl Server {
    /// Makes a server of its parts.
    ///
    /// # Errors
    ///
    /// The runtime has no gateway.
    pub fn new(
        config: &Config,
        listener: Listener,
        runtime: Arc<Runtime>,
        observer: Observer,
    ) -> Result<Self, ServeError> {
        let gateway = runtime.gateway().cloned().ok_or(ServeError::NoGateway)?;
        let events = runtime.events().cloned().ok_or(ServeError::NoGateway)?;
        let share = config.http.client_share_percent;
        let holds = Holds::new(config.events.subscribers_max, share, config.auth.connections_max);
        let gzip = config.events.gzip == Switch::On;
        let needs_token = config.auth.mode == AuthMode::Required;
        let all = config;
        let config = config.http.clone();
        let entry = Entry::new(all, listener.address.ip().to_canonical().is_loopback())?;
        let connections = SharedPool::new(config.connections_max, share);
        let places = SharedPool::new(config.requests_max, share);
        let (probes, scrapes) = (SharedPool::new(PROBES_MAX, share), SharedPool::new(SCRAPES_MAX, share));
        let ids = AtomicU64::new(0);
        Ok(Self {
            listener: listener.socket,
            shared: Arc::new(Shared {
                config,
                runtime,
                gateway,
                events,
                observer,
                entry,
                needs_token,
                connections,
                places,
                probes,
                scrapes,
                holds,
                gzip,
                ids,
                draining: AtomicBool::new(false),
                leaving: watch::Sender::new(false),
            }),
        })
    }

    /// Serves until `stop` resolves. Then it says that it is not ready, answers nothing but probes, lets the requests in
    /// progress finish within `http.drain_timeout_ms`, and cuts the rest. Returns how many requests were cut, connections that
    /// were held for subscribers included.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> usize {
        let Self { listener, shared } = self;
        let connections = Arc::new(Semaphore::new(shared.config.connections_max as usize));
        let (stopping, stopped) = watch::channel(false);
        let mut tasks = tokio::task::JoinSet::new();
        accept_until(stop, &listener, &connections, &shared, &stopped, &mut tasks).await;

        shared.draining.store(true, Ordering::Relaxed);
        shared.leaving.send_replace(true);
        shared.runtime.drain();
        let bound = Instant::now() + Duration::from_millis(shared.config.drain_timeout_ms);
        let finished = async {
            shared.places.none().await;
            shared.holds.none().await;
        };
        let finished = async { drop(tokio::time::timeout_at(bound.into(), finished).await) };
        accept_until(finished, &listener, &connections, &shared, &stopped, &mut tasks).await;
        drop(listener);

        let cut = shared.places.taken() + shared.holds.open();
        // What is written may still be on its way; connections that only wait are closed.
        let flush = bound.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        let _ = stopping.send(true);
        let _ = tokio::time::timeout(flush, async { while tasks.join_next().await.is_some() {} }).await;
        tasks.shutdown().await;
        cut
    }
}

/// Accepts and serves connections until `end` resolves.
async fn accept_until(
    end: impl Future<Output = ()>,
    listener: &TcpListener,
    connections: &Arc<Semaphore>,
    shared: &Arc<Shared>,
    stopped: &watch::Receiver<bool>,
    tasks: &mut tokio::task::JoinSet<()>,
) {
    tokio::pin!(end);
    loop {
        while tasks.try_join_next().is_some() {}
        let accepted = tokio::select! {
            biased;
            () = &mut end => return,
            accepted = accept(listener, connections) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let client = stream.peer_addr().map_or(0, |address| connection::owner_of(address.ip()));
        // One that the client has no right to is closed at once: to answer it, its request would have to be read.
        let Ok(permit) = shared.connections.try_take(client) else {
            counter!("weir_http_connections_refused_total").increment(1);
            continue;
        };
        let shared = shared.clone();
        let stopped = stopped.clone();
        tasks.spawn(async move {
            gauge!("weir_http_connections_open").increment(1);
            connection::serve(shared, stream, client, stopped).await;
            gauge!("weir_http_connections_open").decrement(1);
            drop((place, permit));
        });
    }
}

type Place = tokio::sync::OwnedSemaphorePermit;

/// The next connection, when there is room for one.
async fn accept(listener: &TcpListener, connections: &Arc<Semaphore>) -> Option<(TcpStream, Place)> {
    let place = connections.clone().acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _)) => Some((stream, place)),
        Err(error) => {
            // Out of file descriptors, or the peer left before it was accepted: neither ends the server.
            tracing::warn!(%error, "a connection could not be accepted");
            tokio::time::sleep(Duration::from_millis(10)).await;
            None
        }
    }
}

/// What is answered.
pub(crate) enum Answer {
    Whole(Response<ReplyBody>),
    /// Its connection is held, and fed by this host.
    Held(Box<Held>),
    /// Its connection becomes a WebSocket when the head is written.
    Socket(Response<ReplyBody>, Box<Talk>),
}

impl Answer {
    /// As one of HTTP; a connection that is held is one request of many that share it.
    pub(crate) fn into_response(self) -> Response<ReplyBody> {
        match self {
            // Only HTTP/1.1 asks for a socket so, and its connection takes the other half.
            Self::Whole(response) | Self::Socket(response, _) => response,
            Self::Held(held) => {
                let Held { head, first, feed } = *held;
                Response::from_parts(head, ReplyBody::held(first, feed))
            }
        }
    }

    fn headers_mut(&mut self) -> &mut HeaderMap {
        match self {
            Self::Whole(response) | Self::Socket(response, _) => response.headers_mut(),
            Self::Held(held) => &mut held.head.headers,
        }
    }

    fn status(&self) -> StatusCode {
        match self {
            Self::Whole(response) | Self::Socket(response, _) => response.status(),
            Self::Held(held) => held.head.status,
        }
    }
}

/// Answers a request of a client.
pub(crate) async fn answer<B>(shared: &Arc<Shared>, mut request: Request<B>, owner: u64) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let started = Instant::now();
    hold::strip(request.headers_mut());
    let method = request.method().clone();
    let id = answer::request_id(request.headers(), || {
        format!("edge-{:x}-{:x}", std::process::id(), shared.ids.fetch_add(1, Ordering::Relaxed))
    });
    // The component sees the same id, so that logs and answers can be tied together.
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(answer::REQUEST_ID, value);
    }
    let version = request.version();
    let admitted = shared.entry.admit(&mut request);
    let page = shared.entry.page(&request);
    let mut answer = match admitted {
        Ok(()) => route(shared, request, owner, &page, &id).await,
        Err(problem) => Answer::Whole(answer::of_last_problem(&problem, version, &id)),
    };
    entry::add_page(answer.headers_mut(), &page);
    let status = answer.status();
    counter!("weir_http_requests_total", "method" => method_label(&method), "status" => status.as_u16().to_string())
        .increment(1);
    histogram!("weir_http_first_byte_seconds").record(started.elapsed().as_secs_f64());
    tracing::debug!(%method, status = status.as_u16(), request_id = id, "answered");
    answer
}

/// Finds what answers a request whose head is in order.
async fn route<B>(
    shared: &Arc<Shared>,
    request: Request<B>,
    owner: u64,
    page: &Result<Headers, OriginRefused>,
    id: &str,
) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    if let Some(preflight) = shared.entry.preflight(&request) {
        return Answer::Whole(match preflight {
            Ok((allow, headers)) => answer::methods(allow, &headers, id),
            Err(problem) => answer::of_problem(&problem, id),
        });
    }
    match request.uri().path() {
        answer::METRICS => metrics(shared, request, owner, page, id).await,
        // Probes are answered however busy the server is, and while it drains.
        "/livez" | "/readyz" => match shared.probes.try_take(owner) {
            Ok(permit) => probe(shared, request, owner, permit, id).await,
            Err(refused) => refuse(refused, id),
        },
        _ if shared.is_draining() => Answer::Whole(answer::problem(Trouble::Draining, id)),
        _ => match shared.places.try_take(owner) {
            Ok(permit) => pass(shared, request, owner, Some(Open::new(permit)), id).await,
            Err(refused) => refuse(refused, id),
        },
    }
}

/// Answers `/metrics`. Who may read them is the gateway's to say: it has the keys.
async fn metrics<B>(
    shared: &Shared,
    request: Request<B>,
    owner: u64,
    page: &Result<Headers, OriginRefused>,
    id: &str,
) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    if let Err(refused) = page {
        return Answer::Whole(answer::of_problem(&refused.clone().into(), id));
    }
    match *request.method() {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS => return Answer::Whole(answer::methods(entry::METRICS_ALLOW, &Headers::new(), id)),
        ref method => {
            let problem = Problem::method_not_allowed(method.as_str(), answer::METRICS, entry::METRICS_ALLOW);
            return Answer::Whole(answer::of_problem(&problem, id));
        }
    }
    let permit = match shared.scrapes.try_take(owner) {
        Ok(permit) => permit,
        Err(refused) => return refuse(refused, id),
    };
    if shared.needs_token {
        let answer = pass(shared, request, owner, None, id).await;
        if answer.status() != StatusCode::NO_CONTENT {
            return answer;
        }
    }
    shared.runtime.report();
    Answer::Whole(answer::metrics(shared.observer.render(), id, permit))
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// The refusal for a client that there is no room for.
fn refuse(refused: Refused, id: &str) -> Answer {
    counter!("weir_http_rejected_total").increment(1);
    let trouble = match refused {
        Refused::Total => Trouble::Full,
        Refused::Client => Trouble::ClientShare,
    };
    Answer::Whole(answer::problem(trouble, id))
}

/// Answers a probe. Its answer is small and is taken from the component whole, so that a client that does not read it keeps
/// no place among the probes.
async fn probe<B>(shared: &Shared, request: Request<B>, owner: u64, permit: Permit, id: &str) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let Answer::Whole(response) = pass(shared, request, owner, None, id).await else {
        return Answer::Whole(answer::problem(Trouble::Failed, id));
    };
    let (head, body) = response.into_parts();
    let whole = tokio::time::timeout(PROBE_TIMEOUT, Limited::new(body, PROBE_BYTES_MAX).collect()).await;
    drop(permit);
    match whole {
        Ok(Ok(whole)) => Answer::Whole(Response::from_parts(head, ReplyBody::full(whole.to_bytes()))),
        Ok(Err(_)) => Answer::Whole(answer::problem(Trouble::Lost, id)),
        Err(_) => Answer::Whole(answer::problem(Trouble::Stuck, id)),
    }
}

/// Hands a request to the gateway component.
async fn pass<B>(shared: &Shared, mut request: Request<B>, owner: u64, mut open: Option<Open>, id: &str) -> Answer
where
    B: Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BodyError>,
{
    let bytes = body_bytes(&request, shared.config.body_bytes_max);
    request.extensions_mut().insert(bytes);
    if socket::is_handshake(&request) {
        return open_socket(shared, request, owner, open, id).await;
    }
    let get = request.method() == Method::GET;
    // Lines in both directions, in the place of a WebSocket. The gateway finds its routes by the normal form of the path.
    let is_socket = target::normalize_path(request.uri().path()).is_ok_and(|path| Found::is_socket(&path));
    let gzip = shared.gzip && gzip::is_accepted(request.headers());
    let request = request.map(|body| gateway::request_body(body.map_err(|error| -> BodyError { error.into() })));
    match shared.gateway.handle(request, owner).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            if let Some(refusal) = count(shared, &mut head, &mut open, is_socket, id) {
                return refusal;
            }
            match hold::instruction(&mut head.headers) {
                Ok(Some(instruction)) if get => hold(shared, instruction, gzip, (head, body), (open, owner), id).await,
                Ok(_) => {
                    let body = ReplyBody::Streamed { body: Box::new(body), _open: open };
                    Answer::Whole(Response::from_parts(head, body))
                }
                Err(error) => cannot_hold(&error, id),
            }
        }
        Err(error) => failed(&error, id),
    }
}

/// Asks the gateway for both directions of a WebSocket.
async fn open_socket<B>(shared: &Shared, request: Request<B>, owner: u64, mut open: Option<Open>, id: &str) -> Answer {
    let version = request.version();
    let (handshake, request) = match Handshake::begin(request) {
        Ok(begun) => begun,
        Err(HandshakeError::Version) => {
            return Answer::Whole(socket::other_version(answer::problem(Trouble::Version, id)));
        }
        Err(error) => {
            let problem = Problem::invalid_handshake(&error.to_string());
            return Answer::Whole(answer::of_last_problem(&problem, version, id));
        }
    };
    match shared.gateway.handle(request, owner).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            match count(shared, &mut head, &mut open, true, id) {
                None => handshake.answer(Response::from_parts(head, body), open),
                Some(refusal) => refusal,
            }
        }
        Err(error) => failed(&error, id),
    }
}

/// Counts a request for the user whom the gateway names in its answer, and a WebSocket among the connections of the user. Where
/// the user has too many, returns the refusal.
fn count(
    shared: &Shared,
    head: &mut response::Parts,
    open: &mut Option<Open>,
    is_socket: bool,
    id: &str,
) -> Option<Answer> {
    let (Some(user), Some(open)) = (hold::user(&mut head.headers), open) else { return None };
    if let Err(refused) = open.assign(ClientKey::User(user.as_str().into())) {
        return Some(refuse(refused, id));
    }
    // An error ends the request, and is no connection.
    if is_socket && head.status.is_success() {
        match shared.holds.connect(&user) {
            Ok(place) => open.connected(place),
            Err(refused) => return Some(Answer::Whole(answer::refused(&hold::no_room(&refused), &head.headers, id))),
        }
    }
    None
}

/// What a client is told when the gateway gave no answer.
fn failed(error: &gateway::HandleError, id: &str) -> Answer {
    let trouble = if let Some(refused) = gateway::admission_error(error) {
        counter!("weir_http_rejected_total").increment(1);
        return Answer::Whole(answer::problem(
            match refused {
                AdmissionError::Full => Trouble::Full,
                AdmissionError::ClientShare => Trouble::ClientShare,
            },
            id,
        ));
    } else if gateway::is_lost_instance(error) {
        Trouble::Lost
    } else if gateway::is_timeout(error) {
        Trouble::Stuck
    } else {
        Trouble::Failed
    };
    tracing::error!(error = format!("{error:#}"), request_id = id, "a request failed");
    Answer::Whole(answer::problem(trouble, id))
}

/// Holds a connection as the gateway says. The gateway's part of the request is over then, and its place is another's.
async fn hold(
    shared: &Shared,
    instruction: Instruction,
    gzip: bool,
    (mut head, body): (response::Parts, ResponseBody),
    (open, owner): (Option<Open>, u64),
    id: &str,
) -> Answer {
    let first = match hold::first(body).await {
        Ok(first) => first,
        Err(HoldError::Lost) => return Answer::Whole(answer::problem(Trouble::Lost, id)),
        Err(error) => return cannot_hold(&error, id),
    };
    drop(open);
    match shared.holds.follow(&shared.events, instruction, owner).await {
        // Whoever came to its seat after the others were sent away would stay.
        Ok(_) if shared.is_draining() => Answer::Whole(answer::problem(Trouble::Draining, id)),
        Ok(mut feed) => {
            head.headers.remove(CONTENT_LENGTH);
            if shared.gzip {
                head.headers.append(VARY, HeaderValue::from_static("accept-encoding"));
            }
            let first = match gzip && feed.can_gzip() {
                true => {
                    head.headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
                    feed.gzip(&first).into()
                }
                false => first,
            };
            Answer::Held(Box::new(Held { head, first, feed }))
        }
        Err(problem) => Answer::Whole(answer::refused(&problem, &head.headers, id)),
    }
}

fn cannot_hold(error: &HoldError, id: &str) -> Answer {
    tracing::error!(%error, request_id = id, "a connection cannot be held as the gateway says");
    Answer::Whole(answer::problem(Trouble::Failed, id))
}

/// What a request's body takes of an instance's memory. One of JSON is read whole; others are read line by line.
fn body_bytes<B: Body>(request: &Request<B>, bytes_max: u64) -> BodyBytes {
    let content_type = request.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let bytes_max = match content_type {
        Some(_) if !content_type::is_json(content_type) => bytes_max.min(STREAMED_BYTES),
        _ => bytes_max,
    };
    let body = request.body();
    match body.size_hint().exact() {
        _ if body.is_end_stream() => BodyBytes(0),
        // What is longer than a body may be is refused before it is read.
        Some(bytes) => BodyBytes(bytes.min(bytes_max)),
        None => BodyBytes(bytes_max),
    }
}

/// Methods that clients invent must not become labels.
fn method_label(method: &http::Method) -> &'static str {
    match method.as_str() {
        "GET" => "GET",
        "HEAD" => "HEAD",
        "POST" => "POST",
        "PUT" => "PUT",
        "DELETE" => "DELETE",
        "OPTIONS" => "OPTIONS",
        "PATCH" => "PATCH",
        _ => "other",
    }
}
