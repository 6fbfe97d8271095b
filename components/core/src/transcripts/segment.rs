//! The segmentation of a transcript: chunks extend the segment in flight, which is final when the speaker changes or
//! pauses.

use thiserror::Error;

/// A chunk of a transcript from speech recognition.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// The start, in seconds.
    pub start: f64,
    /// The end, in seconds.
    pub end: f64,
    /// The text, appended to the segment after a space; not trimmed.
    pub text: String,
    /// The speaker. Chunks without a speaker count as those of one speaker.
    pub speaker_id: Option<String>,
}

/// A part of a transcript that one speaker said without a pause.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// The start of its first chunk, in seconds.
    pub start: f64,
    /// The latest end of its chunks, in seconds.
    pub end: f64,
    /// The joined texts of its chunks.
    pub text: String,
    /// The speaker.
    pub speaker_id: Option<String>,
}

impl Segment {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.text.capacity() + self.speaker_id.as_ref().map_or(0, String::capacity)
    }
}

/// Why a chunk was refused. The state is unchanged.
#[derive(Debug, Clone, PartialEq, Error)]
pub enum ChunkError {
    /// A time is not a number, or infinite.
    #[error("Chunk {field} must be a finite number of seconds")]
    NotFinite {
        /// `start` or `end`.
        field: &'static str,
    },
    /// It ends before it starts.
    #[error("Chunk end must be >= start")]
    EndBeforeStart,
    /// It starts before the end of the segment in flight; with `overlap`, before its start.
    #[error("Chunks must arrive in non-decreasing time order")]
    OutOfOrder {
        /// The end of the segment in flight, in seconds.
        current_end: f64,
    },
    /// Its text is too long.
    #[error("Chunk text must have at most {bytes_max} bytes, and has {bytes}")]
    TextTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The name of its speaker is too long.
    #[error("Chunk speaker_id must have at most {bytes_max} bytes, and has {bytes}")]
    SpeakerTooLong {
        /// Its length.
        bytes: usize,
        /// The bound.
        bytes_max: usize,
    },
    /// The session has expired.
    #[error("the session has expired")]
    Expired,
    /// Events of earlier chunks must be polled first. Then a retry is safe.
    #[error("events of earlier chunks were not taken")]
    Undrained,
}

impl ChunkError {
    /// A constant name of the violated rule, for programs.
    pub fn rule(&self) -> &'static str {
        match self {
            Self::NotFinite { .. } => "not_finite",
            Self::EndBeforeStart => "end_before_start",
            Self::OutOfOrder { .. } => "out_of_order",
            Self::TextTooLong { .. } => "text_too_long",
            Self::SpeakerTooLong { .. } => "speaker_too_long",
            Self::Expired => "session_expired",
            Self::Undrained => "events_waiting",
        }
    }

    /// The invalid field, if there is one.
    pub fn field(&self) -> Option<&'static str> {
        match self {
            Self::NotFinite { field } => Some(field),
            Self::EndBeforeStart => Some("end"),
            Self::OutOfOrder { .. } => Some("start"),
            Self::TextTooLong { .. } => Some("text"),
            Self::SpeakerTooLong { .. } => Some("speaker_id"),
            Self::Expired | Self::Undrained => None,
        }
    }
}

/// The tolerance of time comparisons, in seconds. Recognizers compute times, and `0.1 + 0.2` differs from `0.3` by
/// less.
const TOLERANCE_SEC: f64 = 1e-6;

/// The segment in flight.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Segmenter {
    pub(super) current: Option<Segment>,
}

impl Segmenter {
    /// Checks a chunk as slower-whisper does, in the same order, but with [`TOLERANCE_SEC`]. With `overlap` it may
    /// start before the end of the segment in flight, but not before its start.
    pub(super) fn check(&self, chunk: &Chunk, overlap: bool) -> Result<(), ChunkError> {
        for (field, value) in [("start", chunk.start), ("end", chunk.end)] {
            if !value.is_finite() {
                return Err(ChunkError::NotFinite { field });
            }
        }
        if chunk.end < chunk.start - TOLERANCE_SEC {
            return Err(ChunkError::EndBeforeStart);
        }
        match &self.current {
            Some(current) if chunk.start < if overlap { current.start } else { current.end } - TOLERANCE_SEC => {
                Err(ChunkError::OutOfOrder { current_end: current.end })
            }
            _ => Ok(()),
        }
    }

    /// Adds a chunk that [`Self::check`] accepts. Returns the segment that becomes final.
    pub(super) fn take(&mut self, chunk: Chunk, max_gap_sec: f64, segment_bytes_max: usize) -> Option<Segment> {
        if let Some(current) = &mut self.current
            && current.speaker_id == chunk.speaker_id
            && chunk.start - current.end <= max_gap_sec
            && current.text.len() + 1 + chunk.text.len() <= segment_bytes_max
        {
            // The chunk can end before the segment, by overlap or by rounding.
            current.end = current.end.max(chunk.end);
            if !chunk.text.is_empty() {
                if !current.text.is_empty() && !current.text.ends_with(' ') {
                    current.text.push(' ');
                }
                current.text.push_str(&chunk.text);
            }
            return None;
        }
        let Chunk { start, end, text, speaker_id } = chunk;
        self.current.replace(Segment { start, end: end.max(start), text, speaker_id })
    }
}
