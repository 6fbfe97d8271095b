//! What a pool shows of itself at `/metrics`.

use metrics::{Counter, Gauge, counter, gauge};

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
}

impl PoolMetrics {
    pub(super) fn new(name: &str) -> Self {
        let name = name.to_owned();
        let counts = |metric: &'static str| counter!(metric, "model" => name.clone());
        let shows = |metric: &'static str| gauge!(metric, "model" => name.clone());
        Self {
            items: counts("weir_infer_items_total"),
            tokens: counts("weir_infer_tokens_total"),
            failures: counts("weir_infer_failures_total"),
            restarts: counts("weir_infer_replica_restarts_total"),
            hangs: counts("weir_infer_replica_hangs_total"),
            ready: shows("weir_infer_replicas_ready"),
            hanging: shows("weir_infer_threads_hanging"),
            waiting: shows("weir_infer_queue_items"),
            waiting_tokens: shows("weir_infer_queue_tokens"),
            circuit: shows("weir_infer_circuit_open"),
            abandoned: counts("weir_infer_items_abandoned_total"),
            expired: counts("weir_infer_items_expired_total"),
            overloaded: counts("weir_infer_items_overloaded_total"),
            throttled: counts("weir_infer_items_throttled_total"),
            refused: counts("weir_infer_items_circuit_open_total"),
            retried: counts("weir_infer_items_retried_total"),
        }
    }
}
