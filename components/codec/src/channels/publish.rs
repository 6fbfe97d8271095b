//! The bodies of `POST /stream/publish/…` and of `POST /tickets`.
//!
//! Unknown fields are refused, since only the publisher can notice that it misspelled one.

use crate::{
    channels::route::{Channel, ChannelKind, check_id, id_error},
    json::{
        field::{FieldError, FieldReason, RequestError},
        members::{Errors, Members},
        raw::{Raw, member},
        tree::Node,
    },
};

/// Maximum number of code points in a step, a status or a title.
pub const NAME_CODE_POINTS_MAX: usize = 200;
/// Maximum number of code points in a message or an error.
pub const MESSAGE_CODE_POINTS_MAX: usize = 10_000;
/// Maximum number of bytes of JSON, without white space, in `metadata`.
pub const METADATA_BYTES_MAX: usize = 64 * 1024;
/// Maximum number of bytes of JSON, without white space, in `result`.
pub const RESULT_BYTES_MAX: usize = 512 * 1024;
/// Deepest nesting of `metadata` and `result`; readers of the event have a bound too.
pub const DEPTH_MAX: usize = 64;
/// Maximum number of scopes in a request for a ticket.
pub const SCOPES_MAX: usize = 32;

/// The body of `POST /stream/publish/workflow/{id}`.
#[derive(Debug, Clone, PartialEq)]
pub enum WorkflowBody {
    /// Without `event`, or with `workflow_progress`.
    Progress(Progress),
    /// With `event` `temporal_status`.
    Temporal(Temporal),
}

/// The progress of a workflow or of the analysis of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The name of the current step.
    pub step: String,
    /// Percent, 0 to 100.
    pub progress: f64,
    /// Human-readable text.
    pub message: Option<String>,
    /// Why it failed.
    pub error: Option<String>,
    /// True when it was cancelled.
    pub canceled: Option<bool>,
    /// A JSON object of the publisher, passed through unchanged.
    pub(crate) metadata: Option<Raw>,
    /// Any JSON value, passed through unchanged.
    pub(crate) result: Option<Raw>,
    /// The user whose channel receives a copy of the event.
    pub user_id: Option<String>,
    /// Whether this is the last event of its channel; when absent, [`StreamEvent::finishes`] decides.
    ///
    /// [`StreamEvent::finishes`]: crate::channels::event::StreamEvent::finishes
    pub last: Option<bool>,
}

/// The status of a workflow in its engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Temporal {
    /// One of [`TEMPORAL_STATUSES`].
    pub status: &'static str,
    /// The run of the workflow.
    pub run_id: Option<String>,
    /// Human-readable text.
    pub message: Option<String>,
    pub(crate) metadata: Option<Raw>,
    pub(crate) result: Option<Raw>,
    /// The user whose channel receives a copy of the event.
    pub user_id: Option<String>,
    /// Whether this is the last event of its channel; when absent, [`StreamEvent::finishes`] decides.
    ///
    /// [`StreamEvent::finishes`]: crate::channels::event::StreamEvent::finishes
    pub last: Option<bool>,
}

/// The statuses of a workflow, as Temporal's API names them.
pub const TEMPORAL_STATUSES: [&str; 7] =
    ["RUNNING", "COMPLETED", "FAILED", "CANCELED", "TERMINATED", "CONTINUED_AS_NEW", "TIMED_OUT"];

/// The body of `POST /stream/publish/user/{id}`.
#[derive(Debug, Clone, PartialEq)]
pub struct Notification {
    /// A short title.
    pub title: Option<String>,
    /// Human-readable text.
    pub message: String,
    /// One of [`LEVELS`].
    pub level: &'static str,
    pub(crate) metadata: Option<Raw>,
}

/// The levels of a notification; the first is the default.
pub const LEVELS: [&str; 4] = ["info", "success", "warning", "error"];

/// The body of `POST /tickets`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TicketBody {
    /// The path that the ticket gives access to, without a query: `/stream/…` or `/ws…`.
    pub path: String,
    /// The scopes of the ticket; `None`: all scopes of the caller.
    pub scopes: Option<Vec<String>>,
}

impl WorkflowBody {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The input is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        const EVENTS: [&str; 2] = ["workflow_progress", "temporal_status"];
        let mut body = Body::read(body)?;
        match body.choice("event", &EVENTS) {
            Some("temporal_status") => {
                let temporal = Temporal {
                    status: body.required_choice("status", &TEMPORAL_STATUSES),
                    run_id: body.text("run_id", NAME_CODE_POINTS_MAX),
                    message: body.text("message", MESSAGE_CODE_POINTS_MAX),
                    metadata: body.metadata(),
                    result: body.result(),
                    user_id: body.user_id(),
                    last: body.flag("last"),
                };
                let known = ["event", "status", "run_id", "message", "metadata", "result", "user_id", "last"];
                body.finish(Self::Temporal(temporal), &known)
            }
            _ => {
                let progress = body.progress();
                let known = [
                    "step", "progress", "message", "metadata", "error", "canceled", "result", "user_id", "last",
                    "event",
                ];
                body.finish(Self::Progress(progress), &known)
            }
        }
    }

    /// The user whose channel receives a copy of the event.
    pub fn user_id(&self) -> Option<&str> {
        match self {
            Self::Progress(progress) => progress.user_id.as_deref(),
            Self::Temporal(temporal) => temporal.user_id.as_deref(),
        }
    }
}

impl Progress {
    /// Reads the body of `POST /stream/publish/analysis/{file_id}`.
    ///
    /// # Errors
    ///
    /// The input is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn analysis_from_json(body: &[u8]) -> Result<Self, RequestError> {
        let mut body = Body::read(body)?;
        let progress = body.progress();
        let known = ["step", "progress", "message", "result", "metadata", "error", "canceled", "user_id", "last"];
        body.finish(progress, &known)
    }

    /// True when a later event may replace it in the buffer of a slow subscriber: it has nothing but progress.
    pub fn coalesces(&self) -> bool {
        self.progress < 100.0
            && self.error.is_none()
            && self.canceled != Some(true)
            && self.result.is_none()
            && self.last != Some(true)
    }
}

impl Notification {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The input is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        let mut body = Body::read(body)?;
        let notification = Self {
            title: body.text("title", NAME_CODE_POINTS_MAX),
            message: body.required_text("message", MESSAGE_CODE_POINTS_MAX),
            level: body.choice("level", &LEVELS).unwrap_or(LEVELS[0]),
            metadata: body.metadata(),
        };
        body.finish(notification, &["title", "message", "level", "metadata"])
    }
}

impl TicketBody {
    /// Reads a body.
    ///
    /// # Errors
    ///
    /// The input is not a JSON object, or has invalid fields; every invalid field is listed.
    pub fn from_json(body: &[u8]) -> Result<Self, RequestError> {
        const PATH_BYTES_MAX: usize = 512;
        let mut body = Body::read(body)?;
        let path = body.required_text("path", PATH_BYTES_MAX);
        let is_followable = path == "/ws" || path.starts_with("/ws/") || path.starts_with("/stream/");
        let is_plain = path.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'?' && byte != b'#');
        let is_valid = is_followable && is_plain;
        // An empty path was reported above.
        if !(path.is_empty() || is_valid) {
            let message = "`path` must be a path to follow, such as `/stream/workflow/42`, without a query".to_owned();
            body.errors.push(FieldError::new("path", FieldReason::NotAllowed, message));
        }
        // Scopes are separated by spaces, as in RFC 6749, section 3.3.
        const SCOPES_CODE_POINTS_MAX: usize = 8192;
        let scopes = body.text("scope", SCOPES_CODE_POINTS_MAX);
        let scopes: Option<Vec<String>> =
            scopes.map(|scopes| scopes.split(' ').filter(|s| !s.is_empty()).map(str::to_owned).collect());
        if let Some(scopes) = &scopes
            && scopes.len() > SCOPES_MAX
        {
            let bounds = (0, SCOPES_MAX as i64);
            let error = FieldError::bounded("scope", FieldReason::TooLong, "name", bounds, scopes.len() as i64);
            body.errors.push(error);
        }
        body.finish(Self { path, scopes }, &["path", "scope"])
    }
}

/// The channel of a user that an event names; its id was checked when the body was read.
pub fn user_channel(user_id: &str) -> Option<Channel> {
    Channel::new(ChannelKind::User, user_id).ok()
}

/// The members of a body, and the errors of reading them.
struct Body<'b> {
    bytes: &'b [u8],
    members: Members<'b>,
    errors: Errors,
}

impl<'b> Body<'b> {
    fn read(bytes: &'b [u8]) -> Result<Self, RequestError> {
        let members = Members::of_body(bytes)?.with_null_as_absent();
        Ok(Self { bytes, members, errors: Errors::default() })
    }

    /// Returns `read` if there are no errors and no unknown members.
    fn finish<T>(mut self, read: T, known: &[&str]) -> Result<T, RequestError> {
        self.members.finish_with(known, &mut self.errors);
        self.errors.finish(read)
    }

    fn progress(&mut self) -> Progress {
        Progress {
            step: self.required_text("step", NAME_CODE_POINTS_MAX),
            progress: self.percent(),
            message: self.text("message", MESSAGE_CODE_POINTS_MAX),
            error: self.text("error", MESSAGE_CODE_POINTS_MAX),
            canceled: self.flag("canceled"),
            metadata: self.metadata(),
            result: self.result(),
            user_id: self.user_id(),
            last: self.flag("last"),
        }
    }

    fn text(&mut self, field: &'static str, code_points_max: usize) -> Option<String> {
        let text = self.members.text(field, &mut self.errors)?;
        let length = text.chars().count();
        if length > code_points_max {
            let (bounds, what) = ((0, code_points_max as i64), "have a length in code points of");
            self.errors.push(FieldError::bounded(field, FieldReason::TooLong, what, bounds, length as i64));
        }
        Some(text)
    }

    fn required_text(&mut self, field: &'static str, code_points_max: usize) -> String {
        if !self.members.require(field, &mut self.errors) {
            return String::new();
        }
        let errors = self.errors.len();
        let text = self.text(field, code_points_max);
        if self.errors.len() == errors && text.as_deref().is_none_or(str::is_empty) {
            let (bounds, what) = ((1, code_points_max as i64), "have a length in code points of");
            self.errors.push(FieldError::bounded(field, FieldReason::TooShort, what, bounds, 0));
        }
        text.unwrap_or_default()
    }

    fn percent(&mut self) -> f64 {
        const FIELD: &str = "progress";
        if self.members.is_null(FIELD) {
            self.errors.push_type(FIELD, "number", &Node::Null);
        }
        self.members.require(FIELD, &mut self.errors);
        let Some(percent) = self.members.number(FIELD, &mut self.errors) else { return 0.0 };
        if !(0.0..=100.0).contains(&percent) {
            // The conversion from f64 saturates.
            let nearest = if percent > 100.0 { percent.ceil() } else { percent.floor() } as i64;
            self.errors.push(FieldError::bounded(FIELD, FieldReason::OutOfRange, "be", (0, 100), nearest));
        }
        percent
    }

    fn flag(&mut self, field: &'static str) -> Option<bool> {
        self.members.boolean(field, &mut self.errors)
    }

    fn choice(&mut self, field: &'static str, choices: &'static [&'static str]) -> Option<&'static str> {
        self.members.choice(field, choices, |choice| choice, &mut self.errors)
    }

    fn required_choice(&mut self, field: &'static str, choices: &'static [&'static str]) -> &'static str {
        self.members.require(field, &mut self.errors);
        self.choice(field, choices).unwrap_or_default()
    }

    fn metadata(&mut self) -> Option<Raw> {
        const FIELD: &str = "metadata";
        match self.members.take(FIELD)? {
            Node::Object(_) => self.raw(FIELD, METADATA_BYTES_MAX),
            other => {
                self.errors.push_type(FIELD, "object", &other);
                None
            }
        }
    }

    fn result(&mut self) -> Option<Raw> {
        const FIELD: &str = "result";
        self.members.take(FIELD)?;
        self.raw(FIELD, RESULT_BYTES_MAX)
    }

    /// The JSON text of a member, without white space.
    fn raw(&mut self, field: &'static str, bytes_max: usize) -> Option<Raw> {
        let raw = member(self.bytes, field)?;
        let mut bounded = |reason, what, max: usize, actual: usize| {
            self.errors.push(FieldError::bounded(field, reason, what, (0, max as i64), actual as i64));
        };
        if raw.text.len() > bytes_max {
            bounded(FieldReason::TooLong, "have a length in bytes of", bytes_max, raw.text.len());
        }
        if raw.depth > DEPTH_MAX {
            bounded(FieldReason::OutOfRange, "be nested as deep as", DEPTH_MAX, raw.depth);
        }
        Some(raw)
    }

    fn user_id(&mut self) -> Option<String> {
        const FIELD: &str = "user_id";
        let user = self.text(FIELD, usize::MAX)?;
        if let Err(error) = check_id(&user) {
            self.errors.push(id_error(error, FIELD));
        }
        Some(user)
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use proptest::prelude::*;

    use super::*;

    fn rendered<T: std::fmt::Debug>(read: Result<T, RequestError>) -> String {
        read.map_or_else(|error| error.to_string(), |body| format!("{body:?}"))
    }

    fn workflow(body: &str, want: Expect) {
        want.assert_eq(&rendered(WorkflowBody::from_json(body.as_bytes())));
    }

    #[test]
    fn workflow_event_is_read() {
        workflow(
            r#"{"step":"processing","progress":50,"message":"Analyzing document content","metadata":{}}"#,
            expect![[
                r#"Progress(Progress { step: "processing", progress: 50.0, message: Some("Analyzing document content"), error: None, canceled: None, metadata: Some(Raw { text: "{}", depth: 1 }), result: None, user_id: None, last: None })"#
            ]],
        );
        workflow(
            r#"{"event":"temporal_status","status":"COMPLETED","run_id":"r","result":[1.10],"user_id":"ann"}"#,
            expect![[
                r#"Temporal(Temporal { status: "COMPLETED", run_id: Some("r"), message: None, metadata: None, result: Some(Raw { text: "[1.10]", depth: 1 }), user_id: Some("ann"), last: None })"#
            ]],
        );
        workflow(
            r#"{"event":"workflow_progress","step":"s","progress":12.5,"message":null,"metadata":null,"result":null}"#,
            expect![[
                r#"Progress(Progress { step: "s", progress: 12.5, message: None, error: None, canceled: None, metadata: None, result: None, user_id: None, last: None })"#
            ]],
        );
    }

    #[test]
    fn all_field_errors_are_listed() {
        workflow("{}", expect!["`step` is required; `progress` is required"]);
        workflow(
            r#"{"step":"","progress":101,"message":1,"metadata":[],"error":false,"canceled":"no","user_id":"a b","mesage":""}"#,
            expect![
                "`step` must have a length in code points of 1 to 200, and is 0; `progress` must be 0 to 100, and is 101; `message` must be a string, and is an integer; `error` must be a string, and is a boolean; `canceled` must be a boolean, and is a string; `metadata` must be an object, and is an array; `user_id`: an id is made of ASCII letters, digits and - _ . ~ : @ + = |; byte 1 is none of them; `mesage` is not known here (did you mean `message`?); there are step, progress, message, metadata, error, canceled, result, user_id, last, event"
            ],
        );
        workflow(
            r#"{"step":null,"progress":-0.5}"#,
            expect![
                "`step` must have a length in code points of 1 to 200, and is 0; `progress` must be 0 to 100, and is -1"
            ],
        );
        workflow(
            r#"{"step":"s","progress":1e300}"#,
            expect!["`progress` must be 0 to 100, and is 9223372036854775807"],
        );
        workflow(r#"{"step":"s","progress":"50"}"#, expect!["`progress` must be a number, and is a string"]);
        workflow(
            r#"{"event":"temporal_status","status":"running"}"#,
            expect![
                "`status` must be one of RUNNING, COMPLETED, FAILED, CANCELED, TERMINATED, CONTINUED_AS_NEW, TIMED_OUT (did you mean `RUNNING`?)"
            ],
        );
        workflow(
            r#"{"event":"connected","step":"s","progress":1}"#,
            expect!["`event` must be one of workflow_progress, temporal_status"],
        );
        workflow(
            r#"{"step":"s","step":"t","progress":1}"#,
            expect!["the key `step` appears twice, the second time at line 1, column 18"],
        );
        let long = format!(r#"{{"step":"{}","progress":1}}"#, "é".repeat(201));
        workflow(&long, expect!["`step` must have a length in code points of 0 to 200, and is 201"]);
        let deep = format!(r#"{{"step":"s","progress":1,"metadata":{}1{}}}"#, "{\"a\":".repeat(65), "}".repeat(65));
        workflow(&deep, expect!["`metadata` must be nested as deep as 0 to 64, and is 65"]);
        let large = format!(r#"{{"step":"s","progress":1,"metadata":{{"a":"{}"}}}}"#, "x".repeat(METADATA_BYTES_MAX));
        workflow(&large, expect!["`metadata` must have a length in bytes of 0 to 65536, and is 65544"]);
    }

    #[test]
    fn analysis_event_is_read() {
        let read = Progress::analysis_from_json(
            br#"{"step":"text_extraction","progress":25,"message":"Extracting text from PDF","result":{}}"#,
        );
        let progress = read.expect("the body of the documentation");
        assert!(!progress.coalesces(), "a result is never dropped");
        let read = Progress::analysis_from_json(br#"{"step":"s","progress":99.9,"event":"workflow_progress"}"#);
        expect![
            "`event` is not known here; there are step, progress, message, result, metadata, error, canceled, user_id, last"
        ]
        .assert_eq(&rendered(read));
    }

    #[test]
    fn progress_without_other_fields_coalesces() {
        for (body, want) in [
            (r#"{"step":"s","progress":99.9}"#, true),
            (r#"{"step":"s","progress":100}"#, false),
            (r#"{"step":"s","progress":1,"error":"e"}"#, false),
            (r#"{"step":"s","progress":1,"canceled":true}"#, false),
            (r#"{"step":"s","progress":1,"canceled":false}"#, true),
            (r#"{"step":"s","progress":1,"last":true}"#, false),
        ] {
            assert_eq!(Progress::analysis_from_json(body.as_bytes()).unwrap().coalesces(), want, "{body}");
        }
    }

    #[test]
    fn notification_is_read() {
        expect![[r#"Notification { title: Some("t"), message: "m", level: "warning", metadata: None }"#]]
            .assert_eq(&rendered(Notification::from_json(br#"{"title":"t","message":"m","level":"warning"}"#)));
        expect!["`message` is required; `level` must be one of info, success, warning, error"]
            .assert_eq(&rendered(Notification::from_json(br#"{"level":"loud"}"#)));
    }

    #[test]
    fn ticket_request_is_read() {
        expect![[r#"TicketBody { path: "/stream/workflow/42", scopes: None }"#]]
            .assert_eq(&rendered(TicketBody::from_json(br#"{"path":"/stream/workflow/42"}"#)));
        expect![[r#"TicketBody { path: "/ws", scopes: Some(["read:user:a", "read:file:b"]) }"#]]
            .assert_eq(&rendered(TicketBody::from_json(br#"{"path":"/ws","scope":" read:user:a read:file:b"}"#)));
        for path in ["/tickets", "/stream/a?x", "stream/", "/wsx", "/stream/a b", "/stream/\\r\\n", "/stream/é"] {
            let rendered = rendered(TicketBody::from_json(format!(r#"{{"path":"{path}"}}"#).as_bytes()));
            assert!(rendered.starts_with("`path` must be a path to follow"), "{path}: {rendered}");
        }
        let many = format!(r#"{{"path":"/ws","scope":"{}"}}"#, "a ".repeat(33));
        expect!["`scope` must name 0 to 32, and is 33"].assert_eq(&rendered(TicketBody::from_json(many.as_bytes())));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(body in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = WorkflowBody::from_json(&body);
            let _ = TicketBody::from_json(&body);
        }

        #[test]
        fn arbitrary_values_do_not_panic(
            name in prop::sample::select(vec!["step", "progress", "metadata", "result", "event", "path", "level"]),
            value in prop::sample::select(vec!["null", "1", "-1e999", "\"\"", "[[]]", "{\"a\":{}}", "true", "\"\\u0000\""]),
        ) {
            let body = format!(r#"{{"{name}":{value},"message":"m"}}"#);
            let _ = WorkflowBody::from_json(body.as_bytes());
            let _ = Progress::analysis_from_json(body.as_bytes());
            let _ = Notification::from_json(body.as_bytes());
            let _ = TicketBody::from_json(body.as_bytes());
        }
    }
}
