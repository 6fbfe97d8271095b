//! Requests to a running server: for `weir status`, `weir metrics` and `weir pipelines`.

mod metrics;
mod status;

use std::io::{IsTerminal as _, StdoutLock, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use http::Method;
use weir_adapters::driver::DriverError;
use weir_adapters::http::{HttpRequest, HttpResponse};

use crate::numbers;

pub(crate) use metrics::{Metrics, main as metrics};
pub(crate) use status::{Status, main as status};

/// A running server.
#[derive(Debug, Args)]
pub(crate) struct ServerAddress {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080", env = "WEIR_URL")]
    url: String,
    /// File with a token, for a server with authentication
    #[arg(long, value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Time for a response, seconds [default: 30 for pipelines, otherwise 5]
    #[arg(long, value_name = "SECONDS", value_parser = numbers::seconds)]
    timeout: Option<f64>,
}

/// A client of a server.
pub(crate) struct Client {
    url: String,
    token: Option<String>,
    timeout: Duration,
}

/// A complete response.
struct TextResponse {
    status: u16,
    body: String,
}

/// Whether and how often a request is repeated.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Repeat the request until interrupted
    #[arg(long)]
    watch: bool,
    /// Time between two requests, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, requires = "watch", value_parser = numbers::seconds)]
    interval: f64,
}

/// A duration that a user gives, within the bounds of timers.
pub(crate) fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(if value.is_nan() { 0.001 } else { value.clamp(0.001, 86_400.0) })
}

impl ServerAddress {
    /// A client, with a timeout for commands without `--timeout`, in seconds.
    pub(crate) fn client(&self, timeout_s: f64) -> anyhow::Result<Client> {
        let token = self.token_file.as_ref().map(|path| weir_adapters::secret(path)).transpose()?;
        let timeout = seconds(self.timeout.unwrap_or(timeout_s));
        Ok(Client { url: self.url.trim_end_matches('/').to_owned(), token, timeout })
    }

    /// The response to a GET, whatever its status.
    async fn get(&self, path: &str) -> anyhow::Result<TextResponse> {
        let client = self.client(5.0)?;
        let response = client.send(&Method::GET, path, &[], None).await?;
        let status = response.status().as_u16();
        Ok(TextResponse { status, body: response.text(client.timeout).await? })
    }
}

impl Client {
    /// The timeout of a response.
    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    /// Sends a request, and waits for the head of the response, whatever its status.
    pub(crate) async fn send(
        &self,
        method: &Method,
        path: &str,
        headers: &[(&str, &str)],
        json: Option<&str>,
    ) -> anyhow::Result<HttpResponse> {
        let url = format!("{}{path}", self.url);
        let request = HttpRequest { method, url: &url, headers, token: self.token.as_deref(), json };
        request.send(self.timeout).await.map_err(|error| match error {
            DriverError::Transport { reason, .. } => {
                anyhow!("{} cannot be reached: {reason}; start `weir serve`, or give the address with --url", self.url)
            }
            error => anyhow!("--url {}: {error}", self.url),
        })
    }
}

impl Watch {
    /// Clears a terminal before an answer that replaces the one before.
    fn begin(&self, out: &mut StdoutLock<'_>, json: bool) -> std::io::Result<()> {
        const CLEAR: &[u8] = b"\x1b[H\x1b[2J";
        match self.watch && !json && out.is_terminal() {
            true => out.write_all(CLEAR),
            false => Ok(()),
        }
    }

    /// Calls `show` once, or again and again until it fails or returns false.
    async fn repeat(&self, mut show: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<bool> {
        loop {
            let is_good = show().await?;
            if !self.watch {
                return Ok(is_good);
            }
            tokio::time::sleep(seconds(self.interval)).await;
        }
    }
}

/// Runs a future on a runtime of this thread.
pub(crate) fn block_on<T>(future: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(future)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn address_that_is_invalid_or_has_no_server_is_refused_with_a_remedy() {
        let send = async |url: &str| {
            let server = ServerAddress { url: url.to_owned(), token_file: None, timeout: Some(5.0) };
            let response = server.client(1.0).unwrap().send(&Method::GET, "/", &[], None).await;
            response.err().unwrap().to_string()
        };
        for url in ["localhost:8080", "ftp://x", "/v1"] {
            let error = send(url).await;
            assert!(error.contains("must be a URL such as https://host:port/path"), "{error}");
        }
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = send(&format!("http://{free}/")).await;
        assert!(error.contains(&format!("http://{free} cannot be reached")) && error.contains("--url"), "{error}");
    }

    #[test]
    fn seconds_are_within_the_bounds_of_timers() {
        assert_eq!(seconds(-1.0), Duration::from_millis(1));
        assert_eq!(seconds(f64::NAN), Duration::from_millis(1));
        assert_eq!(seconds(f64::INFINITY), Duration::from_secs(86_400));
    }
}
