//! One item: from its text to the sequences to compute, and from their results to its outcome.

use crate::classify::label_scores;
use crate::code_points::CodePoints;
use crate::config::ModelConfig;
use crate::embed::{normalize, pool};
use crate::entities::{Token, find_entities, merge_windows, read_tokens};
use crate::sentences::split_sentences;
use crate::summarize;
use crate::tokenize::{ModelTokenizer, Sequence, TokenizeError, TruncationSide};
use crate::types::{
    ClassifyOptions, Failure, Item, ModelKind, Output, Overflow, SummaryOptions, Task, TokenOptions, TooLong,
};
use std::ops::Range;
use std::rc::Rc;
use weir_core::inference::summary::SummaryBounds;

/// Windows overlap by this fraction of the longest text, unless the caller sets a stride.
const STRIDE_PARTS: usize = 4;
/// The largest overlap of windows, as a fraction of the longest text: with a larger one every token would be computed
/// many times.
const STRIDE_PARTS_MIN: usize = 2;

/// Maximum size of a text, in bytes.
pub const TEXT_BYTES_MAX: usize = 1_000_000;

/// The configuration and tokenizer of a model: everything but its graph.
pub struct ModelFiles {
    /// The configuration.
    pub config: ModelConfig,
    /// The tokenizer.
    pub tokenizer: ModelTokenizer,
}

/// The output of the graph for one sequence of a batch.
#[derive(Debug, Clone, Copy)]
pub struct RowOutput<'a> {
    /// The values in row-major order.
    pub values: &'a [f32],
    /// `[labels]` or `[hidden]`, or with one row for each token `[sequence, labels]` or `[sequence, hidden]`, padding
    /// included.
    pub shape: &'a [usize],
}

/// An item that is being computed.
pub struct Job {
    files: Rc<ModelFiles>,
    task: JobTask,
    /// The number of sequences without a result.
    parts_left: usize,
}

/// An item after tokenizing: either some sequences have to be computed, or there is nothing to compute.
pub enum Prepared {
    /// The sequences to compute; their positions are the `part` of [`Job::accept`].
    Compute(Job, Vec<Sequence>),
    /// The result, if nothing has to be computed.
    Done(Result<Output, Failure>),
}

enum JobTask {
    Classify(ClassifyOptions),
    Tokens {
        text: CodePoints,
        options: TokenOptions,
        stride: usize,
        sections: Vec<Section>,
        /// For each part the index of its section, and the index of its window in the section.
        positions: Vec<(usize, usize)>,
    },
    Embed {
        normalize: bool,
    },
    Summarize {
        sentences: Vec<String>,
        /// The number of tokens of each sentence, without special tokens.
        lengths: Vec<usize>,
        bounds: SummaryBounds,
        vectors: Vec<Vec<f32>>,
    },
}

/// A sentence or a whole text, read in one window or several.
struct Section {
    /// The index of its first code point in the text.
    base: usize,
    /// The ranges of the windows among its tokens.
    windows: Vec<Range<usize>>,
    /// The tokens that were read in each window.
    read: Vec<Vec<Token>>,
}

/// Checks an item and tokenizes it.
pub fn prepare(item: Item, files: &Rc<ModelFiles>) -> Prepared {
    match check(&item, files.config.kind).and_then(|()| tokenize(item, files)) {
        Ok(prepared) => prepared,
        Err(failure) => Prepared::Done(Err(failure)),
    }
}

/// Checks the sizes of an item, which needs no model.
///
/// # Errors
///
/// [`Failure::InvalidInput`] if a text has more than [`TEXT_BYTES_MAX`] bytes.
pub fn check_sizes(item: &Item) -> Result<(), Failure> {
    let longest = item.text.len().max(item.text_pair.as_ref().map_or(0, String::len));
    if longest > TEXT_BYTES_MAX {
        return Err(Failure::InvalidInput(format!("a text may have {TEXT_BYTES_MAX} bytes, this one has {longest}")));
    }
    Ok(())
}

fn check(item: &Item, kind: ModelKind) -> Result<(), Failure> {
    check_sizes(item)?;
    let invalid = |text: String| Err(Failure::InvalidInput(text));
    let (task, wanted) = match item.task {
        Task::Classify(_) => ("classify", ModelKind::TextClassification),
        Task::Tokens(_) => ("tokens", ModelKind::TokenClassification),
        Task::Embed(_) => ("embed", ModelKind::FeatureExtraction),
        Task::Summarize(_) => ("summarize", ModelKind::FeatureExtraction),
    };
    if kind != wanted {
        let (wanted, kind) = (kind_name(wanted), kind_name(kind));
        return invalid(format!("{task} needs a {wanted} model, and {} is a {kind} model", item.model));
    }
    if let Task::Tokens(TokenOptions { stride: Some(_), .. }) = item.task
        && item.overflow != Overflow::Split
    {
        return invalid("stride applies to windows, and overflow is not split: use split".to_owned());
    }
    if item.text_pair.is_some() && !matches!(item.task, Task::Classify(_)) {
        return invalid(format!("{task} takes one text, not a pair"));
    }
    if item.overflow == Overflow::Split && matches!(item.task, Task::Classify(_) | Task::Embed(_)) {
        return invalid(format!("{task} cannot split a text: use truncate or fail"));
    }
    if let Task::Summarize(SummaryOptions { tokens_min, tokens_max }) = item.task
        && (tokens_max == 0 || tokens_min > tokens_max)
    {
        return invalid(format!("tokens-min is {tokens_min} and tokens-max is {tokens_max}: 0 < max and min <= max"));
    }
    Ok(())
}

/// The name of a kind as the Hugging Face hub writes it.
fn kind_name(kind: ModelKind) -> &'static str {
    match kind {
        ModelKind::TextClassification => "text-classification",
        ModelKind::TokenClassification => "token-classification",
        ModelKind::FeatureExtraction => "feature-extraction",
    }
}

fn tokenize(item: Item, files: &Rc<ModelFiles>) -> Result<Prepared, Failure> {
    let Item { text, text_pair, overflow, task, .. } = item;
    let (task, parts) = match task {
        Task::Classify(options) => {
            // As in transformers, an empty second text counts as none.
            let pair = text_pair.as_deref().filter(|pair| !pair.is_empty());
            let sequence = one_sequence(&text, pair, overflow, &files.tokenizer)?;
            (JobTask::Classify(options), vec![sequence])
        }
        Task::Embed(options) => {
            let sequence = one_sequence(&text, None, overflow, &files.tokenizer)?;
            (JobTask::Embed { normalize: options.normalize }, vec![sequence])
        }
        Task::Tokens(options) => tokens_task(text, overflow, options, &files.tokenizer)?,
        Task::Summarize(options) => {
            let bounds =
                SummaryBounds { tokens_min: options.tokens_min as usize, tokens_max: options.tokens_max as usize };
            match summary_task(&text, overflow, bounds, &files.tokenizer)? {
                Ok(task) => task,
                Err(summary) => return Ok(Prepared::Done(Ok(Output::Summary(summary)))),
            }
        }
    };
    if parts.iter().any(|sequence| sequence.ids.is_empty()) {
        return Err(Failure::InvalidInput("the text has no tokens".to_owned()));
    }
    if parts.is_empty() {
        return Ok(Prepared::Done(Ok(Output::Entities(Vec::new()))));
    }
    Ok(Prepared::Compute(Job { files: files.clone(), task, parts_left: parts.len() }, parts))
}

fn one_sequence(
    text: &str,
    pair: Option<&str>,
    overflow: Overflow,
    tokenizer: &ModelTokenizer,
) -> Result<Sequence, Failure> {
    if overflow == Overflow::Truncate {
        return tokenizer.tokenize_beginning(text, pair).map_err(unreadable);
    }
    let tokenized = tokenizer.tokenize(text, pair, truncation_side(overflow)).map_err(unreadable)?;
    if overflow == Overflow::Fail {
        check_length(tokenized.tokens_total, tokenizer)?;
    }
    Ok(tokenized.sequence)
}

/// The end of a too long text that remains.
fn truncation_side(overflow: Overflow) -> TruncationSide {
    match overflow {
        Overflow::TruncateLeft => TruncationSide::End,
        Overflow::Truncate | Overflow::Fail | Overflow::Split => TruncationSide::Beginning,
    }
}

fn check_length(tokens: usize, tokenizer: &ModelTokenizer) -> Result<(), Failure> {
    if tokens <= tokenizer.tokens_max() {
        return Ok(());
    }
    // A text of at most `TEXT_BYTES_MAX` bytes has fewer tokens than `u32::MAX`.
    Err(Failure::TooLong(TooLong { tokens: tokens as u32, tokens_max: tokenizer.tokens_max() as u32 }))
}

fn tokens_task(
    text: String,
    overflow: Overflow,
    options: TokenOptions,
    tokenizer: &ModelTokenizer,
) -> Result<(JobTask, Vec<Sequence>), Failure> {
    let stride_max = tokenizer.room() / STRIDE_PARTS_MIN;
    let stride = match options.stride {
        Some(stride) if stride as usize > stride_max => {
            let reason = format!("stride is {stride} and may be {stride_max}, half of the tokens that the model takes");
            return Err(Failure::InvalidInput(reason));
        }
        Some(stride) => stride as usize,
        None => tokenizer.room() / STRIDE_PARTS,
    };
    let (mut sections, mut positions, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |base: usize, windows: Vec<(Range<usize>, Sequence)>| {
        let section = sections.len();
        positions.extend((0..windows.len()).map(|window| (section, window)));
        let (windows, sequences): (Vec<_>, Vec<_>) = windows.into_iter().unzip();
        parts.extend(sequences);
        let read = windows.iter().map(|_| Vec::new()).collect();
        sections.push(Section { base, windows, read });
    };
    let text = if overflow == Overflow::Split {
        let ranges = match options.stride {
            // White space alone has no tokens.
            Some(_) => std::iter::once(0..text.len()).filter(|_| !text.trim().is_empty()).collect(),
            None => split_sentences(&text),
        };
        let text = CodePoints::new(text);
        for range in ranges {
            let base = text.at_byte(range.start);
            add(base, tokenizer.tokenize_windows(&text.text()[range], stride).map_err(unreadable)?);
        }
        text
    } else {
        let sequence = one_sequence(&text, None, overflow, tokenizer)?;
        add(0, vec![(0..sequence.ids.len(), sequence)]);
        CodePoints::new(text)
    };
    Ok((JobTask::Tokens { text, options, stride, sections, positions }, parts))
}

/// The sentences to embed or, for a text of at most one sentence, the summary itself.
#[allow(clippy::type_complexity)]
fn summary_task(
    text: &str,
    overflow: Overflow,
    bounds: SummaryBounds,
    tokenizer: &ModelTokenizer,
) -> Result<Result<(JobTask, Vec<Sequence>), String>, Failure> {
    let mut text = text.trim();
    if overflow != Overflow::Split {
        let ends = tokenizer.token_ends(text).map_err(unreadable)?;
        if overflow == Overflow::Fail {
            check_length(ends.len() + tokenizer.tokens_max() - tokenizer.room(), tokenizer)?;
        }
        if ends.len() > tokenizer.room() {
            text = match truncation_side(overflow) {
                TruncationSide::Beginning => &text[..text.floor_char_boundary(ends[tokenizer.room() - 1])],
                // Begins after the last token that is cut off.
                TruncationSide::End => &text[text.ceil_char_boundary(ends[ends.len() - tokenizer.room() - 1])..],
            };
        }
    }
    let sentences = summarize::sentences_of(text);
    if sentences.len() < 2 {
        let summary = summarize::cut(text, bounds, tokenizer).map_err(unreadable)?;
        return Ok(Err(summary.to_owned()));
    }
    let (mut lengths, mut parts) = (Vec::new(), Vec::new());
    for sentence in &sentences {
        let tokenized = tokenizer.tokenize(sentence, None, TruncationSide::Beginning).map_err(unreadable)?;
        lengths.push(tokenized.tokens_total + tokenizer.room() - tokenizer.tokens_max());
        parts.push(tokenized.sequence);
    }
    let vectors = vec![Vec::new(); parts.len()];
    Ok(Ok((JobTask::Summarize { sentences, lengths, bounds, vectors }, parts)))
}

fn unreadable(error: TokenizeError) -> Failure {
    Failure::InvalidInput(error.to_string())
}

impl Job {
    /// Accepts the result of one of the job's sequences; returns the outcome after the last one, or once a failure is certain.
    pub fn accept(
        &mut self,
        part: usize,
        sequence: &Sequence,
        output: RowOutput<'_>,
    ) -> Option<Result<Output, Failure>> {
        self.parts_left -= 1;
        match self.accept_row(part, sequence, output) {
            Err(failure) => Some(Err(failure)),
            Ok(Some(output)) => Some(Ok(output)),
            Ok(None) if self.parts_left == 0 => Some(self.finish()),
            Ok(None) => None,
        }
    }

    fn accept_row(
        &mut self,
        part: usize,
        sequence: &Sequence,
        output: RowOutput<'_>,
    ) -> Result<Option<Output>, Failure> {
        let ModelFiles { config, tokenizer } = &*self.files;
        match &mut self.task {
            JobTask::Classify(options) => {
                expect_rank(output, 1)?;
                let activation = options.activation.unwrap_or(config.activation);
                let scores = label_scores(output.values, &config.labels, activation, options.top_k)?;
                Ok(Some(Output::Labels(scores)))
            }
            JobTask::Tokens { text, sections, positions, .. } => {
                expect_rank(output, 2)?;
                if output.shape[1] != config.labels.len() {
                    let (given, named) = (output.shape[1], config.labels.len());
                    let text = format!("the graph scores {given} labels and the configuration names {named}");
                    return Err(Failure::Engine(text));
                }
                let (section, window) = positions[part];
                let Section { base, read, .. } = &mut sections[section];
                read[window] = read_tokens(text, *base, sequence, output.values, &config.labels, tokenizer)?;
                Ok(None)
            }
            JobTask::Embed { normalize: is_normalized } => {
                let mut vector = vector_of(config, sequence, output)?;
                if *is_normalized {
                    normalize(&mut vector);
                }
                Ok(Some(Output::Embedding(vector)))
            }
            JobTask::Summarize { vectors, .. } => {
                vectors[part] = vector_of(config, sequence, output)?;
                Ok(None)
            }
        }
    }

    fn finish(&mut self) -> Result<Output, Failure> {
        match &mut self.task {
            JobTask::Tokens { text, options, stride, sections, .. } => {
                let ModelFiles { config, tokenizer } = &*self.files;
                let mut entities = Vec::new();
                for Section { windows, read, .. } in std::mem::take(sections) {
                    let tokens = merge_windows(&windows, read, &config.labels, options.aggregation, *stride)?;
                    entities.extend(find_entities(text, tokens, &config.labels, tokenizer, options)?);
                }
                Ok(Output::Entities(entities))
            }
            JobTask::Summarize { sentences, lengths, bounds, vectors } => {
                summarize::compose(sentences, vectors, lengths, *bounds, &self.files.tokenizer)
                    .map(Output::Summary)
                    .map_err(|error| Failure::Other(error.to_string()))
            }
            JobTask::Classify(_) | JobTask::Embed { .. } => Err(Failure::Other("the item has no result".to_owned())),
        }
    }
}

fn expect_rank(output: RowOutput<'_>, rank: usize) -> Result<(), Failure> {
    if output.shape.len() == rank {
        return Ok(());
    }
    Err(Failure::Engine(format!("the graph gives rank {} for each text, {rank} was expected", output.shape.len())))
}

/// The vector of a text, from what the graph gives for it.
fn vector_of(config: &ModelConfig, sequence: &Sequence, output: RowOutput<'_>) -> Result<Vec<f32>, Failure> {
    let vector = match *output.shape {
        [_] => output.values.to_vec(),
        [_, hidden] => pool(output.values, hidden, sequence.ids.len(), config.pooling)?,
        _ => return expect_rank(output, 1).map(|()| Vec::new()),
    };
    if vector.iter().any(|x| !x.is_finite()) {
        return Err(Failure::Engine("the model gave a vector that is not of numbers".to_owned()));
    }
    Ok(vector)
}
