//! The part of a sequence in a step.

use std::sync::Arc;

use crate::sampling::Sampler;
use crate::step::Sample;

/// A sequence in a step.
#[derive(Debug)]
pub(crate) struct Job {
    /// Tokens before the step.
    pub(crate) first: usize,
    /// All pages.
    pub(crate) pages: Vec<u32>,
    /// All tokens.
    pub(crate) tokens: Vec<u32>,
    pub(crate) sample: Option<JobSample>,
}

/// How a token is sampled after the last one of a job.
#[derive(Debug)]
pub(crate) struct JobSample {
    pub(crate) sample: Sample,
    /// Tokens before the first one that was sampled.
    pub(crate) prompt: usize,
    pub(crate) sampler: Arc<Sampler>,
}
