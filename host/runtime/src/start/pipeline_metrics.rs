//! SR, CR, TCL and WCT of executions ([`weir_core::pipelines::Reliability`]) as metrics. They are derived from the
//! events of executions, since a guest cannot publish metrics.
//!
//! | metric | of |
//! |---|---|
//! | `weir_pipeline_executions_total{outcome}` | SR: `completed` by `completed` and `failed` |
//! | `weir_pipeline_steps_total{outcome}` | CR: `compensation` (done or failed for good) by `completed` |
//! | `weir_pipeline_step_seconds{kind}` | TCL: of the kinds that call a service or a model |
//! | `weir_pipeline_seconds` | WCT |
//!
//! The members of an event have a fixed order. Values that a client or a step chooses are inside of JSON strings, where
//! quotes are escaped, or before the member that is searched for. A search from one end therefore finds the right
//! member.

/// Counts an event of an execution.
pub(crate) fn count(name: &str, data: &str) {
    match measure(name, data) {
        Some(Measurement::Execution { outcome, seconds }) => {
            metrics::counter!("weir_pipeline_executions_total", "outcome" => outcome).increment(1);
            if let Some(seconds) = seconds {
                metrics::histogram!("weir_pipeline_seconds").record(seconds);
            }
        }
        Some(Measurement::Step { outcome, kind, seconds }) => {
            metrics::counter!("weir_pipeline_steps_total", "outcome" => outcome).increment(1);
            if let Some((kind, seconds)) = kind.zip(seconds) {
                metrics::histogram!("weir_pipeline_step_seconds", "kind" => kind).record(seconds);
            }
        }
        None => {}
    }
}

/// What an event adds to the metrics.
#[derive(Debug, PartialEq)]
enum Measurement {
    Execution { outcome: &'static str, seconds: Option<f64> },
    Step { outcome: &'static str, kind: Option<String>, seconds: Option<f64> },
}

fn measure(name: &str, data: &str) -> Option<Measurement> {
    let compensates = data.rsplit_once("\"metadata\":").is_some_and(|(_, rest)| rest.contains("\"compensates\":"));
    let outcome = |otherwise| if compensates { "compensation" } else { otherwise };
    Some(match name {
        "pipeline_complete" => Measurement::Execution { outcome: "completed", seconds: seconds(data) },
        "pipeline_error" => {
            let cancelled = data.contains("\"cancelled\":true");
            Measurement::Execution { outcome: if cancelled { "cancelled" } else { "failed" }, seconds: None }
        }
        "step_complete" => {
            Measurement::Step { outcome: outcome("completed"), kind: kind(data), seconds: seconds(data) }
        }
        "step_error" if data.contains("\"retry_in_ms\":null") => {
            Measurement::Step { outcome: outcome("failed"), kind: None, seconds: None }
        }
        "step_error" => Measurement::Step { outcome: "retried", kind: None, seconds: None },
        _ => return None,
    })
}

fn seconds(data: &str) -> Option<f64> {
    let (_, rest) = data.rsplit_once("\"duration_ms\":")?;
    let end = rest.find([',', '}'])?;
    Some(rest[..end].parse::<f64>().ok()? / 1000.0)
}

fn kind(data: &str) -> Option<String> {
    let (_, rest) = data.split_once("\"data\":{\"kind\":\"")?;
    let (kind, _) = rest.split_once('"')?;
    Some(kind.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_measured() {
        let complete = r#"{"event_type":"step_complete","step_id":"s","data":{"kind":"map","output":{"duration_ms":1,"metadata":{"compensates":"x"}},"duration_ms":2500.5},"metadata":{"seq":3,"attempt":1}}"#;
        let kind = Some("map".to_owned());
        assert_eq!(
            measure("step_complete", complete),
            Some(Measurement::Step { outcome: "completed", kind, seconds: Some(2.5005) })
        );
        let undone = complete.replace("\"attempt\":1", "\"compensates\":\"s\"");
        assert!(matches!(measure("step_complete", &undone), Some(Measurement::Step { outcome: "compensation", .. })));
        let error = r#"{"data":{"kind":"http","error":"\"retry_in_ms\":null","retry_in_ms":5,"duration_ms":1},"metadata":null}"#;
        let outcome = |data: &str| match measure("step_error", data) {
            Some(Measurement::Step { outcome, .. }) => outcome,
            _ => "none",
        };
        assert_eq!(outcome(error), "retried");
        assert_eq!(outcome(&error.replace("_ms\":5", "_ms\":null")), "failed");
        let whole =
            r#"{"data":{"output":[1],"duration_ms":7,"steps_completed":1,"steps_failed":0},"metadata":{"seq":9}}"#;
        let seconds = Some(0.007);
        assert_eq!(measure("pipeline_complete", whole), Some(Measurement::Execution { outcome: "completed", seconds }));
        let failed = r#"{"data":{"error":"\"cancelled\":true","cancelled":false,"duration_ms":7},"metadata":null}"#;
        let seconds = None;
        assert_eq!(measure("pipeline_error", failed), Some(Measurement::Execution { outcome: "failed", seconds }));
        assert_eq!(measure("step_start", complete), None);
    }
}
