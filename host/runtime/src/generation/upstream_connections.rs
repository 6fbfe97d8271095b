//! The connections to the server of an upstream: HTTP/1.1, over TLS with Mozilla's root certificates if its URL is `https`, each used for
//! one request after another.
//!
//! A connection is idle once the response on it has been read to its end. One whose response is dropped before its end is closed, which tells
//! the server that its client is gone. A server may close an idle connection at any time: a request that gets no part of a response on a
//! connection that was used before is sent again on another one, so its body is read before it is sent. Redirects are not followed.
//!
//! Connections are driven by the runtime that created this pool and not by the threads of instances, which compute.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{HOST, HeaderValue};
use http_body::{Body, Frame};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Handle;
use tokio::time::Sleep;
use wasmtime_wasi_http::{Error, RequestOptions, WasiBody};
use weir_tls::ServerName;

/// Most idle connections.
const IDLE_MAX: usize = 64;
/// How long a connection may be idle. Servers close them after 5 s (uvicorn, llama-server) to some minutes.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// Most bytes in the body of a request.
const BODY_BYTES_MAX: usize = 64 << 20;
/// Times of a request that sets none.
const TIMEOUT: Duration = Duration::from_secs(600);

/// The connections to one server.
pub(super) struct Connections {
    server: Server,
    idle: Mutex<Vec<IdleConnection>>,
    runtime: Handle,
}

#[derive(Clone)]
struct Server {
    /// The value of `Host`.
    host: HeaderValue,
    /// `HOST:PORT`.
    address: Arc<str>,
    /// The name in its certificate; `None` without TLS.
    name: Option<ServerName<'static>>,
}

struct IdleConnection {
    sender: SendRequest<Full<Bytes>>,
    since: Instant,
}

/// Why there is no response.
enum Failure {
    /// The connection was closed before any part of a response arrived.
    Closed(Error),
    Other(Error),
}

impl Connections {
    /// The connections to the server of a URL.
    ///
    /// # Errors
    ///
    /// The URL has no host that a connection can be made to, or there is no runtime.
    pub(super) fn new(url: &http::Uri) -> Result<Arc<Self>, String> {
        let authority = url.authority().ok_or("url has no host")?;
        let is_tls = url.scheme() == Some(&http::uri::Scheme::HTTPS);
        let host = authority.host();
        let name = match is_tls {
            true => Some(weir_tls::server_name(host).map_err(|error| format!("url: {error}"))?),
            false => None,
        };
        let port = authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 });
        let server = Server {
            host: HeaderValue::from_str(authority.as_str()).map_err(|error| format!("url: {error}"))?,
            address: format!("{host}:{port}").into(),
            name,
        };
        let runtime = Handle::try_current().map_err(|error| error.to_string())?;
        Ok(Arc::new(Self { server, idle: Mutex::default(), runtime }))
    }

    /// Sends a request, on an idle connection if there is one.
    pub(super) async fn send(
        self: &Arc<Self>,
        request: http::Request<WasiBody>,
        options: RequestOptions,
    ) -> Result<http::Response<WasiBody>, Error> {
        let (mut head, body) = request.into_parts();
        let path = head.uri.path_and_query().cloned().ok_or(Error::HttpRequestUriInvalid)?;
        head.uri = http::Uri::from(path);
        head.headers.entry(HOST).or_insert_with(|| self.server.host.clone());
        let body = collect(body).await?;
        let request = || http::Request::from_parts(head.clone(), Full::new(body.clone()));
        while let Some(sender) = self.take_idle() {
            match self.exchange(sender, request(), options).await {
                Err(Failure::Closed(_)) => {}
                Err(Failure::Other(error)) => return Err(error),
                Ok(response) => return Ok(response),
            }
        }
        let sender = self.connect(options.connect_timeout.unwrap_or(TIMEOUT)).await?;
        let sent = self.exchange(sender, request(), options).await;
        sent.map_err(|(Failure::Closed(error) | Failure::Other(error))| error)
    }

    async fn exchange(
        self: &Arc<Self>,
        mut sender: SendRequest<Full<Bytes>>,
        request: http::Request<Full<Bytes>>,
        options: RequestOptions,
    ) -> Result<http::Response<WasiBody>, Failure> {
        let timeout = options.first_byte_timeout.unwrap_or(TIMEOUT);
        let sent = tokio::time::timeout(timeout, sender.send_request(request)).await;
        let response = match sent.map_err(|_| Failure::Other(Error::ConnectionReadTimeout))? {
            Ok(response) => response,
            Err(error) if error.is_parse() || error.is_user() => return Err(Failure::Other(error.into())),
            Err(error) => return Err(Failure::Closed(error.into())),
        };
        let pool = Arc::downgrade(self);
        // An error means that the connection was closed.
        self.runtime.spawn(async move {
            if sender.ready().await.is_ok() {
                keep(pool, sender).await;
            }
        });
        let between = options.between_bytes_timeout.unwrap_or(TIMEOUT);
        Ok(response
            .map(|body| TimedBody { body, between, timer: Box::pin(tokio::time::sleep(between)) }.boxed_unsync()))
    }

    async fn connect(&self, timeout: Duration) -> Result<SendRequest<Full<Bytes>>, Error> {
        let server = self.server.clone();
        let open = async move {
            let stream = TcpStream::connect(&*server.address).await.map_err(Error::Connect)?;
            // Without it only the delay of small requests is longer.
            let _ = stream.set_nodelay(true);
            match server.name {
                None => handshake(stream).await,
                Some(name) => handshake(weir_tls::connect(name, stream).await.map_err(Error::Tls)?).await,
            }
        };
        let opened = self.runtime.spawn(tokio::time::timeout(timeout, open)).await;
        opened.map_err(|error| Error::InternalError(Some(error.to_string())))?.map_err(|_| Error::ConnectionTimeout)?
    }

    /// The connection that was used last, unless it is closed.
    fn take_idle(&self) -> Option<SendRequest<Full<Bytes>>> {
        let mut idle = self.lock();
        while let Some(connection) = idle.pop() {
            if connection.sender.is_ready() && connection.since.elapsed() < IDLE_TIME {
                return Some(connection.sender);
            }
        }
        None
    }

    /// Closes the connections that are idle for too long.
    fn close_idle(&self) {
        self.lock().retain(|connection| connection.since.elapsed() < IDLE_TIME && !connection.sender.is_closed());
    }

    fn lock(&self) -> MutexGuard<'_, Vec<IdleConnection>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a connection idle, and closes it when it is not used for some time.
async fn keep(pool: Weak<Connections>, sender: SendRequest<Full<Bytes>>) {
    {
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.lock();
        if idle.len() >= IDLE_MAX {
            return;
        }
        idle.push(IdleConnection { sender, since: Instant::now() });
    }
    tokio::time::sleep(IDLE_TIME).await;
    if let Some(pool) = pool.upgrade() {
        pool.close_idle();
    }
}

/// Begins HTTP on a connection, which a task then drives.
async fn handshake(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<SendRequest<Full<Bytes>>, Error> {
    let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    // Its errors are those of the requests on it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// The bytes of a body.
async fn collect(mut body: WasiBody) -> Result<Bytes, Error> {
    let mut bytes = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if bytes.len() + data.len() > BODY_BYTES_MAX {
            return Err(Error::HttpRequestBodySize(None));
        }
        bytes.extend_from_slice(&data);
    }
    Ok(bytes.freeze())
}

/// The body of a response that fails when no frame arrives in time.
struct TimedBody {
    body: Incoming,
    between: Duration,
    timer: Pin<Box<Sleep>>,
}

impl Body for TimedBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match Pin::new(&mut self.body).poll_frame(cx) {
            Poll::Ready(frame) => {
                let deadline = tokio::time::Instant::now() + self.between;
                self.timer.as_mut().reset(deadline);
                Poll::Ready(frame.map(|frame| frame.map_err(Error::from)))
            }
            Poll::Pending => match self.timer.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Some(Err(Error::ConnectionReadTimeout))),
                Poll::Pending => Poll::Pending,
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server that answers `requests_max` requests on each connection, then closes it; counts its connections and requests.
    async fn serve(requests_max: usize) -> (http::Uri, Arc<[AtomicUsize; 2]>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/base", listener.local_addr().unwrap()).parse().unwrap();
        let counts: Arc<[AtomicUsize; 2]> = Arc::default();
        let counted = counts.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let counts = counted.clone();
                counts[0].fetch_add(1, Ordering::Relaxed);
                tokio::spawn(async move {
                    let mut bytes = Vec::new();
                    for _ in 0..requests_max {
                        while !bytes.ends_with(b"ping") {
                            if socket.read_buf(&mut bytes).await.unwrap() == 0 {
                                return;
                            }
                        }
                        let head = String::from_utf8(std::mem::take(&mut bytes)).unwrap();
                        assert!(head.starts_with("POST /base/x HTTP/1.1\r\n") && head.contains("\r\nhost: 127.0.0.1:"));
                        counts[1].fetch_add(1, Ordering::Relaxed);
                        socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\npong").await.unwrap();
                    }
                });
            }
        });
        (url, counts)
    }

    async fn send(connections: &Arc<Connections>, url: &http::Uri) -> http::Response<WasiBody> {
        let body = Full::new(Bytes::from_static(b"ping")).map_err(|never| match never {}).boxed_unsync();
        let request = http::Request::post(format!("{url}/x")).body(body).unwrap();
        connections.send(request, RequestOptions::default()).await.unwrap()
    }

    async fn exchange(connections: &Arc<Connections>, url: &http::Uri) {
        let body = send(connections, url).await.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(body, "pong");
    }

    /// Waits until a connection is idle again.
    async fn until_idle(connections: &Connections, count: usize) {
        let wait = async {
            while connections.lock().len() != count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.expect("the connection is idle in time");
    }

    #[tokio::test]
    async fn requests_one_after_another_use_one_connection() {
        let (url, counts) = serve(usize::MAX).await;
        let connections = Connections::new(&url).unwrap();
        for _ in 0..5 {
            exchange(&connections, &url).await;
            until_idle(&connections, 1).await;
        }
        // Two at once use two.
        let (first, second) = (send(&connections, &url).await, send(&connections, &url).await);
        drop((first.into_body().collect().await.unwrap(), second.into_body().collect().await.unwrap()));
        until_idle(&connections, 2).await;
        assert_eq!([counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed)], [2, 7]);
    }

    #[tokio::test]
    async fn request_on_a_connection_that_the_server_closed_is_sent_again() {
        let (url, counts) = serve(1).await;
        let connections = Connections::new(&url).unwrap();
        for _ in 0..20 {
            exchange(&connections, &url).await;
        }
        assert_eq!([counts[0].load(Ordering::Relaxed), counts[1].load(Ordering::Relaxed)], [20, 20]);
    }

    #[tokio::test]
    async fn response_that_is_dropped_closes_its_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: http::Uri = format!("http://{}/base", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Connections::new(&url).unwrap();
        let serve = async {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            while !bytes.ends_with(b"ping") {
                socket.read_buf(&mut bytes).await.unwrap();
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await.unwrap();
            while socket.read(&mut [0; 64]).await.is_ok_and(|read| read > 0) {}
        };
        let both = async { tokio::join!(serve, async { drop(send(&connections, &url).await) }) };
        tokio::time::timeout(Duration::from_secs(30), both).await.expect("the server sees the end");
        assert!(connections.lock().is_empty());
    }

    #[tokio::test]
    async fn silence_within_a_response_is_a_failure() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url: http::Uri = format!("http://{}/base", listener.local_addr().unwrap()).parse().unwrap();
        let connections = Connections::new(&url).unwrap();
        let (ended, end) = tokio::sync::oneshot::channel::<()>();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            let mut bytes = Vec::new();
            // A response before its request would be an error of its own.
            while !bytes.ends_with(b"\r\n\r\n") {
                assert_ne!(socket.read_buf(&mut bytes).await.unwrap(), 0);
            }
            socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\nbegun").await.unwrap();
            let _ = end.await;
        });
        let request = http::Request::post(format!("{url}/x"))
            .body(Full::new(Bytes::new()).map_err(|never| match never {}).boxed_unsync());
        let options = RequestOptions { between_bytes_timeout: Some(Duration::from_millis(50)), ..Default::default() };
        let response = connections.send(request.unwrap(), options).await.unwrap();
        let read = tokio::time::timeout(Duration::from_secs(30), response.into_body().collect()).await;
        assert!(matches!(read.expect("an end"), Err(Error::ConnectionReadTimeout)));
        drop(ended);
    }
}
