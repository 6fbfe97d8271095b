//! The task that exports spans and metrics.

use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER};
use http::{Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper_util::rt::TokioIo;
use metrics::counter;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

use crate::otlp::{self, Resource};
use crate::recorder::Recorder;
use crate::samples;
use crate::span_data::{SpanData, now_ns};

/// Most spans of one request.
const BATCH_SPANS_MAX: usize = 512;
/// How long a span waits for others.
const BATCH_DELAY: Duration = Duration::from_millis(500);
/// Time of one request.
const EXPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Attempts for one batch of spans, and the delay before the second; it doubles with each one.
const ATTEMPTS_MAX: u32 = 4;
const RETRY_DELAY: Duration = Duration::from_millis(500);
/// The longest delay that a receiver may ask for.
const RETRY_DELAY_MAX: Duration = Duration::from_secs(30);
/// Most bytes of a response that are read.
const RESPONSE_BYTES_MAX: usize = 64 << 10;

/// A receiver of OTLP over HTTP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    authority: String,
    host: String,
    port: u16,
    /// Without `/v1/traces` or `/v1/metrics`, and without a slash at its end.
    path: String,
}

/// A URL is not that of a receiver.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` must be a URL such as http://127.0.0.1:4318; for TLS or gRPC run a collector beside this server")]
pub struct EndpointError(String);

impl FromStr for Endpoint {
    type Err = EndpointError;

    fn from_str(url: &str) -> Result<Self, EndpointError> {
        let error = || EndpointError(url.to_owned());
        let uri: Uri = url.parse().map_err(|_| error())?;
        let authority = uri.authority().filter(|authority| !authority.as_str().contains('@')).ok_or_else(error)?;
        if uri.scheme_str() != Some("http") || uri.query().is_some() {
            return Err(error());
        }
        Ok(Self {
            authority: authority.to_string(),
            host: authority.host().trim_matches(['[', ']']).to_owned(),
            port: authority.port_u16().unwrap_or(80),
            path: uri.path().trim_end_matches('/').to_owned(),
        })
    }
}

/// The receiver of an export, and what is exported.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The receiver.
    pub endpoint: Endpoint,
    /// How often metrics are exported.
    pub metrics_interval: Duration,
    /// The share of traces that begin here and are exported, percent. A trace that began elsewhere is exported if its context says so.
    pub sample_percent: u32,
    /// `service.name`.
    pub service: String,
    /// `service.version`.
    pub version: String,
    /// `service.instance.id`.
    pub instance: String,
}

/// The running exporter. Dropping it ends the export and discards the spans that wait.
pub struct Exporter {
    finish: Option<oneshot::Sender<()>>,
    task: AbortOnDropHandle<()>,
}

/// Starts the export of spans, and of the metrics that `render` gives in the exposition format of Prometheus. Only the first call in a
/// process exports spans.
pub fn start(settings: Settings, render: impl Fn() -> String + Send + Sync + 'static) -> Exporter {
    let spans = Recorder::install(settings.sample_percent);
    let (finish, finished) = oneshot::channel();
    let start_ns = now_ns();
    let resource = Resource {
        service: settings.service.clone(),
        version: settings.version.clone(),
        instance: settings.instance.clone(),
    };
    let export = Export { settings, resource, render: Box::new(render), start_ns };
    let task = AbortOnDropHandle::new(tokio::spawn(export.run(spans, finished)));
    Exporter { finish: Some(finish), task }
}

impl Exporter {
    /// Exports the spans that wait, and the metrics once more; gives up after `timeout`.
    pub async fn finish(mut self, timeout: Duration) {
        if let Some(finish) = self.finish.take() {
            // An error means that the task has ended.
            let _ = finish.send(());
        }
        let _ = tokio::time::timeout(timeout, &mut self.task).await;
    }
}

struct Export {
    settings: Settings,
    resource: Resource,
    render: Box<dyn Fn() -> String + Send + Sync>,
    start_ns: u64,
}

/// Why an export failed.
enum ExportError {
    /// Another attempt may succeed, after this delay where the receiver names one.
    Retryable(String, Option<Duration>),
    /// The receiver refuses the data.
    Refused(String),
}

impl Export {
    async fn run(self, mut spans: mpsc::Receiver<SpanData>, mut finished: oneshot::Receiver<()>) {
        let mut interval = tokio::time::interval(self.settings.metrics_interval);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut batch = Vec::new();
        let mut has_spans = true;
        loop {
            tokio::select! {
                received = spans.recv_many(&mut batch, BATCH_SPANS_MAX), if has_spans => {
                    if received == 0 {
                        // Another exporter of the process has the spans.
                        has_spans = false;
                        continue;
                    }
                    let more = async {
                        while batch.len() < BATCH_SPANS_MAX {
                            let room = BATCH_SPANS_MAX - batch.len();
                            if spans.recv_many(&mut batch, room).await == 0 {
                                return;
                            }
                        }
                    };
                    tokio::select! {
                        _ = tokio::time::timeout(BATCH_DELAY, more) => {}
                        _ = &mut finished => break,
                    }
                    self.traces(&std::mem::take(&mut batch)).await;
                }
                _ = interval.tick() => self.metrics().await,
                _ = &mut finished => break,
            }
        }
        while let Ok(span) = spans.try_recv() {
            batch.push(span);
        }
        for batch in batch.chunks(BATCH_SPANS_MAX) {
            self.traces(batch).await;
        }
        self.metrics().await;
    }

    /// Exports spans, with several attempts.
    async fn traces(&self, spans: &[SpanData]) {
        let body = Bytes::from(otlp::traces(&self.resource, spans).to_string());
        let mut delay = RETRY_DELAY;
        for attempt in 1..=ATTEMPTS_MAX {
            match self.post("/v1/traces", body.clone()).await {
                Ok(()) => return count("traces", "ok"),
                Err(ExportError::Retryable(_, after)) if attempt < ATTEMPTS_MAX => {
                    tokio::time::sleep(after.unwrap_or(delay).min(RETRY_DELAY_MAX)).await;
                    delay *= 2;
                }
                Err(ExportError::Retryable(reason, _) | ExportError::Refused(reason)) => {
                    tracing::warn!(spans = spans.len(), reason, "spans were not exported");
                    counter!("weir_telemetry_spans_dropped_total").increment(spans.len() as u64);
                    return count("traces", "failed");
                }
            }
        }
    }

    /// Exports the metrics, with one attempt: they are exported again after the interval.
    async fn metrics(&self) {
        let metrics = samples::parse(&(self.render)());
        if metrics.is_empty() {
            return;
        }
        let body = otlp::metrics(&self.resource, &metrics, self.start_ns, now_ns()).to_string();
        match self.post("/v1/metrics", body.into()).await {
            Ok(()) => count("metrics", "ok"),
            Err(ExportError::Retryable(reason, _) | ExportError::Refused(reason)) => {
                tracing::warn!(reason, "metrics were not exported");
                count("metrics", "failed");
            }
        }
    }

    async fn post(&self, path: &str, body: Bytes) -> Result<(), ExportError> {
        let retryable = |error: &dyn std::fmt::Display| ExportError::Retryable(error.to_string(), None);
        let endpoint = &self.settings.endpoint;
        let exchange = async {
            let stream =
                TcpStream::connect((endpoint.host.as_str(), endpoint.port)).await.map_err(|error| retryable(&error))?;
            let (mut sender, connection) = handshake(TokioIo::new(stream)).await.map_err(|error| retryable(&error))?;
            // Its errors are those of the request.
            let _task = AbortOnDropHandle::new(tokio::spawn(async move { drop(connection.await) }));
            let request = Request::builder()
                .method(Method::POST)
                .uri(format!("{}{path}", endpoint.path))
                .header(HOST, &endpoint.authority)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(body))
                .map_err(|error| ExportError::Refused(error.to_string()))?;
            let response = sender.send_request(request).await.map_err(|error| retryable(&error))?;
            let (status, headers) = (response.status(), response.headers().clone());
            // Read to its end, so that the receiver does not see a reset connection.
            let _ = Limited::new(response.into_body(), RESPONSE_BYTES_MAX).collect().await;
            match status {
                status if status.is_success() => Ok(()),
                StatusCode::TOO_MANY_REQUESTS
                | StatusCode::BAD_GATEWAY
                | StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::GATEWAY_TIMEOUT => {
                    let after = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok()?.trim().parse().ok());
                    Err(ExportError::Retryable(
                        format!("the receiver answers {status}"),
                        after.map(Duration::from_secs),
                    ))
                }
                status => Err(ExportError::Refused(format!("the receiver answers {status}"))),
            }
        };
        let late = || Err(ExportError::Retryable(format!("no response within {} s", EXPORT_TIMEOUT.as_secs()), None));
        tokio::time::timeout(EXPORT_TIMEOUT, exchange).await.unwrap_or_else(|_| late())
    }
}

fn count(signal: &'static str, outcome: &'static str) {
    counter!("weir_telemetry_exports_total", "signal" => signal, "outcome" => outcome).increment(1);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn url_of_a_receiver_is_checked() {
        let endpoint: Endpoint = "http://[::1]:4318/otlp/".parse().unwrap();
        assert_eq!((endpoint.host.as_str(), endpoint.port, endpoint.path.as_str()), ("::1", 4318, "/otlp"));
        let endpoint: Endpoint = "http://collector".parse().unwrap();
        assert_eq!((endpoint.port, endpoint.path.as_str()), (80, ""));
        for url in ["", "collector:4318", "https://collector", "http://user@collector", "http://collector?a=b", "/v1"] {
            let error = url.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("`{url}` must be a URL")), "{error}");
        }
    }
}
