//! WebSocket connections.

use std::time::Duration;

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::Full;
use hyper::client::conn::http1::handshake;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;
use weir_codec::adapter::decode::PAYLOAD_BYTES_MAX;
use weir_config::{WebSocketCompression, WebSocketSource as Config};
use weir_websocket::handshake::{accept_key, new_key};
use weir_websocket::{CloseFrame, ContextTakeover, DeflateConfig, Error, Message, Role, WebSocket, close};

use crate::driver::DriverError;
use crate::http::client::{Target, refusal};

/// The most bytes of a read.
const READ_BYTES: usize = 16 << 10;

/// The largest window of a compressed feed: it has few connections.
const WINDOW_BITS: u8 = 15;

/// An open WebSocket.
pub(crate) type Socket = WebSocket<TokioIo<Upgraded>>;

/// Connects within the configured time, and sends the subscription message.
pub(crate) async fn connect(config: &Config, target: &Target, token: Option<&str>) -> Result<Socket, DriverError> {
    let connecting = async {
        let mut socket = open(config, target, token).await?;
        if !config.subscribe.is_empty() {
            socket.send(&config.subscribe).await.map_err(|error| failure(&error))?;
        }
        Ok(socket)
    };
    target.within(Duration::from_millis(config.timeout_ms), connecting).await
}

/// The opening handshake.
async fn open(config: &Config, target: &Target, token: Option<&str>) -> Result<Socket, DriverError> {
    let key = new_key();
    let deflate = deflate(config.compression);
    let mut request = target
        .request(Method::GET)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key);
    if let Some(deflate) = &deflate {
        request = request.header(header::SEC_WEBSOCKET_EXTENSIONS, deflate.offer());
    }
    if let Some(token) = token {
        let value = HeaderValue::from_str(&format!("Bearer {token}"))
            .map_err(|_| DriverError::Config("the token has characters that are invalid in a header".to_owned()))?;
        request = request.header(header::AUTHORIZATION, value);
    }
    let request = request.body(Full::<Bytes>::default()).map_err(|error| DriverError::Config(error.to_string()))?;
    let stream = target.open().await?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(DriverError::transport)?;
    // Its errors are those of the response and of the upgraded connection.
    let _task = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.with_upgrades().await) }));
    let response = sender.send_request(request).await.map_err(DriverError::transport)?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        let answer = || DriverError::Config(format!("the server answers {}", response.status()));
        return Err(refusal(&response).unwrap_or_else(answer));
    }
    if response.headers().get(header::SEC_WEBSOCKET_ACCEPT).is_none_or(|accept| *accept != accept_key(key.as_bytes())) {
        return Err(DriverError::Config("the server's `Sec-WebSocket-Accept` does not match the request".to_owned()));
    }
    let extensions = extensions(response.headers())?;
    let deflate = match (&deflate, &extensions) {
        (Some(deflate), _) => {
            deflate.complete(extensions.as_deref()).map_err(|error| DriverError::Config(error.to_string()))?
        }
        (None, None) => None,
        (None, Some(extensions)) => {
            return Err(DriverError::Config(format!("the server uses `{extensions}`, which was not offered")));
        }
    };
    let upgraded = hyper::upgrade::on(response).await.map_err(DriverError::transport)?;
    let settings = weir_websocket::Config {
        message_bytes_max: (config.message_bytes_max as usize).min(PAYLOAD_BYTES_MAX),
        read_bytes: READ_BYTES,
        deflate,
        deflate_bytes_min: 0,
    };
    Ok(WebSocket::new(TokioIo::new(upgraded), Role::Client, settings, &[]))
}

/// What is offered.
fn deflate(compression: WebSocketCompression) -> Option<DeflateConfig> {
    let takeover = match compression {
        WebSocketCompression::Off => return None,
        WebSocketCompression::Message => ContextTakeover::Never,
        WebSocketCompression::Connection => ContextTakeover::Allowed,
    };
    Some(DeflateConfig { takeover, window_bits: WINDOW_BITS })
}

/// The values of `Sec-WebSocket-Extensions`, as one list.
fn extensions(headers: &HeaderMap) -> Result<Option<String>, DriverError> {
    let mut list: Option<String> = None;
    for value in headers.get_all(header::SEC_WEBSOCKET_EXTENSIONS) {
        let value = value.to_str().map_err(|_| {
            DriverError::Config("the server's `Sec-WebSocket-Extensions` has characters beyond ASCII".to_owned())
        })?;
        list = Some(list.map_or_else(|| value.to_owned(), |list| format!("{list}, {value}")));
    }
    Ok(list)
}

/// Sends a ping and waits for the response. Messages that arrive before it are dropped.
pub(crate) async fn check_liveness(socket: &mut Socket) -> Result<(), DriverError> {
    const CONTENT: &[u8] = b"weir";
    socket.ping(CONTENT).await.map_err(|error| failure(&error))?;
    loop {
        match socket.next().await {
            Some(Ok(Message::Pong(content))) if content == CONTENT => return Ok(()),
            Some(Ok(Message::Close(frame))) => {
                return Err(
                    closed(frame.as_ref()).unwrap_or_else(|| DriverError::transport("the server has ended the feed"))
                );
            }
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(failure(&error)),
            None => return Err(DriverError::transport("the server has closed the connection")),
        }
    }
}

/// The failure of a close frame; `None` for a normal end of the feed.
pub(super) fn closed(frame: Option<&CloseFrame>) -> Option<DriverError> {
    let Some(CloseFrame { code, reason }) = frame else {
        return Some(DriverError::transport("the server has closed the connection without a code"));
    };
    let text = format!("the server has closed the connection with {code}: {reason}");
    match *code {
        close::NORMAL => None,
        close::POLICY => Some(DriverError::Denied(text)),
        close::UNSUPPORTED | close::INVALID | close::PROTOCOL => Some(DriverError::Config(text)),
        _ => Some(DriverError::transport(text)),
    }
}

/// The failure of a connection.
pub(super) fn failure(error: &Error) -> DriverError {
    match error {
        Error::TooLong { .. } => DriverError::Config(format!("{error}; raise message_bytes_max")),
        error => DriverError::transport(error),
    }
}
