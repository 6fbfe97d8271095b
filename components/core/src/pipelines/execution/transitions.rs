//! Transitions of an execution after a step or compensation has ended.

use super::{
    super::{
        definition::{OnError, StepIndex, bit, each},
        event::{Data, PipelineFailure, StepFailure},
        run::{Outcome, Run},
        slot::SlotState,
    },
    Execution, NS_PER_MS, Phase, compensation_list, step_index,
};
use crate::time::Now;

impl Execution {
    /// Handles a failed attempt: schedules another one, or ends the step.
    pub(super) fn fail(&mut self, now: Now, run: Run, failure: StepFailure) {
        let Some(started_ns) = self.started(run) else { return };
        let duration_ns = now.monotonic_ns.saturating_sub(started_ns);
        let Some(task) = self.definition.task(run.place) else { return };
        let (kind, retry) = (task.kind.name(), task.retry.clone());
        let is_step = run.place.compensation.is_none();
        if let Some(slot) = self.slot_mut(run.place) {
            slot.times.duration_ns = Some(duration_ns);
        }
        // A failing pipeline lets running steps finish and retries none.
        let may_retry = failure.retryable && !(is_step && self.is_failing());
        let random = self.random.next_u64();
        let delay_ns = match self.slot_mut(run.place) {
            Some(slot) if may_retry => slot.retry.next_delay_ns(&retry, random),
            _ => None,
        };
        // A service may request any delay; the definition bounds it.
        let requested_ms = failure.retry_after_ms.unwrap_or(0).min(retry.backoff_ms_max);
        let retry_in_ns = delay_ns.map(|delay_ns| delay_ns.max(u64::from(requested_ms) * NS_PER_MS));
        self.publish_of(now, run, Data::StepError { kind, failure: failure.clone(), retry_in_ns, duration_ns });
        if let Some(delay_ns) = retry_in_ns {
            if is_step {
                self.running &= !bit(run.place.step);
                self.waiting |= bit(run.place.step);
            }
            if let Some(slot) = self.slot_mut(run.place) {
                slot.state = SlotState::Backoff { until_ns: now.monotonic_ns.saturating_add(delay_ns) };
            }
            return;
        }
        self.settle(run.place, SlotState::Failed(failure.clone()));
        if !is_step {
            self.compensations_failed += 1;
        } else if matches!(self.phase, Phase::Running) {
            let step = run.place.step;
            match self.definition.steps()[step].on_error {
                OnError::Continue => {}
                OnError::Fail => return self.end(now, failure, Some(step), false),
                OnError::Compensate => {
                    self.phase = Phase::Failing { failure, step };
                    for at in each(std::mem::take(&mut self.waiting)) {
                        if matches!(self.steps[at].state, SlotState::Backoff { .. }) {
                            self.steps[at].state = SlotState::Stopped;
                        }
                    }
                }
            }
        }
        self.advance(now);
    }

    /// Ends a step or compensation in a state.
    pub(super) fn settle(&mut self, place: StepIndex, state: SlotState) {
        if place.compensation.is_none() {
            self.running &= !bit(place.step);
            self.settled |= bit(place.step);
        } else {
            self.compensations_over += 1;
        }
        if let Some(slot) = self.slot_mut(place) {
            slot.state = state;
        }
        self.dirty = true;
    }

    /// Ends the execution if no step or compensation remains.
    pub(in crate::pipelines) fn advance(&mut self, now: Now) {
        match &self.phase {
            Phase::Running if self.running | self.waiting == 0 => {
                let duration_ns = self.duration_ns(now.monotonic_ns);
                let output = self.output();
                let steps_completed = self.completed.len() as u32;
                let steps_failed = self.steps.len() as u32 - steps_completed;
                self.phase = Phase::Done { outcome: Outcome::Completed { output: output.clone() }, duration_ns };
                self.publish(now, Data::PipelineComplete { output, duration_ns, steps_completed, steps_failed });
                self.dirty = true;
            }
            Phase::Failing { failure, step } if self.running == 0 => {
                let (failure, step) = (failure.clone(), *step);
                let compensations =
                    self.compensations.get_or_insert_with(|| compensation_list(&self.definition, &self.completed));
                if self.compensations_over >= compensations.len() {
                    self.end(now, failure, Some(step), false);
                }
            }
            _ => {}
        }
    }

    /// Ends the execution with a failure.
    pub(in crate::pipelines) fn end(&mut self, now: Now, failure: StepFailure, step: Option<usize>, cancelled: bool) {
        let duration_ns = self.duration_ns(now.monotonic_ns);
        for at in each(self.running) {
            if let SlotState::Running { run, .. } = std::mem::replace(&mut self.steps[at].state, SlotState::Stopped) {
                self.stops.push_back(Run { place: step_index(at), number: run });
            }
        }
        for at in each(self.waiting) {
            if matches!(self.steps[at].state, SlotState::Backoff { .. }) {
                self.steps[at].state = SlotState::Stopped;
            }
        }
        (self.running, self.waiting) = (0, 0);
        let failure = PipelineFailure {
            failure,
            step_id: step.map(|at| self.definition.steps()[at].task.id.clone()),
            cancelled,
            compensated: (self.compensations_over as u32).saturating_sub(self.compensations_failed),
            compensations_failed: self.compensations_failed,
        };
        self.phase = Phase::Done { outcome: Outcome::Failed(failure.clone()), duration_ns };
        self.publish(now, Data::PipelineError { failure, duration_ns });
        self.dirty = true;
    }
}
