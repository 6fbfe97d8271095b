//! A small HTTP/1.1 client on a plain socket, for `weir serve`. Bodies can be read as they arrive.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};

/// The longest silence of a response.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// The longest line of a head, and of a chunk's size.
const LINE_BYTES_MAX: u64 = 8 * 1024;
/// The most header lines of a head.
const HEADERS_MAX: usize = 100;

/// A response whose body is still arriving.
#[derive(Debug)]
pub(crate) struct Response<R> {
    pub(crate) status: u16,
    pub(crate) body: Body<R>,
}

/// Sends a request and reads the head of the response.
pub(crate) fn request(
    to: SocketAddr,
    method: &str,
    path: &str,
    json: Option<&str>,
) -> Result<Response<BufReader<TcpStream>>> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("cannot connect to {to}"))?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    stream.set_nodelay(true)?;
    let mut message = format!("{method} {path} HTTP/1.1\r\nhost: {to}\r\nconnection: close\r\n");
    if let Some(json) = json {
        message.push_str(&format!("content-type: application/json\r\ncontent-length: {}\r\n", json.len()));
    }
    message.push_str("\r\n");
    message.push_str(json.unwrap_or(""));
    stream.write_all(message.as_bytes()).with_context(|| format!("cannot send to {to}"))?;
    read_head(BufReader::new(stream)).with_context(|| format!("{method} {path}"))
}

/// Reads the head of a response; the body follows.
pub(crate) fn read_head<R: BufRead>(mut from: R) -> Result<Response<R>> {
    let status_line = head_line(&mut from)?;
    let status = status_line
        .strip_prefix("HTTP/1.")
        .and_then(|rest| rest.split(' ').nth(1))
        .and_then(|code| code.parse().ok())
        .ok_or_else(|| anyhow!("not an HTTP response: `{status_line}`"))?;
    let mut framing = Framing::UntilClosed;
    for _ in 0..HEADERS_MAX {
        let line = head_line(&mut from)?;
        if line.is_empty() {
            return Ok(Response { status, body: Body { from, framing } });
        }
        let (name, value) = line.split_once(':').ok_or_else(|| anyhow!("not a header: `{line}`"))?;
        if name.eq_ignore_ascii_case("transfer-encoding") && value.trim().eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked { left: 0, begun: false };
        } else if name.eq_ignore_ascii_case("content-length") && !matches!(framing, Framing::Chunked { .. }) {
            framing = Framing::Length(value.trim().parse().with_context(|| format!("bad content-length `{value}`"))?);
        }
    }
    bail!("the response has more than {HEADERS_MAX} headers")
}

#[derive(Debug)]
enum Framing {
    Length(u64),
    /// `left` bytes of the current chunk; a chunk's end is read before the next one's size once `begun`.
    Chunked {
        left: u64,
        begun: bool,
    },
    UntilClosed,
    Ended,
}

/// A decoded body; reading waits for the next bytes.
#[derive(Debug)]
pub(crate) struct Body<R> {
    from: R,
    framing: Framing,
}

impl<R: BufRead> Read for Body<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let broken = |why: String| std::io::Error::new(std::io::ErrorKind::InvalidData, why);
        let cut = || std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "the response was cut off");
        if buffer.is_empty() {
            return Ok(0);
        }
        if let Framing::Chunked { left: 0, begun } = self.framing {
            if begun {
                head_line(&mut self.from).map_err(|error| broken(error.to_string()))?;
            }
            let line = head_line(&mut self.from).map_err(|error| broken(error.to_string()))?;
            let size = line.split(';').next().unwrap_or("").trim();
            let left = u64::from_str_radix(size, 16).map_err(|_| broken(format!("bad chunk size `{line}`")))?;
            self.framing = Framing::Chunked { left, begun: true };
            if left == 0 {
                while !head_line(&mut self.from).map_err(|error| broken(error.to_string()))?.is_empty() {}
                self.framing = Framing::Ended;
            }
        }
        match &mut self.framing {
            Framing::Length(0) | Framing::Ended => Ok(0),
            Framing::Length(left) | Framing::Chunked { left, .. } => {
                let most = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
                match self.from.read(&mut buffer[..most])? {
                    0 => Err(cut()),
                    n => {
                        *left -= n as u64;
                        Ok(n)
                    }
                }
            }
            Framing::UntilClosed => self.from.read(buffer),
        }
    }
}

/// A line of a head, without its end.
fn head_line(from: &mut impl BufRead) -> Result<String> {
    let mut line = Vec::new();
    from.take(LINE_BYTES_MAX).read_until(b'\n', &mut line).context("cannot read the response")?;
    if line.pop() != Some(b'\n') {
        bail!("the response was cut off");
    }
    if line.last() == Some(&b'\r') {
        line.pop();
    }
    String::from_utf8(line).context("a header that is not text")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(response: &str) -> Result<(u16, String)> {
        let mut response = read_head(response.as_bytes())?;
        let mut text = String::new();
        response.body.read_to_string(&mut text)?;
        Ok((response.status, text))
    }

    #[test]
    fn bodies_of_every_framing_are_read() {
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n8;x=1\r\n, world\n\r\n0\r\nt: 1\r\n\r\n";
        assert_eq!(body(chunked).unwrap(), (200, "hello, world\n".to_owned()));
        assert_eq!(
            body("HTTP/1.1 404 Not Found\r\nContent-Length: 3\r\n\r\nno!rest").unwrap(),
            (404, "no!".to_owned())
        );
        assert_eq!(body("HTTP/1.0 200 OK\r\n\r\nall of it").unwrap(), (200, "all of it".to_owned()));
    }

    #[test]
    fn chunk_is_readable_before_the_next_one_arrives() {
        let arrived: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n6\r\nfirst\n";
        let mut lines = BufReader::new(read_head(arrived).unwrap().body).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "first");
        assert!(lines.next().unwrap().is_err(), "a cut response is an error, not an end");
    }

    #[test]
    fn cut_or_malformed_response_is_an_error() {
        for response in [
            "",
            "HTTP/1.1 200 OK\r\nContent-Le",
            "SMTP 200\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nshort",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        ] {
            assert!(body(response).is_err(), "{response:?}");
        }
    }
}
