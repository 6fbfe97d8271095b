//! Resumption of an execution from a checkpoint.

use std::{collections::VecDeque, iter, sync::Arc};

use super::{
    buffer::Buffer,
    checkpoint::{Checkpoint, CheckpointPhase, CheckpointStep, ResumeError, StepTimes},
    definition::{Definition, OnError, all, bit},
    event::{Sequenced, StepFailure},
    execution::{Execution, Phase, compensation_list},
    json::Json,
    run::{Limits, Outcome},
    slot::{Slot, SlotState},
};
use crate::{random::SplitMix64, time::Now};

/// Most events and checkpoints of an execution; further counting from it cannot overflow.
const COUNT_MAX: u64 = 1 << 53;

impl Execution {
    /// Continues from the last saved checkpoint. `events_stored` is the number of the last event of the execution in
    /// the channel, even if earlier ones are no longer retained.
    ///
    /// The module documents the guarantees. An execution that had ended only sends its missing events. The time since
    /// the checkpoint, by the wall clock, counts towards the duration.
    ///
    /// # Errors
    ///
    /// See [`ResumeError`].
    pub fn resume(
        definition: Arc<Definition>,
        checkpoint: Checkpoint,
        events_stored: u64,
        limits: Limits,
        seed: u64,
        now: Now,
    ) -> Result<Self, ResumeError> {
        check(&definition, &checkpoint)?;
        let events_known = checkpoint.outbox.first().map_or(checkpoint.events_end, |event| event.seq - 1);
        if events_stored < events_known {
            return Err(ResumeError::EventsLost { events_stored, events_known });
        }
        let ready: VecDeque<Sequenced> =
            checkpoint.outbox.into_iter().filter(|event| event.seq > events_stored).collect();
        let last_seq = checkpoint.events_end.max(events_stored);
        let settled = settled(&checkpoint.steps);
        let downtime_ns = now.unix_ns.saturating_sub(checkpoint.unix_ns);
        let mut execution = Self {
            buffer: Buffer::new(*definition.streaming(), limits.buffer_bytes_max, last_seq, ready),
            id: checkpoint.execution_id,
            limits,
            input: checkpoint.input,
            began_unix_ns: checkpoint.began_unix_ns,
            began_ns: now.monotonic_ns,
            elapsed_before_ns: checkpoint.elapsed_ns.saturating_add(downtime_ns),
            resumes: checkpoint.resumes.saturating_add(1),
            // Runs after the checkpoint have higher numbers, but not higher than the number of events.
            runs: checkpoint.runs.max(last_seq.try_into().unwrap_or(u32::MAX)),
            random: SplitMix64::new(seed),
            phase: Phase::Running,
            waiting: all(definition.steps().len()) & !settled,
            running: 0,
            settled,
            settled_saved: 0,
            completed: checkpoint.completed,
            outputs_bytes: checkpoint.steps.iter().map(bytes).sum(),
            steps: slots(checkpoint.steps, checkpoint.times),
            compensations: None,
            compensations_over: checkpoint.compensations_over,
            compensations_failed: checkpoint.compensations_failed,
            stops: VecDeque::new(),
            dirty: false,
            checkpoint: checkpoint.number,
            saving: None,
            accepted: false,
            definition,
        };
        let duration_ns = checkpoint.elapsed_ns;
        match checkpoint.phase {
            CheckpointPhase::Completed => {
                let outcome = Outcome::Completed { output: execution.output() };
                execution.restore_end(outcome, duration_ns, checkpoint.resumes);
            }
            CheckpointPhase::Failed(failure) => {
                execution.restore_end(Outcome::Failed(failure), duration_ns, checkpoint.resumes);
            }
            CheckpointPhase::Running => execution.continue_execution(now),
            CheckpointPhase::Failing { failure, step } => {
                execution.phase = Phase::Failing { failure, step };
                execution.waiting = 0;
                execution.continue_execution(now);
            }
        }
        Ok(execution)
    }

    /// Restores the outcome of an execution that had ended.
    fn restore_end(&mut self, outcome: Outcome, duration_ns: u64, resumes: u32) {
        self.phase = Phase::Done { outcome, duration_ns };
        self.waiting = 0;
        self.resumes = resumes;
    }

    /// Continues an execution that had not ended. The next checkpoint has the new count of resumptions, which bounds
    /// those of an execution that crashes its process.
    fn continue_execution(&mut self, now: Now) {
        self.dirty = true;
        if self.resumes > self.limits.resumes_max {
            let message = format!("the execution was interrupted {} times", self.resumes);
            self.end(now, StepFailure::last("interrupted", message), None, false);
        } else {
            self.advance(now);
        }
    }
}

fn slots(steps: Vec<CheckpointStep>, times: Vec<StepTimes>) -> Vec<Slot> {
    let slot = |(step, times): (CheckpointStep, StepTimes)| {
        let state = match step {
            CheckpointStep::Open => return Slot::new(SlotState::Waiting),
            CheckpointStep::Completed(output) => SlotState::Done(output),
            CheckpointStep::Failed(failure) => SlotState::Failed(failure),
        };
        Slot { times, ..Slot::new(state) }
    };
    steps.into_iter().zip(times.into_iter().chain(iter::repeat(StepTimes::default()))).map(slot).collect()
}

fn settled(steps: &[CheckpointStep]) -> u64 {
    let over = steps.iter().enumerate().filter(|(_, step)| **step != CheckpointStep::Open);
    over.fold(0, |mask, (at, _)| mask | bit(at))
}

fn bytes(step: &CheckpointStep) -> usize {
    match step {
        CheckpointStep::Completed(output) => Json::bytes(output),
        _ => 0,
    }
}

/// Checks the invariants of a checkpoint.
fn check(definition: &Definition, checkpoint: &Checkpoint) -> Result<(), ResumeError> {
    let steps = definition.steps().len();
    let require = |condition: bool, what| if condition { Ok(()) } else { Err(ResumeError::Unfit(what)) };
    require((1..=COUNT_MAX).contains(&checkpoint.number), "its number is out of range")?;
    require(checkpoint.events_end <= COUNT_MAX, "it has too many events")?;
    require(checkpoint.steps.len() == steps, "another number of steps")?;
    let mut completed = 0;
    for step in &checkpoint.completed {
        let is_completed = matches!(checkpoint.steps.get(*step), Some(CheckpointStep::Completed(_)));
        require(is_completed && completed & bit(*step) == 0, "a step in the order of completion is not completed")?;
        completed |= bit(*step);
    }
    let all_completed = checkpoint.steps.iter().filter(|step| matches!(step, CheckpointStep::Completed(_))).count();
    require(all_completed == checkpoint.completed.len(), "a completed step is not in the order of completion")?;
    let settled = settled(&checkpoint.steps);
    for at in 0..steps {
        let early = settled & bit(at) != 0 && definition.after(at) & !settled != 0;
        require(!early, "a step is over before those that it comes after")?;
        let fatal = matches!(checkpoint.steps[at], CheckpointStep::Failed(_))
            && definition.steps()[at].on_error != OnError::Continue;
        require(
            !fatal || checkpoint.phase != CheckpointPhase::Running,
            "a step has failed permanently and the execution runs",
        )?;
    }
    match &checkpoint.phase {
        CheckpointPhase::Completed => require(settled == all(steps), "it is completed and a step is not over")?,
        CheckpointPhase::Failing { step, .. } => require(*step < steps, "there is no such step")?,
        CheckpointPhase::Running | CheckpointPhase::Failed(_) => {}
    }
    let compensations = compensation_list(definition, &checkpoint.completed).len();
    require(checkpoint.compensations_over <= compensations, "more compensations than there are")?;
    require(checkpoint.compensations_failed as usize <= checkpoint.compensations_over, "more failed than were tried")?;
    let Some(first) = checkpoint.outbox.first().map(|event| event.seq) else { return Ok(()) };
    require((1..=checkpoint.events_end).contains(&first), "its first event is out of range")?;
    let numbered = checkpoint.outbox.iter().zip(first..).all(|(event, seq)| event.seq == seq);
    let last = first.checked_add(checkpoint.outbox.len() as u64 - 1);
    require(numbered && last == Some(checkpoint.events_end), "the numbers of its events have holes")
}
