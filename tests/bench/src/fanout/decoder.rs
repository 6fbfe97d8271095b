//! Decodes the bytes of a subscriber, in pieces of any size: an HTTP/1.1 response, dechunked, as lines of server-sent events.

use anyhow::{Result, anyhow, bail, ensure};

/// The longest line of a head or of a stream, bytes.
const LINE_BYTES_MAX: usize = 64 * 1024;

/// Reads one response. Between two pieces it holds at most a line of the framing and one of the content.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    state: State,
    framing: Vec<u8>,
    content: Vec<u8>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum State {
    #[default]
    Status,
    Fields {
        chunked: bool,
    },
    /// Until the connection is closed.
    Plain,
    Size,
    Chunk(usize),
    /// The end of line behind a chunk.
    After,
    Ended,
}

impl Decoder {
    /// Passes on the lines that a piece completes, without their ends; returns false after the end of the response.
    pub(crate) fn take(&mut self, mut bytes: &[u8], each: &mut impl FnMut(&[u8])) -> Result<bool> {
        while !bytes.is_empty() {
            match self.state {
                State::Ended => return Ok(false),
                State::Plain => {
                    lines(&mut self.content, bytes, each)?;
                    return Ok(true);
                }
                State::Chunk(left) => {
                    let (now, rest) = bytes.split_at(left.min(bytes.len()));
                    lines(&mut self.content, now, each)?;
                    bytes = rest;
                    self.state = if left == now.len() { State::After } else { State::Chunk(left - now.len()) };
                }
                State::Status | State::Fields { .. } | State::Size | State::After => {
                    let end = bytes.iter().position(|byte| *byte == b'\n');
                    let (now, rest) = bytes.split_at(end.map_or(bytes.len(), |end| end + 1));
                    self.framing.extend_from_slice(now);
                    ensure!(self.framing.len() <= LINE_BYTES_MAX, "a line that does not end");
                    bytes = rest;
                    if end.is_some() {
                        self.state = self.next()?;
                        self.framing.clear();
                    }
                }
            }
        }
        Ok(self.state != State::Ended)
    }

    /// The next state, after a line of the framing.
    fn next(&self) -> Result<State> {
        let line = std::str::from_utf8(&self.framing).map_err(|_| anyhow!("a head that is no text"))?.trim_end();
        Ok(match self.state {
            State::Status => {
                if line.split(' ').nth(1) != Some("200") {
                    bail!("answered `{line}`");
                }
                State::Fields { chunked: false }
            }
            State::Fields { chunked } if line.is_empty() => {
                if chunked {
                    State::Size
                } else {
                    State::Plain
                }
            }
            State::Fields { chunked } => {
                State::Fields { chunked: chunked || line.eq_ignore_ascii_case("transfer-encoding: chunked") }
            }
            State::After => {
                ensure!(line.is_empty(), "a chunk without an end");
                State::Size
            }
            State::Size => {
                let size = line.split(';').next().unwrap_or_default().trim();
                match usize::from_str_radix(size, 16).map_err(|_| anyhow!("bad chunk size `{line}`"))? {
                    0 => State::Ended,
                    size => State::Chunk(size),
                }
            }
            state => state,
        })
    }
}

/// Passes whole lines to `each`, and stores the incomplete rest in `carried`.
fn lines(carried: &mut Vec<u8>, bytes: &[u8], each: &mut impl FnMut(&[u8])) -> Result<()> {
    let mut rest = bytes;
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        if carried.is_empty() {
            each(line);
        } else {
            carried.extend_from_slice(line);
            each(carried);
            carried.clear();
        }
        rest = &rest[end + 1..];
    }
    carried.extend_from_slice(rest);
    ensure!(carried.len() <= LINE_BYTES_MAX, "a line that does not end");
    if carried.is_empty() {
        // An idle subscriber holds no buffer.
        carried.shrink_to(256);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(answer: &[u8], piece: usize) -> (Vec<String>, bool) {
        let (mut decoder, mut found, mut open) = (Decoder::default(), Vec::new(), true);
        for bytes in answer.chunks(piece) {
            open = decoder.take(bytes, &mut |line| found.push(String::from_utf8_lossy(line).into_owned())).unwrap();
        }
        (found, open)
    }

    #[test]
    fn lines_are_decoded_from_any_chunks() {
        let chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nid: \r\n9;x=1\r\n1\ndata: a\r\n3\r\nb\n\n\r\n0\r\n\r\n";
        let plain = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n: hi\n\ndata: a\n\n";
        for piece in 1..chunked.len() {
            assert_eq!(read(chunked, piece), (vec!["id: 1".to_owned(), "data: ab".to_owned(), String::new()], false));
            let lines = [": hi", "", "data: a", ""].map(str::to_owned).to_vec();
            assert_eq!(read(plain, piece), (lines, true));
        }
    }

    #[test]
    fn refusal_is_an_error() {
        let error = Decoder::default().take(b"HTTP/1.1 503 Busy\r\n", &mut |_| ()).unwrap_err().to_string();
        assert_eq!(error, "answered `HTTP/1.1 503 Busy`");
        let broken = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nxyz\r\n";
        assert!(Decoder::default().take(broken, &mut |_| ()).is_err());
    }
}
