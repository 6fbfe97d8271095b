//! The request for a generation, for every dialect, and the readers of the fields that several dialects have.

use crate::json::{
    field::{FieldError, FieldReason},
    members::{Errors, Members},
    tree::Node,
};

/// Maximum number of choices of a request.
pub const CHOICES_MAX: u32 = 8;
/// Maximum number of stop strings of a request.
pub const STOP_MAX: usize = 8;
/// Longest stop string, in bytes.
pub const STOP_BYTES_MAX: usize = 256;
/// Maximum number of alternatives per token whose log probabilities are reported.
pub const LOGPROBS_MAX: u32 = 20;
/// Longest prompt, in bytes.
pub const PROMPT_BYTES_MAX: usize = 1 << 20;
/// Largest schema or grammar, in bytes.
pub const FORMAT_BYTES_MAX: usize = 64 << 10;
/// Maximum number of tokens with a bias.
pub const BIASES_MAX: usize = 1024;
/// Maximum number of tokens of a prompt that is sent as tokens.
pub const PROMPT_TOKENS_MAX: usize = 128 << 10;
/// Maximum number of JSON values in a request.
pub(crate) const VALUES_MAX: usize = 256 << 10;

/// A request for generated text.
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateRequest {
    /// The model; `None`: the one that is served.
    pub model: Option<String>,
    /// The prompt that the text continues.
    pub prompt: Prompt,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// The text ends before the first of these.
    pub stop: Vec<String>,
    /// Maximum number of generated tokens.
    pub tokens_max: Option<u32>,
    /// Number of texts that are generated from the prompt.
    pub choices: u32,
    /// The format that the text must have.
    pub format: Option<Format>,
    /// Report log probabilities, with this number of alternatives per token.
    pub logprobs: Option<u32>,
}

/// The prompt of a generation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A chat, as JSON text in the form of OpenAI's chat completions API.
    Chat {
        /// An array of messages.
        messages: String,
        /// An array of tools.
        tools: Option<String>,
        /// `tool_choice`
        tool_choice: Option<String>,
    },
    /// A text, without a template.
    Text(String),
    /// Tokens of the model.
    Tokens(Vec<u32>),
}

/// How tokens are sampled; `None` is the default of the model or of the server.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sampling {
    /// The temperature; 0 selects the most likely token.
    pub temperature: Option<f32>,
    /// Sample from this number of the most likely tokens.
    pub top_k: Option<u32>,
    /// Sample from the most likely tokens whose probabilities add up to this.
    pub top_p: Option<f32>,
    /// Sample from tokens with at least this fraction of the probability of the most likely one.
    pub min_p: Option<f32>,
    /// Divides the positive logits, and multiplies the negative logits, of tokens that occurred.
    pub repeat_penalty: Option<f32>,
    /// Subtracted once from the logit of a token that was generated.
    pub presence_penalty: Option<f32>,
    /// Subtracted from the logit of a token for each time that it was generated.
    pub frequency_penalty: Option<f32>,
    /// Token ids, and the values added to their logits.
    pub biases: Vec<(u32, f32)>,
    /// The seed of the sampler.
    pub seed: Option<u64>,
}

/// The format that a text must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Format {
    /// A JSON object.
    Json,
    /// A JSON value that a schema allows, as JSON text.
    JsonSchema(String),
    /// A text that a grammar allows, in Lark's syntax.
    Grammar(String),
    /// A text that a regular expression matches.
    Regex(String),
}

impl Prompt {
    /// A chat with a system message, if any, and a user message.
    pub fn chat(system: Option<&str>, user: &str) -> Self {
        let message = |role: &str, content: &str| serde_json::json!({ "role": role, "content": content });
        let system = system.map(|text| message("system", text));
        let messages: serde_json::Value = system.into_iter().chain([message("user", user)]).collect();
        Self::Chat { messages: messages.to_string(), tools: None, tool_choice: None }
    }
}

impl GenerateRequest {
    /// A request with defaults for everything but the prompt.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            model: None,
            prompt,
            sampling: Sampling::default(),
            stop: Vec::new(),
            tokens_max: None,
            choices: 1,
            format: None,
            logprobs: None,
        }
    }
}

/// The members of a body, which must be an object. A member that is null counts as absent, and unknown members are ignored, as in the
/// servers whose APIs these are.
pub(crate) fn members(body: &[u8]) -> Result<Members<'_>, crate::json::JsonError> {
    Members::of_lenient_body(body, VALUES_MAX)
}

/// The name of the model.
pub(crate) fn model(members: &mut Members<'_>, errors: &mut Errors) -> Option<String> {
    let name = members.text_bytes("model", crate::inference::task::MODEL_BYTES_MAX, errors)?;
    if name.is_empty() {
        errors.push_at("model", FieldReason::TooShort, "must not be empty");
    }
    Some(name)
}

/// Reads a number within inclusive bounds.
pub(crate) fn number_within(
    members: &mut Members<'_>,
    name: &'static str,
    (min, max): (f64, f64),
    errors: &mut Errors,
) -> Option<f32> {
    let number = members.number(name, errors)?;
    if !(min..=max).contains(&number) {
        let path = members.path(name);
        errors.push_at(&path, FieldReason::OutOfRange, &format!("must be {min} to {max}, and is {number}"));
        return None;
    }
    Some(number as f32)
}

/// Reads a whole number of at least `min`.
pub(crate) fn count(members: &mut Members<'_>, name: &'static str, min: i64, errors: &mut Errors) -> Option<u32> {
    let number = members.integer_within(name, (min, i64::from(u32::MAX)), errors)?;
    u32::try_from(number).ok()
}

/// Reads the sampling parameters under the names of OpenAI's API, vLLM and llama.cpp.
pub(crate) fn sampling(members: &mut Members<'_>, errors: &mut Errors) -> Sampling {
    let repeat = number_within(members, "repetition_penalty", (0.01, 10.0), errors);
    Sampling {
        temperature: number_within(members, "temperature", (0.0, 2.0), errors),
        top_k: count(members, "top_k", 0, errors),
        top_p: number_within(members, "top_p", (0.0, 1.0), errors),
        min_p: number_within(members, "min_p", (0.0, 1.0), errors),
        repeat_penalty: number_within(members, "repeat_penalty", (0.01, 10.0), errors).or(repeat),
        presence_penalty: number_within(members, "presence_penalty", (-2.0, 2.0), errors),
        frequency_penalty: number_within(members, "frequency_penalty", (-2.0, 2.0), errors),
        biases: biases(members, errors),
        seed: seed(members, errors),
    }
}

/// Reads a seed: any whole number. A negative number is mapped to a distinct seed.
pub(crate) fn seed(members: &mut Members<'_>, errors: &mut Errors) -> Option<u64> {
    members.integer("seed", errors).map(i64::cast_unsigned)
}

fn biases(members: &mut Members<'_>, errors: &mut Errors) -> Vec<(u32, f32)> {
    let Some(mut biases) = members.object("logit_bias", errors) else { return Vec::new() };
    let names = biases.names();
    if names.len() > BIASES_MAX {
        let (bounds, count) = ((0, BIASES_MAX as i64), names.len() as i64);
        let what = "have a number of members of";
        errors.push(FieldError::bounded("logit_bias", FieldReason::TooLong, what, bounds, count));
        return Vec::new();
    }
    let mut read = Vec::with_capacity(names.len());
    for name in names {
        let bias = match biases.remove(&name) {
            Some(Node::Integer(bias)) => Some(bias as f64),
            Some(Node::Number(bias)) => Some(bias),
            _ => None,
        };
        match (name.parse(), bias.filter(|bias| (-100.0..=100.0).contains(bias))) {
            (Ok(token), Some(bias)) => read.push((token, bias as f32)),
            _ => errors.push_at(
                "logit_bias",
                FieldReason::NotAllowed,
                "must map ids of tokens to numbers of -100 to 100",
            ),
        }
    }
    read
}

/// Reads stop strings: a string, or a list of strings.
pub(crate) fn stop(members: &mut Members<'_>, name: &'static str, errors: &mut Errors) -> Vec<String> {
    let path = members.path(name);
    let items = match members.take(name) {
        None => return Vec::new(),
        Some(Node::Text(text)) => vec![Node::Text(text)],
        Some(Node::Array(items)) => items,
        Some(other) => {
            errors.push_type(path, "string or array", &other);
            return Vec::new();
        }
    };
    if items.len() > STOP_MAX {
        let bounds = (0, STOP_MAX as i64);
        let what = "have a number of items of";
        errors.push(FieldError::bounded(path, FieldReason::TooLong, what, bounds, items.len() as i64));
        return Vec::new();
    }
    let mut stop = Vec::with_capacity(items.len());
    for (at, item) in items.into_iter().enumerate() {
        match item {
            Node::Text(text) if (1..=STOP_BYTES_MAX).contains(&text.len()) => stop.push(text.into_owned()),
            Node::Text(text) => {
                let (bounds, what) = ((1, STOP_BYTES_MAX as i64), "have a length in bytes of");
                let reason = if text.is_empty() { FieldReason::TooShort } else { FieldReason::TooLong };
                errors.push(FieldError::bounded(format!("{path}[{at}]"), reason, what, bounds, text.len() as i64));
            }
            other => errors.push_type(format!("{path}[{at}]"), "string", &other),
        }
    }
    stop
}

/// Reads the number of texts to generate; 1 by default.
pub(crate) fn choices(members: &mut Members<'_>, name: &'static str, errors: &mut Errors) -> u32 {
    let count = members.integer_within(name, (1, i64::from(CHOICES_MAX)), errors);
    count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1)
}

/// Reads the format that a text must have, from `response_format` and the fields of other servers. Unknown formats are refused: a client
/// could not see that its format was ignored.
pub(crate) fn format(members: &mut Members<'_>, errors: &mut Errors) -> Option<Format> {
    let mut requested = None;
    if let Some(mut format) = members.object("response_format", errors) {
        requested = response_format(&mut format, errors);
    }
    if let Some(node) = members.take("guided_json") {
        requested = Some(Format::JsonSchema(schema(node)));
    }
    if let Some(regex) = members.text("guided_regex", errors) {
        requested = Some(Format::Regex(regex));
    }
    for name in ["grammar", "guided_grammar", "guided_choice", "json_schema", "structured_outputs"] {
        if members.take(name).is_some() {
            let what = "is not known here; use `response_format`, `guided_json` or `guided_regex`";
            errors.push_at(name, FieldReason::Unknown, what);
        }
    }
    check_format(requested.as_ref(), errors);
    requested
}

/// Records an error if a format is too large.
pub(crate) fn check_format(format: Option<&Format>, errors: &mut Errors) {
    let bytes = match format {
        Some(Format::JsonSchema(text) | Format::Grammar(text) | Format::Regex(text)) => text.len(),
        Some(Format::Json) | None => 0,
    };
    if bytes > FORMAT_BYTES_MAX {
        let (bounds, what) = ((0, FORMAT_BYTES_MAX as i64), "have a length in bytes of");
        errors.push(FieldError::bounded("response_format", FieldReason::TooLong, what, bounds, bytes as i64));
    }
}

/// Reads `{"type": …}`, in the forms of OpenAI and of TGI.
pub(crate) fn response_format(format: &mut Members<'_>, errors: &mut Errors) -> Option<Format> {
    let kind = format.required_text_bytes("type", 64, errors)?;
    match kind.as_str() {
        "text" => None,
        "json_object" | "json" => {
            Some(format.take("value").map_or(Format::Json, |node| Format::JsonSchema(schema(node))))
        }
        "json_schema" => {
            // In the responses API, the schema is next to the type; in the others, it is one level deeper.
            let schema_here = format.take("schema");
            let node = schema_here.or_else(|| {
                let mut inner = format.object("json_schema", errors)?;
                inner.take("schema")
            });
            match node {
                Some(node) => Some(Format::JsonSchema(schema(node))),
                None => {
                    let path = format.path("json_schema.schema");
                    errors.push_at(&path, FieldReason::Missing, "is required");
                    None
                }
            }
        }
        "regex" => {
            let name = if format.has("value") { "value" } else { "pattern" };
            format.required_text_bytes(name, FORMAT_BYTES_MAX, errors).map(Format::Regex)
        }
        "grammar" => format.required_text_bytes("grammar", FORMAT_BYTES_MAX, errors).map(Format::Grammar),
        _ => {
            let path = format.path("type");
            let what = "must be one of text, json_object, json_schema, regex, grammar";
            errors.push_at(&path, FieldReason::NotAllowed, what);
            None
        }
    }
}

/// A node as JSON text.
pub(crate) fn json(node: &Node<'_>) -> String {
    let mut text = String::new();
    node.write(&mut text);
    text
}

/// A schema as JSON text; some clients send it as a string.
fn schema(node: Node<'_>) -> String {
    match node {
        Node::Text(text) => text.into_owned(),
        other => json(&other),
    }
}
