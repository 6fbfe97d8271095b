//! A client of WebSockets (RFC 6455) without extensions.

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
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
        let authorization = key.map(|key| format!("Authorization: Bearer {key}\r\n")).unwrap_or_default();
        let (stream, response) = handshake(server, path, &authorization).await?;
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

    /// Sends a message.
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
    /// Sends a message.
    pub async fn send(&mut self, text: &str) -> Result<()> {
        Ok(self.0.write_all(&frame_bytes(FINAL_TEXT, text.as_bytes())).await?)
    }
}

impl Reader {
    /// The next text or close frame; pings and pongs are skipped.
    pub async fn next(&mut self) -> Result<Frame> {
        loop {
            let (first, body) = read_frame(&mut self.0).await?;
            match first & 15 {
                1 => return Ok(Frame::Text(String::from_utf8(body)?)),
                CLOSE => return Ok(Frame::Close(body.first_chunk().map_or(1005, |code| u16::from_be_bytes(*code)))),
                9 | 10 => {}
                other => bail!("a frame with opcode {other}"),
            }
        }
    }
}

/// Sends a handshake with additional headers, each with a line end. Returns the connection and the head of the response.
pub async fn handshake(server: &Server, path: &str, headers: &str) -> Result<(TcpStream, String)> {
    let mut stream = TcpStream::connect(server.address()).await?;
    let head = format!(
        "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{headers}\r\n",
        server.address()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut response = Vec::new();
    while !response.ends_with(b"\r\n\r\n") {
        response.push(within_timeout(stream.read_u8()).await?);
    }
    Ok((stream, String::from_utf8(response)?))
}

/// A frame of a client. `first` is its first byte: flags and opcode.
pub fn frame_bytes(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match payload.len() {
        length @ 0..126 => frame.push(MASKED | length as u8),
        length => {
            frame.push(MASKED | 127);
            frame.extend((length as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The next frame of a server: its first byte, and its payload.
pub async fn read_frame(reader: &mut (impl AsyncRead + Unpin)) -> Result<(u8, Vec<u8>)> {
    let [first, second] = within_timeout(reader.read_u16()).await?.to_be_bytes();
    ensure!(second & MASKED == 0, "the server sent a masked frame");
    let bytes = match second {
        126 => u64::from(within_timeout(reader.read_u16()).await?),
        127 => within_timeout(reader.read_u64()).await?,
        bytes => u64::from(bytes),
    };
    let mut payload = vec![0; usize::try_from(bytes)?];
    within_timeout(reader.read_exact(&mut payload)).await?;
    Ok((first, payload))
}

async fn within_timeout<T>(reading: impl Future<Output = std::io::Result<T>>) -> Result<T> {
    Ok(tokio::time::timeout(PATIENCE, reading).await.context("no bytes in time")??)
}
