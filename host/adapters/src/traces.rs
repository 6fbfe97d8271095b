//! Spans of records: each record has one, from its arrival to its written result, in the trace of its header `traceparent`. The component
//! and the sink see the header with the context of this span. A write has a span that links those of its results.

use std::collections::BTreeMap;
use std::time::Duration;

use weir_core::adapter::{Destination, ERROR_CODE_HEADER, Header, Position, ResultRecord, SourceRecord};
use weir_telemetry::{Span, SpanContext, SpanKind, TRACEPARENT};

/// The spans of traced records in flight.
#[derive(Debug, Default)]
pub(crate) struct RecordSpans(BTreeMap<(u32, u64), Span>);

fn context(headers: &[Header]) -> Option<SpanContext> {
    let header = headers.iter().find(|header| header.name.eq_ignore_ascii_case(TRACEPARENT))?;
    std::str::from_utf8(&header.value).ok()?.parse().ok()
}

/// Starts the span of a record; none if it is not traced.
pub(crate) fn trace_record(record: &mut SourceRecord, adapter: &str) -> Option<Span> {
    let span = Span::start("adapter record", SpanKind::Consumer, context(&record.headers))?;
    span.set("weir.adapter", adapter);
    span.set("weir.origin", record.origin.as_str());
    span.set_number("weir.partition", i64::from(record.position.partition));
    span.set_number("weir.offset", i64::try_from(record.position.offset).unwrap_or(i64::MAX));
    record.headers.retain(|header| !header.name.eq_ignore_ascii_case(TRACEPARENT));
    record.headers.push(Header::new(TRACEPARENT, span.context().to_string()));
    Some(span)
}

/// Starts the span of a write; none if none of its results is traced.
pub(crate) fn write_span(batch: &[ResultRecord]) -> Option<Span> {
    let contexts = batch.iter().filter_map(|result| context(&result.headers));
    let span = Span::linked("adapter write", SpanKind::Producer, contexts, Duration::ZERO)?;
    span.set_number("weir.results", i64::try_from(batch.len()).unwrap_or(i64::MAX));
    Some(span)
}

impl RecordSpans {
    pub(crate) fn insert(&mut self, position: Position, span: Span) {
        self.0.insert((position.partition, position.offset), span);
    }

    /// Ends the span of a record whose last result is written.
    pub(crate) fn end(&mut self, position: Position, result: &ResultRecord) {
        let Some(span) = self.0.remove(&(position.partition, position.offset)) else { return };
        if result.destination == Destination::Error {
            span.fail(result.header(ERROR_CODE_HEADER).unwrap_or("error"));
        }
    }

    /// Ends the spans of a partition that another consumer has now.
    pub(crate) fn revoke(&mut self, partition: u32) {
        self.0.retain(|(other, _), span| {
            if *other == partition {
                span.fail("the partition belongs to another consumer");
            }
            *other != partition
        });
    }
}
