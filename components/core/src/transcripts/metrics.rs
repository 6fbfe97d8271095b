//! What a session counts.

use super::route::WORKFLOWS;

/// Counts of a session, which continue across a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Chunks that were taken.
    pub chunks_ingested: u64,
    /// Segments that have become final.
    pub segments_finalized: u64,
    /// Partial states of segments that were sent.
    pub segments_partial: u64,
    /// Calls of a language model, as the driver reports them.
    pub llm_calls: u64,
    /// Chunks that were refused.
    pub chunks_refused: u64,
    /// Chunks that had come before.
    pub chunks_repeated: u64,
    /// Segments that were dropped from the queue of each workflow.
    pub segments_dropped: [u64; WORKFLOWS],
}

/// How long it took from a chunk's arrival to its events being taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// Events.
    pub count: u64,
    /// In nanoseconds.
    pub total_ns: u64,
    /// In nanoseconds.
    pub max_ns: u64,
}

impl Latency {
    pub(super) fn record(&mut self, ns: u64) {
        self.count += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// The mean, in milliseconds; 0 when nothing was measured.
    pub fn mean_ms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.total_ns as f64 / self.count as f64 / 1e6 }
    }
}

/// A report.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// All that is counted.
    pub counters: Counters,
    /// Since the session started, in seconds; the driver reports the time for which it was a checkpoint.
    pub elapsed_sec: f64,
    /// 0 when no time has passed.
    pub chunks_per_sec: f64,
    /// 0 when no time has passed.
    pub llm_calls_per_min: f64,
    /// Segments in the queue of each workflow.
    pub queue_depths: [usize; WORKFLOWS],
    /// Segments in the context window.
    pub context_segments: usize,
    /// From the start of the first to the end of the last of them, in seconds.
    pub context_span_sec: f64,
    /// Of events since the session began or was restored.
    pub latency: Latency,
}

impl Metrics {
    pub(super) fn rate(count: u64, elapsed_sec: f64) -> f64 {
        if elapsed_sec > 0.0 { count as f64 / elapsed_sec } else { 0.0 }
    }
}
