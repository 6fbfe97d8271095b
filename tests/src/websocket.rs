//! A WebSocket (RFC 6455) without extensions, as a test writes and reads it.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::{PATIENCE, Server};

/// Frames are masked with zeros, so that their bytes are those of the message.
const MASKED: u8 = 0x80;
const FINAL_TEXT: u8 = 0x81;
const CLOSE: u8 = 8;

/// An open WebSocket.
pub struct WebSocket {
    /// What the server sends.
    pub reader: Reader,
    /// What the client sends.
    pub writer: Writer,
}

/// The side of the server.
pub struct Reader(OwnedReadHalf);

/// The side of the client.
pub struct Writer(OwnedWriteHalf);

/// A frame of the server.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// A message.
    Text(String),
    /// The end, with its code.
    Close(u16),
}

impl WebSocket {
    /// Opens a socket at a path; a key or token is optional. Returns the status of a refusal otherwise.
    pub async fn open(server: &Server, path: &str, key: Option<&str>) -> Result<Result<Self, u16>> {
        let mut stream = TcpStream::connect(server.address()).await?;
        let authorization = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{authorization}\r\n",
            server.address()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            answer.push(timely(stream.read_u8()).await?);
        }
        let answer = String::from_utf8(answer)?;
        let status: u16 = answer.split(' ').nth(1).context("no status")?.parse()?;
        if status != 101 {
            return Ok(Err(status));
        }
        let (reader, writer) = stream.into_split();
        Ok(Ok(Self { reader: Reader(reader), writer: Writer(writer) }))
    }

    /// Opens a socket, which must not be refused.
    pub async fn connect(server: &Server, path: &str, key: Option<&str>) -> Result<Self> {
        Self::open(server, path, key).await?.map_err(|status| anyhow::anyhow!("{path} was refused with {status}"))
    }

    /// Sends a message of less than 64 KiB.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        self.writer.send(text).await
    }

    /// The next frame with something in it.
    pub async fn next(&mut self) -> Result<Frame> {
        self.reader.next().await
    }

    /// The next message that is no heartbeat, as JSON.
    pub async fn message(&mut self) -> Result<Value> {
        loop {
            match self.next().await? {
                Frame::Text(text) => {
                    let message: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
                    if message["type"] != "heartbeat" {
                        return Ok(message);
                    }
                }
                Frame::Close(code) => bail!("the socket was closed with {code}"),
            }
        }
    }
}

impl Writer {
    /// Sends a message of less than 64 KiB.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        let mut frame = vec![FINAL_TEXT];
        match u8::try_from(text.len()).ok().filter(|bytes| *bytes < 126) {
            Some(bytes) => frame.push(MASKED | bytes),
            None => {
                frame.push(MASKED | 126);
                frame.extend(u16::try_from(text.len())?.to_be_bytes());
            }
        }
        frame.extend([0; 4]);
        frame.extend(text.as_bytes());
        Ok(self.0.write_all(&frame).await?)
    }
}

impl Reader {
    /// The next frame with something in it.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            let [first, second] = timely(self.0.read_u16()).await?.to_be_bytes();
            ensure!(second & MASKED == 0, "a masked frame of a server");
            let bytes = match second {
                126 => u64::from(timely(self.0.read_u16()).await?),
                127 => timely(self.0.read_u64()).await?,
                bytes => u64::from(bytes),
            };
            let mut body = vec![0; usize::try_from(bytes)?];
            timely(self.0.read_exact(&mut body)).await?;
            match first & 15 {
                1 => return Ok(Frame::Text(String::from_utf8(body)?)),
                CLOSE => return Ok(Frame::Close(body.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)))),
                9 | 10 => {}
                other => bail!("a frame of the kind {other}"),
            }
        }
    }
}

async fn timely<T>(reading: impl Future<Output = std::io::Result<T>>) -> Result<T> {
    Ok(tokio::time::timeout(PATIENCE, reading).await.context("nothing in time")??)
}
