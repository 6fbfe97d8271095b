//! One execution of a pipeline.
//!
//! A driver feeds it (`handle_*`) and then drains it until every `poll_*` is empty:
//!
//! 1. [`Execution::poll_checkpoint`]: save it, then [`Execution::handle_checkpoint_saved`].
//! 2. [`Execution::poll_events`]: append them, then [`Execution::handle_stored`] with how many the channel holds.
//! 3. [`Execution::poll_stop`]: cancel a run.
//! 4. [`Execution::poll_start`]: start a run, and report its progress and its end by its [`Run`].
//! 5. [`Execution::poll_timeout`]: call [`Execution::handle_timer`] then.
//!
//! The execution continues while the driver saves and appends; the next checkpoint and batch contain everything that
//! has accumulated.

use std::{collections::VecDeque, sync::Arc};

use super::{
    buffer::{Batch, Buffer},
    checkpoint::{Checkpoint, CheckpointPhase, CheckpointStep, StepTimes},
    definition::{Definition, StepIndex, Task, bit, each},
    event::{Data, Event, Metadata, StepFailure},
    json::Json,
    run::{Inputs, Limits, Outcome, ReportError, Run, RunRequest},
    slot::{Slot, SlotState},
};
use crate::{random::SplitMix64, time::Now};

mod transitions;

/// Nanoseconds in a millisecond.
const NS_PER_MS: u64 = 1_000_000;

/// The phase of an execution.
#[derive(Debug)]
pub(super) enum Phase {
    Running,
    /// Running steps finish, then completed steps are compensated.
    Failing {
        failure: StepFailure,
        step: usize,
    },
    Done {
        outcome: Outcome,
        duration_ns: u64,
    },
}

/// The state machine of an execution. Times are nanoseconds of a monotonic clock.
#[derive(Debug)]
pub struct Execution {
    pub(super) id: Arc<str>,
    pub(super) definition: Arc<Definition>,
    pub(super) limits: Limits,
    pub(super) input: Json,
    pub(super) began_unix_ns: u64,
    /// When this process started or resumed the execution.
    pub(super) began_ns: u64,
    /// The duration of the execution before `began_ns`.
    pub(super) elapsed_before_ns: u64,
    pub(super) resumes: u32,
    pub(super) runs: u32,
    pub(super) random: SplitMix64,
    pub(super) phase: Phase,
    pub(super) steps: Vec<Slot>,
    /// Steps that wait for an attempt, as a mask.
    pub(super) waiting: u64,
    /// Running steps, as a mask.
    pub(super) running: u64,
    /// Steps that have ended, as a mask.
    pub(super) settled: u64,
    /// Steps that have ended in the last saved checkpoint, as a mask.
    pub(super) settled_saved: u64,
    pub(super) completed: Vec<usize>,
    pub(super) outputs_bytes: usize,
    /// The compensations to run, in order, once compensation has started.
    pub(super) compensations: Option<Vec<(StepIndex, Slot)>>,
    pub(super) compensations_over: usize,
    pub(super) compensations_failed: u32,
    pub(super) buffer: Buffer,
    pub(super) stops: VecDeque<Run>,
    /// Whether the state has changed since the last checkpoint.
    pub(super) dirty: bool,
    pub(super) checkpoint: u64,
    /// The settled steps of the checkpoint that is being saved.
    pub(super) saving: Option<u64>,
    /// Whether the first checkpoint of this process is saved.
    pub(super) accepted: bool,
}

impl Execution {
    /// Starts an execution. `id` is unguessable and unique (see `weir-codec`); `seed` is the seed of the retry jitter.
    ///
    /// # Errors
    ///
    /// The input exceeds its bound.
    pub fn new(
        definition: Arc<Definition>,
        id: impl Into<Arc<str>>,
        input: Json,
        limits: Limits,
        seed: u64,
        now: Now,
    ) -> Result<Self, ReportError> {
        if input.bytes() > limits.input_bytes_max {
            return Err(ReportError::TooLarge { bytes: input.bytes(), bytes_max: limits.input_bytes_max });
        }
        let steps = definition.steps().len();
        let mut execution = Self {
            id: id.into(),
            limits,
            input,
            began_unix_ns: now.unix_ns,
            began_ns: now.monotonic_ns,
            elapsed_before_ns: 0,
            resumes: 0,
            runs: 0,
            random: SplitMix64::new(seed),
            phase: Phase::Running,
            steps: (0..steps).map(|_| Slot::new(SlotState::Waiting)).collect(),
            waiting: super::definition::all(steps),
            running: 0,
            settled: 0,
            settled_saved: 0,
            completed: Vec::with_capacity(steps),
            outputs_bytes: 0,
            compensations: None,
            compensations_over: 0,
            compensations_failed: 0,
            buffer: Buffer::new(*definition.streaming(), limits.buffer_bytes_max, 0, VecDeque::new()),
            stops: VecDeque::new(),
            dirty: true,
            checkpoint: 0,
            saving: None,
            accepted: false,
            definition,
        };
        let data = Data::PipelineStart { name: execution.definition.name().into(), steps: steps as u32 };
        execution.publish(now, data);
        Ok(execution)
    }

    /// Handles the progress of a run, from 0 to 1.
    pub fn handle_progress(&mut self, now: Now, run: Run, progress: f64, message: &str) {
        let Some((_, metadata)) = self.current(run) else { return };
        let progress = if progress.is_nan() { 0.0 } else { progress.clamp(0.0, 1.0) };
        if let Some(slot) = self.slot_mut(run.place) {
            slot.progress = Some(progress);
        }
        let end = message.floor_char_boundary(self.limits.message_bytes_max);
        let data = Data::StepProgress { progress, message: message[..end].into() };
        let event = self.event_of(now, run.place, data, metadata);
        self.buffer.push_progress(event);
    }

    /// Handles a part of the output of a run.
    ///
    /// # Errors
    ///
    /// See [`ReportError`].
    pub fn handle_output(&mut self, now: Now, run: Run, output: Json) -> Result<(), ReportError> {
        let (index, metadata) = self.current(run).ok_or(ReportError::Stale)?;
        let (bytes, bytes_max) = (output.bytes(), self.limits.output_bytes_max);
        if bytes > bytes_max {
            return Err(ReportError::TooLarge { bytes, bytes_max });
        }
        let event = self.event_of(now, run.place, Data::StepOutput { index, output }, metadata);
        self.buffer.push_output(event)?;
        if let Some(slot) = self.slot_mut(run.place) {
            slot.parts += 1;
        }
        Ok(())
    }

    /// Handles the completion of a run. An output over its bound is a failure.
    pub fn handle_finished(&mut self, now: Now, run: Run, output: Json) {
        let Some(started_ns) = self.started(run) else { return };
        let bytes = output.bytes();
        let is_step = run.place.compensation.is_none();
        let (bytes_max, all_max) = (self.limits.output_bytes_max, self.limits.outputs_bytes_max);
        let all = if is_step { self.outputs_bytes + bytes } else { 0 };
        if bytes > bytes_max || all > all_max {
            let message = match bytes > bytes_max {
                true => format!("the output has {bytes} bytes, and may have {bytes_max}"),
                false => format!("the outputs of all steps have {all} bytes with this one, and may have {all_max}"),
            };
            return self.fail(now, run, StepFailure::last("output_too_large", message));
        }
        let duration_ns = now.monotonic_ns.saturating_sub(started_ns);
        let Some(kind) = self.definition.task(run.place).map(|task| task.kind.name()) else { return };
        if let Some(slot) = self.slot_mut(run.place) {
            slot.times.duration_ns = Some(duration_ns);
        }
        self.publish_of(now, run, Data::StepComplete { kind, output: output.clone(), duration_ns });
        self.settle(run.place, SlotState::Done(output));
        if is_step {
            self.outputs_bytes += bytes;
            self.completed.push(run.place.step);
        }
        self.advance(now);
    }

    /// Handles the failure of a run.
    pub fn handle_failed(&mut self, now: Now, run: Run, failure: StepFailure) {
        if self.started(run).is_some() {
            self.fail(now, run, failure);
        }
    }

    /// Handles the passing of time: runs past their timeout are stopped and fail, with a retry if the task has one.
    pub fn handle_timer(&mut self, now: Now) {
        let late = |place, slot: &Slot| match slot.state {
            SlotState::Running { run, deadline_ns, .. } if deadline_ns <= now.monotonic_ns => {
                Some(Run { place, number: run })
            }
            _ => None,
        };
        let steps = each(self.running).filter_map(|at| late(step_index(at), &self.steps[at]));
        let compensations = self.compensations.iter().flatten().filter_map(|(place, slot)| late(*place, slot));
        for run in steps.chain(compensations).collect::<Vec<_>>() {
            // An earlier failure of this loop may have ended the execution.
            if self.started(run).is_some() {
                let timeout_ms = self.definition.task(run.place).map_or(0, |task| task.timeout_ms);
                self.stops.push_back(run);
                let message = format!("the step was not finished within {timeout_ms} ms");
                self.fail(now, run, StepFailure::passing("step_timeout", message));
            }
        }
    }

    /// Cancels the execution: running steps are stopped, without compensations. False if it has ended or is being
    /// compensated.
    pub fn handle_cancel(&mut self, now: Now, reason: StepFailure) -> bool {
        if !matches!(self.phase, Phase::Running) {
            return false;
        }
        self.end(now, reason, None, true);
        true
    }

    /// Records that the channel has `events_stored` events of this execution, after a batch was appended, in part, or
    /// not.
    pub fn handle_stored(&mut self, events_stored: u64) {
        self.buffer.handle_stored(events_stored);
    }

    /// Records that the checkpoint of this number is saved.
    pub fn handle_checkpoint_saved(&mut self, number: u64) {
        if number == self.checkpoint
            && let Some(settled) = self.saving.take()
        {
            self.settled_saved = settled;
            self.accepted = true;
            self.buffer.release();
        }
    }

    /// The next run to start.
    pub fn poll_start(&mut self, now: Now) -> Option<RunRequest> {
        if !self.accepted {
            return None;
        }
        let place = match self.phase {
            Phase::Running if (self.running.count_ones() as usize) < self.definition.draft().parallel_max => {
                let is_due = |at: &usize| {
                    self.definition.after(*at) & !self.settled_saved == 0 && self.steps[*at].is_due(now.monotonic_ns)
                };
                step_index(each(self.waiting).find(is_due)?)
            }
            // Compensations run one at a time, each after the end of the previous one is saved.
            Phase::Failing { .. } if !self.dirty && self.saving.is_none() => {
                let (place, slot) = self.compensations.as_ref()?.get(self.compensations_over)?;
                slot.is_due(now.monotonic_ns).then_some(*place)?
            }
            _ => return None,
        };
        self.runs = self.runs.saturating_add(1);
        let run = Run { place, number: self.runs };
        let task = self.definition.task(place)?;
        let (kind, timeout_ms) = (task.kind.name(), task.timeout_ms);
        let started_ns = now.monotonic_ns;
        let deadline_ns = started_ns.saturating_add(timeout_ms.saturating_mul(NS_PER_MS));
        if place.compensation.is_none() {
            self.waiting &= !bit(place.step);
            self.running |= bit(place.step);
        }
        let slot = self.slot_mut(place)?;
        slot.state = SlotState::Running { run: run.number, started_ns, deadline_ns };
        slot.attempts += 1;
        slot.parts = 0;
        slot.times = StepTimes { began_unix_ns: Some(now.unix_ns), duration_ns: None };
        slot.progress = None;
        let attempt = slot.attempts;
        self.publish_of(now, run, Data::StepStart { kind });
        Some(RunRequest { run, attempt, inputs: self.inputs(place) })
    }

    /// The next run to cancel: its further reports are ignored.
    pub fn poll_stop(&mut self) -> Option<Run> {
        self.stops.pop_front()
    }

    /// The next events to append to the channel: one batch at a time, until [`Self::handle_stored`].
    pub fn poll_events(&mut self, now: Now) -> Option<Batch> {
        self.buffer.poll(now.monotonic_ns, !self.dirty)
    }

    /// The next checkpoint to save: one at a time, until [`Self::handle_checkpoint_saved`]. If saving fails, save it
    /// again: until then none of its events is stored, and no step starts from it.
    pub fn poll_checkpoint(&mut self, now: Now) -> Option<Checkpoint> {
        if !self.dirty || self.saving.is_some() {
            return None;
        }
        self.dirty = false;
        self.saving = Some(self.settled);
        self.checkpoint += 1;
        let steps_completed = self.completed.len() as u32;
        let saved = Data::CheckpointSaved { checkpoint: self.checkpoint, steps_completed };
        let metadata = Metadata { resumed: self.resumes, ..Metadata::default() };
        self.buffer.hold(Event { step_id: None, unix_ns: now.unix_ns, data: saved, metadata });
        Some(self.snapshot(now))
    }

    /// When to call [`Self::handle_timer`] and poll; `None` if only an input has an effect.
    pub fn poll_timeout(&self) -> Option<u64> {
        let of = |slot: &Slot| match slot.state {
            SlotState::Running { deadline_ns, .. } => Some(deadline_ns),
            SlotState::Backoff { until_ns } => Some(until_ns),
            _ => None,
        };
        let steps = each(self.running | self.waiting).filter_map(|at| of(&self.steps[at]));
        let compensations = self.compensations.iter().flatten().filter_map(|(_, slot)| of(slot));
        steps.chain(compensations).chain(self.buffer.poll_timeout()).min()
    }

    /// The outcome, once the execution has ended.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Done { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    /// True when the execution has ended, its last checkpoint is saved and every event is stored.
    pub fn is_drained(&self) -> bool {
        let saved = !self.dirty && self.saving.is_none();
        self.outcome().is_some() && saved && self.buffer.is_empty() && self.stops.is_empty()
    }

    /// The id of the execution.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// The input of the execution.
    pub fn input(&self) -> &Json {
        &self.input
    }

    /// The definition of the pipeline.
    pub fn definition(&self) -> &Arc<Definition> {
        &self.definition
    }

    /// The number of the last numbered event.
    pub fn events(&self) -> u64 {
        self.buffer.last_seq()
    }

    /// The number of times that the execution was resumed.
    pub fn resumes(&self) -> u32 {
        self.resumes
    }

    pub(super) fn began_unix_ns(&self) -> u64 {
        self.began_unix_ns
    }

    pub(super) fn is_failing(&self) -> bool {
        matches!(self.phase, Phase::Failing { .. })
    }

    pub(super) fn slots(&self) -> impl Iterator<Item = (&Task, &Slot)> {
        self.definition.steps().iter().map(|step| &step.task).zip(&self.steps)
    }

    /// The duration of the execution so far, or in total.
    pub(super) fn duration_ns(&self, now_ns: u64) -> u64 {
        match self.phase {
            Phase::Done { duration_ns, .. } => duration_ns,
            _ => self.elapsed_before_ns.saturating_add(now_ns.saturating_sub(self.began_ns)),
        }
    }

    /// The output of the pipeline.
    pub(super) fn output(&self) -> Json {
        let sinks: Vec<usize> = each(self.definition.sinks()).collect();
        let outputs = sinks.iter().map(|at| (&*self.definition.steps()[*at].task.id, self.output_of(*at)));
        match &sinks[..] {
            [sink] => self.output_of(*sink),
            _ => {
                let outputs: Vec<(&str, Json)> = outputs.collect();
                Json::object(outputs.iter().map(|(id, output)| (*id, output)))
            }
        }
    }

    fn output_of(&self, step: usize) -> Json {
        match &self.steps[step].state {
            SlotState::Done(output) => output.clone(),
            _ => Json::null(),
        }
    }

    fn inputs(&self, place: StepIndex) -> Inputs {
        let output = |at: usize| (self.definition.steps()[at].task.id.clone(), self.output_of(at));
        let before: Vec<usize> = each(self.definition.ancestors(place.step)).collect();
        let mut steps: Vec<_> = before.iter().map(|at| output(*at)).collect();
        let mut direct = Vec::new();
        if place.compensation.is_some() {
            direct.push(steps.len());
            steps.push(output(place.step));
        } else {
            let after = self.definition.after(place.step);
            direct.extend(before.iter().zip(0..).filter(|(at, _)| after & bit(**at) != 0).map(|(_, index)| index));
        }
        Inputs { input: self.input.clone(), steps, direct }
    }

    fn slot(&self, place: StepIndex) -> Option<&Slot> {
        match place.compensation {
            None => self.steps.get(place.step),
            Some(_) => self.compensations.as_ref()?.iter().find(|(other, _)| *other == place).map(|(_, slot)| slot),
        }
    }

    fn slot_mut(&mut self, place: StepIndex) -> Option<&mut Slot> {
        match place.compensation {
            None => self.steps.get_mut(place.step),
            Some(_) => self.compensations.as_mut()?.iter_mut().find(|(other, _)| *other == place).map(|(_, slot)| slot),
        }
    }

    /// When a run started, if it is running.
    fn started(&self, run: Run) -> Option<u64> {
        self.slot(run.place)?.running_since(run.number)
    }

    /// The index of the next part and the metadata of a run, if it is running.
    fn current(&self, run: Run) -> Option<(u64, Metadata)> {
        let slot = self.slot(run.place)?;
        slot.running_since(run.number)?;
        Some((slot.parts, self.metadata(run)))
    }

    fn metadata(&self, run: Run) -> Metadata {
        let step = &self.definition.steps()[run.place.step].task.id;
        Metadata {
            attempt: self.slot(run.place).map_or(0, |slot| slot.attempts),
            run: run.number,
            resumed: self.resumes,
            compensates: run.place.compensation.map(|_| step.clone()),
        }
    }

    /// Publishes an event of the execution.
    fn publish(&mut self, now: Now, data: Data) {
        let metadata = Metadata { resumed: self.resumes, ..Metadata::default() };
        self.buffer.push(Event { step_id: None, unix_ns: now.unix_ns, data, metadata });
    }

    /// Publishes a lifecycle event of a run.
    fn publish_of(&mut self, now: Now, run: Run, data: Data) {
        let event = self.event_of(now, run.place, data, self.metadata(run));
        self.buffer.push(event);
    }

    fn event_of(&self, now: Now, place: StepIndex, data: Data, metadata: Metadata) -> Event {
        let step_id = self.definition.task(place).map(|task| task.id.clone());
        Event { step_id, unix_ns: now.unix_ns, data, metadata }
    }

    fn snapshot(&self, now: Now) -> Checkpoint {
        let step = |slot: &Slot| match &slot.state {
            SlotState::Done(output) => CheckpointStep::Completed(output.clone()),
            SlotState::Failed(failure) => CheckpointStep::Failed(failure.clone()),
            _ => CheckpointStep::Open,
        };
        let phase = match &self.phase {
            Phase::Running => CheckpointPhase::Running,
            Phase::Failing { failure, step } => CheckpointPhase::Failing { failure: failure.clone(), step: *step },
            Phase::Done { outcome: Outcome::Completed { .. }, .. } => CheckpointPhase::Completed,
            Phase::Done { outcome: Outcome::Failed(failure), .. } => CheckpointPhase::Failed(failure.clone()),
        };
        Checkpoint {
            number: self.checkpoint,
            execution_id: self.id.clone(),
            input: self.input.clone(),
            began_unix_ns: self.began_unix_ns,
            unix_ns: now.unix_ns,
            elapsed_ns: self.duration_ns(now.monotonic_ns),
            resumes: self.resumes,
            runs: self.runs,
            steps: self.steps.iter().map(step).collect(),
            times: self.steps.iter().map(|slot| slot.times).collect(),
            completed: self.completed.clone(),
            phase,
            compensations_over: self.compensations_over,
            compensations_failed: self.compensations_failed,
            events_end: self.buffer.last_seq(),
            outbox: self.buffer.outbox(),
        }
    }
}

fn step_index(step: usize) -> StepIndex {
    StepIndex { step, compensation: None }
}

/// The compensations of the completed steps, in reverse order of completion.
pub(super) fn compensation_list(definition: &Definition, completed: &[usize]) -> Vec<(StepIndex, Slot)> {
    let of = |step: usize| {
        let count = definition.steps()[step].compensation.len();
        (0..count).map(move |at| StepIndex { step, compensation: Some(at) })
    };
    completed.iter().rev().flat_map(|step| of(*step)).map(|place| (place, Slot::new(SlotState::Waiting))).collect()
}
