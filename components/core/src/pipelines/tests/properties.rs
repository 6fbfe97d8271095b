//! For any graph, any interleaving of steps, saves and appends, and any crashes, the sequence of events is legal and
//! the outputs are the same.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;
use crate::random::{SplitMix64, between};

/// The result of a step, whenever it runs to its end.
#[derive(Debug, Clone, Copy, PartialEq)]
enum StepResult {
    Success,
    Failure,
}

#[derive(Debug, Clone)]
struct Plan {
    draft: Draft,
    step_results: Vec<StepResult>,
    seed: u64,
    /// The percentage of iterations with a crash.
    crashes_percent: u64,
}

fn plans() -> impl Strategy<Value = Plan> {
    let step = (any::<u64>(), 0u8..4, 0usize..3, 0u8..6, 0u8..3);
    let steps = prop::collection::vec(step, 1..7);
    (steps, 1usize..4, 1usize..12, 0u64..3, any::<u64>(), 0u64..12).prop_map(
        |(steps, parallel_max, buffer_size, interval, seed, crashes_percent)| {
            let mut step_results = Vec::new();
            let steps = steps.into_iter().enumerate().map(|(at, (mask, form, compensations, result, on_error))| {
                let before = (0..at).filter(|other| mask >> other & 1 == 1).map(|other| format!("s{other}"));
                let mut step = annotate(&format!("s{at}"));
                step.after = (form > 0).then(|| before.collect());
                step.on_error = OnError::ALL[usize::from(on_error)];
                step.task.retry = RetryConfig { max_attempts: 50, base_backoff_ms: 5, ..RetryConfig::default() };
                step.compensation =
                    (0..compensations).map(|undo| Task::new(&format!("u{at}-{undo}"), Kind::Annotate)).collect();
                step_results.push(if result == 0 { StepResult::Failure } else { StepResult::Success });
                step
            });
            let mut draft = draft(steps.collect());
            draft.parallel_max = parallel_max;
            draft.streaming.buffer_size = buffer_size;
            draft.streaming.flush_interval_ms = interval * 10;
            Plan { draft, step_results, seed, crashes_percent }
        },
    )
}

/// A process with its store and its channel, and random crashes.
struct Simulation {
    definition: Arc<Definition>,
    step_results: Vec<StepResult>,
    execution: Execution,
    /// The saved checkpoint.
    saved: Option<Checkpoint>,
    /// The checkpoint that is being saved.
    saving: Option<Checkpoint>,
    /// The batch that is being appended.
    appending: Option<Batch>,
    channel: Vec<Sequenced>,
    running: Vec<RunRequest>,
    random: SplitMix64,
    ms: u64,
    crashes_percent: u64,
    crashes: u32,
}

impl Simulation {
    fn new(plan: &Plan) -> Self {
        let definition = Arc::new(plan.draft.clone().check().expect("a definition"));
        let execution = Self::begin(&definition, 0);
        Self {
            definition,
            step_results: plan.step_results.clone(),
            execution,
            saved: None,
            saving: None,
            appending: None,
            channel: Vec::new(),
            running: Vec::new(),
            random: SplitMix64::new(plan.seed),
            ms: 0,
            crashes_percent: plan.crashes_percent,
            crashes: 0,
        }
    }

    fn begin(definition: &Arc<Definition>, ms: u64) -> Execution {
        Execution::new(definition.clone(), "e", json("0"), limits(), 7, at(ms)).expect("fits")
    }

    fn below(&mut self, end: u64) -> u64 {
        between(self.random.next_u64(), 0, end - 1)
    }

    fn run(&mut self) {
        for _ in 0..20_000 {
            if self.execution.is_drained() {
                return;
            }
            if self.crashes < 12 && self.below(100) < self.crashes_percent {
                self.crash();
            }
            self.act();
        }
        panic!("the execution does not end: {:?}", self.execution);
    }

    fn act(&mut self) {
        let now = at(self.ms);
        match self.below(9) {
            0 => {
                if self.saving.is_none() {
                    self.saving = self.execution.poll_checkpoint(now);
                }
            }
            1 => {
                if let Some(checkpoint) = self.saving.take() {
                    let number = checkpoint.number;
                    self.saved = Some(checkpoint);
                    self.execution.handle_checkpoint_saved(number);
                }
            }
            2 => {
                if self.appending.is_none() {
                    self.appending = self.execution.poll_events(now);
                }
            }
            3 => {
                if let Some(batch) = self.appending.take() {
                    let stored = self.below(batch.events.len() as u64 + 1) as usize;
                    self.append(&batch, stored);
                    self.execution.handle_stored(self.channel.len() as u64);
                }
            }
            4 => {
                if let Some(request) = self.execution.poll_start(now) {
                    self.running.push(request);
                    let steps = self.running.iter().filter(|request| request.run.place.compensation.is_none()).count();
                    assert!(steps <= self.definition.draft().parallel_max);
                }
                while let Some(run) = self.execution.poll_stop() {
                    self.running.retain(|request| request.run != run);
                }
            }
            5 => {
                self.ms += self.below(40);
                self.execution.handle_timer(at(self.ms));
            }
            _ => self.report(now),
        }
    }

    /// Sends a report of a random running step.
    fn report(&mut self, now: Now) {
        if self.running.is_empty() {
            return;
        }
        let at = self.below(self.running.len() as u64) as usize;
        let request = self.running[at].clone();
        let run = request.run;
        match self.below(6) {
            0 => self.execution.handle_progress(now, run, 0.5, "half"),
            1 => drop(self.execution.handle_output(now, run, json("1"))),
            2 if request.attempt < 4 => {
                self.running.remove(at);
                self.execution.handle_failed(now, run, StepFailure::passing("busy", "busy"));
            }
            3 | 4 => {
                self.running.remove(at);
                if run.place.compensation.is_none() && self.step_results[run.place.step] == StepResult::Failure {
                    self.execution.handle_failed(now, run, StepFailure::last("broken", "broken"));
                } else {
                    self.execution.handle_finished(now, run, output(&self.definition, &request));
                }
            }
            _ => {}
        }
    }

    fn append(&mut self, batch: &Batch, stored: usize) {
        for sequenced in &batch.events[..stored] {
            assert_eq!(sequenced.seq, self.channel.len() as u64 + 1, "a hole or a duplicate");
            self.channel.push(sequenced.clone());
        }
    }

    fn crash(&mut self) {
        self.crashes += 1;
        // The pending save is completed or lost, and the pending append is stored in whole, in part, or not.
        if let Some(checkpoint) = self.saving.take()
            && self.below(2) == 0
        {
            self.saved = Some(checkpoint);
        }
        if let Some(batch) = self.appending.take() {
            let stored = self.below(batch.events.len() as u64 + 1) as usize;
            self.append(&batch, stored);
        }
        self.running.clear();
        self.ms += self.below(1000);
        self.execution = match self.saved.clone() {
            Some(checkpoint) => {
                let stored = self.channel.len() as u64;
                Execution::resume(self.definition.clone(), checkpoint, stored, limits(), self.ms, at(self.ms))
                    .expect("the checkpoint fits")
            }
            None => {
                assert!(self.channel.is_empty(), "events of an execution without a checkpoint");
                Self::begin(&self.definition, self.ms)
            }
        };
    }
}

fn limits() -> Limits {
    Limits::default()
}

/// An output with the step and its inputs.
fn output(definition: &Definition, request: &RunRequest) -> Json {
    let id = &definition.task(request.run.place).expect("a task").id;
    json(&format!("{{\"{id}\":{:?}}}", request.inputs.default_json()))
}

/// The outputs by step, or the first violation in the sequence of events.
fn check_events(definition: &Definition, channel: &[Sequenced]) -> Result<BTreeMap<String, Json>, String> {
    let mut outputs = BTreeMap::new();
    let mut over = BTreeSet::new();
    let mut runs: BTreeMap<u32, (String, u64)> = BTreeMap::new();
    let mut runs_over = BTreeSet::new();
    let (mut completed, mut compensated, mut failing) = (Vec::new(), Vec::new(), false);
    let mut failed_compensations = 0;
    for (place, Sequenced { seq, event }) in channel.iter().enumerate() {
        let wrong =
            |what: &str| Err(format!("{what} at {seq}:\n{}", channel.iter().map(line).collect::<Vec<_>>().join("\n")));
        if (place == 0) != matches!(event.data, Data::PipelineStart { .. }) {
            return wrong("the start");
        }
        if (place + 1 == channel.len()) != event.is_last() {
            return wrong("the end");
        }
        let id = event.step_id.as_deref().unwrap_or("-").to_owned();
        let run = event.metadata.run;
        let compensates = event.metadata.compensates.as_deref();
        match &event.data {
            Data::StepStart { .. } => {
                if over.contains(&id) {
                    return wrong("a step that has ended starts");
                }
                if runs.insert(run, (id.clone(), 0)).is_some() {
                    return wrong("a run starts twice");
                }
                if compensates.is_none() {
                    let at = definition.steps().iter().position(|step| *step.task.id == *id).expect("a step");
                    let open = |at: usize| !over.contains(&*definition.steps()[at].task.id);
                    if crate::pipelines::definition::each(definition.after(at)).any(open) {
                        return wrong("a step starts before a predecessor has ended");
                    }
                    if failing {
                        return wrong("a step starts in a pipeline that is failing");
                    }
                } else if !failing {
                    return wrong("a compensation runs in a pipeline that is not failing");
                }
            }
            Data::StepProgress { .. }
            | Data::StepOutput { .. }
            | Data::StepComplete { .. }
            | Data::StepError { .. } => {
                let Some((owner, parts)) = runs.get_mut(&run) else { return wrong("a run that did not start") };
                if *owner != id || runs_over.contains(&run) {
                    return wrong("a run of another step, or one that has ended");
                }
                if let Data::StepOutput { index, .. } = &event.data {
                    if index != parts {
                        return wrong("a part is missing");
                    }
                    *parts += 1;
                }
                if !matches!(event.data, Data::StepProgress { .. } | Data::StepOutput { .. }) {
                    runs_over.insert(run);
                }
                let ended = match &event.data {
                    Data::StepComplete { output, .. } => {
                        outputs.insert(id.clone(), output.clone());
                        match compensates {
                            None => completed.push(id.clone()),
                            Some(_) => compensated.push(id.clone()),
                        }
                        true
                    }
                    Data::StepError { retry_in_ns: None, .. } if compensates.is_some() => {
                        failed_compensations += 1;
                        compensated.push(id.clone());
                        true
                    }
                    Data::StepError { retry_in_ns: None, .. } => {
                        let step = definition.steps().iter().find(|step| *step.task.id == *id).expect("a step");
                        failing |= step.on_error == OnError::Compensate;
                        true
                    }
                    _ => false,
                };
                if ended && !over.insert(id) {
                    return wrong("a step ends twice");
                }
            }
            Data::PipelineError { failure, .. } => {
                let want: Vec<String> = match failing {
                    true => completed
                        .iter()
                        .rev()
                        .filter_map(|id| definition.steps().iter().find(|step| *step.task.id == **id))
                        .flat_map(|step| step.compensation.iter().map(|task| task.id.to_string()))
                        .collect(),
                    false => Vec::new(),
                };
                // The compensations run in reverse order of completion if the pipeline was compensating.
                if compensated != want || failure.compensated + failure.compensations_failed != want.len() as u32 {
                    return wrong("completed steps are not compensated in reverse order");
                }
                if failure.compensations_failed != failed_compensations {
                    return wrong("the count of failed compensations is wrong");
                }
            }
            Data::PipelineComplete { .. } if over.len() != definition.steps().len() => {
                return wrong("a step has not ended");
            }
            _ => {}
        }
    }
    Ok(outputs)
}

/// The outputs by step without crashes and transient failures.
fn run_without_crashes(plan: &Plan) -> BTreeMap<String, Json> {
    let mut world = World::new(plan.draft.clone(), "0");
    let mut ms = 0;
    while !world.execution.is_drained() {
        ms += 1;
        for request in world.start(at(ms)) {
            match plan.step_results[request.run.place.step] {
                StepResult::Failure if request.run.place.compensation.is_none() => {
                    world.fail(at(ms), request.run, StepFailure::last("broken", "broken"));
                }
                _ => {
                    let output = output(world.execution.definition(), &request);
                    world.finish(at(ms), request.run, output.as_str());
                }
            }
        }
    }
    check_events(world.execution.definition(), &world.channel).expect("legal")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, ..ProptestConfig::default() })]

    #[test]
    fn crashes_and_interleavings_give_equal_outputs_and_a_legal_sequence(plan in plans()) {
        let mut simulation = Simulation::new(&plan);
        simulation.run();
        let outputs = match check_events(&simulation.definition, &simulation.channel) {
            Ok(outputs) => outputs,
            Err(wrong) => return Err(TestCaseError::fail(wrong)),
        };
        let expected = run_without_crashes(&plan);
        let fatal = |(step, result): (&Step, &StepResult)| *result == StepResult::Failure && step.on_error != OnError::Continue;
        if plan.draft.steps.iter().zip(&plan.step_results).any(fatal) {
            // The set of steps that ran before the end is random, but not their outputs.
            let has_failed = matches!(simulation.execution.outcome(), Some(Outcome::Failed(_)));
            prop_assert!(has_failed);
            for (id, output) in &outputs {
                let same = expected.get(id).is_none_or(|other| other == output);
                prop_assert!(same, "{} {:?} {:?}", id, output, expected);
            }
        } else {
            prop_assert_eq!(&outputs, &expected);
            let is_completed = matches!(simulation.execution.outcome(), Some(Outcome::Completed { .. }));
            prop_assert!(is_completed);
        }
    }

    #[test]
    fn ended_execution_stays_ended_at_any_channel_length(plan in plans(), behind in 0usize..20) {
        let mut simulation = Simulation::new(&plan);
        simulation.run();
        let checkpoint = simulation.saved.clone().expect("a checkpoint");
        let known = checkpoint.outbox.first().map_or(checkpoint.events_end, |event| event.seq - 1) as usize;
        let stored = simulation.channel.len().saturating_sub(behind).max(known);
        let mut resumed = Execution::resume(
            simulation.definition.clone(), checkpoint, stored as u64, limits(), 1, at(simulation.ms),
        ).expect("the checkpoint fits");
        prop_assert_eq!(resumed.outcome(), simulation.execution.outcome());
        let missing: Vec<Sequenced> = resumed.poll_events(at(simulation.ms)).map(|batch| batch.events).unwrap_or_default();
        prop_assert_eq!(&missing[..], &simulation.channel[stored..]);
        resumed.handle_stored(simulation.channel.len() as u64);
        prop_assert!(resumed.is_drained() && resumed.poll_start(at(simulation.ms)).is_none());
    }
}
