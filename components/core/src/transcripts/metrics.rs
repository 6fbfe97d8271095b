//! The metrics of a session.

use super::route::WORKFLOWS;

/// Counts of a session, which continue across a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Accepted chunks.
    pub chunks_ingested: u64,
    /// Segments that have become final.
    pub segments_finalized: u64,
    /// Partial segments that were published.
    pub segments_partial: u64,
    /// Calls of a language model, as reported by the driver.
    pub llm_calls: u64,
    /// Chunks that were refused.
    pub chunks_refused: u64,
    /// Chunks that were received before.
    pub chunks_repeated: u64,
    /// Segments that were dropped from the queue of each workflow.
    pub segments_dropped: [u64; WORKFLOWS],
}

/// The latency of events, from the input to the poll.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Latency {
    /// The number of events.
    pub count: u64,
    /// The sum, in nanoseconds.
    pub total_ns: u64,
    /// The maximum, in nanoseconds.
    pub max_ns: u64,
}

impl Latency {
    pub(super) fn record(&mut self, ns: u64) {
        self.count += 1;
        self.total_ns = self.total_ns.saturating_add(ns);
        self.max_ns = self.max_ns.max(ns);
    }

    /// The mean, in milliseconds; 0 without events.
    pub fn mean_ms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.total_ns as f64 / self.count as f64 / 1e6 }
    }
}

/// The metrics of a session at a time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metrics {
    /// The counters.
    pub counters: Counters,
    /// The time since the session started, in seconds, including the time in a checkpoint that the driver reported.
    pub elapsed_sec: f64,
    /// Accepted chunks per second; 0 if no time has passed.
    pub chunks_per_sec: f64,
    /// Calls of a language model per minute; 0 if no time has passed.
    pub llm_calls_per_min: f64,
    /// The number of segments in the queue of each workflow.
    pub queue_depths: [usize; WORKFLOWS],
    /// The number of segments in the context window.
    pub context_segments: usize,
    /// The time from the start of the first segment of the window to the end of the last one, in seconds.
    pub context_span_sec: f64,
    /// The latency of events since the session was started or restored.
    pub latency: Latency,
}

impl Metrics {
    pub(super) fn rate(count: u64, elapsed_sec: f64) -> f64 {
        if elapsed_sec > 0.0 { count as f64 / elapsed_sec } else { 0.0 }
    }
}
