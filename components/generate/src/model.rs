//! A language model: its tokenizer, its template and its constraints.

use std::cell::OnceCell;

use serde_json::json;

use crate::bindings::weir::stream::lm::{ModelInfo, Tokenizer as Vocabulary};
use crate::constraint::Constraints;
use crate::settings::Settings;
use crate::template::Template;
use crate::tokenizer::Tokenizer;
use crate::tools::ToolFormat;

/// A model that is ready to tokenize and to render chats.
pub struct LanguageModel {
    /// The description by the host.
    pub info: ModelInfo,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, or why that cannot be used; none if the file has none.
    pub template: Option<Result<Template, String>>,
    /// The format of its tool calls.
    pub tool_format: ToolFormat,
    constraints: OnceCell<Result<Constraints, String>>,
    /// The leading tokens of prompts with each configured prefix.
    prefixes: Vec<Vec<u32>>,
}

/// Maximum size of a rendered prefix, in bytes.
const PREFIX_BYTES_MAX: usize = 1 << 20;

impl LanguageModel {
    /// Builds a model from its description, vocabulary and template.
    ///
    /// # Errors
    ///
    /// The vocabulary cannot be used.
    pub fn new(
        info: ModelInfo,
        vocabulary: Vocabulary,
        template: Option<String>,
        settings: &Settings,
    ) -> Result<Self, String> {
        let name = |token: Option<u32>| {
            let name = token.and_then(|token| vocabulary.tokens.get(token as usize));
            name.cloned().unwrap_or_default()
        };
        let (begin, end) = (name(info.begin_token), name(info.end_tokens.first().copied()));
        let tool_format = ToolFormat::of(template.as_deref().unwrap_or_default());
        let template = template.map(|source| Template::new(&source, &begin, &end).map_err(|error| error.to_string()));
        let tokenizer = Tokenizer::new(vocabulary, info.begin_token).map_err(|error| error.to_string())?;
        let mut model =
            Self { info, tokenizer, template, tool_format, constraints: OnceCell::new(), prefixes: Vec::new() };
        model.prefixes = settings.prefixes.iter().filter_map(|prefix| model.prefix(prefix)).collect();
        Ok(model)
    }

    /// The leading tokens of every chat with this system message: those that two chats with different user messages
    /// have in common.
    fn prefix(&self, system: &str) -> Option<Vec<u32>> {
        let template = self.template.as_ref()?.as_ref().ok()?;
        let system = crate::escape::escape(system, self.tokenizer.control_names().collect::<Vec<_>>().into_iter());
        let tokens = |user: &str| {
            let chat = json!([{"role": "system", "content": system}, {"role": "user", "content": user}]);
            let text = template.render(&chat, None, PREFIX_BYTES_MAX).ok()?;
            self.tokenizer.encode(&text, true).ok()
        };
        let (one, other) = (tokens("a")?, tokens("1")?);
        let common = one.iter().zip(&other).take_while(|(one, other)| one == other).count();
        Some(one[..common].to_vec())
    }

    /// The number of leading tokens of a prompt that are part of a configured prefix.
    pub fn shared_tokens(&self, prompt: &[u32]) -> usize {
        let common = |prefix: &Vec<u32>| prefix.iter().zip(prompt).take_while(|(one, other)| one == other).count();
        self.prefixes.iter().map(common).max().unwrap_or(0)
    }

    /// Its constraints, prepared on first use.
    ///
    /// # Errors
    ///
    /// The vocabulary cannot be constrained.
    pub fn constraints(&self) -> Result<&Constraints, String> {
        let make = || Constraints::new(&self.tokenizer, &self.info.end_tokens);
        self.constraints.get_or_init(make).as_ref().map_err(Clone::clone)
    }

    /// Whether a token ends a text.
    pub fn is_end(&self, token: u32) -> bool {
        self.info.end_tokens.contains(&token)
    }
}
