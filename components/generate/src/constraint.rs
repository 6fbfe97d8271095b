//! Constraints on the form of a text, as masks of allowed tokens, by llguidance. An unsupported form is an error: no
//! text is generated without the constraint that its request has.

use std::sync::Arc;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, InferenceCapabilities, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use serde_json::{Value as Json, json};

use crate::tokenizer::Tokenizer;
use crate::types::Format;

/// Maximum size of a schema, grammar or regular expression, in bytes.
pub const FORM_BYTES_MAX: usize = 64 << 10;

/// Compiles the constraints for the vocabulary of a model.
pub struct Constraints {
    factory: ParserFactory,
    end_tokens: Vec<u32>,
}

/// The state of one text under its constraint.
pub struct Constraint(Matcher);

/// The tokens that may come next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NextTokens {
    /// These, one bit for each token; the lowest bit of the first byte is token 0.
    Allowed(Vec<u8>),
    /// None: the text is complete.
    End,
}

impl Constraints {
    /// Prepares constraints for a vocabulary.
    ///
    /// # Errors
    ///
    /// There is no end token, or the library refuses the vocabulary.
    pub fn new(tokenizer: &Tokenizer, end_tokens: &[u32]) -> Result<Self, String> {
        let count = u32::try_from(tokenizer.len()).map_err(|error| error.to_string())?;
        let end_tokens: Vec<u32> = end_tokens.iter().copied().filter(|token| *token < count).collect();
        let Some(first) = end_tokens.first() else { return Err("the model has no token that ends a text".into()) };
        let word = |token: u32| {
            let bytes = tokenizer.bytes(token);
            match tokenizer.is_control(token) {
                true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
                false => bytes.to_vec(),
            }
        };
        let words: Vec<Vec<u8>> = (0..count).map(word).collect();
        let trie = TokTrie::from(&TokRxInfo::new(count, *first), &words).with_eos_tokens(&end_tokens);
        let environment: TokEnv = Arc::new(ApproximateTokEnv::new(trie));
        let slices = llguidance::earley::SlicedBiasComputer::general_slices();
        let mut factory = ParserFactory::new(&environment, InferenceCapabilities::default(), &slices)
            .map_err(|error| format!("{error:#}"))?;
        factory.quiet();
        // The state of the parser says nothing to a client, and takes seconds to write.
        factory.limits_mut().verbose_errors = false;
        Ok(Self { factory, end_tokens })
    }

    /// The state of an empty text under a constraint.
    ///
    /// # Errors
    ///
    /// The form is too large, invalid or not supported; the text names the reason.
    pub fn begin(&self, form: &Format) -> Result<Constraint, String> {
        let (kind, text) = match form {
            Format::Json => ("format", ""),
            Format::JsonSchema(text) => ("schema", text.as_str()),
            Format::Grammar(text) => ("grammar", text.as_str()),
            Format::Regex(text) => ("regular expression", text.as_str()),
        };
        if text.len() > FORM_BYTES_MAX {
            return Err(format!("the {kind} has {} bytes, and may have {FORM_BYTES_MAX}", text.len()));
        }
        let grammar = match form {
            Format::Json => TopLevelGrammar::from_json_schema(compact(json!({"type": "object"}))),
            Format::JsonSchema(text) => {
                let schema: Json =
                    serde_json::from_str(text).map_err(|error| format!("the schema is not JSON: {error}"))?;
                TopLevelGrammar::from_json_schema(compact(schema))
            }
            Format::Grammar(text) => TopLevelGrammar::from_lark(text.clone()),
            Format::Regex(text) => TopLevelGrammar::from_regex(text),
        };
        self.compile(grammar).map_err(|error| format!("the {kind} cannot be used: {error}"))
    }

    /// The state of an empty text under a Lark grammar that this component wrote.
    pub(crate) fn begin_lark(&self, grammar: String) -> Result<Constraint, String> {
        self.compile(TopLevelGrammar::from_lark(grammar)).map_err(|error| without_lines(&error).to_owned())
    }

    fn compile(&self, grammar: TopLevelGrammar) -> Result<Constraint, String> {
        let mut matcher = Matcher::new(self.factory.create_parser(grammar));
        if let Some(error) = matcher.get_error() {
            return Err(reason(&error));
        }
        // A form that matches no text fails here.
        matcher.compute_mask().map_err(|error| reason(&format!("{error:#}")))?;
        Ok(Constraint(matcher))
    }

    /// Whether a token ends a text.
    pub fn is_end(&self, token: u32) -> bool {
        self.end_tokens.contains(&token)
    }
}

/// The reason of an error of llguidance, without the marks that follow it, and in words where it is the name of a value in Rust.
fn reason(error: &str) -> String {
    let error = error.split("\n<").next().unwrap_or_default().trim();
    match error {
        "NoExtension" | "NoExtensionBias" => "no text has this form",
        "ParserTooComplex" | "LexerTooComplex" | "MaxTokensParser" => "it takes too much computation",
        error => error,
    }
    .to_owned()
}

/// The reason of an error in a grammar that the client has not written, without its lines and the position in them.
fn without_lines(error: &str) -> &str {
    let first = error.lines().next().unwrap_or_default();
    match first.strip_prefix("at ").and_then(|rest| rest.split_once("): ")) {
        Some((_position, reason)) => reason,
        None => first,
    }
}

/// A schema whose texts have white space only after `,` and `:`, since small models may write white space without end.
pub(crate) fn compact(schema: Json) -> Json {
    let form = json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
    match schema {
        Json::Object(mut fields) => {
            fields.entry("x-guidance").or_insert(form);
            Json::Object(fields)
        }
        other => json!({"allOf": [other], "x-guidance": form}),
    }
}

impl Constraint {
    /// A copy of the state, for another text with the same beginning.
    pub fn fork(&self) -> Self {
        Self(self.0.deep_clone())
    }

    /// The tokens that may come next.
    ///
    /// # Errors
    ///
    /// The constraint exceeds its computation limits.
    pub fn allowed(&mut self) -> Result<NextTokens, String> {
        if self.0.is_stopped() {
            return Ok(NextTokens::End);
        }
        let mask = self.0.compute_mask().map_err(|error| reason(&format!("{error:#}")))?;
        if mask.is_zero() {
            return Ok(NextTokens::End);
        }
        let bytes = mask.as_slice().iter().flat_map(|word| word.to_le_bytes());
        Ok(NextTokens::Allowed(bytes.take(mask.len().div_ceil(8)).collect()))
    }

    /// Adds a token. Returns true if the text is complete and no token may follow.
    ///
    /// # Errors
    ///
    /// The token was not allowed.
    pub fn push(&mut self, token: u32) -> Result<bool, String> {
        self.0.consume_token(token).map_err(|error| reason(&format!("{error:#}")))?;
        Ok(self.0.is_stopped())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn error_in_the_grammar_of_a_tool_has_no_lines_of_it() {
        let error =
            "at 3(7): failed to compile JSON schema: circular references: #\n   1 | start: call\n   2 | call: x\n";
        assert_eq!(without_lines(error), "failed to compile JSON schema: circular references: #");
        assert_eq!(without_lines("no text has this form"), "no text has this form");
    }
}
