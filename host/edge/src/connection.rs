//! One connection: which version of HTTP it speaks, its requests one after the other, and what becomes of it when an answer
//! is to be held.

use std::convert::Infallible;
use std::future::{pending, poll_fn};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Version};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::watch;

use crate::body::ReplyBody;
use crate::timeouts::http1_head::{Answering, HeadTimed};
use crate::sse::connection::HeldConnection;
use crate::sse::hold::Held;
use crate::http2;
use crate::server::{Answer, Shared, answer};
use crate::websocket::Talk;
use crate::timeouts::write::Unstalled;

/// What the system keeps for a held connection whose client has not acknowledged it; Linux doubles it for its own needs.
const SEND_BUFFER_BYTES: usize = 128 * 1024;

type Stream = Unstalled<TcpStream>;

/// Serves a connection until it ends; it takes no new request once `stopped` says true.
pub(crate) async fn serve(shared: Arc<Shared>, stream: TcpStream, owner: u64, stopped: watch::Receiver<bool>) {
    // Results are small and each is wanted at once.
    let _ = stream.set_nodelay(true);
    // Which version of HTTP it is shows in the first bytes, and reading those has no timeout of its own.
    let header_timeout = Duration::from_millis(shared.config.header_timeout_ms);
    let Ok(Ok(http2)) = tokio::time::timeout(header_timeout, is_http2(&stream)).await else { return };
    let stream = Unstalled::new(stream, Duration::from_millis(shared.config.write_timeout_ms));
    if http2 {
        return Box::pin(http2::serve(shared, stream, owner, stopped)).await;
    }
    let leaving = shared.leaving.subscribe();
    // Boxed and let go of: what it takes to read requests is not kept while the connection is held.
    match Box::pin(serve_http1(shared, stream, owner, stopped)).await {
        None => {}
        Some(Becomes::Held(held)) => {
            if let Err(error) = held.await {
                tracing::debug!(%error, "a held connection ended early");
            }
        }
        Some(Becomes::Socket { stream, read, talk }) => Box::pin(talk.run(stream, read, leaving)).await,
    }
}

/// What a connection is once it takes no more requests.
enum Becomes {
    Held(HeldConnection<Stream>),
    /// With what was read beyond the request.
    Socket {
        stream: Stream,
        read: Bytes,
        talk: Box<Talk>,
    },
}

/// Answers requests until the connection ends, or is to be held for one of them.
async fn serve_http1(
    shared: Arc<Shared>,
    stream: Stream,
    owner: u64,
    mut stopped: watch::Receiver<bool>,
) -> Option<Becomes> {
    let header_timeout = Duration::from_millis(shared.config.header_timeout_ms);
    let idle_timeout = Duration::from_millis(shared.config.idle_timeout_ms);
    let desk = Arc::new(Desk { held: Mutex::new(None), talk: Mutex::new(None), flushed: stream.flushed() });
    let takes = desk.clone();
    let stream = HeadTimed::new(stream, header_timeout);
    let heads = stream.heads();
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, desk) = (shared.clone(), desk.clone());
        let answering = heads.complete();
        async move {
            let chunked = request.version() == Version::HTTP_11;
            let response = match answer(&shared, request, owner).await {
                Answer::Held(held) if chunked => {
                    desk.put(*held);
                    // The connection is taken away from under this request.
                    pending().await
                }
                Answer::Socket(response, talk) => {
                    desk.put_talk(talk);
                    response
                }
                answer => answer.into_response(),
            };
            Ok::<_, Infallible>(response.map(|body| AnsweringBody { body, _answering: answering }))
        }
    });
    let mut builder = http1::Builder::new();
    // hyper's timer runs from the end of an answer, through the silence and the next head; the head alone is timed by the stream.
    builder.timer(TokioTimer::new()).header_read_timeout(idle_timeout.max(header_timeout)).half_close(false);
    let mut connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut told = false;
    loop {
        let next = poll_fn(|cx| match Pin::new(&mut connection).poll(cx) {
            Poll::Ready(ended) => Poll::Ready(ended.map(|()| None)),
            Poll::Pending => takes.take().map_or(Poll::Pending, |held| Poll::Ready(Ok(Some(held)))),
        });
        let next = tokio::select! {
            biased;
            _ = stopped.wait_for(|stopped| *stopped), if !told => None,
            next = next => Some(next),
        };
        match next {
            None => {
                told = true;
                Pin::new(&mut connection).graceful_shutdown();
            }
            Some(Ok(Some(held))) => {
                let stream = connection.into_parts().io.into_inner().into_inner();
                // Else the system keeps megabytes for each one that does not read. It is a wish: without it all goes on.
                let _ = SockRef::from(stream.get_ref()).set_send_buffer_size(SEND_BUFFER_BYTES);
                return Some(Becomes::Held(HeldConnection::new(stream, held)));
            }
            // After the head of an upgrade the connection is ours.
            Some(Ok(None)) => {
                let talk = takes.take_talk()?;
                let parts = connection.into_parts();
                return Some(Becomes::Socket {
                    stream: parts.io.into_inner().into_inner(),
                    read: parts.read_buf,
                    talk,
                });
            }
            Some(Err(error)) => {
                log(&error);
                return None;
            }
        }
    }
}

fn log(error: &hyper::Error) {
    tracing::debug!(error = error as &dyn std::error::Error, "a connection ended early");
}

/// The body of an answer, which ends the time of its request.
struct AnsweringBody {
    body: ReplyBody,
    _answering: Answering,
}

impl Body for AnsweringBody {
    type Data = Bytes;
    type Error = <ReplyBody as Body>::Error;

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

/// Where an answer is left whose connection is to be held, or is to become a socket.
struct Desk {
    held: Mutex<Option<Held>>,
    talk: Mutex<Option<Box<Talk>>>,
    /// Set when all that was written of earlier answers has left.
    flushed: Arc<AtomicBool>,
}

impl Desk {
    fn put(&self, held: Held) {
        // Only what is flushed from now on shows that nothing of an answer before this one is still to be written.
        self.flushed.store(false, Ordering::Relaxed);
        *self.held.lock().unwrap_or_else(PoisonError::into_inner) = Some(held);
    }

    fn put_talk(&self, talk: Box<Talk>) {
        *self.talk.lock().unwrap_or_else(PoisonError::into_inner) = Some(talk);
    }

    fn take_talk(&self) -> Option<Box<Talk>> {
        self.talk.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn take(&self) -> Option<Held> {
        if !self.flushed.load(Ordering::Relaxed) {
            return None;
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The number of a client, by its address. An IPv6 client has a network of its own.
pub(crate) fn owner_of(address: IpAddr) -> u64 {
    match address.to_canonical() {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => (address.to_bits() >> 64) as u64,
    }
}

/// Waits until it is clear which version of HTTP a connection speaks: HTTP/2 begins with 24 bytes of its own, and
/// HTTP/1 differs from them early.
async fn is_http2(stream: &TcpStream) -> std::io::Result<bool> {
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let mut buffer = [0; PREFACE.len()];
    let mut pause = Duration::from_millis(1);
    loop {
        let seen = stream.peek(&mut buffer).await?;
        if seen == 0 || buffer[..seen] != PREFACE[..seen] {
            return Ok(false);
        }
        if seen == PREFACE.len() {
            return Ok(true);
        }
        // The rest of the preface is on its way, and `peek` would return at once until it is here.
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(64));
    }
}
