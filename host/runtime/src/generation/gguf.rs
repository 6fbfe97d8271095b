//! The engine `weir-lm`: language models from GGUF files.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use weir_lm::{Cancel, EngineConfig, Model, SequenceError, StepError, TokenizerKind};

use super::engine::{Engine, Sequences};
use crate::bindings::lm::weir::stream::lm::{ModelInfo, Row, Sampled, Sampler, Tokenizer};
use crate::types::Failure;

/// When to retry after the cache was full, ms.
const RETRY_AFTER_MS: u32 = 1_000;

/// A loaded model.
struct GgufEngine(Arc<weir_lm::Engine>);

/// Bounds of a model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct GgufBounds {
    /// Computing threads; 0: one for each core.
    pub(crate) threads: u32,
    /// Tokens of the cache.
    pub(crate) cache_tokens_max: u32,
    /// Most generations at once: the cache needs no more contexts than that.
    pub(crate) running_max: u32,
}

/// Loads a file.
///
/// # Errors
///
/// The file cannot be read, or is of a kind that is not supported.
pub(crate) fn load(path: &Path, bounds: GgufBounds) -> Result<Arc<dyn Engine>, String> {
    let model = Model::load(path).map_err(|error| format!("{}: {error}", path.display()))?;
    let context = model.context_tokens_max();
    let page = weir_lm::PAGE_TOKENS;
    let tokens = bounds.cache_tokens_max.min(context.saturating_mul(bounds.running_max));
    let threads = match bounds.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads as usize,
    };
    let config = EngineConfig { threads, pages_max: tokens.div_ceil(page).max(1), ..EngineConfig::default() };
    let engine = weir_lm::Engine::new(Arc::new(model), config).map_err(|error| error.to_string())?;
    Ok(Arc::new(GgufEngine(Arc::new(engine))))
}

impl Engine for GgufEngine {
    fn info(&self) -> ModelInfo {
        let (model, tokenizer) = (self.0.model(), self.0.model().tokenizer());
        let pages_max = self.0.config().pages_max;
        ModelInfo {
            name: String::new(),
            architecture: model.parameters().architecture.name().to_owned(),
            vocabulary_tokens: model.vocabulary_tokens(),
            context_tokens_max: model.context_tokens_max().min(pages_max.saturating_mul(self.0.page_tokens())),
            page_tokens: self.0.page_tokens(),
            pages_max,
            begin_token: tokenizer.begin_token(),
            end_tokens: tokenizer.end_tokens.clone(),
            ready: true,
        }
    }

    fn tokenizer(&self) -> Tokenizer {
        let tokenizer = self.0.model().tokenizer();
        let kind = match tokenizer.kind {
            TokenizerKind::Bpe => "gpt2",
            TokenizerKind::SentencePiece => "llama",
        };
        Tokenizer {
            kind: kind.to_owned(),
            pre: tokenizer.pre.clone(),
            tokens: tokenizer.tokens.clone(),
            scores: tokenizer.scores.clone(),
            kinds: tokenizer.kinds.clone(),
            space_prefix: tokenizer.adds_space,
            merges: tokenizer.merges.clone(),
        }
    }

    fn chat_template(&self) -> Option<String> {
        self.0.model().chat_template().map(str::to_owned)
    }

    fn sequences(&self) -> Arc<dyn Sequences> {
        Arc::new(GgufSequences { engine: self.0.clone(), own: Mutex::default() })
    }
}

/// The sequences of one instance in the cache of a model.
struct GgufSequences {
    engine: Arc<weir_lm::Engine>,
    /// The ids of this instance's sequences: an instance cannot use those of another.
    own: Mutex<BTreeSet<u32>>,
}

impl GgufSequences {
    fn own(&self) -> MutexGuard<'_, BTreeSet<u32>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, sequence: u32) -> Result<(), Failure> {
        match self.own().contains(&sequence) {
            true => Ok(()),
            false => Err(sequence_failure(SequenceError::Unknown { sequence })),
        }
    }

    fn add(&self, sequence: Result<u32, SequenceError>) -> Result<u32, Failure> {
        let sequence = sequence.map_err(sequence_failure)?;
        self.own().insert(sequence);
        Ok(sequence)
    }
}

impl Sequences for GgufSequences {
    fn pages_free(&self) -> u32 {
        self.engine.pages_free()
    }

    fn create(&self, sampler: Sampler) -> Result<u32, Failure> {
        self.add(self.engine.create(sampler_of(sampler)))
    }

    fn fork(&self, sequence: u32, tokens: u32, sampler: Sampler) -> Result<u32, Failure> {
        self.check(sequence)?;
        self.add(self.engine.fork(sequence, tokens, sampler_of(sampler)))
    }

    fn trim(&self, sequence: u32, tokens: u32) -> Result<(), Failure> {
        self.check(sequence)?;
        self.engine.trim(sequence, tokens).map_err(sequence_failure)
    }

    fn remove(&self, sequence: u32) {
        if self.own().remove(&sequence) {
            self.engine.remove(sequence);
        }
    }

    fn step(&self, rows: Vec<Row>, cancel: &Cancel) -> Result<Vec<Sampled>, Failure> {
        rows.iter().try_for_each(|row| self.check(row.sequence))?;
        let rows: Vec<weir_lm::Row> = rows.into_iter().map(row_of).collect();
        let sampled = self.engine.step(&rows, cancel).map_err(step_failure)?;
        let sampled = sampled.into_iter().map(|one| Sampled {
            sequence: one.sequence,
            token: one.token,
            logprob: one.logprob,
            top: one.top,
        });
        Ok(sampled.collect())
    }
}

impl Drop for GgufSequences {
    fn drop(&mut self) {
        for sequence in std::mem::take(&mut *self.own()) {
            self.engine.remove(sequence);
        }
    }
}

fn row_of(row: Row) -> weir_lm::Row {
    let sample =
        row.sample.map(|sample| weir_lm::Sample { index: sample.index, allowed: sample.allowed, top: sample.top });
    weir_lm::Row { sequence: row.sequence, tokens: row.tokens, sample }
}

fn sampler_of(sampler: Sampler) -> weir_lm::Sampler {
    weir_lm::Sampler {
        temperature: sampler.temperature,
        top_k: sampler.top_k,
        top_p: sampler.top_p,
        min_p: sampler.min_p,
        repeat_penalty: sampler.repeat_penalty,
        presence_penalty: sampler.presence_penalty,
        frequency_penalty: sampler.frequency_penalty,
        penalty_tokens: sampler.penalty_tokens,
        biases: sampler.biases,
        seed: sampler.seed,
    }
}

fn sequence_failure(error: SequenceError) -> Failure {
    match error {
        SequenceError::TooMany { .. } => Failure::Overloaded(RETRY_AFTER_MS),
        SequenceError::Unknown { .. } | SequenceError::TooShort { .. } | SequenceError::Sampler(_) => {
            Failure::InvalidInput(error.to_string())
        }
    }
}

fn step_failure(error: StepError) -> Failure {
    match error {
        StepError::Overloaded { .. } => Failure::Overloaded(RETRY_AFTER_MS),
        StepError::Sequence(error) => sequence_failure(error),
        StepError::Cancelled => Failure::Unavailable(error.to_string()),
        StepError::Broken => Failure::Engine(error.to_string()),
        other => Failure::InvalidInput(other.to_string()),
    }
}
