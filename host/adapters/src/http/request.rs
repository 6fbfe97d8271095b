//! Single requests.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http::{Method, StatusCode};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;

use super::client::{Connection, Target};
use crate::driver::DriverError;

/// The longest body that is read as a whole, in bytes.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A request to a URL.
#[derive(Debug, Clone, Copy)]
pub struct HttpRequest<'a> {
    /// The method.
    pub method: &'a Method,
    /// The URL, of the scheme `http` or `https`.
    pub url: &'a str,
    /// Headers, without those for the fields below.
    pub headers: &'a [(&'a str, &'a str)],
    /// A token, which is sent as `Authorization: Bearer`.
    pub token: Option<&'a str>,
    /// A body of JSON.
    pub json: Option<&'a str>,
}

/// The response to a request, whose body is not read yet.
pub struct HttpResponse {
    response: http::Response<Incoming>,
    _connection: Connection,
}

impl HttpRequest<'_> {
    /// Sends the request on a new connection, and waits for the head of the response, whatever its status.
    ///
    /// # Errors
    ///
    /// The URL or a header is invalid, or the server cannot be reached or does not respond within `timeout`.
    pub async fn send(&self, timeout: Duration) -> Result<HttpResponse, DriverError> {
        let target = Target::http(self.url)?;
        let late = || DriverError::transport(format!("{} did not answer within {} ms", self.url, timeout.as_millis()));
        tokio::time::timeout(timeout, send(&target, self, timeout)).await.map_err(|_| late())?
    }
}

impl HttpResponse {
    /// The status code.
    pub fn status(&self) -> StatusCode {
        self.response.status()
    }

    /// The content type; empty if there is none.
    pub fn content_type(&self) -> &str {
        self.response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    /// Waits for the next bytes of the body; `None` at its end.
    ///
    /// # Errors
    ///
    /// The connection is lost.
    pub async fn next(&mut self) -> Result<Option<Bytes>, DriverError> {
        loop {
            match self.response.body_mut().frame().await {
                None => return Ok(None),
                Some(Err(error)) => return Err(DriverError::transport(error)),
                // Trailers are skipped.
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(bytes) => return Ok(Some(bytes)),
                    Err(_) => continue,
                },
            }
        }
    }

    /// Reads the whole body. Invalid UTF-8 is replaced.
    ///
    /// # Errors
    ///
    /// The connection is lost, the body has more than 64 MiB, or it is not complete within `timeout`.
    pub async fn text(self, timeout: Duration) -> Result<String, DriverError> {
        let body = Limited::new(self.response.into_body(), BODY_BYTES_MAX).collect();
        let late = || DriverError::transport(format!("the body is not complete after {} ms", timeout.as_millis()));
        let body = tokio::time::timeout(timeout, body).await.map_err(|_| late())?;
        let body = body.map_err(DriverError::transport)?.to_bytes();
        Ok(String::from_utf8_lossy(&body).into_owned())
    }
}

/// Requests a feed, and returns the status and the content type of the response. Its body is not read.
pub(crate) async fn get_head(
    target: &Target,
    token: Option<&str>,
    timeout: Duration,
) -> Result<(u16, String), DriverError> {
    let request = HttpRequest { method: &Method::GET, url: "", headers: &[], token, json: None };
    let response = send(target, &request, timeout).await?;
    Ok((response.status().as_u16(), response.content_type().to_owned()))
}

async fn send(target: &Target, request: &HttpRequest<'_>, timeout: Duration) -> Result<HttpResponse, DriverError> {
    let mut connection = target.connect(timeout).await?;
    let mut builder = target.request(request.method.clone());
    if request.headers.iter().all(|(name, _)| !name.eq_ignore_ascii_case(ACCEPT.as_str())) {
        builder = builder.header(ACCEPT, "*/*");
    }
    for (name, value) in request.headers {
        builder = builder.header(*name, *value);
    }
    if let Some(token) = request.token {
        builder = builder.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    if request.json.is_some() {
        builder = builder.header(CONTENT_TYPE, "application/json");
    }
    let body = Bytes::copy_from_slice(request.json.unwrap_or_default().as_bytes());
    let message = builder.body(Full::new(body)).map_err(|error| DriverError::Config(error.to_string()))?;
    let response = connection.send(message, timeout).await?;
    Ok(HttpResponse { response, _connection: connection })
}
