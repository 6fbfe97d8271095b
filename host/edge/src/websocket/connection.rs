//! An open WebSocket, between its client and the gateway's request and response.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use http_body::Frame;
use http_body_util::BodyExt;
use metrics::{counter, gauge};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use weir_runtime::gateway;
use weir_websocket::{Agreement, CloseFrame, Config, Error as SocketError, Message, Role, Traffic, WebSocket, close};

use crate::body::OpenRequest;

/// Most bytes in a message of a client, decompressed; the gateway's own messages are smaller.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Most bytes in a message of the gateway: an event with its envelope is smaller.
const LINE_BYTES_MAX: usize = 4 << 20;
/// The read buffer of a WebSocket: small, since most messages are small and there may be many WebSockets.
const READ_BYTES: usize = 4096;
/// Shortest message that is compressed, bytes: shorter ones gain little.
const DEFLATE_BYTES_MIN: usize = 128;
/// How often a client is pinged; one that sends nothing for twice as long is disconnected.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// How long closing may take, in each direction.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The gateway's side of a WebSocket, until the connection is upgraded.
pub(crate) struct Upgrade {
    body: gateway::ResponseBody,
    to_gateway: mpsc::Sender<Bytes>,
    has_input_end: bool,
    deflate: Option<Agreement>,
    _open: Option<OpenRequest>,
}

impl Upgrade {
    /// With `has_input_end` an empty message ends the client's input, and the rest of the response follows. Messages are compressed by the
    /// agreement `deflate`.
    pub(crate) fn new(
        body: gateway::ResponseBody,
        to_gateway: mpsc::Sender<Bytes>,
        has_input_end: bool,
        deflate: Option<Agreement>,
        open: Option<OpenRequest>,
    ) -> Self {
        Self { body, to_gateway, has_input_end, deflate, _open: open }
    }

    /// Serves the upgraded connection until either side closes it, or `closing` is true. `read` are the bytes that were
    /// already read from it.
    pub(crate) async fn run<S>(self: Box<Self>, stream: S, read: Bytes, closing: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Self { body, to_gateway, has_input_end, deflate, _open } = *self;
        let config = Config {
            message_bytes_max: MESSAGE_BYTES_MAX,
            read_bytes: READ_BYTES,
            deflate,
            deflate_bytes_min: DEFLATE_BYTES_MIN,
        };
        let connection = Connection {
            socket: WebSocket::new(stream, Role::Server, config, &read),
            counted: Traffic::default(),
            body,
            lines: Lines::default(),
            last_received: Instant::now(),
            has_input_end,
        };
        gauge!("weir_websockets_open").increment(1);
        let compressed = gauge!("weir_websockets_compressed_open");
        compressed.increment(f64::from(u8::from(deflate.is_some())));
        connection.run(to_gateway, closing).await;
        compressed.decrement(f64::from(u8::from(deflate.is_some())));
        gauge!("weir_websockets_open").decrement(1);
    }
}

/// A socket and the gateway's response.
struct Connection<S> {
    socket: WebSocket<S>,
    /// The traffic that the metrics have.
    counted: Traffic,
    body: gateway::ResponseBody,
    lines: Lines,
    /// When the client last sent a frame.
    last_received: Instant,
    /// An empty message ends the input.
    has_input_end: bool,
}

/// Why a connection ends.
enum ConnectionEnd {
    /// The connection is lost.
    Disconnected,
    /// The client has sent a close frame.
    Closed,
    /// The host closes it, with this code and reason.
    Close(u16, String),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<S> {
    async fn run(mut self, to_gateway: mpsc::Sender<Bytes>, closing: watch::Receiver<bool>) {
        let frame = match self.transfer(to_gateway, closing).await {
            ConnectionEnd::Disconnected => None,
            ConnectionEnd::Closed => Some(None),
            ConnectionEnd::Close(code, reason) => Some(Some(CloseFrame { code, reason })),
        };
        if let Some(frame) = frame {
            // Until the client's close frame, or the end of its direction.
            let _ = tokio::time::timeout(CLOSE_TIMEOUT, self.socket.close(frame.as_ref())).await;
        }
        self.count();
        // The end of the request's body makes the gateway end its response.
        let rest = async { while let Some(Ok(_)) = self.body.frame().await {} };
        let _ = tokio::time::timeout(CLOSE_TIMEOUT, rest).await;
    }

    /// Transfers messages in both directions until the connection ends.
    async fn transfer(&mut self, to_gateway: mpsc::Sender<Bytes>, mut closing: watch::Receiver<bool>) -> ConnectionEnd {
        let mut ping = tokio::time::interval_at(Instant::now() + PING_INTERVAL, PING_INTERVAL);
        // None after the end of the input.
        let mut to_gateway = Some(to_gateway);
        let mut room = None;
        loop {
            let may_read = room.is_some() || to_gateway.is_none();
            tokio::select! {
                // Reads from the client only while the gateway has room for a message.
                reserved = reserve(to_gateway.clone()), if !may_read => match reserved {
                    Some(permit) => room = Some(permit),
                    // The gateway reads no more messages; its response ends by itself.
                    None => return self.finish().await,
                },
                message = self.socket.next(), if may_read => {
                    self.last_received = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => match line(&text) {
                            Some(_) if to_gateway.is_none() => return close(close::POLICY, "the input has ended"),
                            Some(line) => {
                                if let Some(room) = room.take() {
                                    room.send(line);
                                }
                            }
                            // The gateway's response ends when everything is answered.
                            None if self.has_input_end && text.is_empty() => (to_gateway, room) = (None, None),
                            None => {}
                        },
                        Some(Ok(Message::Binary(_))) => return close(close::UNSUPPORTED, "messages are text"),
                        Some(Ok(Message::Ping(_) | Message::Pong(_))) => {
                            // A pong waits for the next write.
                            if self.socket.flush().await.is_err() {
                                return ConnectionEnd::Disconnected;
                            }
                        }
                        Some(Ok(Message::Close(_))) => return ConnectionEnd::Closed,
                        Some(Err(error)) => match error.close_code() {
                            Some(code) => return close(code, &error.to_string()),
                            None => return ConnectionEnd::Disconnected,
                        },
                        None => return ConnectionEnd::Disconnected,
                    }
                }
                frame = self.body.frame() => match frame {
                    Some(Ok(frame)) => {
                        if self.send(frame).await.is_err() {
                            return ConnectionEnd::Disconnected;
                        }
                    }
                    Some(Err(_)) => return close(close::ERROR, "the server lost this connection"),
                    None => return close(close::NORMAL, ""),
                },
                now = ping.tick() => {
                    if may_read && now.duration_since(self.last_received) > PING_INTERVAL * 2 {
                        return ConnectionEnd::Disconnected;
                    }
                    if self.socket.traffic().sent_content_bytes == self.counted.sent_content_bytes {
                        // Nothing was sent since the last ping: an idle connection holds no compressor.
                        self.socket.release();
                    }
                    self.count();
                    if self.socket.ping(b"").await.is_err() {
                        return ConnectionEnd::Disconnected;
                    }
                }
                () = is_true(&mut closing) => {
                    return close(close::AWAY, "the server is stopping");
                }
            }
        }
    }

    /// Sends the rest of the gateway's response, after the gateway has stopped reading.
    async fn finish(&mut self) -> ConnectionEnd {
        let rest = async {
            loop {
                match self.body.frame().await {
                    Some(Ok(frame)) => {
                        if self.send(frame).await.is_err() {
                            return ConnectionEnd::Disconnected;
                        }
                    }
                    Some(Err(_)) => return close(close::ERROR, "the server lost this connection"),
                    None => return close(close::NORMAL, ""),
                }
            }
        };
        let late = close(close::ERROR, "the server did not finish in time");
        tokio::time::timeout(CLOSE_TIMEOUT, rest).await.unwrap_or(late)
    }

    /// Adds the traffic since the last call to the metrics.
    fn count(&mut self) {
        let (now, before) = (self.socket.traffic(), std::mem::replace(&mut self.counted, self.socket.traffic()));
        let count = |name, direction, now, before| counter!(name, "direction" => direction).increment(now - before);
        const CONTENT: &str = "weir_websocket_message_bytes_total";
        const PAYLOAD: &str = "weir_websocket_payload_bytes_total";
        count(CONTENT, "in", now.received_content_bytes, before.received_content_bytes);
        count(PAYLOAD, "in", now.received_payload_bytes, before.received_payload_bytes);
        count(CONTENT, "out", now.sent_content_bytes, before.sent_content_bytes);
        count(PAYLOAD, "out", now.sent_payload_bytes, before.sent_payload_bytes);
    }

    /// Sends the lines that a piece of the response completes, with one flush.
    async fn send(&mut self, frame: Frame<Bytes>) -> Result<(), SocketError> {
        let Ok(piece) = frame.into_data() else { return Ok(()) };
        let mut any = false;
        if self.lines.push(&piece).is_err() {
            let reason = format!("the gateway's message has more than {LINE_BYTES_MAX} bytes");
            return Err(SocketError::Io(std::io::Error::new(std::io::ErrorKind::InvalidData, reason)));
        }
        while let Some(line) = self.lines.next_line() {
            self.socket.feed(&line).await?;
            any = true;
        }
        if any { self.socket.flush().await } else { Ok(()) }
    }
}

/// The end of a connection that the host closes.
fn close(code: u16, reason: &str) -> ConnectionEnd {
    ConnectionEnd::Close(code, reason.to_owned())
}

/// Waits until the gateway has room for a message; `None` when it reads no more.
async fn reserve(to_gateway: Option<mpsc::Sender<Bytes>>) -> Option<mpsc::OwnedPermit<Bytes>> {
    to_gateway?.reserve_owned().await.ok()
}

/// A message as a line: its line ends are replaced by spaces, which are equivalent in JSON. `None` for a blank message.
fn line(message: &str) -> Option<Bytes> {
    if message.trim().is_empty() {
        return None;
    }
    let mut line = BytesMut::with_capacity(message.len() + 1);
    line.extend(message.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    line.extend_from_slice(b"\n");
    Some(line.freeze())
}

/// Splits the gateway's response into lines.
#[derive(Default)]
struct Lines {
    partial: BytesMut,
    /// The bytes at the beginning that have no line end.
    scanned: usize,
}

/// A line is longer than [`LINE_BYTES_MAX`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct LineTooLong;

impl Lines {
    /// Adds a piece. All lines of earlier pieces must have been taken.
    fn push(&mut self, piece: &[u8]) -> Result<(), LineTooLong> {
        let rest = piece.iter().position(|byte| *byte == b'\n').unwrap_or(piece.len());
        if self.partial.len() + rest > LINE_BYTES_MAX {
            return Err(LineTooLong);
        }
        self.partial.extend_from_slice(piece);
        Ok(())
    }

    fn next_line(&mut self) -> Option<String> {
        let Some(end) = self.partial[self.scanned..].iter().position(|byte| *byte == b'\n') else {
            self.scanned = self.partial.len();
            return None;
        };
        let line = self.partial.split_to(self.scanned + end);
        self.partial.advance(1);
        self.scanned = 0;
        // The gateway writes JSON, which is UTF-8.
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Resolves when the flag is true, or its sender is dropped.
async fn is_true(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_becomes_one_line() {
        assert_eq!(line("{\n\"a\":\r\n1}").as_deref(), Some(&b"{ \"a\":  1}\n"[..]));
        assert_eq!(line(" \n "), None);
    }

    #[test]
    fn lines_are_joined_from_pieces() {
        let mut lines = Lines::default();
        lines.push(b"{\"a\"").unwrap();
        assert_eq!(lines.next_line(), None);
        lines.push(b":1}\n{}\n{").unwrap();
        assert_eq!(lines.next_line().as_deref(), Some("{\"a\":1}"));
        assert_eq!(lines.next_line().as_deref(), Some("{}"));
        assert_eq!(lines.next_line(), None);
    }

    #[test]
    fn line_without_an_end_is_bounded() {
        let mut lines = Lines::default();
        let piece = vec![b'x'; LINE_BYTES_MAX / 4];
        for _ in 0..4 {
            lines.push(&piece).unwrap();
            assert_eq!(lines.next_line(), None);
            assert_eq!(lines.scanned, lines.partial.len(), "no byte is scanned twice");
        }
        assert_eq!(lines.push(b"x"), Err(LineTooLong));
        lines.push(b"\nb\n").unwrap();
        assert_eq!(lines.next_line().map(|line| line.len()), Some(LINE_BYTES_MAX));
        assert_eq!(lines.next_line().as_deref(), Some("b"));
    }
}
