//! The stream of `/v1/annotate`, with an output for each line. It does no IO: a driver passes in lines and annotations as they arrive and
//! polls `poll_output`.

use weir_core::transcripts::Annotation;

use super::{
    input::Refusal,
    semantic::{Semantic, SemanticLine, SemanticParts, TextInput, read_text},
};
use crate::{
    http::{framing::Framing, lines::Line},
    inference::output::ItemError,
    json::{
        JsonError,
        field::{FieldError, FieldReason, RequestError},
        tree::Node,
    },
};

/// Maximum number of texts in the JSON body of `/v1/annotate`.
pub const TEXTS_MAX: usize = 1024;

impl From<ItemError> for Refusal {
    /// Converts the error that ends a stream.
    fn from(error: ItemError) -> Self {
        Self::new(error.code, None, error.message)
    }
}

/// The output buffer of a stream.
#[derive(Debug)]
struct LineWriter {
    framing: Framing,
    out: Vec<u8>,
    /// Events written, for server-sent events.
    events: u64,
    done: bool,
}

impl LineWriter {
    fn new(framing: Framing) -> Self {
        Self { framing, out: Vec::new(), events: 0, done: false }
    }

    fn push(&mut self, name: &str, write: impl FnOnce(&mut Vec<u8>)) {
        self.events += 1;
        self.framing.begin(&mut self.out, self.events, name);
        write(&mut self.out);
        self.framing.end(&mut self.out);
    }

    fn take(&mut self) -> Option<Vec<u8>> {
        (!self.out.is_empty()).then(|| std::mem::take(&mut self.out))
    }
}

/// A line of `/v1/annotate`: its index, and the text or its error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NumberedText {
    /// The index, from 0; invalid lines are counted.
    pub index: u64,
    /// The line of the body, from 1.
    pub line: u64,
    /// The text, or why the line is invalid.
    pub text: Result<TextInput, Refusal>,
}

/// The state of a stream: texts in, semantic blocks out.
#[derive(Debug)]
pub struct AnnotateStream {
    parts: SemanticParts,
    plain: bool,
    writer: LineWriter,
    indexes: u64,
}

impl AnnotateStream {
    /// A stream of blocks. With `plain`, each line is the text itself.
    pub fn new(parts: SemanticParts, plain: bool, framing: Framing) -> Self {
        Self { parts, plain, writer: LineWriter::new(framing), indexes: 0 }
    }

    /// Reads a line and assigns the next index to it.
    pub fn handle_line(&mut self, line: &Line<'_>) -> NumberedText {
        self.indexes += 1;
        NumberedText { index: self.indexes - 1, line: line.number, text: read_text(line, self.plain) }
    }

    /// Writes the output of lines. `annotations` has one annotation for each valid text, in the order of the lines.
    pub fn handle_annotations(&mut self, lines: &[NumberedText], annotations: &[Annotation]) {
        let mut annotations = annotations.iter();
        for NumberedText { index, line, text } in lines {
            let mut output = SemanticLine { index: *index, semantic: None, error: None, line: None };
            match text {
                Ok(text) => {
                    let Some(annotation) = annotations.next() else { continue };
                    output.semantic = block(annotation, self.parts, *index, text);
                }
                Err(refusal) => (output.error, output.line) = (Some(refusal), Some(*line)),
            }
            self.write(&output);
        }
    }

    /// The input has ended, with an error if it is incomplete.
    pub fn handle_end(&mut self, error: Option<Refusal>) {
        if let Some(error) = &error {
            let index = self.indexes;
            self.write(&SemanticLine { index, semantic: None, error: Some(error), line: None });
        }
        self.writer.done = true;
    }

    /// The bytes to write now, if any.
    pub fn poll_output(&mut self) -> Option<Vec<u8>> {
        self.writer.take()
    }

    /// Number of bytes that were not polled.
    pub fn output_bytes(&self) -> usize {
        self.writer.out.len()
    }

    /// True when the input has ended and all output was polled.
    pub fn is_done(&self) -> bool {
        self.writer.done && self.writer.out.is_empty()
    }

    fn write(&mut self, line: &SemanticLine<'_>) {
        let name = if line.error.is_some() { "error" } else { "semantic" };
        self.writer.push(name, |out| {
            serde_json::to_writer(out, line).expect("a line serializes, and writing to a vector cannot fail");
        });
    }
}

fn block<'a>(
    annotation: &'a Annotation,
    parts: SemanticParts,
    index: u64,
    text: &'a TextInput,
) -> Option<Semantic<'a>> {
    let segment_id = text.segment_id.unwrap_or(index);
    Semantic::new(annotation, parts, segment_id, &text.text, text.speaker_id.as_deref())
}

/// Reads the JSON body of `/v1/annotate`: `{"inputs": …}`, a text or a list of texts.
///
/// # Errors
///
/// The body is not a JSON object, or has invalid fields; every invalid field is listed.
pub fn read_texts(body: &[u8]) -> Result<Vec<TextInput>, RequestError> {
    let members = match Node::read(body, 8 * TEXTS_MAX)? {
        Node::Object(members) => members,
        other => return Err(JsonError::NotAnObject { got: other.name() }.into()),
    };
    let mut errors = Vec::new();
    let mut texts = None;
    for (key, node) in members {
        if key != "inputs" {
            errors.push(crate::json::field::unknown(key.into_owned(), &["inputs"]));
            continue;
        }
        texts = Some(match node {
            Node::Array(nodes) if nodes.len() > TEXTS_MAX => {
                let bounds = (0, TEXTS_MAX as i64);
                let length = nodes.len() as i64;
                errors.push(FieldError::bounded("inputs", FieldReason::TooLong, "have a length of", bounds, length));
                Vec::new()
            }
            Node::Array(nodes) => {
                let numbered = nodes.into_iter().enumerate();
                numbered.filter_map(|(at, node)| text(node, &format!("inputs[{at}]"), &mut errors)).collect()
            }
            node => text(node, "inputs", &mut errors).into_iter().collect(),
        });
    }
    if texts.is_none() {
        errors.push(FieldError::new("inputs", FieldReason::Missing, "`inputs` is required".to_owned()));
    }
    crate::json::field::finish(texts.unwrap_or_default(), errors)
}

fn text(node: Node<'_>, path: &str, errors: &mut Vec<FieldError>) -> Option<TextInput> {
    match super::semantic::text_from_node(node).and_then(super::semantic::check_lengths) {
        Ok(text) => Some(text),
        Err(Refusal { code, field, message }) => {
            let reason = match &*code {
                "missing_field" => FieldReason::Missing,
                "unknown_field" => FieldReason::Unknown,
                "text_too_long" | "speaker_too_long" => FieldReason::TooLong,
                _ => FieldReason::WrongType,
            };
            let (field, message) = match field {
                // The message names the field as the client wrote it.
                Some(field) => {
                    let whole = format!("{path}.{field}");
                    let message = message.replace(&format!("`{field}`"), &format!("`{whole}`"));
                    (whole, message)
                }
                None => (path.to_owned(), message),
            };
            errors.push(FieldError::new(field, reason, message));
            None
        }
    }
}

/// The JSON response of `/v1/annotate`: the blocks in the order of the texts.
pub fn blocks_json(parts: SemanticParts, texts: &[TextInput], annotations: &[Annotation]) -> Vec<u8> {
    #[derive(serde::Serialize)]
    struct BlocksBody<'a> {
        outputs: Vec<Option<Semantic<'a>>>,
    }
    let numbered = (0..).zip(texts.iter().zip(annotations));
    let outputs = numbered.map(|(index, (text, annotation))| block(annotation, parts, index, text)).collect();
    crate::json::to_vec(&BlocksBody { outputs })
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};
    use weir_core::transcripts::{Annotator, annotate::AnnotateConfig};

    fn line(number: u64, content: &str) -> Line<'_> {
        Line { number, content: Some(content.as_bytes()) }
    }

    fn check(out: Option<Vec<u8>>, want: Expect) {
        want.assert_eq(&String::from_utf8(out.unwrap_or_default()).unwrap());
    }

    #[test]
    fn annotations_are_written_in_the_order_of_the_texts() {
        let annotator = Annotator::new(&AnnotateConfig::default()).unwrap();
        let annotate = |text: &TextInput| annotator.annotate(&text.text, &mut Default::default());
        let mut stream = AnnotateStream::new(SemanticParts::ALL, false, Framing::Ndjson);
        let inputs = [(1, "\"the price\""), (2, "[]"), (5, r#"{"text":"I'll go","segment_id":7,"speaker_id":"a"}"#)];
        let inputs = inputs.map(|(number, content)| stream.handle_line(&line(number, content)));
        let annotations: Vec<Annotation> =
            inputs.iter().filter_map(|input| input.text.as_ref().ok()).map(annotate).collect();
        stream.handle_annotations(&inputs, &annotations);
        stream.handle_end(None);
        check(
            stream.poll_output(),
            expect![[r#"
                {"index":0,"semantic":{"keywords":["price"],"risk_tags":["pricing"],"actions":[],"tags":["pricing"],"matches":[{"risk":"pricing","keyword":"price","segment_id":0}],"intent":"general"}}
                {"index":1,"error":{"message":"a text is a string or an object, and not an array","code":"wrong_type"},"line":2}
                {"index":2,"semantic":{"keywords":[],"risk_tags":[],"actions":[{"text":"I'll go","speaker_id":"a","segment_ids":[7],"pattern":"\\b(i['’]?ll|i will)\\s+"}],"tags":[],"intent":"commitment"}}
            "#]],
        );
        assert!(stream.is_done());

        let texts = read_texts(br#"{"inputs":["cheap",{"text":"b"}]}"#).unwrap();
        let annotations: Vec<Annotation> = texts.iter().map(annotate).collect();
        check(
            Some(blocks_json(SemanticParts { keywords: true, intent: false }, &texts, &annotations)),
            expect![[
                r#"{"outputs":[{"keywords":["cheap"],"risk_tags":["pricing"],"actions":[],"tags":["pricing"],"matches":[{"risk":"pricing","keyword":"cheap","segment_id":0}]},{"keywords":[],"risk_tags":[],"actions":[],"tags":[]}]}"#
            ]],
        );
    }

    #[test]
    fn body_errors_name_the_text() {
        let check = |body: &str, want: &str| assert_eq!(read_texts(body.as_bytes()).unwrap_err().to_string(), want);
        check("{}", "`inputs` is required");
        check("[]", "the body is an array; a JSON object was expected");
        check(
            r#"{"inputs":["a",{"text":1},{}],"model":"x"}"#,
            "`inputs[1].text` must be a string, and is an integer; `inputs[2].text` is required; `model` is not known here; there are inputs",
        );
        let many = format!(r#"{{"inputs":[{}""]}}"#, r#""","#.repeat(TEXTS_MAX));
        check(&many, "`inputs` must have a length of 0 to 1024, and is 1025");
        assert_eq!(read_texts(br#"{"inputs":"a"}"#).unwrap().len(), 1);
    }
}
