//! The header timeout of HTTP/2: a header block must be complete within `http.header_timeout_ms` of its start. The
//! frames are parsed here, since h2 does not report that it waits for the rest of a block.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use crate::timeouts::ReadWatch;

/// Bytes of the connection preface (RFC 9113, section 3.4).
const PREFACE_BYTES: usize = 24;
/// Bytes of a frame header (section 4.1).
const FRAME_HEADER_BYTES: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;

/// Times the header blocks of a connection.
pub(crate) struct HeaderBlockTimer {
    timeout: Duration,
    frames: Frames,
    /// Runs while a header block is incomplete.
    timer: Option<Pin<Box<Sleep>>>,
}

impl HeaderBlockTimer {
    /// A timer for a connection, which must get the bytes from the first one.
    pub(crate) fn new(timeout: Duration) -> Self {
        Self { timeout, frames: Frames::default(), timer: None }
    }
}

/// Parses frame headers, and skips payloads.
#[derive(Debug)]
struct Frames {
    /// Remaining bytes to skip, of the preface or of a payload.
    skip: usize,
    /// The arrived bytes of a frame header.
    header: [u8; FRAME_HEADER_BYTES],
    header_bytes: usize,
    /// True within a header block.
    in_block: bool,
    /// True if the skipped frame is the last one of its block.
    ends_block: bool,
}

impl Default for Frames {
    fn default() -> Self {
        let header = [0; FRAME_HEADER_BYTES];
        Self { skip: PREFACE_BYTES, header, header_bytes: 0, in_block: false, ends_block: false }
    }
}

impl Frames {
    /// Parses bytes; returns whether a header block is incomplete after them.
    fn push(&mut self, mut bytes: &[u8]) -> bool {
        loop {
            let skipped = self.skip.min(bytes.len());
            self.skip -= skipped;
            bytes = &bytes[skipped..];
            if self.skip == 0 && self.ends_block {
                (self.in_block, self.ends_block) = (false, false);
            }
            if bytes.is_empty() {
                return self.in_block;
            }
            let part = (FRAME_HEADER_BYTES - self.header_bytes).min(bytes.len());
            self.header[self.header_bytes..self.header_bytes + part].copy_from_slice(&bytes[..part]);
            self.header_bytes += part;
            bytes = &bytes[part..];
            if self.header_bytes == FRAME_HEADER_BYTES {
                self.header_bytes = 0;
                let [a, b, c, kind, flags, ..] = self.header;
                self.skip = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
                if kind == HEADERS || (kind == CONTINUATION && self.in_block) {
                    self.in_block = true;
                    self.ends_block = flags & END_HEADERS != 0;
                }
            }
        }
    }
}

impl ReadWatch for HeaderBlockTimer {
    fn handle_read(&mut self, cx: &mut Context<'_>, read: Poll<io::Result<()>>, bytes: &[u8]) -> Poll<io::Result<()>> {
        if !bytes.is_empty() {
            let was_in_block = self.frames.in_block;
            match self.frames.push(bytes) {
                false => self.timer = None,
                // The timer runs from the start of the block.
                true if was_in_block && self.timer.is_some() => {}
                true => self.timer = Some(Box::pin(tokio::time::sleep(self.timeout))),
            }
        }
        if let Some(timer) = &mut self.timer
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a header block was not complete in time",
            )));
        }
        read
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::timeouts::ReadTimed;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0, 0, payload.len() as u8, kind, flags, 0, 0, 0, 1];
        frame.extend_from_slice(payload);
        frame
    }

    #[test]
    fn header_block_is_incomplete_until_its_last_frame_is_whole() {
        let mut all = vec![b'p'; PREFACE_BYTES];
        all.extend(frame(4, 0, &[0; 6]));
        let begins = all.len() + FRAME_HEADER_BYTES;
        all.extend(frame(HEADERS, 0, b"abc"));
        all.extend(frame(CONTINUATION, 0, b""));
        all.extend(frame(CONTINUATION, END_HEADERS, b"de"));
        let ends = all.len();
        all.extend(frame(0, 1, &[HEADERS; 20]));
        all.extend(frame(HEADERS, END_HEADERS, b"x"));
        let last = all.len();
        // All bytes at once, and byte by byte.
        assert!(!Frames::default().push(&all));
        let mut frames = Frames::default();
        for (at, byte) in all.iter().enumerate() {
            let count = at + 1;
            let open = (begins..ends).contains(&count) || (last - 1..last).contains(&count);
            assert_eq!(frames.push(&[*byte]), open, "after {count} bytes");
        }
    }

    #[tokio::test]
    async fn header_block_that_does_not_end_is_an_error() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut watch = ReadTimed::new(ours, HeaderBlockTimer::new(Duration::from_millis(30)));
        theirs.write_all(&[b'p'; PREFACE_BYTES]).await.unwrap();
        theirs.write_all(&frame(HEADERS, 0, b"abc")).await.unwrap();
        let mut bytes = Vec::new();
        let error = watch.read_to_end(&mut bytes).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn connection_between_requests_has_no_header_timeout() {
        let (ours, mut theirs) = tokio::io::duplex(1024);
        let mut watch = ReadTimed::new(ours, HeaderBlockTimer::new(Duration::from_millis(30)));
        theirs.write_all(&[b'p'; PREFACE_BYTES]).await.unwrap();
        theirs.write_all(&frame(HEADERS, END_HEADERS, b"abc")).await.unwrap();
        let writing = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(150)).await;
            drop(theirs);
        });
        let mut bytes = Vec::new();
        watch.read_to_end(&mut bytes).await.unwrap();
        writing.await.unwrap();
    }
}
