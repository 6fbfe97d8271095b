//! The tokenizer of a model, from the vocabulary in its file.
//!
//! [`Tokenizer::encode`] recognizes control tokens only in rendered templates, in which users' text is escaped (see
//! [`crate::escape`]).

use std::collections::HashMap;

use tokenizers::models::bpe::BPE;
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};
use unicode_normalization_alignments::UnicodeNormalization as _;

use crate::bindings::weir::stream::lm::Tokenizer as Vocabulary;
use crate::minimum::TokenMinimum;
use crate::sentencepiece::SentencePiece;
use crate::vocabulary::{TokenizerError, byte_token};

/// The kinds of tokens, as in `tokenizer.ggml.token_type`.
mod kind {
    pub(super) const UNKNOWN: u8 = 2;
    pub(super) const CONTROL: u8 = 3;
    pub(super) const USER_DEFINED: u8 = 4;
    pub(super) const BYTE: u8 = 6;
}

/// The character that stands for a space in vocabularies of SentencePiece.
const SPACE: char = '▁';

/// A vocabulary that is ready for use.
pub struct Tokenizer {
    encoder: Encoder,
    /// The bytes of each token, and whether it is a control token.
    tokens: Vec<(Vec<u8>, bool)>,
    by_name: HashMap<String, u32>,
    /// Control tokens and user-defined ones, a list for each first byte, the longest first.
    special: Vec<Vec<Special>>,
    minimum: TokenMinimum,
    begin: Option<u32>,
    space_prefix: bool,
}

enum Encoder {
    Bpe(Box<tokenizers::Tokenizer>),
    SentencePiece(SentencePiece),
}

struct Special {
    name: Vec<u8>,
    id: u32,
    is_control: bool,
}

/// A part of a text.
enum Part<'a> {
    Plain(&'a str),
    /// A control token or a user-defined one.
    Special(u32),
}

impl Tokenizer {
    /// Builds a tokenizer; `begin` is the token that begins every prompt, if the file sets one.
    ///
    /// # Errors
    ///
    /// The vocabulary is of a kind that is not supported, or inconsistent.
    pub fn new(vocabulary: Vocabulary, begin: Option<u32>) -> Result<Self, TokenizerError> {
        let count = vocabulary.tokens.len();
        let is_sentence_piece = match vocabulary.kind.as_str() {
            "gpt2" => false,
            "llama" => true,
            other => return Err(TokenizerError::Kind(other.to_owned())),
        };
        let kinds = match vocabulary.kinds.len() {
            0 => vec![1; count],
            length if length == count => vocabulary.kinds.clone(),
            others => return Err(TokenizerError::Lengths { tokens: count, others, what: "token types" }),
        };
        let alphabet: HashMap<char, u8> = byte_alphabet().into_iter().map(|(byte, char)| (char, byte)).collect();
        // The bytes of the text that a name is for.
        let text_of = |name: &str| match is_sentence_piece {
            true => name.replace(SPACE, " ").into_bytes(),
            false => {
                let mapped: Option<Vec<u8>> = name.chars().map(|char| alphabet.get(&char).copied()).collect();
                mapped.unwrap_or_else(|| name.as_bytes().to_vec())
            }
        };
        let bytes = |name: &str, kind: u8| match kind {
            kind::CONTROL | kind::USER_DEFINED | kind::UNKNOWN => name.as_bytes().to_vec(),
            kind::BYTE => byte_token(name).map_or_else(|| name.as_bytes().to_vec(), |byte| vec![byte]),
            _ => text_of(name),
        };
        let named = vocabulary.tokens.iter().zip(&kinds);
        let tokens: Vec<(Vec<u8>, bool)> =
            named.map(|(name, kind)| (bytes(name, *kind), *kind == kind::CONTROL)).collect();
        let by_name: HashMap<String, u32> = vocabulary.tokens.iter().cloned().zip(0..).collect();
        let mut special: Vec<Vec<Special>> = (0..256).map(|_| Vec::new()).collect();
        for (id, (name, kind)) in (0..).zip(vocabulary.tokens.iter().zip(&kinds)) {
            if matches!(*kind, kind::CONTROL | kind::USER_DEFINED)
                && let Some(first) = name.bytes().next()
            {
                let one = Special { name: name.as_bytes().to_vec(), id, is_control: *kind == kind::CONTROL };
                special[usize::from(first)].push(one);
            }
        }
        special.iter_mut().for_each(|names| names.sort_by_key(|one| std::cmp::Reverse(one.name.len())));
        let encoded = match is_sentence_piece {
            true => bytes_of_pieces(&kinds, &tokens),
            false => bytes_of_alphabet(|char| by_name.contains_key(char)),
        };
        // Also the names of special tokens: a text may be tokenized to one.
        let texts: Vec<Vec<u8>> = vocabulary.tokens.iter().map(|name| text_of(name)).collect();
        let minimum = TokenMinimum::new(texts.iter().map(Vec::as_slice), |byte| encoded[usize::from(byte)]);
        let space_prefix = vocabulary.space_prefix;
        let encoder = match is_sentence_piece {
            true => Encoder::SentencePiece(SentencePiece::new(&vocabulary, &kinds)?),
            false => Encoder::Bpe(Box::new(bpe(vocabulary)?)),
        };
        Ok(Self { encoder, tokens, by_name, special, minimum, begin, space_prefix })
    }

    /// The number of tokens in the vocabulary.
    pub fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Whether the vocabulary is empty.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The bytes of a token; those of a control token are its name.
    pub fn bytes(&self, token: u32) -> &[u8] {
        self.tokens.get(token as usize).map_or(&[], |(bytes, _)| bytes)
    }

    /// Whether a token is a control token, which is not text.
    pub fn is_control(&self, token: u32) -> bool {
        self.tokens.get(token as usize).is_some_and(|(_, is_control)| *is_control)
    }

    /// The token of a name.
    pub fn token(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    /// The names of the control tokens.
    pub fn control_names(&self) -> impl Iterator<Item = &str> {
        let all = self.special.iter().flatten().filter(|one| one.is_control);
        all.filter_map(|one| std::str::from_utf8(&one.name).ok())
    }

    /// The token that begins every prompt.
    pub fn begin(&self) -> Option<u32> {
        self.begin
    }

    /// The tokens of a text. Control tokens are recognized in it if `parse_control` is set; the text must then be a
    /// rendered template in which users' text is escaped by [`crate::escape`]. The token that begins a prompt is
    /// inserted at the start unless it is there.
    ///
    /// # Errors
    ///
    /// [`TokenizerError::Text`] if the library fails.
    pub fn encode(&self, text: &str, parse_control: bool) -> Result<Vec<u32>, TokenizerError> {
        let mut tokens = Vec::with_capacity(text.len() / 3);
        for part in self.parts(text, parse_control) {
            match part {
                Part::Plain(text) => self.encode_plain(text, &mut tokens)?,
                Part::Special(id) => tokens.push(id),
            }
        }
        if let Some(begin) = self.begin.filter(|begin| tokens.first() != Some(begin)) {
            tokens.insert(0, begin);
        }
        Ok(tokens)
    }

    /// The fewest tokens that [`Tokenizer::encode`] can give for a text, in a fraction of its time.
    pub fn tokens_min(&self, text: &str, parse_control: bool) -> usize {
        let of = |part| match part {
            Part::Plain(text) => self.plain_tokens_min(text),
            Part::Special(_) => 1,
        };
        usize::try_from(self.parts(text, parse_control).map(of).sum::<u64>()).unwrap_or(usize::MAX)
    }

    fn plain_tokens_min(&self, text: &str) -> u64 {
        let text = crate::escape::remove(text);
        match &self.encoder {
            Encoder::SentencePiece(_) => {
                self.minimum.of(utf8(text.chars().map(|char| if char == SPACE { ' ' } else { char })))
            }
            Encoder::Bpe(encoder) if encoder.get_normalizer().is_some() && !text.is_ascii() => {
                self.minimum.of(utf8(text.nfc().map(|(char, _)| char)))
            }
            Encoder::Bpe(_) => self.minimum.of(text.bytes()),
        }
    }

    /// The parts of a text in their order.
    fn parts<'a>(&'a self, text: &'a str, parse_control: bool) -> impl Iterator<Item = Part<'a>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let from = at;
            while let Some(rest) = text.as_bytes().get(at..).filter(|rest| !rest.is_empty()) {
                match self.special_at(rest, parse_control) {
                    Some(special) if at == from => {
                        at += special.name.len();
                        return Some(Part::Special(special.id));
                    }
                    Some(_) => break,
                    None => at += 1,
                }
            }
            (from < at).then(|| Part::Plain(&text[from..at]))
        })
    }

    fn special_at(&self, bytes: &[u8], parse_control: bool) -> Option<&Special> {
        let names = self.special.get(usize::from(*bytes.first()?))?;
        names.iter().find(|one| (parse_control || !one.is_control) && bytes.starts_with(&one.name))
    }

    fn encode_plain(&self, text: &str, tokens: &mut Vec<u32>) -> Result<(), TokenizerError> {
        let text = crate::escape::remove(text);
        if text.is_empty() {
            return Ok(());
        }
        match &self.encoder {
            Encoder::Bpe(encoder) => {
                let encoding = encoder.encode_fast(text.as_ref(), false);
                let encoding = encoding.map_err(|error| TokenizerError::Text(error.to_string()))?;
                tokens.extend_from_slice(encoding.get_ids());
            }
            Encoder::SentencePiece(encoder) => encoder.encode(&text, self.space_prefix, tokens),
        }
        Ok(())
    }
}

/// The bytes of characters.
fn utf8(chars: impl Iterator<Item = char>) -> impl Iterator<Item = u8> {
    chars.flat_map(|char| {
        let mut bytes = [0; 4];
        let length = char.encode_utf8(&mut bytes).len();
        bytes.into_iter().take(length)
    })
}

/// Whether each byte has a token or is an unknown one, in a vocabulary of SentencePiece.
fn bytes_of_pieces(kinds: &[u8], tokens: &[(Vec<u8>, bool)]) -> [bool; 256] {
    let mut encoded = [kinds.contains(&kind::UNKNOWN); 256];
    for (kind, (bytes, _)) in kinds.iter().zip(tokens) {
        match (*kind, &bytes[..]) {
            (kind::UNKNOWN | kind::CONTROL | kind::USER_DEFINED, _) => {}
            (_, [byte]) => encoded[usize::from(*byte)] = true,
            _ => {}
        }
    }
    encoded
}

/// Whether each byte has a token, in a vocabulary of byte-level BPE.
fn bytes_of_alphabet(has_token: impl Fn(&str) -> bool) -> [bool; 256] {
    let mut encoded = [false; 256];
    for (byte, char) in byte_alphabet() {
        encoded[usize::from(byte)] = has_token(char.encode_utf8(&mut [0; 4]));
    }
    encoded
}

fn invalid(error: impl ToString) -> TokenizerError {
    TokenizerError::Invalid(error.to_string())
}

fn bpe(vocabulary: Vocabulary) -> Result<tokenizers::Tokenizer, TokenizerError> {
    let split = |pattern: &str| -> Result<PreTokenizerWrapper, TokenizerError> {
        let pattern = SplitPattern::Regex(pattern.to_owned());
        Ok(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).map_err(invalid)?.into())
    };
    let bytes = |use_regex| PreTokenizerWrapper::from(ByteLevel::new(false, false, use_regex));
    // The rules are those of llama.cpp, src/llama-vocab.cpp.
    let mut ignore_merges = false;
    let mut normalize = false;
    let rules = match vocabulary.pre.as_str() {
        "gpt-2" => vec![bytes(true)],
        "smollm" => vec![split(r"\p{N}")?, bytes(true)],
        "default" => vec![
            split(r"[\p{P}\$\+<=>\^~\|]+")?,
            split(GPT2)?,
            split(r"\p{N}+")?,
            split("[0-9][0-9][0-9]")?,
            bytes(false),
        ],
        "llama-bpe" => {
            ignore_merges = true;
            vec![split(&LLAMA3.replace("NUMBER", r"\p{N}{1,3}"))?, bytes(false)]
        }
        "qwen2" => {
            normalize = true;
            vec![split(&LLAMA3.replace("NUMBER", r"\p{N}"))?, bytes(false)]
        }
        other => return Err(TokenizerError::PreTokenizer(other.to_owned())),
    };
    let vocab: HashMap<String, u32> = vocabulary.tokens.iter().cloned().zip(0..).collect();
    let mut merges = Vec::with_capacity(vocabulary.merges.len());
    for merge in &vocabulary.merges {
        let known = |token: &str| vocab.contains_key(token);
        // The first token may begin with a space itself.
        let space = merge.char_indices().skip(1).find(|(_, char)| *char == ' ').map(|(at, _)| at);
        let pair = space.map(|at| (&merge[..at], &merge[at + 1..])).filter(|(left, right)| known(left) && known(right));
        let (left, right) = pair.ok_or_else(|| TokenizerError::Merge(merge.clone()))?;
        merges.push((left.to_owned(), right.to_owned()));
    }
    let vocab: tokenizers::models::bpe::Vocab = vocab.into_iter().collect();
    let model = BPE::builder().vocab_and_merges(vocab, merges).ignore_merges(ignore_merges).build().map_err(invalid)?;
    let mut tokenizer = tokenizers::Tokenizer::new(model);
    tokenizer.with_pre_tokenizer(Some(Sequence::new(rules)));
    if normalize {
        tokenizer.with_normalizer(Some(NFC));
    }
    Ok(tokenizer)
}

/// The pattern by which GPT-2 splits text.
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)";
/// The pattern by which Llama 3 and Qwen split text; they differ in `NUMBER`.
const LLAMA3: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|NUMBER| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// The characters that represent bytes in byte-level BPE.
pub fn byte_alphabet() -> Vec<(u8, char)> {
    let is_printed = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..=0xff);
    let mut others = 0u32;
    (0..=255u8)
        .map(|byte| {
            if is_printed(byte) {
                return (byte, char::from(byte));
            }
            others += 1;
            (byte, char::from_u32(255 + others).unwrap_or_default())
        })
        .collect()
}
