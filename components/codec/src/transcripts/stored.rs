//! The stored form of a session: its last checkpoint with a head, and the events in its channel after the checkpoint. A session is
//! restored from both.

use serde::{Deserialize, Serialize};
use thiserror::Error;
use weir_core::inference::rewrite::SummaryMode;
use weir_core::transcripts::{Segment, StoredBody, StoredEvent, SummaryKind};

use super::{config::SessionRequest, semantic::SemanticParts};
use crate::json::to_vec;

/// The version that is written.
const VERSION: u32 = 1;
/// Maximum length of the head of a stored session, in bytes.
const HEAD_BYTES_MAX: usize = 4096;

/// Reads an event of a session's channel; `None` for an event without a number, which does not change the session.
pub fn stored_event(line: &[u8]) -> Option<StoredEvent> {
    #[derive(Deserialize)]
    struct Line {
        r#type: String,
        segment: Option<SegmentJson>,
        segment_id: Option<u64>,
        kind: Option<String>,
        seq: Option<u64>,
        event_id: Option<u64>,
    }
    #[derive(Deserialize)]
    struct SegmentJson {
        start: f64,
        end: f64,
        text: String,
        speaker_id: Option<String>,
    }
    let line: Line = serde_json::from_slice(line).ok()?;
    let segment =
        line.segment.map(|SegmentJson { start, end, text, speaker_id }| Segment { start, end, text, speaker_id });
    let body = match line.r#type.as_str() {
        "partial_segment" => StoredBody::Partial(segment?),
        "final_segment" => StoredBody::Final(line.segment_id?, segment?),
        "summary_due" => StoredBody::Summary(SummaryKind::from_name(&line.kind?)?),
        "session_expired" => StoredBody::Expired,
        _ => return None,
    };
    Some(StoredEvent { number: line.event_id?, seq: line.seq, body })
}

/// The phase of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Phase {
    /// It accepts chunks.
    Open,
    /// It was idle for too long and accepts no more input.
    Expired,
    /// Its client ended it.
    Ended,
}

impl Phase {
    /// Its name on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Expired => "expired",
            Self::Ended => "ended",
        }
    }
}

/// The stored state of a session besides its checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    version: u32,
    /// The user that it belongs to.
    pub owner: Option<Box<str>>,
    /// Its phase.
    pub phase: Phase,
    /// The cursor of the last event that the checkpoint includes: epoch and sequence.
    pub after: (u64, u64),
    /// When the session was created, in milliseconds since 1970.
    pub created_ms: u64,
    /// When the checkpoint was taken, in milliseconds since 1970.
    pub kept_ms: u64,
    /// The idle time after which it expires, and the time before the expiry at which it is warned, in milliseconds; 0: never.
    pub idle: (u64, u64),
    /// The time until its expiry when it was warned, in milliseconds.
    pub warned_ms: Option<u64>,
    /// The annotations of final segments.
    pub annotate: Annotate,
}

/// The annotations of final segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Annotate {
    /// Keywords, risks and actions.
    pub keywords: bool,
    /// The intent.
    pub intent: bool,
    /// The sentiment.
    pub sentiment: bool,
    /// The entities.
    pub entities: bool,
    /// Summaries are rewritten by a language model.
    #[serde(default)]
    pub abstractive: bool,
}

impl From<&SessionRequest> for Annotate {
    fn from(request: &SessionRequest) -> Self {
        let SemanticParts { keywords, intent } = request.parts();
        let abstractive = request.summary_mode == Some(SummaryMode::Abstractive);
        Self { keywords, intent, sentiment: request.sentiment, entities: request.entities, abstractive }
    }
}

impl Head {
    /// The head of a new session.
    pub fn new(owner: Option<Box<str>>, now_ms: u64, request: &SessionRequest) -> Self {
        let idle = (request.config.idle.expire_ms, request.config.idle.warn_ms);
        let annotate = Annotate::from(request);
        Self {
            version: VERSION,
            owner,
            phase: Phase::Open,
            after: (0, 0),
            created_ms: now_ms,
            kept_ms: now_ms,
            idle,
            warned_ms: None,
            annotate,
        }
    }

    /// The time at which its idle time must be checked, in milliseconds since 1970; 0: never.
    pub fn due_ms(&self) -> u64 {
        let (expire_ms, warn_ms) = self.idle;
        if self.phase != Phase::Open || expire_ms == 0 {
            return 0;
        }
        self.kept_ms.saturating_add(self.warned_ms.unwrap_or(expire_ms.saturating_sub(warn_ms)))
    }
}

/// Why bytes are not a stored session.
#[derive(Debug, Error)]
pub enum StoredSessionError {
    /// The head is not valid JSON.
    #[error("the stored session cannot be read: {0}")]
    Malformed(#[from] serde_json::Error),
    /// There is no line end after the head.
    #[error("the stored session has no head")]
    NoHead,
    /// The version is not supported.
    #[error("the stored session has version {0}; this is version {VERSION}")]
    Version(u32),
}

/// Encodes a session: its head on a line, then its checkpoint.
pub fn encode(head: &Head, checkpoint: &[u8]) -> Vec<u8> {
    let mut bytes = to_vec(head);
    bytes.push(b'\n');
    bytes.extend_from_slice(checkpoint);
    bytes
}

/// Decodes the head of a session; the rest of the bytes is its checkpoint.
///
/// # Errors
///
/// [`StoredSessionError`]
pub fn decode(bytes: &[u8]) -> Result<(Head, &[u8]), StoredSessionError> {
    let end = bytes.iter().take(HEAD_BYTES_MAX).position(|byte| *byte == b'\n').ok_or(StoredSessionError::NoHead)?;
    let head: Head = serde_json::from_slice(&bytes[..end])?;
    match head.version {
        VERSION => Ok((head, &bytes[end + 1..])),
        version => Err(StoredSessionError::Version(version)),
    }
}

/// The links of a session.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionLinks {
    /// Its state.
    #[serde(rename = "self")]
    pub itself: String,
    /// Accepts its chunks.
    pub chunks: String,
    /// Ends it.
    pub end: String,
    /// Its context window.
    pub context: String,
    /// Its channel.
    pub events: String,
}

/// The response body of `POST /sessions`.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SessionCreated<'a> {
    /// Its id.
    pub session_id: &'a str,
    /// `open`
    pub state: &'static str,
    /// Its links.
    pub links: SessionLinks,
}

/// The response body of `POST /sessions`.
pub fn created_json(id: &str) -> Vec<u8> {
    let at = format!("/sessions/{id}");
    let links = SessionLinks {
        chunks: format!("{at}/chunks"),
        end: format!("{at}/end"),
        context: format!("{at}/context"),
        events: format!("/stream/session/{id}"),
        itself: at,
    };
    to_vec(&SessionCreated { session_id: id, state: Phase::Open.name(), links })
}

/// The response body of `GET /sessions/{id}`: the state of the session (`state_json` of [`super::event`]) with the members of its registry.
pub fn session_json(id: &str, head: &Head, feeding: bool, state: &str) -> Vec<u8> {
    #[derive(Serialize)]
    struct StateBody<'a> {
        session_id: &'a str,
        state: &'static str,
        created_ms: u64,
        feeding: bool,
    }
    let registry_state = StateBody { session_id: id, state: head.phase.name(), created_ms: head.created_ms, feeding };
    let mut out = to_vec(&registry_state);
    // The `state` of the session does not include its end, so it is replaced; the other members are appended.
    if let Some((_, rest)) = state.split_once(',') {
        out.pop();
        out.push(b',');
        out.extend_from_slice(rest.as_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transcripts::{event::EventLine, semantic::SemanticParts};
    use weir_core::transcripts::{Chunk, Session, SessionConfig, SessionRules};

    #[test]
    fn stored_events_read_back_unchanged() {
        let mut config = SessionConfig::default();
        config.summary.every_finals = 1;
        let mut session = Session::new(SessionRules::new(config).unwrap(), 0);
        let speaker_id = Some("a\"".to_owned());
        session.handle_chunk(0, Some(7), Chunk { start: 0.1, end: 2.0, text: "ü\n".to_owned(), speaker_id }).unwrap();
        session.handle_end(0, Some(8)).unwrap();
        session.handle_time(700_000_000_000);
        let mut read = Vec::new();
        while let Some(output) = session.poll_event(0) {
            let mut line = Vec::new();
            let seq = if output.number == Some(1) { Some(7) } else { Some(8) };
            EventLine::new(&output.event, output.number, SemanticParts::ALL).with_input_seq(seq).write(&mut line);
            read.extend(stored_event(&line));
        }
        let segment = Segment { start: 0.1, end: 2.0, text: "ü\n".to_owned(), speaker_id: Some("a\"".to_owned()) };
        let event = |number, seq, body| StoredEvent { number, seq, body };
        let want = [
            event(1, Some(7), StoredBody::Partial(segment.clone())),
            event(2, Some(8), StoredBody::Final(0, segment)),
            event(3, Some(8), StoredBody::Summary(SummaryKind::Incremental)),
            event(4, Some(8), StoredBody::Summary(SummaryKind::Final)),
            event(5, None, StoredBody::Expired),
        ];
        assert_eq!(read, want);
        for line in
            ["{}", "[", r#"{"type":"repeated","seq":1,"seq_last":2}"#, r#"{"type":"session_expiring","in_ms":3}"#]
        {
            assert_eq!(stored_event(line.as_bytes()), None, "{line}");
        }
    }

    #[test]
    fn stored_session_reads_back_or_is_refused() {
        let head = Head { after: (3, 9), ..Head::new(Some("ann".into()), 5, &SessionRequest::stored()) };
        let bytes = encode(&head, b"{}\n{}");
        assert_eq!(decode(&bytes).unwrap(), (head, b"{}\n{}".as_slice()));
        assert!(matches!(decode(b"{}"), Err(StoredSessionError::NoHead)));
        assert!(matches!(decode(b"{}\n"), Err(StoredSessionError::Malformed(_))));
        let other = String::from_utf8(bytes).unwrap().replace("\"version\":1", "\"version\":2");
        assert!(matches!(decode(other.as_bytes()), Err(StoredSessionError::Version(2))));
    }

    #[test]
    fn state_combines_the_session_and_its_registry() {
        let head = Head { phase: Phase::Ended, ..Head::new(None, 5, &SessionRequest::stored()) };
        let got = session_json("x", &head, false, r#"{"state":"open","current":null,"events":3}"#);
        let want = r#"{"session_id":"x","state":"ended","created_ms":5,"feeding":false,"current":null,"events":3}"#;
        assert_eq!(String::from_utf8(got).unwrap(), want);
    }
}
