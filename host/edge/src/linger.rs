//! The end of a connection whose client may still be sending.
//!
//! A socket that is closed while it holds unread bytes is reset, and a reset removes what the client has not read yet: the answer to
//! a request whose body was not read would be lost. So the server ends its own direction first, then reads and discards until
//! the client closes, within bounds (RFC 9112, section 9.6). [`WatchedBody`] shows whether a body was read; where it was not, the
//! response has `Connection: close`.

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

/// How long a client may send after its last response, and how long it may pause.
const LINGER_TIMEOUT: Duration = Duration::from_secs(10);
const LINGER_IDLE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long it may send while the server stops.
const LINGER_STOPPING_TIMEOUT: Duration = Duration::from_millis(250);
/// Bytes that are discarded before the connection is closed all the same.
const LINGER_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 16 << 10;
/// Bytes of an unread body that are discarded so that its connection can carry further requests.
const DISCARDED_BODY_BYTES_MAX: usize = 64 << 10;
/// How often a body is polled that has nothing: hyper reads from the socket between two polls.
const EMPTY_POLLS_MAX: u32 = 3;

/// Ends a connection: sends everything that was written and the end of the stream, then discards what the client sends until it
/// closes the connection or reaches a bound. Closes at once while too many connections linger, or too many of this client.
pub(crate) async fn close<S>(stream: &mut S, lingering: &Arc<SharedPool>, client: u64, stopped: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let Ok(_permit) = lingering.try_take(client) else { return };
    let started = Instant::now();
    let discarding = discard(stream);
    tokio::pin!(discarding);
    tokio::select! {
        () = &mut discarding => return,
        () = tokio::time::sleep_until(started + LINGER_TIMEOUT) => return,
        () = is_true(stopped) => {}
    }
    let _ = tokio::time::timeout_at(started + LINGER_TIMEOUT, async {
        let _ = tokio::time::timeout(LINGER_STOPPING_TIMEOUT, discarding).await;
    })
    .await;
}

async fn discard<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) {
    // An error means that the connection is gone.
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

/// The body of a request; a [`BodyWatch`] shows whether it was read.
pub(crate) struct WatchedBody<B: Body<Data = Bytes> + Unpin> {
    /// `None` only while it is dropped.
    body: Option<B>,
    state: Arc<Mutex<BodyState<B>>>,
}

enum BodyState<B> {
    /// Somebody may read it.
    Open,
    /// It was read to its end, or an error was found in it.
    Ended,
    /// It was dropped before its end.
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
    /// Discards what has already arrived of a body that was dropped. Returns whether the connection can carry a further request.
    pub(crate) async fn discard_unread(self) -> bool {
        let state =
            std::mem::replace(&mut *self.state.lock().unwrap_or_else(PoisonError::into_inner), BodyState::Ended);
        match state {
            // It is read while the response is sent. Should it be dropped then, hyper closes the connection after the response.
            BodyState::Open | BodyState::Ended => true,
            // The client sends no body after the response that it waited for, or all of it.
            BodyState::Unread(_) if self.expects_continue => false,
            BodyState::Unread(body) => discard_arrived(body).await,
        }
    }
}

/// Discards what has arrived of a body; whether that was all of it.
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
