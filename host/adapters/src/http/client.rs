//! HTTP/1.1 connections, with TLS.

use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http::Uri;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio_util::task::AbortOnDropHandle;

use crate::driver::DriverError;
use crate::transport::{self, ByteStream};

/// The target of a URL.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) host: String,
    pub(crate) port: u16,
    pub(crate) is_tls: bool,
    /// Path and query.
    path: String,
    /// The value of the header `host`.
    authority: String,
}

impl Target {
    /// A URL of the scheme `http` or `https`.
    pub(crate) fn http(url: &str) -> Result<Self, DriverError> {
        Self::new(url, ["http", "https"])
    }

    /// A URL of the scheme `ws` or `wss`.
    pub(crate) fn websocket(url: &str) -> Result<Self, DriverError> {
        Self::new(url, ["ws", "wss"])
    }

    fn new(url: &str, [plain, tls]: [&str; 2]) -> Result<Self, DriverError> {
        let invalid = || DriverError::Config(format!("`{url}` must be a URL such as {tls}://host:port/path"));
        let uri: Uri = url.parse().map_err(|_| invalid())?;
        let is_tls = match uri.scheme_str() {
            Some(scheme) if scheme == plain => false,
            Some(scheme) if scheme == tls => true,
            _ => return Err(invalid()),
        };
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(|| {
            DriverError::Config("a URL must have a host, and no user or password; put a token into a file".to_owned())
        })?;
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(if is_tls { 443 } else { 80 }),
            is_tls,
            path: uri.path_and_query().map_or("/", |path| path.as_str()).to_owned(),
            authority: authority.as_str().to_owned(),
        })
    }

    /// A request with its target and its host.
    pub(crate) fn request(&self, method: http::Method) -> http::request::Builder {
        http::Request::builder().method(method).uri(&self.path).header(http::header::HOST, &self.authority)
    }

    /// Connects within a time, for requests of HTTP/1.1.
    pub(crate) async fn connect(&self, timeout: Duration) -> Result<Connection, DriverError> {
        let connecting = async {
            let stream = self.open().await?;
            let (sender, driving) = handshake(TokioIo::new(stream)).await.map_err(DriverError::transport)?;
            // Its errors are those of the requests.
            let task = AbortOnDropHandle::new(tokio::spawn(async move { drop(driving.await) }));
            Ok(Connection { sender, _task: task })
        };
        self.within(timeout, connecting).await
    }

    /// Connects, with TLS where the URL asks for it.
    pub(crate) async fn open(&self) -> Result<Box<dyn ByteStream>, DriverError> {
        let stream = transport::connect(&self.host, self.port).await?;
        match self.is_tls {
            true => transport::secure(&self.host, stream, Path::new("")).await,
            false => Ok(Box::new(stream)),
        }
    }

    /// Bounds the time of a connection attempt.
    pub(crate) async fn within<T>(
        &self,
        timeout: Duration,
        connecting: impl Future<Output = Result<T, DriverError>>,
    ) -> Result<T, DriverError> {
        tokio::time::timeout(timeout, connecting).await.unwrap_or_else(|_| {
            let reason = format!("{}:{} did not answer within {} ms", self.host, self.port, timeout.as_millis());
            Err(DriverError::transport(reason))
        })
    }
}

/// A connection, for one request at a time.
pub(crate) struct Connection {
    sender: SendRequest<Full<Bytes>>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    /// Sends a request and waits for the head of its response within a time.
    pub(crate) async fn send(
        &mut self,
        request: http::Request<Full<Bytes>>,
        timeout: Duration,
    ) -> Result<http::Response<Incoming>, DriverError> {
        let sending = async {
            self.sender.ready().await?;
            self.sender.send_request(request).await
        };
        match tokio::time::timeout(timeout, sending).await {
            Ok(response) => response.map_err(DriverError::transport),
            Err(_) => Err(DriverError::transport(format!("no response within {} ms", timeout.as_millis()))),
        }
    }
}

/// The failure of a response by its status; `None` if that is a success.
pub(crate) fn refusal<B>(response: &http::Response<B>) -> Option<DriverError> {
    let status = response.status();
    let reason = format!("the server answers {status}");
    match status.as_u16() {
        200..=299 => None,
        401 | 403 => Some(DriverError::Denied(reason)),
        408 | 425 | 429 | 500..=599 => {
            let after = response.headers().get(http::header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let retry_after_ms =
                after.and_then(|seconds| seconds.trim().parse::<u64>().ok()).map(|s| s.min(3600) * 1000);
            Some(DriverError::Transport { reason, retry_after_ms })
        }
        _ => Some(DriverError::Config(reason)),
    }
}
