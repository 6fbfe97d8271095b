//! Encodes and decodes a checkpoint with its definition.
//!
//! The encoding is JSON with a version, so that later versions of Weir, and people, can read it. It has the definition, since an
//! execution continues with the definition that it began with. Arbitrary bytes give a checkpoint or an error;
//! [`weir_core::pipelines::Execution::resume`] checks the consistency of the state.

use std::{borrow::Cow, sync::Arc};

use serde::{Deserialize, Serialize, de::IgnoredAny};
use thiserror::Error;
use weir_core::pipelines::{
    Checkpoint, CheckpointPhase, CheckpointStep, Data, Definition, Event, Json, KindName, Metadata, PipelineFailure,
    Sequenced, StepFailure, StepTimes,
};

use super::{definition, execution_id};
use crate::json::field::RequestError;

mod decoder;
mod encoder;

pub use decoder::Decoder;
pub use encoder::Encoder;

/// The version that is written and read.
const VERSION: u32 = 1;
/// Longest encoding that is read, in bytes.
pub const CHECKPOINT_BYTES_MAX: usize = 64 << 20;

/// Why bytes are not a checkpoint.
#[derive(Debug, Error)]
pub enum CheckpointError {
    /// There are too many bytes.
    #[error("a checkpoint of {0} bytes is too large")]
    TooLarge(usize),
    /// The bytes are not the JSON of a checkpoint.
    #[error("the checkpoint is damaged: {0}")]
    Damaged(#[from] serde_json::Error),
    /// The version is not supported.
    #[error("the checkpoint has version {0}, and this reads version {VERSION}")]
    Version(u32),
    /// The definition in it is invalid.
    #[error("the definition in the checkpoint is wrong: {0}")]
    Definition(#[from] RequestError),
    /// A value in it is invalid.
    #[error("the checkpoint has a wrong {0}")]
    Value(&'static str),
}

/// Encodes a checkpoint.
pub fn encode(checkpoint: &Checkpoint, definition: &Definition) -> Vec<u8> {
    let mut encoder = Encoder::new(checkpoint, definition);
    let mut bytes = Vec::with_capacity(encoder.bytes());
    while encoder.write(&mut bytes, usize::MAX) {}
    bytes
}

/// Decodes the output of [`encode`].
///
/// # Errors
///
/// [`CheckpointError`]
pub fn decode(bytes: &[u8]) -> Result<(Definition, Checkpoint), CheckpointError> {
    let mut decoder = Decoder::new(bytes)?;
    while decoder.advance(usize::MAX)? {}
    decoder.finish()
}

/// Reads a checkpoint whose large values were taken out.
fn read(bytes: &[u8], values: &Values) -> Result<(Definition, Checkpoint), CheckpointError> {
    #[derive(Deserialize)]
    struct Head {
        version: u32,
    }
    let Head { version } = serde_json::from_slice(bytes)?;
    if version != VERSION {
        return Err(CheckpointError::Version(version));
    }
    let wire: Wire<'_> = serde_json::from_slice(bytes)?;
    if !execution_id::is_valid(&wire.execution_id) {
        return Err(CheckpointError::Value("execution id"));
    }
    let definition = definition::read(wire.definition.as_bytes())?;
    let checkpoint = Checkpoint {
        number: wire.number,
        execution_id: wire.execution_id.into(),
        input: values.json(wire.input)?,
        began_unix_ns: wire.began_unix_ns,
        unix_ns: wire.unix_ns,
        elapsed_ns: wire.elapsed_ns,
        resumes: wire.resumes,
        runs: wire.runs,
        steps: wire.steps.into_iter().map(|step| step.read(values)).collect::<Result<_, _>>()?,
        times: wire
            .times
            .into_iter()
            .map(|(began_unix_ns, duration_ns)| StepTimes { began_unix_ns, duration_ns })
            .collect(),
        completed: wire.completed.into_owned(),
        phase: wire.phase.read(),
        compensations_over: wire.compensations_over,
        compensations_failed: wire.compensations_failed,
        events_end: wire.events_end,
        outbox: wire.outbox.into_iter().map(|event| event.read(values)).collect::<Result<_, _>>()?,
    };
    Ok((definition, checkpoint))
}

/// JSON values are stored as strings, so that they are copied and not parsed when a checkpoint is encoded.
type Text<'a> = Cow<'a, str>;

fn value(json: &Json) -> Text<'_> {
    Cow::Borrowed(json.as_str())
}

/// Checks a stored value. It was valid when it was written; the check allocates nothing, at any depth.
fn checked(text: Text<'_>) -> Result<Json, CheckpointError> {
    let is_json = serde_json::from_str::<IgnoredAny>(&text).is_ok();
    // A line end would end the event that contains the value.
    match is_json && text.bytes().all(|byte| byte >= b' ') {
        true => Ok(Json::from_checked(text)),
        false => Err(CheckpointError::Value("JSON value")),
    }
}

/// The large values of a checkpoint. The text has a NUL character and the index of a value in its place; no JSON value begins with NUL.
#[derive(Debug, Default)]
struct Values(Vec<Json>);

impl Values {
    /// The value of a member.
    fn json(&self, text: Text<'_>) -> Result<Json, CheckpointError> {
        match text.strip_prefix('\0') {
            None => checked(text),
            Some(index) => {
                let value = index.parse().ok().and_then(|index: usize| self.0.get(index));
                value.cloned().ok_or(CheckpointError::Value("JSON value"))
            }
        }
    }
}

fn shared(text: &Text<'_>) -> Arc<str> {
    Arc::from(&**text)
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire<'a> {
    version: u32,
    number: u64,
    execution_id: Text<'a>,
    definition: Text<'a>,
    input: Text<'a>,
    began_unix_ns: u64,
    unix_ns: u64,
    elapsed_ns: u64,
    resumes: u32,
    runs: u32,
    steps: Vec<WireStep<'a>>,
    /// When each step began and how long it took, in nanoseconds; absent in checkpoints of earlier versions.
    #[serde(default)]
    times: Vec<(Option<u64>, Option<u64>)>,
    completed: Cow<'a, [usize]>,
    phase: WirePhase<'a>,
    compensations_over: usize,
    compensations_failed: u32,
    events_end: u64,
    outbox: Vec<WireEvent<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WireStep<'a> {
    Open,
    Completed(Text<'a>),
    Failed(WireFailure<'a>),
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WirePhase<'a> {
    Running,
    Failing { failure: WireFailure<'a>, step: usize },
    Completed,
    Failed(WirePipelineFailure<'a>),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireFailure<'a> {
    code: Text<'a>,
    message: Text<'a>,
    retryable: bool,
    retry_after_ms: Option<u32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePipelineFailure<'a> {
    failure: WireFailure<'a>,
    step_id: Option<Text<'a>>,
    cancelled: bool,
    compensated: u32,
    compensations_failed: u32,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireEvent<'a> {
    seq: u64,
    step_id: Option<Text<'a>>,
    unix_ns: u64,
    data: WireData<'a>,
    attempt: u32,
    run: u32,
    resumed: u32,
    compensates: Option<Text<'a>>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
enum WireData<'a> {
    PipelineStart { name: Text<'a>, steps: u32 },
    StepStart { kind: Text<'a> },
    StepProgress { progress: f64, message: Text<'a> },
    StepOutput { index: u64, output: Text<'a> },
    StepComplete { kind: Text<'a>, output: Text<'a>, duration_ns: u64 },
    StepError { kind: Text<'a>, failure: WireFailure<'a>, retry_in_ns: Option<u64>, duration_ns: u64 },
    PipelineComplete { output: Text<'a>, duration_ns: u64, steps_completed: u32, steps_failed: u32 },
    PipelineError { failure: WirePipelineFailure<'a>, duration_ns: u64 },
    CheckpointSaved { checkpoint: u64, steps_completed: u32 },
}

impl<'a> From<&'a CheckpointStep> for WireStep<'a> {
    fn from(step: &'a CheckpointStep) -> Self {
        match step {
            CheckpointStep::Open => Self::Open,
            CheckpointStep::Completed(output) => Self::Completed(value(output)),
            CheckpointStep::Failed(failure) => Self::Failed(failure.into()),
        }
    }
}

impl WireStep<'_> {
    fn read(self, values: &Values) -> Result<CheckpointStep, CheckpointError> {
        Ok(match self {
            Self::Open => CheckpointStep::Open,
            Self::Completed(output) => CheckpointStep::Completed(values.json(output)?),
            Self::Failed(failure) => CheckpointStep::Failed(failure.read()),
        })
    }
}

impl<'a> From<&'a CheckpointPhase> for WirePhase<'a> {
    fn from(phase: &'a CheckpointPhase) -> Self {
        match phase {
            CheckpointPhase::Running => Self::Running,
            CheckpointPhase::Failing { failure, step } => Self::Failing { failure: failure.into(), step: *step },
            CheckpointPhase::Completed => Self::Completed,
            CheckpointPhase::Failed(failure) => Self::Failed(failure.into()),
        }
    }
}

impl WirePhase<'_> {
    fn read(self) -> CheckpointPhase {
        match self {
            Self::Running => CheckpointPhase::Running,
            Self::Failing { failure, step } => CheckpointPhase::Failing { failure: failure.read(), step },
            Self::Completed => CheckpointPhase::Completed,
            Self::Failed(failure) => CheckpointPhase::Failed(failure.read()),
        }
    }
}

impl<'a> From<&'a StepFailure> for WireFailure<'a> {
    fn from(failure: &'a StepFailure) -> Self {
        let StepFailure { code, message, retryable, retry_after_ms } = failure;
        let (code, message) = (Cow::Borrowed(&**code), Cow::Borrowed(&**message));
        Self { code, message, retryable: *retryable, retry_after_ms: *retry_after_ms }
    }
}

impl WireFailure<'_> {
    fn read(self) -> StepFailure {
        let Self { code, message, retryable, retry_after_ms } = self;
        StepFailure { code: shared(&code), message: shared(&message), retryable, retry_after_ms }
    }
}

impl<'a> From<&'a PipelineFailure> for WirePipelineFailure<'a> {
    fn from(failure: &'a PipelineFailure) -> Self {
        Self {
            failure: (&failure.failure).into(),
            step_id: failure.step_id.as_deref().map(Cow::Borrowed),
            cancelled: failure.cancelled,
            compensated: failure.compensated,
            compensations_failed: failure.compensations_failed,
        }
    }
}

impl WirePipelineFailure<'_> {
    fn read(self) -> PipelineFailure {
        PipelineFailure {
            failure: self.failure.read(),
            step_id: self.step_id.as_ref().map(shared),
            cancelled: self.cancelled,
            compensated: self.compensated,
            compensations_failed: self.compensations_failed,
        }
    }
}

impl<'a> From<&'a Sequenced> for WireEvent<'a> {
    fn from(Sequenced { seq, event }: &'a Sequenced) -> Self {
        let Metadata { attempt, run, resumed, compensates } = &event.metadata;
        Self {
            seq: *seq,
            step_id: event.step_id.as_deref().map(Cow::Borrowed),
            unix_ns: event.unix_ns,
            data: (&event.data).into(),
            attempt: *attempt,
            run: *run,
            resumed: *resumed,
            compensates: compensates.as_deref().map(Cow::Borrowed),
        }
    }
}

impl WireEvent<'_> {
    fn read(self, values: &Values) -> Result<Sequenced, CheckpointError> {
        let Self { seq, step_id, unix_ns, data, attempt, run, resumed, compensates } = self;
        let metadata = Metadata { attempt, run, resumed, compensates: compensates.as_ref().map(shared) };
        let event = Event { step_id: step_id.as_ref().map(shared), unix_ns, data: data.read(values)?, metadata };
        Ok(Sequenced { seq, event })
    }
}

impl<'a> From<&'a Data> for WireData<'a> {
    fn from(data: &'a Data) -> Self {
        let name = |kind: &KindName| Cow::Borrowed(kind.name());
        match data {
            Data::PipelineStart { name, steps } => Self::PipelineStart { name: Cow::Borrowed(name), steps: *steps },
            Data::StepStart { kind } => Self::StepStart { kind: name(kind) },
            Data::StepProgress { progress, message } => {
                Self::StepProgress { progress: *progress, message: Cow::Borrowed(message) }
            }
            Data::StepOutput { index, output } => Self::StepOutput { index: *index, output: value(output) },
            Data::StepComplete { kind, output, duration_ns } => {
                Self::StepComplete { kind: name(kind), output: value(output), duration_ns: *duration_ns }
            }
            Data::StepError { kind, failure, retry_in_ns, duration_ns } => Self::StepError {
                kind: name(kind),
                failure: failure.into(),
                retry_in_ns: *retry_in_ns,
                duration_ns: *duration_ns,
            },
            Data::PipelineComplete { output, duration_ns, steps_completed, steps_failed } => Self::PipelineComplete {
                output: value(output),
                duration_ns: *duration_ns,
                steps_completed: *steps_completed,
                steps_failed: *steps_failed,
            },
            Data::PipelineError { failure, duration_ns } => {
                Self::PipelineError { failure: failure.into(), duration_ns: *duration_ns }
            }
            Data::CheckpointSaved { checkpoint, steps_completed } => {
                Self::CheckpointSaved { checkpoint: *checkpoint, steps_completed: *steps_completed }
            }
        }
    }
}

impl WireData<'_> {
    fn read(self, values: &Values) -> Result<Data, CheckpointError> {
        let kind = |name: Text<'_>| KindName::from_name(&name).ok_or(CheckpointError::Value("kind of step"));
        Ok(match self {
            Self::PipelineStart { name, steps } => Data::PipelineStart { name: shared(&name), steps },
            Self::StepStart { kind: name } => Data::StepStart { kind: kind(name)? },
            Self::StepProgress { progress, message } => Data::StepProgress { progress, message: shared(&message) },
            Self::StepOutput { index, output } => Data::StepOutput { index, output: values.json(output)? },
            Self::StepComplete { kind: name, output, duration_ns } => {
                Data::StepComplete { kind: kind(name)?, output: values.json(output)?, duration_ns }
            }
            Self::StepError { kind: name, failure, retry_in_ns, duration_ns } => {
                Data::StepError { kind: kind(name)?, failure: failure.read(), retry_in_ns, duration_ns }
            }
            Self::PipelineComplete { output, duration_ns, steps_completed, steps_failed } => {
                Data::PipelineComplete { output: values.json(output)?, duration_ns, steps_completed, steps_failed }
            }
            Self::PipelineError { failure, duration_ns } => {
                Data::PipelineError { failure: failure.read(), duration_ns }
            }
            Self::CheckpointSaved { checkpoint, steps_completed } => {
                Data::CheckpointSaved { checkpoint, steps_completed }
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use weir_core::{
        pipelines::{Execution, Limits},
        time::Now,
    };

    /// The form that [`decode`] reads, by serde.
    fn reference(checkpoint: &Checkpoint, definition: &Definition) -> Vec<u8> {
        let wire = Wire {
            version: VERSION,
            number: checkpoint.number,
            execution_id: Cow::Borrowed(&checkpoint.execution_id),
            definition: definition::to_json(definition).into(),
            input: value(&checkpoint.input),
            began_unix_ns: checkpoint.began_unix_ns,
            unix_ns: checkpoint.unix_ns,
            elapsed_ns: checkpoint.elapsed_ns,
            resumes: checkpoint.resumes,
            runs: checkpoint.runs,
            steps: checkpoint.steps.iter().map(WireStep::from).collect(),
            times: checkpoint.times.iter().map(|times| (times.began_unix_ns, times.duration_ns)).collect(),
            completed: Cow::Borrowed(&checkpoint.completed),
            phase: WirePhase::from(&checkpoint.phase),
            compensations_over: checkpoint.compensations_over,
            compensations_failed: checkpoint.compensations_failed,
            events_end: checkpoint.events_end,
            outbox: checkpoint.outbox.iter().map(WireEvent::from).collect(),
        };
        crate::json::to_vec(&wire)
    }

    /// Values around the size that is written in parts, with characters that are escaped.
    #[test]
    fn checkpoint_in_parts_is_that_of_serde() {
        let source = br#"{"name":"p","steps":[{"id":"a","kind":"map","expression":"@"},{"id":"b","kind":"map","expression":"@"}]}"#;
        let definition = Arc::new(definition::read(source).unwrap());
        for size in [1, 1_000, 1_022, 1_023, 5_000, 100_000] {
            let value = || Json::from_checked(format!("\"{}\\n\\\"é\"", "x".repeat(size)));
            let now = Now { unix_ns: 5, monotonic_ns: 5 };
            let id = execution_id::from_random([7; 16]);
            let mut execution = Execution::new(definition.clone(), id, value(), Limits::default(), 1, now).unwrap();
            let mut checkpoints = 0;
            // A checkpoint before and after each of the steps.
            for _ in 0..6 {
                if let Some(checkpoint) = execution.poll_checkpoint(now) {
                    let expected = reference(&checkpoint, &definition);
                    let mut encoder = Encoder::new(&checkpoint, &definition);
                    let (mut bytes, mut slices) = (Vec::new(), 1);
                    while encoder.write(&mut bytes, 1_000) {
                        slices += 1;
                    }
                    assert!(slices >= expected.len() / 2_000, "{slices} slices");
                    assert_eq!(String::from_utf8(bytes.clone()).unwrap(), String::from_utf8(expected).unwrap());
                    let mut decoder = Decoder::new(&bytes).unwrap();
                    slices = 1;
                    while decoder.advance(1_000).unwrap() {
                        slices += 1;
                    }
                    assert!(slices >= bytes.len() / 1_000, "{slices} slices");
                    let decoded = decoder.finish().unwrap();
                    assert_eq!(decoded, ((*definition).clone(), checkpoint.clone()));
                    assert_eq!(decode(&encode(&checkpoint, &definition)).unwrap(), decoded);
                    execution.handle_checkpoint_saved(checkpoint.number);
                    checkpoints += 1;
                }
                if let Some(request) = execution.poll_start(now) {
                    execution.handle_output(now, request.run, value()).unwrap();
                    execution.handle_finished(now, request.run, value());
                }
            }
            assert!(execution.outcome().is_some() && checkpoints == 3, "{checkpoints} checkpoints");
        }
    }
}
