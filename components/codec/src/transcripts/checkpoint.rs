//! The state of a session as bytes: JSON with a version, and with the configuration that it was made under.
//!
//! A version that is not known is refused, never guessed. What was stored may have been damaged or forged: every length is
//! checked against the configuration before a session is made of it, and nothing is believed that the session relies on.

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

/// Why bytes are no session.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// There are too many.
    #[error("the checkpoint has {0} bytes, and may have {CHECKPOINT_BYTES_MAX}")]
    TooLarge(usize),
    /// They cannot be read.
    #[error("the checkpoint cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// They were written by another version.
    #[error("the checkpoint has version {0}; this is version {VERSION}")]
    Version(u32),
    /// The configuration is wrong.
    #[error("the configuration in the checkpoint: {0}")]
    Config(#[from] RequestError),
    /// A name is unknown.
    #[error("the checkpoint names the {kind} `{name}`, which is none")]
    Name {
        /// Of what.
        kind: &'static str,
        /// The name, shortened.
        name: String,
    },
    /// The state is not one of a session.
    #[error(transparent)]
    State(#[from] RestoreError),
}

/// A session as bytes.
pub fn encode(ask: &SessionRequest, checkpoint: &Checkpoint) -> Vec<u8> {
    let config = String::from_utf8(ask.to_json()).expect("JSON is UTF-8");
    to_vec(&Stored { version: VERSION, config, state: State::new(checkpoint) })
}

/// The session in bytes, and its configuration. `rules` returns the parsed configuration and its rules, which may be shared with other
/// sessions.
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
    let (ask, rules) = rules(&stored.config)?;
    let checkpoint = stored.state.checkpoint()?;
    let session = Session::restore(rules, checkpoint, now_ns)?;
    Ok((ask, session))
}

/// What a configuration says, and rules of its own: for [`decode`], where sessions share none.
///
/// # Errors
///
/// [`RequestError`]
pub fn own_rules(config: &str) -> Result<(SessionRequest, Arc<SessionRules>), RequestError> {
    let ask = SessionRequest::from_json(config.as_bytes())?;
    let rules = SessionRules::new(ask.config.clone()).expect("a configuration that was read was checked");
    Ok((ask, rules))
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    version: u32,
    /// As JSON in a string: the order of keywords matters, and a tree of values would lose it.
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
    /// Places in the window, or segments that have left it.
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
    /// Risk and keyword.
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
    fn new(kept: &Final) -> Self {
        let Final { id, segment, annotation, workflow } = kept;
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

    fn kept(self) -> Result<Arc<Final>, CheckpointError> {
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
        let queued = |kept: &Arc<Final>| match window.iter().position(|other| Arc::ptr_eq(other, kept)) {
            Some(at) => Queued::InWindow(at),
            None => Queued::Alone(Box::new(WindowSegment::new(kept))),
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
            window: window.iter().map(|kept| WindowSegment::new(kept)).collect(),
            queues: queues.each_ref().map(|queue| queue.iter().map(queued).collect()),
        }
    }

    fn checkpoint(self) -> Result<Checkpoint, CheckpointError> {
        let window = self.window.into_iter().map(WindowSegment::kept).collect::<Result<Vec<_>, _>>()?;
        let queued = |queued: Queued| match queued {
            Queued::InWindow(at) => {
                window.get(at).cloned().ok_or_else(|| unnamed("place in the window", &at.to_string()))
            }
            Queued::Alone(kept) => kept.kept(),
        };
        let mut queues: [Vec<Arc<Final>>; 4] = Default::default();
        for (queue, stored) in queues.iter_mut().zip(self.queues) {
            *queue = stored.into_iter().map(queued).collect::<Result<_, _>>()?;
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
        let ask = SessionRequest { config, sentiment: true, ..SessionRequest::stored() };
        let mut session = Session::new(SessionRules::new(ask.config.clone()).unwrap(), 0);
        for (at, text) in
            ["I'll check the price", "is it?", "é\u{0}\"", "the manager"].iter().cycle().take(30).enumerate()
        {
            let (start, end) = (at as f64 / 3.0, at as f64 / 3.0 + 0.1);
            let chunk = Chunk { start, end, text: (*text).to_owned(), speaker_id: Some(at.to_string()) };
            session.handle_chunk(at as u64, Some(at as u64), chunk).unwrap();
            while session.poll_event(at as u64).is_some() {}
        }
        (ask, session)
    }

    #[test]
    fn checkpoint_reads_back() {
        let (ask, session) = session();
        let checkpoint = session.checkpoint(100).unwrap();
        let bytes = encode(&ask, &checkpoint);
        let (read, restored) = decode(&bytes, own_rules, 5).unwrap();
        assert_eq!(read, ask);
        assert_eq!(restored.checkpoint(5), Some(checkpoint));
        // A segment in the window and in a queue is stored once.
        assert!(restored.kept_bytes() <= session.kept_bytes());
    }

    #[test]
    fn malformed_checkpoint_is_refused() {
        let (ask, session) = session();
        let text = String::from_utf8(encode(&ask, &session.checkpoint(100).unwrap())).unwrap();
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
            let (ask, session) = session();
            let mut bytes = encode(&ask, &session.checkpoint(100).unwrap());
            let length = bytes.len();
            bytes[at % length] = byte;
            let _ = decode(&bytes, own_rules, 0).map(|(_, mut session)| session.handle_end(0, None));
            let _ = decode(&bytes[..cut % length], own_rules, 0);
        }
    }
}
