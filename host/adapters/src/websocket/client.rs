//! WebSocket connections.

use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt as _, StreamExt as _};
use http::header::{AUTHORIZATION, HeaderValue};
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use weir_codec::adapter::decode::PAYLOAD_BYTES_MAX;
use weir_config::WebSocketSource as Config;

use crate::driver::DriverError;
use crate::http::client::{ByteStream, Target, refusal};

/// The most bytes of a read.
const READ_BYTES: usize = 16 << 10;

/// An open WebSocket.
pub(crate) type Socket = WebSocketStream<Box<dyn ByteStream>>;

/// Connects within the configured time, and sends the subscription message.
pub(crate) async fn connect(config: &Config, target: &Target, token: Option<&str>) -> Result<Socket, DriverError> {
    let connecting = async {
        let mut request =
            config.url.as_str().into_client_request().map_err(|error| DriverError::Config(error.to_string()))?;
        if let Some(token) = token {
            let value = HeaderValue::from_str(&format!("Bearer {token}"))
                .map_err(|_| DriverError::Config("the token has characters that are invalid in a header".to_owned()))?;
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let bytes_max = (config.message_bytes_max as usize).min(PAYLOAD_BYTES_MAX);
        let settings = WebSocketConfig::default()
            .read_buffer_size(READ_BYTES)
            .write_buffer_size(0)
            .max_message_size(Some(bytes_max))
            .max_frame_size(Some(bytes_max));
        let stream = target.open().await?;
        let connected = client_async_with_config(request, stream, Some(settings)).await;
        let (mut socket, _) = connected.map_err(|error| failure(&error))?;
        if !config.subscribe.is_empty() {
            socket.send(Message::text(config.subscribe.as_str())).await.map_err(|error| failure(&error))?;
        }
        Ok(socket)
    };
    target.within(Duration::from_millis(config.timeout_ms), connecting).await
}

/// Sends a ping and waits for the response. Messages that arrive before it are dropped.
pub(crate) async fn check_liveness(socket: &mut Socket) -> Result<(), DriverError> {
    const CONTENT: &[u8] = b"weir";
    let ping = Message::Ping(Bytes::from_static(CONTENT));
    socket.send(ping).await.map_err(|error| failure(&error))?;
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
    let text = format!("the server has closed the connection with {}: {reason}", u16::from(*code));
    match code {
        CloseCode::Normal => None,
        CloseCode::Policy => Some(DriverError::Denied(text)),
        CloseCode::Unsupported | CloseCode::Invalid | CloseCode::Protocol => Some(DriverError::Config(text)),
        _ => Some(DriverError::transport(text)),
    }
}

/// The failure of a connection.
pub(super) fn failure(error: &Error) -> DriverError {
    match error {
        Error::Http(response) => refusal(response)
            .unwrap_or_else(|| DriverError::Config(format!("the server answers {}", response.status()))),
        Error::Capacity(reason) => DriverError::Config(format!("{reason}; raise message_bytes_max")),
        error => DriverError::transport(error),
    }
}
