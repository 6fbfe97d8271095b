//! Benchmarks of the state machine of pipelines, for each step and each event: `cargo bench -p weir-core --bench
//! pipeline`. Checkpoints and events are polled; encoding and storing them is not included.

#![expect(missing_docs, reason = "criterion's macro makes a public function")]

use std::{hint::black_box, sync::Arc};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use weir_core::{
    pipelines::{Definition, Draft, Execution, Json, Kind, Limits, Run, Step},
    time::Now,
};

const STEPS: usize = 16;
const PARTS: u64 = 1000;

fn now() -> Now {
    Now { monotonic_ns: 1, unix_ns: 1 }
}

fn step(at: usize, after: Option<Vec<String>>) -> Step {
    Step { after, ..Step::new(&format!("s{at}"), Kind::Annotate) }
}

/// Steps in sequence.
fn sequence() -> Definition {
    Draft::new("sequence", (0..STEPS).map(|at| step(at, None)).collect()).check().expect("a definition")
}

/// Steps in parallel, between a first and a last one.
fn parallel() -> Definition {
    let middle: Vec<String> = (1..STEPS - 1).map(|at| format!("s{at}")).collect();
    let steps = (0..STEPS).map(|at| match at {
        0 => step(at, Some(Vec::new())),
        last if last == STEPS - 1 => step(at, Some(middle.clone())),
        _ => step(at, Some(vec!["s0".to_owned()])),
    });
    Draft::new("fan", steps.collect()).check().expect("a definition")
}

fn begin(definition: &Arc<Definition>) -> Execution {
    let input = Json::from_checked(r#"{"text":"a text of some length"}"#);
    Execution::new(definition.clone(), "exec_x", input, Limits::default(), 1, now()).expect("fits")
}

/// Saves and stores everything, and starts what can be started.
fn drain(execution: &mut Execution, running: &mut Vec<Run>) -> u64 {
    let mut events = 0;
    loop {
        if let Some(checkpoint) = execution.poll_checkpoint(now()) {
            execution.handle_checkpoint_saved(black_box(checkpoint).number);
        } else if let Some(batch) = execution.poll_events(now()) {
            events += batch.events.len() as u64;
            let last = batch.events.last().map_or(0, |event| event.seq);
            black_box(batch);
            execution.handle_stored(last);
        } else if let Some(request) = execution.poll_start(now()) {
            running.push(request.run);
            black_box(request);
        } else {
            return events;
        }
    }
}

fn run(definition: &Arc<Definition>, output: &Json) -> u64 {
    let mut execution = begin(definition);
    let mut running = Vec::new();
    let mut events = drain(&mut execution, &mut running);
    while let Some(run) = running.pop() {
        execution.handle_finished(now(), run, output.clone());
        events += drain(&mut execution, &mut running);
    }
    assert!(execution.is_drained());
    events
}

fn steps(c: &mut Criterion) {
    let output = Json::from_checked(r#"{"label":"POSITIVE","score":0.99}"#);
    let mut group = c.benchmark_group("pipeline of 16 steps: a step, its events and its checkpoint");
    group.throughput(Throughput::Elements(STEPS as u64));
    for (name, definition) in [("in sequence", sequence()), ("14 at once", parallel())] {
        let definition = Arc::new(definition);
        // The start and the end of the execution, and at least two events for each step.
        assert!(run(&definition, &output) >= 2 + 2 * STEPS as u64);
        group.bench_function(name, |b| b.iter(|| run(&definition, &output)));
    }
    group.finish();
}

fn events(c: &mut Criterion) {
    let definition = Arc::new(Draft::new("one", vec![step(0, None)]).check().expect("a definition"));
    let output = Json::from_checked(r#"{"chunk":1,"sentiment":"POSITIVE","confidence":0.99}"#);
    let mut group = c.benchmark_group("a step with many events: an event");
    group.throughput(Throughput::Elements(PARTS));
    for (name, each) in [("a part, stored one by one", 1), ("a part, stored by hundreds", 100)] {
        group.bench_function(name, |b| {
            b.iter(|| {
                let mut execution = begin(&definition);
                let mut running = Vec::new();
                drain(&mut execution, &mut running);
                // The parts are a second apart, so the flush interval delays no batch.
                for part in 0..PARTS {
                    let now = Now { monotonic_ns: part * 1_000_000_000, unix_ns: 1 };
                    execution.handle_output(now, running[0], output.clone()).expect("room");
                    if part % each == each - 1
                        && let Some(batch) = execution.poll_events(now)
                    {
                        let last = batch.events.last().map_or(0, |event| event.seq);
                        black_box(batch);
                        execution.handle_stored(last);
                    }
                }
            });
        });
    }
    group.bench_function("progress, coalesced", |b| {
        let mut execution = begin(&definition);
        let mut running = Vec::new();
        drain(&mut execution, &mut running);
        b.iter(|| {
            for part in 0..PARTS {
                execution.handle_progress(now(), running[0], part as f64 / PARTS as f64, "Processing...");
            }
        });
    });
    group.finish();
}

criterion_group!(benches, steps, events);
criterion_main!(benches);
