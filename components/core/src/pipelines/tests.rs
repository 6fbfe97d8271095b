mod definition;
mod events;
mod failures;
mod properties;
mod reliability;

use std::sync::Arc;

use super::*;
use crate::{
    inference::retry::{RetryConfig, RetryPolicy},
    time::Now,
};

const MS: u64 = 1_000_000;
const EPOCH_NS: u64 = 1_700_000_000_000_000_000;

fn at(ms: u64) -> Now {
    Now { monotonic_ns: ms * MS, unix_ns: EPOCH_NS + ms * MS }
}

fn json(text: &str) -> Json {
    Json::from_checked(text)
}

fn annotate(id: &str) -> Step {
    let mut step = Step::new(id, Kind::Annotate);
    step.task.retry = RetryConfig { policy: RetryPolicy::NoRetry, ..RetryConfig::default() };
    step
}

fn after(id: &str, before: &[&str]) -> Step {
    Step { after: Some(before.iter().map(|id| (*id).to_owned()).collect()), ..annotate(id) }
}

fn draft(steps: Vec<Step>) -> Draft {
    Draft::new("p", steps)
}

/// An execution with a channel and a store that never fail.
struct World {
    execution: Execution,
    channel: Vec<Sequenced>,
    saved: Option<Checkpoint>,
    stopped: Vec<Run>,
}

impl World {
    fn new(draft: Draft, input: &str) -> Self {
        let definition = Arc::new(draft.check().expect("a definition"));
        let execution = Execution::new(definition, "e", json(input), Limits::default(), 1, at(0)).expect("fits");
        Self { execution, channel: Vec::new(), saved: None, stopped: Vec::new() }
    }

    /// Saves checkpoints, stores events and stops runs until nothing is pending.
    fn drain(&mut self, now: Now) {
        loop {
            let checkpoint = self.execution.poll_checkpoint(now);
            if let Some(checkpoint) = &checkpoint {
                self.execution.handle_checkpoint_saved(checkpoint.number);
                self.saved = Some(checkpoint.clone());
            }
            let batch = self.execution.poll_events(now);
            if let Some(batch) = &batch {
                self.channel.extend(batch.events.clone());
                self.execution.handle_stored(self.channel.len() as u64);
            }
            let stop = self.execution.poll_stop();
            self.stopped.extend(stop);
            if checkpoint.is_none() && batch.is_none() && stop.is_none() {
                return;
            }
        }
    }

    fn start(&mut self, now: Now) -> Vec<RunRequest> {
        self.drain(now);
        let requests = std::iter::from_fn(|| self.execution.poll_start(now)).collect();
        self.drain(now);
        requests
    }

    fn start_one(&mut self, now: Now) -> RunRequest {
        let mut requests = self.start(now);
        assert_eq!(requests.len(), 1, "{requests:?}");
        requests.remove(0)
    }

    fn finish(&mut self, now: Now, run: Run, output: &str) {
        self.execution.handle_finished(now, run, json(output));
        self.drain(now);
    }

    fn fail(&mut self, now: Now, run: Run, failure: StepFailure) {
        self.execution.handle_failed(now, run, failure);
        self.drain(now);
    }

    /// Ends the process, and continues in another one from the saved checkpoint.
    fn crash(&mut self, now: Now) {
        let definition = self.execution.definition().clone();
        let saved = self.saved.clone().expect("a checkpoint");
        let stored = self.channel.len() as u64;
        self.execution =
            Execution::resume(definition, saved, stored, Limits::default(), 2, now).expect("the checkpoint fits");
    }

    fn id(&self, run: Run) -> String {
        self.execution.definition().task(run.place).expect("a task").id.to_string()
    }

    /// The events, one per line.
    fn event_lines(&self) -> String {
        self.channel.iter().map(|sequenced| format!("{}\n", line(sequenced))).collect()
    }
}

fn line(Sequenced { seq, event }: &Sequenced) -> String {
    let step = event.step_id.as_deref().unwrap_or("-");
    let detail = match &event.data {
        Data::PipelineStart { name, steps } => format!("{name} {steps}"),
        Data::StepStart { kind } => format!("{kind} attempt {}", event.metadata.attempt),
        Data::StepProgress { progress, message } => format!("{progress} {message}"),
        Data::StepOutput { index, output } => format!("{index} {output:?}"),
        Data::StepComplete { output, duration_ns, .. } => format!("{output:?} {} ms", duration_ns / MS),
        Data::StepError { failure, retry_in_ns, .. } => {
            format!("{} retry in {:?} ms", failure.code, retry_in_ns.map(|ns| ns / MS))
        }
        Data::PipelineComplete { output, duration_ns, steps_completed, steps_failed } => {
            format!("{output:?} {} ms, {steps_completed} completed, {steps_failed} failed", duration_ns / MS)
        }
        Data::PipelineError { failure, .. } => format!(
            "{} by {:?}, compensated {}, not {}",
            failure.failure.code, failure.step_id, failure.compensated, failure.compensations_failed
        ),
        Data::CheckpointSaved { checkpoint, steps_completed } => format!("{checkpoint} with {steps_completed}"),
    };
    let undoes = event.metadata.compensates.as_ref().map(|step| format!(" (undoes {step})")).unwrap_or_default();
    format!("{seq} {} {} {step}: {detail}{undoes}", (event.unix_ns - EPOCH_NS) / MS, event.event_type())
}
