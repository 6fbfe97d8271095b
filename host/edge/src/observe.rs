//! Metrics: the Prometheus recorder of the process.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

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

impl Observer {
    /// Installs the recorder of the process. Must be called once, before the first metric.
    pub fn install() -> Result<Self, ObserverError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_BOUNDS_S)
            .and_then(|builder| {
                builder.set_buckets_for_metric(Matcher::Full("weir_infer_batch_items".into()), &BATCH_BOUNDS)
            })
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(|error| ObserverError(error.to_string()))?;
        describe();
        Ok(Self { handle })
    }

    /// The text of `/metrics`, in the Prometheus exposition format 0.0.4.
    pub fn render(&self) -> String {
        self.handle.run_upkeep();
        self.handle.render()
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
