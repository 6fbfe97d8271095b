//! Spans.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::context::SpanContext;
use crate::exporter;

/// Most links of a span; further ones are counted only.
const LINKS_MAX: usize = 256;

/// The role of a span in its trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SpanKind {
    /// Within the process.
    Internal,
    /// A request that is answered.
    Server,
    /// Something that is sent to another system.
    Producer,
    /// Something that was received from another system.
    Consumer,
}

impl SpanKind {
    /// Its number in OTLP.
    pub(crate) fn number(self) -> u32 {
        match self {
            Self::Internal => 1,
            Self::Server => 2,
            Self::Producer => 4,
            Self::Consumer => 5,
        }
    }
}

/// A running span. Its clones are the same span, which ends when the last one is dropped, and is exported then.
#[derive(Debug, Clone)]
pub struct Span(Arc<Running>);

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

#[derive(Debug)]
struct Running(Mutex<Option<SpanData>>, SpanContext);

/// What is exported of a span.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SpanData {
    pub(crate) name: String,
    pub(crate) kind: SpanKind,
    pub(crate) context: SpanContext,
    /// The id of the parent.
    pub(crate) parent: Option<u64>,
    pub(crate) start_ns: u64,
    pub(crate) end_ns: u64,
    pub(crate) attributes: Vec<(&'static str, Value)>,
    pub(crate) links: Vec<SpanContext>,
    pub(crate) links_dropped: usize,
    /// Why it failed.
    pub(crate) failure: Option<String>,
}

/// Nanoseconds since 1970.
pub(crate) fn now_ns() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

impl Span {
    /// Starts a span; none if spans are not exported or this trace is not sampled, which the parent decides where there is one.
    pub fn start(name: impl Into<String>, kind: SpanKind, parent: Option<SpanContext>) -> Option<Self> {
        if !exporter::samples(parent.as_ref()) {
            return None;
        }
        let context = SpanContext::new(parent.as_ref());
        let data = SpanData {
            name: name.into(),
            kind,
            context,
            parent: parent.map(|parent| parent.span_id),
            start_ns: now_ns(),
            end_ns: 0,
            attributes: Vec::new(),
            links: Vec::new(),
            links_dropped: 0,
            failure: None,
        };
        Some(Self(Arc::new(Running(Mutex::new(Some(data)), context))))
    }

    /// Its context, for the header [`crate::TRACEPARENT`] of what it causes.
    pub fn context(&self) -> SpanContext {
        self.0.1
    }

    fn change(&self, change: impl FnOnce(&mut SpanData)) {
        if let Some(data) = self.0.0.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
            change(data);
        }
    }

    /// Adds a text.
    pub fn set(&self, name: &'static str, value: impl Into<String>) {
        self.change(|data| data.attributes.push((name, Value::Text(value.into()))));
    }

    /// Adds a number.
    pub fn set_number(&self, name: &'static str, value: i64) {
        self.change(|data| data.attributes.push((name, Value::Number(value))));
    }

    /// Links a span of any trace: an item of a batch.
    pub fn link(&self, other: SpanContext) {
        self.change(|data| match data.links.len() {
            0..LINKS_MAX => data.links.push(other),
            _ => data.links_dropped += 1,
        });
    }

    /// Marks it as failed.
    pub fn fail(&self, reason: impl Into<String>) {
        self.change(|data| data.failure = Some(reason.into()));
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(mut data) = self.0.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            data.end_ns = now_ns().max(data.start_ns);
            exporter::record(data);
        }
    }
}
