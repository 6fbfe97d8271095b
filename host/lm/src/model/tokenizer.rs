//! The vocabulary and rules of the tokenizer, from the metadata. Another component splits text with them.

use std::collections::BTreeMap;

use super::error::LoadError;
use crate::gguf::Value;

/// How a tokenizer splits text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenizerKind {
    /// `gpt2`: byte-level BPE with merges.
    Bpe,
    /// `llama`: SentencePiece with scores.
    SentencePiece,
}

impl TokenizerKind {
    /// The name in files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bpe => "gpt2",
            Self::SentencePiece => "llama",
        }
    }
}

/// The tokenizer of a model.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    /// The algorithm.
    pub kind: TokenizerKind,
    /// `tokenizer.ggml.pre`: the rule that splits text before BPE; `default` if the file has none.
    pub pre: String,
    /// The tokens in the order of their ids.
    pub tokens: Vec<String>,
    /// The score of each token, for SentencePiece; else empty.
    pub scores: Vec<f32>,
    /// The kind of each token: 1 normal, 2 unknown, 3 control, 4 user-defined, 5 unused, 6 byte.
    pub kinds: Vec<u8>,
    /// Pairs in the order of their rank, each as two tokens with a space between them, for BPE; else empty.
    pub merges: Vec<String>,
    /// The token that begins a sequence, if the file has one.
    pub beginning_of_sequence: Option<u32>,
    /// Whether every prompt begins with it.
    pub adds_beginning: bool,
    /// Whether a space is put before a text, for SentencePiece.
    pub adds_space: bool,
    /// The token that ends a sequence, if the file has one.
    pub end_of_sequence: Option<u32>,
    /// Every token that ends a generation, ascending.
    pub end_tokens: Vec<u32>,
}

/// The kind of a control token.
const CONTROL: u8 = 3;
/// The most tokens of a vocabulary.
const TOKENS_MAX: usize = 1 << 20;
/// Control tokens that end a generation in every model that has them, even if its metadata does not list them.
const END_NAMES: [&str; 8] =
    ["<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|endoftext|>", "<|end_of_text|>", "<|end|>", "<end_of_turn>", "</s>"];
/// Rules of BPE whose models need the beginning token even if their metadata does not set it.
const BEGINNING_RULES: [&str; 3] = ["llama3", "llama-v3", "llama-bpe"];

impl Tokenizer {
    pub(super) fn read(metadata: &BTreeMap<String, Value>) -> Result<Self, LoadError> {
        let text = |key: &str| metadata.get(key).and_then(Value::as_text);
        let kind = match text("tokenizer.ggml.model") {
            Some("gpt2") => TokenizerKind::Bpe,
            Some("llama") => TokenizerKind::SentencePiece,
            other => {
                let problem = format!("is {}; gpt2 and llama are supported", other.unwrap_or("missing"));
                return Err(LoadError::metadata("tokenizer.ggml.model", problem));
            }
        };
        let tokens = match metadata.get("tokenizer.ggml.tokens") {
            Some(Value::Texts(tokens)) if (1..=TOKENS_MAX).contains(&tokens.len()) => tokens.clone(),
            _ => {
                let problem = format!("is not an array of 1 to {TOKENS_MAX} texts");
                return Err(LoadError::metadata("tokenizer.ggml.tokens", problem));
            }
        };
        let scores = match metadata.get("tokenizer.ggml.scores") {
            Some(Value::Floats(scores)) if scores.len() == tokens.len() => scores.clone(),
            None if kind == TokenizerKind::Bpe => Vec::new(),
            _ => return Err(LoadError::metadata("tokenizer.ggml.scores", "does not have a number for each token")),
        };
        let merges = match metadata.get("tokenizer.ggml.merges") {
            Some(Value::Texts(merges)) => merges.clone(),
            None if kind == TokenizerKind::SentencePiece => Vec::new(),
            _ => return Err(LoadError::metadata("tokenizer.ggml.merges", "is not an array of texts")),
        };
        // The first character may be a space itself.
        let is_pair = |merge: &String| merge.char_indices().skip(1).any(|(_, character)| character == ' ');
        if !merges.iter().all(is_pair) {
            return Err(LoadError::metadata("tokenizer.ggml.merges", "has an entry that is not a pair"));
        }
        let kinds = kinds(metadata, tokens.len())?;
        let id = |key: &str| token_id(metadata, key, tokens.len());
        let beginning_of_sequence = id("tokenizer.ggml.bos_token_id")?;
        let end_of_sequence = id("tokenizer.ggml.eos_token_id")?;
        let mut end_tokens: Vec<u32> = end_of_sequence.into_iter().collect();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            end_tokens.extend(id(key)?);
        }
        let named = tokens.iter().zip(&kinds).enumerate();
        let named = named.filter(|(_, (token, kind))| **kind == CONTROL && END_NAMES.contains(&token.as_str()));
        end_tokens.extend(named.map(|(id, _)| id as u32));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        let pre = text("tokenizer.ggml.pre").unwrap_or("default").to_owned();
        let adds_by_default = kind == TokenizerKind::SentencePiece || BEGINNING_RULES.contains(&pre.as_str());
        let adds = metadata.get("tokenizer.ggml.add_bos_token").and_then(Value::as_bool);
        Ok(Self {
            kind,
            pre,
            tokens,
            scores: if kind == TokenizerKind::SentencePiece { scores } else { Vec::new() },
            kinds,
            merges: if kind == TokenizerKind::Bpe { merges } else { Vec::new() },
            beginning_of_sequence,
            adds_beginning: adds.unwrap_or(adds_by_default) && beginning_of_sequence.is_some(),
            adds_space: metadata.get("tokenizer.ggml.add_space_prefix").and_then(Value::as_bool).unwrap_or(true),
            end_of_sequence,
            end_tokens,
        })
    }

    /// The token that begins every prompt, if there is one.
    pub fn begin_token(&self) -> Option<u32> {
        self.beginning_of_sequence.filter(|_| self.adds_beginning)
    }
}

fn kinds(metadata: &BTreeMap<String, Value>, tokens: usize) -> Result<Vec<u8>, LoadError> {
    const KEY: &str = "tokenizer.ggml.token_type";
    match metadata.get(KEY) {
        None => Ok(vec![1; tokens]),
        Some(Value::Integers(kinds)) if kinds.len() == tokens && kinds.iter().all(|kind| (1..=6).contains(kind)) => {
            Ok(kinds.iter().map(|kind| *kind as u8).collect())
        }
        Some(_) => Err(LoadError::metadata(KEY, "does not have an integer from 1 to 6 for each token")),
    }
}

fn token_id(metadata: &BTreeMap<String, Value>, key: &str, tokens: usize) -> Result<Option<u32>, LoadError> {
    let Some(value) = metadata.get(key) else { return Ok(None) };
    match value.as_u64() {
        Some(id) if id < tokens as u64 => Ok(Some(id as u32)),
        // Some converters write this for "none".
        Some(0xffff_ffff) => Ok(None),
        _ => Err(LoadError::metadata(key, format!("is not a token of the {tokens} that there are"))),
    }
}
