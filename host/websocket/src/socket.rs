//! A connection.

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::decoder::Decoder;
use crate::encoder::Encoder;
use crate::frame::{CONTROL_BYTES_MAX, Opcode};
use crate::{CloseFrame, Config, Error, Message, Role};

/// Messages that wait for a flush are written beyond this size, bytes.
const WRITE_BYTES: usize = 16 << 10;
/// Most bytes of a peer that are discarded after the close frames; further ones reset the connection.
const DISCARDED_BYTES_MAX: usize = 4 << 20;

/// A WebSocket after its handshake, over a connection of bytes.
///
/// [`WebSocket::next`] may be cancelled; writes may be cancelled if nothing is written afterwards.
pub struct WebSocket<S> {
    stream: S,
    role: Role,
    config: Config,
    decoder: Decoder,
    encoder: Encoder,
    input: BytesMut,
    output: BytesMut,
    /// A close frame was sent, or waits in the output: nothing may follow it.
    has_closed: bool,
    /// The peer has sent a close frame or an invalid frame, or the connection is lost: nothing is read any more.
    has_ended: bool,
    traffic: Traffic,
}

/// Bytes of messages, control frames excluded.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of the messages that were received.
    pub received_content_bytes: u64,
    /// Bytes of their payloads, which may be compressed.
    pub received_payload_bytes: u64,
    /// Bytes of the messages that were sent.
    pub sent_content_bytes: u64,
    /// Bytes of their payloads, which may be compressed.
    pub sent_payload_bytes: u64,
}

impl<S: AsyncRead + AsyncWrite + Unpin> WebSocket<S> {
    /// A connection whose handshake is complete. `read` are bytes of the peer that were read after its handshake.
    pub fn new(stream: S, role: Role, config: Config, read: &[u8]) -> Self {
        Self {
            stream,
            role,
            config,
            decoder: Decoder::new(role, &config),
            encoder: Encoder::new(role, &config),
            input: BytesMut::from(read),
            output: BytesMut::new(),
            has_closed: false,
            has_ended: false,
            traffic: Traffic::default(),
        }
    }

    /// The next message. None after a close frame, an error, or the end of a connection that was closed.
    pub async fn next(&mut self) -> Option<Result<Message, Error>> {
        loop {
            if self.has_ended {
                return None;
            }
            match self.decoder.decode(&mut self.input) {
                Ok(Some(message)) => {
                    self.handle(&message);
                    return Some(Ok(message));
                }
                Ok(None) => {}
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(error));
                }
            }
            if self.input.is_empty() && self.input.capacity() > self.config.read_bytes {
                self.input = BytesMut::new();
            }
            self.input.reserve(self.config.read_bytes);
            // Not more than one read at once, whatever the capacity is.
            match (&mut self.stream).take(self.config.read_bytes as u64).read_buf(&mut self.input).await {
                Ok(0) => {
                    self.has_ended = true;
                    return match self.has_closed {
                        true => None,
                        false => Some(Err(Error::Io(std::io::ErrorKind::UnexpectedEof.into()))),
                    };
                }
                Ok(_) => {}
                Err(error) => {
                    self.has_ended = true;
                    return Some(Err(Error::Io(error)));
                }
            }
        }
    }

    /// Answers pings and close frames.
    fn handle(&mut self, message: &Message) {
        self.traffic.received_payload_bytes = self.decoder.payload_bytes();
        match message {
            Message::Text(text) => self.traffic.received_content_bytes += text.len() as u64,
            Message::Binary(content) => self.traffic.received_content_bytes += content.len() as u64,
            // A peer that sends pings and reads nothing gets no pongs beyond this (RFC 6455, section 5.5.3).
            Message::Ping(payload) if !self.has_closed && self.output.len() < WRITE_BYTES => {
                self.encoder.control(Opcode::Pong, payload, &mut self.output);
            }
            Message::Ping(_) | Message::Pong(_) => {}
            Message::Close(frame) => {
                self.has_ended = true;
                // The code of the peer is its answer too; its reason is not repeated.
                self.put_close(frame.as_ref().map(|frame| (frame.code, "")));
            }
        }
    }

    /// Adds a text to the output, and writes the output if it is long.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn feed(&mut self, text: &str) -> Result<(), Error> {
        self.put(true, text.as_bytes()).await
    }

    /// Like [`WebSocket::feed`], for bytes.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn feed_binary(&mut self, content: &[u8]) -> Result<(), Error> {
        self.put(false, content).await
    }

    /// Writes a text.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn send(&mut self, text: &str) -> Result<(), Error> {
        self.put(true, text.as_bytes()).await?;
        self.flush().await
    }

    /// Writes a ping; at most 125 bytes of its payload.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn ping(&mut self, payload: &[u8]) -> Result<(), Error> {
        if !self.has_closed {
            self.encoder.control(Opcode::Ping, payload, &mut self.output);
        }
        self.flush().await
    }

    /// Drops the context of the compressor, so that an idle connection does not hold it: the next message is compressed without it.
    pub fn release(&mut self) {
        self.encoder.release();
    }

    /// The traffic of this connection so far.
    pub fn traffic(&self) -> Traffic {
        self.traffic
    }

    async fn put(&mut self, is_text: bool, content: &[u8]) -> Result<(), Error> {
        if self.has_closed {
            return Ok(());
        }
        self.encoder.message(is_text, content, &mut self.output);
        self.traffic.sent_content_bytes += content.len() as u64;
        self.traffic.sent_payload_bytes = self.encoder.payload_bytes();
        if self.output.len() >= WRITE_BYTES { self.write().await } else { Ok(()) }
    }

    /// Writes what waits.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn flush(&mut self) -> Result<(), Error> {
        self.write().await?;
        Ok(self.stream.flush().await?)
    }

    async fn write(&mut self) -> Result<(), Error> {
        while self.output.has_remaining() {
            if self.stream.write_buf(&mut self.output).await? == 0 {
                return Err(Error::Io(std::io::ErrorKind::WriteZero.into()));
            }
        }
        if self.output.capacity() > WRITE_BYTES {
            self.output = BytesMut::new();
        }
        Ok(())
    }

    fn put_close(&mut self, content: Option<(u16, &str)>) {
        if self.has_closed {
            return;
        }
        let mut payload = Vec::new();
        if let Some((code, reason)) = content {
            payload.extend(code.to_be_bytes());
            payload.extend(reason.as_bytes());
            // Whole characters only.
            let mut ends = (0..=payload.len().min(CONTROL_BYTES_MAX)).rev();
            payload.truncate(ends.find(|end| *end < 2 || reason.is_char_boundary(end - 2)).unwrap_or(0));
        }
        self.encoder.control(Opcode::Close, &payload, &mut self.output);
        self.has_closed = true;
    }

    /// Closes the connection: writes a close frame if none was sent, waits for that of the peer, and ends the connection so that the peer
    /// receives everything (RFC 6455, section 7.1.1). It takes as long as the peer wants; the caller bounds the time.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn close(&mut self, frame: Option<&CloseFrame>) -> Result<(), Error> {
        self.put_close(frame.map(|frame| (frame.code, frame.reason.as_str())));
        self.flush().await?;
        while let Some(Ok(_)) = self.next().await {}
        // A server ends its direction first. A connection with unread bytes would be reset, and the peer might lose the close frame.
        if self.role == Role::Server {
            self.stream.shutdown().await?;
        }
        let mut discarded = 0;
        while discarded < DISCARDED_BYTES_MAX {
            self.input.clear();
            self.input.reserve(self.config.read_bytes);
            match self.stream.read_buf(&mut self.input).await? {
                0 => break,
                bytes => discarded += bytes,
            }
        }
        Ok(self.stream.shutdown().await?)
    }
}
