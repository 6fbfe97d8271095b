//! A client of WebSockets (RFC 6455) without extensions.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use crate::{PATIENCE, Server};

/// Flag of a masked frame. The mask is zero, so that the bytes of a frame are those of the message.
const MASKED: u8 = 0x80;
const FINAL_TEXT: u8 = 0x81;
const CLOSE: u8 = 8;

/// An open WebSocket.
pub struct WebSocket {
    /// Reads frames of the server.
    pub reader: Reader,
    /// Writes messages of the client.
    pub writer: Writer,
}

/// The read half of a WebSocket.
pub struct Reader(OwnedReadHalf);

/// The write half of a WebSocket.
pub struct Writer(OwnedWriteHalf);

/// A frame of the server.
#[derive(Debug, PartialEq)]
pub enum Frame {
    /// A text message.
    Text(String),
    /// A close frame, with its code; 1005 without one.
    Close(u16),
}

impl WebSocket {
    /// Opens a WebSocket at a path, with an optional API key or token; the HTTP status where the handshake is refused.
    pub async fn open(server: &Server, path: &str, key: Option<&str>) -> Result<Result<Self, u16>> {
        let mut stream = TcpStream::connect(server.address()).await?;
        let authorization = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let head = format!(
            "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
             Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{authorization}\r\n",
            server.address()
        );
        stream.write_all(head.as_bytes()).await?;
        let mut response = Vec::new();
        while !response.ends_with(b"\r\n\r\n") {
            response.push(within_timeout(stream.read_u8()).await?);
        }
        let response = String::from_utf8(response)?;
        let status: u16 = response.split(' ').nth(1).context("no status")?.parse()?;
        if status != 101 {
            return Ok(Err(status));
        }
        let (reader, writer) = stream.into_split();
        Ok(Ok(Self { reader: Reader(reader), writer: Writer(writer) }))
    }

    /// Opens a WebSocket; an error where the handshake is refused.
    pub async fn connect(server: &Server, path: &str, key: Option<&str>) -> Result<Self> {
        Self::open(server, path, key).await?.map_err(|status| anyhow::anyhow!("{path} was refused with {status}"))
    }

    /// Sends a message of less than 64 KiB.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        self.writer.send(text).await
    }

    /// The next text or close frame; pings and pongs are skipped.
    pub async fn next(&mut self) -> Result<Frame> {
        self.reader.next().await
    }

    /// The next message that is not a heartbeat, as JSON.
    pub async fn message(&mut self) -> Result<Value> {
        loop {
            match self.next().await? {
                Frame::Text(text) => {
                    let message: Value = serde_json::from_str(&text).with_context(|| format!("not JSON: {text}"))?;
                    if message["type"] != "heartbeat" {
                        return Ok(message);
                    }
                }
                Frame::Close(code) => bail!("the WebSocket was closed with {code}"),
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
    /// The next text or close frame; pings and pongs are skipped.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            let [first, second] = within_timeout(self.0.read_u16()).await?.to_be_bytes();
            ensure!(second & MASKED == 0, "the server sent a masked frame");
            let bytes = match second {
                126 => u64::from(within_timeout(self.0.read_u16()).await?),
                127 => within_timeout(self.0.read_u64()).await?,
                bytes => u64::from(bytes),
            };
            let mut body = vec![0; usize::try_from(bytes)?];
            within_timeout(self.0.read_exact(&mut body)).await?;
            match first & 15 {
                1 => return Ok(Frame::Text(String::from_utf8(body)?)),
                CLOSE => return Ok(Frame::Close(body.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)))),
                9 | 10 => {}
                other => bail!("a frame with opcode {other}"),
            }
        }
    }
}

async fn within_timeout<T>(reading: impl Future<Output = std::io::Result<T>>) -> Result<T> {
    Ok(tokio::time::timeout(PATIENCE, reading).await.context("no bytes in time")??)
}
