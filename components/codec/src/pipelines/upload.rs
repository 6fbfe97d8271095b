//! `POST /upload`: a file becomes the input of an execution, whose progress is published in the channels `file:ID` and `workflow:ID`.
//!
//! The id of the file and of the workflow is the id of the execution, so that an input cannot publish in channels of its choice.

use std::{collections::BTreeMap, sync::Arc};

use serde::{Deserialize, de::IgnoredAny};
use serde_json::json;
use weir_core::pipelines::{Data, Event, Json, Status, StepState};

use super::{execution, route::is_name};
use crate::{
    channels::publish::Progress,
    http::{content_type, problem::Problem},
    inference::query::decode,
    json::{
        field::{FieldError, FieldReason, RequestError, unknown},
        members::Errors,
        raw::Raw,
    },
};

/// The default pipeline of an upload. A pipeline of the operator with this name replaces it.
pub const PIPELINE: &str = "analyze";
/// Its definition.
pub const DEFINITION: &str = r#"{
  "name": "analyze",
  "steps": [
    { "id": "reading", "kind": "chunk", "chunk_size": 500 },
    { "id": "sentiment", "kind": "sentiment", "after": ["reading"], "on_error": "continue" },
    { "id": "summary", "kind": "summary", "after": [], "on_error": "continue" },
    { "id": "entities", "kind": "entities", "after": [], "on_error": "continue" },
    {
      "id": "report",
      "kind": "map",
      "after": ["sentiment", "summary", "entities"],
      "expression": "{sentiment: sentiment.overall_sentiment, positive_chunks: sentiment.positive_chunks, negative_chunks: sentiment.negative_chunks, summary: summary.summary, entities: entities.entities}"
    }
  ]
}"#;
/// Maximum number of bytes of the name of a file.
pub const FILE_NAME_BYTES_MAX: usize = 255;
/// Maximum number of bytes of a result in the last event; a larger result is left out.
const RESULT_BYTES_MAX: usize = 128 << 10;
/// The media types that are listed in an error.
const TYPES: [&str; 2] = ["text/plain", "multipart/form-data"];
/// The highest percentage before the execution is complete.
const PERCENT_MAX: f64 = 99.0;

/// The query of an upload.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UploadQuery {
    /// The pipeline that processes the file.
    pub pipeline: Option<String>,
    /// The name of the file.
    pub name: Option<String>,
}

impl UploadQuery {
    /// Reads a query without its question mark. `ticket` is ignored.
    ///
    /// # Errors
    ///
    /// Every parameter that is unknown, appears twice, or has an invalid value.
    pub fn read(query: &str) -> Result<Self, RequestError> {
        const FIELDS: [&str; 2] = ["pipeline", "name"];
        let mut errors = Errors::default();
        let mut values: [Option<String>; 2] = [None, None];
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let name = decode(name);
            match FIELDS.iter().position(|field| *field == name) {
                Some(at) if values[at].is_none() => values[at] = Some(decode(value).into_owned()),
                Some(at) => errors.push_at(FIELDS[at], FieldReason::NotAllowed, "must be given once"),
                None if name == "ticket" => {}
                None => errors.push(unknown(name.into_owned(), &FIELDS)),
            }
        }
        let [pipeline, name] = values;
        if pipeline.as_deref().is_some_and(|pipeline| !is_name(pipeline)) {
            errors.push_at("pipeline", FieldReason::NotAllowed, "must be the name of a pipeline");
        }
        if name.as_deref().is_some_and(|name| name.len() > FILE_NAME_BYTES_MAX) {
            let what = format!("must have at most {FILE_NAME_BYTES_MAX} bytes");
            errors.push_at("name", FieldReason::NotAllowed, &what);
        }
        errors.finish(Self { pipeline, name })
    }
}

/// An uploaded file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File<'a> {
    /// Its name, if the form has one.
    pub name: Option<String>,
    /// Its text.
    pub text: &'a str,
}

/// Reads a body: a text, or a form with a file.
///
/// # Errors
///
/// 415 for another media type, 422 for a form without a file or a file that is not a text in UTF-8.
pub fn read<'a>(content_type: Option<&str>, body: &'a [u8]) -> Result<File<'a>, Problem> {
    let essence =
        content_type.unwrap_or("text/plain").split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let (name, bytes) = match boundary(content_type) {
        Some(boundary) => file_of_form(&boundary, body).ok_or_else(|| invalid("the form has no file"))?,
        None if essence == "multipart/form-data" => return Err(invalid("the form has no boundary")),
        None if essence.starts_with("text/")
            || essence == "application/octet-stream"
            || content_type::is_ndjson(content_type) =>
        {
            (None, body)
        }
        None => return Err(Problem::unsupported_media_type(content_type, &TYPES)),
    };
    let text = std::str::from_utf8(bytes).map_err(|error| {
        invalid(&format!("the file is not a text in UTF-8: byte {} cannot be read", error.valid_up_to()))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    if text.trim().is_empty() {
        return Err(invalid("the file is empty"));
    }
    Ok(File { name, text })
}

fn invalid(what: &str) -> Problem {
    RequestError::Invalid(vec![FieldError::new("file", FieldReason::NotAllowed, what.to_owned())]).into()
}

/// The boundary of a form (RFC 7578).
fn boundary(content_type: Option<&str>) -> Option<String> {
    let (essence, parameters) = content_type?.split_once(';')?;
    let is_form = essence.trim().eq_ignore_ascii_case("multipart/form-data");
    let boundary = parameters.split(';').find_map(|parameter| {
        let (name, value) = parameter.split_once('=')?;
        name.trim().eq_ignore_ascii_case("boundary").then(|| value.trim().trim_matches('"').to_owned())
    })?;
    (is_form && (1..=70).contains(&boundary.len())).then_some(boundary)
}

/// The first part of a form that has a file name, or else its first part.
fn file_of_form<'a>(boundary: &str, body: &'a [u8]) -> Option<(Option<String>, &'a [u8])> {
    let delimiter = format!("--{boundary}");
    let mut parts = Vec::new();
    let mut rest = &body[find(body, delimiter.as_bytes())? + delimiter.len()..];
    while let Some(part) = rest.strip_prefix(b"\r\n") {
        let end = find(part, format!("\r\n{delimiter}").as_bytes())?;
        let head_end = find(&part[..end], b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&part[..head_end]).into_owned();
        let name = head.lines().find_map(|line| {
            let (_, after) = line.split_once("filename=\"")?;
            Some(quoted(after).take(FILE_NAME_BYTES_MAX / 4).collect::<String>())
        });
        parts.push((name, &part[head_end + 4..end]));
        rest = &part[end + 2 + delimiter.len()..];
    }
    let at = parts.iter().position(|(name, _)| name.is_some()).unwrap_or(0);
    (at < parts.len()).then(|| parts.swap_remove(at))
}

/// The characters of a quoted string up to its closing quote (RFC 9110, section 5.6.4). A backslash before any other
/// character than a quote or a backslash is part of a Windows path.
fn quoted(text: &str) -> impl Iterator<Item = char> {
    let mut chars = text.chars().peekable();
    std::iter::from_fn(move || match chars.next()? {
        '"' => None,
        '\\' => chars.next_if(|next| matches!(next, '"' | '\\')).or(Some('\\')),
        char => Some(char),
    })
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}

/// The input of the execution, as JSON.
pub fn input(file: &File<'_>, name: Option<&str>) -> String {
    let name = name.or(file.name.as_deref());
    json!({ "upload": { "name": name, "bytes": file.text.len() }, "text": file.text }).to_string()
}

/// True for the input of an upload.
pub fn is_upload(input: &Json) -> bool {
    #[derive(Deserialize)]
    struct Head {
        upload: Option<IgnoredAny>,
    }
    serde_json::from_str::<Head>(input.as_str()).is_ok_and(|head| head.upload.is_some())
}

/// The body of `202 Accepted`.
pub fn accepted_json(id: &str, pipeline: &str) -> String {
    let links = json!({
        "file": format!("/stream/file/{id}"),
        "workflow": format!("/stream/workflow/{id}"),
        "execution": execution::location(id),
        "events": format!("/stream/pipeline/{id}"),
    });
    json!({ "file_id": id, "workflow_id": id, "execution_id": id, "pipeline": pipeline, "links": links }).to_string()
}

/// The progress of the execution of an upload, computed from its events.
#[derive(Debug)]
pub struct UploadProgress {
    execution_id: Arc<str>,
    steps: usize,
    /// The progress of each step, from 0 to 1.
    done: BTreeMap<Arc<str>, f64>,
    percent: f64,
    is_over: bool,
}

impl UploadProgress {
    /// The progress of an execution that begins or was resumed.
    pub fn new(status: &Status) -> Self {
        let has_ended = |state| matches!(state, StepState::Completed | StepState::Failed | StepState::Skipped);
        let done =
            status.steps.iter().filter(|step| has_ended(step.state)).map(|step| (step.id.clone(), 1.0)).collect();
        Self {
            execution_id: status.execution_id.clone(),
            steps: status.steps.len(),
            done,
            percent: 0.0,
            is_over: false,
        }
    }

    /// True after the last report.
    pub fn is_over(&self) -> bool {
        self.is_over
    }

    /// The report of an event, if it has one.
    pub fn handle_event(&mut self, event: &Event) -> Option<Progress> {
        let step = event.step_id.clone();
        let mut set = |part: f64| {
            if let Some(step) = &step {
                let done = self.done.entry(step.clone()).or_default();
                *done = done.max(part);
            }
        };
        let (mut message, mut error, mut result, mut canceled) = (None, None, None, None);
        let mut name = step.as_deref().unwrap_or("reading").to_owned();
        match &event.data {
            Data::PipelineStart { .. } => message = Some("accepted".to_owned()),
            Data::StepStart { .. } => {}
            Data::StepProgress { progress, message: text } => {
                set(*progress);
                message = Some(text.to_string()).filter(|text| !text.is_empty());
            }
            Data::StepComplete { .. } => set(1.0),
            Data::StepError { failure, retry_in_ns, .. } => {
                if retry_in_ns.is_none() {
                    set(1.0);
                }
                message = Some(failure.message.to_string());
            }
            Data::PipelineComplete { output, .. } => {
                name = "done".to_owned();
                self.is_over = true;
                if output.bytes() <= RESULT_BYTES_MAX {
                    result = Some(Raw { text: output.as_str().into(), depth: 0 });
                } else {
                    message = Some(format!("the result is at {}", execution::location(&self.execution_id)));
                }
            }
            Data::PipelineError { failure, .. } => {
                name = failure.step_id.as_deref().unwrap_or("failed").to_owned();
                self.is_over = true;
                match failure.cancelled {
                    true => canceled = Some(true),
                    false => error = Some(failure.failure.message.to_string()),
                }
            }
            Data::StepOutput { .. } | Data::CheckpointSaved { .. } => return None,
        }
        let share = self.done.values().sum::<f64>() / self.steps.max(1) as f64;
        self.percent = self.percent.max((share * PERCENT_MAX).floor().min(PERCENT_MAX));
        let is_complete = self.is_over && error.is_none() && canceled.is_none();
        let progress = if is_complete { 100.0 } else { self.percent };
        let last = self.is_over.then_some(true);
        Some(Progress { step: name, progress, message, error, canceled, metadata: None, result, user_id: None, last })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use weir_core::pipelines::{KindName, Metadata, State, StepStatus, StepTimes};

    use super::*;
    use crate::pipelines::definition_file;

    #[test]
    fn definition_of_the_built_in_pipeline_is_valid() {
        let definition = definition_file::read(DEFINITION.as_bytes(), PIPELINE).unwrap();
        assert_eq!(definition.steps().len(), 5);
    }

    #[test]
    fn invalid_parameters_are_all_reported() {
        let fields = |query: &str| match UploadQuery::read(query) {
            Err(RequestError::Invalid(errors)) => errors.iter().map(|error| error.field.to_string()).collect(),
            Err(other) => panic!("{other:?}"),
            Ok(_) => Vec::new(),
        };
        let long = "x".repeat(FILE_NAME_BYTES_MAX + 1);
        let query = format!("pipeline=no%20name&color=red&name={long}&name=a&%1bsize=1");
        assert_eq!(fields(&query), ["color", "name", "size", "pipeline", "name"]);
        assert_eq!(fields("pipeline=analyze&name=a.txt&ticket=t"), Vec::<String>::new());
    }

    #[test]
    fn quote_in_a_file_name_is_part_of_the_name() {
        for (written, name) in
            [(r#"a\"b\\.txt"#, r#"a"b\.txt"#), (r"C:\files\a.txt", r"C:\files\a.txt"), ("plain", "plain")]
        {
            assert_eq!(quoted(&format!("{written}\"; x=\"y\"")).collect::<String>(), name);
        }
    }

    #[test]
    fn text_and_form_are_read_as_a_file() {
        assert_eq!(read(None, b"\xef\xbb\xbfa text").unwrap(), File { name: None, text: "a text" });
        assert_eq!(read(Some("text/markdown; charset=utf-8"), b"# a").unwrap().text, "# a");
        let form = b"--x\r\ncontent-disposition: form-data; name=\"a\"\r\n\r\nno file\r\n--x\r\nContent-Disposition: form-data; name=\"f\"; filename=\"n.txt\"\r\nContent-Type: text/plain\r\n\r\nline 1\r\n\r\nline 2\r\n--x--\r\n";
        let file = read(Some("multipart/form-data; boundary=\"x\""), form).unwrap();
        assert_eq!(file, File { name: Some("n.txt".to_owned()), text: "line 1\r\n\r\nline 2" });
    }

    #[test]
    fn body_without_a_file_is_refused() {
        for (content_type, body, status) in [
            (Some("application/json"), b"{}".as_slice(), 415),
            (Some("image/png"), b"x", 415),
            (None, b"\xff", 422),
            (None, b" \n", 422),
            (Some("multipart/form-data"), b"x", 422),
            (Some("multipart/form-data; boundary=x"), b"--x\r\nno end", 422),
            (Some("multipart/form-data; boundary=x"), b"--x--\r\n", 422),
        ] {
            assert_eq!(read(content_type, body).unwrap_err().status, status, "{content_type:?} {body:?}");
        }
    }

    #[test]
    fn query_with_a_pipeline_and_a_name_is_read() {
        let query = UploadQuery::read("pipeline=review&name=a%20b.txt&ticket=t").unwrap();
        assert_eq!((query.pipeline.as_deref(), query.name.as_deref()), (Some("review"), Some("a b.txt")));
        for query in ["pipeline=a/b", "name=a&name=b", "file=x"] {
            assert!(UploadQuery::read(query).is_err(), "{query}");
        }
    }

    #[test]
    fn input_of_an_upload_is_recognized() {
        let file = File { name: Some("n.txt".to_owned()), text: "a \"text\"" };
        let json = input(&file, None);
        assert_eq!(json, r#"{"text":"a \"text\"","upload":{"bytes":8,"name":"n.txt"}}"#);
        assert!(is_upload(&Json::from_checked(json.as_str())));
        assert!(!is_upload(&Json::from_checked(r#"{"text":"x"}"#)));
        assert!(!is_upload(&Json::from_checked(r#""upload""#)));
    }

    fn event(step: Option<&str>, data: Data) -> Event {
        Event { step_id: step.map(Into::into), unix_ns: 0, data, metadata: Metadata::default() }
    }

    #[test]
    fn progress_grows_to_100_with_the_result() {
        let step = |id: &str| StepStatus {
            id: id.into(),
            state: StepState::Waiting,
            attempts: 0,
            failure: None,
            kind: KindName::Map,
            after: Vec::new(),
            times: StepTimes::default(),
            progress: None,
        };
        let status = Status {
            execution_id: "exec_1".into(),
            pipeline: "p".into(),
            state: State::Running,
            began_unix_ns: 0,
            duration_ns: 0,
            events: 0,
            resumed: 0,
            steps: vec![step("a"), step("b")],
            output: None,
            failure: None,
        };
        let mut progress = UploadProgress::new(&status);
        let output = || Json::from_checked("[1]");
        let kind = KindName::Map;
        let reports: Vec<(String, f64)> = [
            event(None, Data::PipelineStart { name: "p".into(), steps: 2 }),
            event(Some("a"), Data::StepProgress { progress: 0.5, message: "1 of 2".into() }),
            event(Some("a"), Data::StepComplete { kind, output: output(), duration_ns: 1 }),
            event(Some("b"), Data::StepComplete { kind, output: output(), duration_ns: 1 }),
            event(
                None,
                Data::PipelineComplete { output: output(), duration_ns: 2, steps_completed: 2, steps_failed: 0 },
            ),
        ]
        .iter()
        .filter_map(|event| progress.handle_event(event))
        .map(|report| (report.step, report.progress))
        .collect();
        let want = [("reading", 0.0), ("a", 24.0), ("a", 49.0), ("b", 99.0), ("done", 100.0)];
        assert_eq!(reports, want.map(|(step, percent)| (step.to_owned(), percent)));
        assert!(progress.is_over());
    }

    proptest! {
        #[test]
        fn any_body_is_a_file_or_refused(content_type in "(multipart/form-data; boundary=[a-z-]{0,3})|\\PC{0,20}", body in prop::collection::vec(any::<u8>(), 0..80)) {
            let _ = read(Some(&content_type), &body);
        }

        #[test]
        fn file_of_a_form_reads_back(text in "[a-z \r\n-]{1,60}") {
            let form = format!("--bound\r\nA: b; filename=\"f\"\r\n\r\n{text}\r\n--bound--\r\n");
            prop_assume!(!text.contains("\r\n--bound") && !text.trim().is_empty());
            let file = read(Some("multipart/form-data; boundary=bound"), form.as_bytes()).unwrap();
            prop_assert_eq!(file.text, text);
        }
    }
}
