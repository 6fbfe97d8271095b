//! WordPiece over the characters of BERT's normalizer and pre-tokenizer, in one pass over the text and without copies of words.
//!
//! The result equals that of the crate `tokenizers`, for texts of characters whose normal form is at most one character
//! independent of context; all other texts are left to that crate. The normal form of a character, and whether it
//! divides words, is computed by the tokenizer itself, once for each character. Pieces are found in a trie of the
//! vocabulary: the longest entry from the start of the word, then the longest from its end on, each in as many steps as
//! the entry has bytes (Song et al., "Fast WordPiece Tokenization", 2021, adds links to the trie that save steps for
//! words of many pieces).

use std::cell::Cell;

use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizer};
use tokenizers::{
    Model, ModelWrapper, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizedString, PreTokenizerWrapper,
    Tokenizer,
};

/// Characters from here on are left to the crate: normalization reorders their marks, or each of them is a word.
const CHARS_END: u32 = 0x2C00;
/// Left to the crate as well, between the European alphabets and the punctuation: scripts whose marks are letters.
const CHARS_GAP: std::ops::Range<u32> = 0x590..0x1E00;

/// The most frequent ideographs of Chinese, Japanese and Korean.
const IDEOGRAPHS: std::ops::RangeInclusive<char> = '\u{4e00}'..='\u{9fff}';

/// The bare tokens of a text.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    /// Token ids.
    pub(crate) ids: Vec<u32>,
    /// The range of each token in code points, as start and end.
    pub(crate) offsets: Vec<(usize, usize)>,
}

/// The vocabulary of a tokenizer as a trie, and the classes of characters.
pub(crate) struct WordPiece {
    trie: Trie,
    /// The node of the prefix of pieces that continue a word; none in a vocabulary without such pieces.
    continuing: Option<u32>,
    unk_id: u32,
    word_chars_max: usize,
    /// Added tokens, which are recognized anywhere in a text.
    added: Vec<String>,
    /// Whether a byte is the first of an added token.
    begins_added: [bool; 256],
    normalizer: NormalizerWrapper,
    pre_tokenizer: PreTokenizerWrapper,
    /// Whether each ideograph is a word.
    divides_ideographs: bool,
    /// The classes by code point, computed on first occurrence.
    classes: Vec<Cell<Class>>,
}

/// The result of normalizing and pre-tokenizing a character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Not computed yet.
    Unknown,
    /// Removed by the normalizer.
    Removed,
    /// White space, which divides words.
    Space,
    /// This character, a word of its own.
    Alone(char),
    /// This character, part of a word.
    Part(char),
    /// Anything else: left to the crate.
    Other,
}

impl WordPiece {
    /// From a tokenizer without truncation, padding and post-processor; none if it is of another kind.
    pub(crate) fn of(tokenizer: &Tokenizer) -> Option<Self> {
        let ModelWrapper::WordPiece(model) = tokenizer.get_model() else { return None };
        let normalizer = tokenizer.get_normalizer()?;
        let pre_tokenizer = tokenizer.get_pre_tokenizer()?;
        let is_bert = matches!(
            (normalizer, pre_tokenizer),
            (NormalizerWrapper::BertNormalizer(_), PreTokenizerWrapper::BertPreTokenizer(_))
        );
        let added = tokenizer.get_added_tokens_decoder();
        // Normalized added tokens are searched for in the normal form of the text, which is not supported here.
        if !is_bert || added.values().any(|token| token.normalized || token.content.is_empty()) {
            return None;
        }
        let vocabulary = model.get_vocab();
        let unk_id = *vocabulary.get(&model.unk_token)?;
        let mut trie = Trie::default();
        for (piece, id) in vocabulary {
            trie.insert(piece.as_bytes(), id)?;
        }
        let prefix = model.continuing_subword_prefix.bytes();
        let added: Vec<String> = added.into_values().map(|token| token.content).collect();
        let mut begins_added = [false; 256];
        for token in &added {
            begins_added[usize::from(token.as_bytes()[0])] = true;
        }
        Some(Self {
            continuing: prefix.into_iter().try_fold(ROOT, |node, byte| trie.next(node, byte)),
            trie,
            unk_id,
            word_chars_max: model.max_input_chars_per_word,
            added,
            begins_added,
            normalizer: normalizer.clone(),
            pre_tokenizer: pre_tokenizer.clone(),
            divides_ideographs: matches!(normalizer, NormalizerWrapper::BertNormalizer(bert) if bert.handle_chinese_chars),
            classes: vec![Cell::new(Class::Unknown); CHARS_END as usize],
        })
    }

    /// The tokens of a text, up to the end of the word that has the last of `tokens_max`; none if the text has added tokens or, up to there,
    /// characters that are left to the crate.
    pub(crate) fn pieces(&self, text: &str, tokens_max: usize) -> Option<Pieces> {
        // Hardly any text has such a byte, and one pass costs less than a search for each token.
        let may_have_added = text.bytes().any(|byte| self.begins_added[usize::from(byte)]);
        if may_have_added && self.added.iter().any(|token| text.contains(token.as_str())) {
            return None;
        }
        let mut pieces = Pieces::default();
        let mut word = Word::default();
        for (index, char) in text.chars().enumerate() {
            // A word is tokenized at its end, independently of what follows.
            if pieces.ids.len() >= tokens_max {
                break;
            }
            match self.class(char) {
                Class::Part(char) => word.push(char, index),
                Class::Removed => {}
                Class::Space => self.end_word(&mut word, &mut pieces),
                Class::Alone(char) => {
                    self.end_word(&mut word, &mut pieces);
                    word.push(char, index);
                    self.end_word(&mut word, &mut pieces);
                }
                Class::Other | Class::Unknown => return None,
            }
        }
        self.end_word(&mut word, &mut pieces);
        Some(pieces)
    }

    /// The last position in a text at which every tokenizer of this kind divides it: the tokens before it do not depend on what follows.
    /// None if there is none, or an added token may be at any position.
    pub(crate) fn last_boundary(&self, text: &str) -> Option<usize> {
        let is_ideograph = |char: char| self.divides_ideographs && IDEOGRAPHS.contains(&char);
        if self.added.iter().any(|token| token.contains(|char: char| char.is_whitespace() || is_ideograph(char))) {
            return None;
        }
        let mut next = None;
        for (at, char) in text.char_indices().rev() {
            let divides = matches!(char, ' ' | '\n') || (is_ideograph(char) && next.is_some_and(is_ideograph));
            if divides {
                return Some(at + char.len_utf8());
            }
            next = Some(char);
        }
        None
    }

    fn class(&self, char: char) -> Class {
        let code = char as u32;
        let Some(cell) = self.classes.get(code as usize) else { return Class::Other };
        if cell.get() == Class::Unknown {
            let is_left_out = CHARS_GAP.contains(&code);
            cell.set(if is_left_out { Class::Other } else { self.find_class(char).unwrap_or(Class::Other) });
        }
        cell.get()
    }

    /// Computes the class of a character with the normalizer and the pre-tokenizer.
    fn find_class(&self, char: char) -> tokenizers::Result<Class> {
        let mut normalized = NormalizedString::from(char.to_string());
        self.normalizer.normalize(&mut normalized)?;
        let mut chars = normalized.get().chars();
        let char = match (chars.next(), chars.next()) {
            (None, _) => return Ok(Class::Removed),
            (Some(char), None) => char,
            (Some(_), Some(_)) => return Ok(Class::Other),
        };
        // Between two letters it divides the word (2 splits), is a word by itself (3), or is part of the word (1).
        let mut between = PreTokenizedString::from(format!("a{char}a"));
        self.pre_tokenizer.pre_tokenize(&mut between)?;
        Ok(match between.get_splits(OffsetReferential::Normalized, OffsetType::Byte).len() {
            1 => Class::Part(char),
            2 => Class::Space,
            3 => Class::Alone(char),
            _ => Class::Other,
        })
    }

    /// Appends the pieces of a word, and clears the word.
    fn end_word(&self, word: &mut Word, pieces: &mut Pieces) {
        let Some(last) = word.bytes.len().checked_sub(1) else { return };
        let before = pieces.ids.len();
        let mut start = 0;
        let mut is_known = word.chars <= self.word_chars_max;
        while is_known && start <= last {
            let from = if start == 0 { Some(ROOT) } else { self.continuing };
            match from.and_then(|from| self.trie.longest(from, &word.bytes[start..])) {
                Some((id, bytes)) => {
                    pieces.ids.push(id);
                    pieces.offsets.push((word.origins[start], word.origins[start + bytes - 1] + 1));
                    start += bytes;
                }
                None => is_known = false,
            }
        }
        if !is_known {
            pieces.ids.truncate(before);
            pieces.offsets.truncate(before);
            pieces.ids.push(self.unk_id);
            pieces.offsets.push((word.origins[0], word.origins[last] + 1));
        }
        word.clear();
    }
}

/// The normal form of a word.
#[derive(Default)]
struct Word {
    bytes: Vec<u8>,
    /// For each byte the index of its code point in the text.
    origins: Vec<usize>,
    chars: usize,
}

impl Word {
    fn push(&mut self, char: char, origin: usize) {
        let mut buffer = [0; 4];
        let bytes = char.encode_utf8(&mut buffer).as_bytes();
        self.bytes.extend_from_slice(bytes);
        self.origins.resize(self.bytes.len(), origin);
        self.chars += 1;
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.origins.clear();
        self.chars = 0;
    }
}

const ROOT: u32 = 0;
/// No id, and no edge.
const NONE: u32 = u32::MAX;
/// Maximum number of nodes: the bits that the key of an edge has for a node.
const NODES_MAX: usize = 1 << 24;

/// Byte strings with ids. The edges of all nodes are in one table with open addressing.
struct Trie {
    /// The id of the entry that ends at each node.
    ids: Vec<u32>,
    /// Pairs of an edge's key and the node that it leads to; the length is a power of two.
    edges: Vec<(u32, u32)>,
}

impl Default for Trie {
    fn default() -> Self {
        Self { ids: vec![NONE], edges: vec![(NONE, NONE); 1 << 10] }
    }
}

impl Trie {
    /// Adds an entry; none if there are too many nodes.
    fn insert(&mut self, entry: &[u8], id: u32) -> Option<()> {
        let mut node = ROOT;
        for &byte in entry {
            node = match self.next(node, byte) {
                Some(next) => next,
                None => {
                    let next = u32::try_from(self.ids.len()).ok().filter(|_| self.ids.len() < NODES_MAX)?;
                    self.ids.push(NONE);
                    // At most half of the table is used.
                    if 2 * self.ids.len() > self.edges.len() {
                        let doubled = vec![(NONE, NONE); 2 * self.edges.len()];
                        let edges = std::mem::replace(&mut self.edges, doubled);
                        edges.into_iter().filter(|(key, _)| *key != NONE).for_each(|(key, to)| self.add(key, to));
                    }
                    self.add(key(node, byte), next);
                    next
                }
            };
        }
        self.ids[node as usize] = id;
        Some(())
    }

    fn add(&mut self, key: u32, to: u32) {
        let slot = self.slot(key);
        self.edges[slot] = (key, to);
    }

    /// The index of a key in the table, or of the free slot for it.
    fn slot(&self, key: u32) -> usize {
        let mask = self.edges.len() - 1;
        // Fibonacci hashing: the upper bits of the product are mixed best.
        let mut slot = (u64::from(key).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & mask;
        while self.edges[slot].0 != key && self.edges[slot].0 != NONE {
            slot = (slot + 1) & mask;
        }
        slot
    }

    fn next(&self, node: u32, byte: u8) -> Option<u32> {
        let (_, to) = self.edges[self.slot(key(node, byte))];
        (to != NONE).then_some(to)
    }

    /// The longest entry below a node that the bytes begin with: its id and its length in bytes.
    fn longest(&self, from: u32, bytes: &[u8]) -> Option<(u32, usize)> {
        let (mut node, mut found) = (from, None);
        for (index, &byte) in bytes.iter().enumerate() {
            let Some(next) = self.next(node, byte) else { break };
            node = next;
            let id = self.ids[node as usize];
            if id != NONE {
                found = Some((id, index + 1));
            }
        }
        found
    }
}

fn key(node: u32, byte: u8) -> u32 {
    node << 8 | u32::from(byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::path::Path;

    use super::*;

    const MODELS: [&str; 2] = ["host/nn/models/sentiment", "tests/models/pair-toy"];

    fn root() -> &'static Path {
        Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../.."))
    }

    fn tokenizer(model: &str) -> Tokenizer {
        let mut tokenizer = Tokenizer::from_file(root().join(model).join("tokenizer.json")).unwrap();
        tokenizer.with_padding(None).with_truncation(None).unwrap();
        tokenizer.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        tokenizer
    }

    fn both() -> Vec<(Tokenizer, WordPiece)> {
        let both = |model| {
            let tokenizer = tokenizer(model);
            let word_piece = WordPiece::of(&tokenizer).unwrap();
            (tokenizer, word_piece)
        };
        MODELS.into_iter().map(both).collect()
    }

    /// Whether the text was tokenized here; panics if the result differs from that of the crate.
    fn check(tokenizer: &Tokenizer, word_piece: &WordPiece, text: &str) -> bool {
        let Some(Pieces { ids, offsets }) = word_piece.pieces(text, usize::MAX) else { return false };
        let expected = tokenizer.encode_char_offsets(text, false).unwrap();
        assert_eq!(ids, expected.get_ids(), "{text:?}");
        assert_eq!(offsets, expected.get_offsets(), "{text:?}");
        // The first tokens are those of the whole text.
        for tokens_max in [0, 1, ids.len() / 2, ids.len()] {
            let first = word_piece.pieces(text, tokens_max).unwrap();
            assert!(first.ids.len() >= tokens_max.min(ids.len()), "{text:?}");
            assert_eq!(first.ids, ids[..first.ids.len()], "{text:?}");
            assert_eq!(first.offsets, offsets[..first.ids.len()], "{text:?}");
        }
        true
    }

    #[test]
    fn special_cases_are_tokenized_as_by_the_crate() {
        let long = "a".repeat(101);
        let texts = [
            ("", true),
            (" \t\n", true),
            ("Don't panic: it's 3.50 dollars (or more)…", true),
            ("un\u{200b}believable\u{0} con\u{ad}trol\u{7f}", true),
            ("re\u{fffd}placed", false),
            ("Ĳ ŉ ǰ ﬁ", false),
            ("İstanbul ǅ ŉ ẞ", true),
            ("Crème brûlée à la carte, Ærøskøbing", true),
            ("e\u{301}\u{323} x\u{20dd}", true),
            ("Ελλάς, Москва й", true),
            ("日本語", false),
            ("an [MASK] here", false),
            ("brackets [MAS] only", true),
            (long.as_str(), true),
            ("##ing # ##", true),
            ("xqzjkvw", true),
        ];
        for (tokenizer, word_piece) in both() {
            for (text, is_own) in texts {
                let own = check(&tokenizer, &word_piece, text);
                assert!(own == is_own, "{text:?}");
            }
        }
    }

    #[test]
    fn text_is_read_no_further_than_its_first_tokens() {
        let (_, word_piece) = both().remove(0);
        // The last character is left to the crate.
        let text = "one two three ".repeat(100) + "日";
        assert_eq!(word_piece.pieces(&text, usize::MAX).map(|pieces| pieces.ids.len()), None);
        assert_eq!(word_piece.pieces(&text, 5).map(|pieces| pieces.ids.len()), Some(5));
    }

    /// Reads the folder `WEIR_DATA`, which is not part of the repository; without it, the vectors of the tests. Debug
    /// builds read only the first texts of each file, to save time.
    #[test]
    fn held_out_texts_are_tokenized_as_by_the_crate_and_nearly_all_here() {
        let data = std::env::var_os("WEIR_DATA").map_or_else(|| root().join("tests/vectors"), Into::into);
        let (tokenizer, word_piece) = both().remove(0);
        let (mut texts, mut own) = (0, 0);
        for file in std::fs::read_dir(data).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "jsonl") {
                continue;
            }
            let most = if cfg!(debug_assertions) { 500 } else { usize::MAX };
            for line in std::fs::read_to_string(path).unwrap().lines().take(most) {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                // The files of entities have words instead of a text.
                let words = || line["tokens"].as_array().into_iter().flatten().filter_map(|word| word.as_str());
                let text = line["text"].as_str().map_or_else(|| words().collect::<Vec<_>>().join(" "), str::to_owned);
                texts += 1;
                own += usize::from(check(&tokenizer, &word_piece, &text));
            }
        }
        assert!(texts > 10 && own * 100 >= texts * 80, "{own} of {texts}");
    }

    fn text() -> impl Strategy<Value = String> {
        let char = prop_oneof![
            6 => proptest::char::range('a', 'z'),
            2 => proptest::char::range('A', 'Z'),
            2 => Just(' '),
            3 => proptest::char::range('\0', '\u{17f}'),
            1 => proptest::char::range('\u{300}', '\u{36f}'),
            1 => proptest::char::range('\u{0}', '\u{58f}'),
            1 => proptest::char::range('\u{1e00}', '\u{2bff}'),
        ];
        proptest::collection::vec(char, 0..60).prop_map(|chars| chars.into_iter().collect())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1_500))]

        #[test]
        fn random_texts_are_tokenized_as_by_the_crate(text in text(), any in ".{0,30}") {
            thread_local! {
                static BOTH: Vec<(Tokenizer, WordPiece)> = both();
            }
            BOTH.with(|both| for (tokenizer, word_piece) in both {
                check(tokenizer, word_piece, &text);
                check(tokenizer, word_piece, &any);
            });
        }
    }
}
