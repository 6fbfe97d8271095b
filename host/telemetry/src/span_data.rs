//! The content of spans, as it is exported.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::context::SpanContext;

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

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Text(String),
    Number(i64),
}

/// The exported content of a span.
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
