//! The state of a forward pass, which its threads share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use weir_kernels::CachePages;

use super::chunk::Chunk;
use super::job::Job;
use super::workspace::Workspace;
use crate::model::Model;
use crate::sampling::Outcome;
use crate::step::Cancel;

/// A forward pass over several jobs.
#[derive(Debug)]
pub(crate) struct Forward {
    pub(super) model: Arc<Model>,
    pub(super) cache: Arc<Vec<RwLock<CachePages>>>,
    pub(super) workspace: Arc<Workspace>,
    pub(super) jobs: Vec<Job>,
    pub(super) chunks: Vec<Chunk>,
    pub(super) cancel: Cancel,
    pub(super) is_cancelled: AtomicBool,
    /// By job.
    pub(super) outcomes: Mutex<Vec<Option<Outcome>>>,
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

    /// The sampled tokens, in the order of the jobs that have a sample; `None` if the pass was cancelled.
    pub(crate) fn outcomes(&self) -> Option<Vec<Outcome>> {
        if self.is_cancelled.load(Ordering::Acquire) {
            return None;
        }
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        Some(outcomes.iter_mut().filter_map(Option::take).collect())
    }
}
