//! The configuration of a session: a JSON object, or a query string.

use std::collections::BTreeSet;

use serde::Serialize;
use weir_core::inference::rewrite::SummaryMode;
use weir_core::transcripts::{
    Annotator, ConfigError, IdleConfig, RoutingConfig, SessionConfig, SummaryConfig, Workflow,
    annotate::{ActionRule, AnnotateConfig, KeywordGroup},
};

use super::semantic::SemanticParts;
use crate::{
    inference::query::{decode, twice},
    json::{
        field::{ERRORS_MAX, FieldError, FieldReason, RequestError, unknown},
        members::{Errors, Members},
    },
};

/// Maximum number of values in a configuration.
const VALUES_MAX: usize = 2048;

/// The configuration of a session, and of the enrichment of its final segments.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRequest {
    /// The configuration of the session.
    pub config: SessionConfig,
    /// Add the sentiment of each final segment.
    pub sentiment: bool,
    /// Add the entities of each final segment.
    pub entities: bool,
    /// How summaries are made.
    pub summary_mode: Option<SummaryMode>,
}

impl SessionRequest {
    /// The defaults of a stored session.
    pub fn stored() -> Self {
        Self { config: SessionConfig::default(), sentiment: false, entities: false, summary_mode: None }
    }

    /// The defaults of a session in one request: no summaries and no expiry.
    pub fn one_shot() -> Self {
        let config = SessionConfig {
            summary: SummaryConfig { every_finals: 0, at_end: false },
            idle: IdleConfig { expire_ms: 0, warn_ms: 0 },
            ..SessionConfig::default()
        };
        Self { config, ..Self::stored() }
    }

    /// The parts of the semantic block that are included.
    pub fn parts(&self) -> SemanticParts {
        let AnnotateConfig { keywords, intent, .. } = self.config.annotate;
        SemanticParts { keywords, intent }
    }

    /// Reads the body of `POST /sessions`; an empty object has every default.
    ///
    /// # Errors
    ///
    /// The body is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let members = Members::of_lenient_body(body, VALUES_MAX)?;
        let (mut request, mut errors) = (Self::stored(), Errors::default());
        request.read(members, &mut errors);
        request.validated(errors.into_vec())
    }

    fn read(&mut self, mut members: Members<'_>, errors: &mut Errors) {
        let config = &mut self.config;
        set(&mut config.max_gap_sec, members.number("max_gap_sec", errors));
        set(&mut config.overlap, members.boolean("overlap", errors));
        if let Some(names) = members.texts("annotate", errors) {
            self.annotate(names.iter().map(String::as_str), |message| {
                errors.push(FieldError::new("annotate", FieldReason::NotAllowed, message));
            });
        }
        let config = &mut self.config;
        if let Some(mut members) = members.object("keywords", errors) {
            let groups = members.names().into_iter();
            config.annotate.groups = groups
                .filter_map(|risk| Some(KeywordGroup { keywords: members.texts(&risk, errors)?, risk }))
                .collect();
        }
        if let Some(mut members) = members.object("actions", errors) {
            let actions = members.names().into_iter();
            config.annotate.actions = actions
                .filter_map(|pattern| Some(ActionRule { phrases: members.texts(&pattern, errors)?, pattern }))
                .collect();
        }
        if let Some(mut members) = members.object("context", errors) {
            set_whole(&mut config.context.max_segments, &mut members, "max_segments", errors);
            set(&mut config.context.max_time_sec, members.number("max_time_sec", errors));
            members.finish(errors);
        }
        if let Some(mut members) = members.object("summary", errors) {
            set_whole(&mut config.summary.every_finals, &mut members, "every_finals", errors);
            set(&mut config.summary.at_end, members.boolean("at_end", errors));
            self.summary_mode = members.choice("mode", SummaryMode::ALL, SummaryMode::name, errors);
            members.finish(errors);
        }
        if let Some(mut members) = members.object("routing", errors) {
            let RoutingConfig { queue_len_max, queued_max } = &mut config.routing;
            for workflow in Workflow::ALL {
                set_whole(&mut queue_len_max[*workflow as usize], &mut members, workflow.name(), errors);
            }
            set_whole(queued_max, &mut members, "queued_max", errors);
            members.finish_with(&["question", "action_item", "decision", "general", "queued_max"], errors);
        }
        if let Some(mut members) = members.object("idle", errors) {
            set_whole(&mut config.idle.expire_ms, &mut members, "expire_ms", errors);
            set_whole(&mut config.idle.warn_ms, &mut members, "warn_ms", errors);
            members.finish(errors);
        }
        if let Some(mut members) = members.object("limits", errors) {
            set_whole(&mut config.limits.text_bytes_max, &mut members, "text_bytes_max", errors);
            set_whole(&mut config.limits.speaker_bytes_max, &mut members, "speaker_bytes_max", errors);
            set_whole(&mut config.limits.segment_bytes_max, &mut members, "segment_bytes_max", errors);
            members.finish(errors);
        }
        members.finish_with(&FIELDS, errors);
    }

    /// Reads the query of `/v1/transcript`, without its `?`.
    ///
    /// # Errors
    ///
    /// [`RequestError::Invalid`] with every invalid parameter.
    pub fn from_query(query: &str) -> Result<Self, RequestError> {
        let mut request = Self::one_shot();
        let (mut errors, mut names) = (Vec::new(), BTreeSet::new());
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (name, value) = (decode(name), decode(value));
            let taken = request.take_text(&name, &value).and_then(|()| match names.insert(name.clone()) {
                true => Ok(()),
                false => Err(twice(&name)),
            });
            errors.extend(taken.err());
            if errors.len() > ERRORS_MAX {
                break;
            }
        }
        request.validated(errors)
    }

    /// Reads the query of `/v1/annotate`, without its `?`; it has only the parameter `annotate`.
    ///
    /// # Errors
    ///
    /// [`RequestError::Invalid`]: another parameter, an invalid value, or a value that needs a model.
    pub fn annotate_from_query(query: &str) -> Result<Self, RequestError> {
        let names = query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")).0);
        let others: Vec<FieldError> = names
            .filter(|name| !name.is_empty() && *name != "annotate")
            .map(|name| unknown(decode(name).into_owned(), &["annotate"]))
            .take(ERRORS_MAX + 1)
            .collect();
        if !others.is_empty() {
            return Err(RequestError::Invalid(others));
        }
        let request = Self::from_query(query)?;
        if request.sentiment || request.entities {
            let message =
                "`annotate` may have keywords and intent here; sentiment and entities are for transcripts only"
                    .to_owned();
            return Err(RequestError::Invalid(vec![FieldError::new("annotate", FieldReason::NotAllowed, message)]));
        }
        Ok(request)
    }

    fn take_text(&mut self, name: &str, value: &str) -> Result<(), FieldError> {
        fn parse<T: std::str::FromStr>(name: &str, value: &str, expected: &'static str) -> Result<T, FieldError> {
            value.trim().parse().map_err(|_| FieldError::wrong_type(name, expected, "string"))
        }
        let config = &mut self.config;
        match name {
            "max_gap_sec" => config.max_gap_sec = parse(name, value, "number")?,
            "overlap" => config.overlap = parse(name, value, "boolean")?,
            "max_segments" => config.context.max_segments = parse(name, value, "integer")?,
            "max_time_sec" => config.context.max_time_sec = parse(name, value, "number")?,
            "summary_every" => config.summary.every_finals = parse(name, value, "integer")?,
            "summary_at_end" => config.summary.at_end = parse(name, value, "boolean")?,
            "summary_mode" => {
                let mode = SummaryMode::from_name(value.trim());
                let wrong = || {
                    FieldError::new(
                        name,
                        FieldReason::NotAllowed,
                        "`summary_mode` must be extractive or abstractive".to_owned(),
                    )
                };
                self.summary_mode = Some(mode.ok_or_else(wrong)?);
            }
            "annotate" => {
                let mut refusal = None;
                let names = value.split(',').map(str::trim).filter(|name| !name.is_empty() && *name != "none");
                self.annotate(names, |message| refusal = Some(message));
                if let Some(message) = refusal {
                    return Err(FieldError::new("annotate", FieldReason::NotAllowed, message));
                }
            }
            _ => return Err(unknown(name, &QUERY)),
        }
        Ok(())
    }

    fn annotate<'n>(&mut self, names: impl Iterator<Item = &'n str>, mut refuse: impl FnMut(String)) {
        let annotate = &mut self.config.annotate;
        (annotate.keywords, annotate.intent, self.sentiment, self.entities) = (false, false, false, false);
        for name in names {
            match name {
                "keywords" => annotate.keywords = true,
                "intent" => annotate.intent = true,
                "sentiment" => self.sentiment = true,
                "entities" => self.entities = true,
                _ => {
                    let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                    refuse(format!("`annotate` may have keywords, intent, sentiment and entities, and has `{name}`"));
                }
            }
        }
    }

    fn validated(self, mut errors: Vec<FieldError>) -> Result<Self, RequestError> {
        if errors.is_empty()
            && let Err(error) = self.check()
        {
            errors.push(field_error(&error));
        }
        match errors.is_empty() {
            true => Ok(self),
            false => Err(RequestError::Invalid(errors)),
        }
    }

    fn check(&self) -> Result<(), ConfigError> {
        self.config.validate()?;
        // Building an annotator costs more than most requests, and the defaults are known to be valid.
        let (annotate, known) = (&self.config.annotate, AnnotateConfig::default());
        if annotate.groups != known.groups || annotate.actions != known.actions {
            Annotator::new(annotate)?;
        }
        Ok(())
    }

    /// JSON that [`Self::from_json`] reads.
    pub fn to_json(&self) -> Vec<u8> {
        crate::json::to_vec(&Wire::new(self))
    }
}

const FIELDS: [&str; 10] =
    ["max_gap_sec", "overlap", "annotate", "keywords", "actions", "context", "summary", "routing", "idle", "limits"];
const QUERY: [&str; 8] = [
    "max_gap_sec",
    "overlap",
    "annotate",
    "max_segments",
    "max_time_sec",
    "summary_every",
    "summary_at_end",
    "summary_mode",
];

/// Converts an error of a configuration to a field error.
fn field_error(error: &ConfigError) -> FieldError {
    let (field, reason) = match error {
        ConfigError::Seconds { name, .. } => (*name, FieldReason::OutOfRange),
        ConfigError::Outside { name, .. } => (*name, FieldReason::OutOfRange),
        ConfigError::Warning { .. } => ("idle.warn_ms", FieldReason::OutOfRange),
        ConfigError::Annotate(_) => ("keywords", FieldReason::NotAllowed),
    };
    FieldError::new(field, reason, error.to_string())
}

/// An object with members in the given order.
struct Groups<'a>(Vec<(&'a str, &'a [String])>);

impl Serialize for Groups<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().copied())
    }
}

/// The JSON of a configuration.
#[derive(Serialize)]
struct Wire<'a> {
    max_gap_sec: f64,
    overlap: bool,
    annotate: Vec<&'static str>,
    keywords: Groups<'a>,
    actions: Groups<'a>,
    context: Context,
    summary: Summary,
    routing: Routing,
    idle: Idle,
    limits: Limits,
}

#[derive(Serialize)]
struct Context {
    max_segments: usize,
    max_time_sec: f64,
}

#[derive(Serialize)]
struct Summary {
    every_finals: u32,
    at_end: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    mode: Option<&'static str>,
}

#[derive(Serialize)]
struct Routing {
    question: usize,
    action_item: usize,
    decision: usize,
    general: usize,
    queued_max: usize,
}

#[derive(Serialize)]
struct Idle {
    expire_ms: u64,
    warn_ms: u64,
}

#[derive(Serialize)]
struct Limits {
    text_bytes_max: usize,
    speaker_bytes_max: usize,
    segment_bytes_max: usize,
}

impl<'a> Wire<'a> {
    fn new(request: &'a SessionRequest) -> Self {
        let SessionConfig { max_gap_sec, overlap, annotate, routing, context, summary, idle, limits } = &request.config;
        let annotations = [
            ("keywords", annotate.keywords),
            ("intent", annotate.intent),
            ("sentiment", request.sentiment),
            ("entities", request.entities),
        ];
        let [question, action_item, decision, general] = routing.queue_len_max;
        let groups = annotate.groups.iter().map(|group| (group.risk.as_str(), group.keywords.as_slice()));
        let actions = annotate.actions.iter().map(|rule| (rule.pattern.as_str(), rule.phrases.as_slice()));
        Self {
            max_gap_sec: *max_gap_sec,
            overlap: *overlap,
            annotate: annotations.into_iter().filter(|(_, is_enabled)| *is_enabled).map(|(name, _)| name).collect(),
            keywords: Groups(groups.collect()),
            actions: Groups(actions.collect()),
            context: Context { max_segments: context.max_segments, max_time_sec: context.max_time_sec },
            summary: Summary {
                every_finals: summary.every_finals,
                at_end: summary.at_end,
                mode: request.summary_mode.map(SummaryMode::name),
            },
            routing: Routing { question, action_item, decision, general, queued_max: routing.queued_max },
            idle: Idle { expire_ms: idle.expire_ms, warn_ms: idle.warn_ms },
            limits: Limits {
                text_bytes_max: limits.text_bytes_max,
                speaker_bytes_max: limits.speaker_bytes_max,
                segment_bytes_max: limits.segment_bytes_max,
            },
        }
    }
}

/// Sets a value if it is present.
fn set<T>(to: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *to = value;
    }
}

/// Sets a non-negative whole number if the member is present.
fn set_whole<T: TryFrom<i64>>(to: &mut T, members: &mut Members<'_>, name: &'static str, errors: &mut Errors) {
    let Some(number) = members.integer(name, errors) else { return };
    match T::try_from(number) {
        Ok(number) => *to = number,
        Err(_) => {
            let bounds = (0, i64::from(u32::MAX));
            errors.push(FieldError::bounded(members.path(name), FieldReason::OutOfRange, "be", bounds, number));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    #[test]
    fn empty_object_has_all_defaults() {
        assert_eq!(SessionRequest::from_json(b"{}").unwrap(), SessionRequest::stored());
        assert_eq!(SessionRequest::from_query("").unwrap(), SessionRequest::one_shot());
    }

    #[test]
    fn each_setting_reads_back() {
        let body = r#"{"max_gap_sec":0.5,"overlap":true,"annotate":["intent","entities"],"keywords":{"outage":["down","is slow"]},"actions":{},
            "context":{"max_segments":3,"max_time_sec":60},"summary":{"every_finals":0,"at_end":false},
            "routing":{"question":5,"action_item":4,"decision":3,"general":2,"queued_max":9},
            "idle":{"expire_ms":1000,"warn_ms":10},"limits":{"text_bytes_max":10,"speaker_bytes_max":11,"segment_bytes_max":12}}"#;
        let request = SessionRequest::from_json(body.as_bytes()).unwrap();
        assert_eq!(request.config.annotate.groups[0].keywords, ["down", "is slow"]);
        assert_eq!(request.config.routing, RoutingConfig { queue_len_max: [5, 4, 3, 2], queued_max: 9 });
        assert_eq!((request.entities, request.sentiment, request.parts().keywords), (true, false, false));
        for request in [request, SessionRequest::stored(), SessionRequest::one_shot()] {
            assert_eq!(SessionRequest::from_json(&request.to_json()).unwrap(), request);
        }
    }

    #[test]
    fn query_is_read_or_refused_with_the_parameter() {
        let request =
            SessionRequest::from_query("max_gap_sec=0&overlap=true&annotate=keywords%2Cintent&summary_every=2")
                .unwrap();
        assert_eq!(
            (request.config.max_gap_sec, request.config.summary.every_finals, request.config.overlap),
            (0.0, 2, true)
        );
        assert_eq!(request.parts(), SemanticParts::ALL);
        assert_eq!(
            SessionRequest::from_query("annotate=none").unwrap().parts(),
            SemanticParts { keywords: false, intent: false }
        );
        let check =
            |query: &str, want: Expect| want.assert_eq(&SessionRequest::from_query(query).unwrap_err().to_string());
        check("max_gap_sec=-1", expect!["max_gap_sec must be a finite number of at least 0, and is -1"]);
        check(
            "max_gap_sec=x&gap=1&annotate=mood",
            expect![
                "`max_gap_sec` must be a number, and is a string; `gap` is not known here; there are max_gap_sec, overlap, annotate, max_segments, max_time_sec, summary_every, summary_at_end, summary_mode; `annotate` may have keywords, intent, sentiment and entities, and has `mood`"
            ],
        );
        check("max_gap_sec=nan", expect!["max_gap_sec must be a finite number of at least 0, and is NaN"]);
        let other = SessionRequest::annotate_from_query("annotate=intent&max_gap_sec=1").unwrap_err().to_string();
        assert_eq!(other, "`max_gap_sec` is not known here; there are annotate");
        assert!(!SessionRequest::annotate_from_query("annotate=intent").unwrap().parts().keywords);
        assert!(SessionRequest::from_query("annotate=sentiment").unwrap().sentiment);
        let repeated =
            SessionRequest::from_query("overlap=true&max_gap_sec=1&over%6cap=false").unwrap_err().to_string();
        assert_eq!(repeated, "`overlap` must be given once");
        assert!(SessionRequest::annotate_from_query("annotate=entities").is_err());
    }

    #[test]
    fn all_field_errors_are_listed() {
        let check = |body: &str, want: Expect| {
            want.assert_eq(&SessionRequest::from_json(body.as_bytes()).unwrap_err().to_string());
        };
        check(
            r#"{"max_gap_sec":"1","annotate":["keywords",3],"context":{"max_segments":1.5,"size":1},"idle":[],"keywords":{"a":"b"},"mode":1}"#,
            expect![
                "`max_gap_sec` must be a number, and is a string; `annotate[1]` must be a string, and is an integer; `keywords.a` must be an array, and is a string; `context.max_segments` must be an integer, and is a number; `context.size` is not known here; there are max_segments, max_time_sec; `idle` must be an object, and is an array; `mode` is not known here; there are max_gap_sec, overlap, annotate, keywords, actions, context, summary, routing, idle, limits"
            ],
        );
        check(
            r#"{"context":{"max_segments":-1}}"#,
            expect!["`context.max_segments` must be 0 to 4294967295, and is -1"],
        );
        check(r#"{"context":{"max_segments":0}}"#, expect!["context.max_segments must be 1 to 1000, and is 0"]);
        check(r#"{"keywords":{"a":["?"]}}"#, expect!["`?` must be made of words, each of at most 48 bytes"]);
        check("[]", expect!["the body is an array; a JSON object was expected"]);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body in proptest::collection::vec(any::<u8>(), 0..100), query: String) {
            let _ = SessionRequest::from_json(&body);
            let _ = SessionRequest::from_query(&query);
        }
    }
}
