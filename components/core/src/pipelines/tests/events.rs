use expect_test::expect;

use super::*;

#[test]
fn completed_execution_has_the_expected_events() {
    let mut world = World::new(draft(vec![annotate("a"), annotate("b")]), r#"{"text":"x"}"#);
    let a = world.start_one(at(1));
    assert_eq!(a.inputs.default_json(), json(r#"{"text":"x"}"#));
    world.execution.handle_progress(at(3), a.run, 0.5, "half");
    world.execution.handle_output(at(4), a.run, json("[1]")).unwrap();
    world.execution.handle_output(at(4), a.run, json("[2]")).unwrap();
    world.finish(at(6), a.run, "1");
    let b = world.start_one(at(6));
    assert_eq!(b.inputs.default_json(), json("1"));
    assert_eq!(
        (b.inputs.input.clone(), b.inputs.steps.clone()),
        (json(r#"{"text":"x"}"#), vec![("a".into(), json("1"))])
    );
    world.finish(at(9), b.run, "2");
    assert!(world.execution.is_drained());
    assert!(world.start(at(9)).is_empty() && world.execution.poll_timeout().is_none());
    expect![[r#"
        1 0 pipeline_start -: p 2
        2 1 checkpoint_saved -: 1 with 0
        3 1 step_start a: annotate attempt 1
        4 3 step_progress a: 0.5 half
        5 4 step_output a: 0 [1]
        6 4 step_output a: 1 [2]
        7 6 step_complete a: 1 5 ms
        8 6 checkpoint_saved -: 2 with 1
        9 6 step_start b: annotate attempt 1
        10 9 step_complete b: 2 3 ms
        11 9 checkpoint_saved -: 3 with 2
        12 9 pipeline_complete -: 2 9 ms, 2 completed, 0 failed
    "#]]
    .assert_eq(&world.event_lines());
}

#[test]
fn branches_run_at_once_within_the_bound() {
    let steps =
        vec![annotate("a"), after("b", &["a"]), after("c", &["a"]), after("d", &["a"]), after("e", &["d", "b"])];
    let mut world = World::new(Draft { parallel_max: 2, ..draft(steps) }, "0");
    let a = world.start_one(at(0));
    world.finish(at(1), a.run, "1");
    let both = world.start(at(1));
    assert_eq!(both.iter().map(|request| world.id(request.run)).collect::<Vec<_>>(), ["b", "c"]);
    world.finish(at(2), both[1].run, "3");
    let d = world.start_one(at(2));
    world.finish(at(3), d.run, "4");
    assert!(world.start(at(3)).is_empty());
    world.finish(at(4), both[0].run, "2");
    let e = world.start_one(at(4));
    assert_eq!(e.inputs.default_json(), json(r#"{"b":2,"d":4}"#));
    let outputs: Vec<_> = e.inputs.steps.iter().map(|(id, output)| (&**id, output.as_str())).collect();
    assert_eq!(outputs, [("a", "1"), ("b", "2"), ("d", "4")]);
    world.finish(at(5), e.run, "5");
    let want = Outcome::Completed { output: json(r#"{"c":3,"e":5}"#) };
    assert_eq!(world.execution.outcome(), Some(&want));
}

#[test]
fn events_and_steps_wait_for_the_checkpoint() {
    let mut world = World::new(draft(vec![annotate("a"), annotate("b")]), "0");
    let execution = &mut world.execution;
    assert!(execution.poll_events(at(0)).is_none() && execution.poll_start(at(0)).is_none());
    let first = execution.poll_checkpoint(at(0)).unwrap();
    assert!(execution.poll_events(at(0)).is_none() && execution.poll_start(at(0)).is_none());
    assert!(execution.poll_checkpoint(at(0)).is_none());
    execution.handle_checkpoint_saved(first.number + 1);
    assert!(execution.poll_start(at(0)).is_none());
    execution.handle_checkpoint_saved(first.number);
    let a = execution.poll_start(at(0)).unwrap();
    let batch = execution.poll_events(at(0)).unwrap();
    assert_eq!(batch.events, first.outbox);
    // A batch that was not stored is polled again; after a part of it, the rest.
    execution.handle_stored(0);
    assert_eq!(execution.poll_events(at(0)).unwrap().events.len(), 2);
    assert!(execution.poll_events(at(0)).is_none());
    execution.handle_stored(1);
    let rest = execution.poll_events(at(0)).unwrap();
    assert_eq!(rest.events.iter().map(|event| event.seq).collect::<Vec<_>>(), [2]);
    execution.handle_finished(at(1), a.run, json("1"));
    assert!(execution.poll_start(at(1)).is_none());
    let second = execution.poll_checkpoint(at(1)).unwrap();
    // The outbox has all events that are not known to be stored; the second one is being appended.
    let seqs: Vec<u64> = second.outbox.iter().map(|event| event.seq).collect();
    assert_eq!((seqs, second.events_end), (vec![2, 3, 4, 5], 5));
    assert!(execution.poll_start(at(1)).is_none());
    execution.handle_checkpoint_saved(second.number);
    assert!(execution.poll_start(at(1)).is_some());
}

#[test]
fn full_buffer_coalesces_progress_and_refuses_outputs() {
    let mut draft = draft(vec![annotate("a")]);
    draft.streaming.buffer_size = 3;
    let mut world = World::new(draft, "0");
    let a = world.start_one(at(0)).run;
    let execution = &mut world.execution;
    for (progress, message) in [(0.1, "one"), (0.2, "two")] {
        execution.handle_progress(at(1), a, progress, message);
    }
    execution.handle_output(at(2), a, json("1")).unwrap();
    execution.handle_progress(at(3), a, f64::NAN, "three");
    execution.handle_output(at(4), a, json("2")).unwrap();
    assert_eq!(execution.handle_output(at(5), a, json("3")), Err(ReportError::Full));
    execution.handle_progress(at(6), a, 7.0, &"é".repeat(1000));
    // A full buffer is stored before the end of the interval.
    world.drain(at(6));
    let lines: Vec<String> = world.channel[3..].iter().map(line).collect();
    assert_eq!(lines[..2], ["4 2 step_output a: 0 1", "5 4 step_output a: 1 2"]);
    assert!(lines[2].starts_with("6 6 step_progress a: 1 éé") && lines.len() == 3);
    assert!(world.execution.handle_output(at(7), a, json("3")).is_ok());
    let too_large = json(&"1".repeat((1 << 20) + 1));
    let want = ReportError::TooLarge { bytes: (1 << 20) + 1, bytes_max: 1 << 20 };
    assert_eq!(world.execution.handle_output(at(7), a, too_large), Err(want));
    let other = Run { number: 9, ..a };
    assert_eq!(world.execution.handle_output(at(7), other, json("1")), Err(ReportError::Stale));
}

#[test]
fn batches_are_sent_once_per_interval_and_at_once_after_idling() {
    let mut world = World::new(draft(vec![annotate("a")]), "0");
    let a = world.start_one(at(0)).run;
    let stored = |world: &mut World, ms: u64| {
        world.drain(at(ms));
        world.channel.len()
    };
    assert_eq!(stored(&mut world, 0), 3);
    world.execution.handle_output(at(10), a, json("1")).unwrap();
    assert_eq!((stored(&mut world, 10), world.execution.poll_timeout()), (3, Some(100 * MS)));
    world.execution.handle_output(at(20), a, json("2")).unwrap();
    assert_eq!((stored(&mut world, 99), stored(&mut world, 100)), (3, 5));
    assert_eq!(world.execution.poll_timeout(), Some(TIMEOUT_MS_DEFAULT * MS));
    world.execution.handle_progress(at(500), a, 0.5, "");
    assert_eq!(stored(&mut world, 500), 6);
    world.execution.handle_progress(at(501), a, 0.6, "");
    assert_eq!(stored(&mut world, 501), 6);
    // A lifecycle event of a step is stored at once, together with the waiting events.
    world.finish(at(502), a, "3");
    assert_eq!(world.channel.len(), 10);
}

#[test]
fn streaming_settings_reduce_the_events() {
    for (enabled, emit_progress, want) in [
        (
            true,
            false,
            "pipeline_start checkpoint_saved step_start step_output step_complete checkpoint_saved pipeline_complete",
        ),
        (false, true, "pipeline_start pipeline_complete"),
    ] {
        let mut draft = draft(vec![annotate("a")]);
        draft.streaming = Streaming { enabled, emit_progress, ..Streaming::default() };
        let mut world = World::new(draft, "0");
        let a = world.start_one(at(0)).run;
        world.execution.handle_progress(at(1), a, 0.5, "");
        world.execution.handle_output(at(1), a, json("1")).unwrap();
        world.finish(at(2), a, "1");
        let names: Vec<&str> = world.channel.iter().map(|s| s.event.event_type().name()).collect();
        assert_eq!(names.join(" "), want);
        assert!(world.execution.is_drained());
    }
}

#[test]
fn status_has_the_state_of_each_step() {
    let mut world = World::new(draft(vec![annotate("a"), annotate("b")]), "0");
    let a = world.start_one(at(0));
    world.finish(at(1), a.run, "1");
    world.start(at(1));
    let status = world.execution.status(at(5).monotonic_ns);
    assert_eq!((status.state, status.duration_ns, status.events), (State::Running, 5 * MS, 6));
    assert_eq!(
        status.steps.iter().map(|step| step.state).collect::<Vec<_>>(),
        [StepState::Completed, StepState::Running]
    );
}
