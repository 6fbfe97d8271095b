//! The events of the channels for workflows, files and users, as JSON.
//!
//! The data of an event is one JSON object on one line. Field names do not change: existing subscribers depend on them. Every event
//! has a `timestamp` (RFC 3339).

use serde::Serialize;

use crate::{
    channels::{
        publish::{Notification, Progress, Temporal, WorkflowBody},
        route::{Channel, ChannelKind, id_field},
    },
    http::timestamp::rfc3339,
    json::raw::Raw,
};

/// An event of a channel.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamEvent<'a> {
    /// `connected`: the subscription is established; the first event of every connection. It has no id and is not stored.
    Connected,
    /// `workflow_progress`
    WorkflowProgress(&'a Progress),
    /// `analysis_progress`
    AnalysisProgress(&'a Progress),
    /// `notification`
    Notification(&'a Notification),
    /// `temporal_status`: the status of a workflow in its engine, from a publisher that queried it.
    TemporalStatus(&'a Temporal),
    /// `error`: the subscription failed; the workflow or file that it follows is not affected.
    Error {
        /// Machine-readable code.
        code: &'a str,
        /// Human-readable text.
        message: &'a str,
        /// True when a new connection may succeed.
        retryable: bool,
    },
    /// `disconnected`: the server ends the connection.
    Disconnected {
        /// Machine-readable code: `finished`, `expired`, `slow`, `draining` and so on.
        reason: &'a str,
        /// Human-readable text.
        message: &'a str,
        /// True when a new connection can resume.
        resumable: bool,
    },
    /// `gap`: events are no longer retained. The ids are as on the wire; both ends are missing.
    Gap {
        /// The id of the first missing event.
        missing_from: &'a str,
        /// The id of the last missing event.
        missing_to: &'a str,
    },
}

impl<'a> From<&'a WorkflowBody> for StreamEvent<'a> {
    fn from(body: &'a WorkflowBody) -> Self {
        match body {
            WorkflowBody::Progress(progress) => Self::WorkflowProgress(progress),
            WorkflowBody::Temporal(temporal) => Self::TemporalStatus(temporal),
        }
    }
}

impl StreamEvent<'_> {
    /// The type of the event.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Connected => "connected",
            Self::WorkflowProgress(_) => "workflow_progress",
            Self::AnalysisProgress(_) => "analysis_progress",
            Self::Notification(_) => "notification",
            Self::TemporalStatus(_) => "temporal_status",
            Self::Error { .. } => "error",
            Self::Disconnected { .. } => "disconnected",
            Self::Gap { .. } => "gap",
        }
    }

    /// True when a later event of the same type may replace it in the buffer of a slow subscriber.
    pub fn coalesces(&self) -> bool {
        match self {
            Self::WorkflowProgress(progress) | Self::AnalysisProgress(progress) => progress.coalesces(),
            _ => false,
        }
    }

    /// True for the last event of its channel. If the publisher sets `last`, that decides. Otherwise a workflow ends with a
    /// `temporal_status` that is not running, and a file with 100 percent, an error or a cancellation.
    pub fn finishes(&self) -> bool {
        match self {
            Self::WorkflowProgress(progress) => progress.last.unwrap_or(false),
            Self::AnalysisProgress(progress) => progress.last.unwrap_or_else(|| {
                progress.progress >= 100.0 || progress.error.is_some() || progress.canceled == Some(true)
            }),
            Self::TemporalStatus(temporal) => {
                let is_running = matches!(temporal.status, "RUNNING" | "CONTINUED_AS_NEW");
                temporal.last.unwrap_or(!is_running)
            }
            _ => false,
        }
    }

    /// The data: a JSON object on one line. `channel` is the channel that the event is about, also for the copy in a user's channel.
    pub fn data(&self, channel: &Channel, unix_ms: u64) -> Vec<u8> {
        let mut object = Object::open();
        object.text(id_field(channel.kind()), channel.id());
        match self {
            Self::Connected => object.text("channel", &channel.to_string()),
            Self::WorkflowProgress(progress) | Self::AnalysisProgress(progress) => object.progress(progress),
            Self::Notification(notification) => {
                object.maybe_text("title", notification.title.as_deref());
                object.text("message", &notification.message);
                object.text("level", notification.level);
                object.raw("metadata", notification.metadata.as_ref());
            }
            Self::TemporalStatus(temporal) => {
                object.text("status", temporal.status);
                object.maybe_text("run_id", temporal.run_id.as_deref());
                object.maybe_text("message", temporal.message.as_deref());
                object.raw("metadata", temporal.metadata.as_ref());
                object.raw("result", temporal.result.as_ref());
                object.maybe_text("user_id", temporal.user_id.as_deref());
            }
            Self::Error { code, message, retryable } => {
                object.text("code", code);
                object.text("message", message);
                object.value("retryable", retryable);
            }
            Self::Disconnected { reason, message, resumable } => {
                object.text("reason", reason);
                object.text("message", message);
                object.value("resumable", resumable);
            }
            Self::Gap { missing_from, missing_to } => {
                object.text("missing_from", missing_from);
                object.text("missing_to", missing_to);
            }
        }
        object.text("timestamp", &rfc3339(unix_ms));
        object.close()
    }
}

/// An event as one JSON object, for transports that do not frame events: a message of a WebSocket, a line of NDJSON. `data` is JSON on
/// one line; `id` is absent for events that are not stored.
pub fn envelope(channel: &Channel, id: Option<&str>, name: &str, data: &[u8]) -> Vec<u8> {
    let mut object = Object::open();
    object.text("type", name);
    object.maybe_text("id", id);
    object.text("channel", &channel.to_string());
    object.key("data");
    object.0.extend_from_slice(data);
    object.close()
}

/// The response to a publisher: the ids, as on the wire, of the event and of its copy in a user's channel.
pub fn published_json(channel: &Channel, id: &str, user: Option<(&Channel, &str)>) -> Vec<u8> {
    let mut object = Object::open();
    object.text("status", "published");
    object.text("channel", &channel.to_string());
    object.text("id", id);
    if let Some((channel, id)) = user {
        object.text("user_channel", &channel.to_string());
        object.text("user_event_id", id);
    }
    object.close()
}

/// The health of a service, as it reported it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceHealth {
    /// `events`, `redis`, `inference` and so on.
    pub name: String,
    /// True when it responded.
    pub healthy: bool,
    /// Why it is unhealthy, or which fallback is in use.
    pub detail: Option<String>,
}

/// The body of `GET /stream/health`, and whether every service is healthy. `status` is `healthy` when all services are, `degraded`
/// when some are, `unhealthy` when none is.
pub fn health_json(services: &[ServiceHealth], active_streams: u64, unix_ms: u64) -> (bool, Vec<u8>) {
    let healthy = services.iter().filter(|service| service.healthy).count();
    let status = match healthy {
        all if all == services.len() => "healthy",
        0 => "unhealthy",
        _ => "degraded",
    };
    let (mut states, mut details) = (Object::open(), Object::open());
    for service in services {
        states.text(&service.name, if service.healthy { "healthy" } else { "unhealthy" });
        details.maybe_text(&service.name, service.detail.as_deref());
    }
    let mut object = Object::open();
    object.text("status", status);
    object.key("services");
    object.0.extend(states.close());
    object.value("active_streams", &active_streams);
    object.text("timestamp", &rfc3339(unix_ms));
    if services.iter().any(|service| service.detail.is_some()) {
        object.key("details");
        object.0.extend(details.close());
    }
    (healthy == services.len(), object.close())
}

/// The response body of `POST /tickets`.
pub fn ticket_json(ticket: &str, expires_unix_ms: u64) -> Vec<u8> {
    let mut object = Object::open();
    object.text("ticket", ticket);
    object.text("expires_at", &rfc3339(expires_unix_ms));
    object.close()
}

/// Writes an object member by member; some values are JSON text already.
struct Object(Vec<u8>);

impl Object {
    fn open() -> Self {
        Self(vec![b'{'])
    }

    fn close(mut self) -> Vec<u8> {
        self.0.push(b'}');
        self.0
    }

    fn key(&mut self, key: &str) {
        if self.0.len() > 1 {
            self.0.push(b',');
        }
        self.json(key);
        self.0.push(b':');
    }

    fn json(&mut self, value: &(impl Serialize + ?Sized)) {
        serde_json::to_writer(&mut self.0, value)
            .expect("strings, numbers and booleans serialize, and writing to a vector cannot fail");
    }

    fn value(&mut self, key: &str, value: &(impl Serialize + ?Sized)) {
        self.key(key);
        self.json(value);
    }

    fn text(&mut self, key: &str, text: &str) {
        self.value(key, text);
    }

    fn maybe_text(&mut self, key: &str, text: Option<&str>) {
        if let Some(text) = text {
            self.text(key, text);
        }
    }

    fn raw(&mut self, key: &str, raw: Option<&Raw>) {
        if let Some(raw) = raw {
            self.key(key);
            self.0.extend_from_slice(raw.text.as_bytes());
        }
    }

    fn progress(&mut self, progress: &Progress) {
        self.text("step", &progress.step);
        // Whole percents are written without a fraction, as publishers send them.
        match progress.progress.fract() == 0.0 {
            true => self.value("progress", &(progress.progress as i64)),
            false => self.value("progress", &progress.progress),
        }
        self.maybe_text("message", progress.message.as_deref());
        self.maybe_text("error", progress.error.as_deref());
        if let Some(canceled) = progress.canceled {
            self.value("canceled", &canceled);
        }
        self.raw("metadata", progress.metadata.as_ref());
        self.raw("result", progress.result.as_ref());
        self.maybe_text("user_id", progress.user_id.as_deref());
    }
}

/// The names of all events of a kind of channel, for the API description.
pub fn events_of(kind: ChannelKind) -> &'static [&'static str] {
    match kind {
        ChannelKind::Workflow => &["connected", "workflow_progress", "temporal_status", "error", "disconnected", "gap"],
        ChannelKind::File => &["connected", "analysis_progress", "error", "disconnected", "gap"],
        ChannelKind::User => &[
            "connected",
            "notification",
            "workflow_progress",
            "analysis_progress",
            "temporal_status",
            "error",
            "disconnected",
            "gap",
        ],
        ChannelKind::Pipeline | ChannelKind::Session => &["connected", "error", "disconnected", "gap"],
        ChannelKind::Generation => {
            &["connected", "started", "token", "tool_call", "done", "error", "disconnected", "gap"]
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    const NOW_MS: u64 = 1_735_689_600_000;

    fn channel(name: &str) -> Channel {
        Channel::from_name(name).expect("a channel")
    }

    fn check(event: &StreamEvent<'_>, name: &str, want: Expect) {
        let channel = channel(name);
        let data = event.data(&channel, NOW_MS);
        let envelope = envelope(&channel, Some("e-1"), event.name(), &data);
        serde_json::from_slice::<serde_json::Value>(&envelope).expect("JSON");
        want.assert_eq(&format!("{}\n{}\n", event.name(), String::from_utf8(data).expect("UTF-8")));
    }

    #[test]
    fn published_events_are_rendered_with_their_fields() {
        let body = br#"{"step":"processing","progress":50,"message":"a\r\nb","metadata":{ "n": 1.10, "a": [] }}"#;
        let body = WorkflowBody::from_json(body).unwrap();
        check(
            &StreamEvent::from(&body),
            "workflow:42",
            expect![[r#"
            workflow_progress
            {"workflow_id":"42","step":"processing","progress":50,"message":"a\r\nb","metadata":{"n":1.10,"a":[]},"timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
        let body = br#"{"step":"done","progress":99.5,"error":"e","canceled":true,"result":{"k":[1]},"user_id":"ann"}"#;
        check(
            &StreamEvent::AnalysisProgress(&Progress::analysis_from_json(body).unwrap()),
            "file:f",
            expect![[r#"
            analysis_progress
            {"file_id":"f","step":"done","progress":99.5,"error":"e","canceled":true,"result":{"k":[1]},"user_id":"ann","timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
        let body = br#"{"event":"temporal_status","status":"FAILED","run_id":"r","message":"m"}"#;
        check(
            &StreamEvent::from(&WorkflowBody::from_json(body).unwrap()),
            "workflow:42",
            expect![[r#"
            temporal_status
            {"workflow_id":"42","status":"FAILED","run_id":"r","message":"m","timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
        let body = Notification::from_json(br#"{"title":"t","message":"m","metadata":{}}"#).unwrap();
        check(
            &StreamEvent::Notification(&body),
            "user:ann",
            expect![[r#"
            notification
            {"user_id":"ann","title":"t","message":"m","level":"info","metadata":{},"timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
    }

    #[test]
    fn server_events_are_rendered_with_their_fields() {
        check(
            &StreamEvent::Connected,
            "pipeline:0b1c",
            expect![[r#"
            connected
            {"execution_id":"0b1c","channel":"pipeline:0b1c","timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
        check(
            &StreamEvent::Error { code: "unavailable", message: "m", retryable: true },
            "workflow:42",
            expect![[r#"
            error
            {"workflow_id":"42","code":"unavailable","message":"m","retryable":true,"timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
        check(
            &StreamEvent::Disconnected { reason: "expired", message: "m", resumable: true },
            "session:s",
            expect![[r#"
            disconnected
            {"session_id":"s","reason":"expired","message":"m","resumable":true,"timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
        check(
            &StreamEvent::Gap { missing_from: "e-1", missing_to: "e-9" },
            "file:f",
            expect![[r#"
            gap
            {"file_id":"f","missing_from":"e-1","missing_to":"e-9","timestamp":"2025-01-01T00:00:00.000Z"}
        "#]],
        );
    }

    #[test]
    fn last_event_of_a_channel_is_recognized() {
        for (body, want) in [
            (r#"{"step":"s","progress":100}"#, false),
            (r#"{"step":"s","progress":1,"last":true}"#, true),
            (r#"{"event":"temporal_status","status":"RUNNING"}"#, false),
            (r#"{"event":"temporal_status","status":"CONTINUED_AS_NEW"}"#, false),
            (r#"{"event":"temporal_status","status":"FAILED"}"#, true),
            (r#"{"event":"temporal_status","status":"FAILED","last":false}"#, false),
        ] {
            let body = WorkflowBody::from_json(body.as_bytes()).unwrap();
            assert_eq!(StreamEvent::from(&body).finishes(), want, "{body:?}");
        }
        for (body, want) in [
            (r#"{"step":"s","progress":99.9}"#, false),
            (r#"{"step":"s","progress":100}"#, true),
            (r#"{"step":"s","progress":100,"last":false}"#, false),
            (r#"{"step":"s","progress":1,"error":"e"}"#, true),
        ] {
            let progress = Progress::analysis_from_json(body.as_bytes()).unwrap();
            assert_eq!(StreamEvent::AnalysisProgress(&progress).finishes(), want, "{body}");
        }
    }

    #[test]
    fn envelope_has_an_id_only_for_stored_events() {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        expect![[r#"{"type":"gap","id":"e-1","channel":"file:f","data":{}}"#]].assert_eq(&text(envelope(
            &channel("file:f"),
            Some("e-1"),
            "gap",
            b"{}",
        )));
        expect![[r#"{"type":"connected","channel":"file:f","data":{}}"#]].assert_eq(&text(envelope(
            &channel("file:f"),
            None,
            "connected",
            b"{}",
        )));
        expect![[r#"{"ticket":"t","expires_at":"2025-01-01T00:00:00.000Z"}"#]]
            .assert_eq(&text(ticket_json("t", NOW_MS)));
    }

    #[test]
    fn health_status_depends_on_the_number_of_healthy_services() {
        let service = |name: &str, healthy, detail: Option<&str>| ServiceHealth {
            name: name.to_owned(),
            healthy,
            detail: detail.map(str::to_owned),
        };
        let check = |services: &[ServiceHealth], want: Expect| {
            let (healthy, body) = health_json(services, 5, NOW_MS);
            want.assert_eq(&format!("{healthy} {}", String::from_utf8(body).expect("UTF-8")));
        };
        check(
            &[service("redis", true, None), service("temporal", true, None)],
            expect![[
                r#"true {"status":"healthy","services":{"redis":"healthy","temporal":"healthy"},"active_streams":5,"timestamp":"2025-01-01T00:00:00.000Z"}"#
            ]],
        );
        check(
            &[service("redis", false, Some("memory has taken over")), service("inference", true, None)],
            expect![[
                r#"false {"status":"degraded","services":{"redis":"unhealthy","inference":"healthy"},"active_streams":5,"timestamp":"2025-01-01T00:00:00.000Z","details":{"redis":"memory has taken over"}}"#
            ]],
        );
        check(
            &[service("redis", false, None)],
            expect![[
                r#"false {"status":"unhealthy","services":{"redis":"unhealthy"},"active_streams":5,"timestamp":"2025-01-01T00:00:00.000Z"}"#
            ]],
        );
    }
}
