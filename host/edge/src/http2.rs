//! One HTTP/2 connection. Each stream has its own write timeout: a stream whose client reads no bytes of its response
//! for `http.write_timeout_ms` is reset, independent of the other streams and of the socket.
//!
//! h2 is used without hyper: hyper passes whole frames of the body to h2, and does not report how many bytes the peer
//! has read.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Ping, Reason, RecvStream, SendStream};
use http::header::{self, CONTENT_LENGTH, DATE, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response};
use http_body::{Body, Frame, SizeHint};
use metrics::counter;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;
use weir_runtime::gateway::BodyError;

use crate::body::ResponseBody;
use crate::dispatch;
use crate::response::EdgeResponse;
use crate::state::EdgeState;
use crate::timeouts::ReadTimed;
use crate::timeouts::http2_headers::HeaderBlockTimer;

/// Most concurrent streams of one connection.
const STREAMS_MAX: u32 = 256;
/// Most unread bytes of one request body.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;
/// Most unread bytes of all request bodies of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 1024 * 1024;
/// Most bytes of one stream that wait for the socket.
const SEND_BUFFER_BYTES: usize = 128 * 1024;
/// Most bytes of a request's headers.
const HEADER_LIST_BYTES_MAX: u32 = 16 * 1024;
/// How often a peer is pinged, and how long it may take to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PONG_TIMEOUT: Duration = Duration::from_secs(20);
/// How long closing a connection may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// Hop-by-hop headers, which HTTP/2 does not allow (RFC 9113, section 8.2.2).
const HOP_BY_HOP_HEADERS: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Serves a connection until it ends. It accepts no new request once `stopped` is true.
pub(crate) async fn serve<S>(state: Arc<EdgeState>, stream: S, client: u64, mut stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let header_timeout = Duration::from_millis(state.config.header_timeout_ms);
    let idle_timeout = Duration::from_millis(state.config.idle_timeout_ms);
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(STREAMS_MAX)
        .initial_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_send_buffer_size(SEND_BUFFER_BYTES)
        .max_header_list_size(HEADER_LIST_BYTES_MAX);
    let handshake = builder.handshake::<_, Bytes>(ReadTimed::new(stream, HeaderBlockTimer::new(header_timeout)));
    let Ok(Ok(mut connection)) = tokio::time::timeout(header_timeout, handshake).await else { return };
    let mut pings = connection.ping_pong();
    let mut ping_sent_at: Option<Instant> = None;
    let mut next_ping = Instant::now() + PING_INTERVAL;
    let mut streams = JoinSet::new();
    let mut is_stopping = false;
    // The first request has the header timeout, later ones the idle timeout.
    let mut idle_until = Instant::now() + header_timeout;
    loop {
        let is_idle = streams.is_empty();
        tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped), if !is_stopping => {
                is_stopping = true;
                connection.graceful_shutdown();
            }
            Some(_) = streams.join_next(), if !is_idle => {
                if streams.is_empty() {
                    idle_until = Instant::now() + idle_timeout;
                }
            }
            accepted = connection.accept() => match accepted {
                Some(Ok((request, respond))) => {
                    let (state, timeout) = (state.clone(), Duration::from_millis(state.config.write_timeout_ms));
                    streams.spawn(async move { serve_stream(&state, request, respond, client, timeout).await });
                }
                Some(Err(error)) => {
                    tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended early");
                    return;
                }
                None => return,
            },
            pong = poll_fn(|cx| poll_pong(&mut pings, cx)), if ping_sent_at.is_some() => match pong {
                Ok(()) => (ping_sent_at, next_ping) = (None, Instant::now() + PING_INTERVAL),
                Err(_) => ping_sent_at = None,
            },
            () = tokio::time::sleep_until(ping_sent_at.map_or(next_ping, |at| at + PONG_TIMEOUT)) => match ping_sent_at {
                Some(_) => return tracing::debug!("a connection ended early: its peer did not answer a ping"),
                None => {
                    next_ping = Instant::now() + PING_INTERVAL;
                    let sent = pings.as_mut().is_some_and(|pings| pings.send_ping(Ping::opaque()).is_ok());
                    ping_sent_at = sent.then(Instant::now);
                }
            },
            () = tokio::time::sleep_until(idle_until), if is_idle && !is_stopping => {
                is_stopping = true;
                connection.graceful_shutdown();
                idle_until = Instant::now() + CLOSE_TIMEOUT;
            }
            // The peer has not closed the connection.
            () = tokio::time::sleep_until(idle_until + CLOSE_TIMEOUT), if is_idle && is_stopping => return,
        }
    }
}

fn poll_pong(pings: &mut Option<h2::PingPong>, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
    match pings {
        Some(pings) => pings.poll_pong(cx).map_ok(drop),
        None => Poll::Pending,
    }
}

/// Answers the request of one stream.
async fn serve_stream(
    state: &Arc<EdgeState>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    client: u64,
    write_timeout: Duration,
) {
    let is_head = request.method() == Method::HEAD;
    let request = request.map(Http2Body::new_unsized);
    let request = {
        let length = request.headers().get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        request.map(|body| body.with_length(length))
    };
    // Boxed as a trait object, since the type of this future would otherwise exceed the compiler's recursion limit.
    let handling: Pin<Box<dyn Future<Output = EdgeResponse> + Send + '_>> =
        Box::pin(dispatch::handle(state, request, client));
    let response = tokio::select! {
        response = handling => response,
        // The client has cancelled the request.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    let (mut head, mut body) = response.into_http().into_parts();
    complete_head(&mut head.headers, &body);
    let has_body = !is_head && !body.is_end_stream();
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), !has_body) else { return };
    if !has_body {
        return;
    }
    match send_body(&mut stream, &mut body, write_timeout).await {
        Ok(()) | Err(SendError::Disconnected) => {}
        Err(SendError::Stalled) => {
            counter!("weir_http_stalled_total").increment(1);
            stream.send_reset(Reason::CANCEL);
        }
        Err(SendError::Body(error)) => {
            tracing::debug!(%error, "a response is cut short");
            stream.send_reset(Reason::INTERNAL_ERROR);
        }
    }
}

/// Adds the headers that a server must send, and removes those that HTTP/2 does not allow.
fn complete_head(headers: &mut HeaderMap, body: &ResponseBody) {
    for name in HOP_BY_HOP_HEADERS {
        headers.remove(name);
    }
    if let Some(bytes) = body.size_hint().exact().filter(|bytes| *bytes > 0) {
        headers.entry(CONTENT_LENGTH).or_insert_with(|| HeaderValue::from(bytes));
    }
    if !headers.contains_key(DATE)
        && let Ok(date) = HeaderValue::try_from(httpdate::fmt_http_date(SystemTime::now()))
    {
        headers.insert(DATE, date);
    }
}

/// Why the rest of a response is not sent.
enum SendError {
    /// The client has cancelled the stream or disconnected.
    Disconnected,
    /// The client does not read.
    Stalled,
    /// The body failed.
    Body(BodyError),
}

/// Sends a body. h2 gets only as many bytes as the client's flow control window allows, so that a client that does not
/// read is detected here.
async fn send_body(
    stream: &mut SendStream<Bytes>,
    body: &mut ResponseBody,
    write_timeout: Duration,
) -> Result<(), SendError> {
    loop {
        let frame = tokio::select! {
            biased;
            frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)) => frame,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return Err(SendError::Disconnected),
        };
        let frame = match frame {
            None => return stream.send_data(Bytes::new(), true).map_err(|_| SendError::Disconnected),
            Some(Err(error)) => return Err(SendError::Body(error)),
            Some(Ok(frame)) => frame,
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => match frame.into_trailers() {
                Ok(trailers) => return stream.send_trailers(trailers).map_err(|_| SendError::Disconnected),
                Err(_) => continue,
            },
        };
        while !data.is_empty() {
            let room = room(stream, data.len(), write_timeout).await?;
            let piece = data.split_to(room.min(data.len()));
            let is_last = data.is_empty() && body.is_end_stream();
            stream.send_data(piece, is_last).map_err(|_| SendError::Disconnected)?;
            if is_last {
                return Ok(());
            }
        }
    }
}

/// Waits until the client's flow control window has room, and returns the number of bytes.
async fn room(stream: &mut SendStream<Bytes>, bytes: usize, write_timeout: Duration) -> Result<usize, SendError> {
    stream.reserve_capacity(bytes);
    let waiting = async {
        loop {
            match stream.capacity() {
                0 => match poll_fn(|cx| stream.poll_capacity(cx)).await {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(SendError::Disconnected),
                },
                room => return Ok(room),
            }
        }
    };
    tokio::time::timeout(write_timeout, waiting).await.unwrap_or(Err(SendError::Stalled))
}

/// The body of a request on one stream.
struct Http2Body {
    stream: RecvStream,
    length: Option<u64>,
    has_data: bool,
}

impl Http2Body {
    fn new_unsized(stream: RecvStream) -> Self {
        Self { stream, length: None, has_data: true }
    }

    fn with_length(self, length: Option<u64>) -> Self {
        Self { length, ..self }
    }
}

impl Body for Http2Body {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.has_data {
            match ready!(self.stream.poll_data(cx)) {
                Some(Ok(data)) => {
                    // An error means that the stream has ended.
                    let _ = self.stream.flow_control().release_capacity(data.len());
                    self.length = self.length.map(|length| length.saturating_sub(data.len() as u64));
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                Some(Err(_)) => return Poll::Ready(Some(Err(BodyError::ConnectionTerminated))),
                None => self.has_data = false,
            }
        }
        match ready!(self.stream.poll_trailers(cx)) {
            Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
            Ok(None) => Poll::Ready(None),
            Err(_) => Poll::Ready(Some(Err(BodyError::ConnectionTerminated))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.stream.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.length {
            _ if self.stream.is_end_stream() => SizeHint::with_exact(0),
            Some(length) => SizeHint::with_exact(length),
            None => SizeHint::default(),
        }
    }
}
