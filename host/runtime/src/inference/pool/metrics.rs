//! The metrics of a pool.

use metrics::{Counter, Gauge, Histogram};

pub(super) struct PoolMetrics {
    pub(super) items: Counter,
    pub(super) tokens: Counter,
    pub(super) failures: Counter,
    pub(super) restarts: Counter,
    pub(super) hangs: Counter,
    pub(super) ready: Gauge,
    pub(super) hanging: Gauge,
    pub(super) waiting: Gauge,
    pub(super) waiting_tokens: Gauge,
    pub(super) circuit: Gauge,
    pub(super) abandoned: Counter,
    pub(super) expired: Counter,
    pub(super) overloaded: Counter,
    pub(super) throttled: Counter,
    pub(super) refused: Counter,
    pub(super) retried: Counter,
    pub(super) batch_items: Histogram,
    pub(super) batch_fill: Histogram,
    pub(super) compute_seconds: Histogram,
    pub(super) queue_seconds: Histogram,
    pub(super) item_seconds: Histogram,
}

impl PoolMetrics {
    pub(super) fn new(name: &str) -> Self {
        let name = name.to_owned();
        let counter = |metric: &'static str| metrics::counter!(metric, "model" => name.clone());
        let gauge = |metric: &'static str| metrics::gauge!(metric, "model" => name.clone());
        let histogram = |metric: &'static str| metrics::histogram!(metric, "model" => name.clone());
        Self {
            items: counter("weir_infer_items_total"),
            tokens: counter("weir_infer_tokens_total"),
            failures: counter("weir_infer_failures_total"),
            restarts: counter("weir_infer_replica_restarts_total"),
            hangs: counter("weir_infer_replica_hangs_total"),
            ready: gauge("weir_infer_replicas_ready"),
            hanging: gauge("weir_infer_threads_hanging"),
            waiting: gauge("weir_infer_queue_items"),
            waiting_tokens: gauge("weir_infer_queue_tokens"),
            circuit: gauge("weir_infer_circuit_open"),
            abandoned: counter("weir_infer_items_abandoned_total"),
            expired: counter("weir_infer_items_expired_total"),
            overloaded: counter("weir_infer_items_overloaded_total"),
            throttled: counter("weir_infer_items_throttled_total"),
            refused: counter("weir_infer_items_circuit_open_total"),
            retried: counter("weir_infer_items_retried_total"),
            batch_items: histogram("weir_infer_batch_items"),
            batch_fill: histogram("weir_infer_batch_fill_ratio"),
            compute_seconds: histogram("weir_infer_compute_seconds"),
            queue_seconds: histogram("weir_infer_queue_seconds"),
            item_seconds: histogram("weir_infer_item_seconds"),
        }
    }
}
