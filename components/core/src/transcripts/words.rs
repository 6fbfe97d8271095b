//! Texts as words, in which keywords, actions and intents are found.
//!
//! A word is a maximal run of letters, digits and `_`, as `\w+` matches in Python; the bounds of words are those of
//! `\b`. Words are compared in lower case, with the few further equalities that Python's `re.IGNORECASE` adds to ASCII:
//! `ſ` is `s`, `ı` is `i`, and `K` (the Kelvin sign) is `k`. All words without a rule are equal.

use std::collections::BTreeMap;

/// Longest word of a rule, in bytes of UTF-8 in lower case.
pub(super) const WORD_BYTES_MAX: usize = 48;

/// The id of a word of a rule; [`UNKNOWN`] for other words.
pub(super) type WordId = u16;
/// The id of words without a rule.
pub(super) const UNKNOWN: WordId = 0;

/// The text before a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Gap {
    /// The beginning of the text.
    Start,
    /// One U+0020.
    Space,
    /// One apostrophe, straight or curly.
    Apostrophe,
    /// Other text within a sentence: white space, commas, dashes, quotes.
    Within,
    /// The end of a sentence.
    Stop,
    /// The end of a question.
    Question,
}

impl Gap {
    /// True when a new sentence begins after the gap.
    pub(super) fn ends_sentence(self) -> bool {
        matches!(self, Self::Start | Self::Stop | Self::Question)
    }
}

/// A word in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Word {
    pub(super) id: WordId,
    pub(super) before: Gap,
    /// Whether white space follows directly, and more text after it.
    pub(super) spaced: bool,
}

/// The words of a text, reused from one text to the next to avoid allocations.
#[derive(Debug, Default)]
pub(super) struct Words {
    pub(super) words: Vec<Word>,
    /// Whether a question mark follows the last word.
    pub(super) asks_last: bool,
}

/// The words of all rules.
#[derive(Debug, Clone, Default)]
pub(super) struct Lexicon {
    ids: BTreeMap<Box<str>, WordId>,
    /// Open addressing over `ids`, by [`hash`]; a power of two, at most half full. 0 is empty.
    slots: Vec<WordId>,
    /// By id minus 1: the word, padded with zeros, and its length.
    spelled: Vec<([u8; WORD_BYTES_MAX], u8)>,
}

impl Lexicon {
    /// The id of a word, which must be in lower case as in [`Lexicon::read`]; a new id if the word is not known. `None`
    /// if the word is too long or there are too many.
    pub(super) fn add(&mut self, word: &str) -> Option<WordId> {
        if let Some(&id) = self.ids.get(word) {
            return Some(id);
        }
        if word.len() > WORD_BYTES_MAX {
            return None;
        }
        let id = WordId::try_from(self.spelled.len() + 1).ok()?;
        let mut bytes = [0; WORD_BYTES_MAX];
        bytes[..word.len()].copy_from_slice(word.as_bytes());
        self.spelled.push((bytes, word.len() as u8));
        self.ids.insert(word.into(), id);
        if self.spelled.len() * 2 > self.slots.len() {
            self.grow();
        } else {
            self.insert_slot(id);
        }
        Some(id)
    }

    fn grow(&mut self) {
        self.slots = vec![UNKNOWN; (self.slots.len() * 2).max(64)];
        for id in 1..=self.spelled.len() {
            self.insert_slot(id as WordId);
        }
    }

    fn insert_slot(&mut self, id: WordId) {
        let (bytes, length) = &self.spelled[usize::from(id) - 1];
        let mask = self.slots.len() - 1;
        let mut at = hash(&bytes[..usize::from(*length)]) as usize & mask;
        while self.slots[at] != UNKNOWN {
            at = (at + 1) & mask;
        }
        self.slots[at] = id;
    }

    fn find(&self, word: &[u8], hashed: u32) -> WordId {
        if self.slots.is_empty() || word.len() > WORD_BYTES_MAX {
            return UNKNOWN;
        }
        let mask = self.slots.len() - 1;
        let mut at = hashed as usize & mask;
        loop {
            let id = self.slots[at];
            if id == UNKNOWN {
                return UNKNOWN;
            }
            let (bytes, length) = &self.spelled[usize::from(id) - 1];
            if usize::from(*length) == word.len() && bytes[..word.len()] == *word {
                return id;
            }
            at = (at + 1) & mask;
        }
    }

    /// Splits a text into words.
    pub(super) fn read(&self, text: &str, into: &mut Words) {
        into.words.clear();
        into.asks_last = false;
        let mut scan = Scan { text: strip(text), at: 0, word: [0; WORD_BYTES_MAX], length: 0, hashed: 0 };
        let mut before = scan.gap(true);
        while scan.at < scan.text.len() {
            let dotted = scan.word();
            let id = match scan.length <= WORD_BYTES_MAX {
                true => self.find(&scan.word[..scan.length], scan.hashed),
                false => UNKNOWN,
            };
            let spaced = !dotted && scan.space_follows();
            into.words.push(Word { id, before, spaced });
            before = scan.gap(false);
            if dotted && matches!(before, Gap::Space | Gap::Apostrophe) {
                before = Gap::Within;
            }
        }
        into.asks_last = before == Gap::Question;
    }
}

/// The words of a phrase in the form of [`Lexicon::add`], with the gap before each.
pub(super) fn spell(phrase: &str) -> Vec<(String, Gap)> {
    let mut scan = Scan { text: phrase, at: 0, word: [0; WORD_BYTES_MAX], length: 0, hashed: 0 };
    let mut words = Vec::new();
    let mut before = scan.gap(true);
    while scan.at < phrase.len() {
        scan.word();
        // A word over the bound is replaced by one that `add` refuses, so it is not truncated.
        let word = match scan.length <= WORD_BYTES_MAX {
            true => String::from_utf8_lossy(&scan.word[..scan.length]).into_owned(),
            false => "x".repeat(WORD_BYTES_MAX + 1),
        };
        words.push((word, before));
        before = scan.gap(false);
    }
    words
}

/// A text without white space at both ends, as by Python's `str.strip`.
pub(super) fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// White space as in Python: that of Unicode, and the four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// By byte: the lower-case letter, digit or `_`; 0 for other bytes, and for bytes beyond ASCII.
const FOLDED: [u8; 256] = {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 128 {
        let c = byte as u8;
        if c.is_ascii_alphanumeric() || c == b'_' {
            table[byte] = c.to_ascii_lowercase();
        }
        byte += 1;
    }
    table
};

/// FNV-1a, 32 bits.
fn hash(bytes: &[u8]) -> u32 {
    bytes.iter().fold(FNV_OFFSET, |hashed, byte| (hashed ^ u32::from(*byte)).wrapping_mul(FNV_PRIME))
}

const FNV_OFFSET: u32 = 0x811c_9dc5;
const FNV_PRIME: u32 = 0x0100_0193;

/// A position in a text, and the last word.
struct Scan<'t> {
    text: &'t str,
    at: usize,
    word: [u8; WORD_BYTES_MAX],
    /// The length of the word, which can exceed the array: such a word is unknown.
    length: usize,
    hashed: u32,
}

impl Scan<'_> {
    fn push(&mut self, byte: u8) {
        if let Some(slot) = self.word.get_mut(self.length) {
            *slot = byte;
        }
        self.hashed = (self.hashed ^ u32::from(byte)).wrapping_mul(FNV_PRIME);
        self.length += 1;
    }

    fn next_char(&self) -> Option<char> {
        self.text[self.at..].chars().next()
    }

    fn space_follows(&self) -> bool {
        match self.text.as_bytes().get(self.at) {
            None => false,
            Some(b' ') => true,
            Some(_) => self.next_char().is_some_and(is_space),
        }
    }

    /// Reads a word in lower case. True if it ends with `İ`, whose lower case is an `i` and a combining dot, which ends
    /// a word.
    fn word(&mut self) -> bool {
        (self.length, self.hashed) = (0, FNV_OFFSET);
        let bytes = self.text.as_bytes();
        while let Some(&byte) = bytes.get(self.at) {
            let folded = FOLDED[usize::from(byte)];
            if folded != 0 {
                self.push(folded);
                self.at += 1;
                continue;
            }
            if byte < 128 {
                return false;
            }
            let Some(c) = self.next_char().filter(|c| is_word(*c)) else { return false };
            self.at += c.len_utf8();
            match c {
                'ſ' => self.push(b's'),
                'ı' => self.push(b'i'),
                'İ' => {
                    self.push(b'i');
                    return true;
                }
                'ς' => self.push_char('σ'),
                _ => c.to_lowercase().for_each(|c| self.push_char(c)),
            }
        }
        false
    }

    fn push_char(&mut self, c: char) {
        let mut buffer = [0; 4];
        for byte in c.encode_utf8(&mut buffer).bytes() {
            self.push(byte);
        }
    }

    /// Advances to the next word and returns the gap before it.
    fn gap(&mut self, first: bool) -> Gap {
        let from = self.at;
        let bytes = self.text.as_bytes();
        let mut strongest = if first { Gap::Start } else { Gap::Within };
        while let Some(&byte) = bytes.get(self.at) {
            if byte < 128 {
                if FOLDED[usize::from(byte)] != 0 {
                    break;
                }
                self.at += 1;
                match byte {
                    b'?' => strongest = Gap::Question,
                    b'!' | b'.' | b';' | b'\n' if strongest != Gap::Question => {
                        // The point of a number or of an address does not end a sentence.
                        let ends =
                            byte != b'.' || bytes.get(self.at).is_none_or(|next| FOLDED[usize::from(*next)] == 0);
                        strongest = if ends { Gap::Stop } else { strongest };
                    }
                    _ => {}
                }
                continue;
            }
            let Some(c) = self.next_char() else { break };
            if is_word(c) {
                break;
            }
            self.at += c.len_utf8();
            match c {
                '？' | '؟' => strongest = Gap::Question,
                '…' | '。' | '！' if strongest != Gap::Question => strongest = Gap::Stop,
                _ => {}
            }
        }
        match &self.text[from..self.at] {
            " " if !first => Gap::Space,
            "'" | "’" if !first => Gap::Apostrophe,
            _ => strongest,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lexicon(words: &[&str]) -> Lexicon {
        let mut lexicon = Lexicon::default();
        for word in words {
            lexicon.add(word).unwrap();
        }
        lexicon
    }

    fn ids(lexicon: &Lexicon, text: &str) -> Vec<WordId> {
        let mut words = Words::default();
        lexicon.read(text, &mut words);
        words.words.iter().map(|word| word.id).collect()
    }

    #[test]
    fn words_are_runs_of_letters_digits_and_underscores() {
        let lexicon = lexicon(&["price", "naïve", "switch", "kilo", "i"]);
        assert_eq!(ids(&lexicon, " PRICE, a_price price_b price2 pricé (price)"), [1, 0, 0, 0, 0, 1]);
        assert_eq!(ids(&lexicon, "NAÏVE你好 naïve 你好"), [0, 2, 0]);
        assert_eq!(ids(&lexicon, "ſwitch Kilo kıLO"), [3, 4, 4]);
        assert_eq!(ids(&lexicon, "İprice"), [5, 1]);
        assert_eq!(ids(&lexicon, &"x".repeat(200)), [0]);
        assert_eq!(ids(&lexicon, " \u{1f}\u{a0} "), []);
    }

    #[test]
    fn gaps_have_the_text_between_words() {
        let mut words = Words::default();
        Lexicon::default().read("\"Hi there,  you'll be at 3.5 or d’you go. No?! Yes - ok", &mut words);
        use Gap::{Apostrophe, Question, Space, Start, Stop, Within};
        let gaps: Vec<Gap> = words.words.iter().map(|word| word.before).collect();
        let want = [
            Start, Space, Within, Apostrophe, Space, Space, Space, Within, Space, Space, Apostrophe, Space, Stop,
            Question, Within,
        ];
        assert_eq!(gaps, want);
        assert!(!words.asks_last);
        Lexicon::default().read("is it? ", &mut words);
        assert!(words.asks_last && words.words[0].spaced && !words.words[1].spaced);
    }

    proptest! {
        #[test]
        fn words_equal_a_split_of_the_lower_case_text(text in "[aZé_9İſ '’.?,\u{1f}你\u{300}]{0,24}") {
            let lexicon = lexicon(&["a", "z", "az", "é", "9", "i", "s", "你"]);
            let plain = text.replace('İ', "i\u{307}").to_lowercase().replace('ſ', "s");
            let want: Vec<WordId> = plain
                .split(|c: char| !is_word(c))
                .filter(|word| !word.is_empty())
                .map(|word| lexicon.ids.get(word).copied().unwrap_or(UNKNOWN))
                .collect();
            prop_assert_eq!(ids(&lexicon, &text), want);
        }
    }
}
