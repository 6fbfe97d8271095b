//! Encodes and decodes the state of a session: JSON with a version and the configuration of the session.
//!
//! An unknown version is refused. Stored bytes may be damaged or forged: every length is checked against the configuration, and every
//! invariant of a session is checked before it is restored.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;
use weir_core::transcripts::{
    Annotation, Checkpoint, Counters, Final, Intent, RestoreError, Segment, Session, SessionRules, Workflow,
    annotate::KeywordMatch,
};

use super::config::SessionRequest;
use crate::json::{field::RequestError, to_vec};

/// The version that is written.
pub const VERSION: u32 = 1;
/// Maximum number of bytes of a checkpoint.
pub const CHECKPOINT_BYTES_MAX: usize = 64 << 20;

/// Why bytes are not the state of a session.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// There are too many bytes.
    #[error("the checkpoint has {0} bytes, and may have {CHECKPOINT_BYTES_MAX}")]
    TooLarge(usize),
    /// The bytes are not the JSON of a checkpoint.
    #[error("the checkpoint cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The version is not supported.
    #[error("the checkpoint has version {0}; this is version {VERSION}")]
    Version(u32),
    /// The configuration is invalid.
    #[error("the configuration in the checkpoint: {0}")]
    Config(#[from] RequestError),
    /// A name is unknown.
    #[error("the checkpoint names the {kind} `{name}`, which is none")]
    Name {
        /// The kind of name.
        kind: &'static str,
        /// The name, shortened.
        name: String,
    },
    /// The state is not consistent.
    #[error(transparent)]
    State(#[from] RestoreError),
}

/// Encodes a session.
pub fn encode(request: &SessionRequest, checkpoint: &Checkpoint) -> Vec<u8> {
    let config = String::from_utf8(request.to_json()).expect("JSON is UTF-8");
    to_vec(&Stored { version: VERSION, config, state: State::new(checkpoint) })
}

/// Decodes a session and its configuration. `rules` parses the configuration and returns it with its rules, which sessions may share.
///
/// # Errors
///
/// [`CheckpointError`]
pub fn decode(
    bytes: &[u8],
    rules: impl FnOnce(&str) -> Result<(SessionRequest, Arc<SessionRules>), RequestError>,
    now_ns: u64,
) -> Result<(SessionRequest, Session), CheckpointError> {
    if bytes.len() > CHECKPOINT_BYTES_MAX {
        return Err(CheckpointError::TooLarge(bytes.len()));
    }
    let Version { version } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        return Err(CheckpointError::Version(version));
    }
    let stored: Stored = serde_json::from_slice(bytes)?;
    let (request, rules) = rules(&stored.config)?;
    let checkpoint = stored.state.checkpoint()?;
    let session = Session::restore(rules, checkpoint, now_ns)?;
    Ok((request, session))
}

/// Parses a configuration and builds rules for it. For [`decode`] without shared rules.
///
/// # Errors
///
/// [`RequestError`]
pub fn own_rules(config: &str) -> Result<(SessionRequest, Arc<SessionRules>), RequestError> {
    let request = SessionRequest::from_json(config.as_bytes())?;
    let rules = SessionRules::new(request.config.clone()).expect("from_json checks the configuration");
    Ok((request, rules))
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// JSON in a string, since a tree of values would lose the order of keywords, which matters.
    config: String,
    state: State,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    elapsed_ns: u64,
    idle_ns: u64,
    warned: bool,
    expired: bool,
    seq_last: Option<u64>,
    events: u64,
    finals_since_summary: u32,
    finals_since_end: u64,
    counters: Counts,
    current: Option<SegmentJson>,
    window: Vec<WindowSegment>,
    /// Indexes in the window, or segments that are no longer in it.
    queues: [Vec<Queued>; 4],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Counts {
    chunks_ingested: u64,
    segments_finalized: u64,
    segments_partial: u64,
    llm_calls: u64,
    chunks_refused: u64,
    chunks_repeated: u64,
    segments_dropped: [u64; 4],
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct SegmentJson {
    start: f64,
    end: f64,
    text: String,
    speaker_id: Option<String>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WindowSegment {
    id: u64,
    segment: SegmentJson,
    keywords: Vec<String>,
    risk_tags: Vec<String>,
    /// Pairs of a risk and a keyword.
    matches: Vec<(String, String)>,
    action: Option<String>,
    intent: Option<String>,
    workflow: String,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Queued {
    InWindow(usize),
    Alone(Box<WindowSegment>),
}

impl SegmentJson {
    fn new(segment: &Segment) -> Self {
        let Segment { start, end, text, speaker_id } = segment.clone();
        Self { start, end, text, speaker_id }
    }

    fn segment(self) -> Segment {
        let Self { start, end, text, speaker_id } = self;
        Segment { start, end, text, speaker_id }
    }
}

impl WindowSegment {
    fn new(final_segment: &Final) -> Self {
        let Final { id, segment, annotation, workflow } = final_segment;
        let names = |names: &[Arc<str>]| names.iter().map(|name| (**name).to_owned()).collect();
        Self {
            id: *id,
            segment: SegmentJson::new(segment),
            keywords: names(&annotation.keywords),
            risk_tags: names(&annotation.risk_tags),
            matches: annotation.matches.iter().map(|m| ((*m.risk).to_owned(), (*m.keyword).to_owned())).collect(),
            action: annotation.action.as_deref().map(str::to_owned),
            intent: annotation.intent.map(|intent| intent.name().to_owned()),
            workflow: workflow.name().to_owned(),
        }
    }

    fn final_segment(self) -> Result<Arc<Final>, CheckpointError> {
        let shared = |names: Vec<String>| names.into_iter().map(Arc::from).collect();
        let matches =
            self.matches.into_iter().map(|(risk, keyword)| KeywordMatch { risk: risk.into(), keyword: keyword.into() });
        let intent = match self.intent {
            Some(name) => Some(Intent::from_name(&name).ok_or_else(|| unnamed("intent", &name))?),
            None => None,
        };
        let workflow = Workflow::from_name(&self.workflow).ok_or_else(|| unnamed("workflow", &self.workflow))?;
        let annotation = Annotation {
            keywords: shared(self.keywords),
            risk_tags: shared(self.risk_tags),
            matches: matches.collect(),
            action: self.action.map(Arc::from),
            intent,
        };
        Ok(Arc::new(Final { id: self.id, segment: self.segment.segment(), annotation, workflow }))
    }
}

fn unnamed(kind: &'static str, name: &str) -> CheckpointError {
    CheckpointError::Name { kind, name: name.chars().take(64).collect() }
}

impl State {
    fn new(checkpoint: &Checkpoint) -> Self {
        let Checkpoint { window, queues, counters, .. } = checkpoint;
        let queued = |segment: &Arc<Final>| match window.iter().position(|other| Arc::ptr_eq(other, segment)) {
            Some(at) => Queued::InWindow(at),
            None => Queued::Alone(Box::new(WindowSegment::new(segment))),
        };
        Self {
            elapsed_ns: checkpoint.elapsed_ns,
            idle_ns: checkpoint.idle_ns,
            warned: checkpoint.warned,
            expired: checkpoint.expired,
            seq_last: checkpoint.seq_last,
            events: checkpoint.events,
            finals_since_summary: checkpoint.finals_since_summary,
            finals_since_end: checkpoint.finals_since_end,
            counters: Counts {
                chunks_ingested: counters.chunks_ingested,
                segments_finalized: counters.segments_finalized,
                segments_partial: counters.segments_partial,
                llm_calls: counters.llm_calls,
                chunks_refused: counters.chunks_refused,
                chunks_repeated: counters.chunks_repeated,
                segments_dropped: counters.segments_dropped,
            },
            current: checkpoint.current.as_ref().map(SegmentJson::new),
            window: window.iter().map(|segment| WindowSegment::new(segment)).collect(),
            queues: queues.each_ref().map(|queue| queue.iter().map(queued).collect()),
        }
    }

    fn checkpoint(self) -> Result<Checkpoint, CheckpointError> {
        let window = self.window.into_iter().map(WindowSegment::final_segment).collect::<Result<Vec<_>, _>>()?;
        let restored = |queued: Queued| match queued {
            Queued::InWindow(at) => {
                window.get(at).cloned().ok_or_else(|| unnamed("place in the window", &at.to_string()))
            }
            Queued::Alone(segment) => segment.final_segment(),
        };
        let mut queues: [Vec<Arc<Final>>; 4] = Default::default();
        for (queue, stored) in queues.iter_mut().zip(self.queues) {
            *queue = stored.into_iter().map(restored).collect::<Result<_, _>>()?;
        }
        let counts = self.counters;
        Ok(Checkpoint {
            elapsed_ns: self.elapsed_ns,
            idle_ns: self.idle_ns,
            warned: self.warned,
            expired: self.expired,
            seq_last: self.seq_last,
            events: self.events,
            finals_since_summary: self.finals_since_summary,
            finals_since_end: self.finals_since_end,
            counters: Counters {
                chunks_ingested: counts.chunks_ingested,
                segments_finalized: counts.segments_finalized,
                segments_partial: counts.segments_partial,
                llm_calls: counts.llm_calls,
                chunks_refused: counts.chunks_refused,
                chunks_repeated: counts.chunks_repeated,
                segments_dropped: counts.segments_dropped,
            },
            current: self.current.map(SegmentJson::segment),
            window,
            queues,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use weir_core::transcripts::{Chunk, RoutingConfig, SessionConfig};

    fn session() -> (SessionRequest, Session) {
        let config = SessionConfig { routing: RoutingConfig::queued(), ..SessionConfig::default() };
        let request = SessionRequest { config, sentiment: true, ..SessionRequest::stored() };
        let mut session = Session::new(SessionRules::new(request.config.clone()).unwrap(), 0);
        for (at, text) in
            ["I'll check the price", "is it?", "é\u{0}\"", "the manager"].iter().cycle().take(30).enumerate()
        {
            let (start, end) = (at as f64 / 3.0, at as f64 / 3.0 + 0.1);
            let chunk = Chunk { start, end, text: (*text).to_owned(), speaker_id: Some(at.to_string()) };
            session.handle_chunk(at as u64, Some(at as u64), chunk).unwrap();
            while session.poll_event(at as u64).is_some() {}
        }
        (request, session)
    }

    #[test]
    fn checkpoint_reads_back() {
        let (request, session) = session();
        let checkpoint = session.checkpoint(100).unwrap();
        let bytes = encode(&request, &checkpoint);
        let (read, restored) = decode(&bytes, own_rules, 5).unwrap();
        assert_eq!(read, request);
        assert_eq!(restored.checkpoint(5), Some(checkpoint));
        // A segment in the window and in a queue is stored once.
        assert!(restored.transcript_bytes() <= session.transcript_bytes());
    }

    #[test]
    fn malformed_checkpoint_is_refused() {
        let (request, session) = session();
        let text = String::from_utf8(encode(&request, &session.checkpoint(100).unwrap())).unwrap();
        let check = |from: &str, to: &str, want: &str| {
            assert!(text.contains(from), "{from}");
            let error = decode(text.replacen(from, to, 1).as_bytes(), own_rules, 0).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        };
        check("\"version\":1", "\"version\":2", "has version 2; this is version 1");
        check("\"workflow\":\"action_item\"", "\"workflow\":\"x\"", "names the workflow `x`, which is none");
        check("\"intent\":\"question\"", "\"intent\":\"mood\"", "names the intent `mood`");
        check("\\\"max_gap_sec\\\":1.0", "\\\"max_gap_sec\\\":-1.0", "max_gap_sec must be a finite number");
        check("\"segments_finalized\":29", "\"segments_finalized\":2", "final segments are more than were counted");
        check("\"events\":", "\"event\":", "cannot be read");
        check("\"queues\":[[", "\"queues\":[[99,", "names the place in the window `99`");
        check("\\\"max_segments\\\":10", "\\\"max_segments\\\":9", "window is 10 and may be at most 9");
        assert!(decode(b"", own_rules, 0).is_err());
        assert!(decode(&vec![b'['; 100_000], own_rules, 0).is_err());
    }

    proptest! {
        #[test]
        fn damaged_checkpoint_does_not_panic(at in 0usize..8000, byte: u8, cut in 0usize..8000) {
            let (request, session) = session();
            let mut bytes = encode(&request, &session.checkpoint(100).unwrap());
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = decode(&bytes, own_rules, 0).map(|(_, mut session)| session.handle_end(0, None));
            let _ = decode(&bytes[..cut % length], own_rules, 0);
        }
    }
}
