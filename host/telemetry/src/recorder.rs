//! The queue of spans between their ends and their export.

use std::sync::OnceLock;

use metrics::counter;
use tokio::sync::mpsc;

use crate::context::SpanContext;
use crate::span_data::SpanData;

/// Spans that wait for an export; further ones are dropped and counted.
const QUEUE_SPANS_MAX: usize = 8192;

/// Where spans go; set once in a process.
static RECORDER: OnceLock<Recorder> = OnceLock::new();

pub(crate) struct Recorder {
    spans: mpsc::Sender<SpanData>,
    sample_percent: u32,
}

impl Recorder {
    /// Makes this the recorder of the process; returns the recorded spans. If there is a recorder already, the receiver has no sender.
    pub(crate) fn install(sample_percent: u32) -> mpsc::Receiver<SpanData> {
        let (spans, receiver) = mpsc::channel(QUEUE_SPANS_MAX);
        // An error means that there is a recorder.
        let _ = RECORDER.set(Self { spans, sample_percent });
        receiver
    }
}

/// Whether a span with this parent is recorded.
pub(crate) fn is_sampled(parent: Option<&SpanContext>) -> bool {
    let Some(recorder) = RECORDER.get() else { return false };
    match parent {
        Some(parent) => parent.is_sampled,
        None if recorder.sample_percent >= 100 => true,
        None => {
            let mut random = [0; 4];
            getrandom::fill(&mut random).expect("the system has random numbers");
            u64::from(u32::from_ne_bytes(random)) * 100 < u64::from(recorder.sample_percent) << 32
        }
    }
}

/// Queues a span that has ended.
pub(crate) fn record(span: SpanData) {
    if let Some(recorder) = RECORDER.get()
        && recorder.spans.try_send(span).is_err()
    {
        counter!("weir_telemetry_spans_dropped_total").increment(1);
    }
}
