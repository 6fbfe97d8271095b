//! Chunks of a transcript joined into segments: one in flight, final when the speaker changes or pauses.

use thiserror::Error;

/// A piece of a transcript as a recognizer gives it.
#[derive(Debug, Clone, PartialEq)]
pub struct Chunk {
    /// In seconds.
    pub start: f64,
    /// In seconds.
    pub end: f64,
    /// Joined to the earlier text with a space; never trimmed.
    pub text: String,
    /// Who speaks. None is a speaker too: the same as any other none.
    pub speaker_id: Option<String>,
}

/// What one speaker said without a pause.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Of its first chunk, in seconds.
    pub start: f64,
    /// Of its last chunk, in seconds.
    pub end: f64,
    /// The texts of its chunks.
    pub text: String,
    /// Who speaks.
    pub speaker_id: Option<String>,
}

impl Segment {
    /// Bytes on the heap.
    pub fn heap_bytes(&self) -> usize {
        self.text.capacity() + self.speaker_id.as_ref().map_or(0, String::capacity)
    }
}

/// Why a chunk was not taken. The state is as it was before.
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
    /// It starts before the segment in flight ends; where chunks may overlap, before that segment starts.
    #[error("Chunks must arrive in non-decreasing time order")]
    OutOfOrder {
        /// Where the segment in flight ends, in seconds.
        current_end: f64,
    },
    /// Its text is too long.
    #[error("Chunk text must have at most {bytes_max} bytes, and has {bytes}")]
    TextTooLong {
        /// What it has.
        bytes: usize,
        /// What it may have.
        bytes_max: usize,
    },
    /// The name of its speaker is too long.
    #[error("Chunk speaker_id must have at most {bytes_max} bytes, and has {bytes}")]
    SpeakerTooLong {
        /// What it has.
        bytes: usize,
        /// What it may have.
        bytes_max: usize,
    },
    /// The session has expired.
    #[error("the session has expired")]
    Expired,
    /// Events of earlier chunks must be taken first. Trying again then is safe.
    #[error("events of earlier chunks were not taken")]
    Undrained,
}

impl ChunkError {
    /// A constant for programs: the rule that was broken.
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

    /// The field that is wrong, if one is.
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

/// Times this close are equal, seconds: recognizers compute times, and `0.1 + 0.2` starts after `0.3` ends by less.
const NOISE_SEC: f64 = 1e-6;

/// The segment in flight.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Segmenter {
    pub(super) current: Option<Segment>,
}

impl Segmenter {
    /// Whether a chunk may come now, as slower-whisper checks it and in its order, but for [`NOISE_SEC`]. With `overlap` it may start
    /// while the segment in flight lasts, and not before that one starts.
    pub(super) fn check(&self, chunk: &Chunk, overlap: bool) -> Result<(), ChunkError> {
        for (field, value) in [("start", chunk.start), ("end", chunk.end)] {
            if !value.is_finite() {
                return Err(ChunkError::NotFinite { field });
            }
        }
        if chunk.end < chunk.start - NOISE_SEC {
            return Err(ChunkError::EndBeforeStart);
        }
        match &self.current {
            Some(current) if chunk.start < if overlap { current.start } else { current.end } - NOISE_SEC => {
                Err(ChunkError::OutOfOrder { current_end: current.end })
            }
            _ => Ok(()),
        }
    }

    /// Takes a chunk that [`Self::check`] lets through. Returns the segment that it closes.
    pub(super) fn take(&mut self, chunk: Chunk, max_gap_sec: f64, segment_bytes_max: usize) -> Option<Segment> {
        if let Some(current) = &mut self.current
            && current.speaker_id == chunk.speaker_id
            && chunk.start - current.end <= max_gap_sec
            && current.text.len() + 1 + chunk.text.len() <= segment_bytes_max
        {
            // One that overlaps may end before, and noise may.
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
