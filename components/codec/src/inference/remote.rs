//! The client side of [`item_stream`](super::item_stream) and [`models`](super::models): writes requests to another server and reads its
//! responses, for `components/infer-remote`.
//!
//! The server is not trusted: lines and bodies are bounded, and an invalid response is a failure with the reason.

use weir_core::failure::{Failure, RETRY_AFTER_MS};

use crate::{
    inference::{
        models::Model,
        output::{Entity, LabelScore, Output},
        task::{Activation, Aggregation, Parameters, Side, Task},
    },
    json::{to_vec, tree::Node},
};

/// Longest line of a response, in bytes: an embedding of 65,536 numbers, or the entities of a long text.
pub const RESPONSE_LINE_BYTES_MAX: usize = 4 << 20;
/// Most JSON values in a line of a response.
const RESPONSE_VALUES_MAX: usize = 1 << 18;
/// Longest text of the server in a failure, in bytes.
const TEXT_BYTES_MAX: usize = 256;

/// The value of `Prefer` of a stream of items: with counts of tokens, and for texts that fail when the queue of their model is full.
pub fn preferences(fails_when_full: bool) -> &'static str {
    if fails_when_full { "token-counts, when-full=fail" } else { "token-counts" }
}

/// The path and the query of a stream of items.
pub fn target(task: Task, model: &str, parameters: &Parameters) -> String {
    let path = match task {
        Task::Classify => "/v1/classify",
        Task::Tokens => "/v1/tokens",
        Task::Embed => "/v1/embed",
    };
    let mut target = format!("{path}?model={}", encoded(model));
    let mut add = |name: &str, value: &str| target += &format!("&{name}={}", encoded(value));
    if let Some(top_k) = parameters.top_k {
        add("top_k", &top_k.to_string());
    }
    if let Some(activation) = parameters.activation {
        let name = match activation {
            Activation::Softmax => "softmax",
            Activation::Sigmoid => "sigmoid",
            Activation::None => "none",
        };
        add("function_to_apply", name);
    }
    if let Some(aggregation) = parameters.aggregation {
        let name = match aggregation {
            Aggregation::None => "none",
            Aggregation::Simple => "simple",
            Aggregation::First => "first",
            Aggregation::Average => "average",
            Aggregation::Max => "max",
        };
        add("aggregation_strategy", name);
    }
    for label in parameters.ignore_labels.iter().flatten() {
        add("ignore_labels", label);
    }
    if let Some(stride) = parameters.stride {
        add("stride", &stride.to_string());
    }
    if let Some(normalize) = parameters.normalize {
        add("normalize", if normalize { "true" } else { "false" });
    }
    if let Some(truncation) = parameters.truncation {
        let name = if task == Task::Embed { "truncate" } else { "truncation" };
        add(name, if truncation { "true" } else { "false" });
    }
    if let Some(side) = parameters.truncation_direction {
        add("truncation_direction", if side == Side::Left { "left" } else { "right" });
    }
    target
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            byte => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// The line of a text, with its end.
pub fn line(id: u64, text: &str, text_pair: Option<&str>) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct ItemToSend<'a> {
        text: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        text_pair: Option<&'a str>,
        id: u64,
    }
    let mut line = to_vec(&ItemToSend { text, text_pair, id });
    line.push(b'\n');
    line
}

/// The JSON body with one text, for a text that exceeds the longest line of a stream.
pub fn body(id: u64, text: &str, text_pair: Option<&str>) -> Vec<u8> {
    let mut line = line(id, text, text_pair);
    line.pop();
    [b"{\"inputs\":[", line.as_slice(), b"]}"].concat()
}

/// The path of a request for a summary.
pub const SUMMARY_TARGET: &str = "/process-stream";

/// The body of a request for a summary and nothing else.
pub fn summary_body(text: &str) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct SummaryToSend<'a> {
        text: &'a str,
        include_sentiment: bool,
        include_summary: bool,
    }
    to_vec(&SummaryToSend { text, include_sentiment: false, include_summary: true })
}

/// The summary in a line of `/process-stream`; `None` for a line of another step.
///
/// # Errors
/// The line is invalid; the text has the reason.
pub fn summary(content: &[u8]) -> Result<Option<Result<String, Failure>>, String> {
    let node = Node::read(content, RESPONSE_VALUES_MAX).map_err(|error| error.to_string())?;
    let mut fields = Fields::of(node)?;
    Ok(match &*fields.text("status")? {
        "summarization_complete" => Some(Ok(fields.text("summary")?)),
        "summarization_error" | "error" => Some(Err(failure(Node::Object(fields.0))?)),
        _ => None,
    })
}

/// A line of a response.
#[derive(Debug, PartialEq)]
pub enum ResponseLine {
    /// The result of the text with this id, and the tokens that were computed for it; 0 from a server that does not count.
    Item(u64, u32, Result<Output, Failure>),
    /// The stream has failed; every text without a result has this failure.
    Stream(Failure),
    /// The last line.
    Done,
}

/// Reads a line of a response.
///
/// # Errors
/// The line is invalid; the text has the reason.
pub fn response_line(content: &[u8]) -> Result<ResponseLine, String> {
    let node = Node::read(content, RESPONSE_VALUES_MAX).map_err(|error| error.to_string())?;
    let Node::Object(members) = node else { return Err(format!("a line is {}", node.name())) };
    let (mut id, mut result, mut tokens) = (None, None, 0);
    for (key, node) in members {
        match &*key {
            "done" => return Ok(ResponseLine::Done),
            "id" => id = Some(node),
            "scores" => result = Some(Ok(Output::Labels(list(node, score)?))),
            "entities" => result = Some(Ok(Output::Entities(list(node, entity)?))),
            "embedding" => result = Some(Ok(Output::Embedding(list(node, |node| number(&node))?))),
            "error" => result = Some(Err(failure(node)?)),
            "tokens" => tokens = count(&node)?,
            // A newer server may say more.
            _ => {}
        }
    }
    match (id, result) {
        (Some(Node::Integer(id)), Some(result)) if id >= 0 => Ok(ResponseLine::Item(id.unsigned_abs(), tokens, result)),
        (None, Some(Err(failure))) => Ok(ResponseLine::Stream(failure)),
        _ => Err("a line has no result, or no id that was sent".to_owned()),
    }
}

/// The failure of a response with another status than 200. `retry_after_ms` is that of its header.
pub fn refusal(status: u16, body: &[u8], retry_after_ms: Option<u32>) -> Failure {
    let problem = match Node::read(body, RESPONSE_VALUES_MAX) {
        Ok(problem @ Node::Object(_)) => failure(problem).ok(),
        _ => None,
    };
    let wait_ms = retry_after_ms.or_else(|| problem.as_ref().and_then(Failure::retry_after_ms));
    match (status, problem) {
        // Of its own accord the server says which failure it is; a proxy between says it by the status alone.
        (_, Some(failure)) if !matches!(failure, Failure::Other(_)) => with_wait(failure, retry_after_ms),
        (429, _) => Failure::Throttled { retry_after_ms: wait_ms.unwrap_or(RETRY_AFTER_MS) },
        (503, _) if wait_ms.is_some() => Failure::Overloaded { retry_after_ms: wait_ms.unwrap_or(RETRY_AFTER_MS) },
        (500..=599 | 408 | 425, _) => Failure::Unavailable(format!("the remote server answered {status}")),
        (_, Some(Failure::Other(text))) => Failure::Other(format!("the remote server answered {status}: {text}")),
        _ => Failure::Other(format!("the remote server answered {status}")),
    }
}

/// A failure with the delay of the header, which takes precedence.
fn with_wait(failure: Failure, retry_after_ms: Option<u32>) -> Failure {
    match (failure, retry_after_ms) {
        (Failure::Overloaded { .. }, Some(retry_after_ms)) => Failure::Overloaded { retry_after_ms },
        (Failure::Throttled { .. }, Some(retry_after_ms)) => Failure::Throttled { retry_after_ms },
        (Failure::CircuitOpen { .. }, Some(retry_after_ms)) => Failure::CircuitOpen { retry_after_ms },
        (failure, _) => failure,
    }
}

/// Reads the body of `GET /v1/models`: the models that classify, find entities or embed.
///
/// # Errors
/// The body is invalid; the text has the reason.
pub fn models(body: &[u8]) -> Result<Vec<Model>, String> {
    let node = Node::read(body, RESPONSE_VALUES_MAX).map_err(|error| error.to_string())?;
    let Node::Object(members) = node else { return Err(format!("the body is {}", node.name())) };
    let listed = members.into_iter().find(|(key, _)| key == "models").map(|(_, node)| node);
    let listed = list(listed.ok_or("the body has no `models`")?, model)?;
    Ok(listed.into_iter().flatten().collect())
}

fn model(node: Node<'_>) -> Result<Option<Model>, String> {
    const KINDS: [&str; 3] = ["text-classification", "token-classification", "feature-extraction"];
    let mut fields = Fields::of(node)?;
    let kind = fields.text("kind")?;
    let Some(kind) = KINDS.into_iter().find(|known| *known == kind) else { return Ok(None) };
    Ok(Some(Model {
        name: fields.text("name")?,
        kind,
        labels: list(fields.take("labels")?, text)?,
        tokens_max: fields.count("tokens_max")?,
        ready: fields.take("ready")? == Node::Bool(true),
        reason: fields.find("reason").map(text).transpose()?,
    }))
}

fn score(node: Node<'_>) -> Result<LabelScore, String> {
    let mut fields = Fields::of(node)?;
    Ok(LabelScore { label: fields.text("label")?, score: number(&fields.take("score")?)? })
}

fn entity(node: Node<'_>) -> Result<Entity, String> {
    let mut fields = Fields::of(node)?;
    let index = fields.find("index").map(|node| count(&node)).transpose()?;
    let label = match index {
        Some(_) => fields.text("entity")?,
        None => fields.text("entity_group")?,
    };
    let score = number(&fields.take("score")?)?;
    let words = (fields.text("word")?, fields.text("text")?);
    Ok(Entity::new(label, score, index, words, (fields.count("start")?, fields.count("end")?)))
}

/// An error of a line, or a problem: `code`, `message` or `detail`, `retry_after_ms`.
fn failure(node: Node<'_>) -> Result<Failure, String> {
    let mut fields = Fields::of(node)?;
    let code = fields.text("code")?;
    let message = fields.find("message").or_else(|| fields.find("detail"));
    let message = message.map(text).transpose()?.unwrap_or_default();
    let wait_ms = fields.find("retry_after_ms").map(|node| count(&node)).transpose()?;
    let retry_after_ms = wait_ms.unwrap_or(RETRY_AFTER_MS);
    let message = shortened(&message);
    // The words that the failure puts before a reason are in the message already.
    let after = |known: &str| message.strip_prefix(known).unwrap_or(message).to_owned();
    Ok(match &*code {
        "invalid_input" => Failure::InvalidInput(after("the model refused its input: ")),
        "unknown_model" => {
            let quoted = message.split('`').nth(1).unwrap_or_default();
            Failure::UnknownModel { name: quoted.to_owned(), served: Vec::new() }
        }
        "too_long" => {
            let mut counts = message.split(' ').filter_map(|word| word.parse().ok());
            match (counts.next(), counts.next()) {
                (Some(tokens), Some(tokens_max)) => Failure::TooLong { tokens, tokens_max },
                _ => Failure::InvalidInput(message.to_owned()),
            }
        }
        "overloaded" => Failure::Overloaded { retry_after_ms },
        "throttled" | "rate_limited" => Failure::Throttled { retry_after_ms },
        "circuit_open" => Failure::CircuitOpen { retry_after_ms },
        "model_unavailable" | "not_ready" | "draining" => Failure::Unavailable(after("the model cannot answer now: ")),
        "deadline_exceeded" => Failure::DeadlineExceeded,
        "engine_failed" => Failure::Engine(after("the engine failed on this text: ")),
        _ if wait_ms.is_some() => Failure::Unavailable(message.to_owned()),
        code => Failure::Other(format!("{message} ({})", shortened(code))),
    })
}

fn shortened(text: &str) -> &str {
    &text[..text.floor_char_boundary(TEXT_BYTES_MAX)]
}

/// The members of an object.
struct Fields<'a>(Vec<(std::borrow::Cow<'a, str>, Node<'a>)>);

impl<'a> Fields<'a> {
    fn of(node: Node<'a>) -> Result<Self, String> {
        match node {
            Node::Object(members) => Ok(Self(members)),
            other => Err(format!("an object is expected, not {}", other.name())),
        }
    }

    fn find(&mut self, name: &str) -> Option<Node<'a>> {
        let at = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.swap_remove(at).1)
    }

    fn take(&mut self, name: &str) -> Result<Node<'a>, String> {
        self.find(name).ok_or_else(|| format!("`{name}` is missing"))
    }

    fn text(&mut self, name: &str) -> Result<String, String> {
        text(self.take(name)?)
    }

    fn count(&mut self, name: &str) -> Result<u32, String> {
        count(&self.take(name)?)
    }
}

fn text(node: Node<'_>) -> Result<String, String> {
    match node {
        Node::Text(text) => Ok(text.into_owned()),
        other => Err(format!("a string is expected, not {}", other.name())),
    }
}

fn count(node: &Node<'_>) -> Result<u32, String> {
    let count = if let Node::Integer(count) = node { u32::try_from(*count).ok() } else { None };
    count.ok_or_else(|| "a count is expected".to_owned())
}

fn number(node: &Node<'_>) -> Result<f32, String> {
    match node {
        Node::Integer(number) => Ok(*number as f32),
        Node::Number(number) => Ok(*number as f32),
        other => Err(format!("a number is expected, not {}", other.name())),
    }
}

fn list<'a, T>(node: Node<'a>, read: impl FnMut(Node<'a>) -> Result<T, String>) -> Result<Vec<T>, String> {
    match node {
        Node::Array(items) => items.into_iter().map(read).collect(),
        other => Err(format!("an array is expected, not {}", other.name())),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::{
        http::{framing::Framing, lines::Line, problem::Problem},
        inference::{item_stream::ItemStream, models::models_json, query::Query},
    };

    /// A line of a server about a text, read back.
    fn through(task: Task, result: Result<Output, Failure>) -> ResponseLine {
        let mut stream = ItemStream::new(task, Framing::Ndjson).with_token_counts(true);
        let sent = line(7, "a \"text\"\n", None);
        let content = sent.strip_suffix(b"\n").unwrap();
        let (index, input) = stream.handle_line(&Line { number: 1, content: Some(content) }).unwrap();
        assert_eq!(input.text, "a \"text\"\n");
        stream.handle_outcome(index, 5, result);
        let line = stream.poll_output().unwrap();
        response_line(line.strip_suffix(b"\n").unwrap()).unwrap()
    }

    #[test]
    fn results_read_back_as_they_were() {
        let labels = Output::Labels(vec![LabelScore { label: "good".to_owned(), score: 0.1 }]);
        assert_eq!(through(Task::Classify, Ok(labels.clone())), ResponseLine::Item(7, 5, Ok(labels)));
        let embedding = Output::Embedding(vec![0.1, -1.0, 1e-20, 0.333_333_34]);
        assert_eq!(through(Task::Embed, Ok(embedding.clone())), ResponseLine::Item(7, 5, Ok(embedding)));
        let words = || ("ann".to_owned(), "Ann".to_owned());
        let entities = Output::Entities(vec![
            Entity::new("B-PER".to_owned(), 0.5, Some(3), words(), (0, 3)),
            Entity::new("PER".to_owned(), 0.25, None, words(), (0, 3)),
        ]);
        assert_eq!(through(Task::Tokens, Ok(entities.clone())), ResponseLine::Item(7, 5, Ok(entities)));
    }

    #[test]
    fn failures_read_back_as_they_were() {
        for failure in [
            Failure::InvalidInput("it is wrong".to_owned()),
            Failure::UnknownModel { name: "m".to_owned(), served: Vec::new() },
            Failure::TooLong { tokens: 600, tokens_max: 512 },
            Failure::Overloaded { retry_after_ms: 2500 },
            Failure::Throttled { retry_after_ms: 10 },
            Failure::CircuitOpen { retry_after_ms: 30_000 },
            Failure::Unavailable("its replica was lost".to_owned()),
            Failure::DeadlineExceeded,
            Failure::Engine("no".to_owned()),
        ] {
            assert_eq!(through(Task::Classify, Err(failure.clone())), ResponseLine::Item(7, 5, Err(failure.clone())));
            let body = Problem::item(&failure).to_json("r-1");
            assert_eq!(refusal(503, &body, None), failure);
        }
    }

    #[test]
    fn end_and_failure_of_a_stream_are_told_apart() {
        assert_eq!(response_line(br#"{"done":true,"ok":1,"failed":0}"#), Ok(ResponseLine::Done));
        let line =
            br#"{"error":{"code":"body_timeout","message":"nothing arrived","retryable":true,"retry_after_ms":0}}"#;
        assert_eq!(response_line(line), Ok(ResponseLine::Stream(Failure::Unavailable("nothing arrived".to_owned()))));
    }

    #[test]
    fn line_that_is_no_answer_is_an_error() {
        for line in [
            "",
            "[]",
            "{}",
            r#"{"id":1}"#,
            r#"{"id":-1,"scores":[]}"#,
            r#"{"id":"x","scores":[]}"#,
            r#"{"scores":[]}"#,
            r#"{"id":1,"scores":[{"label":"a"}]}"#,
            r#"{"id":1,"entities":[{"entity_group":"PER","score":0.5}]}"#,
            r#"{"id":1,"embedding":["1"]}"#,
            r#"{"id":1,"error":"no"}"#,
            r#"{"id":1,"scores":[],"tokens":-1}"#,
            "<html>",
        ] {
            assert!(response_line(line.as_bytes()).is_err(), "{line}");
        }
    }

    #[test]
    fn status_alone_is_a_failure() {
        for (status, wait, want) in [
            (429, Some(3000), Failure::Throttled { retry_after_ms: 3000 }),
            (429, None, Failure::Throttled { retry_after_ms: 1000 }),
            (503, Some(2000), Failure::Overloaded { retry_after_ms: 2000 }),
            (502, None, Failure::Unavailable("the remote server answered 502".to_owned())),
            (404, None, Failure::Other("the remote server answered 404".to_owned())),
        ] {
            assert_eq!(refusal(status, b"<html>no</html>", wait), want);
        }
        let problem = Problem::not_found("/v1/classify").to_json("r-1");
        let want = "the remote server answered 404: there is nothing at `/v1/classify` (not_found)";
        assert_eq!(refusal(404, &problem, None), Failure::Other(want.to_owned()));
    }

    #[test]
    fn parameters_read_back_as_they_were() {
        let parameters = Parameters {
            aggregation: Some(Aggregation::First),
            ignore_labels: Some(vec!["O".to_owned(), "a b&c".to_owned()]),
            stride: Some(32),
            truncation: Some(true),
            truncation_direction: Some(Side::Left),
            ..Parameters::default()
        };
        let target = target(Task::Tokens, "org/name", &parameters);
        let (path, query) = target.split_once('?').unwrap();
        assert_eq!(path, "/v1/tokens");
        let read = Query::read(query, Task::Tokens).unwrap();
        assert_eq!((read.model.as_deref(), &read.parameters), (Some("org/name"), &parameters));
        let parameters = Parameters { normalize: Some(false), truncation: Some(false), ..Parameters::default() };
        let read = super::target(Task::Embed, "m", &parameters);
        let read = Query::read(read.split_once('?').unwrap().1, Task::Embed).unwrap();
        assert_eq!(read.parameters, parameters);
    }

    #[test]
    fn preferences_are_read_by_the_server() {
        use crate::http::prefer::Prefer;
        for fails in [true, false] {
            let read = Prefer::read([preferences(fails)]);
            assert_eq!((read.token_counts, read.fails_when_full), (true, fails));
        }
    }

    #[test]
    fn models_read_back_as_they_were() {
        let model = |name: &str, kind| Model {
            name: name.to_owned(),
            kind,
            labels: vec!["a".to_owned()],
            tokens_max: 512,
            ready: true,
            reason: None,
        };
        let broken =
            Model { ready: false, reason: Some("it is broken".to_owned()), ..model("b", "feature-extraction") };
        let listed = [model("m", "text-classification"), broken, model("l", "text-generation")];
        assert_eq!(models(&models_json(&listed)).unwrap(), listed[..2]);
        assert!(models(b"{}").is_err() && models(b"[]").is_err());
    }

    #[test]
    fn body_of_one_text_is_read_by_the_server() {
        use crate::inference::{output::Id, request::TaskRequest};
        let request = TaskRequest::from_json(&body(3, "a\"b", Some("c")), Task::Classify, Query::default()).unwrap();
        let [input] = &request.inputs[..] else { panic!("{request:?}") };
        assert_eq!((input.text.as_str(), input.text_pair.as_deref()), ("a\"b", Some("c")));
        assert_eq!(input.id, Some(Id::Number(3)));
        let text = "A text of more than ten code points.";
        let request = crate::pipelines::process_request::ProcessRequest::from_json(&summary_body(text)).unwrap();
        assert!(request.include_summary && !request.include_sentiment && !request.include_entities);
        assert_eq!(request.text, text);
    }

    #[test]
    fn summary_is_read_from_its_event_alone() {
        assert_eq!(summary(br#"{"status":"started","message":"x"}"#), Ok(None));
        let line = br#"{"status":"summarization_complete","summary":"One.","compression_ratio":0.25}"#;
        assert_eq!(summary(line), Ok(Some(Ok("One.".to_owned()))));
        let line = br#"{"status":"summarization_error","code":"overloaded","message":"x","retryable":true,"retry_after_ms":5}"#;
        assert_eq!(summary(line), Ok(Some(Err(Failure::Overloaded { retry_after_ms: 5 }))));
        assert!(summary(b"{}").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_answers_are_read_or_refused(content in proptest::collection::vec(any::<u8>(), 0..80), status: u16) {
            let _ = response_line(&content);
            let _ = models(&content);
            let _ = summary(&content);
            let _ = refusal(status, &content, None);
        }
    }
}
