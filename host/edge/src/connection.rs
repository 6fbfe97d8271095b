//! One connection: detects the version of HTTP, serves the requests, and hands the connection over when a response is
//! held or the connection becomes a WebSocket.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONNECTION, HeaderValue};
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::body::ResponseBody;
use crate::dispatch;
use crate::http2;
use crate::linger::{self, WatchedBody};
use crate::response::EdgeResponse;
use crate::sse::connection::HeldConnection;
use crate::sse::hold::HeldResponse;
use crate::state::EdgeState;
use crate::timeouts::ReadTimed;
use crate::timeouts::http1_head::{HeadTimer, RequestGuard};
use crate::timeouts::write::WriteTimed;
use crate::websocket::connection::Upgrade;

/// The system's send buffer of a held connection; Linux doubles it for its own needs.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

type Stream = WriteTimed<TcpStream>;

/// Serves a connection until it ends. It accepts no new request once `stopped` is true.
pub(crate) async fn serve(state: Arc<EdgeState>, stream: TcpStream, client: u64, stopped: watch::Receiver<bool>) {
    // Results are small, and each is sent immediately.
    let _ = stream.set_nodelay(true);
    // The first bytes show the version of HTTP, and reading them has no timeout of its own.
    let header_timeout = Duration::from_millis(state.config.header_timeout_ms);
    let Ok(Ok(http2)) = tokio::time::timeout(header_timeout, is_http2(&stream)).await else { return };
    let mut stream = WriteTimed::new(stream, Duration::from_millis(state.config.write_timeout_ms));
    let (lingering, stopping) = (state.lingering.clone(), stopped.clone());
    if http2 {
        Box::pin(http2::serve(state, &mut stream, client, stopped)).await;
        return linger::close(&mut stream, &lingering, client, stopping).await;
    }
    let closing = state.closing.subscribe();
    // Boxed, and dropped before a connection is held, so that a held connection does not occupy the memory for reading
    // requests.
    let Some((mut stream, handover)) = Box::pin(serve_http1(state, stream, client, stopped)).await else { return };
    match handover {
        Handover::Closed => {}
        Handover::Held(held) => {
            if let Err(error) = HeldConnection::new(&mut stream, *held).await {
                return tracing::debug!(%error, "a held connection ended early");
            }
        }
        Handover::WebSocket { read, upgrade } => Box::pin(upgrade.run(&mut stream, read, closing)).await,
    }
    Box::pin(linger::close(&mut stream, &lingering, client, stopping)).await;
}

/// The further use of a connection that serves no more requests.
enum Handover {
    /// None: every request was answered.
    Closed,
    Held(Box<HeldResponse>),
    WebSocket {
        /// Bytes that were already read after the request.
        read: Bytes,
        upgrade: Box<Upgrade>,
    },
}

/// Answers requests until the connection is handed over; `None` if it has failed.
async fn serve_http1(
    state: Arc<EdgeState>,
    stream: Stream,
    client: u64,
    mut stopped: watch::Receiver<bool>,
) -> Option<(Stream, Handover)> {
    let header_timeout = Duration::from_millis(state.config.header_timeout_ms);
    let idle_timeout = Duration::from_millis(state.config.idle_timeout_ms);
    let slot = Arc::new(HandoverSlot { held: Mutex::new(None), upgrade: Mutex::new(None), flushed: stream.flushed() });
    let filled = slot.clone();
    let timer = HeadTimer::new(header_timeout);
    let heads = timer.heads();
    let stream = ReadTimed::new(stream, timer);
    let service = service_fn(move |request: Request<Incoming>| {
        let (state, slot) = (state.clone(), slot.clone());
        let guard = heads.complete();
        async move {
            let can_chunk = request.version() == Version::HTTP_11;
            let (request, body) = WatchedBody::watch(request);
            let mut response = match dispatch::handle(&state, request, client).await {
                EdgeResponse::Held(held) if can_chunk => {
                    slot.put_held(*held);
                    // The connection is taken from hyper before this request is answered.
                    pending().await
                }
                EdgeResponse::WebSocket(response, upgrade) => {
                    slot.put_upgrade(upgrade);
                    response
                }
                response => response.into_http(),
            };
            if !body.discard_unread().await {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response.map(|body| GuardedBody { body, _guard: guard }))
        }
    });
    let mut builder = http1::Builder::new();
    // hyper's timer runs from the end of a response through the idle time and the next head; the stream times the head
    // alone.
    builder.timer(TokioTimer::new()).header_read_timeout(idle_timeout.max(header_timeout)).half_close(false);
    let mut connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut is_stopping = false;
    loop {
        let next = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.map(|()| None)),
            Poll::Pending => filled.take_held().map_or(Poll::Pending, |held| Poll::Ready(Ok(Some(held)))),
        });
        let next = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped), if !is_stopping => None,
            next = next => Some(next),
        };
        match next {
            None => {
                is_stopping = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            Some(Ok(Some(held))) => {
                let stream = connection.into_parts().io.into_inner().into_inner();
                // Best effort. Otherwise the system may buffer megabytes for each client that does not read.
                let _ = SockRef::from(stream.get_ref()).set_send_buffer_size(SEND_BUFFER_BYTES);
                return Some((stream, Handover::Held(Box::new(held))));
            }
            Some(ended) => {
                // After an error of the connection itself nothing can be sent. After other errors a response was sent,
                // at least in part.
                if let Err(error) = &ended {
                    log(error);
                    if !error.is_parse() && !error.is_user() {
                        return None;
                    }
                }
                let parts = connection.into_parts();
                // hyper ends its connection after the head of an upgrade.
                let handover = match filled.take_upgrade().filter(|_| ended.is_ok()) {
                    Some(upgrade) => Handover::WebSocket { read: parts.read_buf, upgrade },
                    None => Handover::Closed,
                };
                return Some((parts.io.into_inner().into_inner(), handover));
            }
        }
    }
}

fn log(error: &hyper::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "a connection ended early");
}

/// The body of a response. Its request counts as answered when this is dropped.
struct GuardedBody {
    body: ResponseBody,
    _guard: RequestGuard,
}

impl Body for GuardedBody {
    type Data = Bytes;
    type Error = <ResponseBody as Body>::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Carries a held stream or an upgrade from hyper's service to the loop that takes the connection from hyper.
struct HandoverSlot {
    held: Mutex<Option<HeldResponse>>,
    upgrade: Mutex<Option<Box<Upgrade>>>,
    /// Set when all written bytes of earlier responses are sent.
    flushed: Arc<AtomicBool>,
}

impl HandoverSlot {
    fn put_held(&self, held: HeldResponse) {
        // Only a flush after this shows that no byte of an earlier response is unsent.
        self.flushed.store(false, Ordering::Relaxed);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    fn put_upgrade(&self, upgrade: Box<Upgrade>) {
        *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(upgrade);
    }

    fn take_upgrade(&self) -> Option<Box<Upgrade>> {
        self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn take_held(&self) -> Option<HeldResponse> {
        if !self.flushed.load(Ordering::Relaxed) {
            return None;
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The number of a client, derived from its address. IPv6 clients are distinguished by the first 64 bits of their
/// address.
pub(crate) fn client_number(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// Waits until the version of HTTP is known: HTTP/2 begins with a preface of 24 bytes, from which HTTP/1 differs early.
async fn is_http2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut buffer = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let peeked = stream.peek(&mut buffer).await?;
        if peeked == 0 || buffer[..peeked] != PREFACE[..peeked] {
            return Ok(false);
        }
        if peeked == PREFACE.len() {
            return Ok(true);
        }
        // `peek` does not wait for the rest of the preface once a part has arrived.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(64));
    }
}
