//! The opening handshake (RFC 6455, section 4.2).

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::sync::mpsc;
use weir_codec::channels::hold::SOCKET_HEADER;
use weir_codec::http::router::RouteMatch;
use weir_runtime::gateway;
use weir_websocket::handshake::accept_key;
use weir_websocket::{Agreement, DeflateConfig};

use crate::body::{OpenRequest, ResponseBody};
use crate::request_id;
use crate::websocket::connection::Upgrade;

/// Most messages that wait for the gateway.
const MESSAGES_MAX: usize = 16;

/// Hop-by-hop headers and headers of the handshake, which are not passed to the gateway.
const HOP_BY_HOP_HEADERS: [HeaderName; 9] = [
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

/// Whether a request is an opening handshake, valid or not.
pub(crate) fn is_handshake<B>(request: &Request<B>) -> bool {
    let path = request.uri().path();
    (RouteMatch::is_socket(path) || RouteMatch::is_line_stream(path))
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
    /// `Upgrade` does not name `websocket`.
    #[error("`Upgrade` must name `websocket`")]
    Upgrade,
    /// `Connection` does not name `upgrade`.
    #[error("`Connection` must name `upgrade`")]
    Connection,
    /// A body after the head would be read as frames.
    #[error("a WebSocket handshake has no body")]
    Body,
    /// A header that must occur once is missing or occurs more often.
    #[error("`{name}` must occur once, and occurs {count} times")]
    Count {
        /// The header.
        name: &'static str,
        /// How often it occurs.
        count: usize,
    },
    /// The key is not 16 bytes.
    #[error("`Sec-WebSocket-Key` must be 16 bytes in base64, which is 24 characters and ends in `==`")]
    Key,
    /// The version is not 13.
    #[error("WebSockets are served in version 13")]
    Version,
}

/// Checks a handshake; returns the value of `Sec-WebSocket-Accept`.
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
        true => Ok(accept_key(key)),
        false => Err(HandshakeError::Key),
    }
}

fn once<'h>(headers: &'h HeaderMap, name: &HeaderName, display_name: &'static str) -> Result<&'h [u8], HandshakeError> {
    let values: Vec<_> = headers.get_all(name).iter().collect();
    match values.as_slice() {
        [value] => Ok(value.as_bytes().trim_ascii()),
        values => Err(HandshakeError::Count { name: display_name, count: values.len() }),
    }
}

/// Whether a key is 16 bytes in base64. Its four unused bits are not checked (RFC 4648, section 3.5).
fn is_key(key: &[u8]) -> bool {
    let is_digit = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/');
    key.len() == 24 && key.strip_suffix(b"==").is_some_and(|digits| digits.iter().all(is_digit))
}

/// Whether a header has a list with a word.
fn names(headers: &HeaderMap, name: &HeaderName, word: &str) -> bool {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|part| part.trim().eq_ignore_ascii_case(word))
}

/// A valid handshake, before the response of the gateway.
pub(crate) struct Handshake {
    accept: String,
    to_gateway: mpsc::Sender<Bytes>,
    /// An empty message ends the input.
    has_input_end: bool,
    /// The parameters of permessage-deflate, and the value of the response's `Sec-WebSocket-Extensions`.
    deflate: Option<(Agreement, String)>,
}

impl Handshake {
    /// Checks a handshake; returns it with the request for the gateway. Messages are compressed where `deflate` accepts an offer of the
    /// client.
    pub(crate) fn begin<B>(
        request: Request<B>,
        deflate: Option<DeflateConfig>,
    ) -> Result<(Self, gateway::Request), HandshakeError> {
        let accept = accept_of(&request)?;
        let offers = request.headers().get_all(header::SEC_WEBSOCKET_EXTENSIONS);
        let offers = offers.into_iter().filter_map(|value| value.to_str().ok());
        let deflate = deflate.and_then(|deflate| deflate.accept(offers));
        let has_input_end = RouteMatch::is_line_stream(request.uri().path());
        let (mut parts, _) = request.into_parts();
        for name in HOP_BY_HOP_HEADERS {
            parts.headers.remove(name);
        }
        const NDJSON: HeaderValue = HeaderValue::from_static("application/x-ndjson");
        parts.headers.insert(header::CONTENT_TYPE, NDJSON);
        parts.headers.insert(header::ACCEPT, NDJSON);
        if has_input_end {
            parts.headers.insert(SOCKET_HEADER, HeaderValue::from_static("1"));
        }
        parts.method = Method::POST;
        // The extensions contain hyper's upgrade.
        parts.extensions.clear();
        let (to_gateway, messages) = mpsc::channel(MESSAGES_MAX);
        let lines = futures::stream::unfold(messages, |mut messages: mpsc::Receiver<Bytes>| async {
            let line = messages.recv().await?;
            Some((Ok(Frame::data(line)), messages))
        });
        let body = gateway::request_body(StreamBody::new(Box::pin(lines)));
        Ok((Self { accept, to_gateway, has_input_end, deflate }, Request::from_parts(parts, body)))
    }

    /// Completes the handshake with the gateway's response, a stream of lines. If the gateway gave another response,
    /// there is no upgrade, and the client gets that response unchanged.
    pub(crate) fn complete(
        self,
        response: gateway::Response,
        open: Option<OpenRequest>,
    ) -> (Response<ResponseBody>, Option<Upgrade>) {
        if response.status() != StatusCode::OK {
            return (response.map(|body| ResponseBody::streamed(body, open)), None);
        }
        let (parts, body) = response.into_parts();
        let mut response = Response::new(ResponseBody::full(Bytes::new()));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
        if let Ok(accept) = HeaderValue::from_str(&self.accept) {
            headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
        }
        let extensions = self.deflate.as_ref().and_then(|(_, value)| HeaderValue::from_str(value).ok());
        let deflate = extensions.as_ref().and(self.deflate.map(|(agreement, _)| agreement));
        if let Some(extensions) = extensions {
            headers.insert(header::SEC_WEBSOCKET_EXTENSIONS, extensions);
        }
        if let Some(id) = parts.headers.get(request_id::HEADER) {
            headers.insert(request_id::HEADER, id.clone());
        }
        (response, Some(Upgrade::new(body, self.to_gateway, self.has_input_end, deflate, open)))
    }
}

/// Adds the supported version to the response to a handshake of another version.
pub(crate) fn add_version(response: &mut Response<ResponseBody>) {
    response.headers_mut().insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: (&str, &str) = ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
    const VERSION: (&str, &str) = ("sec-websocket-version", "13");
    const UPGRADE: (&str, &str) = ("upgrade", "websocket");
    const CONNECTION: (&str, &str) = ("connection", "upgrade");

    fn request(path: &str, headers: &[(&str, &str)]) -> Request<()> {
        let request = headers.iter().fold(Request::get(path), |request, (name, value)| request.header(*name, *value));
        request.body(()).expect("a request")
    }

    #[test]
    fn request_with_upgrade_or_key_on_a_socket_path_is_a_handshake() {
        assert!(is_handshake(&request("/ws", &[UPGRADE])));
        assert!(is_handshake(&request("/ws/workflow/1", &[("upgrade", "h2c, WebSocket")])));
        assert!(is_handshake(&request("/ws", &[KEY])));
        assert!(is_handshake(&request("/v1/classify?top_k=2", &[UPGRADE])));
        assert!(!is_handshake(&request("/v1/models", &[UPGRADE, KEY])));
        assert!(!is_handshake(&request("/ws", &[("upgrade", "h2c")])));
        assert!(!is_handshake(&request("/ws", &[])));
        assert!(!is_handshake(&request("/wsx", &[UPGRADE, KEY])));
        assert!(!is_handshake(&request("/stream/workflow/1", &[UPGRADE, KEY])));
    }

    #[test]
    fn valid_handshake_has_the_accept_value_of_the_rfc() {
        let accept = accept_of(&request("/ws", &[CONNECTION, UPGRADE, VERSION, KEY]));
        assert_eq!(accept.as_deref(), Ok("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        let firefox = [("connection", "keep-alive, Upgrade"), ("upgrade", "WebSocket"), VERSION, KEY];
        assert!(accept_of(&request("/ws", &firefox)).is_ok());
        let empty = [CONNECTION, UPGRADE, VERSION, KEY, ("content-length", "0")];
        assert!(accept_of(&request("/ws", &empty)).is_ok());
    }

    #[test]
    fn invalid_handshake_is_refused_with_its_error() {
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
