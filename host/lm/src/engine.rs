//! The engine: the sequences of a model, and the steps that append to them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use weir_kernels::{CachePages, PAGE_TOKENS, PageShape};

use crate::cache::{Extension, SequenceError, Sequences};
use crate::forward::{Forward, Job, JobSample, Workspace};
use crate::model::Model;
use crate::sampling::Sampler;
use crate::step::{Cancel, Row, Sample, Sampled, StepError};
use crate::team::{Task, Team};

/// Bounds of an engine.
#[derive(Clone, Copy, Debug)]
pub struct EngineConfig {
    /// Threads that compute a step, the calling one included.
    pub threads: usize,
    /// Pages of the cache, sixteen tokens each.
    pub pages_max: u32,
    /// Sequences that exist at the same time.
    pub sequences_max: usize,
    /// Tokens that a step appends.
    pub step_tokens_max: usize,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self { threads: 1, pages_max: 1024, sequences_max: 1024, step_tokens_max: 8192 }
    }
}

/// Why an engine cannot be created.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A bound that is 0 or too large.
    #[error("{name} is {value}; 1 to {value_max} are allowed")]
    OutOfRange {
        /// Its name.
        name: &'static str,
        /// As given.
        value: usize,
        /// The bound.
        value_max: usize,
    },
    /// The system cannot start a thread.
    #[error("a thread could not be started: {0}")]
    Thread(#[from] std::io::Error),
}

/// The sequences of a model, and the steps that append to them. The methods may be called from any thread; steps are computed one after
/// another, and no other method waits for a step.
#[derive(Debug)]
pub struct Engine {
    model: Arc<Model>,
    config: EngineConfig,
    sequences: Mutex<Sequences>,
    /// By layer.
    cache: Arc<Vec<RwLock<CachePages>>>,
    compute: Mutex<Compute>,
}

#[derive(Debug)]
struct Compute {
    team: Team,
    workspace: Arc<Workspace>,
}

/// The most threads of an engine.
const THREADS_MAX: usize = 256;
/// The most pages of an engine.
const PAGES_MAX: usize = 1 << 20;
/// The most sequences of an engine.
const SEQUENCES_MAX: usize = 1 << 20;
/// The greatest number of most likely tokens that are reported.
const TOP_MAX: u32 = 20;

impl Engine {
    /// Allocates the cache and starts helper threads.
    ///
    /// # Errors
    /// If a bound is 0 or too large, or the system cannot start a thread.
    pub fn new(model: Arc<Model>, config: EngineConfig) -> Result<Self, EngineError> {
        let in_range = |name, value, value_max| {
            if (1..=value_max).contains(&value) {
                Ok(())
            } else {
                Err(EngineError::OutOfRange { name, value, value_max })
            }
        };
        in_range("threads", config.threads, THREADS_MAX)?;
        in_range("pages_max", config.pages_max as usize, PAGES_MAX)?;
        in_range("sequences_max", config.sequences_max, SEQUENCES_MAX)?;
        in_range("step_tokens_max", config.step_tokens_max, PAGES_MAX * PAGE_TOKENS)?;
        let parameters = model.parameters();
        let shape = PageShape { heads: parameters.kv_heads, head_size: parameters.head_size };
        let layer = || RwLock::new(CachePages::new(shape, config.pages_max as usize));
        let cache = Arc::new((0..parameters.layers).map(|_| layer()).collect());
        let compute = Compute { team: Team::new(config.threads)?, workspace: Arc::new(Workspace::new(config.threads)) };
        let sequences = Mutex::new(Sequences::new(config.pages_max, config.sequences_max));
        Ok(Self { model, config, sequences, cache, compute: Mutex::new(compute) })
    }

    /// The model of the engine.
    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    /// The bounds of the engine.
    pub fn config(&self) -> EngineConfig {
        self.config
    }

    /// Tokens of a page of the cache.
    pub fn page_tokens(&self) -> u32 {
        PAGE_TOKENS as u32
    }

    /// The number of pages that neither a sequence nor a running step has.
    pub fn pages_free(&self) -> u32 {
        self.sequences().pages_free()
    }

    /// Tokens of a sequence.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn length(&self, sequence: u32) -> Result<u32, SequenceError> {
        self.sequences().length(sequence)
    }

    /// Creates an empty sequence, and returns its number.
    ///
    /// # Errors
    /// If there are too many, or the sampler has an invalid value.
    pub fn create(&self, sampler: Sampler) -> Result<u32, SequenceError> {
        sampler.check(self.model.vocabulary_tokens())?;
        self.sequences().create(sampler)
    }

    /// Creates a sequence that begins with the first `tokens` tokens of another and shares its pages. A partial page is copied when one
    /// of them appends to it, and that step takes one more page.
    ///
    /// # Errors
    /// As [`create`](Self::create), and if the other does not exist or has fewer tokens.
    pub fn fork(&self, sequence: u32, tokens: u32, sampler: Sampler) -> Result<u32, SequenceError> {
        sampler.check(self.model.vocabulary_tokens())?;
        self.sequences().fork(sequence, tokens, sampler)
    }

    /// Shortens a sequence to its first `tokens` tokens. The tokens that a running step appends to it are dropped.
    ///
    /// # Errors
    /// If it does not exist or has fewer tokens.
    pub fn trim(&self, sequence: u32, tokens: u32) -> Result<(), SequenceError> {
        self.sequences().trim(sequence, tokens)
    }

    /// Removes a sequence, and frees the pages that neither another sequence nor a running step has.
    pub fn remove(&self, sequence: u32) {
        self.sequences().remove(sequence);
    }

    /// Appends the tokens of every row to its sequence, and samples after the rows that have a [`Sample`]; results are in the order of
    /// those rows. Waits for a running step.
    ///
    /// # Errors
    /// If a row is not valid, the cache has too few pages, the step is cancelled or a thread panicked. Nothing is appended then.
    pub fn step(&self, rows: &[Row], cancel: &Cancel) -> Result<Vec<Sampled>, StepError> {
        let Ok(mut compute) = self.compute.lock() else { return Err(StepError::Broken) };
        if cancel.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        self.check(rows)?;
        let appended: Vec<(u32, &[u32])> = rows.iter().map(|row| (row.sequence, row.tokens.as_slice())).collect();
        let extensions = {
            let mut sequences = self.sequences();
            let too_long = appended.iter().find_map(|(sequence, tokens)| {
                let length = sequences.length(*sequence).ok()? as usize + tokens.len();
                let tokens_max = self.model.context_tokens_max();
                (length > tokens_max as usize).then_some((*sequence, length, tokens_max))
            });
            if let Some((sequence, tokens, tokens_max)) = too_long {
                return Err(StepError::TooLong { sequence, tokens, tokens_max });
            }
            let extensions = sequences.extend(&appended)?;
            let pages_free = sequences.pages_free();
            extensions.ok_or(StepError::Overloaded { pages_free, pages_max: self.config.pages_max })?
        };
        let extensions = ExtensionGuard { engine: self, extensions: Some(extensions) };
        let sampled = self.compute(&mut compute, rows, extensions.get(), cancel)?;
        let is_sampled: Vec<bool> = rows.iter().map(|row| row.sample.is_some()).collect();
        self.sequences().commit(extensions.take(), &is_sampled);
        Ok(sampled)
    }

    fn compute(
        &self,
        compute: &mut Compute,
        rows: &[Row],
        extensions: &[Extension],
        cancel: &Cancel,
    ) -> Result<Vec<Sampled>, StepError> {
        for (from, to, tokens) in extensions.iter().filter_map(|extension| extension.copy) {
            for layer in self.cache.iter() {
                let mut pages = layer.write().unwrap_or_else(PoisonError::into_inner);
                pages.copy(from as usize, to as usize, tokens);
            }
        }
        let jobs = rows.iter().zip(extensions).map(|(row, extension)| Job {
            first: extension.length,
            pages: extension.pages.clone(),
            tokens: extension.tokens.clone(),
            sample: row.sample.clone().map(|sample| JobSample {
                sample,
                prompt: extension.prompt,
                sampler: Arc::clone(&extension.sampler),
            }),
        });
        let forward = Arc::new(Forward::new(
            Arc::clone(&self.model),
            Arc::clone(&self.cache),
            Arc::clone(&compute.workspace),
            jobs.collect(),
            cancel.clone(),
        ));
        let shared = Arc::clone(&forward);
        let task: Task = Arc::new(move |member| shared.compute(member));
        compute.team.run(&task).map_err(|_| StepError::Broken)?;
        let outcomes = forward.outcomes().ok_or(StepError::Cancelled)?;
        let sequences = rows.iter().filter(|row| row.sample.is_some()).map(|row| row.sequence);
        Ok(sequences
            .zip(outcomes)
            .map(|(sequence, outcome)| Sampled {
                sequence,
                token: outcome.token,
                logprob: outcome.logprob,
                top: outcome.top,
            })
            .collect())
    }

    fn check(&self, rows: &[Row]) -> Result<(), StepError> {
        let vocabulary = self.model.vocabulary_tokens();
        let mut sequences = std::collections::BTreeSet::new();
        for Row { sequence, tokens, sample } in rows {
            let sequence = *sequence;
            if !sequences.insert(sequence) {
                return Err(StepError::Repeated { sequence });
            }
            if tokens.is_empty() {
                return Err(StepError::Empty { sequence });
            }
            if let Some(token) = tokens.iter().copied().find(|token| *token >= vocabulary) {
                return Err(StepError::UnknownToken { sequence, token, tokens: vocabulary });
            }
            let Some(Sample { allowed, top, .. }) = sample else { continue };
            if *top > TOP_MAX {
                return Err(StepError::TooManyTop { sequence, top: *top, top_max: TOP_MAX });
            }
            if let Some(allowed) = allowed {
                check_mask(allowed, vocabulary).map_err(|problem| StepError::Mask { sequence, problem })?;
            }
        }
        let tokens = rows.iter().map(|row| row.tokens.len()).sum();
        let tokens_max = self.config.step_tokens_max;
        if tokens > tokens_max { Err(StepError::TooManyTokens { tokens, tokens_max }) } else { Ok(()) }
    }

    fn sequences(&self) -> MutexGuard<'_, Sequences> {
        self.sequences.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_mask(allowed: &[u8], vocabulary: u32) -> Result<(), &'static str> {
    let (whole, rest) = (vocabulary as usize / 8, vocabulary % 8);
    if allowed.len() < (vocabulary as usize).div_ceil(8) {
        return Err("is shorter than the vocabulary");
    }
    let last = allowed.get(whole).map_or(0, |byte| byte & ((1 << rest) - 1) as u8);
    if allowed[..whole].iter().all(|byte| *byte == 0) && last == 0 { Err("allows no token") } else { Ok(()) }
}

/// Releases the pages of a step that fails or panics.
struct ExtensionGuard<'a> {
    engine: &'a Engine,
    extensions: Option<Vec<Extension>>,
}

impl ExtensionGuard<'_> {
    fn get(&self) -> &[Extension] {
        self.extensions.as_deref().unwrap_or_default()
    }

    fn take(mut self) -> Vec<Extension> {
        self.extensions.take().unwrap_or_default()
    }
}

impl Drop for ExtensionGuard<'_> {
    fn drop(&mut self) {
        if let Some(extensions) = self.extensions.take() {
            self.engine.sequences().abandon(&extensions);
        }
    }
}
