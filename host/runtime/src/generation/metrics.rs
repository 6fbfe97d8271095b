//! The metrics of a language model.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

use crate::bindings::lm::weir::stream::lm::Row;

pub(super) struct PoolMetrics {
    /// Requests that have not started.
    pub(super) queued: Gauge,
    /// Requests that have started and not ended.
    pub(super) running: Gauge,
    pub(super) refused: Counter,
    pub(super) cancelled: Counter,
    pub(super) failures: Counter,
    /// Failed requests that were submitted to another backend.
    pub(super) fallbacks: Counter,
    pub(super) requests: Counter,
    pub(super) tokens: Counter,
    pub(super) prompt_tokens: Counter,
    pub(super) cached_tokens: Counter,
    pub(super) restarts: Counter,
    pub(super) ready: Gauge,
    /// From the arrival of a request to its first token.
    pub(super) first_token: Histogram,
    prefill_tokens: Counter,
    step: Histogram,
    pages_free: Gauge,
}

impl PoolMetrics {
    pub(super) fn new(name: &str) -> Self {
        let name = name.to_owned();
        let counter = |metric: &'static str| metrics::counter!(metric, "model" => name.clone());
        let gauge = |metric: &'static str| metrics::gauge!(metric, "model" => name.clone());
        let histogram = |metric: &'static str| metrics::histogram!(metric, "model" => name.clone());
        Self {
            queued: gauge("weir_generate_requests_queued"),
            running: gauge("weir_generate_requests_running"),
            refused: counter("weir_generate_requests_overloaded_total"),
            cancelled: counter("weir_generate_requests_cancelled_total"),
            failures: counter("weir_generate_failures_total"),
            fallbacks: counter("weir_generate_fallbacks_total"),
            requests: counter("weir_generate_requests_total"),
            tokens: counter("weir_generate_tokens_total"),
            prompt_tokens: counter("weir_generate_prompt_tokens_total"),
            cached_tokens: counter("weir_generate_cached_tokens_total"),
            restarts: counter("weir_generate_restarts_total"),
            ready: gauge("weir_generate_ready"),
            first_token: histogram("weir_generate_first_token_seconds"),
            prefill_tokens: counter("weir_generate_prefill_tokens_total"),
            step: histogram("weir_generate_step_seconds"),
            pages_free: gauge("weir_generate_pages_free"),
        }
    }

    pub(super) fn handle_step(&self, shape: RowsShape, pages_free: u32, duration: Duration) {
        self.tokens.increment(shape.sampled);
        self.prefill_tokens.increment(shape.prefill_tokens);
        self.step.record(duration.as_secs_f64());
        self.pages_free.set(f64::from(pages_free));
    }
}

/// The token counts of a step, for the metrics.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowsShape {
    /// Tokens that are sampled.
    sampled: u64,
    /// Tokens of prompts, which are computed and were not sampled.
    prefill_tokens: u64,
}

impl RowsShape {
    pub(super) fn of(rows: &[Row]) -> Self {
        let sampled = rows.iter().filter(|row| row.sample.is_some()).count() as u64;
        // A row of one token that samples counts as a continuation, although it may be the end of a prompt.
        let prefill = rows.iter().filter(|row| row.sample.is_none() || row.tokens.len() > 1);
        Self { sampled, prefill_tokens: prefill.map(|row| row.tokens.len() as u64).sum() }
    }
}
