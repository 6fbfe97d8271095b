//! One item: the sequences to compute for its text, and how their results become its outcome.

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

/// Windows have this part of the longest text in common, where the caller does not say.
const STRIDE_PARTS: usize = 4;
/// Windows may have this part of the longest text in common: more would read every token many times.
const STRIDE_PARTS_MIN: usize = 2;

/// The longest text that is read.
pub const TEXT_BYTES_MAX: usize = 1_000_000;

/// What an item's model is, without its graph.
pub struct ModelFiles {
    /// What its configuration says.
    pub config: ModelConfig,
    /// Its tokenizer.
    pub tokenizer: ModelTokenizer,
}

/// What one sequence of a batch came out as.
#[derive(Debug, Clone, Copy)]
pub struct RowOutput<'a> {
    /// The numbers, row by row.
    pub values: &'a [f32],
    /// `[labels]` or `[hidden]`; with a vector for each token of the padded batch `[sequence, labels]` or
    /// `[sequence, hidden]`.
    pub shape: &'a [usize],
}

/// An item ready to be computed.
pub struct Job {
    files: Rc<ModelFiles>,
    work: JobTask,
    /// How many sequences have no result yet.
    parts_left: usize,
}

/// An item after tokenizing: either some sequences have to be computed, or there is nothing to compute.
pub enum Prepared {
    /// The sequences to compute; their positions are the `part` of [`Job::accept`].
    Compute(Job, Vec<Sequence>),
    /// The result is known already.
    Done(Result<Output, Failure>),
}

enum JobTask {
    Classify(ClassifyOptions),
    Tokens {
        text: CodePoints,
        options: TokenOptions,
        stride: usize,
        sections: Vec<Section>,
        /// For each part its section, and its window in that.
        places: Vec<(usize, usize)>,
    },
    Embed {
        normalize: bool,
    },
    Summarize {
        sentences: Vec<String>,
        /// Tokens of each sentence without special tokens.
        lengths: Vec<usize>,
        bounds: SummaryBounds,
        vectors: Vec<Vec<f32>>,
    },
}

/// A sentence or a whole text, read in one window or several.
struct Section {
    /// Its first code point.
    base: usize,
    /// The ranges of the windows among its tokens.
    windows: Vec<Range<usize>>,
    /// What was read in each window.
    read: Vec<Vec<Token>>,
}

/// Checks an item and tokenizes it.
pub fn prepare(item: Item, files: &Rc<ModelFiles>) -> Prepared {
    match check(&item, files.config.kind).and_then(|()| tokenize(item, files)) {
        Ok(prepared) => prepared,
        Err(failure) => Prepared::Done(Err(failure)),
    }
}

/// Refuses what can be refused without a model.
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
        return invalid("a stride is of windows, and this text is not split: use split".to_owned());
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
    let (work, parts) = match task {
        Task::Classify(options) => {
            // To transformers an empty second text is none.
            let pair = text_pair.as_deref().filter(|pair| !pair.is_empty());
            let sequence = one_sequence(&text, pair, overflow, &files.tokenizer)?;
            (JobTask::Classify(options), vec![sequence])
        }
        Task::Embed(options) => {
            let sequence = one_sequence(&text, None, overflow, &files.tokenizer)?;
            (JobTask::Embed { normalize: options.normalize }, vec![sequence])
        }
        Task::Tokens(options) => tokens_work(text, overflow, options, &files.tokenizer)?,
        Task::Summarize(options) => {
            let bounds =
                SummaryBounds { tokens_min: options.tokens_min as usize, tokens_max: options.tokens_max as usize };
            match summary_work(&text, overflow, bounds, &files.tokenizer)? {
                Ok(work) => work,
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
    Ok(Prepared::Compute(Job { files: files.clone(), work, parts_left: parts.len() }, parts))
}

fn one_sequence(
    text: &str,
    pair: Option<&str>,
    overflow: Overflow,
    tokenizer: &ModelTokenizer,
) -> Result<Sequence, Failure> {
    let tokenized = tokenizer.tokenize(text, pair, keep(overflow)).map_err(unreadable)?;
    if overflow == Overflow::Fail {
        fits(tokenized.tokens_total, tokenizer)?;
    }
    Ok(tokenized.sequence)
}

/// Which part of a text is read that is too long.
fn keep(overflow: Overflow) -> TruncationSide {
    match overflow {
        Overflow::TruncateLeft => TruncationSide::End,
        Overflow::Truncate | Overflow::Fail | Overflow::Split => TruncationSide::Beginning,
    }
}

fn fits(tokens: usize, tokenizer: &ModelTokenizer) -> Result<(), Failure> {
    if tokens <= tokenizer.tokens_max() {
        return Ok(());
    }
    // A text of at most 1,000,000 bytes has fewer tokens than a u32 counts.
    Err(Failure::TooLong(TooLong { tokens: tokens as u32, tokens_max: tokenizer.tokens_max() as u32 }))
}

fn tokens_work(
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
    let (mut sections, mut places, mut parts) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |base: usize, windows: Vec<(Range<usize>, Sequence)>| {
        let section = sections.len();
        places.extend((0..windows.len()).map(|window| (section, window)));
        let (windows, sequences): (Vec<_>, Vec<_>) = windows.into_iter().unzip();
        parts.extend(sequences);
        let read = windows.iter().map(|_| Vec::new()).collect();
        sections.push(Section { base, windows, read });
    };
    let text = if overflow == Overflow::Split {
        let ranges = match options.stride {
            // Nothing but white space has no tokens.
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
    Ok((JobTask::Tokens { text, options, stride, sections, places }, parts))
}

/// The sentences to embed or, for a text of at most one sentence, the summary itself.
#[allow(clippy::type_complexity)]
fn summary_work(
    text: &str,
    overflow: Overflow,
    bounds: SummaryBounds,
    tokenizer: &ModelTokenizer,
) -> Result<Result<(JobTask, Vec<Sequence>), String>, Failure> {
    let mut text = text.trim();
    if overflow != Overflow::Split {
        let ends = tokenizer.token_ends(text).map_err(unreadable)?;
        if overflow == Overflow::Fail {
            fits(ends.len() + tokenizer.tokens_max() - tokenizer.room(), tokenizer)?;
        }
        if ends.len() > tokenizer.room() {
            text = match keep(overflow) {
                TruncationSide::Beginning => &text[..text.floor_char_boundary(ends[tokenizer.room() - 1])],
                // After the last token that is cut off.
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
        match self.take(part, sequence, output) {
            Err(failure) => Some(Err(failure)),
            Ok(Some(output)) => Some(Ok(output)),
            Ok(None) if self.parts_left == 0 => Some(self.finish()),
            Ok(None) => None,
        }
    }

    fn take(&mut self, part: usize, sequence: &Sequence, output: RowOutput<'_>) -> Result<Option<Output>, Failure> {
        let ModelFiles { config, tokenizer } = &*self.files;
        match &mut self.work {
            JobTask::Classify(options) => {
                expect_rank(output, 1)?;
                let activation = options.activation.unwrap_or(config.activation);
                let scores = label_scores(output.values, &config.labels, activation, options.top_k)?;
                Ok(Some(Output::Labels(scores)))
            }
            JobTask::Tokens { text, sections, places, .. } => {
                expect_rank(output, 2)?;
                if output.shape[1] != config.labels.len() {
                    let (given, named) = (output.shape[1], config.labels.len());
                    let text = format!("the graph scores {given} labels and the configuration names {named}");
                    return Err(Failure::Engine(text));
                }
                let (section, window) = places[part];
                let Section { base, read, .. } = &mut sections[section];
                read[window] = read_tokens(text, *base, sequence, output.values, &config.labels, tokenizer)?;
                Ok(None)
            }
            JobTask::Embed { normalize: scaled } => {
                let mut vector = vector_of(config, sequence, output)?;
                if *scaled {
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
        match &mut self.work {
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
