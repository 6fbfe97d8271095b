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
use metrics::gauge;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::Error as SocketError;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};
use weir_codec::http::router::Found;
use weir_runtime::gateway::{self, ResponseBody};

use crate::body::{Open, ReplyBody};
use crate::server::Answer;

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

/// Whether a request asks for a WebSocket, well or badly. What is none to us goes to the gateway, as any other.
pub(crate) fn is_handshake<B>(request: &Request<B>) -> bool {
    Found::is_socket(request.uri().path())
        && request.method() == Method::GET
        && request.version() < Version::HTTP_2
        && (names(request.headers(), &header::UPGRADE, "websocket")
            || request.headers().contains_key(header::SEC_WEBSOCKET_KEY))
}

/// Why a handshake is refused (RFC 6455, section 4.2.1).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HandshakeError {
    /// HTTP/1.0 has no upgrades.
    #[error("a WebSocket needs HTTP/1.1")]
    Http,
    /// `Upgrade` does not name it.
    #[error("`Upgrade` must name `websocket`")]
    Upgrade,
    /// `Connection` does not name the header of its hop.
    #[error("`Connection` must name `upgrade`")]
    Connection,
    /// A body behind the head would be read as frames.
    #[error("a WebSocket handshake has no body")]
    Body,
    /// A header that must be there once is missing or there more often.
    #[error("`{name}` must be there once, and is there {count} times")]
    Count {
        /// The header.
        name: &'static str,
        /// How often it is there.
        count: usize,
    },
    /// The key is not 16 bytes.
    #[error("`Sec-WebSocket-Key` must be 16 bytes in base64, which is 24 characters and ends in `==`")]
    Key,
    /// The version is not 13.
    #[error("WebSockets are served in version 13")]
    Version,
}

/// Checks a handshake; the value of `Sec-WebSocket-Accept`.
fn accept_of<B>(request: &Request<B>) -> Result<String, HandshakeError> {
    let headers = request.headers();
    if request.version() != Version::HTTP_11 {
        return Err(HandshakeError::Http);
    }
    if !names(headers, &header::UPGRADE, "websocket") {
        return Err(HandshakeError::Upgrade);
    }
    if !names(headers, &header::CONNECTION, "upgrade") {
        return Err(HandshakeError::Connection);
    }
    let is_zero = |length: &HeaderValue| length.as_bytes() == b"0";
    if headers.contains_key(header::TRANSFER_ENCODING) || !headers.get_all(header::CONTENT_LENGTH).iter().all(is_zero) {
        return Err(HandshakeError::Body);
    }
    if once(headers, &header::SEC_WEBSOCKET_VERSION, "Sec-WebSocket-Version")? != b"13" {
        return Err(HandshakeError::Version);
    }
    let key = once(headers, &header::SEC_WEBSOCKET_KEY, "Sec-WebSocket-Key")?;
    match is_key(key) {
        true => Ok(derive_accept_key(key)),
        false => Err(HandshakeError::Key),
    }
}

fn once<'h>(headers: &'h HeaderMap, name: &HeaderName, shown: &'static str) -> Result<&'h [u8], HandshakeError> {
    let values: Vec<_> = headers.get_all(name).iter().collect();
    match values.as_slice() {
        [value] => Ok(value.as_bytes().trim_ascii()),
        values => Err(HandshakeError::Count { name: shown, count: values.len() }),
    }
}

/// Whether a key is 16 bytes in base64. The four bits that mean nothing in it may be anything (RFC 4648, section 3.5).
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.strip_suffix(b"==").is_some_and(|digits| digits.iter().all(is_digit))
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
    /// Checks a handshake and takes its request apart: what the gateway is asked, and what becomes of its answer.
    pub(crate) fn begin<B>(request: Request<B>) -> Result<(Self, gateway::Request), HandshakeError> {
        let accept = accept_of(&request)?;
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
        Ok((Self { accept, to_gateway }, Request::from_parts(parts, body)))
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
        if let Some(id) = parts.headers.get(crate::response::REQUEST_ID) {
            headers.insert(crate::response::REQUEST_ID, id.clone());
        }
        Answer::Socket(response, Box::new(Talk { body, to_gateway: self.to_gateway, _open: open }))
    }
}

/// What is said over a socket: the gateway's side, until there is a connection for it.
pub(crate) struct Talk {
    body: ResponseBody,
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
    body: ResponseBody,
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

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");
    const UPGRADE: (&str, &str) = ("upgrade", "websocket");
    const CONNECTION: (&str, &str) = ("connection", "upgrade");

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request")
    }

    #[test]
    fn only_a_request_that_means_a_socket_is_a_handshake() {
        assert!(is_handshake(&request("/ws", &[UPGRADE])));
        assert!(is_handshake(&request("/ws/workflow/1", &[("upgrade", "h2c, WebSocket")])));
        assert!(is_handshake(&request("/ws", &[KEY])));
        assert!(!is_handshake(&request("/ws", &[("upgrade", "h2c")])));
        assert!(!is_handshake(&request("/ws", &[])));
        assert!(!is_handshake(&request("/wsx", &[UPGRADE, KEY])));
        assert!(!is_handshake(&request("/stream/workflow/1", &[UPGRADE, KEY])));
    }

    #[test]
    fn good_handshake_is_accepted_as_the_rfc_has_it() {
        let accept = accept_of(&request("/ws", &[CONNECTION, UPGRADE, VERSION, KEY]));
        assert_eq!(accept.as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let firefox = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"), VERSION, KEY];
        assert!(accept_of(&request("/ws", &firefox)).is_ok());
        let empty = [CONNECTION, UPGRADE, VERSION, KEY, ("content-length", "0")];
        assert!(accept_of(&request("/ws", &empty)).is_ok());
    }

    #[test]
    fn bad_handshake_is_refused_for_what_is_wrong() {
        let check = |headers: &[(&str, &str)], want: HandshakeError| {
            assert_eq!(accept_of(&request("/ws", headers)), Err(want), "{headers:?}");
        };
        for key in [
            "x",
            "",
            "dGhlIHNhbXBsZSBub25jZQ=",
            "dGhlIHNhbXBsZSBub25jZQ",
            "dGhlIHNhbXBsZSBub25jZXh4",
            "dGhlIHNhbXBsZSBub25jZQ=x",
        ] {
            check(&[CONNECTION, UPGRADE, VERSION, ("sec-websocket-key", key)], HandshakeError::Key);
        }
        check(&[CONNECTION, UPGRADE, VERSION, ("sec-websocket-key", "dGhlIHNhbXBsZSBub25!ZQ==")], HandshakeError::Key);
        let count = |name, count| HandshakeError::Count { name, count };
        check(&[CONNECTION, UPGRADE, VERSION], count("Sec-WebSocket-Key", 0));
        check(&[CONNECTION, UPGRADE, VERSION, KEY, KEY], count("Sec-WebSocket-Key", 2));
        check(&[CONNECTION, UPGRADE, KEY], count("Sec-WebSocket-Version", 0));
        check(&[CONNECTION, UPGRADE, KEY, VERSION, VERSION], count("Sec-WebSocket-Version", 2));
        for version in ["8", "", "013", "13, 8", "x"] {
            check(&[CONNECTION, UPGRADE, KEY, ("sec-websocket-version", version)], HandshakeError::Version);
        }
        check(&[UPGRADE, VERSION, KEY], HandshakeError::Connection);
        check(&[("connection", "close"), UPGRADE, VERSION, KEY], HandshakeError::Connection);
        check(&[CONNECTION, VERSION, KEY], HandshakeError::Upgrade);
        check(&[CONNECTION, UPGRADE, VERSION, KEY, ("content-length", "5")], HandshakeError::Body);
        check(&[CONNECTION, UPGRADE, VERSION, KEY, ("transfer-encoding", "chunked")], HandshakeError::Body);
        let mut old = request("/ws", &[CONNECTION, UPGRADE, VERSION, KEY]);
        *old.version_mut() = Version::HTTP_10;
        assert_eq!(accept_of(&old), Err(HandshakeError::Http));
    }
}
