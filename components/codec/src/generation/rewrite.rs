//! The request to a language model for an abstractive summary, and its result.

use weir_core::inference::rewrite::RewriteRefusal;

use super::{
    event::Finish,
    request::{GenerateRequest, Prompt, Sampling},
};

const SYSTEM: &str =
    "You shorten texts. You use only what the text says: its words, names and numbers. You add nothing.";
/// The least and the greatest bound of the tokens of a rewritten text.
const TOKENS: (u32, u32) = (48, 384);
/// Bytes of the sentences for each token of the rewritten text, which may be about as long as they are.
const BYTES_PER_TOKEN: usize = 3;

/// The request to rewrite the sentences of a summary, at temperature 0.
pub fn request(sentences: &str) -> GenerateRequest {
    let tokens_max = u32::try_from(sentences.len() / BYTES_PER_TOKEN).unwrap_or(TOKENS.1);
    let text = format!("Write this again in fewer words, as one paragraph:\n\n{sentences}");
    GenerateRequest {
        sampling: Sampling { temperature: Some(0.0), ..Sampling::default() },
        tokens_max: Some(tokens_max.clamp(TOKENS.0, TOKENS.1)),
        ..GenerateRequest::new(Prompt::chat(Some(SYSTEM), &text))
    }
}

/// The rewritten text of a generation.
///
/// # Errors
///
/// The generation did not end by itself.
pub fn rewriting(text: &str, finish: Finish) -> Result<String, RewriteRefusal> {
    match finish {
        Finish::Stop => Ok(text.trim().to_owned()),
        Finish::Length => Err(RewriteRefusal::CutOff),
        Finish::ToolCalls | Finish::Filtered => Err(RewriteRefusal::Empty),
    }
}
