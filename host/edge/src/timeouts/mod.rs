//! Timeouts of a connection's stream.
//!
//! - `http1_head`: the head of an HTTP/1.1 request is not complete in time.
//! - `http2_headers`: a header block of HTTP/2 is not complete in time.
//! - `write`: the peer does not read.
//!
//! The first two watch the reads of a stream, through [`ReadTimed`].

pub(crate) mod http1_head;
pub(crate) mod http2_headers;
pub(crate) mod write;

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Watches the reads of a stream.
pub(crate) trait ReadWatch {
    /// Handles a poll for reading: its result, and the bytes that it read. Returns the result that the reader gets.
    fn handle_read(&mut self, cx: &mut Context<'_>, read: Poll<io::Result<()>>, bytes: &[u8]) -> Poll<io::Result<()>>;
}

/// A stream whose reads are watched. Writes pass unchanged.
pub(crate) struct ReadTimed<S, W> {
    stream: S,
    watch: W,
}

impl<S, W> ReadTimed<S, W> {
    pub(crate) fn new(stream: S, watch: W) -> Self {
        Self { stream, watch }
    }

    pub(crate) fn into_inner(self) -> S {
        self.stream
    }
}

impl<S: AsyncRead + Unpin, W: ReadWatch + Unpin> AsyncRead for ReadTimed<S, W> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let read = Pin::new(&mut this.stream).poll_read(cx, buf);
        this.watch.handle_read(cx, read, &buf.filled()[before..])
    }
}

impl<S: AsyncWrite + Unpin, W: Unpin> AsyncWrite for ReadTimed<S, W> {
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
