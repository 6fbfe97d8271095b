//! From texts to sentences: the default rules of Unicode (UAX #29, section 5), with corrections where they break too
//! often.
//!
//! The rules end a sentence at every line break and at the full stop of `Dr. Brown`. Here a single line break ends a
//! sentence only if the line looks complete, so that wrapped text stays together, and a full stop after a common
//! English abbreviation or an initial does not end one.

use std::ops::Range;
use unicode_segmentation::UnicodeSegmentation;

/// A line of at least this many code points that ends without punctuation is wrapped text; a shorter one is a heading or an item of a
/// list.
const WRAPPED_LINE_MIN: usize = 50;

/// Abbreviations that are followed by a capital letter within a sentence.
const ABBREVIATIONS: [&str; 37] = [
    "Adm", "Apr", "Aug", "Brig", "Capt", "Cmdr", "Col", "Dec", "Dr", "Feb", "Fr", "Ft", "Gen", "Gov", "Hon", "Jan",
    "Jr", "Lt", "Maj", "Messrs", "Mr", "Mrs", "Ms", "Mt", "Nov", "Oct", "Pres", "Prof", "Rep", "Rev", "Sen", "Sept",
    "Sgt", "Sr", "St", "cf", "vs",
];

/// The sentences of a text as byte ranges, in order, without the white space around them. What lies between them is
/// white space only.
pub fn split_sentences(text: &str) -> Vec<Range<usize>> {
    let mut sentences: Vec<Range<usize>> = Vec::new();
    for (start, piece) in text.split_sentence_bound_indices() {
        let start = start + (piece.len() - piece.trim_start().len());
        let end = start + piece.trim().len();
        if start >= end {
            continue;
        }
        match sentences.last_mut() {
            Some(last) if is_continued(&text[last.clone()], &text[last.end..start], &text[start..end]) => {
                last.end = end
            }
            _ => sentences.push(start..end),
        }
    }
    sentences
}

/// Whether the sentence that seems to end with `previous` continues with `next`.
fn is_continued(previous: &str, gap: &str, next: &str) -> bool {
    let line_breaks = gap.matches(['\n', '\u{85}', '\u{2028}']).count() + 2 * gap.matches('\u{2029}').count();
    if line_breaks > 1 {
        return false;
    }
    if ends_with_abbreviation(previous) {
        return true;
    }
    let finished = previous.trim_end_matches(['"', '\'', '”', '’', ')', ']', '»']);
    if line_breaks == 0 || finished.ends_with(['.', '!', '?', ':', ';', '…', '。', '！', '？']) {
        return false;
    }
    let line = previous.rsplit('\n').next().unwrap_or(previous);
    next.starts_with(char::is_lowercase) || line.chars().count() >= WRAPPED_LINE_MIN
}

/// True after `Dr.`, after an initial (`J.`) and after letters with a stop each (`U.S.`).
fn ends_with_abbreviation(sentence: &str) -> bool {
    let Some(rest) = sentence.strip_suffix('.') else { return false };
    let word = rest.rsplit(|c: char| c.is_whitespace() || matches!(c, '(' | '"' | '“' | '[')).next().unwrap_or(rest);
    let single = |part: &str| part.chars().count() == 1 && part.chars().all(char::is_alphabetic);
    match word.split_once('.') {
        Some(_) => word.split('.').all(single),
        // "I" is a word, which can end a sentence.
        None => ABBREVIATIONS.contains(&word) || single(word) && word != "I" && word.starts_with(char::is_uppercase),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: &[&str]) {
        let sentences: Vec<&str> = split_sentences(text).into_iter().map(|range| &text[range]).collect();
        assert_eq!(sentences, expected, "{text:?}");
    }

    #[test]
    fn empty_text_has_no_sentences() {
        check("", &[]);
        check(" \n\t\r\n ", &[]);
    }

    #[test]
    fn punctuation_ends_a_sentence() {
        check("It rains. Does it? Yes!  “Good.” he said", &["It rains.", "Does it?", "Yes!", "“Good.” he said"]);
        check("今日は。明日は？", &["今日は。", "明日は？"]);
        check("It cost 3.50 euros. Fine.", &["It cost 3.50 euros.", "Fine."]);
    }

    #[test]
    fn abbreviation_or_initial_does_not_end_a_sentence() {
        check("Dr. Brown met J. K. Smith. They spoke.", &["Dr. Brown met J. K. Smith.", "They spoke."]);
        check("The U.S. Army left. (Mr. X stayed.)", &["The U.S. Army left.", "(Mr. X stayed.)"]);
        check("So do I. Then he left.", &["So do I.", "Then he left."]);
    }

    #[test]
    fn wrapped_lines_stay_together_and_paragraphs_do_not() {
        check(
            "A heading\nThe first line of this paragraph is long enough to be\nWrapped here, and\ngoes on.\n\nNext.",
            &[
                "A heading",
                "The first line of this paragraph is long enough to be\nWrapped here, and\ngoes on.",
                "Next.",
            ],
        );
        check("one\r\n\r\ntwo", &["one", "two"]);
    }
}
