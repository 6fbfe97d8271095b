//! The semantic block of a text, in the output of `/v1/annotate` and in final segments.

use std::sync::Arc;

use serde::Serialize;
use weir_core::transcripts::{Annotation, annotate::action_text};

use super::input::Refusal;
use crate::{
    http::lines::Line,
    inference::request::{LINE_BYTES_MAX, explain},
    json::tree::Node,
};

/// Maximum length of a text, in bytes.
pub const TEXT_BYTES_MAX: usize = 65_536;
/// Maximum length of a speaker's name, in bytes.
pub const SPEAKER_BYTES_MAX: usize = 256;
/// Maximum number of JSON values on a line.
const VALUES_MAX: usize = 64;

/// The annotations of a text.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Semantic<'a> {
    /// The keywords, sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keywords: Option<Names<'a>>,
    /// The risks, sorted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub risk_tags: Option<Names<'a>>,
    /// The text itself, if it announces an action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub actions: Option<Vec<Action<'a>>>,
    /// The same as `risk_tags`, under its older name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<Names<'a>>,
    /// The keywords with their risks; absent when there are none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub matches: Vec<Match<'a>>,
    /// The intent of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<&'static str>,
}

/// Names that are shared with the annotation rules.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Names<'a>(&'a [Arc<str>]);

impl Serialize for Names<'_> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|name| &**name))
    }
}

#[cfg(feature = "schema")]
impl schemars::JsonSchema for Names<'_> {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Names".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        Vec::<String>::json_schema(generator)
    }
}

/// A text that announces an action.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Action<'a> {
    /// The text without white space at its ends.
    pub text: &'a str,
    /// The speaker.
    pub speaker_id: Option<&'a str>,
    /// The segment.
    pub segment_ids: [u64; 1],
    /// The pattern that matched.
    pub pattern: &'a str,
}

/// A keyword and its risk.
#[derive(Debug, PartialEq, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct Match<'a> {
    /// The risk.
    pub risk: &'a str,
    /// The keyword.
    pub keyword: &'a str,
    /// The segment.
    pub segment_id: u64,
}

/// The parts of a semantic block that are included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SemanticParts {
    /// Keywords, risks and actions.
    pub keywords: bool,
    /// The intent.
    pub intent: bool,
}

impl SemanticParts {
    /// All parts.
    pub const ALL: Self = Self { keywords: true, intent: true };
}

impl<'a> Semantic<'a> {
    /// The block of a text; `None` when no part is included.
    pub fn new(
        annotation: &'a Annotation,
        parts: SemanticParts,
        segment_id: u64,
        text: &'a str,
        speaker_id: Option<&'a str>,
    ) -> Option<Self> {
        let SemanticParts { keywords, intent } = parts;
        if !keywords && !intent {
            return None;
        }
        let action =
            |pattern: &'a Arc<str>| Action { text: action_text(text), speaker_id, segment_ids: [segment_id], pattern };
        let tags = keywords.then_some(Names(&annotation.risk_tags));
        let matches = annotation.matches.iter().filter(|_| keywords);
        Some(Self {
            keywords: keywords.then_some(Names(&annotation.keywords)),
            risk_tags: tags,
            actions: keywords.then(|| annotation.action.iter().map(action).collect()),
            tags,
            matches: matches.map(|m| Match { risk: &m.risk, keyword: &m.keyword, segment_id }).collect(),
            intent: annotation.intent.filter(|_| intent).map(|intent| intent.name()),
        })
    }
}

/// A text to annotate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TextInput {
    /// The text.
    pub text: String,
    /// The speaker.
    pub speaker_id: Option<String>,
    /// The id of its segment; when absent, the index of the text is used.
    pub segment_id: Option<u64>,
}

/// Reads a line of `/v1/annotate`: a string, or an object with `text` and optionally `speaker_id` and `segment_id`. With `plain` the line
/// is the text itself.
///
/// # Errors
///
/// [`Refusal`]: the line is too long, not UTF-8 or JSON, or has an invalid field.
pub fn read_text(line: &Line<'_>, plain: bool) -> Result<TextInput, Refusal> {
    let too_long = || Refusal::new("line_too_long", None, format!("the line has more than {LINE_BYTES_MAX} bytes"));
    let content = line.content.ok_or_else(too_long)?;
    let input = if plain {
        let text = std::str::from_utf8(content).map_err(|error| {
            Refusal::new("not_utf8", None, format!("it is not UTF-8: byte {} does not fit", error.valid_up_to()))
        })?;
        TextInput { text: text.to_owned(), speaker_id: None, segment_id: None }
    } else {
        let node = Node::read(content, VALUES_MAX).map_err(|error| {
            let (code, message) = explain(&error);
            Refusal::new(code, None, message)
        })?;
        text_from_node(node)?
    };
    check_lengths(input)
}

/// Checks the lengths of a text and its speaker.
pub(crate) fn check_lengths(input: TextInput) -> Result<TextInput, Refusal> {
    let text = [("text", input.text.len(), TEXT_BYTES_MAX)];
    let speaker = input.speaker_id.as_ref().map(|name| ("speaker_id", name.len(), SPEAKER_BYTES_MAX));
    for (field, bytes, bytes_max) in text.into_iter().chain(speaker) {
        if bytes > bytes_max {
            let code = if field == "text" { "text_too_long" } else { "speaker_too_long" };
            let message = format!("`{field}` must have at most {bytes_max} bytes, and has {bytes}");
            return Err(Refusal::new(code, Some(field), message));
        }
    }
    Ok(input)
}

/// Reads a text from a JSON value.
pub(crate) fn text_from_node(node: Node<'_>) -> Result<TextInput, Refusal> {
    let wrong_type = |field, expected: &str, node: &Node<'_>| {
        let message = format!("`{field}` must be {expected}, and is {}", crate::json::with_article(node.name()));
        Refusal::new("wrong_type", Some(field), message)
    };
    let members = match node {
        Node::Text(text) => return Ok(TextInput { text: text.into_owned(), speaker_id: None, segment_id: None }),
        Node::Object(members) => members,
        node => {
            let message =
                format!("a text is a string or an object, and not {}", crate::json::with_article(node.name()));
            return Err(Refusal::new("wrong_type", None, message));
        }
    };
    let (mut text, mut speaker_id, mut segment_id) = (None, None, None);
    for (name, node) in members {
        match (&*name, node) {
            ("text", Node::Text(value)) => text = Some(value.into_owned()),
            ("text", node) => return Err(wrong_type("text", "a string", &node)),
            ("speaker_id" | "segment_id", Node::Null) => {}
            ("speaker_id", Node::Text(value)) => speaker_id = Some(value.into_owned()),
            ("speaker_id", node) => return Err(wrong_type("speaker_id", "a string or null", &node)),
            ("segment_id", Node::Integer(value)) if value >= 0 => segment_id = Some(value as u64),
            ("segment_id", node) => return Err(wrong_type("segment_id", "a whole number of at least 0", &node)),
            _ => {
                let name: String = name.chars().filter(|c| !c.is_control()).take(64).collect();
                let message = format!("there is no field `{name}`; a text has text, speaker_id and segment_id");
                return Err(Refusal { field: Some(name.into()), ..Refusal::new("unknown_field", None, message) });
            }
        }
    }
    let missing = || Refusal::new("missing_field", Some("text"), "`text` is required");
    Ok(TextInput { text: text.ok_or_else(missing)?, speaker_id, segment_id })
}

/// A line of the output: the block of a text, or an error.
#[derive(Debug, Serialize)]
#[cfg_attr(feature = "schema", derive(schemars::JsonSchema))]
pub struct SemanticLine<'a> {
    /// The index of the line, from 0; invalid lines are counted.
    pub index: u64,
    /// The block of the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub semantic: Option<Semantic<'a>>,
    /// Why the text was not annotated.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a Refusal>,
    /// The invalid line of the body, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use weir_core::transcripts::{Annotator, annotate::AnnotateConfig};

    fn check(text: &str, parts: SemanticParts, want: Expect) {
        let annotation = Annotator::new(&AnnotateConfig::default()).unwrap().annotate(text, &mut Default::default());
        let block = Semantic::new(&annotation, parts, 3, text, Some("a"));
        want.assert_eq(&serde_json::to_string(&block).unwrap());
    }

    #[test]
    fn block_has_the_included_parts() {
        check(
            " I'll cancel ",
            SemanticParts::ALL,
            expect![[
                r#"{"keywords":["cancel"],"risk_tags":["churn_risk"],"actions":[{"text":"I'll cancel","speaker_id":"a","segment_ids":[3],"pattern":"\\b(i['’]?ll|i will)\\s+"}],"tags":["churn_risk"],"matches":[{"risk":"churn_risk","keyword":"cancel","segment_id":3}],"intent":"commitment"}"#
            ]],
        );
        check(
            "the sky",
            SemanticParts { intent: false, ..SemanticParts::ALL },
            expect![[r#"{"keywords":[],"risk_tags":[],"actions":[],"tags":[]}"#]],
        );
        check("price?", SemanticParts { keywords: false, ..SemanticParts::ALL }, expect![[r#"{"intent":"question"}"#]]);
        check("price?", SemanticParts { keywords: false, intent: false }, expect!["null"]);
    }

    #[test]
    fn text_is_read_or_refused_with_the_field() {
        let read = |content: &str, plain| read_text(&Line { number: 1, content: Some(content.as_bytes()) }, plain);
        let text = |text: &str| TextInput { text: text.to_owned(), speaker_id: None, segment_id: None };
        assert_eq!(read("\"a\"", false), Ok(text("a")));
        assert_eq!(read("\"a\"", true), Ok(text("\"a\"")));
        let full = TextInput { speaker_id: Some("x".to_owned()), segment_id: Some(4), ..text("a") };
        assert_eq!(read(r#"{"text":"a","speaker_id":"x","segment_id":4}"#, false), Ok(full));
        for (content, code, field) in [
            ("{}", "missing_field", Some("text")),
            ("[1]", "wrong_type", None),
            (r#"{"text":1}"#, "wrong_type", Some("text")),
            (r#"{"text":"a","segment_id":-1}"#, "wrong_type", Some("segment_id")),
            (r#"{"text":"a","id":1}"#, "unknown_field", Some("id")),
            ("plain", "malformed_json", None),
        ] {
            let refusal = read(content, false).unwrap_err();
            assert_eq!((&*refusal.code, refusal.field.as_deref()), (code, field), "{content}");
        }
        // Control characters of a name would reach a terminal.
        let refusal = read(r#"{"text":"a","i\u001b[31m\nd":1}"#, false).unwrap_err();
        assert_eq!(refusal.field.as_deref(), Some("i[31md"));
        assert_eq!(refusal.message, "there is no field `i[31md`; a text has text, speaker_id and segment_id");
        assert_eq!(read(&"x".repeat(TEXT_BYTES_MAX + 1), true).unwrap_err().code, "text_too_long");
        let refusal = read_text(&Line { number: 1, content: Some(b"\xff") }, true).unwrap_err();
        assert_eq!(refusal.code, "not_utf8");
    }
}
