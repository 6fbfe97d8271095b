//! What a pipeline does: steps, in sequence or as a graph, checked once.

use std::{collections::BTreeMap, sync::Arc};

use thiserror::Error;

use super::json::Json;
use crate::{inference::retry::RetryConfig, named::named};

/// Most steps of a pipeline: one bit each of a `u64`.
pub const STEPS_MAX: usize = 64;
/// Most compensations of a step.
pub const COMPENSATIONS_MAX: usize = 8;
/// Longest id of a step, bytes.
pub const ID_BYTES_MAX: usize = 64;
/// Longest name of a pipeline, bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most steps that may run at once.
pub const PARALLEL_MAX: usize = STEPS_MAX;
/// Steps that run at once when the definition does not say.
pub const PARALLEL_MAX_DEFAULT: usize = 8;
/// Longest timeout of a step, in milliseconds: a day.
pub const TIMEOUT_MS_MAX: u64 = 86_400_000;
/// The timeout of a step that has none, in milliseconds.
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
    /// Tokens of a text that is generated.
    pub const TOKENS: (u64, u64) = (1, 131_072);
    /// The temperature of a text that is generated, in thousandths.
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
        /// Cuts a text.
        Chunk = "chunk",
        /// Labels chunks or a text.
        Sentiment = "sentiment",
        /// Finds named entities.
        Entities = "entities",
        /// Summarizes a text.
        Summary = "summary",
        /// Turns texts into vectors.
        Embed = "embed",
        /// Marks keywords, actions and intents.
        Annotate = "annotate",
        /// Generates text.
        Generate = "generate",
        /// Calls another service.
        Http = "http",
        /// Computes a value from values.
        Map = "map",
        /// Runs a component of the user's.
        Component = "component",
    }
}

impl KindName {
    /// True when such a step calls a model, a service or a component. TCL is the latency of these.
    pub fn is_tool(self) -> bool {
        !matches!(self, Self::Chunk | Self::Map | Self::Annotate)
    }
}

named! {
    /// What becomes of the pipeline when a step has failed for good.
    pub enum OnError {
        /// It ends at once; what runs is stopped.
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

/// What a step does, and with what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Cuts a text into slices of `chunk_size` code points.
    Chunk {
        /// Code points per chunk.
        chunk_size: u32,
    },
    /// Labels each chunk of its input, or a text as one.
    Sentiment {
        /// The model; none: the one that is configured.
        model: Option<String>,
    },
    /// Finds named entities.
    Entities {
        /// The model; none: the one that is configured.
        model: Option<String>,
    },
    /// Summarizes.
    Summary {
        /// The model; none: the one that is configured.
        model: Option<String>,
    },
    /// Turns each text into a vector.
    Embed {
        /// The model; none: the one that is configured.
        model: Option<String>,
        /// Scale vectors to length 1.
        normalize: bool,
    },
    /// Keywords, actions and intents.
    Annotate,
    /// Generates text from a prompt.
    Generate {
        /// The model; none: the first that is served.
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
    /// A call to another service.
    Http {
        /// Where to.
        url: String,
        /// How.
        method: Method,
        /// Sent besides those that every request has.
        headers: Vec<(String, String)>,
        /// An expression whose value is the body; none: the input is (no body with `GET`).
        body: Option<String>,
    },
    /// The value of an expression over the input.
    Map {
        /// In the language of `map` (see `weir-codec`).
        expression: String,
    },
    /// A component that exports `weir:stream/step`.
    Component {
        /// Where it lies.
        path: String,
        /// The most memory that it may have, in bytes.
        memory_bytes_max: u64,
        /// How long one call of it may take, in milliseconds.
        deadline_ms: u64,
        /// Handed to it as it is.
        config: Json,
    },
}

impl Kind {
    /// Its name.
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

/// A piece of work: of a step, or of its compensation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Unique in the pipeline: 1 to [`ID_BYTES_MAX`] of `A-Z a-z 0-9 _ - .`.
    pub id: Arc<str>,
    /// What to do.
    pub kind: Kind,
    /// An expression over [`super::Inputs::context_json`] whose value is the input; none: [`super::Inputs::default_json`].
    pub input: Option<String>,
    /// When it is tried again. The circuit breaker policy has no meaning here.
    pub retry: RetryConfig,
    /// How long one attempt may take, in milliseconds.
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
    /// What it does.
    pub task: Task,
    /// The steps that must be over before. None: the step before it in the list; empty: it starts at once.
    pub after: Option<Vec<String>>,
    /// What becomes of the pipeline when it has failed for good.
    pub on_error: OnError,
    /// What undoes it once it was completed, in order.
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
    /// Events that may wait to be stored. A full buffer is stored at once; progress is dropped and outputs
    /// are pushed back while the store is slower.
    pub buffer_size: usize,
    /// Batches of progress and outputs are stored at most this often, in milliseconds. After a quiet time an event leaves
    /// at once, and so do all others always.
    pub flush_interval_ms: u64,
}

impl Default for Streaming {
    fn default() -> Self {
        Self { enabled: true, emit_progress: true, buffer_size: 1000, flush_interval_ms: 100 }
    }
}

/// A definition that was not checked yet.
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

    /// Checks it; all mistakes are reported, a cycle only when there is no other.
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
        let places = self.check_ids(&mut errors);
        let after = self.check_after(&places, &mut errors);
        if !errors.is_empty() {
            return Err(errors);
        }
        let ancestors = ancestors(&after).map_err(|cycle| {
            let name = |step: usize| self.steps[step].task.id.to_string();
            vec![DefinitionError::Cycle { step: cycle[0], ids: cycle.into_iter().map(name).collect() }]
        })?;
        let followed = after.iter().fold(0, |all, mask| all | mask);
        let sinks = all(self.steps.len()) & !followed;
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

    /// Where each id is first, of steps and compensations.
    fn check_ids(&self, errors: &mut Vec<DefinitionError>) -> BTreeMap<&str, StepIndex> {
        let mut places = BTreeMap::new();
        for (at, step) in self.steps.iter().enumerate() {
            let compensations = step.compensation.iter().zip(0..).map(|(task, place)| (task, Some(place)));
            for (task, compensation) in std::iter::once((&step.task, None)).chain(compensations) {
                let place = StepIndex { step: at, compensation };
                if !is_name(&task.id, ID_BYTES_MAX) {
                    errors.push(DefinitionError::Id { place, id: task.id.to_string() });
                } else if places.contains_key(&*task.id) {
                    errors.push(DefinitionError::DuplicateId { place, id: task.id.to_string() });
                } else {
                    places.insert(&*task.id, place);
                }
            }
        }
        places
    }

    /// For each step the steps before it, as bits.
    fn check_after(&self, places: &BTreeMap<&str, StepIndex>, errors: &mut Vec<DefinitionError>) -> Vec<u64> {
        let mut all = Vec::new();
        for (at, step) in self.steps.iter().enumerate() {
            let Some(after) = &step.after else {
                all.push(at.checked_sub(1).map_or(0, bit));
                continue;
            };
            let mut mask = 0;
            for (index, id) in after.iter().enumerate() {
                match places.get(id.as_str()) {
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

/// A pipeline that was checked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    draft: Draft,
    after: Vec<u64>,
    ancestors: Vec<u64>,
    sinks: u64,
}

impl Definition {
    /// What it was made of.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.draft.name
    }

    /// Its steps, as they are listed.
    pub fn steps(&self) -> &[Step] {
        &self.draft.steps
    }

    /// How its events are published.
    pub fn streaming(&self) -> &Streaming {
        &self.draft.streaming
    }

    /// The work of a step or a compensation; none when there is no such.
    pub fn task(&self, place: StepIndex) -> Option<&Task> {
        let step = self.draft.steps.get(place.step)?;
        match place.compensation {
            None => Some(&step.task),
            Some(at) => step.compensation.get(at),
        }
    }

    /// The steps that must be over before one, as bits.
    pub(super) fn after(&self, step: usize) -> u64 {
        self.after[step]
    }

    /// The ids of the steps that must be over before one.
    pub(super) fn ids_after(&self, step: usize) -> Vec<Arc<str>> {
        each(self.after(step)).map(|at| self.steps()[at].task.id.clone()).collect()
    }

    /// All steps that lead to one, as bits.
    pub(super) fn ancestors(&self, step: usize) -> u64 {
        self.ancestors[step]
    }

    /// The steps that no step comes after, as bits.
    pub(super) fn sinks(&self) -> u64 {
        self.sinks
    }
}

/// A step or one of its compensations, by index.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StepIndex {
    /// The step.
    pub step: usize,
    /// Which of its compensations; none for the step itself.
    pub compensation: Option<usize>,
}

/// What is wrong with a definition.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DefinitionError {
    /// Its name.
    #[error("the name must be 1 to {NAME_BYTES_MAX} of A-Z, a-z, 0-9, _, - and ., and is `{}`", short(.name))]
    Name {
        /// The name.
        name: String,
    },
    /// There is nothing to do.
    #[error("a pipeline needs at least one step")]
    NoSteps,
    /// There is too much to do.
    #[error("a pipeline has at most {STEPS_MAX} steps, and this one has {steps}")]
    TooManySteps {
        /// How many.
        steps: usize,
    },
    /// An id.
    #[error("an id must be 1 to {ID_BYTES_MAX} of A-Z, a-z, 0-9, _, - and ., and is `{}`", short(.id))]
    Id {
        /// Whose.
        place: StepIndex,
        /// The id.
        id: String,
    },
    /// An id that another step or compensation has.
    #[error("the id `{id}` is taken")]
    DuplicateId {
        /// Where it appears again.
        place: StepIndex,
        /// The id.
        id: String,
    },
    /// A step is to come after one that there is not.
    #[error("there is no step `{}`", short(.id))]
    UnknownAfter {
        /// The step that names it.
        step: usize,
        /// Where in its list.
        index: usize,
        /// What it names.
        id: String,
    },
    /// A step is to come after the same step twice.
    #[error("the step `{id}` is named twice")]
    AfterTwice {
        /// The step that names it.
        step: usize,
        /// Where in its list.
        index: usize,
        /// What it names.
        id: String,
    },
    /// Steps wait for each other.
    #[error("steps wait for each other: {}", .ids.join(" after "))]
    Cycle {
        /// The first of them.
        step: usize,
        /// Around, the first again at the end.
        ids: Vec<String>,
    },
    /// A number.
    #[error("{field} must be {min} to {max}, and is {actual}")]
    OutOfRange {
        /// Whose; none for the pipeline's.
        step: Option<usize>,
        /// Which.
        field: &'static str,
        /// Smallest.
        min: u64,
        /// Largest.
        max: u64,
        /// What it is.
        actual: u64,
    },
}

/// The bit of a step.
pub(super) fn bit(step: usize) -> u64 {
    1 << step
}

/// The bits of the first steps.
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
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.');
    (1..=bytes_max).contains(&name.len()) && name.bytes().all(fits) && !matches!(name, "." | "..")
}

fn short(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(ID_BYTES_MAX).collect()
}

/// For each step all that lead to it, or the steps of a cycle, each after the next, the first again at the end.
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

/// Every open step has an open one before it: going back from any leads around.
fn cycle(after: &[u64], open: u64) -> Vec<usize> {
    let mut path = vec![open.trailing_zeros() as usize];
    loop {
        let step = (after[path[path.len() - 1]] & open).trailing_zeros() as usize;
        let seen = path.iter().position(|other| *other == step);
        path.push(step);
        if let Some(first) = seen {
            return path.split_off(first);
        }
    }
}
