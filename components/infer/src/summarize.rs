//! Extractive summaries: from a text and the vectors of its sentences to the summary.
//!
//! The selection of sentences is [`weir_core::inference::summary`]; here they are counted, cut and joined.

use crate::sentences::split_sentences;
use crate::tokenize::{ModelTokenizer, TokenizeError};
use unicode_segmentation::UnicodeSegmentation;
use weir_core::inference::summary::{Selection, Similarity, SummaryBounds, select_sentences};

/// Maximum number of sentences, from the beginning of the text: the cost of centrality is quadratic.
pub const SENTENCES_MAX: usize = 1024;

/// Maximum number of cut positions that are tried of each kind (word boundaries, token boundaries), from the last on.
const CUTS_MAX: usize = 8;

/// The sentences of `text` that a summary is made of.
pub fn sentences_of(text: &str) -> Vec<String> {
    split_sentences(text).into_iter().take(SENTENCES_MAX).map(|range| text[range].to_owned()).collect()
}

/// The summary of `sentences`, given the vector of each and its length in tokens without special tokens.
pub fn compose(
    sentences: &[String],
    vectors: &[Vec<f32>],
    lengths: &[usize],
    bounds: SummaryBounds,
    tokenizer: &ModelTokenizer,
) -> Result<String, TokenizeError> {
    let Selection { sentences: chosen, cut: cut_sentence } =
        select_sentences(&Similarity::cosine(vectors), lengths, bounds);
    let mut summary = String::new();
    for sentence in chosen {
        if !summary.is_empty() {
            summary.push(' ');
        }
        match cut_sentence {
            Some((index, tokens_max)) if index == sentence => {
                // `tokens_max` is what the other sentences leave of the budget; with this minimum the summary reaches
                // its own.
                let tokens_min = tokens_max.saturating_sub(bounds.tokens_max - bounds.tokens_min);
                summary.push_str(cut(&sentences[sentence], SummaryBounds { tokens_min, tokens_max }, tokenizer)?);
            }
            _ => summary.push_str(&sentences[sentence]),
        }
    }
    // Joining may change the tokens at the seams, so the maximum is applied to the result again.
    Ok(cut(&summary, bounds, tokenizer)?.trim().to_owned())
}

/// The beginning of a text within `bounds.tokens_max`, cut at a word boundary, or between tokens where the last word
/// boundaries leave less than `bounds.tokens_min`.
pub fn cut<'a>(text: &'a str, bounds: SummaryBounds, tokenizer: &ModelTokenizer) -> Result<&'a str, TokenizeError> {
    let ends = tokenizer.token_ends(text)?;
    if ends.len() <= bounds.tokens_max {
        return Ok(text);
    }
    let Some(&limit) = bounds.tokens_max.checked_sub(1).and_then(|last| ends.get(last)) else { return Ok("") };
    let words: Vec<usize> =
        text.split_word_bound_indices().map(|(start, _)| start).take_while(|&start| start <= limit).collect();
    let words = words.into_iter().rev().map(|end| (end, bounds.tokens_min.max(1)));
    let tokens = ends[..bounds.tokens_max].iter().rev().map(|&end| (text.floor_char_boundary(end), 1));
    // A shorter text may have more tokens than its part of the longer one, so the result is counted.
    for (end, tokens_min) in words.take(CUTS_MAX).chain(tokens.take(CUTS_MAX)) {
        let beginning = text[..end].trim_end();
        if (tokens_min..=bounds.tokens_max).contains(&tokenizer.count(beginning)?) {
            return Ok(beginning);
        }
    }
    Ok("")
}
