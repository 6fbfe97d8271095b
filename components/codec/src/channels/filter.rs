//! The filter of a subscription: the events (`events`) and steps (`steps`) that it receives, and how often progress with the same key
//! is sent (`throttle_ms`).
//!
//! A filtered event is not a gap. A subscriber resumes after the last event that it received, and the same filter applies to the events
//! after it. Events of the subscription itself (`connected`, `gap`, `error`, `disconnected`) are never filtered.

use serde::Deserialize;

use crate::{
    inference::query::decode,
    json::field::{FieldError, FieldReason, RequestError},
};

/// Maximum number of names in a list.
pub const NAMES_MAX: usize = 32;
/// Maximum number of bytes of a name.
pub const NAME_BYTES_MAX: usize = 200;
/// The longest throttle period, in milliseconds.
pub const THROTTLE_MS_MAX: u32 = 60_000;

/// The names of the query parameters, and of the members of a `subscribe` message.
pub const FIELDS: [&str; 3] = ["events", "steps", "throttle_ms"];

/// A filter. The default admits every event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct EventFilter {
    /// Names of events; all when empty.
    pub events: Vec<String>,
    /// Ids of steps: events of other steps are filtered out, events without a step are not. All when empty.
    pub steps: Vec<String>,
    /// The period, in milliseconds, in which at most the newest progress event of a key is sent; 0 sends all of them.
    pub throttle_ms: u32,
}

/// The step that an event belongs to: `step_id` in an event of an execution, `step` in a progress event.
#[derive(Deserialize)]
struct StepOf<'a> {
    #[serde(borrow)]
    step_id: Option<std::borrow::Cow<'a, str>>,
    #[serde(borrow)]
    step: Option<std::borrow::Cow<'a, str>>,
}

impl EventFilter {
    /// Reads a query without its question mark. Lists are separated by commas; other parameters are ignored.
    ///
    /// # Errors
    ///
    /// A parameter appears twice or has an invalid value.
    pub fn from_query(query: &str) -> Result<Self, RequestError> {
        let mut fields: [Option<String>; 3] = [const { None }; 3];
        for pair in query.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name);
            let Some(at) = FIELDS.iter().position(|field| *field == name) else { continue };
            if fields[at].replace(decode(value).into_owned()).is_some() {
                return Err(invalid(FIELDS[at], format!("`{name}` must be given once")));
            }
        }
        let [events, steps, throttle] = fields;
        let list = |text: Option<String>| -> Option<Vec<String>> {
            text.map(|text| text.split(',').map(str::to_owned).collect())
        };
        let throttle_ms = match throttle {
            None => None,
            Some(text) => {
                let number = text.parse::<u64>().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()));
                Some(number.ok_or_else(|| {
                    invalid("throttle_ms", format!("`throttle_ms` must be a whole number, and is `{text}`"))
                })?)
            }
        };
        Self::new(list(events), list(steps), throttle_ms)
    }

    /// A filter from lists and a period; absent ones do not filter.
    ///
    /// # Errors
    ///
    /// A list is empty, too long or has an invalid name; the period is too long.
    pub fn new(
        events: Option<Vec<String>>,
        steps: Option<Vec<String>>,
        throttle_ms: Option<u64>,
    ) -> Result<Self, RequestError> {
        let check = |field: &'static str, names: Option<Vec<String>>| {
            let Some(names) = names else { return Ok(Vec::new()) };
            let fits = |name: &String| (1..=NAME_BYTES_MAX).contains(&name.len()) && !name.contains(',');
            if (1..=NAMES_MAX).contains(&names.len()) && names.iter().all(fits) {
                return Ok(names);
            }
            let what =
                format!("`{field}` must list 1 to {NAMES_MAX} names of 1 to {NAME_BYTES_MAX} bytes without commas");
            Err(invalid(field, what))
        };
        let throttle_ms = throttle_ms.unwrap_or_default();
        let throttle_ms = u32::try_from(throttle_ms).ok().filter(|period_ms| *period_ms <= THROTTLE_MS_MAX);
        let Some(throttle_ms) = throttle_ms else {
            return Err(invalid("throttle_ms", format!("`throttle_ms` must be 0 to {THROTTLE_MS_MAX}")));
        };
        Ok(Self { events: check("events", events)?, steps: check("steps", steps)?, throttle_ms })
    }

    /// True when every event passes without throttling.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// True when an event with this name and data passes.
    pub fn admits(&self, name: &str, data: &str) -> bool {
        if !self.events.is_empty() && !self.events.iter().any(|event| event == name) {
            return false;
        }
        if self.steps.is_empty() {
            return true;
        }
        // Data that is not such an object has no step.
        let Ok(StepOf { step_id, step }) = serde_json::from_str(data) else { return true };
        step_id.or(step).is_none_or(|step| self.steps.iter().any(|one| *one == step))
    }

    /// The filter as a query of bytes that are safe in a header; [`Self::from_query`] reads it back.
    pub fn to_query(&self) -> String {
        let list = |names: &[String]| names.iter().map(|name| encode(name)).collect::<Vec<_>>().join(",");
        let mut parts = Vec::new();
        if !self.events.is_empty() {
            parts.push(format!("events={}", list(&self.events)));
        }
        if !self.steps.is_empty() {
            parts.push(format!("steps={}", list(&self.steps)));
        }
        if self.throttle_ms > 0 {
            parts.push(format!("throttle_ms={}", self.throttle_ms));
        }
        parts.join("&")
    }
}

fn invalid(field: &'static str, message: String) -> RequestError {
    RequestError::Invalid(vec![FieldError::new(field, FieldReason::NotAllowed, message)])
}

/// Percent-encodes everything but letters, digits, `_`, `-` and `.`.
fn encode(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn query_with_lists_and_a_period_is_read() {
        let filter =
            EventFilter::from_query("last_event_id=1-2&events=step_complete,step_error&steps=a%20b&throttle_ms=100");
        let want =
            EventFilter { events: names(&["step_complete", "step_error"]), steps: names(&["a b"]), throttle_ms: 100 };
        assert_eq!(filter, Ok(want));
        assert_eq!(EventFilter::from_query("ticket=x"), Ok(EventFilter::default()));
        assert!(EventFilter::from_query("").unwrap().is_default());
    }

    #[test]
    fn invalid_query_is_refused_with_the_field() {
        for (query, field) in [
            ("events=", "`events` must list"),
            ("events=a,,b", "`events` must list"),
            ("steps=a&steps=b", "`steps` must be given once"),
            ("throttle_ms=-1", "`throttle_ms` must be a whole number"),
            ("throttle_ms=60001", "`throttle_ms` must be 0 to 60000"),
            ("throttle_ms=99999999999999999999", "`throttle_ms` must be a whole number"),
        ] {
            let error = EventFilter::from_query(query).unwrap_err().to_string();
            assert!(error.contains(field), "{query}: {error}");
        }
        assert!(EventFilter::from_query(&format!("events={}", vec!["a"; NAMES_MAX + 1].join(","))).is_err());
        assert!(EventFilter::from_query(&format!("steps={}", "a".repeat(NAME_BYTES_MAX + 1))).is_err());
    }

    #[test]
    fn events_of_other_names_and_steps_are_filtered_out() {
        let filter = EventFilter {
            events: names(&["step_complete", "pipeline_complete"]),
            steps: names(&["score"]),
            throttle_ms: 0,
        };
        for (name, data, admitted) in [
            ("step_complete", r#"{"step_id":"score","data":{"step_id":"other"}}"#, true),
            ("step_complete", r#"{"event_type":"x","step_id":"other"}"#, false),
            ("step_start", r#"{"step_id":"score"}"#, false),
            ("pipeline_complete", r#"{"step_id":null}"#, true),
            ("step_complete", "[1]", true),
        ] {
            assert_eq!(filter.admits(name, data), admitted, "{name} {data}");
        }
        let progress = EventFilter { steps: names(&["page 2"]), ..EventFilter::default() };
        assert!(progress.admits("workflow_progress", r#"{"workflow_id":"42","step":"page\u00202"}"#));
        assert!(!progress.admits("workflow_progress", r#"{"workflow_id":"42","step":"page 3"}"#));
    }

    proptest! {
        #[test]
        fn query_reads_back(
            events in prop::collection::vec("[^,]{1,20}", 0..5),
            steps in prop::collection::vec("[^,]{1,20}", 0..5),
            throttle_ms in 0..=THROTTLE_MS_MAX,
        ) {
            let filter = EventFilter { events, steps, throttle_ms };
            let query = filter.to_query();
            prop_assert!(query.bytes().all(|byte| byte.is_ascii_graphic() && byte != b';'), "{}", query);
            prop_assert_eq!(EventFilter::from_query(&query), Ok(filter));
        }

        #[test]
        fn any_query_is_read_or_refused(query in "\\PC{0,60}", data in "\\PC{0,40}") {
            if let Ok(filter) = EventFilter::from_query(&query) {
                filter.admits("x", &data);
            }
        }
    }
}
