//! Spans, which are recorded when they end.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::context::SpanContext;
use crate::recorder;
use crate::span_data::{SpanData, SpanKind, Value, now_ns};

/// Most links of a span; further ones are counted only.
const LINKS_MAX: usize = 256;

/// A running span. Its clones are the same span, which ends when the last one is dropped, and is exported then.
#[derive(Debug, Clone)]
pub struct Span(Arc<SpanState>);

#[derive(Debug)]
struct SpanState {
    context: SpanContext,
    /// Until the span ends.
    data: Mutex<Option<SpanData>>,
}

impl Span {
    /// Starts a span; `None` if spans are not exported or the trace is not sampled, which the parent decides if there is one.
    pub fn start(name: impl Into<String>, kind: SpanKind, parent: Option<SpanContext>) -> Option<Self> {
        if !recorder::is_sampled(parent.as_ref()) {
            return None;
        }
        Some(Self::of(name.into(), kind, parent, now_ns()))
    }

    /// Starts a span of a new trace, which began `elapsed` ago and links the sampled ones of `links`, at most 256; `None` if none is sampled or
    /// spans are not exported.
    pub fn linked(
        name: &'static str,
        kind: SpanKind,
        links: impl Iterator<Item = SpanContext>,
        elapsed: Duration,
    ) -> Option<Self> {
        let mut links = links.filter(SpanContext::is_sampled).peekable();
        // The trace is sampled, since those of its links are.
        let is_sampled = links.peek().is_some_and(|first| recorder::is_sampled(Some(first)));
        if !is_sampled {
            return None;
        }
        let elapsed_ns = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        let span = Self::of(name.to_owned(), kind, None, now_ns().saturating_sub(elapsed_ns));
        links.for_each(|link| span.link(link));
        Some(span)
    }

    fn of(name: String, kind: SpanKind, parent: Option<SpanContext>, start_ns: u64) -> Self {
        let context = SpanContext::new(parent.as_ref());
        let data = SpanData {
            name,
            kind,
            context,
            parent: parent.map(|parent| parent.span_id),
            start_ns,
            end_ns: 0,
            attributes: Vec::new(),
            links: Vec::new(),
            links_dropped: 0,
            failure: None,
        };
        Self(Arc::new(SpanState { context, data: Mutex::new(Some(data)) }))
    }

    /// Its context, for the header [`crate::TRACEPARENT`] of what it causes.
    pub fn context(&self) -> SpanContext {
        self.0.context
    }

    fn change(&self, change: impl FnOnce(&mut SpanData)) {
        if let Some(data) = self.0.data.lock().unwrap_or_else(PoisonError::into_inner).as_mut() {
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

    /// Links a span of any trace.
    fn link(&self, other: SpanContext) {
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

impl Drop for SpanState {
    fn drop(&mut self) {
        if let Some(mut data) = self.data.get_mut().unwrap_or_else(PoisonError::into_inner).take() {
            data.end_ns = now_ns().max(data.start_ns);
            recorder::record(data);
        }
    }
}
