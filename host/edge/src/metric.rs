//! The descriptions of all metrics of the process, for the help texts of `/metrics` and for
//! `docs/reference/metrics.md`.

/// The type of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MetricKind {
    /// Only grows; its name ends with `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Counts values by upper bounds: durations in seconds if its name ends with `_seconds`, otherwise items of a
    /// batch.
    Histogram,
}

/// A metric.
#[derive(Debug)]
pub(crate) struct Metric {
    pub(crate) name: &'static str,
    pub(crate) kind: MetricKind,
    /// The names of its labels.
    #[cfg_attr(not(test), expect(dead_code, reason = "used by the reference only; the help texts do not name labels"))]
    pub(crate) labels: &'static [&'static str],
    pub(crate) help: &'static str,
}

/// Every metric, by name.
pub(crate) const METRICS: &[Metric] = &[
    counter("weir_adapter_errors_total", &["adapter"], "records of an adapter written to its error destination"),
    gauge("weir_adapter_in_flight", &["adapter"], "records of an adapter that were read and are not written"),
    gauge(
        "weir_adapter_lag_records",
        &["adapter", "topic", "partition"],
        "records of a partition of Kafka that an adapter has not committed",
    ),
    counter("weir_adapter_reconnects_total", &["adapter"], "connections of an adapter that were lost or failed"),
    counter("weir_adapter_record_bytes_total", &["adapter"], "bytes of the records that an adapter has read"),
    counter("weir_adapter_records_total", &["adapter"], "records that an adapter has read"),
    gauge(
        "weir_adapter_remaining",
        &["adapter"],
        "unread bytes in the files of an adapter, or unread records of its topics or its stream, if that is known",
    ),
    counter("weir_adapter_result_bytes_total", &["adapter"], "bytes of the results that an adapter has written"),
    counter("weir_adapter_results_total", &["adapter"], "results that an adapter has written"),
    gauge("weir_adapter_state", &["adapter", "state"], "1 for the state that an adapter is in"),
    counter("weir_events_appended_total", &[], "events appended to channels"),
    gauge("weir_events_channels", &[], "channels in memory"),
    counter("weir_events_closed_slow_total", &[], "subscribers closed because they read too slowly"),
    counter("weir_events_coalesced_total", &[], "progress events that a later one replaced for a slow subscriber"),
    counter("weir_events_delivered_total", &[], "events delivered to subscribers"),
    counter("weir_events_evicted_total", &[], "channels removed to make room for others"),
    counter("weir_events_gaps_total", &[], "gaps delivered to subscribers"),
    counter("weir_events_published_total", &["kind", "event"], "events published here"),
    gauge("weir_events_subscribers", &[], "subscribers of channels"),
    counter("weir_gateway_instances_lost_total", &[], "gateway instances lost to a trap or a limit"),
    counter("weir_gateway_instances_total", &[], "gateway instances created"),
    counter("weir_generate_cached_tokens_total", &["model"], "tokens of prompts that were in the cache"),
    counter("weir_generate_failures_total", &["model"], "requests for generated text answered with a failure"),
    counter(
        "weir_generate_fallbacks_total",
        &["model"],
        "requests that failed before they began, and went to the next upstream",
    ),
    histogram("weir_generate_first_token_seconds", &["model"], "time from a request to its first token"),
    gauge("weir_generate_pages_free", &["model"], "pages of the cache that no sequence uses"),
    counter("weir_generate_prefill_tokens_total", &["model"], "tokens of prompts that were computed"),
    counter("weir_generate_prompt_tokens_total", &["model"], "tokens of prompts, those in the cache included"),
    gauge("weir_generate_ready", &["model"], "1 while the model is ready"),
    counter(
        "weir_generate_requests_cancelled_total",
        &["model"],
        "requests that were cancelled or whose client disconnected",
    ),
    counter("weir_generate_requests_overloaded_total", &["model"], "requests refused because the queue was full"),
    gauge("weir_generate_requests_queued", &["model"], "requests that have not started"),
    gauge("weir_generate_requests_running", &["model"], "requests that have started and not ended"),
    counter("weir_generate_requests_total", &["model"], "requests for generated text"),
    counter("weir_generate_restarts_total", &["model"], "instances of the generate component lost and replaced"),
    histogram(
        "weir_generate_step_seconds",
        &["model"],
        "time of a step: one token of every text, and parts of prompts",
    ),
    counter("weir_generate_tokens_total", &["model"], "tokens generated"),
    gauge("weir_http_connections_held", &[], "connections held for subscribers, without a guest"),
    gauge("weir_http_connections_open", &[], "connections open"),
    counter("weir_http_connections_refused_total", &[], "connections closed because their client had its share"),
    histogram("weir_http_first_byte_seconds", &[], "time from the header of a request to the header of its response"),
    counter("weir_http_rejected_total", &[], "requests answered 503 because the server was full"),
    gauge("weir_http_requests_open", &[], "requests in progress, bodies included"),
    counter("weir_http_requests_total", &["method", "status"], "requests answered"),
    counter("weir_http_shed_total", &[], "requests refused like others of their kind, without the component"),
    counter("weir_http_stalled_total", &[], "connections and streams closed because the client did not send or read"),
    histogram(
        "weir_infer_batch_fill_ratio",
        &["model"],
        "tokens of items whose outcomes a replica returned together, as a share of `infer.batch_tokens_max`",
    ),
    histogram("weir_infer_batch_items", &["model"], "items whose outcomes a replica returned together"),
    gauge("weir_infer_circuit_open", &["model"], "1 while the circuit breaker is open"),
    histogram(
        "weir_infer_compute_seconds",
        &["model"],
        "time in which a replica computed the items whose outcomes it returned together",
    ),
    counter("weir_infer_failures_total", &["model"], "items answered with a failure by a replica"),
    histogram("weir_infer_item_seconds", &["model"], "time from an item's arrival to its outcome"),
    counter("weir_infer_items_abandoned_total", &["model"], "items not computed because their caller disconnected"),
    counter("weir_infer_items_circuit_open_total", &["model"], "items refused while the circuit breaker was open"),
    counter("weir_infer_items_expired_total", &["model"], "items whose deadline passed before they were computed"),
    counter(
        "weir_infer_items_overloaded_total",
        &["model"],
        "items refused because the queue was full or too slow for their deadline",
    ),
    counter("weir_infer_items_retried_total", &["model"], "retries of items"),
    counter("weir_infer_items_throttled_total", &["model"], "items refused because their client had its share"),
    counter("weir_infer_items_total", &["model"], "items assigned to a replica"),
    gauge("weir_infer_queue_items", &["model"], "items waiting"),
    histogram("weir_infer_queue_seconds", &["model"], "time from an item's arrival to its assignment to a replica"),
    gauge("weir_infer_queue_tokens", &["model"], "tokens waiting, as estimated from bytes"),
    counter("weir_infer_replica_hangs_total", &["model"], "replicas replaced because they gave no outcome in time"),
    counter("weir_infer_replica_restarts_total", &["model"], "replicas lost and replaced"),
    gauge("weir_infer_replicas_ready", &["model"], "replicas that are ready"),
    gauge("weir_infer_threads_hanging", &["model"], "threads of replaced replicas that have not ended yet"),
    counter("weir_infer_tokens_total", &["model"], "tokens computed"),
    counter("weir_keeper_lost_total", &[], "stateful gateway instances lost to a trap or a limit"),
    counter("weir_pipeline_executions_total", &["outcome"], "executions that have ended"),
    histogram("weir_pipeline_seconds", &[], "time from the start of an execution to its completion"),
    histogram("weir_pipeline_step_seconds", &["kind"], "time of completed attempts of steps"),
    counter("weir_pipeline_steps_total", &["outcome"], "steps of executions that have ended"),
    counter("weir_step_calls_total", &["step", "outcome"], "calls of step components"),
    counter("weir_telemetry_exports_total", &["signal", "outcome"], "requests to the receiver of traces and metrics"),
    counter(
        "weir_telemetry_spans_dropped_total",
        &[],
        "spans that were not exported: the queue was full, or the receiver refused them",
    ),
    counter(
        "weir_upstream_requests_total",
        &["upstream", "outcome"],
        "attempts at upstreams: ok, refused, throttled, failed, unreachable, or key where the key could not be read",
    ),
    counter(
        "weir_websocket_message_bytes_total",
        &["direction"],
        "bytes of WebSocket messages, before compression and after decompression",
    ),
    counter(
        "weir_websocket_payload_bytes_total",
        &["direction"],
        "bytes of WebSocket messages on the wire, compressed where that was negotiated",
    ),
    gauge("weir_websockets_compressed_open", &[], "WebSockets open whose messages are compressed"),
    gauge("weir_websockets_open", &[], "WebSockets open"),
];

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Counter, labels, help }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Gauge, labels, help }
}

const fn histogram(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: MetricKind::Histogram, labels, help }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use expect_test::expect_file;

    use super::*;

    const PAGE: &str = "\
# Metrics

<!-- Generated from host/edge/src/metric.rs: UPDATE_EXPECT=1 cargo test --release -p weir-edge -->

`GET /metrics` answers in the Prometheus exposition format. With `auth.mode = \"required\"` it needs a token, see [Operate a
server](../guides/operate.md#metrics). A metric appears once it has a value.

| metric | type | labels | counts |
|---|---|---|---|
";

    #[test]
    fn reference_page_has_every_metric() {
        let mut page = PAGE.to_owned();
        for Metric { name, kind, labels, help } in METRICS {
            let kind = format!("{kind:?}").to_lowercase();
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            page.push_str(&format!("| `{name}` | {kind} | {} | {help} |\n", labels.join(", ")));
        }
        expect_file!["../../../docs/reference/metrics.md"].assert_eq(&page);
    }

    /// Adds the names of metrics in the sources below a folder: literals that begin with `weir_` and a subject.
    fn collect_names(folder: &Path, names: &mut BTreeSet<String>) {
        const SUBJECTS: [&str; 13] = [
            "adapter",
            "events",
            "gateway",
            "generate",
            "http",
            "infer",
            "keeper",
            "pipeline",
            "step",
            "telemetry",
            "upstream",
            "websocket",
            "websockets",
        ];
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                collect_names(&path, names);
            } else if path.extension().is_some_and(|end| end == "rs") && !path.ends_with("metric.rs") {
                let source = std::fs::read_to_string(&path).unwrap();
                let literals = source.split("\"weir_").skip(1).filter_map(|rest| rest.split('"').next());
                let metrics = literals.filter(|rest| SUBJECTS.iter().any(|it| rest.starts_with(&format!("{it}_"))));
                names.extend(metrics.map(|rest| format!("weir_{rest}")));
            }
        }
    }

    #[test]
    fn recorded_and_described_metrics_are_equal() {
        let host = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let mut names = BTreeSet::new();
        for folder in ["adapters/src", "edge/src", "runtime/src", "events/src", "nn/src", "cli/src", "telemetry/src"] {
            collect_names(&host.join(folder), &mut names);
        }
        let described_names: Vec<&str> = METRICS.iter().map(|metric| metric.name).collect();
        assert!(described_names.is_sorted(), "METRICS is not sorted by name");
        assert_eq!(names.iter().map(String::as_str).collect::<Vec<_>>(), described_names);
        for metric in METRICS {
            assert_eq!(metric.name.ends_with("_total"), metric.kind == MetricKind::Counter, "{}", metric.name);
            let is_histogram = ["_seconds", "_batch_items", "_ratio"].iter().any(|end| metric.name.ends_with(end));
            assert_eq!(is_histogram, metric.kind == MetricKind::Histogram, "{}", metric.name);
        }
    }

    /// The queries of the dashboard and of the alert rules.
    fn queries() -> Vec<String> {
        fn collect(value: &serde_json::Value, queries: &mut Vec<String>) {
            match value {
                serde_json::Value::Object(members) => {
                    for (name, value) in members {
                        match (name.as_str(), value) {
                            ("expr" | "query", serde_json::Value::String(query)) => queries.push(query.clone()),
                            _ => collect(value, queries),
                        }
                    }
                }
                serde_json::Value::Array(values) => values.iter().for_each(|value| collect(value, queries)),
                _ => {}
            }
        }
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/observability");
        let dashboard = std::fs::read_to_string(folder.join("dashboard.json")).unwrap();
        let mut queries = Vec::new();
        collect(&serde_json::from_str(&dashboard).unwrap(), &mut queries);
        let alerts = std::fs::read_to_string(folder.join("alerts.yaml")).unwrap();
        queries.extend(alerts.lines().filter_map(|line| line.trim().strip_prefix("expr: ")).map(str::to_owned));
        queries.retain(|query| query != "prometheus");
        queries
    }

    /// The words of a query that may be metrics or labels, each with the character after it; texts in quotes are left out.
    fn words(query: &str) -> Vec<(&str, Option<char>)> {
        let mut words = Vec::new();
        for (number, part) in query.split('"').enumerate() {
            let is_text = number % 2 == 1;
            let is_word = |char: char| char.is_ascii_alphanumeric() || matches!(char, '_' | '$');
            let mut rest = part;
            while let Some(begin) = rest.find(is_word).filter(|_| !is_text) {
                let end = rest[begin..].find(|char| !is_word(char)).map_or(rest.len(), |length| begin + length);
                let after = rest[end..].trim_start().chars().next();
                words.push((&rest[begin..end], after));
                rest = &rest[end..];
            }
        }
        words
    }

    /// The metric that a query names, which may be a series of a histogram.
    fn metric(name: &str) -> Option<&'static Metric> {
        let find = |name: &str| METRICS.iter().find(|metric| metric.name == name);
        let series = ["_bucket", "_sum", "_count"].into_iter().filter_map(|suffix| name.strip_suffix(suffix));
        find(name)
            .filter(|metric| metric.kind != MetricKind::Histogram)
            .or_else(|| series.filter_map(find).find(|metric| metric.kind == MetricKind::Histogram))
    }

    #[test]
    fn dashboard_and_alerts_name_existing_metrics_and_labels() {
        const FUNCTIONS: [&str; 11] = [
            "sum",
            "by",
            "rate",
            "increase",
            "histogram_quantile",
            "label_values",
            "or",
            "and",
            "le",
            "instance",
            "$__rate_interval",
        ];
        let queries = queries();
        assert!(queries.len() > 60, "{}", queries.len());
        for query in &queries {
            let words = words(query);
            let metrics: Vec<&Metric> = words.iter().filter_map(|(word, _)| metric(word)).collect();
            assert!(!metrics.is_empty(), "{query} names no metric");
            for (word, after) in &words {
                let is_range = word.starts_with(|char: char| char.is_ascii_digit());
                let is_label = *after != Some('(') && metrics.iter().any(|metric| metric.labels.contains(word));
                let is_known = metric(word).is_some() || FUNCTIONS.contains(word) || is_label || is_range;
                assert!(is_known, "{query} has `{word}`, which is neither a metric nor a label of one");
            }
        }
    }

    /// The autoscaler of the chart follows what a pod has now, so its metric is a gauge.
    #[test]
    fn autoscaler_names_an_existing_metric() {
        let file = "../../deploy/helm/weir/templates/horizontalpodautoscaler.yaml";
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let mut lines = text.lines().map(str::trim);
        let mut names = Vec::new();
        while lines.any(|line| line == "metric:") {
            names.push(lines.next().and_then(|line| line.strip_prefix("name: ")).unwrap());
        }
        assert!(!names.is_empty(), "{file} names no metric");
        for name in names {
            let metric = metric(name).unwrap_or_else(|| panic!("{name} is not a metric"));
            assert_eq!(metric.kind, MetricKind::Gauge, "{name}");
        }
    }

    #[test]
    fn dashboard_shows_the_metrics_of_every_subject() {
        let queries = queries();
        let shown: BTreeSet<&str> =
            queries.iter().flat_map(|query| words(query)).filter_map(|(word, _)| Some(metric(word)?.name)).collect();
        let missing: Vec<&str> =
            METRICS.iter().map(|metric| metric.name).filter(|name| !shown.contains(name)).collect();
        expect_test::expect!["weir_events_appended_total weir_generate_prefill_tokens_total weir_generate_ready weir_generate_restarts_total weir_telemetry_exports_total weir_telemetry_spans_dropped_total weir_websockets_compressed_open"].assert_eq(&missing.join(" "));
    }
}
