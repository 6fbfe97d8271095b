//! HTTP/1.1 on a plain socket, for the load: requests are bytes made in advance, responses are read as far as needed.

use std::net::SocketAddr;

use anyhow::{Context, Result, anyhow, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::corpus::Text;

/// The longest head and the longest chunk-size line, bytes.
const HEAD_BYTES_MAX: usize = 16 * 1024;
/// The longest response that is accepted, bytes.
const BODY_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The request format of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Form {
    /// `{"inputs": "…"}`, as Weir's `/v1/classify`.
    Inputs,
    /// As `inputs`, with the client's timeout: `"parameters": {"timeout_ms": 100}`.
    InputsInTime,
    /// `{"text": "…"}`, as the peers' `/classify`.
    Text,
}

/// The time within which a response counts as good.
pub(crate) const SLO_MS: f64 = 100.0;

/// The destination of requests.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    pub(crate) form: Form,
    /// More header lines, `name: value`.
    pub(crate) headers: Vec<String>,
}

impl Target {
    /// `host:port/path`, also behind `http://`.
    pub(crate) fn parse(url: &str, form: Form, headers: Vec<String>) -> Result<Self> {
        let rest = url.strip_prefix("http://").unwrap_or(url);
        let (host, path) = rest.split_once('/').ok_or_else(|| anyhow!("`{url}` has no path"))?;
        let address = host.parse().with_context(|| format!("`{host}` is not an address such as 127.0.0.1:8080"))?;
        Ok(Self { address, path: format!("/{path}"), form, headers })
    }

    /// A whole request for one text.
    pub(crate) fn request(&self, text: &Text) -> Vec<u8> {
        let text = &text.text;
        let body = match self.form {
            Form::Inputs => serde_json::json!({ "inputs": text }),
            Form::InputsInTime => serde_json::json!({ "inputs": text, "parameters": { "timeout_ms": SLO_MS as u32 } }),
            Form::Text => serde_json::json!({ "text": text }),
        };
        let body = body.to_string();
        let length = format!("content-type: application/json\r\ncontent-length: {}\r\n", body.len());
        [self.head("POST", &length).as_bytes(), body.as_bytes()].concat()
    }

    /// A request's head with some header lines of its own.
    pub(crate) fn head(&self, method: &str, more: &str) -> String {
        let own: String = self.headers.iter().map(|header| format!("{header}\r\n")).collect();
        format!("{method} {} HTTP/1.1\r\nhost: {}\r\n{more}{own}\r\n", self.path, self.address)
    }
}

/// A persistent connection.
pub(crate) struct Connection {
    read: OwnedReadHalf,
    /// Taken by the task that writes while responses are read.
    pub(crate) write: Option<OwnedWriteHalf>,
    buffer: Vec<u8>,
    /// The consumed part of `buffer`, bytes.
    used: usize,
    /// Whether another request may follow.
    pub(crate) reusable: bool,
}

/// The head of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head {
    pub(crate) status: u16,
    framing: Framing,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Framing {
    Length(usize),
    Chunked,
    UntilClosed,
}

impl Connection {
    pub(crate) async fn open(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).await.context("cannot connect")?;
        stream.set_nodelay(true)?;
        let (read, write) = stream.into_split();
        Ok(Self { read, write: Some(write), buffer: Vec::with_capacity(4096), used: 0, reusable: true })
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        let write = self.write.as_mut().context("the connection's writer is taken")?;
        write.write_all(bytes).await.context("cannot send")
    }

    /// Reads one whole response; `body` is replaced.
    pub(crate) async fn receive(&mut self, body: &mut Vec<u8>) -> Result<u16> {
        body.clear();
        let head = self.head().await?;
        match head.framing {
            Framing::Length(length) => self.take(length, body).await?,
            Framing::Chunked => while self.chunk(body).await? {},
            Framing::UntilClosed => {
                self.reusable = false;
                body.extend_from_slice(&self.buffer[self.used..]);
                self.read.read_to_end(body).await.context("cannot read")?;
            }
        }
        Ok(head.status)
    }

    /// Reads the next head, skipping interim responses.
    pub(crate) async fn head(&mut self) -> Result<Head> {
        loop {
            let end = loop {
                let rest = &self.buffer[self.used..];
                if let Some(end) = find(rest, b"\r\n\r\n") {
                    break end;
                }
                ensure!(rest.len() < HEAD_BYTES_MAX, "a response whose head does not end");
                self.fill().await?;
            };
            let text =
                std::str::from_utf8(&self.buffer[self.used..self.used + end]).context("a head that is no text")?;
            let (head, keep) = parse_head(text)?;
            self.used += end + 4;
            self.reusable &= keep && head.framing != Framing::UntilClosed;
            if head.status >= 200 {
                return Ok(head);
            }
        }
    }

    /// Reads one chunk; false after the last one.
    pub(crate) async fn chunk(&mut self, body: &mut Vec<u8>) -> Result<bool> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or("").trim();
        let size = usize::from_str_radix(size, 16).map_err(|_| anyhow!("bad chunk size `{line}`"))?;
        if size == 0 {
            while !self.line().await?.is_empty() {}
            return Ok(false);
        }
        self.take(size, body).await?;
        ensure!(self.line().await?.is_empty(), "a chunk without an end");
        Ok(true)
    }

    async fn line(&mut self) -> Result<String> {
        loop {
            let rest = &self.buffer[self.used..];
            if let Some(end) = find(rest, b"\r\n") {
                let line = String::from_utf8_lossy(&rest[..end]).into_owned();
                self.used += end + 2;
                return Ok(line);
            }
            ensure!(rest.len() < HEAD_BYTES_MAX, "a line that does not end");
            self.fill().await?;
        }
    }

    async fn take(&mut self, length: usize, body: &mut Vec<u8>) -> Result<()> {
        ensure!(length <= BODY_BYTES_MAX, "a response of {length} bytes");
        let mut left = length;
        loop {
            let now = left.min(self.buffer.len() - self.used);
            body.extend_from_slice(&self.buffer[self.used..self.used + now]);
            self.used += now;
            left -= now;
            if left == 0 {
                return Ok(());
            }
            self.fill().await?;
        }
    }

    async fn fill(&mut self) -> Result<()> {
        self.buffer.drain(..self.used);
        self.used = 0;
        match self.read.read_buf(&mut self.buffer).await.context("cannot read")? {
            0 => bail!("the server closed the connection"),
            _ => Ok(()),
        }
    }
}

fn parse_head(text: &str) -> Result<(Head, bool)> {
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or("");
    let status = first.strip_prefix("HTTP/1.").and_then(|rest| rest.split(' ').nth(1)?.parse().ok());
    let status: u16 = status.ok_or_else(|| anyhow!("not an HTTP response: `{first}`"))?;
    let (mut framing, mut keep) = (Framing::UntilClosed, !first.starts_with("HTTP/1.0"));
    for line in lines {
        let Some((name, value)) = line.split_once(':') else { bail!("not a header: `{line}`") };
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-length") && framing != Framing::Chunked {
            framing = Framing::Length(value.parse().with_context(|| format!("bad content-length `{value}`"))?);
        } else if name.eq_ignore_ascii_case("transfer-encoding") && value.eq_ignore_ascii_case("chunked") {
            framing = Framing::Chunked;
        } else if name.eq_ignore_ascii_case("connection") {
            keep = !value.eq_ignore_ascii_case("close");
        }
    }
    if matches!(status, 100..=199 | 204 | 304) {
        framing = Framing::Length(0);
    }
    Ok((Head { status, framing }, keep))
}

fn find(bytes: &[u8], needle: &[u8]) -> Option<usize> {
    bytes.windows(needle.len()).position(|window| window == needle)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn heads_determine_the_end_of_bodies() {
        let head = |text: &str| parse_head(text).map(|(head, keep)| (head.status, head.framing, keep)).unwrap();
        assert_eq!(head("HTTP/1.1 200 OK\r\nContent-Length: 5"), (200, Framing::Length(5), true));
        assert_eq!(
            head("HTTP/1.1 503 x\r\nTransfer-Encoding: chunked\r\nconnection: close"),
            (503, Framing::Chunked, false)
        );
        assert_eq!(head("HTTP/1.1 100 Continue"), (100, Framing::Length(0), true));
        assert_eq!(head("HTTP/1.0 200 OK"), (200, Framing::UntilClosed, false));
        assert!(parse_head("SMTP 200").is_err() && parse_head("HTTP/1.1 200 OK\r\ncontent-length: x").is_err());
    }

    #[test]
    fn requests_are_whole() {
        let target = Target::parse("http://127.0.0.1:80/v1/classify", Form::Inputs, vec!["a: b".to_owned()]).unwrap();
        let text = Text { text: "\"é\"".to_owned(), tokens: 5 };
        let request = String::from_utf8(target.request(&text)).unwrap();
        assert_eq!(
            request,
            "POST /v1/classify HTTP/1.1\r\nhost: 127.0.0.1:80\r\ncontent-type: application/json\r\n\
             content-length: 19\r\na: b\r\n\r\n{\"inputs\":\"\\\"é\\\"\"}"
        );
        assert!(Target::parse("localhost", Form::Text, Vec::new()).is_err());
    }
}
