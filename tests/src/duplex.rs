//! A request over HTTP/1.1 whose body is written in pieces while its response is read.

use anyhow::Result;

use crate::{Raw, Server};

/// A request with a chunked body; `raw` reads the response.
pub struct Duplex {
    /// The connection.
    pub raw: Raw,
}

impl Duplex {
    /// Connects and sends the head of a POST of NDJSON.
    pub async fn open(server: &Server, path: &str) -> Result<Self> {
        Self::send_head(Raw::connect(server).await?, path).await
    }

    /// Sends the head of a POST of NDJSON.
    pub async fn send_head(mut raw: Raw, path: &str) -> Result<Self> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n"
        );
        raw.send(head.as_bytes()).await?;
        Ok(Self { raw })
    }

    /// Sends a piece of the body as one chunk.
    pub async fn send(&mut self, piece: &[u8]) -> Result<()> {
        self.raw.send(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
        self.raw.send(piece).await?;
        self.raw.send(b"\r\n").await
    }

    /// Ends the body.
    pub async fn end(&mut self) -> Result<()> {
        self.raw.send(b"0\r\n\r\n").await
    }
}
