//! One GET.

use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;

use super::client::{Connection, Target};
use crate::driver::DriverError;

/// Longest body that is read, bytes.
const BODY_BYTES_MAX: usize = 16 << 20;

/// The response to a GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetResponse {
    /// The status code.
    pub status: u16,
    /// The content type; empty if there is none.
    pub content_type: String,
    /// The body. Bytes that are not UTF-8 are replaced.
    pub body: String,
}

/// Requests a URL and reads the response, whatever its status. `timeout` is for the whole request.
///
/// # Errors
///
/// The URL is invalid, the server cannot be reached or does not answer in time, or the body has more than 16 MiB.
pub async fn get(url: &str, token: Option<&str>, timeout: Duration) -> Result<GetResponse, DriverError> {
    let target = Target::http(url)?;
    let getting = async {
        let (response, _connection) = request(&target, token, timeout).await?;
        let (status, content_type) = head(&response);
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await;
        let body = body.map_err(|error| DriverError::transport(format!("{url}: {error}")))?.to_bytes();
        Ok(GetResponse { status, content_type, body: String::from_utf8_lossy(&body).into_owned() })
    };
    let late = || DriverError::transport(format!("{url} did not answer within {} ms", timeout.as_millis()));
    tokio::time::timeout(timeout, getting).await.map_err(|_| late())?
}

/// The status and the content type of a response to a GET of a feed, whose body is not read.
pub(crate) async fn get_head(
    target: &Target,
    token: Option<&str>,
    timeout: Duration,
) -> Result<(u16, String), DriverError> {
    let (response, _connection) = request(target, token, timeout).await?;
    Ok(head(&response))
}

fn head(response: &http::Response<Incoming>) -> (u16, String) {
    let content_type = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    (response.status().as_u16(), content_type.to_owned())
}

async fn request(
    target: &Target,
    token: Option<&str>,
    timeout: Duration,
) -> Result<(http::Response<Incoming>, Connection), DriverError> {
    let mut connection = target.connect(timeout).await?;
    let mut request = target.request(http::Method::GET).header(ACCEPT, "*/*");
    if let Some(token) = token {
        request = request.header(AUTHORIZATION, format!("Bearer {token}"));
    }
    let request = request.body(Full::new(Bytes::new())).map_err(|error| DriverError::Config(error.to_string()))?;
    let response = connection.send(request, timeout).await?;
    Ok((response, connection))
}
