//! Metrics: the Prometheus recorder of the process.

use std::time::Duration;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

use tokio::task::JoinHandle;

use crate::metric::{METRICS, Metric, MetricKind};

/// The recorder cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded: {0}")]
pub struct ObserverError(String);

/// Renders the metrics of the process.
#[derive(Clone)]
pub struct Observer {
    handle: PrometheusHandle,
}

/// Upper bounds of the latency histograms, seconds.
const LATENCY_BOUNDS_S: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

/// Upper bounds of the sizes of batches, items.
const BATCH_BOUNDS: [f64; 8] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0];

/// Upper bounds of the shares of a batch that are filled.
const FILL_BOUNDS: [f64; 8] = [0.05, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 2.0];

/// How often samples are added to their buckets.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

impl Observer {
    /// Installs the recorder of the process. Must be called once, before the first metric.
    pub fn install() -> Result<Self, ObserverError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_BOUNDS_S)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Full("weir_infer_batch_items".into()), &BATCH_BOUNDS)
            })
            .and_then(|builder| builder.set_buckets_for_metric(Matcher::Suffix("_ratio".into()), &FILL_BOUNDS))
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| ObserverError(error.to_string()))?;
        describe();
        Ok(Self { handle })
    }

    /// Adds the samples of histograms to their buckets from time to time, even if the metrics are never read: until then
    /// the recorder keeps each sample. The task ends when the guard is dropped.
    pub(crate) fn start_upkeep(&self) -> UpkeepGuard {
        let handle = self.handle.clone();
        UpkeepGuard(tokio::spawn(repeat(UPKEEP_INTERVAL, move || handle.run_upkeep())))
    }

    /// The text of `/metrics`, in the Prometheus exposition format 0.0.4.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
    }
}

/// Ends the upkeep of an [`Observer`] when it is dropped.
pub(crate) struct UpkeepGuard(JoinHandle<()>);

impl Drop for UpkeepGuard {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn repeat(interval: Duration, action: impl Fn()) {
    loop {
        tokio::time::sleep(interval).await;
        action();
    }
}

fn describe() {
    for Metric { name, kind, help, .. } in METRICS {
        match kind {
            MetricKind::Counter => metrics::describe_counter!(*name, *help),
            MetricKind::Gauge => metrics::describe_gauge!(*name, *help),
            MetricKind::Histogram => metrics::describe_histogram!(*name, *help),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn upkeep_runs_without_a_reader_of_metrics_until_its_guard_is_dropped() {
        let (count, changed) = (Arc::new(AtomicUsize::new(0)), Arc::new(tokio::sync::Notify::new()));
        let (counter, notify) = (count.clone(), changed.clone());
        let guard = UpkeepGuard(tokio::spawn(repeat(Duration::from_millis(1), move || {
            counter.fetch_add(1, Ordering::Relaxed);
            notify.notify_one();
        })));
        while count.load(Ordering::Relaxed) < 3 {
            changed.notified().await;
        }
        drop(guard);
        // The task holds a clone until it has ended.
        while Arc::strong_count(&count) > 1 {
            tokio::task::yield_now().await;
        }
    }
}
