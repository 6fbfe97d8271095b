//! The state of a session as data.

use std::sync::Arc;

use thiserror::Error;

use super::{Final, Segment, config::SessionConfig, metrics::Counters, route::WORKFLOWS};

/// All of a session that must survive it. It says nothing of the configuration, which is stored beside it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Checkpoint {
    /// How long the session has lived, in nanoseconds.
    pub elapsed_ns: u64,
    /// How long nothing has come, in nanoseconds.
    pub idle_ns: u64,
    /// It was said that the session is about to expire.
    pub warned: bool,
    /// The session has expired.
    pub expired: bool,
    /// The sequence number of the last chunk that had one.
    pub seq_last: Option<u64>,
    /// Numbered events so far.
    pub events: u64,
    /// Final segments since the last incremental summary.
    pub finals_since_summary: u32,
    /// Final segments since the last end.
    pub finals_since_end: u64,
    /// All that is counted.
    pub counters: Counters,
    /// The segment in flight.
    pub current: Option<Segment>,
    /// The context window, the oldest first.
    pub window: Vec<Arc<Final>>,
    /// The queue of each workflow, the oldest first.
    pub queues: [Vec<Arc<Final>>; WORKFLOWS],
}

/// Why a checkpoint makes no session.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RestoreError {
    /// There is more than the configuration allows.
    #[error("the checkpoint's {what} is {count} and may be at most {max}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// How much there is.
        count: usize,
        /// How much there may be.
        max: usize,
    },
    /// Its parts do not fit each other.
    #[error("the checkpoint's {0}")]
    Inconsistent(&'static str),
}

impl Checkpoint {
    /// Checks that a session of this configuration can have left it.
    pub(super) fn check(&self, config: &SessionConfig) -> Result<(), RestoreError> {
        at_most("window", self.window.len(), config.context.max_segments)?;
        for (queue, max) in self.queues.iter().zip(config.routing.queue_len_max) {
            at_most("queue", queue.len(), max)?;
        }
        at_most("queues together", self.queues.iter().map(Vec::len).sum(), config.routing.queued_max)?;
        let finals = self.window.iter().chain(self.queues.iter().flatten());
        for kept in finals.clone() {
            if kept.id >= self.counters.segments_finalized {
                return Err(RestoreError::Inconsistent("final segments are more than were counted"));
            }
        }
        for segment in finals.map(|kept| &kept.segment).chain(&self.current) {
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
