//! The adapters of a server in the body of `GET /stream/health`.

use serde::Serialize;
use serde_json::{Map, Value};

/// The state and the counters of an adapter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AdapterReport {
    /// The adapter's name.
    pub name: String,
    /// The kind of its source.
    pub source: &'static str,
    /// The kind of its sink.
    pub sink: &'static str,
    /// Its state: `starting`, `running`, `reconnecting`, `stopping`, `stopped` or `failed`.
    pub state: &'static str,
    /// The last failure, until it is resolved.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// Records read.
    pub records: u64,
    /// Results written.
    pub results: u64,
    /// Errors written.
    pub errors: u64,
    /// Records that were read and are not written.
    pub in_flight: u64,
    /// Connections lost or failed.
    pub reconnects: u64,
}

impl AdapterReport {
    /// Whether it processes records, or has processed all.
    pub fn is_healthy(&self) -> bool {
        !matches!(self.state, "reconnecting" | "failed")
    }
}

/// Adds the adapters to the body of the gateway: the service `adapters`, which is unhealthy while one of them is, and the list of adapters.
/// With `has_details` the failures are included. `None` if the body is not an object with services.
pub fn add_adapters(body: &[u8], adapters: &[AdapterReport], has_details: bool) -> Option<Vec<u8>> {
    let mut health: Map<String, Value> = serde_json::from_slice(body).ok()?;
    let failing: Vec<String> = adapters
        .iter()
        .filter(|adapter| !adapter.is_healthy())
        .map(|adapter| format!("{}: {}", adapter.name, adapter.state))
        .collect();
    let state = if failing.is_empty() { "healthy" } else { "unhealthy" };
    health.get_mut("services")?.as_object_mut()?.insert("adapters".to_owned(), state.into());
    if !failing.is_empty() {
        let details = health.entry("details").or_insert_with(|| Map::new().into()).as_object_mut()?;
        details.insert("adapters".to_owned(), failing.join("; ").into());
        let status = health.get_mut("status")?;
        if *status == "healthy" {
            *status = "degraded".into();
        }
    }
    let report = |adapter: &AdapterReport| {
        let failure = adapter.failure.clone().filter(|_| has_details);
        serde_json::to_value(AdapterReport { failure, ..adapter.clone() }).unwrap_or_default()
    };
    health.insert("adapters".to_owned(), adapters.iter().map(report).collect::<Vec<_>>().into());
    Some(crate::json::to_vec(&health))
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    fn adapter(state: &'static str, failure: Option<&str>) -> AdapterReport {
        AdapterReport {
            name: "reviews".to_owned(),
            source: "redis",
            sink: "file",
            state,
            failure: failure.map(str::to_owned),
            records: 7,
            results: 6,
            errors: 0,
            in_flight: 1,
            reconnects: 2,
        }
    }

    #[test]
    fn adapters_are_a_service_and_a_list() {
        let body = br#"{"status":"healthy","services":{"memory":"healthy"},"active_streams":0}"#;
        let add = |adapters: &[AdapterReport], has_details| {
            String::from_utf8(add_adapters(body, adapters, has_details).unwrap()).unwrap()
        };
        expect![[r#"{"active_streams":0,"adapters":[{"errors":0,"in_flight":1,"name":"reviews","reconnects":2,"records":7,"results":6,"sink":"file","source":"redis","state":"running"}],"services":{"adapters":"healthy","memory":"healthy"},"status":"healthy"}"#]]
            .assert_eq(&add(&[adapter("running", None)], true));
        let failing = adapter("reconnecting", Some("redis.internal: refused"));
        expect![[r#"{"active_streams":0,"adapters":[{"errors":0,"failure":"redis.internal: refused","in_flight":1,"name":"reviews","reconnects":2,"records":7,"results":6,"sink":"file","source":"redis","state":"reconnecting"}],"details":{"adapters":"reviews: reconnecting"},"services":{"adapters":"unhealthy","memory":"healthy"},"status":"degraded"}"#]]
            .assert_eq(&add(std::slice::from_ref(&failing), true));
        assert!(!add(&[failing], false).contains("redis.internal"));
    }

    #[test]
    fn body_without_services_is_left_as_it_is() {
        for body in [&b"{}"[..], b"[]", b"", b"{\"services\":1}"] {
            assert_eq!(add_adapters(body, &[], true), None);
        }
    }
}
