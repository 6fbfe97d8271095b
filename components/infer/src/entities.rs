//! From token logits to labelled spans, as in the token-classification pipeline of transformers 4.57.

use std::ops::Range;

use crate::classify::softmax;
use crate::code_points::CodePoints;
use crate::tokenize::{ModelTokenizer, Sequence};
use crate::types::{Aggregation, Entity, Failure, TokenOptions};
use crate::windows::{Overlap, TokenPrediction};

/// The label of tokens that belong to no entity.
const OUTSIDE: &str = "O";

/// A token with its scores.
#[derive(Default)]
pub struct Token {
    word: String,
    scores: Vec<f32>,
    index: usize,
    start: usize,
    end: usize,
    continues_word: bool,
}

/// A span with one label: a token, or a word.
struct LabelledSpan {
    label: usize,
    score: f32,
    index: usize,
    word: String,
    start: usize,
    end: usize,
}

/// The tokens of one sequence with their scores, without special tokens.
///
/// `sequence` was made from the part of `text` that begins at the code point `base`. `logits` has the shape `[rows,
/// labels]` in row-major order, with at least as many rows as the sequence has tokens. Offsets in the result are code
/// points of `text`.
///
/// # Errors
///
/// [`Failure::Engine`] for another shape or a score that is not finite.
pub fn read_tokens(
    text: &CodePoints,
    base: usize,
    sequence: &Sequence,
    logits: &[f32],
    labels: &[String],
    tokenizer: &ModelTokenizer,
) -> Result<Vec<Token>, Failure> {
    if labels.is_empty() || logits.len() < sequence.ids.len() * labels.len() {
        return Err(Failure::Engine(format!(
            "{} logits are not {} labels for each of {} tokens",
            logits.len(),
            labels.len(),
            sequence.ids.len()
        )));
    }
    let rows = logits.chunks_exact(labels.len());
    let mut tokens = Vec::new();
    for (index, row) in rows.take(sequence.ids.len()).enumerate().filter(|&(index, _)| !sequence.special[index]) {
        let token = read_token(text, base, sequence, index, softmax(row), tokenizer);
        if token.scores.iter().any(|score| !score.is_finite()) {
            return Err(Failure::Engine("the model gave a score that is not a number".to_owned()));
        }
        tokens.push(token);
    }
    Ok(tokens)
}

/// The entities among the tokens of a text, without the labels to ignore.
///
/// # Errors
///
/// [`Failure::Other`] if the tokenizer cannot join tokens.
pub fn find_entities(
    text: &CodePoints,
    tokens: Vec<Token>,
    labels: &[String],
    tokenizer: &ModelTokenizer,
    options: &TokenOptions,
) -> Result<Vec<Entity>, Failure> {
    let spans = match options.aggregation {
        Aggregation::None | Aggregation::Simple => tokens.into_iter().map(label_token).collect(),
        Aggregation::First | Aggregation::Average | Aggregation::Max => {
            label_words(tokens, options.aggregation, tokenizer)?
        }
    };
    let mut entities = match options.aggregation {
        Aggregation::None => spans.into_iter().map(|span| entity_of(text, span, labels)).collect(),
        _ => group(text, spans, labels, tokenizer)?,
    };
    entities.retain(|entity| !options.ignore_labels.contains(&entity.label));
    Ok(entities)
}

/// Merges the tokens of a text that was read in windows: each token from the window that has the best context for it.
/// `windows` are the ranges of the windows among the tokens of the text, and `read` the tokens of each window.
///
/// # Errors
///
/// [`Failure::Other`] if a window and its tokens differ in length.
pub fn merge_windows(
    windows: &[Range<usize>],
    mut read: Vec<Vec<Token>>,
    labels: &[String],
    aggregation: Aggregation,
    stride: usize,
) -> Result<Vec<Token>, Failure> {
    if windows.len() < 2 {
        return Ok(read.pop().unwrap_or_default());
    }
    if windows.iter().zip(&read).any(|(window, tokens)| window.len() != tokens.len()) {
        return Err(Failure::Other("the windows of a text do not have its tokens".to_owned()));
    }
    let count = windows.last().map_or(0, |window| window.end);
    let mut continues_word = vec![false; count];
    for (window, tokens) in windows.iter().zip(&read) {
        for (at, token) in window.clone().zip(tokens) {
            continues_word[at] = token.continues_word;
        }
    }
    let predictions: Vec<Vec<TokenPrediction>> =
        read.iter().map(|tokens| predictions(tokens, labels, aggregation)).collect();
    let chosen = Overlap { windows, predictions: &predictions, continues_word: &continues_word, stride }.choose();
    let leading = read[0].first().map_or(0, |token| token.index);
    let take = |(at, window): (usize, usize)| {
        // The index that the token would have in a single sequence.
        Token { index: leading + at, ..std::mem::take(&mut read[window][at - windows[window].start]) }
    };
    Ok(chosen.into_iter().enumerate().map(take).collect())
}

/// The predictions of a window for its tokens: from the label of each token or, if labels are chosen by word, of its
/// word.
fn predictions(tokens: &[Token], labels: &[String], aggregation: Aggregation) -> Vec<TokenPrediction> {
    let by_word = !matches!(aggregation, Aggregation::None | Aggregation::Simple);
    let labelled: Vec<(usize, f32)> = tokens
        .chunk_by(|_, next| by_word && next.continues_word)
        .flat_map(|word| std::iter::repeat_n(label_word(word, aggregation), word.len()))
        .collect();
    let mut previous = None;
    let prediction = |(label, score): (usize, f32)| {
        let (begins, entity) = read_label(&labels[label]);
        let continues = entity != OUTSIDE && !begins && previous == Some(entity);
        previous = Some(entity);
        TokenPrediction { score, continues }
    };
    labelled.into_iter().map(prediction).collect()
}

fn read_token(
    text: &CodePoints,
    base: usize,
    sequence: &Sequence,
    index: usize,
    scores: Vec<f32>,
    tokenizer: &ModelTokenizer,
) -> Token {
    let id = sequence.ids[index];
    let (start, end) = sequence.offsets[index];
    let (start, end) = (base + start, base + end);
    let word = match tokenizer.is_unknown(id) {
        true => text.slice(start, end).to_owned(),
        false => tokenizer.token(id),
    };
    let continues_word = start > base && tokenizer.continues_word(id, text, start, end);
    Token { word, scores, index, start, end, continues_word }
}

/// The first of the highest scores.
fn best(scores: &[f32]) -> (usize, f32) {
    let first = (0, scores.first().copied().unwrap_or_default());
    scores.iter().copied().enumerate().fold(first, |best, next| if next.1 > best.1 { next } else { best })
}

fn label_token(token: Token) -> LabelledSpan {
    let (label, score) = best(&token.scores);
    LabelledSpan { label, score, index: token.index, word: token.word, start: token.start, end: token.end }
}

/// One span for each word, its label chosen from the scores of its tokens.
fn label_words(
    tokens: Vec<Token>,
    aggregation: Aggregation,
    tokenizer: &ModelTokenizer,
) -> Result<Vec<LabelledSpan>, Failure> {
    tokens
        .chunk_by(|_, next| next.continues_word)
        .map(|word| {
            let (label, score) = label_word(word, aggregation);
            let joined = join(word.iter().map(|token| token.word.clone()).collect(), tokenizer)?;
            let (start, end) = (word[0].start, word[word.len() - 1].end);
            Ok(LabelledSpan { label, score, index: word[0].index, word: joined, start, end })
        })
        .collect()
}

/// The label of a word and its score, from the scores of its tokens, of which there is at least one.
fn label_word(word: &[Token], aggregation: Aggregation) -> (usize, f32) {
    match aggregation {
        Aggregation::Average => best(&mean_scores(word)),
        Aggregation::Max => word
            .iter()
            .map(|token| best(&token.scores))
            .reduce(|max, next| if next.1 > max.1 { next } else { max })
            .unwrap_or_default(),
        Aggregation::None | Aggregation::Simple | Aggregation::First => best(&word[0].scores),
    }
}

/// The mean score of each label over the tokens of a word.
fn mean_scores(word: &[Token]) -> Vec<f32> {
    let mut sums = vec![0.0f32; word[0].scores.len()];
    for token in word {
        sums.iter_mut().zip(&token.scores).for_each(|(sum, score)| *sum += score);
    }
    sums.into_iter().map(|sum| sum / word.len() as f32).collect()
}

/// Joins neighbouring spans of the same entity; a `B-` label begins a new entity.
fn group(
    text: &CodePoints,
    spans: Vec<LabelledSpan>,
    labels: &[String],
    tokenizer: &ModelTokenizer,
) -> Result<Vec<Entity>, Failure> {
    spans
        .chunk_by(|previous, next| {
            let (begins, entity) = read_label(&labels[next.label]);
            !begins && entity == read_label(&labels[previous.label]).1
        })
        .map(|spans| {
            let score = spans.iter().map(|span| span.score).sum::<f32>() / spans.len() as f32;
            let label = &labels[spans[0].label];
            // Unlike in `read_label`, the name is what follows the first hyphen, whatever the prefix: as in
            // transformers.
            let label = label.split_once('-').map_or(label.as_str(), |(_, entity)| entity).to_owned();
            let word = join(spans.iter().map(|span| span.word.clone()).collect(), tokenizer)?;
            let (start, end) = (spans[0].start, spans[spans.len() - 1].end);
            let text = text.slice(start, end).to_owned();
            Ok(Entity { label, score, index: None, word, text, start: start as u32, end: end as u32 })
        })
        .collect()
}

/// Whether a label begins an entity, and the name of the entity. A label without a prefix does not begin one.
fn read_label(label: &str) -> (bool, &str) {
    match (label.strip_prefix("B-"), label.strip_prefix("I-")) {
        (Some(entity), _) => (true, entity),
        (None, Some(entity)) => (false, entity),
        (None, None) => (false, label),
    }
}

fn entity_of(text: &CodePoints, span: LabelledSpan, labels: &[String]) -> Entity {
    Entity {
        label: labels[span.label].clone(),
        score: span.score,
        index: Some(span.index as u32),
        text: text.slice(span.start, span.end).to_owned(),
        word: span.word,
        start: span.start as u32,
        end: span.end as u32,
    }
}

fn join(tokens: Vec<String>, tokenizer: &ModelTokenizer) -> Result<String, Failure> {
    tokenizer.join(tokens).map_err(|error| Failure::Other(error.to_string()))
}
