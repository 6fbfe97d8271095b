//! WebSockets. The host ends them: to the gateway component a socket is a request with a line for each message of the client's, whose
//! answer has a line for each message to it. So the component knows nothing of frames, and what it decides (who may, what is
//! followed) holds under every host.

use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;
use metrics::gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::Error as SocketError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use weir_runtime::gateway::{self, CountedBody};

use crate::body::{Open, ReplyBody};
use crate::server::Answer;

/// Where the paths of sockets begin.
const PATH: &str = "/ws";
/// The most bytes in a message of the client's; the gateway's bound for what it says is below this.
const MESSAGE_BYTES_MAX: usize = 256 << 10;
/// Messages on their way to the gateway.
const MESSAGES_MAX: usize = 16;
/// Bytes that a socket reads at once: most messages are small, and there are many sockets.
const READ_BYTES: usize = 4096;
/// How often a client is asked whether it is there; it is not when it has said nothing for twice as long.
const PING: Duration = Duration::from_secs(20);
/// How long the last words of either side may take.
const LAST_WORDS: Duration = Duration::from_secs(5);

/// Headers of one hop, and those of the handshake, which end here.
const OF_THE_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::UPGRADE,
    header::SEC_WEBSOCKET_KEY,
    header::SEC_WEBSOCKET_VERSION,
    header::SEC_WEBSOCKET_EXTENSIONS,
    header::SEC_WEBSOCKET_PROTOCOL,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    header::EXPECT,
];

/// Whether a request asks for a WebSocket. One that asks badly is answered by the gateway, as any other.
pub(crate) fn asked_for<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    let is_path = path.strip_prefix(PATH).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
    is_path
        && request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && names(request.headers(), &header::CONNECTION, "upgrade")
        && names(request.headers(), &header::UPGRADE, "websocket")
        && request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
}

/// Whether a list in a header has a word.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// A socket that is asked for.
pub(crate) struct Handshake {
    accept: String,
    to_gateway: mpsc::Sender<Bytes>,
}

impl Handshake {
    /// Takes a request apart: what the gateway is asked, and what becomes of its answer. None when the version is not ours.
    pub(crate) fn begin(request: Request<Incoming>) -> Option<(Self, gateway::Request)> {
        let headers = request.headers();
        if headers.get(header::SEC_WEBSOCKET_VERSION).map(HeaderValue::as_bytes) != Some(b"13") {
            return None;
        }
        let accept = derive_accept_key(headers.get(header::SEC_WEBSOCKET_KEY)?.as_bytes());
        let (mut parts, _) = request.into_parts();
        for name in OF_THE_HOP {
            parts.headers.remove(name);
        }
        const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
        parts.headers.insert(header::CONTENT_TYPE, NDJSON);
        parts.headers.insert(header::ACCEPT, NDJSON);
        parts.method = Method::POST;
        // The upgrade lies with its extensions.
        parts.extensions.clear();
        let (to_gateway, messages) = mpsc::channel(MESSAGES_MAX);
        let lines = futures::stream::unfold(messages, |mut messages: mpsc::Receiver<Bytes>| async {
            let line = messages.recv().await?;
            Some((Ok(Frame::data(line)), messages))
        });
        let body = gateway::request_body(StreamBody::new(Box::pin(lines)));
        Some((Self { accept, to_gateway }, Request::from_parts(parts, body)))
    }

    /// Turns the gateway's answer into the end of the handshake; one that is no stream of lines goes to the client as it is.
    pub(crate) fn answer(self, answer: gateway::Response, open: Option<Open>) -> Answer {
        if answer.status() != StatusCode::OK {
            return Answer::Whole(answer.map(|body| ReplyBody::Streamed { body: Box::new(body), _open: open }));
        }
        let (parts, body) = answer.into_parts();
        let mut response = Response::new(ReplyBody::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        if let Some(id) = parts.headers.get(crate::answer::REQUEST_ID) {
            headers.insert(crate::answer::REQUEST_ID, id.clone());
        }
        Answer::Socket(response, Box::new(Talk { body, to_gateway: self.to_gateway, _open: open }))
    }
}

/// What is said over a socket: the gateway's side, until there is a connection for it.
pub(crate) struct Talk {
    body: CountedBody,
    to_gateway: mpsc::Sender<Bytes>,
    _open: Option<Open>,
}

impl Talk {
    /// Talks over a connection until either side has said its last. `read` was read of it before.
    pub(crate) async fn run<S>(self: Box<Self>, stream: S, read: Bytes, leaving: watch::Receiver<bool>)
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let config = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(MESSAGE_BYTES_MAX))
            .max_frame_size(Some(MESSAGE_BYTES_MAX));
        let socket = WebSocketStream::from_partially_read(stream, read.to_vec(), Role::Server, Some(config)).await;
        let Self { body, to_gateway, _open } = *self;
        gauge!("weir_websockets_open").increment(1);
        Talking { socket, body, lines: Lines::default(), heard: Instant::now() }.run(to_gateway, leaving).await;
        gauge!("weir_websockets_open").decrement(1);
    }
}

/// A socket and the gateway's answer.
struct Talking<S> {
    socket: WebSocketStream<S>,
    body: CountedBody,
    lines: Lines,
    /// When the client last said anything.
    heard: Instant,
}

/// Why a talk is over.
enum Over {
    /// The client has left, or said that it will.
    Left,
    /// The gateway has no more to say, or we end it: with this code and reason.
    Closing(CloseCode, &'static str),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talking<S> {
    async fn run(mut self, to_gateway: mpsc::Sender<Bytes>, leaving: watch::Receiver<bool>) {
        match self.talk(to_gateway, leaving).await {
            Over::Left => {}
            Over::Closing(code, reason) => {
                let close = async {
                    let frame = CloseFrame { code, reason: reason.into() };
                    if self.socket.close(Some(frame)).await.is_ok() {
                        // Until the client has said the same.
                        while let Some(Ok(_)) = self.socket.next().await {}
                    }
                };
                let _ = tokio::time::timeout(LAST_WORDS, close).await;
            }
        }
        // The gateway has seen the end of its request, and does what is to be done then.
        let rest = async { while let Some(Ok(_)) = self.body.frame().await {} };
        let _ = tokio::time::timeout(LAST_WORDS, rest).await;
    }

    async fn talk(&mut self, to_gateway: mpsc::Sender<Bytes>, mut leaving: watch::Receiver<bool>) -> Over {
        let mut ping = tokio::time::interval_at(Instant::now() + PING, PING);
        let mut room = None;
        loop {
            tokio::select! {
                // Nothing is read from the client while the gateway has no room for it.
                reserved = to_gateway.reserve(), if room.is_none() => match reserved {
                    Ok(permit) => room = Some(permit),
                    // It hears nothing more, and what it still has to say comes to an end by itself.
                    Err(_) => return self.finish().await,
                },
                message = self.socket.next(), if room.is_some() => {
                    self.heard = Instant::now();
                    match message {
                        Some(Ok(Message::Text(text))) => {
                            if let (Some(line), Some(room)) = (line(text.as_str()), room.take()) {
                                room.send(line);
                            }
                        }
                        Some(Ok(Message::Binary(_))) => {
                            return Over::Closing(CloseCode::Unsupported, "messages are text");
                        }
                        Some(Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_))) => {
                            // Pings are answered by the library, with what is written next.
                            if self.socket.flush().await.is_err() {
                                return Over::Left;
                            }
                        }
                        Some(Ok(Message::Close(_))) => {
                            let _ = tokio::time::timeout(LAST_WORDS, self.socket.flush()).await;
                            return Over::Left;
                        }
                        Some(Err(SocketError::Capacity(_))) => {
                            return Over::Closing(CloseCode::Size, "the message is too long");
                        }
                        Some(Err(SocketError::Utf8(_))) => {
                            return Over::Closing(CloseCode::Invalid, "the message is not UTF-8");
                        }
                        Some(Err(SocketError::Protocol(_))) => {
                            return Over::Closing(CloseCode::Protocol, "that was no frame");
                        }
                        Some(Err(_)) | None => return Over::Left,
                    }
                }
                frame = self.body.frame() => match frame {
                    Some(Ok(frame)) => {
                        if self.say(frame).await.is_err() {
                            return Over::Left;
                        }
                    }
                    Some(Err(_)) => return Over::Closing(CloseCode::Error, "the server lost this connection"),
                    None => return Over::Closing(CloseCode::Normal, ""),
                },
                now = ping.tick() => {
                    if room.is_some() && now.duration_since(self.heard) > PING * 2 {
                        return Over::Left;
                    }
                    if self.socket.send(Message::Ping(Bytes::new())).await.is_err() {
                        return Over::Left;
                    }
                }
                () = is_true(&mut leaving) => {
                    return Over::Closing(CloseCode::Away, "the server is stopping");
                }
            }
        }
    }

    /// Says what the gateway still says, when it does not listen any more.
    async fn finish(&mut self) -> Over {
        let rest = async {
            loop {
                match self.body.frame().await {
                    Some(Ok(frame)) => {
                        if self.say(frame).await.is_err() {
                            return Over::Left;
                        }
                    }
                    Some(Err(_)) => return Over::Closing(CloseCode::Error, "the server lost this connection"),
                    None => return Over::Closing(CloseCode::Normal, ""),
                }
            }
        };
        let late = Over::Closing(CloseCode::Error, "the server did not finish in time");
        tokio::time::timeout(LAST_WORDS, rest).await.unwrap_or(late)
    }

    /// Sends the lines that end in a piece of the answer, as few writes as they fit in.
    async fn say(&mut self, frame: Frame<Bytes>) -> Result<(), SocketError> {
        let Ok(piece) = frame.into_data() else { return Ok(()) };
        let mut any = false;
        self.lines.push(&piece);
        while let Some(line) = self.lines.next_line() {
            self.socket.feed(Message::text(line)).await?;
            any = true;
        }
        if any { self.socket.flush().await } else { Ok(()) }
    }
}

/// A message as a line: its ends of line are white space of JSON. None for one without a word.
fn line(message: &str) -> Option<Bytes> {
    if message.trim().is_empty() {
        return None;
    }
    let mut line = BytesMut::with_capacity(message.len() + 1);
    line.extend(message.bytes().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte }));
    line.extend_from_slice(b"\n");
    Some(line.freeze())
}

/// The gateway's answer in lines.
#[derive(Default)]
struct Lines {
    begun: BytesMut,
}

impl Lines {
    fn push(&mut self, piece: &[u8]) {
        self.begun.extend_from_slice(piece);
    }

    fn next_line(&mut self) -> Option<String> {
        let end = self.begun.iter().position(|byte| *byte == b'\n')?;
        let line = self.begun.split_to(end);
        self.begun.advance(1);
        // What the gateway writes is JSON, and JSON is UTF-8.
        Some(String::from_utf8_lossy(&line).into_owned())
    }
}

/// Resolves when it is true, or nobody can say any more.
async fn is_true(flag: &mut watch::Receiver<bool>) {
    let _ = flag.wait_for(|flag| *flag).await;
}

/// What a client is told that speaks another version.
pub(crate) fn other_version(mut response: Response<ReplyBody>) -> Response<ReplyBody> {
    response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line() {
        assert_eq!(line("{\n\"a\":\r\n1}").as_deref(), Some(&b"{ \"a\":  1}\n"[..]));
        assert_eq!(line(" \n "), None);
    }

    #[test]
    fn lines_are_put_together_from_pieces() {
        let mut lines = Lines::default();
        lines.push(b"{\"a\"");
        assert_eq!(lines.next_line(), None);
        lines.push(b":1}\n{}\n{");
        assert_eq!(lines.next_line().as_deref(), Some("{\"a\":1}"));
        assert_eq!(lines.next_line().as_deref(), Some("{}"));
        assert_eq!(lines.next_line(), None);
    }

    #[test]
    fn only_an_upgrade_of_a_socket_is_one() {
        let request = |path: &str, connection: &str, upgrade: &str| {
            let request = Request::get(path).header("connection", connection).header("upgrade", upgrade);
            request.header("sec-websocket-key", "k").body(()).expect("a request")
        };
        assert!(asked_for(&request("/ws", "keep-alive, Upgrade", "WebSocket")));
        assert!(asked_for(&request("/ws/workflow/1", "upgrade", "websocket")));
        assert!(!asked_for(&request("/wsx", "upgrade", "websocket")));
        assert!(!asked_for(&request("/stream/workflow/1", "upgrade", "websocket")));
        assert!(!asked_for(&request("/ws", "close", "websocket")));
        assert!(!asked_for(&request("/ws", "upgrade", "h2c")));
    }
}
