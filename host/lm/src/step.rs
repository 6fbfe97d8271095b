//! A step of an engine: its rows, its results, its errors and its cancellation.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cache::SequenceError;

/// The tokens that a step appends to a sequence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// The sequence.
    pub sequence: u32,
    /// At least one.
    pub tokens: Vec<u32>,
    /// How to sample a token after the last one; `None` for a part of a prompt that continues in a later row.
    pub sample: Option<Sample>,
}

/// How a token is sampled after a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sample {
    /// The index of the sequence among the choices of its request, which the random number depends on.
    pub index: u32,
    /// The allowed tokens: one bit each, the lowest bit of the first byte for token 0; `None` allows all.
    pub allowed: Option<Vec<u8>>,
    /// The number of the most likely tokens to report, at most 20.
    pub top: u32,
}

/// A sampled token.
#[derive(Clone, Debug, PartialEq)]
pub struct Sampled {
    /// The sequence.
    pub sequence: u32,
    /// The token. It is not part of the sequence until the next row appends it.
    pub token: u32,
    /// Its log probability before temperature, penalties and filters.
    pub logprob: f32,
    /// The most likely tokens with their log probabilities, best first.
    pub top: Vec<(u32, f32)>,
}

/// Why a step has failed; it appends nothing then.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum StepError {
    /// A row of a sequence that does not exist.
    #[error(transparent)]
    Sequence(#[from] SequenceError),
    /// Two rows of one sequence.
    #[error("sequence {sequence} has two rows in a step")]
    Repeated {
        /// The sequence.
        sequence: u32,
    },
    /// A row without tokens.
    #[error("the row of sequence {sequence} has no tokens")]
    Empty {
        /// The sequence.
        sequence: u32,
    },
    /// A token that is not in the vocabulary.
    #[error("the row of sequence {sequence} has the token {token}; there are {tokens}")]
    UnknownToken {
        /// The sequence.
        sequence: u32,
        /// As given.
        token: u32,
        /// The tokens of the vocabulary.
        tokens: u32,
    },
    /// A sequence that would be longer than the model's context.
    #[error("sequence {sequence} would have {tokens} tokens; the context has {tokens_max}")]
    TooLong {
        /// The sequence.
        sequence: u32,
        /// Its length including the row.
        tokens: usize,
        /// The bound.
        tokens_max: u32,
    },
    /// More tokens than a step may append.
    #[error("the step has {tokens} tokens; at most {tokens_max} are allowed")]
    TooManyTokens {
        /// In all rows.
        tokens: usize,
        /// The bound.
        tokens_max: usize,
    },
    /// More of the most likely tokens than can be reported.
    #[error("the row of sequence {sequence} asks for the {top} most likely tokens; at most {top_max} are reported")]
    TooManyTop {
        /// The sequence.
        sequence: u32,
        /// As requested.
        top: u32,
        /// The bound.
        top_max: u32,
    },
    /// A mask that is shorter than the vocabulary or allows no token.
    #[error("the mask of sequence {sequence} {problem}")]
    Mask {
        /// The sequence.
        sequence: u32,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The cache has too few free pages.
    #[error("the cache has too few free pages: {pages_free} of {pages_max}")]
    Overloaded {
        /// Pages that no sequence has.
        pages_free: u32,
        /// All pages.
        pages_max: u32,
    },
    /// The step was cancelled.
    #[error("the step was cancelled")]
    Cancelled,
    /// A thread of the engine panicked; every later step fails too.
    #[error("a thread of the engine failed; the engine must be created again")]
    Broken,
}

/// Cancels a step from another thread.
#[derive(Clone, Debug, Default)]
pub struct Cancel(Arc<AtomicBool>);

impl Cancel {
    /// Cancels the step: it ends before its next layer.
    pub fn cancel(&self) {
        self.0.store(true, Ordering::Release);
    }

    /// Whether it was cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Acquire)
    }
}
