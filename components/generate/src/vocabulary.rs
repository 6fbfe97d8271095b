//! What is supported of vocabularies, and the names of their tokens.

use thiserror::Error;

/// Why a vocabulary cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokenizerError {
    /// The kind is not supported.
    #[error("tokenizer.ggml.model `{0}` is not supported; gpt2 and llama are")]
    Kind(String),
    /// The rule that splits text is not supported.
    #[error("tokenizer.ggml.pre `{0}` is not supported; {list} are", list = PRE_TOKENIZERS.join(", "))]
    PreTokenizer(String),
    /// A merge is not two tokens of the vocabulary with a space between them.
    #[error("tokenizer.ggml.merges has `{0}`, which is not two tokens of the vocabulary")]
    Merge(String),
    /// Lists differ in length.
    #[error("tokenizer.ggml has {tokens} tokens and {others} {what}")]
    Lengths {
        /// The number of tokens.
        tokens: usize,
        /// The length of the other list.
        others: usize,
        /// The name of the other list.
        what: &'static str,
    },
    /// The library refused the vocabulary.
    #[error("the tokenizer cannot be built: {0}")]
    Invalid(String),
    /// The text cannot be tokenized.
    #[error("the text cannot be tokenized: {0}")]
    Text(String),
}

/// The rules that split text before BPE, by their names in GGUF files.
pub const PRE_TOKENIZERS: [&str; 5] = ["default", "gpt-2", "llama-bpe", "qwen2", "smollm"];

/// The byte of a token such as `<0x0A>`.
pub(crate) fn byte_token(name: &str) -> Option<u8> {
    u8::from_str_radix(name.strip_prefix("<0x")?.strip_suffix('>')?, 16).ok()
}
