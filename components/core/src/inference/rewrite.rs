//! Abstractive summaries: a language model rewrites the sentences of an extractive summary. The rewritten text is used only if each of its
//! numbers and names is in those sentences.
//!
//! The check prefers the extractive summary: a word with a capital letter is treated as a name.

use std::collections::BTreeSet;

use thiserror::Error;

use crate::named::named;

named! {
    /// The kind of a summary.
    pub enum SummaryMode {
        /// Sentences of the text.
        Extractive = "extractive",
        /// Sentences of the text, rewritten by a language model.
        Abstractive = "abstractive",
    }
}

/// A summary.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SummaryText {
    /// The summary.
    pub text: String,
    /// Its kind, if the request named one.
    pub mode: Option<SummaryMode>,
    /// The reason why it is extractive, if an abstractive one was requested.
    pub fallback: Option<RewriteRefusal>,
}

impl SummaryText {
    /// A summary of a request that named no kind.
    pub fn new(text: String) -> Self {
        Self { text, mode: None, fallback: None }
    }

    /// The abstractive summary, or the sentences with the reason why the rewritten text is not used.
    pub fn rewritten(sentences: String, rewriting: Result<String, RewriteRefusal>) -> Self {
        let checked = rewriting.and_then(|text| check(&sentences, &text).map(|()| text));
        match checked {
            Ok(text) => Self { text, mode: Some(SummaryMode::Abstractive), fallback: None },
            Err(refusal) => Self { text: sentences, mode: Some(SummaryMode::Extractive), fallback: Some(refusal) },
        }
    }
}

/// The reason why a rewritten text is not used.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RewriteRefusal {
    /// The model failed.
    #[error("the model gave no summary: {0}")]
    NoAnswer(String),
    /// The text was truncated at its maximum length.
    #[error("the model's summary was cut off")]
    CutOff,
    /// It has no word.
    #[error("the model's summary is empty")]
    Empty,
    /// It is longer than the sentences.
    #[error("the model's summary is longer than the sentences of the text")]
    Longer,
    /// It has a number that the sentences do not have.
    #[error("the model's summary has the number `{0}`, which the text does not have")]
    Number(String),
    /// It has a name that the sentences do not have.
    #[error("the model's summary has the name `{0}`, which the text does not have")]
    Name(String),
}

/// Checks a rewritten text against its sentences.
///
/// # Errors
///
/// The first violation.
pub fn check(sentences: &str, rewriting: &str) -> Result<(), RewriteRefusal> {
    let source = Source::new(sentences);
    let mut words = words(rewriting).peekable();
    if words.peek().is_none() {
        return Err(RewriteRefusal::Empty);
    }
    if rewriting.chars().count() > sentences.chars().count() {
        return Err(RewriteRefusal::Longer);
    }
    for word in words {
        let Word { text, begins_sentence } = word;
        if text.chars().any(char::is_numeric) || is_number_word(text) {
            if !source.has_number(text) {
                return Err(RewriteRefusal::Number(text.to_owned()));
            }
        } else if text.chars().any(char::is_uppercase) && !source.has_name(text, begins_sentence) {
            return Err(RewriteRefusal::Name(text.to_owned()));
        }
    }
    Ok(())
}

/// The words of the sentences.
struct Source {
    /// The words in their original case.
    words: BTreeSet<String>,
    lower: BTreeSet<String>,
    /// Numbers, without separators of thousands, and words for numbers as digits.
    numbers: BTreeSet<String>,
}

impl Source {
    fn new(sentences: &str) -> Self {
        let words: BTreeSet<String> = words(sentences).map(|word| word.text.to_owned()).collect();
        let lower: BTreeSet<String> = words.iter().map(|word| word.to_lowercase()).collect();
        let numbers = lower.iter().map(|word| number(word)).collect();
        Self { words, lower, numbers }
    }

    fn has_number(&self, text: &str) -> bool {
        self.numbers.contains(&number(&text.to_lowercase()))
    }

    /// Whether the sentences have a name. The first word of a sentence may have a capital letter without being a name.
    fn has_name(&self, text: &str, begins_sentence: bool) -> bool {
        let lower = text.to_lowercase();
        self.words.contains(text)
            || begins_sentence && (self.lower.contains(&lower) || FUNCTION_WORDS.contains(&lower.as_str()))
            || text == "I"
    }
}

/// A word and its position in the sentence.
struct Word<'a> {
    text: &'a str,
    begins_sentence: bool,
}

/// The words of a text: letters and digits, with single points, commas, colons and apostrophes between them. The 's of a possessive is not
/// part of its word.
fn words(text: &str) -> impl Iterator<Item = Word<'_>> {
    let mut rest = text;
    let mut begins_sentence = true;
    std::iter::from_fn(move || {
        loop {
            let start = rest.find(char::is_alphanumeric)?;
            let between = &rest[..start];
            begins_sentence |= between.contains(['.', '!', '?', ':', '\n', '"', '\u{201c}', '\u{201e}', '\u{ab}']);
            rest = &rest[start..];
            let word = &rest[..end_of_word(rest)];
            rest = &rest[word.len()..];
            let text = POSSESSIVES.iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
            if !text.is_empty() {
                return Some(Word { text, begins_sentence: std::mem::take(&mut begins_sentence) });
            }
        }
    })
}

fn end_of_word(text: &str) -> usize {
    let mut end = 0;
    let mut characters = text.char_indices().peekable();
    while let Some((at, character)) = characters.next() {
        let joins = matches!(character, '.' | ',' | ':' | '\'' | '\u{2019}')
            && characters.peek().is_some_and(|(_, next)| next.is_alphanumeric());
        if !character.is_alphanumeric() && !joins {
            break;
        }
        if character.is_alphanumeric() {
            end = at + character.len_utf8();
        }
    }
    end
}

/// The canonical form of a number: `1250` for `1,250`, `7` for `seven`. Other words are unchanged.
fn number(lower: &str) -> String {
    if let Some(value) = NUMBER_WORDS.iter().position(|word| *word == lower).filter(|value| *value <= COUNTED_MAX) {
        return value.to_string();
    }
    let parts: Vec<&str> = lower.split(',').collect();
    let is_grouped = parts.len() > 1
        && parts[1..].iter().all(|part| {
            let digits = part.split('.').next().unwrap_or_default();
            digits.len() == 3 && digits.bytes().all(|byte| byte.is_ascii_digit())
        });
    if is_grouped { parts.concat() } else { lower.to_owned() }
}

/// Whether a word is a number. `one` is not, since it is also a pronoun.
fn is_number_word(text: &str) -> bool {
    let lower = text.to_lowercase();
    lower != "one" && NUMBER_WORDS.contains(&lower.as_str())
}

const POSSESSIVES: [&str; 2] = ["'s", "\u{2019}s"];
/// The [`NUMBER_WORDS`] up to this index have their index as their value.
const COUNTED_MAX: usize = 20;
const NUMBER_WORDS: [&str; 33] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "hundred",
    "thousand",
    "million",
    "billion",
    "dozen",
];
/// Words that are not names at the beginning of a sentence.
const FUNCTION_WORDS: [&str; 74] = [
    "a", "an", "the", "this", "that", "these", "those", "it", "its", "he", "she", "they", "we", "you", "his", "her",
    "their", "our", "my", "your", "there", "here", "in", "on", "at", "of", "to", "for", "from", "with", "by", "as",
    "and", "but", "or", "if", "when", "while", "after", "before", "during", "although", "though", "because", "since",
    "so", "then", "however", "both", "all", "some", "many", "most", "several", "no", "not", "was", "were", "is", "are",
    "has", "have", "had", "will", "can", "may", "who", "what", "which", "where", "how", "also", "one", "each",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SENTENCES: &str = "The city of Lyon opened seven new tram lines on 12 March 2024. Mayor Anna Weber's office said that \
                             1,250 people came, 3.5% more than before. Trams run until 10:30.";

    fn refused(rewriting: &str) -> RewriteRefusal {
        check(SENTENCES, rewriting).unwrap_err()
    }

    #[test]
    fn rewriting_with_the_numbers_and_names_of_the_text_is_used() {
        for rewriting in [
            "Lyon opened 7 tram lines in March 2024, and 1250 people came.",
            "In March 2024, seven lines were opened; Weber said so.",
            "Anna Weber: the trams run until 10:30.",
            "People came. New lines opened in Lyon's city.",
            "It grew by 3.5%.",
            "One of the lines is new.",
        ] {
            assert_eq!(check(SENTENCES, rewriting), Ok(()), "{rewriting}");
        }
    }

    #[test]
    fn number_that_the_text_does_not_have_is_refused() {
        for (rewriting, number) in [
            ("Lyon opened lines in March 2019.", "2019"),
            ("Lyon opened 8 lines.", "8"),
            ("Lyon opened eight lines.", "eight"),
            ("A million people came.", "million"),
            ("125 people came.", "125"),
            ("35% more came.", "35"),
            ("Trams run until 10.30.", "10.30"),
            ("Twelve people came: 12,5 more.", "12,5"),
        ] {
            assert_eq!(refused(rewriting), RewriteRefusal::Number(number.to_owned()), "{rewriting}");
        }
    }

    #[test]
    fn name_that_the_text_does_not_have_is_refused() {
        for (rewriting, name) in [
            ("Paris opened tram lines.", "Paris"),
            ("The mayor of Paris opened lines.", "Paris"),
            ("The lines of NASA opened.", "NASA"),
            ("Weber\u{2019}s friend Bob came.", "Bob"),
            ("The new Trams-Company opened.", "Company"),
            ("Researchers came.", "Researchers"),
        ] {
            assert_eq!(refused(rewriting), RewriteRefusal::Name(name.to_owned()), "{rewriting}");
        }
    }

    #[test]
    fn empty_and_longer_rewritings_are_refused() {
        assert_eq!(refused(" \n... "), RewriteRefusal::Empty);
        assert_eq!(refused(&SENTENCES.repeat(2)), RewriteRefusal::Longer);
    }

    #[test]
    fn refused_rewriting_falls_back_with_the_reason() {
        let good = SummaryText::rewritten("Bob came.".to_owned(), Ok("Bob came.".to_owned()));
        assert_eq!((good.mode, good.fallback), (Some(SummaryMode::Abstractive), None));
        let bad = SummaryText::rewritten("Bob came by.".to_owned(), Ok("Eve came.".to_owned()));
        assert_eq!((bad.text.as_str(), bad.mode), ("Bob came by.", Some(SummaryMode::Extractive)));
        assert_eq!(
            bad.fallback.map(|refusal| refusal.to_string()).as_deref(),
            Some("the model's summary has the name `Eve`, which the text does not have")
        );
    }

    proptest! {
        #[test]
        fn text_is_a_rewriting_of_itself(text in "\\PC{0,60}") {
            let refused = check(&text, &text);
            prop_assert!(matches!(refused, Ok(()) | Err(RewriteRefusal::Empty)), "{refused:?}");
        }

        #[test]
        fn invented_numbers_never_pass(text in "[a-d ]{20,60}", number in 21u32..) {
            let rewriting = format!("{} {number}", &text[..9]);
            prop_assert_eq!(check(&text, &rewriting), Err(RewriteRefusal::Number(number.to_string())));
        }
    }
}
