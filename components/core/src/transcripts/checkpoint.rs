//! The state of a session as plain data.

use std::sync::Arc;

use thiserror::Error;

use super::{Final, Segment, config::SessionConfig, metrics::Counters, route::WORKFLOWS};

/// The state from which a session continues. The configuration is stored separately.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkpoint {
    /// The age of the session, in nanoseconds.
    pub elapsed_ns: u64,
    /// The time since the last input, in nanoseconds.
    pub idle_ns: u64,
    /// Whether the expiry was announced.
    pub warned: bool,
    /// Whether the session has expired.
    pub expired: bool,
    /// The highest accepted sequence number.
    pub seq_last: Option<u64>,
    /// The number of the last numbered event.
    pub events: u64,
    /// Final segments since the last incremental summary.
    pub finals_since_summary: u32,
    /// Final segments since the last end.
    pub finals_since_end: u64,
    /// The counters.
    pub counters: Counters,
    /// The segment in flight.
    pub current: Option<Segment>,
    /// The context window, the oldest first.
    pub window: Vec<Arc<Final>>,
    /// The queue of each workflow, the oldest first.
    pub queues: [Vec<Arc<Final>>; WORKFLOWS],
}

/// Why a session cannot continue from a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// A part exceeds its bound in the configuration.
    #[error("the checkpoint's {what} is {count} and may be at most {max}")]
    TooMuch {
        /// The part.
        what: &'static str,
        /// Its size.
        count: usize,
        /// The bound.
        max: usize,
    },
    /// The parts are inconsistent.
    #[error("the checkpoint's {0}")]
    Inconsistent(&'static str),
}

impl Checkpoint {
    /// Checks the checkpoint against a configuration.
    pub(super) fn check(&self, config: &SessionConfig) -> Result<(), RestoreError> {
        at_most("window", self.window.len(), config.context.max_segments)?;
        for (queue, max) in self.queues.iter().zip(config.routing.queue_len_max) {
            at_most("queue", queue.len(), max)?;
        }
        at_most("queues together", self.queues.iter().map(Vec::len).sum(), config.routing.queued_max)?;
        let finals = self.window.iter().chain(self.queues.iter().flatten());
        for segment in finals.clone() {
            if segment.id >= self.counters.segments_finalized {
                return Err(RestoreError::Inconsistent("final segments are more than were counted"));
            }
        }
        for segment in finals.map(|segment| &segment.segment).chain(&self.current) {
            at_most("text", segment.text.len(), config.limits.segment_bytes_max)?;
            let speaker = segment.speaker_id.as_ref().map_or(0, String::len);
            at_most("speaker", speaker, config.limits.speaker_bytes_max)?;
            if !(segment.start.is_finite() && segment.end.is_finite() && segment.start <= segment.end) {
                return Err(RestoreError::Inconsistent("segments must end after they start"));
            }
        }
        match self.finals_since_end > self.counters.segments_finalized {
            true => Err(RestoreError::Inconsistent("finals since the end are more than were counted")),
            false => Ok(()),
        }
    }
}

fn at_most(what: &'static str, count: usize, max: usize) -> Result<(), RestoreError> {
    if count > max {
        return Err(RestoreError::TooMuch { what, count, max });
    }
    Ok(())
}
