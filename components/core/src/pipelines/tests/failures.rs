use expect_test::expect;

use super::*;

fn transient() -> StepFailure {
    StepFailure::passing("busy", "come back")
}

fn permanent() -> StepFailure {
    StepFailure::last("broken", "for good")
}

fn step_with_compensation(id: &str, by: &[&str]) -> Step {
    let mut step = after(id, &[]);
    step.compensation = by.iter().map(|id| Task { ..Task::new(id, Kind::Annotate) }).collect();
    for task in &mut step.compensation {
        task.retry = RetryConfig { policy: RetryPolicy::FixedDelay, max_attempts: 2, ..RetryConfig::default() };
    }
    step
}

#[test]
fn transient_failure_is_retried_up_to_the_bound() {
    let mut step = annotate("a");
    step.task.retry = RetryConfig { policy: RetryPolicy::FixedDelay, max_attempts: 3, ..RetryConfig::default() };
    let mut world = World::new(draft(vec![step, annotate("b")]), "0");
    let first = world.start_one(at(0));
    world.fail(at(10), first.run, transient());
    assert_eq!(world.execution.poll_timeout(), Some(110 * MS));
    assert!(world.start(at(109)).is_empty());
    let second = world.start_one(at(110));
    // Reports of an ended run are ignored.
    world.finish(at(111), first.run, "1");
    world.fail(at(120), second.run, StepFailure { retry_after_ms: Some(500), ..transient() });
    let third = world.start_one(at(620));
    assert_eq!(third.attempt, 3);
    world.fail(at(630), third.run, transient());
    assert!(world.execution.is_drained());
    expect![[r#"
        1 0 pipeline_start -: p 2
        2 0 checkpoint_saved -: 1 with 0
        3 0 step_start a: annotate attempt 1
        4 10 step_error a: busy retry in Some(100) ms
        5 110 step_start a: annotate attempt 2
        6 120 step_error a: busy retry in Some(500) ms
        7 620 step_start a: annotate attempt 3
        8 630 step_error a: busy retry in None ms
        9 630 checkpoint_saved -: 2 with 0
        10 630 pipeline_error -: busy by Some("a"), compensated 0, not 0
    "#]]
    .assert_eq(&world.event_lines());
}

#[test]
fn retry_after_is_limited_to_the_longest_backoff() {
    let mut step = annotate("a");
    step.task.retry = RetryConfig {
        policy: RetryPolicy::FixedDelay,
        max_attempts: 3,
        backoff_ms_max: 2000,
        ..RetryConfig::default()
    };
    let mut world = World::new(draft(vec![step]), "0");
    let mut now_ms = 0;
    for (requested_ms, wait_ms) in [(u32::MAX, 2000), (2001, 2000)] {
        let run = world.start_one(at(now_ms)).run;
        world.fail(at(now_ms), run, StepFailure { retry_after_ms: Some(requested_ms), ..transient() });
        now_ms += wait_ms;
        assert_eq!(world.execution.poll_timeout(), Some(now_ms * MS));
    }
}

#[test]
fn run_past_its_timeout_is_stopped() {
    let mut step = annotate("a");
    step.task.timeout_ms = 50;
    let mut world = World::new(draft(vec![step]), "0");
    let a = world.start_one(at(0)).run;
    assert_eq!(world.execution.poll_timeout(), Some(50 * MS));
    world.execution.handle_timer(at(49));
    world.drain(at(49));
    assert!(world.stopped.is_empty());
    world.execution.handle_timer(at(50));
    world.drain(at(50));
    assert_eq!(world.stopped, [a]);
    let Some(Outcome::Failed(failure)) = world.execution.outcome() else { panic!("the execution did not fail") };
    assert_eq!(&*failure.failure.message, "the step was not finished within 50 ms");
}

#[test]
fn on_error_continue_gives_null() {
    let mut a = annotate("a");
    a.on_error = OnError::Continue;
    let mut world = World::new(draft(vec![a, annotate("b")]), "0");
    let a = world.start_one(at(0));
    world.fail(at(1), a.run, permanent());
    let b = world.start_one(at(1));
    assert_eq!(b.inputs.default_json(), Json::null());
    world.finish(at(2), b.run, "2");
    assert!(world.event_lines().ends_with("pipeline_complete -: 2 2 ms, 1 completed, 1 failed\n"));
}

#[test]
fn on_error_fail_stops_running_steps() {
    let mut world = World::new(draft(vec![after("a", &[]), after("b", &[])]), "0");
    let both = world.start(at(0));
    world.fail(at(1), both[0].run, permanent());
    assert_eq!(world.stopped, [both[1].run]);
    world.finish(at(2), both[1].run, "1");
    assert!(world.event_lines().ends_with("pipeline_error -: broken by Some(\"a\"), compensated 0, not 0\n"));
}

#[test]
fn on_error_compensate_finishes_steps_and_compensates_in_reverse() {
    let mut c = step_with_compensation("c", &["undo-c"]);
    c.on_error = OnError::Compensate;
    let steps = vec![
        step_with_compensation("a", &["undo-a-1", "undo-a-2"]),
        step_with_compensation("b", &["undo-b"]),
        c,
        after("d", &["a", "b"]),
    ];
    let mut world = World::new(draft(steps), "0");
    let all = world.start(at(0));
    world.finish(at(1), all[1].run, r#""B""#);
    world.fail(at(2), all[2].run, permanent());
    assert!(world.start(at(2)).is_empty());
    let state = world.execution.status(at(2).monotonic_ns).state;
    assert_eq!((state, world.stopped.len()), (State::Compensating, 0));
    assert!(!world.execution.handle_cancel(at(2), permanent()));
    world.finish(at(3), all[0].run, r#""A""#);
    for (ms, undo, input) in [(4, "undo-a-1", r#""A""#), (5, "undo-a-2", r#""A""#)] {
        let request = world.start_one(at(ms));
        assert_eq!((world.id(request.run).as_str(), request.inputs.default_json()), (undo, json(input)));
        world.finish(at(ms), request.run, "0");
    }
    // After a crash in between, compensated steps stay compensated.
    world.crash(at(5));
    let request = world.start_one(at(6));
    assert_eq!((world.id(request.run).as_str(), request.inputs.default_json()), ("undo-b", json(r#""B""#)));
    world.fail(at(6), request.run, transient());
    let second = world.start_one(at(106));
    world.fail(at(107), second.run, transient());
    assert!(world.execution.is_drained());
    expect![[r#"
        1 0 pipeline_start -: p 4
        2 0 checkpoint_saved -: 1 with 0
        3 0 step_start a: annotate attempt 1
        4 0 step_start b: annotate attempt 1
        5 0 step_start c: annotate attempt 1
        6 1 step_complete b: "B" 1 ms
        7 1 checkpoint_saved -: 2 with 1
        8 2 step_error c: broken retry in None ms
        9 2 checkpoint_saved -: 3 with 1
        10 3 step_complete a: "A" 3 ms
        11 3 checkpoint_saved -: 4 with 2
        12 4 step_start undo-a-1: annotate attempt 1 (undoes a)
        13 4 step_complete undo-a-1: 0 0 ms (undoes a)
        14 4 checkpoint_saved -: 5 with 2
        15 5 step_start undo-a-2: annotate attempt 1 (undoes a)
        16 5 step_complete undo-a-2: 0 0 ms (undoes a)
        17 5 checkpoint_saved -: 6 with 2
        18 6 checkpoint_saved -: 7 with 2
        19 6 step_start undo-b: annotate attempt 1 (undoes b)
        20 6 step_error undo-b: busy retry in Some(100) ms (undoes b)
        21 106 step_start undo-b: annotate attempt 2 (undoes b)
        22 107 step_error undo-b: busy retry in None ms (undoes b)
        23 107 checkpoint_saved -: 8 with 2
        24 107 pipeline_error -: broken by Some("c"), compensated 2, not 1
    "#]]
    .assert_eq(&world.event_lines());
}

#[test]
fn cancel_ends_the_execution() {
    let mut world = World::new(draft(vec![annotate("a"), annotate("b")]), "0");
    let a = world.start_one(at(0)).run;
    assert!(world.execution.handle_cancel(at(3), StepFailure::last("cancelled", "asked to")));
    assert!(!world.execution.handle_cancel(at(3), permanent()));
    world.drain(at(3));
    assert_eq!(world.stopped, [a]);
    assert!(world.event_lines().ends_with("pipeline_error -: cancelled by None, compensated 0, not 0\n"));
    assert_eq!(world.execution.status(9).state, State::Cancelled);
    world.crash(at(9));
    assert_eq!(world.execution.status(9).state, State::Cancelled);
    assert!(world.start(at(9)).is_empty() && world.execution.is_drained());
}

#[test]
fn outputs_are_bounded() {
    let mut world = World::new(draft(vec![annotate("a")]), "0");
    let a = world.start_one(at(0)).run;
    let large = format!("\"{}\"", "x".repeat(1 << 20));
    world.finish(at(1), a, &large);
    assert!(world.event_lines().contains("step_error a: output_too_large"));
    let definition = world.execution.definition().clone();
    let refused = Execution::new(definition, "e", json(&large), Limits::default(), 1, at(0)).map(drop);
    assert_eq!(refused, Err(ReportError::TooLarge { bytes: (1 << 20) + 2, bytes_max: 1 << 20 }));
}

#[test]
fn execution_that_crashes_its_process_is_bounded() {
    let mut world = World::new(draft(vec![annotate("a")]), "0");
    for _ in 0..=Limits::default().resumes_max {
        assert_eq!(world.start(at(0)).len(), 1);
        world.crash(at(0));
    }
    assert!(world.start(at(0)).is_empty() && world.execution.is_drained());
    assert!(world.event_lines().ends_with("pipeline_error -: interrupted by None, compensated 0, not 0\n"));
}

#[test]
fn checkpoint_of_another_definition_is_refused() {
    let mut world = World::new(draft(vec![annotate("a"), annotate("b")]), "0");
    let a = world.start_one(at(0)).run;
    world.finish(at(1), a, "1");
    let good = world.saved.clone().unwrap();
    let definition = world.execution.definition().clone();
    let check = |stored, change: &dyn Fn(&mut Checkpoint)| {
        let mut checkpoint = good.clone();
        change(&mut checkpoint);
        let resumed = Execution::resume(definition.clone(), checkpoint, stored, Limits::default(), 1, at(2));
        resumed.map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(check(5, &|_| ()), Ok(()));
    let lost = "the channel holds 2 events, and 3 of the execution had been stored";
    assert_eq!(check(2, &|_| ()), Err(lost.to_owned()));
    let changes: [&dyn Fn(&mut Checkpoint); 12] = [
        &|c| c.number = 0,
        &|c| c.events_end = u64::MAX,
        &|c| c.steps.truncate(1),
        &|c| c.completed = vec![1],
        &|c| c.completed = vec![0, 0],
        &|c| c.completed = vec![7],
        &|c| c.completed.clear(),
        &|c| c.steps.swap(0, 1),
        &|c| c.phase = CheckpointPhase::Completed,
        &|c| c.phase = CheckpointPhase::Failing { failure: permanent(), step: 2 },
        &|c| c.compensations_over = 1,
        &|c| c.outbox.swap(0, 1),
    ];
    for (at, change) in changes.into_iter().enumerate() {
        let error = check(5, change).expect_err("the checkpoint is refused");
        assert!(error.starts_with("the checkpoint does not fit the definition: "), "{at}: {error}");
    }
}
