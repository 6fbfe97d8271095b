//! The HTTP listener: accepts connections, bounds them, hands requests to the gateway, and drains at the end.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderValue, Request, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use metrics::{counter, gauge, histogram};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use weir_config::Http;
use weir_runtime::Runtime;
use weir_runtime::gateway::{self, BodyError, Gateway};

use crate::answer::{self, Trouble};
use crate::body::{Open, ReplyBody};
use crate::observe::Observer;
use crate::socket::{self, Handshake};
use crate::stall::Unstalled;

/// Why the server cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// The address as configured.
        address: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// The runtime was started without a gateway.
    #[error("the runtime was started without a gateway")]
    NoGateway,
}

/// A listener that is bound and not yet serving.
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    config: Http,
    runtime: Arc<Runtime>,
    gateway: Gateway,
    observer: Observer,
    places: Arc<Semaphore>,
    ids: AtomicU64,
    draining: AtomicBool,
    /// True when connections that only wait are to end.
    closing: watch::Sender<bool>,
    /// True when sockets are to end: nothing else would end them.
    leaving: watch::Sender<bool>,
}

impl Server {
    /// Binds the listener.
    pub async fn bind(config: Http, runtime: Arc<Runtime>, observer: Observer) -> Result<Self, ServeError> {
        let gateway = runtime.gateway().cloned().ok_or(ServeError::NoGateway)?;
        let failed = |source| ServeError::Listen { address: config.listen.clone(), source };
        let listener = TcpListener::bind(&config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let places = Arc::new(Semaphore::new(config.requests_max as usize));
        let ids = AtomicU64::new(0);
        Ok(Self {
            listener,
            address,
            shared: Arc::new(Shared {
                config,
                runtime,
                gateway,
                observer,
                places,
                ids,
                draining: AtomicBool::new(false),
                closing: watch::Sender::new(false),
                leaving: watch::Sender::new(false),
            }),
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `stop` resolves. Then it says that it is not ready, answers nothing but probes, lets the requests in
    /// progress finish within `http.drain_timeout_ms`, and cuts the rest. Returns how many requests were cut.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> usize {
        let Self { listener, shared, .. } = self;
        let connections = Arc::new(Semaphore::new(shared.config.connections_max as usize));
        let mut tasks = JoinSet::new();
        accept_until(stop, &listener, &connections, &shared, &mut tasks).await;

        shared.draining.store(true, Ordering::Relaxed);
        shared.leaving.send_replace(true);
        shared.runtime.drain();
        let bound = Instant::now() + Duration::from_millis(shared.config.drain_timeout_ms);
        let finished = tokio::time::timeout_at(bound.into(), shared.places.acquire_many(shared.config.requests_max));
        let finished = async { drop(finished.await) };
        accept_until(finished, &listener, &connections, &shared, &mut tasks).await;
        drop(listener);

        let cut = (shared.config.requests_max as usize).saturating_sub(shared.places.available_permits());
        // What is written may still be on its way; connections that only wait are closed.
        let flush = bound.saturating_duration_since(Instant::now()).max(Duration::from_millis(100));
        shared.closing.send_replace(true);
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
    tasks: &mut JoinSet<()>,
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
        tasks.spawn(async move {
            gauge!("weir_http_connections_open").increment(1);
            connection(shared, stream).await;
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

async fn connection(shared: Arc<Shared>, stream: TcpStream) {
    // Results are small and each is wanted at once.
    let _ = stream.set_nodelay(true);
    let header_timeout = Duration::from_millis(shared.config.header_timeout_ms);
    let owner = stream.peer_addr().map_or(0, |address| owner_of(address.ip()));
    // Which version of HTTP it is shows in the first bytes, and reading those has no timeout of its own.
    if !matches!(tokio::time::timeout(header_timeout, first_bytes(&stream)).await, Ok(Ok(()))) {
        return;
    }
    let stream = Unstalled::new(stream, Duration::from_millis(shared.config.write_timeout_ms));
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(header_timeout).half_close(false);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(256).keep_alive_interval(Duration::from_secs(30));
    let mut closing = shared.closing.subscribe();
    let service = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, std::convert::Infallible>(answer(&shared, request, owner).await) }
    });
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = is_true(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = error.as_ref() as &dyn std::error::Error, "a connection ended early");
    }
}

/// Resolves when it is true, or nobody can say any more.
pub(crate) async fn is_true(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

/// The number of a client, by its address. An IPv6 client has a network of its own.
fn owner_of(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// Waits until it is clear which version of HTTP a connection speaks: HTTP/2 begins with 24 bytes of its own, and
/// HTTP/1 differs from them early.
async fn first_bytes(stream: &TcpStream) -> std::io::Result<()> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut buffer = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = stream.peek(&mut buffer).await?;
        if seen == 0 || seen == PREFACE.len() || buffer[..seen] != PREFACE[..seen] {
            return Ok(());
        }
        // The rest of the preface is on its way, and `peek` would return at once until it is here.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(64));
    }
}

async fn answer(shared: &Arc<Shared>, mut request: Request<Incoming>, owner: u64) -> Response<ReplyBody> {
    let started = Instant::now();
    let method = request.method().clone();
    let id = answer::request_id(request.headers(), || {
        format!("edge-{:x}-{:x}", std::process::id(), shared.ids.fetch_add(1, Ordering::Relaxed))
    });
    // The component sees the same id, so that logs and answers can be tied together.
    if let Ok(value) = HeaderValue::from_str(&id) {
        request.headers_mut().insert(answer::REQUEST_ID, value);
    }
    let response = match request.uri().path() {
        "/metrics" => {
            shared.runtime.report();
            answer::metrics(&method, || shared.observer.render(), &id)
        }
        // Probes are answered however busy the server is, and while it drains.
        "/livez" | "/readyz" => pass(shared, request, owner, None, &id).await,
        _ if shared.draining.load(Ordering::Relaxed) => answer::problem(Trouble::Draining, &id),
        _ => match shared.places.clone().try_acquire_owned() {
            Ok(place) => pass(shared, request, owner, Some(Open::new(place)), &id).await,
            Err(_) => {
                counter!("weir_http_rejected_total").increment(1);
                answer::problem(Trouble::Full, &id)
            }
        },
    };
    let status = response.status();
    counter!("weir_http_requests_total", "method" => method_label(&method), "status" => status.as_u16().to_string())
        .increment(1);
    histogram!("weir_http_first_byte_seconds").record(started.elapsed().as_secs_f64());
    tracing::debug!(%method, status = status.as_u16(), request_id = id, "answered");
    response
}

/// Hands a request to the gateway component.
async fn pass(
    shared: &Arc<Shared>,
    mut request: Request<Incoming>,
    owner: u64,
    open: Option<Open>,
    id: &str,
) -> Response<ReplyBody> {
    name_host(&mut request);
    if socket::asked_for(&request) {
        let Some((handshake, request)) = Handshake::begin(request) else {
            return socket::other_version(answer::problem(Trouble::Version, id));
        };
        return match shared.gateway.handle(request, owner).await {
            Ok(response) => handshake.answer(response, open, shared.leaving.subscribe()),
            Err(error) => failed(&error, id),
        };
    }
    let request = request.map(|body| gateway::request_body(body.map_err(BodyError::Hyper)));
    match shared.gateway.handle(request, owner).await {
        Ok(response) => response.map(|body| ReplyBody::Streamed { body: Box::new(body), _open: open }),
        Err(error) => failed(&error, id),
    }
}

/// What a client is told when the gateway gave no answer.
fn failed(error: &gateway::HandleError, id: &str) -> Response<ReplyBody> {
    let trouble = if gateway::is_lost_instance(error) {
        Trouble::Lost
    } else if gateway::is_timeout(error) {
        Trouble::Stuck
    } else {
        Trouble::Failed
    };
    tracing::error!(error = format!("{error:#}"), request_id = id, "a request failed");
    answer::problem(trouble, id)
}

/// Puts `Host` where the component sees it: in the target, as HTTP/2 has it. The header itself does not reach it, and without
/// it a name that was made to lead here could not be told from this machine's own.
fn name_host<B>(request: &mut Request<B>) {
    if request.uri().authority().is_some() {
        return;
    }
    let Some(host) = request.headers().get(http::header::HOST) else { return };
    let authority = http::uri::Authority::try_from(host.as_bytes());
    // What is no name is a name that is nobody's.
    let authority = authority.unwrap_or_else(|_| http::uri::Authority::from_static("host.invalid"));
    let mut parts = std::mem::take(request.uri_mut()).into_parts();
    parts.scheme = Some(http::uri::Scheme::HTTP);
    parts.authority = Some(authority);
    if let Ok(uri) = http::Uri::from_parts(parts) {
        *request.uri_mut() = uri;
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
