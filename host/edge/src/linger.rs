//! Closes a connection whose client may still be sending.
//!
//! A socket that is closed with unread bytes is reset, and a reset discards what the client has not read yet: the
//! response to a request whose body was not read would be lost. So the server ends its own direction first, then reads
//! and discards until the client closes, within bounds (RFC 9112, section 9.6). [`WatchedBody`] records whether a body
//! was read; if it was not, the response has `Connection: close`.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use http::header::EXPECT;
use http_body::{Body, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::share::SharedPool;

/// How long a client may send after its last response, and the longest pause in it.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may send while the server stops.
const LINGER_STOPPING_TIMEOUT: Duration = Duration::from_millis(250);
/// Most bytes that are discarded before the connection is closed.
const LINGER_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 16 << 10;
/// Most bytes of an unread body that are discarded so that its connection can carry further requests.
const DISCARDED_BODY_BYTES_MAX: usize = 64 << 10;
/// How often a body without available bytes is polled: hyper reads from the socket between two polls.
const EMPTY_POLLS_MAX: u32 = 3;

/// Ends a connection: sends everything that was written and the end of the stream, then discards what the client sends
/// until it closes the connection or a bound is reached. Closes immediately if too many connections linger, of all
/// clients or of this one.
pub(crate) async fn close<S>(stream: &mut S, lingering: &Arc<SharedPool>, client: u64, stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(_permit) = lingering.try_take(client) else { return };
    let start = Instant::now();
    let discard_future = discard(stream);
    tokio::pin!(discard_future);
    tokio::select! {
        () = &mut discard_future => return,
        () = tokio::time::sleep_until(start + LINGER_TIMEOUT) => return,
        () = is_true(stopped) => {}
    }
    let _ = tokio::time::timeout_at(start + LINGER_TIMEOUT, async {
        let _ = tokio::time::timeout(LINGER_STOPPING_TIMEOUT, discard_future).await;
    })
    .await;
}

async fn discard<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    // An error means that the connection is already closed.
    if stream.shutdown().await.is_err() {
        return;
    }
    let mut buffer = vec![0; READ_BYTES];
    let mut discarded = 0;
    while discarded < LINGER_BYTES_MAX {
        match tokio::time::timeout(LINGER_IDLE_TIMEOUT, stream.read(&mut buffer)).await {
            Ok(Ok(bytes)) if bytes > 0 => discarded += bytes,
            _ => return,
        }
    }
}

/// Resolves when the flag is true, or its sender is dropped.
async fn is_true(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

/// The body of a request; its [`BodyWatch`] shows whether it was read.
pub(crate) struct WatchedBody<B: Body<Data = Bytes> + Unpin> {
    /// `None` after its end or an error.
    body: Option<B>,
    state: Arc<Mutex<BodyState<B>>>,
}

enum BodyState<B> {
    /// The body is not dropped and may still be read.
    Open,
    /// The body was read to its end or to an error.
    Ended,
    /// The body was dropped before its end.
    Unread(B),
}

/// Shows whether a request's body was read.
pub(crate) struct BodyWatch<B> {
    state: Arc<Mutex<BodyState<B>>>,
    /// The client waits for a response before it sends the body.
    expects_continue: bool,
}

impl<B: Body<Data = Bytes> + Unpin> WatchedBody<B> {
    /// Watches the body of a request.
    pub(crate) fn watch(request: Request<B>) -> (Request<Self>, BodyWatch<B>) {
        let expects_continue = request.headers().contains_key(EXPECT);
        let state = Arc::new(Mutex::new(BodyState::Open));
        let watch = BodyWatch { state: state.clone(), expects_continue };
        (request.map(|body| Self { body: Some(body), state }), watch)
    }
}

impl<B: Body<Data = Bytes> + Unpin> BodyWatch<B> {
    /// Discards the arrived bytes of a body that was dropped. Returns whether the connection can carry a further
    /// request.
    pub(crate) async fn discard_unread(self) -> bool {
        let state =
            std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), BodyState::Ended);
        match state {
            // The body is read while the response is sent. If it is dropped then, hyper closes the connection after the
            // response.
            BodyState::Open | BodyState::Ended => true,
            // Whether the client sends the body after the response that it waited for is unknown.
            BodyState::Unread(_) if self.expects_continue => false,
            BodyState::Unread(body) => discard_arrived(body).await,
        }
    }
}

/// Discards the arrived bytes of a body; returns whether that was the whole body.
async fn discard_arrived<B: Body<Data = Bytes> + Unpin>(mut body: B) -> bool {
    if body.size_hint().lower() > DISCARDED_BODY_BYTES_MAX as u64 {
        return false;
    }
    let mut discarded = 0;
    let mut empty_polls = 0;
    poll_fn(|cx| {
        loop {
            match Pin::new(&mut body).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(true),
                Poll::Ready(Some(Err(_))) => return Poll::Ready(false),
                Poll::Ready(Some(Ok(frame))) => {
                    discarded += frame.data_ref().map_or(0, Bytes::len);
                    if discarded > DISCARDED_BODY_BYTES_MAX {
                        return Poll::Ready(false);
                    }
                    empty_polls = 0;
                }
                Poll::Pending if empty_polls == EMPTY_POLLS_MAX => return Poll::Ready(false),
                Poll::Pending => {
                    empty_polls += 1;
                    cx.waker().wake_by_ref();
                    return Poll::Pending;
                }
            }
        }
    })
    .await
}

impl<B: Body<Data = Bytes> + Unpin> Body for WatchedBody<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let polled = Pin::new(body).poll_frame(cx);
        if let Poll::Ready(None | Some(Err(_))) = polled {
            self.body = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or(SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B: Body<Data = Bytes> + Unpin> Drop for WatchedBody<B> {
    fn drop(&mut self) {
        let state = match self.body.take().filter(|body| !body.is_end_stream()) {
            Some(body) => BodyState::Unread(body),
            None => BodyState::Ended,
        };
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}
