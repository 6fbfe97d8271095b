//! Transcript sessions and their annotations: state machines of `weir_core`, which need no engine.

use std::sync::{Mutex, MutexGuard, PoisonError};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;
use weir_core::transcripts::annotate::{self, AnnotateConfig};
use weir_core::transcripts::{
    Annotator as CoreAnnotator, Chunk, Event, IdleConfig, Segment, Session as CoreSession, SessionConfig, SessionRules,
    SummaryConfig,
};

/// `(is_final, start, end, text, speaker_id)`, times in seconds.
type EventTuple = (bool, f64, f64, String, Option<String>);

/// The state machine of a transcript session.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Session {
    session: Mutex<CoreSession>,
}

impl Session {
    fn lock(&self) -> MutexGuard<'_, CoreSession> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Session {
    /// A chunk belongs to the segment in flight when the same speaker continues after at most `max_gap_sec` seconds.
    #[new]
    fn new(max_gap_sec: f64) -> PyResult<Self> {
        let config = SessionConfig {
            max_gap_sec,
            annotate: AnnotateConfig { keywords: false, intent: false, ..AnnotateConfig::default() },
            summary: SummaryConfig { every_finals: 0, at_end: false },
            idle: IdleConfig { expire_ms: 0, warn_ms: 0 },
            ..SessionConfig::default()
        };
        let rules = SessionRules::new(config).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(Self { session: Mutex::new(CoreSession::new(rules, 0)) })
    }

    /// Takes a chunk; returns the events that it makes.
    fn ingest(&self, start: f64, end: f64, text: String, speaker_id: Option<String>) -> PyResult<Vec<EventTuple>> {
        let mut session = self.lock();
        let taken = session.handle_chunk(0, None, Chunk { start, end, text, speaker_id });
        taken.map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(events(&mut session))
    }

    /// The segment in flight becomes final.
    fn end(&self) -> PyResult<Vec<EventTuple>> {
        let mut session = self.lock();
        session.handle_end(0, None).map_err(|error| PyValueError::new_err(error.to_string()))?;
        Ok(events(&mut session))
    }
}

fn events(session: &mut CoreSession) -> Vec<EventTuple> {
    let tuple = |is_final, Segment { start, end, text, speaker_id }: Segment| (is_final, start, end, text, speaker_id);
    let mut events = Vec::new();
    while let Some(output) = session.poll_event(0) {
        match output.event {
            Event::Partial(segment) => events.push(tuple(false, segment)),
            Event::Final(last) => events.push(tuple(true, last.segment.clone())),
            // Summaries, queues and idle times are switched off.
            Event::Summary(_) | Event::Dropped(_) | Event::Expiring { .. } | Event::Expired => {}
        }
    }
    events
}

/// Finds keywords, risks, actions and intents in a text.
#[pyclass(frozen, module = "weir_stream._engine")]
pub(crate) struct Annotator {
    annotator: CoreAnnotator,
}

#[pymethods]
impl Annotator {
    #[new]
    fn new() -> PyResult<Self> {
        let annotator = CoreAnnotator::new(&AnnotateConfig::default());
        Ok(Self { annotator: annotator.map_err(|error| PyValueError::new_err(error.to_string()))? })
    }

    /// The annotation of a text: `keywords`, `risk_tags`, `matches` (`(risk, keyword)`), `action` (`(text, pattern)` or `None`), `intent`.
    fn annotate<'py>(&self, py: Python<'py>, text: &str) -> PyResult<Bound<'py, PyDict>> {
        let annotation = self.annotator.annotate(text, &mut Default::default());
        let dict = PyDict::new(py);
        dict.set_item("keywords", names(&annotation.keywords))?;
        dict.set_item("risk_tags", names(&annotation.risk_tags))?;
        let matches: Vec<(&str, &str)> =
            annotation.matches.iter().map(|found| (&*found.risk, &*found.keyword)).collect();
        dict.set_item("matches", matches)?;
        dict.set_item("action", annotation.action.as_deref().map(|pattern| (annotate::action_text(text), pattern)))?;
        dict.set_item("intent", annotation.intent.map(|intent| intent.name()))?;
        Ok(dict)
    }
}

fn names(list: &[std::sync::Arc<str>]) -> Vec<&str> {
    list.iter().map(|name| &**name).collect()
}
