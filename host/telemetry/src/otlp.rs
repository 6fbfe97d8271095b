//! The JSON of OTLP 1.x: `ExportTraceServiceRequest` and `ExportMetricsServiceRequest`. Ids are hexadecimal, and numbers of 64 bits are texts.

use serde_json::{Value as Json, json};

use crate::samples::{Histogram, Kind, Labels, Metric};
use crate::span_data::{SpanData, Value};

/// Values of `AggregationTemporality`: since the start of the process.
const CUMULATIVE: u32 = 2;
/// `STATUS_CODE_ERROR`.
const STATUS_ERROR: u32 = 2;

/// What describes this process: `service.name`, `service.version` and `service.instance.id`.
#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) service: String,
    pub(crate) version: String,
    pub(crate) instance: String,
}

fn text(name: &str, value: &str) -> Json {
    json!({"key": name, "value": {"stringValue": value}})
}

impl Resource {
    fn json(&self) -> Json {
        json!({"attributes": [
            text("service.name", &self.service),
            text("service.version", &self.version),
            text("service.instance.id", &self.instance),
        ]})
    }

    fn scope(&self) -> Json {
        json!({"name": "weir", "version": self.version})
    }
}

/// The body of a request to `/v1/traces`.
pub(crate) fn traces(resource: &Resource, spans: &[SpanData]) -> Json {
    let spans: Vec<Json> = spans.iter().map(span).collect();
    json!({"resourceSpans": [{
        "resource": resource.json(),
        "scopeSpans": [{"scope": resource.scope(), "spans": spans}],
    }]})
}

fn span(span: &SpanData) -> Json {
    let id = |id: u64| format!("{id:016x}");
    let attributes: Vec<Json> = span
        .attributes
        .iter()
        .map(|(name, value)| match value {
            Value::Text(value) => text(name, value),
            Value::Number(value) => json!({"key": name, "value": {"intValue": value.to_string()}}),
        })
        .collect();
    let links: Vec<Json> = span
        .links
        .iter()
        .map(|link| json!({"traceId": format!("{:032x}", link.trace_id), "spanId": id(link.span_id)}))
        .collect();
    let mut json = json!({
        "traceId": format!("{:032x}", span.context.trace_id),
        "spanId": id(span.context.span_id),
        "name": span.name,
        "kind": span.kind.number(),
        "startTimeUnixNano": span.start_ns.to_string(),
        "endTimeUnixNano": span.end_ns.to_string(),
        "attributes": attributes,
        "links": links,
        "droppedLinksCount": span.links_dropped,
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = id(parent).into();
    }
    if let Some(failure) = &span.failure {
        json["status"] = json!({"code": STATUS_ERROR, "message": failure});
    }
    json
}

/// The body of a request to `/v1/metrics`. Counters began at `start_ns`.
pub(crate) fn metrics(resource: &Resource, metrics: &[Metric], start_ns: u64, now_ns: u64) -> Json {
    let metrics: Vec<Json> = metrics.iter().map(|metric| self::metric(metric, start_ns, now_ns)).collect();
    json!({"resourceMetrics": [{
        "resource": resource.json(),
        "scopeMetrics": [{"scope": resource.scope(), "metrics": metrics}],
    }]})
}

fn metric(metric: &Metric, start_ns: u64, now_ns: u64) -> Json {
    let attributes = |labels: &Labels| labels.iter().map(|(name, value)| text(name, value)).collect::<Vec<_>>();
    let point = |labels: &Labels| json!({"attributes": attributes(labels), "startTimeUnixNano": start_ns.to_string(), "timeUnixNano": now_ns.to_string()});
    let numbers = || {
        let points = metric.values.iter().map(|(labels, value)| {
            let mut point = point(labels);
            point["asDouble"] = (*value).into();
            point
        });
        points.collect::<Vec<_>>()
    };
    let mut json = json!({"name": metric.name, "description": metric.help, "unit": unit(&metric.name)});
    match metric.kind {
        Kind::Counter => {
            json["sum"] = json!({"aggregationTemporality": CUMULATIVE, "isMonotonic": true, "dataPoints": numbers()});
        }
        Kind::Gauge => json["gauge"] = json!({"dataPoints": numbers()}),
        Kind::Histogram => {
            let points = metric.histograms.iter().map(|(labels, histogram)| {
                let mut point = point(labels);
                point["count"] = histogram.count.to_string().into();
                point["sum"] = histogram.sum.into();
                point["explicitBounds"] = histogram.bounds.clone().into();
                point["bucketCounts"] = bucket_counts(histogram).into();
                point
            });
            json["histogram"] = json!({"aggregationTemporality": CUMULATIVE, "dataPoints": points.collect::<Vec<_>>()});
        }
    }
    json
}

/// The count of each bucket: OTLP does not add those of the buckets below.
fn bucket_counts(histogram: &Histogram) -> Vec<String> {
    let mut below = 0;
    let counts = histogram.cumulative_counts.iter().map(|count| {
        let own = count.saturating_sub(below);
        below = *count;
        own.to_string()
    });
    counts.collect()
}

/// The unit that a name ends with.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit('_').next() {
        Some("seconds") => "s",
        Some("bytes") => "By",
        _ => "1",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::SpanContext;
    use crate::span_data::SpanKind;

    fn resource() -> Resource {
        Resource { service: "weir".into(), version: "1".into(), instance: "a".into() }
    }

    #[test]
    fn span_has_the_fields_of_the_protocol() {
        let context = SpanContext { trace_id: 0xab, span_id: 0xcd, is_sampled: true };
        let span = SpanData {
            name: "GET /".into(),
            kind: SpanKind::Server,
            context,
            parent: Some(1),
            start_ns: 5,
            end_ns: 7,
            attributes: vec![("url.path", Value::Text("/".into())), ("http.response.status_code", Value::Number(200))],
            links: vec![context],
            links_dropped: 0,
            failure: Some("lost".into()),
        };
        let body = traces(&resource(), &[span]);
        let expected = json!({
            "traceId": "000000000000000000000000000000ab", "spanId": "00000000000000cd", "parentSpanId": "0000000000000001",
            "name": "GET /", "kind": 2, "startTimeUnixNano": "5", "endTimeUnixNano": "7", "droppedLinksCount": 0,
            "attributes": [
                {"key": "url.path", "value": {"stringValue": "/"}},
                {"key": "http.response.status_code", "value": {"intValue": "200"}},
            ],
            "links": [{"traceId": "000000000000000000000000000000ab", "spanId": "00000000000000cd"}],
            "status": {"code": 2, "message": "lost"},
        });
        assert_eq!(body["resourceSpans"][0]["scopeSpans"][0]["spans"][0], expected);
        let service = &body["resourceSpans"][0]["resource"]["attributes"][0];
        assert_eq!(service, &json!({"key": "service.name", "value": {"stringValue": "weir"}}));
    }

    #[test]
    fn buckets_of_histograms_are_not_cumulative() {
        let histogram = Histogram { bounds: vec![0.1, 1.0], cumulative_counts: vec![1, 3, 4], sum: 5.5, count: 4 };
        let metric = Metric {
            name: "weir_item_seconds".into(),
            help: "time".into(),
            kind: Kind::Histogram,
            values: Vec::new(),
            histograms: vec![(vec![("model".into(), "m".into())], histogram)],
        };
        let body = metrics(&resource(), &[metric], 1, 2);
        let metric = &body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0];
        assert_eq!((&metric["unit"], &metric["histogram"]["aggregationTemporality"]), (&json!("s"), &json!(2)));
        let point = &metric["histogram"]["dataPoints"][0];
        assert_eq!(point["bucketCounts"], json!(["1", "2", "1"]));
        assert_eq!(
            (&point["count"], &point["sum"], &point["explicitBounds"]),
            (&json!("4"), &json!(5.5), &json!([0.1, 1.0]))
        );
    }

    #[test]
    fn units_are_those_of_names() {
        assert_eq!(
            (unit("weir_item_seconds"), unit("weir_record_bytes_total"), unit("weir_items_total")),
            ("s", "By", "1")
        );
    }
}
