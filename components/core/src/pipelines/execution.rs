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
//! The execution continues while the driver saves and appends; the next checkpoint and batch have all that has accumulated.

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

/// The state machine. Instants are nanoseconds of a clock that never goes back.
#[derive(Debug)]
pub struct Execution {
    pub(super) id: Arc<str>,
    pub(super) definition: Arc<Definition>,
    pub(super) limits: Limits,
    pub(super) input: Json,
    pub(super) began_unix_ns: u64,
    /// When this process began with it, and how long it had taken before.
    pub(super) since_ns: u64,
    pub(super) carried_ns: u64,
    pub(super) resumes: u32,
    pub(super) runs: u32,
    pub(super) random: SplitMix64,
    pub(super) phase: Phase,
    pub(super) steps: Vec<Slot>,
    /// Steps that can begin or begin again, as bits.
    pub(super) waiting: u64,
    /// Steps that run, as bits.
    pub(super) running: u64,
    /// Steps that are over, as bits; and those of them that a saved checkpoint knows.
    pub(super) settled: u64,
    pub(super) settled_saved: u64,
    pub(super) completed: Vec<usize>,
    pub(super) outputs_bytes: usize,
    /// What is to be undone, in order, and how much of it is over.
    pub(super) undo: Option<Vec<(StepIndex, Slot)>>,
    pub(super) undo_over: usize,
    pub(super) undo_failed: u32,
    pub(super) buffer: Buffer,
    pub(super) stops: VecDeque<Run>,
    /// The state has changed since the last checkpoint.
    pub(super) dirty: bool,
    pub(super) checkpoint: u64,
    /// The steps that are over in the checkpoint that is being saved.
    pub(super) saving: Option<u64>,
    /// The first checkpoint of this process is saved.
    pub(super) accepted: bool,
}

impl Execution {
    /// Begins. `id` is unguessable and unique (see `weir-codec`); `seed` is for the jitter of retries.
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
            since_ns: now.monotonic_ns,
            carried_ns: 0,
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
            undo: None,
            undo_over: 0,
            undo_failed: 0,
            buffer: Buffer::new(*definition.streaming(), limits.buffer_bytes_max, 0, VecDeque::new()),
            stops: VecDeque::new(),
            dirty: true,
            checkpoint: 0,
            saving: None,
            accepted: false,
            definition,
        };
        let data = Data::PipelineStart { name: execution.definition.name().into(), steps: steps as u32 };
        execution.tell(now, data);
        Ok(execution)
    }

    /// A run says how far it is: `progress` from 0 to 1.
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

    /// A run has a part of its output.
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

    /// A run is done. An output that is too large makes it a failure.
    pub fn handle_finished(&mut self, now: Now, run: Run, output: Json) {
        let Some(started_ns) = self.started(run) else { return };
        let bytes = output.bytes();
        let is_step = run.place.compensation.is_none();
        let too_large = bytes > self.limits.output_bytes_max
            || is_step && self.outputs_bytes + bytes > self.limits.outputs_bytes_max;
        if too_large {
            let failure = StepFailure::last("output_too_large", format!("the output has {bytes} bytes: too many"));
            return self.fail(now, run, failure);
        }
        let duration_ns = now.monotonic_ns.saturating_sub(started_ns);
        let Some(kind) = self.definition.task(run.place).map(|task| task.kind.name()) else { return };
        if let Some(slot) = self.slot_mut(run.place) {
            slot.times.duration_ns = Some(duration_ns);
        }
        self.tell_of(now, run, Data::StepComplete { kind, output: output.clone(), duration_ns });
        self.settle(run.place, SlotState::Done(output));
        if is_step {
            self.outputs_bytes += bytes;
            self.completed.push(run.place.step);
        }
        self.advance(now);
    }

    /// A run failed.
    pub fn handle_failed(&mut self, now: Now, run: Run, failure: StepFailure) {
        if self.started(run).is_some() {
            self.fail(now, run, failure);
        }
    }

    /// Looks at the clock: runs that took too long are stopped and have failed, and may be tried again.
    pub fn handle_timer(&mut self, now: Now) {
        let late = |place, slot: &Slot| match slot.state {
            SlotState::Running { run, deadline_ns, .. } if deadline_ns <= now.monotonic_ns => {
                Some(Run { place, number: run })
            }
            _ => None,
        };
        let steps = each(self.running).filter_map(|at| late(step_place(at), &self.steps[at]));
        let undo = self.undo.iter().flatten().filter_map(|(place, slot)| late(*place, slot));
        for run in steps.chain(undo).collect::<Vec<_>>() {
            // The one before may have ended it all.
            if self.started(run).is_some() {
                let timeout_ms = self.definition.task(run.place).map_or(0, |task| task.timeout_ms);
                self.stops.push_back(run);
                let message = format!("the step was not finished within {timeout_ms} ms");
                self.fail(now, run, StepFailure::passing("step_timeout", message));
            }
        }
    }

    /// Ends it on request: what runs is stopped and nothing is undone. False when it is over or being undone already.
    pub fn handle_cancel(&mut self, now: Now, reason: StepFailure) -> bool {
        if !matches!(self.phase, Phase::Running) {
            return false;
        }
        self.end(now, reason, None, true);
        true
    }

    /// The channel holds `count` events of this execution, after the batch was appended, in part, or not.
    pub fn handle_stored(&mut self, events_stored: u64) {
        self.buffer.handle_stored(events_stored);
    }

    /// The checkpoint of this number is safe.
    pub fn handle_checkpoint_saved(&mut self, number: u64) {
        if number == self.checkpoint
            && let Some(settled) = self.saving.take()
        {
            self.settled_saved = settled;
            self.accepted = true;
            self.buffer.release();
        }
    }

    /// The next run to begin.
    pub fn poll_start(&mut self, now: Now) -> Option<RunRequest> {
        if !self.accepted {
            return None;
        }
        let place = match self.phase {
            Phase::Running if (self.running.count_ones() as usize) < self.definition.draft().parallel_max => {
                let is_due = |at: &usize| {
                    self.definition.after(*at) & !self.settled_saved == 0 && self.steps[*at].is_due(now.monotonic_ns)
                };
                step_place(each(self.waiting).find(is_due)?)
            }
            // Undone one by one, each only when the one before is known to be over.
            Phase::Failing { .. } if !self.dirty && self.saving.is_none() => {
                let (place, slot) = self.undo.as_ref()?.get(self.undo_over)?;
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
        self.tell_of(now, run, Data::StepStart { kind });
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

    /// The next checkpoint to save: one at a time, until [`Self::handle_checkpoint_saved`]. If saving fails, save it again: until then
    /// none of its events is stored, and no step starts from it.
    pub fn poll_checkpoint(&mut self, now: Now) -> Option<Checkpoint> {
        if !self.dirty || self.saving.is_some() {
            return None;
        }
        self.dirty = false;
        self.saving = Some(self.settled);
        self.checkpoint += 1;
        let steps_completed = self.completed.len() as u32;
        let mark = Data::CheckpointSaved { checkpoint: self.checkpoint, steps_completed };
        let metadata = Metadata { resumed: self.resumes, ..Metadata::default() };
        self.buffer.hold(Event { step_id: None, unix_ns: now.unix_ns, data: mark, metadata });
        Some(self.snapshot(now))
    }

    /// When to look at the clock next; none when only an input changes anything.
    pub fn poll_timeout(&self) -> Option<u64> {
        let of = |slot: &Slot| match slot.state {
            SlotState::Running { deadline_ns, .. } => Some(deadline_ns),
            SlotState::Backoff { until_ns } => Some(until_ns),
            _ => None,
        };
        let steps = each(self.running | self.waiting).filter_map(|at| of(&self.steps[at]));
        let undo = self.undo.iter().flatten().filter_map(|(_, slot)| of(slot));
        steps.chain(undo).chain(self.buffer.poll_timeout()).min()
    }

    /// How it ended; none while it has not.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.phase {
            Phase::Done { outcome, .. } => Some(outcome),
            _ => None,
        }
    }

    /// True when it has ended, all of it is saved and every event is stored.
    pub fn is_drained(&self) -> bool {
        let saved = !self.dirty && self.saving.is_none();
        self.outcome().is_some() && saved && self.buffer.is_empty() && self.stops.is_empty()
    }

    /// Its id.
    pub fn id(&self) -> &Arc<str> {
        &self.id
    }

    /// Its input.
    pub fn input(&self) -> &Json {
        &self.input
    }

    /// What it does.
    pub fn definition(&self) -> &Arc<Definition> {
        &self.definition
    }

    /// The number of the last event that has one.
    pub fn events(&self) -> u64 {
        self.buffer.last_seq()
    }

    /// How often it was resumed.
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

    /// How long it has taken, or took.
    pub(super) fn duration_ns(&self, now_ns: u64) -> u64 {
        match self.phase {
            Phase::Done { duration_ns, .. } => duration_ns,
            _ => self.carried_ns.saturating_add(now_ns.saturating_sub(self.since_ns)),
        }
    }

    /// The output of the whole.
    pub(super) fn output(&self) -> Json {
        let sinks: Vec<usize> = each(self.definition.sinks()).collect();
        let outputs = sinks.iter().map(|at| (&*self.definition.steps()[*at].task.id, self.output_of(*at)));
        match &sinks[..] {
            [one] => self.output_of(*one),
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
            Some(_) => self.undo.as_ref()?.iter().find(|(other, _)| *other == place).map(|(_, slot)| slot),
        }
    }

    fn slot_mut(&mut self, place: StepIndex) -> Option<&mut Slot> {
        match place.compensation {
            None => self.steps.get_mut(place.step),
            Some(_) => self.undo.as_mut()?.iter_mut().find(|(other, _)| *other == place).map(|(_, slot)| slot),
        }
    }

    /// When a run began, if it runs.
    fn started(&self, run: Run) -> Option<u64> {
        self.slot(run.place)?.running_since(run.number)
    }

    /// The next part and the metadata of a run, if it runs.
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

    /// Tells something of the whole.
    fn tell(&mut self, now: Now, data: Data) {
        let metadata = Metadata { resumed: self.resumes, ..Metadata::default() };
        self.buffer.push(Event { step_id: None, unix_ns: now.unix_ns, data, metadata });
    }

    /// Tells something of the life of a run.
    fn tell_of(&mut self, now: Now, run: Run, data: Data) {
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
            compensations_over: self.undo_over,
            compensations_failed: self.undo_failed,
            events_end: self.buffer.last_seq(),
            outbox: self.buffer.outbox(),
        }
    }
}

fn step_place(step: usize) -> StepIndex {
    StepIndex { step, compensation: None }
}

/// What undoes the completed steps, the last first.
pub(super) fn undo_list(definition: &Definition, completed: &[usize]) -> Vec<(StepIndex, Slot)> {
    let of = |step: usize| {
        let count = definition.steps()[step].compensation.len();
        (0..count).map(move |at| StepIndex { step, compensation: Some(at) })
    };
    completed.iter().rev().flat_map(|step| of(*step)).map(|place| (place, Slot::new(SlotState::Waiting))).collect()
}
