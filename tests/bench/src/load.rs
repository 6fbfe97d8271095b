//! The load generator: the common parts of all shapes of load. One thread, one core, no allocation of requests while it runs.

pub(crate) mod closed;
pub(crate) mod compare;
#[cfg(test)]
mod end_to_end;
pub(crate) mod open;
pub(crate) mod stream;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde::{Deserialize, Serialize};

use crate::corpus::Text;
use crate::histogram::{Histogram, Quantiles};
use crate::http::{Connection, Target};
use crate::process::{self, ResourceUsage};

/// The interval between samples of the server's memory.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(100);

/// The requests and their destination.
pub(crate) struct Load {
    pub(crate) target: Target,
    pub(crate) texts: Vec<Text>,
    pub(crate) requests: Vec<Vec<u8>>,
    pub(crate) seed: u64,
    /// A response within this time counts as good.
    pub(crate) slo: Duration,
    /// The server's process, if its memory and processor time are measured.
    pub(crate) pid: Option<u32>,
    pub(crate) times: Times,
}

/// The phases of a run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Times {
    /// Warm-up, not measured.
    pub(crate) warm: Duration,
    /// The measured window.
    pub(crate) window: Duration,
    /// Time for open requests at the end.
    pub(crate) drain: Duration,
}

impl Load {
    pub(crate) fn new(target: Target, texts: Vec<Text>, seed: u64, times: Times) -> Self {
        let requests = texts.iter().map(|text| target.request(text)).collect();
        Self { target, texts, requests, seed, slo: Duration::from_millis(100), pid: None, times }
    }
}

/// The results of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Measured {
    /// The load: connections of a closed loop, arrivals per second of an open one, items of a stream.
    pub(crate) load: f64,
    pub(crate) window_s: f64,
    /// Requests of the window: sent (closed), due (open).
    pub(crate) requests: u64,
    /// Answered with 200.
    pub(crate) answered: u64,
    /// Answered with 429 or 503.
    pub(crate) rejected: u64,
    /// Any other status, and broken connections.
    pub(crate) failed: u64,
    /// Without a response at the end of the drain time.
    pub(crate) unanswered: u64,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) first_failure: Option<String>,
    /// Responses with 200.
    pub(crate) texts_per_s: f64,
    /// Real tokens: no padding, special tokens included.
    pub(crate) tokens_per_s: f64,
    /// Answered with 200 within the goal.
    pub(crate) good: u64,
    pub(crate) good_per_s: f64,
    /// The share of good requests in the window.
    pub(crate) good_share: f64,
    /// Of responses with 200; an open loop measures from the due time of the request.
    pub(crate) latency_ms: Quantiles,
    pub(crate) rejection_ms: Quantiles,
    /// From the due time of a request to its write: the lag of the generator itself.
    pub(crate) lag_ms: Quantiles,
    pub(crate) server: ResourceUsage,
    /// Processor time of the generator, s.
    pub(crate) generator_cpu_s: f64,
    /// With one connection: index of the text and its latency, µs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) samples: Vec<(u32, f64)>,
    /// Of a stream.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) stream: Option<StreamResult>,
}

/// The results of a stream.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StreamResult {
    /// From the request to the first line, ms.
    pub(crate) first_ms: f64,
    /// Longest silence between two lines, ms.
    pub(crate) silence_max_ms: f64,
    /// Lines that are failures of an item.
    pub(crate) item_failures: u64,
    /// Whether the last line has `done`.
    pub(crate) done: bool,
}

/// Counts during a run.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    measured: Measured,
    latency: Histogram,
    rejection: Histogram,
    lag: Histogram,
}

impl Tally {
    /// Records a response, or an error, after `latency`.
    pub(crate) fn outcome(&mut self, outcome: Result<u16>, latency: Duration, slo: Duration) -> bool {
        let ns = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        let status = match outcome {
            Ok(status) => status,
            Err(error) => {
                self.measured.failed += 1;
                self.measured.first_failure.get_or_insert_with(|| format!("{error:#}"));
                return false;
            }
        };
        *self.measured.statuses.entry(status).or_default() += 1;
        match status {
            200 => {
                self.measured.answered += 1;
                self.measured.good += u64::from(latency <= slo);
                self.latency.record(ns);
                return true;
            }
            429 | 503 => {
                self.measured.rejected += 1;
                self.rejection.record(ns);
            }
            other => {
                self.measured.failed += 1;
                self.measured.first_failure.get_or_insert_with(|| format!("status {other}"));
            }
        }
        false
    }

    fn finish(mut self, load: f64, window: Duration) -> Measured {
        let seconds = window.as_secs_f64();
        self.measured.load = load;
        self.measured.window_s = seconds;
        self.measured.latency_ms = self.latency.quantiles();
        self.measured.rejection_ms = self.rejection.quantiles();
        self.measured.lag_ms = self.lag.quantiles();
        self.measured.good_per_s = self.measured.good as f64 / seconds;
        self.measured.good_share = self.measured.good as f64 / self.measured.requests.max(1) as f64;
        self.measured
    }
}

/// Sends one request and reads its whole response. A broken or non-persistent connection is dropped.
pub(crate) async fn send_request(
    connection: &mut Option<Connection>,
    target: &Target,
    request: &[u8],
    body: &mut Vec<u8>,
    sent: impl FnOnce(),
) -> Result<u16> {
    let mut open = match connection.take() {
        Some(open) => open,
        None => Connection::open(target.address).await?,
    };
    open.send(request).await?;
    sent();
    let status = open.receive(body).await?;
    if open.reusable {
        *connection = Some(open);
    }
    Ok(status)
}

/// Samples the server while `work` runs, from `from` on.
pub(crate) async fn sample_server(pid: Option<u32>, from: Instant, work: impl Future<Output = Measured>) -> Measured {
    let own = [std::process::id()];
    let own_before = process::cpu_s(&own);
    // Memory at the first sample, the maximum, at the last sample; processor time at the first sample.
    let last_sample = Cell::new(None::<(ResourceUsage, f64)>);
    let sampling = async {
        let Some(pid) = pid else { return std::future::pending().await };
        tokio::time::sleep_until(from.into()).await;
        let pids = process::tree(pid);
        let first = process::resident_bytes(&pids);
        let before = process::cpu_s(&pids);
        let mut server = ResourceUsage { resident_first_bytes: first, ..ResourceUsage::default() };
        loop {
            server.resident_last_bytes = process::resident_bytes(&pids);
            server.resident_max_bytes = server.resident_max_bytes.max(server.resident_last_bytes);
            server.cpu_s = process::cpu_s(&pids) - before;
            last_sample.set(Some((server, before)));
            tokio::time::sleep(SAMPLE_INTERVAL).await;
        }
    };
    let mut measured = tokio::select! {
        measured = work => measured,
        never = sampling => never,
    };
    if let (Some((server, before)), Some(pid)) = (last_sample.take(), pid) {
        let cpu_s = (process::cpu_s(&process::tree(pid)) - before).max(server.cpu_s);
        measured.server = ResourceUsage { cpu_s, ..server };
    }
    measured.generator_cpu_s = process::cpu_s(&own) - own_before;
    measured
}
