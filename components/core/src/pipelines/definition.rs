//! The definition of a pipeline: steps, in sequence or as a graph, validated once.

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use super::json::Json;
use crate::{
    inference::{retry::RetryConfig, rewrite::SummaryMode},
    named::named,
};

/// Most steps of a pipeline: masks of steps have one bit of a `u64` for each.
pub const STEPS_MAX: usize = 64;
/// Most compensations of a step.
pub const COMPENSATIONS_MAX: usize = 8;
/// Longest id of a step, bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest name of a pipeline, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most steps that may run at once.
pub const PARALLEL_MAX: usize = STEPS_MAX;
/// The default of the most steps that run at once.
pub const PARALLEL_MAX_DEFAULT: usize = 8;
/// Longest timeout of a step, in milliseconds: a day.
pub const TIMEOUT_MS_MAX: u64 = 86_400_000;
/// The default timeout of a step, in milliseconds.
pub const TIMEOUT_MS_DEFAULT: u64 = 60_000;

/// Smallest and largest values of the numbers of a definition.
pub mod bounds {
    /// Events that may wait to be stored.
    pub const BUFFER_SIZE: (u64, u64) = (1, 100_000);
    /// How long events may wait to be stored, in milliseconds; 0 stores each at once.
    pub const FLUSH_INTERVAL_MS: (u64, u64) = (0, 60_000);
    /// Attempts of a step.
    pub const MAX_ATTEMPTS: (u64, u64) = (1, 100);
    /// The timeout of a step, in milliseconds.
    pub const TIMEOUT_MS: (u64, u64) = (1, super::TIMEOUT_MS_MAX);
    /// Tokens of a generated text.
    pub const TOKENS: (u64, u64) = (1, 131_072);
    /// The temperature of a generation, in thousandths.
    pub const TEMPERATURE_THOUSANDTHS: (u64, u64) = (0, 2000);
    /// Code points per chunk.
    pub const CHUNK_SIZE: (u64, u64) = (1, 100_000);
    /// The memory of a component, in bytes: 64 KiB to 4 GiB.
    pub const MEMORY_BYTES: (u64, u64) = (1 << 16, 1 << 32);
    /// Steps that run at once.
    pub const PARALLEL: (u64, u64) = (1, super::PARALLEL_MAX as u64);
}

named! {
    /// The kinds of step.
    pub enum KindName {
        /// Splits a text into chunks.
        Chunk = "chunk",
        /// Labels chunks or a text.
        Sentiment = "sentiment",
        /// Finds named entities.
        Entities = "entities",
        /// Summarizes a text.
        Summary = "summary",
        /// Computes embeddings of texts.
        Embed = "embed",
        /// Annotates keywords, actions and intents.
        Annotate = "annotate",
        /// Generates text.
        Generate = "generate",
        /// Calls another service.
        Http = "http",
        /// Evaluates an expression.
        Map = "map",
        /// Runs a component of the operator.
        Component = "component",
    }
}

impl KindName {
    /// True for steps that call a model, a service or a component, whose latency is TCL.
    pub fn is_tool(self) -> bool {
        !matches!(self, Self::Chunk | Self::Map | Self::Annotate)
    }
}

named! {
    /// The effect of the permanent failure of a step on the pipeline.
    pub enum OnError {
        /// It ends at once; running steps are stopped.
        Fail = "fail",
        /// It continues; the output of the step is `null`.
        Continue = "continue",
        /// No step starts, running steps finish, and completed steps are compensated.
        Compensate = "compensate",
    }
}

named! {
    /// The method of an `http` step.
    pub enum Method {
        /// `GET`
        Get = "GET",
        /// `POST`
        Post = "POST",
        /// `PUT`
        Put = "PUT",
        /// `PATCH`
        Patch = "PATCH",
        /// `DELETE`
        Delete = "DELETE",
    }
}

/// The kind of a step, with its parameters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Splits a text into chunks of `chunk_size` code points.
    Chunk {
        /// Code points per chunk.
        chunk_size: u32,
    },
    /// Labels each chunk of its input, or a whole text.
    Sentiment {
        /// The model; `None`: the configured one.
        model: Option<String>,
    },
    /// Finds named entities.
    Entities {
        /// The model; `None`: the configured one.
        model: Option<String>,
    },
    /// Summarizes a text.
    Summary {
        /// The model; `None`: the configured one.
        model: Option<String>,
        /// Whether a language model rewrites them; none: not.
        mode: Option<SummaryMode>,
    },
    /// Computes the embedding of each text.
    Embed {
        /// The model; `None`: the configured one.
        model: Option<String>,
        /// Scale vectors to length 1.
        normalize: bool,
    },
    /// Annotates keywords, actions and intents.
    Annotate,
    /// Generates text from a prompt.
    Generate {
        /// The model; `None`: the first one that is served.
        model: Option<String>,
        /// The message of the user: a text with expressions over the input, in double braces.
        template: String,
        /// The message of the system.
        system: Option<String>,
        /// At most this many tokens.
        tokens_max: Option<u32>,
        /// The temperature, in thousandths.
        temperature_thousandths: Option<u32>,
        /// The seed.
        seed: Option<u64>,
    },
    /// Calls another service.
    Http {
        /// The URL.
        url: String,
        /// The method.
        method: Method,
        /// Additional headers.
        headers: Vec<(String, String)>,
        /// An expression whose value is the body; `None`: the input is the body (no body with `GET`).
        body: Option<String>,
    },
    /// Evaluates an expression over the input.
    Map {
        /// The expression, in the language of `weir-expression`.
        expression: String,
    },
    /// A component that exports `weir:stream/step`.
    Component {
        /// The path of its file.
        path: String,
        /// Most memory of its instance, in bytes.
        memory_bytes_max: u64,
        /// The longest duration of a call, in milliseconds.
        deadline_ms: u64,
        /// The configuration, passed to it unchanged.
        config: Json,
    },
}

impl Kind {
    /// The name of the kind.
    pub fn name(&self) -> KindName {
        match self {
            Self::Chunk { .. } => KindName::Chunk,
            Self::Sentiment { .. } => KindName::Sentiment,
            Self::Entities { .. } => KindName::Entities,
            Self::Summary { .. } => KindName::Summary,
            Self::Embed { .. } => KindName::Embed,
            Self::Annotate => KindName::Annotate,
            Self::Generate { .. } => KindName::Generate,
            Self::Http { .. } => KindName::Http,
            Self::Map { .. } => KindName::Map,
            Self::Component { .. } => KindName::Component,
        }
    }
}

/// The task of a step or of a compensation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Unique in the pipeline: 1 to [`ID_BYTES_MAX`] of `A-Z a-z 0-9 _ - .`.
    pub id: Arc<str>,
    /// What the task does.
    pub kind: Kind,
    /// An expression over [`super::Inputs`] whose value is the input; `None`: [`super::Inputs::default_json`].
    pub input: Option<String>,
    /// The retries of the task. The circuit breaker policy is ignored.
    pub retry: RetryConfig,
    /// The timeout of an attempt, in milliseconds.
    pub timeout_ms: u64,
}

impl Task {
    /// A task with the defaults.
    pub fn new(id: &str, kind: Kind) -> Self {
        Self { id: id.into(), kind, input: None, retry: RetryConfig::default(), timeout_ms: TIMEOUT_MS_DEFAULT }
    }
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// The task of the step.
    pub task: Task,
    /// The steps that must have ended before. `None`: the previous step in the list; empty: it starts at once.
    pub after: Option<Vec<String>>,
    /// The effect of its permanent failure on the pipeline.
    pub on_error: OnError,
    /// The tasks that undo the completed step, in order.
    pub compensation: Vec<Task>,
}

impl Step {
    /// A step with the defaults.
    pub fn new(id: &str, kind: Kind) -> Self {
        Self { task: Task::new(id, kind), after: None, on_error: OnError::Fail, compensation: Vec::new() }
    }
}

/// Which events are published, and how they are batched for the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Streaming {
    /// False: only `pipeline_start` and the last event are published.
    pub enabled: bool,
    /// Whether `step_progress` is published.
    pub emit_progress: bool,
    /// Most events that wait to be stored. A full buffer is stored at once; while the store is slower, progress is
    /// dropped and outputs are refused.
    pub buffer_size: usize,
    /// The shortest interval between batches of progress and outputs, in milliseconds. All other events, and the first
    /// one after an idle interval, are stored at once.
    pub flush_interval_ms: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Self { enabled: true, emit_progress: true, buffer_size: 1000, flush_interval_ms: 100 }
    }
}

/// A definition that is not validated yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// 1 to [`NAME_BYTES_MAX`] of `A-Z a-z 0-9 _ - .`: it is part of a path.
    pub name: String,
    /// The steps.
    pub steps: Vec<Step>,
    /// How events are published.
    pub streaming: Streaming,
    /// Most steps that run at once.
    pub parallel_max: usize,
}

impl Draft {
    /// A pipeline with the defaults.
    pub fn new(name: &str, steps: Vec<Step>) -> Self {
        Self { name: name.to_owned(), steps, streaming: Streaming::default(), parallel_max: PARALLEL_MAX_DEFAULT }
    }

    /// Validates the definition.
    ///
    /// # Errors
    ///
    /// All errors; a cycle only if there is no other error.
    pub fn check(self) -> Result<Definition, Vec<DefinitionError>> {
        let mut errors = Vec::new();
        if !is_name(&self.name, NAME_BYTES_MAX) {
            errors.push(DefinitionError::Name { name: self.name.clone() });
        }
        match self.steps.len() {
            0 => errors.push(DefinitionError::NoSteps),
            1..=STEPS_MAX => {}
            steps => return Err(vec![DefinitionError::TooManySteps { steps }]),
        }
        self.check_numbers(&mut errors);
        let indexes = self.check_ids(&mut errors);
        let after = self.check_after(&indexes, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let ancestors = ancestors(&after).map_err(|cycle| {
            let name = |step: usize| self.steps[step].task.id.to_string();
            vec![DefinitionError::Cycle { step: cycle[0], ids: cycle.into_iter().map(name).collect() }]
        })?;
        let predecessors = after.iter().fold(0, |all, mask| all | mask);
        let sinks = all(self.steps.len()) & !predecessors;
        Ok(Definition { draft: self, after, ancestors, sinks })
    }

    fn check_numbers(&self, errors: &mut Vec<DefinitionError>) {
        let mut check = |step, field, (min, max): (u64, u64), actual: u64| {
            if !(min..=max).contains(&actual) {
                errors.push(DefinitionError::OutOfRange { step, field, min, max, actual });
            }
        };
        let Streaming { buffer_size, flush_interval_ms, .. } = self.streaming;
        check(None, "streaming.buffer_size", bounds::BUFFER_SIZE, buffer_size as u64);
        check(None, "streaming.flush_interval_ms", bounds::FLUSH_INTERVAL_MS, flush_interval_ms);
        check(None, "parallel_max", bounds::PARALLEL, self.parallel_max as u64);
        for (at, step) in self.steps.iter().enumerate() {
            check(Some(at), "compensation", (0, COMPENSATIONS_MAX as u64), step.compensation.len() as u64);
            for task in std::iter::once(&step.task).chain(&step.compensation) {
                check(Some(at), "timeout_ms", bounds::TIMEOUT_MS, task.timeout_ms);
                check(Some(at), "retry.max_attempts", bounds::MAX_ATTEMPTS, u64::from(task.retry.max_attempts));
                match &task.kind {
                    Kind::Chunk { chunk_size } => {
                        check(Some(at), "chunk_size", bounds::CHUNK_SIZE, u64::from(*chunk_size));
                    }
                    Kind::Component { memory_bytes_max, deadline_ms, .. } => {
                        check(Some(at), "memory_bytes_max", bounds::MEMORY_BYTES, *memory_bytes_max);
                        check(Some(at), "deadline_ms", bounds::TIMEOUT_MS, *deadline_ms);
                    }
                    _ => {}
                }
            }
        }
    }

    /// The first index of each id of a step or compensation.
    fn check_ids(&self, errors: &mut Vec<DefinitionError>) -> BTreeMap<&str, StepIndex> {
        let mut indexes = BTreeMap::new();
        for (at, step) in self.steps.iter().enumerate() {
            let compensations = step.compensation.iter().zip(0..).map(|(task, place)| (task, Some(place)));
            for (task, compensation) in std::iter::once((&step.task, None)).chain(compensations) {
                let place = StepIndex { step: at, compensation };
                if !is_name(&task.id, ID_BYTES_MAX) {
                    errors.push(DefinitionError::Id { place, id: task.id.to_string() });
                } else if indexes.contains_key(&*task.id) {
                    errors.push(DefinitionError::DuplicateId { place, id: task.id.to_string() });
                } else {
                    indexes.insert(&*task.id, place);
                }
            }
        }
        indexes
    }

    /// The direct predecessors of each step, as a mask.
    fn check_after(&self, indexes: &BTreeMap<&str, StepIndex>, errors: &mut Vec<DefinitionError>) -> Vec<u64> {
        let mut all = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let Some(after) = &step.after else {
                all.push(at.checked_sub(1).map_or(0, bit));
                continue;
            };
            let mut mask = 0;
            for (index, id) in after.iter().enumerate() {
                match indexes.get(id.as_str()) {
                    Some(StepIndex { step, compensation: None }) if mask & bit(*step) == 0 => mask |= bit(*step),
                    Some(StepIndex { compensation: None, .. }) => {
                        errors.push(DefinitionError::AfterTwice { step: at, index, id: id.clone() });
                    }
                    _ => errors.push(DefinitionError::UnknownAfter { step: at, index, id: id.clone() }),
                }
            }
            all.push(mask);
        }
        all
    }
}

/// A validated pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    draft: Draft,
    after: Vec<u64>,
    ancestors: Vec<u64>,
    sinks: u64,
}

impl Definition {
    /// The draft of the definition.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// The name of the pipeline.
    pub fn name(&self) -> &str {
        &self.draft.name
    }

    /// The steps, in the order of the list.
    pub fn steps(&self) -> &[Step] {
        &self.draft.steps
    }

    /// How events are published.
    pub fn streaming(&self) -> &Streaming {
        &self.draft.streaming
    }

    /// The task of a step or a compensation, if it exists.
    pub fn task(&self, place: StepIndex) -> Option<&Task> {
        let step = self.draft.steps.get(place.step)?;
        match place.compensation {
            None => Some(&step.task),
            Some(at) => step.compensation.get(at),
        }
    }

    /// The direct predecessors of a step, as a mask.
    pub(super) fn after(&self, step: usize) -> u64 {
        self.after[step]
    }

    /// The ids of the direct predecessors of a step.
    pub(super) fn ids_after(&self, step: usize) -> Vec<Arc<str>> {
        each(self.after(step)).map(|at| self.steps()[at].task.id.clone()).collect()
    }

    /// All direct and indirect predecessors of a step, as a mask.
    pub(super) fn ancestors(&self, step: usize) -> u64 {
        self.ancestors[step]
    }

    /// The steps without a successor, as a mask.
    pub(super) fn sinks(&self) -> u64 {
        self.sinks
    }
}

/// A step or one of its compensations, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepIndex {
    /// The step.
    pub step: usize,
    /// The index of one of its compensations; `None` for the step itself.
    pub compensation: Option<usize>,
}

/// Why a definition is invalid.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DefinitionError {
    /// The name is invalid.
    #[error("the name must be 1 to {NAME_BYTES_MAX} of A-Z, a-z, 0-9, _, - and ., and is `{}`", short(.name))]
    Name {
        /// The name.
        name: String,
    },
    /// There is no step.
    #[error("a pipeline needs at least one step")]
    NoSteps,
    /// There are more than [`STEPS_MAX`] steps.
    #[error("a pipeline has at most {STEPS_MAX} steps, and this one has {steps}")]
    TooManySteps {
        /// The number of steps.
        steps: usize,
    },
    /// An id is invalid.
    #[error("an id must be 1 to {ID_BYTES_MAX} of A-Z, a-z, 0-9, _, - and ., and is `{}`", short(.id))]
    Id {
        /// The step or compensation.
        place: StepIndex,
        /// The id.
        id: String,
    },
    /// Two steps or compensations have the same id.
    #[error("the id `{id}` is taken")]
    DuplicateId {
        /// The second step or compensation.
        place: StepIndex,
        /// The id.
        id: String,
    },
    /// `after` names a step that does not exist.
    #[error("there is no step `{}`", short(.id))]
    UnknownAfter {
        /// The step with the list.
        step: usize,
        /// The index in its list.
        index: usize,
        /// The name in the list.
        id: String,
    },
    /// `after` names a step twice.
    #[error("the step `{id}` is named twice")]
    AfterTwice {
        /// The step with the list.
        step: usize,
        /// The index in its list.
        index: usize,
        /// The name in the list.
        id: String,
    },
    /// Steps wait for each other.
    #[error("steps wait for each other: {}", .ids.join(" after "))]
    Cycle {
        /// The first step of the cycle.
        step: usize,
        /// The ids of the cycle, with the first one again at the end.
        ids: Vec<String>,
    },
    /// A number is out of its range.
    #[error("{field} must be {min} to {max}, and is {actual}")]
    OutOfRange {
        /// The step; `None` for a field of the pipeline.
        step: Option<usize>,
        /// The field.
        field: &'static str,
        /// The smallest value.
        min: u64,
        /// The largest value.
        max: u64,
        /// The value.
        actual: u64,
    },
}

/// The mask of a step.
pub(super) fn bit(step: usize) -> u64 {
    1 << step
}

/// The mask of the first `steps` steps, at least 1.
pub(super) fn all(steps: usize) -> u64 {
    u64::MAX >> (STEPS_MAX - steps)
}

/// The steps of a mask, in order.
pub(super) fn each(mut mask: u64) -> impl Iterator<Item = usize> {
    std::iter::from_fn(move || {
        let step = mask.trailing_zeros() as usize;
        mask &= mask.checked_sub(1)?;
        Some(step)
    })
}

fn is_name(name: &str, bytes_max: usize) -> bool {
    let is_name_byte = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=bytes_max).contains(&name.len()) && name.bytes().all(is_name_byte) && !matches!(name, "." | "..")
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(ID_BYTES_MAX).collect()
}

/// The direct and indirect predecessors of each step; or the steps of a cycle, each after the next, with the first
/// again at the end.
fn ancestors(after: &[u64]) -> Result<Vec<u64>, Vec<usize>> {
    let mut ancestors = vec![0; after.len()];
    let mut open = all(after.len());
    while open != 0 {
        let Some(step) = each(open).find(|step| after[*step] & open == 0) else { return Err(cycle(after, open)) };
        ancestors[step] = each(after[step]).fold(after[step], |all, before| all | ancestors[before]);
        open &= !bit(step);
    }
    Ok(ancestors)
}

/// A cycle of open steps. Every open step has an open predecessor, so following predecessors leads to a cycle.
fn cycle(after: &[u64], open: u64) -> Vec<usize> {
    let mut path = vec![open.trailing_zeros() as usize];
    loop {
        let step = (after[path[path.len() - 1]] & open).trailing_zeros() as usize;
        let first = path.iter().position(|other| *other == step);
        path.push(step);
        if let Some(first) = first {
            return path.split_off(first);
        }
    }
}
