//! A connection of HTTP/1.1 whose peer begins a request and does not finish its head is cut after `http.header_timeout_ms`. How
//! long it may say nothing between two requests is another matter: `http.idle_timeout_ms`, which hyper's own timer keeps.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

/// A stream whose peer may not take long over the head of a request.
pub(crate) struct HeadTimed<S> {
    stream: S,
    timeout: Duration,
    heads: Heads,
    /// Runs from the first byte of a head, or from the start of the connection; with the number of heads before it.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
}

/// How many heads of requests are complete, and how many requests are answered. Where both are the same a head is awaited.
#[derive(Clone, Default)]
pub(crate) struct Heads(Arc<Counts>);

#[derive(Default)]
struct Counts {
    complete: AtomicU64,
    answered: AtomicU64,
}

impl Heads {
    /// The head of a request is complete; the next one begins no earlier than the answer ends, when the guard is dropped.
    pub(crate) fn complete(&self) -> Answering {
        self.0.complete.fetch_add(1, Ordering::Relaxed);
        Answering(self.clone())
    }

    /// How many heads were before the one that is awaited; none while a request is being answered.
    fn before(&self) -> Option<u64> {
        let complete = self.0.complete.load(Ordering::Relaxed);
        (complete == self.0.answered.load(Ordering::Relaxed)).then_some(complete)
    }
}

/// A request that is being answered.
pub(crate) struct Answering(Heads);

impl Drop for Answering {
    fn drop(&mut self) {
        self.0.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

impl<S> HeadTimed<S> {
    pub(crate) fn new(stream: S, timeout: Duration) -> Self {
        let timer = Some((0, Box::pin(tokio::time::sleep(timeout))));
        Self { stream, timeout, heads: Heads::default(), timer }
    }

    pub(crate) fn heads(&self) -> Heads {
        self.heads.clone()
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for HeadTimed<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let filled = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        let Some(head) = this.heads.before() else {
            this.timer = None;
            return read;
        };
        // The timer of an earlier head is over with it.
        if this.timer.as_ref().is_some_and(|(timed, _)| *timed != head) {
            this.timer = None;
        }
        if read.is_ready() {
            // Bytes while a head is awaited are the beginning of one, or more of it.
            if buf.filled().len() > filled && this.timer.is_none() {
                this.timer = Some((head, Box::pin(tokio::time::sleep(this.timeout))));
            }
            return read;
        }
        match this.timer.as_mut().map(|(_, timer)| timer.as_mut().poll(cx)) {
            Some(Poll::Ready(())) => {
                metrics::counter!("weir_http_stalled_total").increment(1);
                Poll::Ready(Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the head of a request did not arrive in time",
                )))
            }
            _ => Poll::Pending,
        }
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for HeadTimed<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        data: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().stream).poll_write_vectored(cx, data)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn head_that_is_not_finished_in_time_is_an_error() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut stream = HeadTimed::new(ours, TIMEOUT);
        theirs.write_all(b"GET / HT").await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn time_between_requests_counts_for_no_head() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut stream = HeadTimed::new(ours, TIMEOUT);
        let heads = stream.heads();
        let answering = heads.complete();
        theirs.write_all(b"body").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let mut buffer = [0; 8];
        // Neither while it is answered,
        assert!(tokio::time::timeout(TIMEOUT * 3, stream.read(&mut buffer)).await.is_err());
        drop(answering);
        // (nor does a request that was answered before anything else was read,)
        drop(heads.complete());
        // nor while nothing of the next one has come.
        assert!(tokio::time::timeout(TIMEOUT * 3, stream.read(&mut buffer)).await.is_err());
        theirs.write_all(b"G").await.unwrap();
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 1);
        assert_eq!(stream.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
