//! A client for the routes of a running server.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use http::{Request, Response, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::TcpStream;

/// Longest JSON response, bytes.
const BODY_BYTES_MAX: usize = 64 << 20;

/// A running server.
#[derive(Debug, Args)]
pub(super) struct ServerAddress {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "WEIR_URL")]
    url: String,
    /// File with a token, for a server with authentication
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Time for a response, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    timeout: u16,
}

/// Sends requests over HTTP/1.1 without TLS, each over a connection of its own.
pub(super) struct Client {
    url: String,
    host: String,
    port: u16,
    authority: String,
    token: Option<String>,
    timeout: Duration,
}

impl Client {
    pub(super) fn new(server: &ServerAddress) -> anyhow::Result<Self> {
        let url = server.url.trim_end_matches('/').to_owned();
        let invalid = || format!("--url {url}: expected a URL such as http://127.0.0.1:8080");
        let uri: Uri = url.parse().with_context(invalid)?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") => {
                bail!("--url {url}: TLS is not supported; use the address of the server itself, with http")
            }
            _ => bail!(invalid()),
        }
        let authority = uri.authority().with_context(invalid)?;
        let token = server.token_file.as_ref().map(|file| {
            let text = std::fs::read_to_string(file).with_context(|| format!("{} cannot be read", file.display()))?;
            anyhow::Ok(text.trim().to_owned())
        });
        Ok(Self {
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            authority: authority.as_str().to_owned(),
            url,
            token: token.transpose()?,
            timeout: Duration::from_secs(server.timeout.into()),
        })
    }

    /// Sends a request. Its response has a status below 400.
    pub(super) async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> anyhow::Result<Response<Incoming>> {
        let sending = tokio::time::timeout(self.timeout, self.attempt(method, path, headers, body));
        let response = sending.await.map_err(|_| anyhow!("{} did not answer in time", self.url))??;
        if response.status().as_u16() < 400 {
            return Ok(response);
        }
        let status = response.status();
        let body =
            Limited::new(response.into_body(), BODY_BYTES_MAX).collect().await.map_err(|error| anyhow!(error))?;
        let problem: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let message = problem["detail"].as_str().or(problem["error"].as_str()).unwrap_or_default();
        let fields = problem["errors"].as_array().into_iter().flatten().filter_map(|error| error["message"].as_str());
        let fields: Vec<&str> = fields.filter(|field| !message.contains(field)).collect();
        let fields = if fields.is_empty() { String::new() } else { format!(": {}", fields.join("; ")) };
        bail!("{method} {path} is answered {status}: {message}{fields}")
    }

    async fn attempt(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> anyhow::Result<Response<Incoming>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|error| {
            anyhow!("{} cannot be reached: {error}; start `weir serve`, or give the address with --url", self.url)
        })?;
        let (mut sender, connection) = handshake(TokioIo::new(stream)).await.context("no HTTP connection")?;
        // Its errors are those of the request and of the body.
        tokio::spawn(async move { drop(connection.await) });
        let mut request = Request::builder().method(method).uri(path).header("host", &self.authority);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if body.is_some() {
            request = request.header("content-type", "application/json");
        }
        if let Some(token) = &self.token {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let request = request.body(Full::new(Bytes::from(body.unwrap_or_default())))?;
        sender.send_request(request).await.with_context(|| format!("{} ended the connection", self.url))
    }

    /// Sends a request and reads the JSON of its response.
    pub(super) async fn json(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: Option<String>,
    ) -> anyhow::Result<Value> {
        let response = self.send(method, path, headers, body).await?;
        let body = Limited::new(response.into_body(), BODY_BYTES_MAX).collect();
        let body =
            tokio::time::timeout(self.timeout, body).await.map_err(|_| anyhow!("the body did not arrive in time"))?;
        let body = body.map_err(|error| anyhow!("the body cannot be read: {error}"))?;
        serde_json::from_slice(&body.to_bytes()).with_context(|| format!("the response of {path} is not JSON"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_a_server_is_checked() {
        let client = |url: &str| {
            Client::new(&ServerAddress { url: url.to_owned(), token_file: None, timeout: 1 })
                .map(|client| (client.host, client.port))
                .map_err(|error| error.to_string())
        };
        assert_eq!(client("http://localhost:8081/"), Ok(("localhost".to_owned(), 8081)));
        assert_eq!(client("http://[::1]"), Ok(("::1".to_owned(), 80)));
        assert!(client("https://weir.example").unwrap_err().contains("TLS is not supported"));
        for url in ["localhost:8080", "ftp://x", "/v1"] {
            assert!(client(url).unwrap_err().contains("expected a URL"), "{url}");
        }
    }
}
