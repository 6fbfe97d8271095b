//! The HTTP listener: accepts connections, bounds them, hands requests to the gateway, and drains at the end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use metrics::{counter, gauge, histogram};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use weir_codec::cors::{Headers, OriginRefused};
use weir_codec::problem::Problem;
use weir_config::{AuthMode, Config, Http, Switch};
use weir_events::Store;
use weir_runtime::Runtime;
use weir_runtime::gateway::{self, BodyError, CountedBody, Gateway};

use crate::answer::{self, Trouble};
use crate::body::{Open, ReplyBody};
use crate::connection;
use crate::entry::{self, Entry, EntryError};
use crate::gzip;
use crate::hold::{self, Held, HoldError, Holds, Instruction};
use crate::observe::Observer;
use crate::socket::{self, Handshake, HandshakeError, Talk};

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
    places: Arc<Semaphore>,
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
        let holds = Holds::new(config.events.subscribers_max, config.auth.connections_max);
        let gzip = config.events.gzip == Switch::On;
        let needs_token = config.auth.mode == AuthMode::Required;
        let all = config;
        let config = config.http.clone();
        let entry = Entry::new(all, listener.address.ip().to_canonical().is_loopback())?;
        let places = Arc::new(Semaphore::new(config.requests_max as usize));
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
                places,
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
            drop(shared.places.acquire_many(shared.config.requests_max).await);
            shared.holds.none().await;
        };
        let finished = async { drop(tokio::time::timeout_at(bound.into(), finished).await) };
        accept_until(finished, &listener, &connections, &shared, &stopped, &mut tasks).await;
        drop(listener);

        let cut = (shared.config.requests_max as usize).saturating_sub(shared.places.available_permits());
        let cut = cut + shared.holds.open();
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
        let shared = shared.clone();
        let stopped = stopped.clone();
        tasks.spawn(async move {
            gauge!("weir_http_connections_open").increment(1);
            connection::serve(shared, stream, stopped).await;
            gauge!("weir_http_connections_open").decrement(1);
            drop(place);
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
pub(crate) async fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>, owner: u64) -> Answer {
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
async fn route(
    shared: &Arc<Shared>,
    request: Request<Incoming>,
    owner: u64,
    page: &Result<Headers, OriginRefused>,
    id: &str,
) -> Answer {
    if let Some(preflight) = shared.entry.preflight(&request) {
        return Answer::Whole(match preflight {
            Ok((allow, headers)) => answer::methods(allow, &headers, id),
            Err(problem) => answer::of_problem(&problem, id),
        });
    }
    match request.uri().path() {
        answer::METRICS => metrics(shared, request, owner, page, id).await,
        // Probes are answered however busy the server is, and while it drains.
        "/livez" | "/readyz" => pass(shared, request, owner, None, id).await,
        _ if shared.is_draining() => Answer::Whole(answer::problem(Trouble::Draining, id)),
        _ => match shared.places.clone().try_acquire_owned() {
            Ok(place) => pass(shared, request, owner, Some(Open::new(place)), id).await,
            Err(_) => {
                counter!("weir_http_rejected_total").increment(1);
                Answer::Whole(answer::problem(Trouble::Full, id))
            }
        },
    }
}

/// Answers `/metrics`. Who may read them is the gateway's to say: it has the keys.
async fn metrics(
    shared: &Shared,
    request: Request<Incoming>,
    owner: u64,
    page: &Result<Headers, OriginRefused>,
    id: &str,
) -> Answer {
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
    if shared.needs_token {
        let answer = pass(shared, request, owner, None, id).await;
        if answer.status() != StatusCode::NO_CONTENT {
            return answer;
        }
    }
    shared.runtime.report();
    Answer::Whole(answer::metrics(shared.observer.render(), id))
}

impl Shared {
    fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }
}

/// Hands a request to the gateway component.
async fn pass(shared: &Shared, request: Request<Incoming>, owner: u64, mut open: Option<Open>, id: &str) -> Answer {
    if socket::is_handshake(&request) {
        return open_socket(shared, request, owner, open, id).await;
    }
    let get = request.method() == Method::GET;
    let gzip = shared.gzip && gzip::is_accepted(request.headers());
    let request = request.map(|body| gateway::request_body(body.map_err(BodyError::Hyper)));
    match shared.gateway.handle(request, owner).await {
        Ok(response) => {
            let (mut head, body) = response.into_parts();
            if let Err(answer) = count(shared, &mut head, &mut open, id) {
                return answer;
            }
            match hold::instruction(&mut head.headers) {
                Ok(Some(instruction)) if get => hold(shared, instruction, gzip, (head, body), open, id).await,
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
async fn open_socket(
    shared: &Shared,
    request: Request<Incoming>,
    owner: u64,
    mut open: Option<Open>,
    id: &str,
) -> Answer {
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
            match count(shared, &mut head, &mut open, id) {
                Ok(()) => handshake.answer(Response::from_parts(head, body), open),
                Err(answer) => answer,
            }
        }
        Err(error) => failed(&error, id),
    }
}

/// Counts an answer as a connection of the user whom the gateway names, or answers that the user has too many.
fn count(shared: &Shared, head: &mut response::Parts, open: &mut Option<Open>, id: &str) -> Result<(), Answer> {
    let (Some(user), Some(open)) = (hold::user(&mut head.headers), open) else { return Ok(()) };
    match shared.holds.connect(&user) {
        Ok(place) => {
            open.connected(place);
            Ok(())
        }
        Err(refused) => Err(Answer::Whole(answer::refused(&hold::no_room(&refused), &head.headers, id))),
    }
}

/// What a client is told when the gateway gave no answer.
fn failed(error: &gateway::HandleError, id: &str) -> Answer {
    let trouble = if gateway::is_lost_instance(error) {
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
    (mut head, body): (response::Parts, CountedBody),
    open: Option<Open>,
    id: &str,
) -> Answer {
    let first = match hold::first(body).await {
        Ok(first) => first,
        Err(error) => return cannot_hold(&error, id),
    };
    drop(open);
    match shared.holds.follow(&shared.events, instruction).await {
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
