//! The forward pass: every thread runs [`Forward::compute`], phase by phase.
//!
//! A phase is split by rows, by panels of a matrix, or by heads of attention, and ends at a barrier. Each thread writes to its own part
//! of a buffer and reads all parts in the next phase. Results do not depend on the split: each element is computed by one thread, in an
//! order that only its row determines.

mod chunk;
mod head;
mod layer;
mod workspace;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use weir_kernels::CachePages;

use crate::engine::{Cancel, Sample};
use crate::forward::chunk::Chunk;
use crate::forward::layer::Pass;
pub(crate) use crate::forward::workspace::Workspace;
use crate::model::Model;
use crate::sampling::{Outcome, Sampler};
use crate::team::{Member, TeamFailure};

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

/// A forward pass over several jobs.
#[derive(Debug)]
pub(crate) struct Forward {
    model: Arc<Model>,
    cache: Arc<Vec<RwLock<CachePages>>>,
    workspace: Arc<Workspace>,
    jobs: Vec<Job>,
    chunks: Vec<Chunk>,
    cancel: Cancel,
    is_cancelled: AtomicBool,
    /// By job.
    outcomes: Mutex<Vec<Option<Outcome>>>,
}

impl Forward {
    pub(crate) fn new(
        model: Arc<Model>,
        cache: Arc<Vec<RwLock<CachePages>>>,
        workspace: Arc<Workspace>,
        jobs: Vec<Job>,
        cancel: Cancel,
    ) -> Self {
        let chunks = Chunk::split(&model, &jobs, workspace.threads());
        let outcomes = Mutex::new(jobs.iter().map(|_| None).collect());
        Self { model, cache, workspace, jobs, chunks, cancel, is_cancelled: AtomicBool::new(false), outcomes }
    }

    /// Computes this thread's part of every phase.
    pub(crate) fn compute(&self, member: &Member<'_>) -> Result<(), TeamFailure> {
        let mut local = self.workspace.local(member.index);
        for chunk in &self.chunks {
            let mut pass = Pass::new(self, chunk, member, &mut local);
            pass.embed();
            for layer in 0..self.model.weights.layers.len() {
                if !pass.layer(layer)? {
                    return Ok(());
                }
            }
            pass.finish_layers();
            pass.sample()?;
        }
        Ok(())
    }

    /// The sampled tokens, in the order of the jobs that have a sample; `None` if the pass was cancelled.
    pub(crate) fn outcomes(&self) -> Option<Vec<Outcome>> {
        if self.is_cancelled.load(Ordering::Acquire) {
            return None;
        }
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        Some(outcomes.iter_mut().filter_map(Option::take).collect())
    }
}
