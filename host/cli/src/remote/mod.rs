//! Questions to a running server: `weir status` and `weir metrics`.

mod metrics;
mod status;

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use weir_adapters::http::{self, GetResponse};

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
    /// Time for a response, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    timeout: f64,
}

/// How often a watched answer is requested.
#[derive(Debug, Args)]
pub(crate) struct Watch {
    /// Ask again until interrupted
    #[arg(long)]
    watch: bool,
    /// Time between two requests, seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 2.0, requires = "watch")]
    interval: f64,
}

/// A duration that a user gives, within the bounds of timers.
pub(crate) fn seconds(value: f64) -> Duration {
    Duration::from_secs_f64(if value.is_nan() { 0.001 } else { value.clamp(0.001, 86_400.0) })
}

impl ServerAddress {
    /// The response to a GET, whatever its status.
    async fn get(&self, path: &str) -> anyhow::Result<GetResponse> {
        let url = format!("{}{path}", self.url.trim_end_matches('/'));
        let token = self.token_file.as_ref().map(|path| weir_adapters::secret(path)).transpose()?;
        Ok(http::get(&url, token.as_deref(), seconds(self.timeout)).await?)
    }
}

impl Watch {
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

/// A sample of a text in the exposition format of Prometheus.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
struct Sample<'a> {
    name: &'a str,
    /// The labels with their values as they are written, without the braces.
    #[serde(skip_serializing_if = "str::is_empty")]
    labels: &'a str,
    value: f64,
}

/// The samples of a text in the exposition format of Prometheus.
fn samples(text: &str) -> impl Iterator<Item = Sample<'_>> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, ""));
        Some(Sample { name, labels: labels.trim_end_matches('}'), value: value.parse().ok()? })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_are_read_from_the_exposition_format() {
        let text = "# HELP x y\n# TYPE x gauge\nweir_adapter_state{adapter=\"a\",state=\"running\"} 1\nweir_http_requests_open 3\n\nx NaN\n";
        let samples: Vec<Sample<'_>> = samples(text).filter(|sample| !sample.value.is_nan()).collect();
        let sample = |name, labels, value| Sample { name, labels, value };
        assert_eq!(
            samples,
            [
                sample("weir_adapter_state", "adapter=\"a\",state=\"running\"", 1.0),
                sample("weir_http_requests_open", "", 3.0)
            ]
        );
    }

    #[test]
    fn seconds_are_within_the_bounds_of_timers() {
        assert_eq!(seconds(-1.0), Duration::from_millis(1));
        assert_eq!(seconds(f64::NAN), Duration::from_millis(1));
        assert_eq!(seconds(f64::INFINITY), Duration::from_secs(86_400));
    }
}
