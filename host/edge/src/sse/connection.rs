//! A held HTTP/1.1 connection: hyper's connection is dropped with its buffers, and only a socket and a feed remain.
//!
//! The connection has one response and is closed after it (`Connection: close`).

use std::fmt::Write as _;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::SystemTime;

use http::header::{CONNECTION, CONTENT_LENGTH, DATE, TRANSFER_ENCODING};
use http::{HeaderValue, response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sse::feed::{Feed, FeedOutput};
use crate::sse::hold::HeldResponse;

/// Bytes before a chunk for its size: eight digits and an end of line.
const SIZE_ROOM: usize = 10;
/// Reads of ignored input before the task yields.
const IGNORED_READS: usize = 16;

/// Writes a response and feeds its connection, until the feed ends or the client disconnects.
pub(crate) struct HeldConnection<S> {
    stream: S,
    feed: Feed,
    /// The bytes being written, from `at` on.
    out: Vec<u8>,
    at: usize,
    state: State,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// `out` contains the last bytes to be written.
    Ending,
    /// Everything is written.
    Closing,
}

impl<S> HeldConnection<S> {
    pub(crate) fn new(stream: S, held: HeldResponse) -> Self {
        let HeldResponse { head, first, feed } = held;
        let mut out = render_head(head);
        if !first.is_empty() {
            out.extend_from_slice(format!("{:x}\r\n", first.len()).as_bytes());
            out.extend_from_slice(&first);
            out.extend_from_slice(b"\r\n");
        }
        Self { stream, feed, out, at: 0, state: State::Open }
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> HeldConnection<S> {
    /// Writes `out`.
    fn poll_write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.at < self.out.len() {
            let written = match Pin::new(&mut self.stream).poll_write(cx, &self.out[self.at..]) {
                Poll::Ready(written) => written?,
                Poll::Pending => {
                    ready!(self.feed.poll_overdue(cx));
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        "the client's authorization has expired",
                    )));
                }
            };
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.at += written;
        }
        // The buffer is freed, since an idle connection does not need one.
        self.out = Vec::new();
        self.at = 0;
        Poll::Ready(Ok(()))
    }

    /// Reads the next piece of the feed into `out`, as a chunk.
    fn poll_next_chunk(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let FeedOutput { mut bytes, last } = ready!(self.feed.poll_next(cx, SIZE_ROOM));
        let size = format!("{:x}\r\n", bytes.len() - SIZE_ROOM);
        // A piece has far less than 2^32 bytes, so its size has at most eight digits.
        self.at = SIZE_ROOM.saturating_sub(size.len());
        bytes[self.at..SIZE_ROOM].copy_from_slice(size.as_bytes());
        bytes.extend_from_slice(b"\r\n");
        if last {
            bytes.extend_from_slice(b"0\r\n\r\n");
            self.state = State::Ending;
        }
        self.out = bytes;
        Poll::Ready(())
    }

    /// Ready when the client has disconnected. Other input is ignored: the connection has one response.
    fn poll_disconnect(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        for _ in 0..IGNORED_READS {
            let mut ignored = [0; 256];
            let mut buffer = ReadBuf::new(&mut ignored);
            match ready!(Pin::new(&mut self.stream).poll_read(cx, &mut buffer)) {
                Ok(()) if !buffer.filled().is_empty() => {}
                Ok(()) | Err(_) => return Poll::Ready(()),
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Future for HeldConnection<S> {
    type Output = io::Result<()>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.poll_disconnect(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        loop {
            if this.state == State::Closing {
                return Pin::new(&mut this.stream).poll_shutdown(cx);
            }
            ready!(this.poll_write_out(cx))?;
            match this.state {
                State::Open => ready!(this.poll_next_chunk(cx)),
                State::Ending | State::Closing => this.state = State::Closing,
            }
        }
    }
}

/// The head of a response of unknown length that is the last one of its connection.
fn render_head(head: response::Parts) -> Vec<u8> {
    let response::Parts { status, mut headers, .. } = head;
    for name in [CONTENT_LENGTH, CONNECTION, TRANSFER_ENCODING] {
        headers.remove(name);
    }
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write!(text, "HTTP/1.1 {} {}\r\n", status.as_str(), status.canonical_reason().unwrap_or_default());
    let mut out = text.into_bytes();
    let mut push = |name: &str, value: &[u8]| {
        out.extend_from_slice(name.as_bytes());
        out.extend_from_slice(b": ");
        out.extend_from_slice(value);
        out.extend_from_slice(b"\r\n");
    };
    for (name, value) in &headers {
        push(name.as_str(), value.as_bytes());
    }
    if !headers.contains_key(DATE) {
        push(DATE.as_str(), httpdate::fmt_http_date(SystemTime::now()).as_bytes());
    }
    push(TRANSFER_ENCODING.as_str(), HeaderValue::from_static("chunked").as_bytes());
    push(CONNECTION.as_str(), HeaderValue::from_static("close").as_bytes());
    out.extend_from_slice(b"\r\n");
    out
}
