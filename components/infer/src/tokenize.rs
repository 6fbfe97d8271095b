//! From texts to sequences of token ids, by any `tokenizer.json` of the Hugging Face format.
//!
//! The truncation and padding of the file are ignored: sequences are truncated to the maximum of the model and padded
//! by batch. The special tokens are added here, after truncation, so that one pass over the text gives both the
//! sequence and its full length.

use crate::code_points::CodePoints;
use crate::config::ModelConfig;
use crate::windows::{self, Boundary};
use crate::wordpiece::{Pieces, WordPiece};
use std::ops::Range;
use thiserror::Error;
use tokenizers::tokenizer::{Decoder, PostProcessor};
use tokenizers::utils::truncation::{TruncationDirection, truncate_encodings};
use tokenizers::{Encoding, ModelWrapper, PostProcessorWrapper, Tokenizer, TruncationParams};

/// The bytes for each token of the first beginning of a text that is tokenized, and the factor to the next one, if that has too few tokens.
const BEGINNING_BYTES_PER_TOKEN: usize = 8;
const BEGINNING_GROWTH: usize = 4;

/// The part of a too long text that remains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TruncationSide {
    /// Its beginning.
    Beginning,
    /// Its end.
    End,
}

/// Why a tokenizer cannot be used.
#[derive(Debug, Error)]
pub enum TokenizeError {
    /// `tokenizer.json` is not valid.
    #[error("tokenizer.json is not valid: {0}")]
    Load(tokenizers::Error),
    /// The special tokens fill the model's maximum.
    #[error("a maximum of {tokens_max} tokens leaves no room beside {added} special tokens")]
    NoRoom {
        /// The model's maximum.
        tokens_max: usize,
        /// The special tokens of a pair.
        added: usize,
    },
    /// The tokenizer cannot encode a text.
    #[error("the tokenizer cannot read this text: {0}")]
    Encode(tokenizers::Error),
    /// The tokenizer cannot write tokens as text.
    #[error("the tokenizer cannot join tokens: {0}")]
    Decode(tokenizers::Error),
}

/// One sequence, the input of a model.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sequence {
    /// Token ids, special tokens included.
    pub ids: Vec<u32>,
    /// Token types, as long as `ids`.
    pub types: Vec<u32>,
    /// The range of each token in code points, as start and end; as long as `ids`.
    pub offsets: Vec<(usize, usize)>,
    /// True for the tokens that the tokenizer added; as long as `ids`.
    pub special: Vec<bool>,
}

/// A tokenized text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tokenized {
    /// The sequence, truncated to the maximum of the model.
    pub sequence: Sequence,
    /// How many tokens the whole text has, special tokens included.
    pub tokens_total: usize,
}

/// The tokenizer of a model, with the properties that the tasks need.
pub struct ModelTokenizer {
    /// Without truncation, padding and post-processor: it yields the bare tokens of a text.
    tokenizer: Tokenizer,
    post_processor: Option<PostProcessorWrapper>,
    tokens_max: usize,
    pad_id: u32,
    pad_type_id: u32,
    unk_id: Option<u32>,
    marks_subwords: bool,
    /// The one-pass tokenizer for single texts, if the tokenizer is of that kind.
    word_piece: Option<(WordPiece, Frame)>,
}

/// The special tokens that the post-processor puts around a single text.
struct Frame {
    /// Ids and token types before the text.
    before: Vec<(u32, u32)>,
    /// Ids and token types after the text.
    after: Vec<(u32, u32)>,
    /// The token type of the text.
    type_id: u32,
}

impl Frame {
    /// The frame in the sequence of a text of one token; none if the post-processor does more than to put tokens around
    /// the text.
    fn of(sequence: &Sequence) -> Option<Self> {
        let at = sequence.special.iter().position(|special| !special)?;
        let tokens: Vec<(u32, u32)> = sequence.ids.iter().copied().zip(sequence.types.iter().copied()).collect();
        let (before, rest) = tokens.split_at(at);
        let (&(_, type_id), after) = rest.split_first()?;
        let is_plain = sequence.special[at + 1..].iter().all(|special| *special);
        is_plain.then(|| Self { before: before.to_vec(), after: after.to_vec(), type_id })
    }

    /// The sequence of a text with these tokens.
    fn sequence(&self, ids: &[u32], offsets: &[(usize, usize)]) -> Sequence {
        let Self { before, after, type_id } = self;
        let around = || before.iter().chain(after);
        let total = ids.len() + around().count();
        let mut sequence = Sequence {
            ids: Vec::with_capacity(total),
            types: vec![*type_id; total],
            offsets: Vec::with_capacity(total),
            special: vec![true; total],
        };
        let (start, end) = (before.len(), before.len() + ids.len());
        sequence.ids.extend(before.iter().map(|(id, _)| id));
        sequence.ids.extend_from_slice(ids);
        sequence.ids.extend(after.iter().map(|(id, _)| id));
        sequence.types.iter_mut().zip(before).for_each(|(to, (_, type_id))| *to = *type_id);
        sequence.types[end..].iter_mut().zip(after).for_each(|(to, (_, type_id))| *to = *type_id);
        sequence.offsets.resize(start, (0, 0));
        sequence.offsets.extend_from_slice(offsets);
        sequence.offsets.resize(total, (0, 0));
        sequence.special[start..end].fill(false);
        sequence
    }
}

impl ModelTokenizer {
    /// Parses the contents of `tokenizer.json`.
    pub fn parse(tokenizer: &[u8], config: &ModelConfig) -> Result<Self, TokenizeError> {
        let mut tokenizer = Tokenizer::from_bytes(tokenizer).map_err(TokenizeError::Load)?;
        let padding = tokenizer.get_padding().map(|padding| (padding.pad_id, padding.pad_type_id));
        tokenizer.with_padding(None).with_truncation(None).map_err(TokenizeError::Load)?;
        let post_processor = tokenizer.get_post_processor().cloned();
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);

        let added = post_processor.as_ref().map_or(0, |processor| processor.added_tokens(true));
        if config.tokens_max <= added {
            return Err(TokenizeError::NoRoom { tokens_max: config.tokens_max, added });
        }
        let named = |token: &Option<String>| token.as_deref().and_then(|token| tokenizer.token_to_id(token));
        let (unk_of_model, prefix) = match tokenizer.get_model() {
            ModelWrapper::WordPiece(model) => (Some(model.unk_token.clone()), Some(&model.continuing_subword_prefix)),
            ModelWrapper::WordLevel(model) => (Some(model.unk_token.clone()), None),
            ModelWrapper::BPE(model) => (model.unk_token.clone(), model.continuing_subword_prefix.as_ref()),
            ModelWrapper::Unigram(_) => (Some("<unk>".to_owned()), None),
        };
        let marks_subwords = prefix.is_some_and(|prefix| !prefix.is_empty());
        let pad_id = padding.map(|(id, _)| id).or_else(|| named(&config.pad_token)).or(config.pad_id).unwrap_or(0);
        let unk_id = if config.unk_token.is_some() { named(&config.unk_token) } else { named(&unk_of_model) };
        let mut parsed = Self {
            tokens_max: config.tokens_max,
            pad_id,
            pad_type_id: padding.map_or(0, |(_, type_id)| type_id),
            unk_id,
            marks_subwords,
            post_processor,
            word_piece: None,
            tokenizer,
        };
        if let Some(word_piece) = WordPiece::of(&parsed.tokenizer) {
            // A text of one token: the first of the vocabulary.
            let token = parsed.token(0);
            let one = Encoding::new(
                vec![0],
                vec![0],
                vec![token],
                vec![None],
                vec![(0, 1)],
                vec![0],
                vec![1],
                Vec::new(),
                Default::default(),
            );
            parsed.word_piece = Frame::of(&parsed.finish(one, None)?).map(|frame| (word_piece, frame));
        }
        Ok(parsed)
    }

    /// The bare tokens of a single text, or its first ones, at least `tokens_max`, and their frame, if the one-pass tokenizer supports the text.
    fn pieces(&self, text: &str, tokens_max: usize) -> Option<(Pieces, &Frame)> {
        let (word_piece, frame) = self.word_piece.as_ref()?;
        Some((word_piece.pieces(text, tokens_max)?, frame))
    }

    /// The id that fills a sequence up to the longest of its batch.
    pub fn pad_id(&self) -> u32 {
        self.pad_id
    }

    /// The token type of padding.
    pub fn pad_type_id(&self) -> u32 {
        self.pad_type_id
    }

    /// True for the token of unknown text.
    pub fn is_unknown(&self, id: u32) -> bool {
        self.unk_id == Some(id)
    }

    /// True if tokens that continue a word have a prefix (`##`).
    pub fn marks_subwords(&self) -> bool {
        self.marks_subwords
    }

    /// The text of a token in the vocabulary.
    pub fn token(&self, id: u32) -> String {
        self.tokenizer.id_to_token(id).unwrap_or_default()
    }

    /// Tokens as readable text.
    pub fn join(&self, tokens: Vec<String>) -> Result<String, TokenizeError> {
        match self.tokenizer.get_decoder() {
            Some(decoder) => decoder.decode(tokens).map_err(TokenizeError::Decode),
            None => Ok(tokens.join(" ")),
        }
    }

    /// Tokenizes a text or a pair of texts to one sequence, truncated to the maximum of the model; the part that `keep`
    /// names remains. A pair is truncated from the longer text first.
    pub fn tokenize(&self, text: &str, pair: Option<&str>, keep: TruncationSide) -> Result<Tokenized, TokenizeError> {
        if pair.is_none()
            && let Some((Pieces { ids, offsets }, frame)) = self.pieces(text, usize::MAX)
        {
            let cut = ids.len().saturating_sub(self.room());
            let range = match keep {
                TruncationSide::Beginning => 0..ids.len() - cut,
                TruncationSide::End => cut..ids.len(),
            };
            let sequence = frame.sequence(&ids[range.clone()], &offsets[range]);
            return Ok(Tokenized { sequence, tokens_total: ids.len() + self.added_tokens(false) });
        }
        let text = self.bare(text)?;
        let pair = pair.map(|pair| self.bare(pair)).transpose()?;
        let added = self.added_tokens(pair.is_some());
        let tokens_total = text.len() + pair.as_ref().map_or(0, Encoding::len) + added;
        let direction = match keep {
            TruncationSide::Beginning => TruncationDirection::Right,
            TruncationSide::End => TruncationDirection::Left,
        };
        let room = TruncationParams { max_length: self.tokens_max - added, direction, ..TruncationParams::default() };
        let (mut text, mut pair) = truncate_encodings(text, pair, &room).map_err(TokenizeError::Encode)?;
        // The tokenizer returns the part that was cut off as overflow, which the post-processor would combine with the
        // other text.
        drop(text.take_overflowing());
        drop(pair.as_mut().map(Encoding::take_overflowing));
        Ok(Tokenized { sequence: self.finish(text, pair)?, tokens_total })
    }

    /// As [`ModelTokenizer::tokenize`] for the beginning of a text; where the tokenizer permits it, the rest is not read.
    pub fn tokenize_beginning(&self, text: &str, pair: Option<&str>) -> Result<Sequence, TokenizeError> {
        if pair.is_none()
            && let Some((Pieces { ids, offsets }, frame)) = self.pieces(text, self.room())
        {
            let count = ids.len().min(self.room());
            return Ok(frame.sequence(&ids[..count], &offsets[..count]));
        }
        let text = if pair.is_none() { self.beginning(text)? } else { text };
        Ok(self.tokenize(text, pair, TruncationSide::Beginning)?.sequence)
    }

    /// A beginning of a text that has at least the tokens that the model takes, the same as those of the whole text; the text if there is
    /// none.
    fn beginning<'a>(&self, text: &'a str) -> Result<&'a str, TokenizeError> {
        let Some((word_piece, _)) = &self.word_piece else { return Ok(text) };
        let mut bytes = self.room().saturating_mul(BEGINNING_BYTES_PER_TOKEN);
        while bytes < text.len() {
            if let Some(end) = word_piece.last_boundary(&text[..text.floor_char_boundary(bytes)])
                && self.count(&text[..end])? >= self.room()
            {
                return Ok(&text[..end]);
            }
            bytes = bytes.saturating_mul(BEGINNING_GROWTH);
        }
        Ok(text)
    }

    /// Tokenizes a text to one sequence or, above the maximum of the model, to windows that overlap by `stride` tokens
    /// and are cut between words. Returns each with its range among the tokens of the text.
    pub fn tokenize_windows(&self, text: &str, stride: usize) -> Result<Vec<(Range<usize>, Sequence)>, TokenizeError> {
        if let Some((Pieces { ids, offsets }, frame)) = self.pieces(text, usize::MAX)
            && ids.len() <= self.room()
        {
            return Ok(vec![(0..ids.len(), frame.sequence(&ids, &offsets))]);
        }
        let bare = self.bare(text)?;
        if bare.len() <= self.room() {
            return Ok(vec![(0..bare.len(), self.finish(bare, None)?)]);
        }
        let windows = windows::windows(&self.boundaries(&bare, text), self.room(), stride);
        let sequence = |window: Range<usize>| Ok((window.clone(), self.finish(part_of(&bare, window), None)?));
        windows.into_iter().map(sequence).collect()
    }

    /// The boundary before each token of a text.
    fn boundaries(&self, bare: &Encoding, text: &str) -> Vec<Boundary> {
        let text = CodePoints::new(text.to_owned());
        let mut previous_end = 0;
        let tokens = bare.get_ids().iter().zip(bare.get_offsets());
        let boundary = |(&id, &(start, end)): (&u32, &(usize, usize))| {
            // Some tokenizers count the space before a word as part of it.
            let before = text.slice(previous_end.min(start), (start + 1).min(end.max(start)));
            let is_spaced = before.contains(char::is_whitespace);
            previous_end = end;
            match is_spaced || start == 0 {
                true => Boundary::Space,
                false if self.continues_word(id, &text, start, end) => Boundary::Inside,
                false => Boundary::Word,
            }
        };
        tokens.map(boundary).collect()
    }

    /// True when a token, whose text is the code points from `start` to before `end`, continues a word, by the rule of the
    /// token-classification pipeline of transformers.
    pub fn continues_word(&self, id: u32, text: &CodePoints, start: usize, end: usize) -> bool {
        if self.is_unknown(id) {
            return false;
        }
        if self.marks_subwords {
            return self.token(id).chars().count() != text.slice(start, end).chars().count();
        }
        // Without prefixes, a token continues a word if there is no space at its start or right before it.
        start > 0 && !text.slice(start - 1, start + 1).contains(' ')
    }

    /// The number of tokens of a text, without special tokens.
    pub fn count(&self, text: &str) -> Result<usize, TokenizeError> {
        if let Some((pieces, _)) = self.pieces(text, usize::MAX) {
            return Ok(pieces.ids.len());
        }
        Ok(self.tokenizer.encode_fast(text, false).map_err(TokenizeError::Encode)?.len())
    }

    /// The end of each token of a text as a byte offset, without special tokens.
    pub fn token_ends(&self, text: &str) -> Result<Vec<usize>, TokenizeError> {
        let encoding = self.tokenizer.encode(text, false).map_err(TokenizeError::Encode)?;
        Ok(encoding.get_offsets().iter().map(|&(_, end)| end).collect())
    }

    /// The maximum number of tokens of a single text, without special tokens.
    pub fn room(&self) -> usize {
        self.tokens_max - self.added_tokens(false)
    }

    /// The longest sequence, special tokens included.
    pub fn tokens_max(&self) -> usize {
        self.tokens_max
    }

    /// The number of special tokens; at most `tokens_max - 1`, which [`ModelTokenizer::parse`] checks.
    fn added_tokens(&self, is_pair: bool) -> usize {
        self.post_processor.as_ref().map_or(0, |processor| processor.added_tokens(is_pair))
    }

    fn bare(&self, text: &str) -> Result<Encoding, TokenizeError> {
        self.tokenizer.encode_char_offsets(text, false).map_err(TokenizeError::Encode)
    }

    fn finish(&self, text: Encoding, pair: Option<Encoding>) -> Result<Sequence, TokenizeError> {
        let encoding = match (&self.post_processor, pair) {
            (Some(processor), pair) => processor.process(text, pair, true).map_err(TokenizeError::Encode)?,
            (None, None) => text,
            (None, Some(pair)) => Encoding::merge([text, pair], false),
        };
        Ok(Sequence {
            ids: encoding.get_ids().to_vec(),
            types: encoding.get_type_ids().to_vec(),
            offsets: encoding.get_offsets().to_vec(),
            special: encoding.get_special_tokens_mask().iter().map(|&mark| mark != 0).collect(),
        })
    }
}

/// Some of the tokens of an encoding without special tokens.
fn part_of(encoding: &Encoding, tokens: Range<usize>) -> Encoding {
    Encoding::new(
        encoding.get_ids()[tokens.clone()].to_vec(),
        encoding.get_type_ids()[tokens.clone()].to_vec(),
        encoding.get_tokens()[tokens.clone()].to_vec(),
        encoding.get_word_ids()[tokens.clone()].to_vec(),
        encoding.get_offsets()[tokens.clone()].to_vec(),
        encoding.get_special_tokens_mask()[tokens.clone()].to_vec(),
        encoding.get_attention_mask()[tokens].to_vec(),
        Vec::new(),
        Default::default(),
    )
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn beginning_has_the_tokens_that_the_model_takes_and_few_more() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../host/nn/models/embeddings");
        let files = ["config.json", "tokenizer.json"].map(|name| std::fs::read(folder.join(name)).unwrap());
        let limits = br#"{"model_max_length":16}"#;
        let config = ModelConfig::parse(&files[0], Some(limits), None, None).unwrap();
        let tokenizer = ModelTokenizer::parse(&files[1], &config).unwrap();
        for (text, bytes) in
            [("日本語".repeat(1000), 112), ("ไทย ".repeat(1000), 448), ("ไทย".repeat(10) + &" 日".repeat(200), 448)]
        {
            let beginning = tokenizer.beginning(&text).unwrap();
            assert!(text.starts_with(beginning) && beginning.len() <= bytes, "{beginning}");
            assert!(tokenizer.count(beginning).unwrap() >= tokenizer.room(), "{beginning}");
        }
        // Nothing divides it.
        let word = "ไ".repeat(1000);
        assert_eq!(tokenizer.beginning(&word).unwrap(), word);
    }
}
