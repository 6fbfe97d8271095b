//! The head timeout of HTTP/1.1: a connection whose peer starts a request and does not complete its head within
//! `http.header_timeout_ms` is closed. The time between two requests is bounded by `http.idle_timeout_ms`, with a timer
//! of hyper.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::timeouts::ReadWatch;

/// Times the heads of requests.
pub(crate) struct HeadTimer {
    timeout: Duration,
    heads: Heads,
    /// The number of earlier heads, and a timer that starts with the first byte of the head, or with the connection.
    timer: Option<(u64, Pin<Box<Sleep>>)>,
}

/// The number of complete heads and of answered requests. While both are equal a head is awaited.
#[derive(Clone, Default)]
pub(crate) struct Heads(Arc<Counts>);

#[derive(Default)]
struct Counts {
    complete: AtomicU64,
    answered: AtomicU64,
}

impl Heads {
    /// Marks a head as complete. The next head starts after the response has ended, when the guard is dropped.
    pub(crate) fn complete(&self) -> RequestGuard {
        self.0.complete.fetch_add(1, Ordering::Relaxed);
        RequestGuard(self.clone())
    }

    /// The number of heads before the awaited one; `None` while a request is being answered.
    fn before(&self) -> Option<u64> {
        let complete = self.0.complete.load(Ordering::Relaxed);
        (complete == self.0.answered.load(Ordering::Relaxed)).then_some(complete)
    }
}

/// Marks a request as answered when it is dropped.
pub(crate) struct RequestGuard(Heads);

impl Drop for RequestGuard {
    fn drop(&mut self) {
        self.0.0.answered.fetch_add(1, Ordering::Relaxed);
    }
}

impl HeadTimer {
    pub(crate) fn new(timeout: Duration) -> Self {
        let timer = Some((0, Box::pin(tokio::time::sleep(timeout))));
        Self { timeout, heads: Heads::default(), timer }
    }

    pub(crate) fn heads(&self) -> Heads {
        self.heads.clone()
    }
}

impl ReadWatch for HeadTimer {
    fn handle_read(&mut self, cx: &mut Context<'_>, read: Poll<io::Result<()>>, bytes: &[u8]) -> Poll<io::Result<()>> {
        let Some(head) = self.heads.before() else {
            self.timer = None;
            return read;
        };
        // The timer of an earlier head ends with that head.
        if self.timer.as_ref().is_some_and(|(timed, _)| *timed != head) {
            self.timer = None;
        }
        if read.is_ready() {
            // Bytes that arrive while a head is awaited belong to it.
            if !bytes.is_empty() && self.timer.is_none() {
                self.timer = Some((head, Box::pin(tokio::time::sleep(self.timeout))));
            }
            return read;
        }
        match self.timer.as_mut().map(|(_, timer)| timer.as_mut().poll(cx)) {
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

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::timeouts::ReadTimed;

    const TIMEOUT: Duration = Duration::from_millis(30);

    #[tokio::test]
    async fn head_that_is_not_complete_in_time_is_an_error() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let mut stream = ReadTimed::new(ours, HeadTimer::new(TIMEOUT));
        theirs.write_all(b"GET / HT").await.unwrap();
        stream.read_exact(&mut [0; 8]).await.unwrap();
        assert_eq!(stream.read(&mut [0; 8]).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn time_between_requests_is_not_counted() {
        let (ours, mut theirs) = tokio::io::duplex(64);
        let timer = HeadTimer::new(TIMEOUT);
        let heads = timer.heads();
        let mut stream = ReadTimed::new(ours, timer);
        let guard = heads.complete();
        theirs.write_all(b"body").await.unwrap();
        stream.read_exact(&mut [0; 4]).await.unwrap();
        let mut buffer = [0; 8];
        // The timer does not run while the request is answered.
        assert!(tokio::time::timeout(TIMEOUT * 3, stream.read(&mut buffer)).await.is_err());
        drop(guard);
        // A second request is answered before anything else is read.
        drop(heads.complete());
        // The timer does not run before the first byte of the next request.
        assert!(tokio::time::timeout(TIMEOUT * 3, stream.read(&mut buffer)).await.is_err());
        theirs.write_all(b"G").await.unwrap();
        assert_eq!(stream.read(&mut buffer).await.unwrap(), 1);
        assert_eq!(stream.read(&mut buffer).await.unwrap_err().kind(), io::ErrorKind::TimedOut);
    }
}
