use super::*;

const S: u64 = 1_000_000_000;

fn event(data: Data) -> Event {
    Event { step_id: None, unix_ns: 0, data, metadata: Metadata::default() }
}

fn step(kind: KindName, duration_ns: u64) -> Event {
    event(Data::StepComplete { kind, output: Json::null(), duration_ns })
}

fn completed(duration_ns: u64) -> Event {
    event(Data::PipelineComplete { output: Json::null(), duration_ns, steps_completed: 1, steps_failed: 0 })
}

fn failed(cancelled: bool) -> Event {
    let failure = StepFailure::last("x", "x");
    let failure = PipelineFailure { failure, step_id: None, cancelled, compensated: 0, compensations_failed: 0 };
    event(Data::PipelineError { failure, duration_ns: 1 })
}

#[test]
fn rates_follow_their_definition() {
    let mut reliability = Reliability::new(ReliabilityConfig::default());
    let empty = reliability.snapshot(0).total;
    assert_eq!((empty.success_rate(), empty.compensation_rate()), (None, None));
    assert_eq!((empty.tool_latency_s(), empty.workflow_time_s()), (None, None));
    let undo =
        |data| Event { metadata: Metadata { compensates: Some("a".into()), ..Metadata::default() }, ..event(data) };
    let error = |retry_in_ns| Data::StepError {
        kind: KindName::Http,
        failure: StepFailure::last("x", "x"),
        retry_in_ns,
        duration_ns: 5 * S,
    };
    for event in [
        step(KindName::Http, 2 * S),
        step(KindName::Sentiment, 4 * S),
        step(KindName::Map, 100 * S),
        step(KindName::Chunk, 100 * S),
        event(error(Some(1))),
        event(error(None)),
        undo(Data::StepComplete { kind: KindName::Map, output: Json::null(), duration_ns: 1 }),
        undo(error(None)),
        completed(10 * S),
        completed(20 * S),
        completed(30 * S),
        failed(false),
        failed(true),
    ] {
        reliability.handle_event(0, &event);
    }
    let total = reliability.snapshot(0).total;
    assert_eq!(total.success_rate(), Some(0.75));
    assert_eq!(total.compensation_rate(), Some(0.5));
    assert_eq!(total.tool_latency_s(), Some(3.0));
    assert_eq!(total.workflow_time_s(), Some(20.0));
    assert_eq!((total.retries, total.steps_failed, total.executions_cancelled), (1, 1, 1));
    assert_eq!(reliability.snapshot(0).window, total);
}

#[test]
fn window_moves_and_memory_is_constant() {
    let mut reliability = Reliability::new(ReliabilityConfig { slice_ns: S, slices: 3 });
    let window = |reliability: &Reliability, s: u64| reliability.snapshot(s * S).window.executions_completed;
    for s in 0..10 {
        reliability.handle_event(s * S, &completed(S));
        assert_eq!(window(&reliability, s), (s + 1).min(3));
    }
    assert_eq!([9, 10, 11, 12, 1000].map(|s| window(&reliability, s)), [3, 2, 1, 0, 0]);
    // An old slice at the same index is not counted much later.
    reliability.handle_event(1000 * S, &completed(S));
    assert_eq!(window(&reliability, 1000), 1);
    assert_eq!(reliability.snapshot(0).total.executions_completed, 11);
}
