//! Token logits into labelled spans, as the token-classification pipeline of transformers 4.57 does it.

use crate::classify::softmax;
use crate::tokenize::{ModelTokenizer, Sequence};
use crate::types::{Aggregation, Entity, Failure, TokenOptions};

/// A text with the byte of each of its code points, so that offsets in code points can be looked up.
pub struct CodePoints {
    text: String,
    /// The first byte of each code point, and the length of the text.
    bytes: Vec<usize>,
}

impl CodePoints {
    /// Indexes a text.
    pub fn new(text: String) -> Self {
        let bytes = text.char_indices().map(|(byte, _)| byte).chain([text.len()]).collect();
        Self { text, bytes }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The code point that starts at `byte`, which is a boundary.
    pub fn at_byte(&self, byte: usize) -> usize {
        self.bytes.partition_point(|&start| start < byte)
    }

    /// The code points from `start` to before `end`, or what of them the text has.
    pub fn slice(&self, start: usize, end: usize) -> &str {
        let last = self.bytes.len() - 1;
        let end = end.min(last);
        &self.text[self.bytes[start.min(end)]..self.bytes[end]]
    }
}

/// A token with its scores.
struct Token {
    word: String,
    scores: Vec<f32>,
    index: usize,
    start: usize,
    end: usize,
    continues_word: bool,
}

/// A span with one label: a token, or a word.
struct Labelled {
    label: usize,
    score: f32,
    index: usize,
    word: String,
    start: usize,
    end: usize,
}

/// The spans that a model found in one sequence.
///
/// `sequence` was made from the part of `text` that begins at the code point `base`; `logits` is
/// `[tokens or more, labels]`, row by row. Offsets in the result are those of `text`.
pub fn find_entities(
    text: &CodePoints,
    base: usize,
    sequence: &Sequence,
    logits: &[f32],
    labels: &[String],
    tokenizer: &ModelTokenizer,
    options: &TokenOptions,
) -> Result<Vec<Entity>, Failure> {
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
    let spans = match options.aggregation {
        Aggregation::None | Aggregation::Simple => tokens.into_iter().map(label_token).collect(),
        Aggregation::First | Aggregation::Average | Aggregation::Max => {
            label_words(tokens, options.aggregation, tokenizer)?
        }
    };
    let mut entities = match options.aggregation {
        Aggregation::None => spans.into_iter().map(|span| entity_of(span, labels)).collect(),
        _ => group(spans, labels, tokenizer)?,
    };
    entities.retain(|entity| !options.ignore_labels.contains(&entity.label));
    Ok(entities)
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
    let surface = text.slice(base + start, base + end);
    let mut word = tokenizer.token(id);
    let continues_word = if tokenizer.is_unknown(id) {
        word = surface.to_owned();
        false
    } else if tokenizer.marks_subwords() {
        word.chars().count() != surface.chars().count()
    } else {
        // Without marks, a token continues a word when there is no space at its start or right before it.
        start > 0 && !text.slice(base + start - 1, base + start + 1).contains(' ')
    };
    Token { word, scores, index, start: base + start, end: base + end, continues_word }
}

/// The first of the highest scores.
fn best(scores: &[f32]) -> (usize, f32) {
    let first = (0, scores.first().copied().unwrap_or_default());
    scores.iter().copied().enumerate().fold(first, |best, next| if next.1 > best.1 { next } else { best })
}

fn label_token(token: Token) -> Labelled {
    let (label, score) = best(&token.scores);
    Labelled { label, score, index: token.index, word: token.word, start: token.start, end: token.end }
}

/// One span for each word, its label chosen from the scores of its tokens.
fn label_words(
    tokens: Vec<Token>,
    aggregation: Aggregation,
    tokenizer: &ModelTokenizer,
) -> Result<Vec<Labelled>, Failure> {
    tokens
        .chunk_by(|_, next| next.continues_word)
        .map(|word| {
            let (label, score) = match aggregation {
                Aggregation::Average => best(&mean_scores(word)),
                Aggregation::Max => word
                    .iter()
                    .map(|token| best(&token.scores))
                    .reduce(|max, next| if next.1 > max.1 { next } else { max })
                    .unwrap_or_default(),
                Aggregation::None | Aggregation::Simple | Aggregation::First => best(&word[0].scores),
            };
            let joined = join(word.iter().map(|token| token.word.clone()).collect(), tokenizer)?;
            let (start, end) = (word[0].start, word[word.len() - 1].end);
            Ok(Labelled { label, score, index: word[0].index, word: joined, start, end })
        })
        .collect()
}

/// The mean score of each label over the tokens of a word.
fn mean_scores(word: &[Token]) -> Vec<f32> {
    let mut sums = vec![0.0f32; word[0].scores.len()];
    for token in word {
        sums.iter_mut().zip(&token.scores).for_each(|(sum, score)| *sum += score);
    }
    sums.into_iter().map(|sum| sum / word.len() as f32).collect()
}

/// Joins neighbours of the same entity; a `B-` label begins a new one.
fn group(spans: Vec<Labelled>, labels: &[String], tokenizer: &ModelTokenizer) -> Result<Vec<Entity>, Failure> {
    spans
        .chunk_by(|previous, next| {
            let (begins, entity) = read_label(&labels[next.label]);
            !begins && entity == read_label(&labels[previous.label]).1
        })
        .map(|spans| {
            let score = spans.iter().map(|span| span.score).sum::<f32>() / spans.len() as f32;
            let label = &labels[spans[0].label];
            // Not what `read_label` gives: the group is named by what follows the first hyphen, whatever precedes it.
            let label = label.split_once('-').map_or(label.as_str(), |(_, entity)| entity).to_owned();
            let word = join(spans.iter().map(|span| span.word.clone()).collect(), tokenizer)?;
            let (start, end) = (spans[0].start as u32, spans[spans.len() - 1].end as u32);
            Ok(Entity { label, score, index: None, word, start, end })
        })
        .collect()
}

/// Whether a label begins an entity, and which. Labels without a prefix continue one.
fn read_label(label: &str) -> (bool, &str) {
    match (label.strip_prefix("B-"), label.strip_prefix("I-")) {
        (Some(entity), _) => (true, entity),
        (None, Some(entity)) => (false, entity),
        (None, None) => (false, label),
    }
}

fn entity_of(span: Labelled, labels: &[String]) -> Entity {
    Entity {
        label: labels[span.label].clone(),
        score: span.score,
        index: Some(span.index as u32),
        word: span.word,
        start: span.start as u32,
        end: span.end as u32,
    }
}

fn join(tokens: Vec<String>, tokenizer: &ModelTokenizer) -> Result<String, Failure> {
    tokenizer.join(tokens).map_err(|error| Failure::Other(error.to_string()))
}
