//! `GET /v1/stats`: a snapshot of the server's metrics as JSON, or one every second as server-sent events. It is meant
//! for pages, which would otherwise have to parse the Prometheus text format.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::time::{Interval, MissedTickBehavior};
use weir_codec::http::timestamp::rfc3339;
use weir_config::ChangedSetting;
use weir_telemetry::exposition::samples;

use crate::share::Permit;

/// The time between two snapshots of a stream.
const PERIOD: Duration = Duration::from_secs(1);
/// The snapshots of one stream. Then its client has to connect and to authenticate again.
const SNAPSHOTS_MAX: u32 = 600;

/// Values of the process that have no labels, by the names of their metrics.
const FACTS: [(&str, &str); 12] = [
    ("requests_open", "weir_http_requests_open"),
    ("requests_rejected_total", "weir_http_rejected_total"),
    ("connections_open", "weir_http_connections_open"),
    ("websockets_open", "weir_websockets_open"),
    ("subscribers", "weir_events_subscribers"),
    ("channels", "weir_events_channels"),
    ("events_published_total", "weir_events_appended_total"),
    ("events_delivered_total", "weir_events_delivered_total"),
    ("gaps_total", "weir_events_gaps_total"),
    ("closed_slow_total", "weir_events_closed_slow_total"),
    ("gateway_instances_lost_total", "weir_gateway_instances_lost_total"),
    ("keeper_lost_total", "weir_keeper_lost_total"),
];
/// Values of each model, by the names of their metrics.
const MODEL_FACTS: [(&str, &str); 5] = [
    ("queue_items", "weir_infer_queue_items"),
    ("queue_tokens", "weir_infer_queue_tokens"),
    ("items_total", "weir_infer_items_total"),
    ("tokens_total", "weir_infer_tokens_total"),
    ("failures_total", "weir_infer_failures_total"),
];

/// The samples of a model.
#[derive(Default)]
struct ModelSamples {
    facts: Map<String, Value>,
    replicas: f64,
    is_circuit_open: bool,
    batches: (f64, f64),
    /// Items by the upper bound of their time in seconds, cumulative.
    seconds: Vec<(f64, f64)>,
}

/// The settings that differ from their defaults, as JSON.
pub(crate) fn configuration(changed: &[ChangedSetting]) -> Value {
    let setting = |ChangedSetting { key, value }: &ChangedSetting| match value {
        Some(value) => json!({ "key": key, "value": value }),
        None => json!({ "key": key }),
    };
    changed.iter().map(setting).collect::<Vec<_>>().into()
}

/// The snapshot of a process that has run for `uptime`, from its metrics in the exposition format.
fn snapshot(exposition: &str, configuration: &Value, uptime: Duration, now: Duration) -> Value {
    let mut stats = Map::new();
    stats.insert("configuration".to_owned(), configuration.clone());
    stats.insert("timestamp".to_owned(), rfc3339(u64::try_from(now.as_millis()).unwrap_or(u64::MAX)).into());
    stats.insert("uptime_s".to_owned(), uptime.as_secs().into());
    for (field, _) in FACTS {
        stats.insert(field.to_owned(), json!(0));
    }
    let mut models: BTreeMap<Cow<'_, str>, ModelSamples> = BTreeMap::new();
    for sample in samples(exposition) {
        if let Some((field, _)) = FACTS.iter().find(|(_, metric)| *metric == sample.name) {
            stats.insert((*field).to_owned(), number(sample.value));
            continue;
        }
        let Some(model) = sample.label("model") else { continue };
        let model = models.entry(model).or_default();
        if let Some((field, _)) = MODEL_FACTS.iter().find(|(_, metric)| *metric == sample.name) {
            model.facts.insert((*field).to_owned(), number(sample.value));
        }
        match sample.name {
            "weir_infer_replicas_ready" => model.replicas = sample.value,
            "weir_infer_circuit_open" => model.is_circuit_open = sample.value > 0.0,
            name => match name.rsplit_once('_') {
                Some(("weir_infer_batch_items", "sum")) => model.batches.0 = sample.value,
                Some(("weir_infer_batch_items", "count")) => model.batches.1 = sample.value,
                Some(("weir_infer_item_seconds", "bucket")) => {
                    let bound = sample.label("le").and_then(|bound| bound.parse().ok()).unwrap_or(f64::INFINITY);
                    model.seconds.push((bound, sample.value));
                }
                _ => {}
            },
        }
    }
    let models = models.into_iter().map(|(name, model)| {
        let (items, batches) = model.batches;
        let mut value = json!({
            "name": name,
            "ready": model.replicas > 0.0,
            "replicas": number(model.replicas),
            "circuit": if model.is_circuit_open { "open" } else { "closed" },
            "batch_items_mean": (batches > 0.0).then(|| items / batches),
            "p50_ms": quantile(&model.seconds, 0.5).map(milliseconds),
            "p99_ms": quantile(&model.seconds, 0.99).map(milliseconds),
        });
        for (field, _) in MODEL_FACTS {
            value[field] = model.facts.get(field).cloned().unwrap_or(json!(0));
        }
        value
    });
    stats.insert("models".to_owned(), models.collect::<Vec<_>>().into());
    Value::Object(stats)
}

/// A JSON number, written as an integer if it is one.
fn number(value: f64) -> Value {
    const WHOLE_MAX: f64 = 9_007_199_254_740_992.0;
    if value.fract() == 0.0 && value.abs() < WHOLE_MAX { json!(value as i64) } else { json!(value) }
}

/// Seconds in milliseconds, to the microsecond.
fn milliseconds(seconds: f64) -> f64 {
    (seconds * 1e6).round() / 1e3
}

/// A quantile of a cumulative histogram, interpolated linearly within its bucket; `None` if the histogram is empty.
fn quantile(buckets: &[(f64, f64)], share: f64) -> Option<f64> {
    let total = buckets.iter().map(|(_, count)| *count).fold(0.0, f64::max);
    let rank = total * share;
    let at = buckets.iter().position(|(_, count)| *count >= rank).filter(|_| total > 0.0)?;
    let (low, below) = if at == 0 { (0.0, 0.0) } else { buckets[at - 1] };
    let (high, until) = buckets[at];
    // In the unbounded last bucket the quantile is at least its lower bound.
    if high.is_infinite() || until <= below {
        return Some(if high.is_infinite() { low } else { high });
    }
    Some(low + (high - low) * (rank - below) / (until - below))
}

/// The configuration of a server that was not given one to show.
static NO_SETTINGS: Value = Value::Array(Vec::new());

/// The snapshot of a process that has run for `uptime`, as a body.
pub(crate) fn body(exposition: &str, configuration: Option<&Value>, uptime: Duration) -> Bytes {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let stats = snapshot(exposition, configuration.unwrap_or(&NO_SETTINGS), uptime, now);
    Bytes::from(format!("{stats}\n"))
}

/// A server whose snapshots are sent as a stream.
pub(crate) trait StatsSource: Send + Sync {
    /// A snapshot that is at most half a second old.
    fn recent_stats(&self) -> Bytes;

    /// Whether streams end.
    fn is_draining(&self) -> bool;
}

/// How old a snapshot may be that several streams share.
const SHARED_FOR: Duration = Duration::from_millis(500);

/// The last snapshot for streams. However many streams there are, the metrics are rendered twice a second.
#[derive(Default)]
pub(crate) struct SharedSnapshot(Mutex<Option<(Instant, Bytes)>>);

impl SharedSnapshot {
    /// The last snapshot, or a new one if that is too old.
    pub(crate) fn get(&self, now: Instant, render: impl FnOnce() -> Bytes) -> Bytes {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*last {
            Some((at, body)) if now.saturating_duration_since(*at) < SHARED_FOR => body.clone(),
            _ => last.insert((now, render())).1.clone(),
        }
    }
}

/// A snapshot every second, as server-sent events named `stats`.
pub(crate) struct StatsStream {
    source: Arc<dyn StatsSource>,
    interval: Interval,
    sent: u32,
    _permit: Permit,
}

impl StatsStream {
    /// Must be called in a tokio runtime with a clock.
    pub(crate) fn new(source: Arc<dyn StatsSource>, permit: Permit) -> Self {
        let mut interval = tokio::time::interval(PERIOD);
        // A client that does not read gets the newest snapshot later, not all of them.
        interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Self { source, interval, sent: 0, _permit: permit }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.sent >= SNAPSHOTS_MAX || self.source.is_draining()
    }

    pub(crate) fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.is_over() {
            return Poll::Ready(None);
        }
        ready!(self.interval.poll_tick(cx));
        self.sent += 1;
        let mut event = b"event: stats\ndata: ".to_vec();
        event.extend_from_slice(&self.source.recent_stats());
        event.push(b'\n');
        Poll::Ready(Some(event.into()))
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    const EXPOSITION: &str = "\
# HELP weir_http_requests_open requests in progress, bodies included
# TYPE weir_http_requests_open gauge
weir_http_requests_open 12
weir_infer_replicas_ready{model=\"sentiment\"} 1
weir_infer_queue_items{model=\"sentiment\"} 3
weir_infer_tokens_total{model=\"sentiment\"} 5120
weir_infer_circuit_open{model=\"entities\"} 1
weir_infer_batch_items_sum{model=\"sentiment\"} 18
weir_infer_batch_items_count{model=\"sentiment\"} 2
weir_infer_item_seconds_bucket{model=\"sentiment\",le=\"0.01\"} 50
weir_infer_item_seconds_bucket{model=\"sentiment\",le=\"0.1\"} 99
weir_infer_item_seconds_bucket{model=\"sentiment\",le=\"+Inf\"} 100
weir_http_requests_total{method=\"GET\",status=\"200\"} 7
not a sample
";

    #[test]
    fn snapshot_has_facts_and_models_of_the_exposition() {
        let changed = [
            ChangedSetting { key: "auth.dir".to_owned(), value: None },
            ChangedSetting { key: "http.requests_max".to_owned(), value: Some(json!(77)) },
        ];
        let configuration = configuration(&changed);
        let stats = snapshot(EXPOSITION, &configuration, Duration::from_secs(61), Duration::from_millis(1500));
        expect![[r#"{"channels":0,"closed_slow_total":0,"configuration":[{"key":"auth.dir"},{"key":"http.requests_max","value":77}],"connections_open":0,"events_delivered_total":0,"events_published_total":0,"gaps_total":0,"gateway_instances_lost_total":0,"keeper_lost_total":0,"models":[{"batch_items_mean":null,"circuit":"open","failures_total":0,"items_total":0,"name":"entities","p50_ms":null,"p99_ms":null,"queue_items":0,"queue_tokens":0,"ready":false,"replicas":0,"tokens_total":0},{"batch_items_mean":9.0,"circuit":"closed","failures_total":0,"items_total":0,"name":"sentiment","p50_ms":10.0,"p99_ms":100.0,"queue_items":3,"queue_tokens":0,"ready":true,"replicas":1,"tokens_total":5120}],"requests_open":12,"requests_rejected_total":0,"subscribers":0,"timestamp":"1970-01-01T00:00:01.500Z","uptime_s":61,"websockets_open":0}"#]]
            .assert_eq(&stats.to_string());
    }

    #[test]
    fn quantile_lies_within_its_bucket() {
        let buckets = [(1.0, 0.0), (2.0, 10.0), (f64::INFINITY, 12.0)];
        assert_eq!(quantile(&buckets, 0.5), Some(1.6));
        assert_eq!(quantile(&buckets, 0.99), Some(2.0));
        assert_eq!(quantile(&[], 0.5), None);
        assert_eq!(quantile(&[(1.0, 0.0)], 0.5), None);
    }

    #[test]
    fn streams_share_a_snapshot_until_it_is_old() {
        let (shared, start) = (SharedSnapshot::default(), Instant::now());
        let rendered = std::cell::Cell::new(0);
        let get = |after_ms| {
            shared.get(start + Duration::from_millis(after_ms), || {
                rendered.set(rendered.get() + 1);
                Bytes::from(rendered.get().to_string())
            })
        };
        assert_eq!((0..256).map(&get).filter(|body| body == "1").count(), 256);
        assert_eq!((get(499), get(500), get(999), get(1000)), ("1".into(), "2".into(), "2".into(), "3".into()));
    }
}
