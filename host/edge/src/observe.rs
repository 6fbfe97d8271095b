//! Metrics: a Prometheus recorder for the whole process.

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};

/// The recorder cannot be installed.
#[derive(Debug, thiserror::Error)]
#[error("metrics cannot be recorded: {0}")]
pub struct ObserverError(String);

/// Renders what the process has counted.
#[derive(Clone)]
pub struct Observer {
    handle: PrometheusHandle,
}

/// Upper bounds of the latency histograms, seconds.
const LATENCY_BOUNDS_S: [f64; 14] =
    [0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

impl Observer {
    /// Installs the recorder of this process; to be called once, before anything is counted.
    pub fn install() -> Result<Self, ObserverError> {
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".into()), &LATENCY_BOUNDS_S)
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
    use metrics::{describe_counter, describe_gauge, describe_histogram};
    describe_counter!("weir_http_requests_total", "requests answered, by method and status");
    describe_gauge!("weir_http_requests_open", "requests in progress, bodies included");
    describe_gauge!("weir_http_connections_open", "connections held");
    describe_gauge!("weir_http_connections_held", "connections held for subscribers, without a guest");
    describe_counter!("weir_http_rejected_total", "requests answered 503 because the server was full");
    describe_histogram!("weir_http_first_byte_seconds", "time from a request's header to its answer's header, seconds");
    describe_counter!("weir_gateway_instances_total", "gateway instances made");
    describe_counter!("weir_gateway_instances_lost_total", "gateway instances lost to a trap or a limit");
    describe_counter!("weir_infer_items_total", "items handed to a replica, by model");
    describe_counter!("weir_infer_failures_total", "items answered with a failure by a replica, by model");
    describe_counter!(
        "weir_infer_items_abandoned_total",
        "items never computed because their caller was gone, by model"
    );
    describe_counter!("weir_infer_replica_restarts_total", "replicas lost and made anew, by model");
    describe_gauge!("weir_infer_replicas_ready", "replicas that have answered, by model");
    describe_gauge!("weir_infer_queue_items", "items waiting, by model");
}
