use super::*;
use proptest::prelude::*;

fn chunk(start: f64, end: f64, text: &str, speaker: Option<&str>) -> Chunk {
    Chunk { start, end, text: text.to_owned(), speaker_id: speaker.map(str::to_owned) }
}

fn session(change: impl FnOnce(&mut SessionConfig)) -> Session {
    let mut config = SessionConfig::default();
    change(&mut config);
    Session::new(SessionRules::new(config).unwrap(), 0)
}

fn drain(session: &mut Session) -> Vec<Output> {
    std::iter::from_fn(|| session.poll_event(0)).collect()
}

/// The kind and the text of each event.
fn event_lines(session: &mut Session) -> Vec<String> {
    drain(session)
        .into_iter()
        .map(|output| match output.event {
            Event::Partial(segment) => format!("partial {}", segment.text),
            Event::Final(segment) => format!("final {}", segment.segment.text),
            Event::Summary(summary) => format!("summary {} of {}", summary.kind, summary.finals),
            Event::Dropped(segment) => format!("dropped {}", segment.id),
            Event::Expiring { in_ms } => format!("expiring in {in_ms}"),
            Event::Expired => "expired".to_owned(),
        })
        .collect()
}

#[test]
fn segment_continues_until_the_speaker_changes_or_pauses() {
    let mut session = session(|_| {});
    session.handle_chunk(0, None, chunk(0.0, 1.0, "we", None)).unwrap();
    session.handle_chunk(0, None, chunk(2.0, 3.0, "start ", None)).unwrap();
    session.handle_chunk(0, None, chunk(3.0, 3.5, "", None)).unwrap();
    session.handle_chunk(0, None, chunk(3.5, 4.0, "late", None)).unwrap();
    session.handle_chunk(0, None, chunk(4.0, 5.0, "why", Some(""))).unwrap();
    session.handle_chunk(0, None, chunk(6.001, 7.0, "because", Some(""))).unwrap();
    let want = [
        "partial we",
        "partial we start ",
        "partial we start ",
        "partial we start late",
        "final we start late",
        "partial why",
        "final why",
        "partial because",
    ];
    assert_eq!(event_lines(&mut session), want);
    session.handle_end(0, None).unwrap();
    assert_eq!(event_lines(&mut session), ["final because", "summary final of 3"]);
    session.handle_end(0, None).unwrap();
    assert_eq!(event_lines(&mut session), [""; 0]);
    // After an end, times may restart from 0.
    session.handle_chunk(0, None, chunk(0.0, 1.0, "again", None)).unwrap();
    assert_eq!(session.current().unwrap().text, "again");
}

#[test]
fn invalid_chunk_does_not_change_the_state() {
    let mut session = session(|config| {
        config.limits = SessionLimits { text_bytes_max: 4, speaker_bytes_max: 2, segment_bytes_max: 9 };
    });
    session.handle_chunk(0, Some(1), chunk(1.0, 2.0, "a", None)).unwrap();
    drain(&mut session);
    let before = session.checkpoint(0).unwrap();
    for (wrong, field, message) in [
        (chunk(3.0, 2.5, "b", None), "end", "Chunk end must be >= start"),
        (chunk(0.5, 0.25, "b", None), "end", "Chunk end must be >= start"),
        (chunk(1.5, 2.5, "b", None), "start", "Chunks must arrive in non-decreasing time order"),
        (chunk(f64::NAN, 3.0, "b", None), "start", "Chunk start must be a finite number of seconds"),
        (chunk(3.0, f64::INFINITY, "b", None), "end", "Chunk end must be a finite number of seconds"),
        (chunk(3.0, 4.0, "12345", None), "text", "Chunk text must have at most 4 bytes, and has 5"),
        (chunk(3.0, 4.0, "b", Some("123")), "speaker_id", "Chunk speaker_id must have at most 2 bytes, and has 3"),
    ] {
        let error = session.handle_chunk(7, Some(9), wrong).unwrap_err();
        assert_eq!((error.field(), error.to_string().as_str()), (Some(field), message));
    }
    assert_eq!(drain(&mut session), []);
    let mut after = session.checkpoint(0).unwrap();
    assert_eq!(std::mem::take(&mut after.counters.chunks_refused), 7);
    assert_eq!(after, before);
    assert_eq!(session.handle_chunk(0, Some(2), chunk(2.0, 3.0, "c", None)), Ok(Receipt::New));
}

/// `0.1 + 0.2` is above `0.3`: a recognizer that adds up durations must not lose speech.
#[test]
fn rounding_error_is_not_out_of_order() {
    let mut session = session(|_| {});
    session.handle_chunk(0, None, chunk(0.0, 0.1 + 0.2, "a", None)).unwrap();
    session.handle_chunk(0, None, chunk(0.3, 0.3 - 1e-13, "b", None)).unwrap();
    session.handle_chunk(0, None, chunk(0.3 - 1e-13, 0.5, "c", Some("x"))).unwrap();
    session.handle_chunk(0, None, chunk(1.7e9, 1.7e9, "d", None)).unwrap();
    let finals: Vec<_> = drain(&mut session)
        .into_iter()
        .filter_map(|output| match output.event {
            Event::Final(segment) => Some((segment.segment.start, segment.segment.end, segment.segment.text.clone())),
            _ => None,
        })
        .collect();
    assert_eq!(finals, [(0.0, 0.1 + 0.2, "a b".to_owned()), (0.3 - 1e-13, 0.5, "c".to_owned())]);
    let error = session.handle_chunk(0, None, chunk(1.7e9 - 1e-4, 1.7e9, "e", None)).unwrap_err();
    assert_eq!(error.rule(), "out_of_order");
    // A segment in flight never ends before it starts.
    let mut session = self::session(|_| {});
    session.handle_chunk(0, None, chunk(0.3, 0.3 - 1e-13, "a", None)).unwrap();
    assert_eq!(session.current().map(|segment| (segment.start, segment.end)), Some((0.3, 0.3)));
}

#[test]
fn overlapping_chunks_are_accepted_in_order_of_start() {
    let mut session = session(|config| config.overlap = true);
    session.handle_chunk(0, None, chunk(0.0, 9.0, "a", Some("x"))).unwrap();
    session.handle_chunk(0, None, chunk(2.0, 3.0, "b", Some("x"))).unwrap();
    session.handle_chunk(0, None, chunk(4.0, 6.0, "c", Some("y"))).unwrap();
    let error = session.handle_chunk(0, None, chunk(3.9, 8.0, "d", Some("x"))).unwrap_err();
    assert_eq!(error.rule(), "out_of_order");
    session.handle_chunk(0, None, chunk(4.0, 8.0, "d", Some("x"))).unwrap();
    session.handle_end(0, None).unwrap();
    let finals: Vec<_> = drain(&mut session)
        .into_iter()
        .filter_map(|output| match output.event {
            Event::Final(segment) => Some((segment.segment.start, segment.segment.end, segment.segment.text.clone())),
            _ => None,
        })
        .collect();
    let want = [(0.0, 9.0, "a b"), (4.0, 6.0, "c"), (4.0, 8.0, "d")];
    assert_eq!(finals, want.map(|(start, end, text)| (start, end, text.to_owned())));
}

#[test]
fn segment_length_is_bounded() {
    let mut session = session(|config| {
        config.limits = SessionLimits { text_bytes_max: 4, segment_bytes_max: 9, ..SessionLimits::default() };
    });
    for at in 0..3 {
        session.handle_chunk(0, None, chunk(f64::from(at), f64::from(at), "abcd", None)).unwrap();
    }
    assert_eq!(event_lines(&mut session), ["partial abcd", "partial abcd abcd", "final abcd abcd", "partial abcd"]);
}

#[test]
fn repeated_chunk_is_ignored() {
    let mut session = session(|_| {});
    assert_eq!(session.handle_chunk(0, Some(4), chunk(0.0, 1.0, "a", None)), Ok(Receipt::New));
    assert_eq!(session.handle_chunk(0, Some(4), chunk(0.0, 1.0, "a", None)), Ok(Receipt::Repeated { seq_last: 4 }));
    assert_eq!(session.handle_chunk(0, Some(1), chunk(9.0, 1.0, "a", None)), Ok(Receipt::Repeated { seq_last: 4 }));
    // Chunks without a number are always new, and numbers may have gaps.
    assert_eq!(session.handle_chunk(0, None, chunk(1.0, 2.0, "b", None)), Ok(Receipt::New));
    assert_eq!(session.handle_end(0, Some(7)), Ok(Receipt::New));
    assert_eq!(session.handle_end(0, Some(7)), Ok(Receipt::Repeated { seq_last: 7 }));
    assert_eq!(event_lines(&mut session), ["partial a", "partial a b", "final a b", "summary final of 1"]);
    assert_eq!((session.seq_last(), session.events()), (Some(7), 4));
    assert_eq!(session.metrics(0).counters.chunks_repeated, 2);
}

#[test]
fn summaries_are_due_by_finals_and_not_by_the_window() {
    let mut session = session(|config| {
        config.context.max_segments = 2;
        config.summary.every_finals = 3;
    });
    for at in 0..7 {
        let speaker = ["a", "b"][at % 2];
        session.handle_chunk(0, None, chunk(at as f64, at as f64, "the price", Some(speaker))).unwrap();
    }
    session.handle_end(0, None).unwrap();
    let outputs = drain(&mut session);
    let summaries: Vec<&SummaryDue> = outputs
        .iter()
        .filter_map(|output| match &output.event {
            Event::Summary(summary) => Some(&**summary),
            _ => None,
        })
        .collect();
    let counts: Vec<u64> = summaries.iter().map(|summary| summary.finals).collect();
    assert_eq!(counts, [3, 6, 7]);
    assert_eq!(
        summaries[0].prompt,
        "Recent conversation context:\n[1.0s] b: the price\n[2.0s] a: the price\n\nSummarize the key points discussed:"
    );
    assert_eq!(
        summaries[2].prompt,
        "Recent conversation context:\n[5.0s] b: the price\n[6.0s] a: the price\n\nConversation keywords: price\n\n\
         Generate a final summary covering:\n1. Main topics discussed\n2. Key decisions made\n3. Action items identified\n"
    );
    let numbers: Vec<u64> = outputs.iter().filter_map(|output| output.number).collect();
    assert_eq!(numbers, (1..=outputs.len() as u64).collect::<Vec<_>>());
}

#[test]
fn seconds_are_formatted_like_python() {
    let mut window = ContextWindow::default();
    for start in [0.05, 0.25, 0.35, 0.75, 2.5, -0.04, 1e16] {
        let segment = Segment { start, end: start, text: "x".to_owned(), speaker_id: None };
        let entry = Final { id: 0, segment, annotation: Annotation::default(), workflow: Workflow::General };
        window.add(&ContextConfig { max_time_sec: f64::MAX, ..ContextConfig::default() }, Arc::new(entry));
    }
    let rendered = window.render_for_llm();
    let starts: Vec<&str> =
        rendered.lines().skip(1).filter_map(|line| line.split_once("s]")).map(|(at, _)| at).collect();
    assert_eq!(starts, ["[0.1", "[0.2", "[0.3", "[0.8", "[2.5", "[-0.0", "[10000000000000000.0"]);
}

#[test]
fn idle_session_is_warned_and_expires() {
    const S: u64 = 1_000_000_000;
    let mut session = session(|config| config.idle = IdleConfig { expire_ms: 10_000, warn_ms: 3000 });
    session.handle_chunk(5 * S, None, chunk(0.0, 1.0, "bye", None)).unwrap();
    assert_eq!(session.poll_timeout(), Some(12 * S));
    session.handle_time(12 * S - 1);
    assert_eq!(event_lines(&mut session), ["partial bye"]);
    session.handle_time(13 * S);
    session.handle_time(14 * S);
    assert_eq!(event_lines(&mut session), ["expiring in 2000"]);
    assert_eq!(session.poll_timeout(), Some(15 * S));
    // The idle time continues after a restart.
    let checkpoint = session.checkpoint(14 * S).unwrap();
    let rules = SessionRules::new(session.rules.config.clone()).unwrap();
    let mut session = Session::restore(rules, checkpoint, 100 * S).unwrap();
    assert_eq!(session.poll_timeout(), Some(101 * S));
    session.handle_time(101 * S);
    assert_eq!(event_lines(&mut session), ["final bye", "summary final of 1", "expired"]);
    assert_eq!(session.handle_chunk(101 * S, None, chunk(1.0, 2.0, "late", None)), Err(ChunkError::Expired));
    assert_eq!((session.poll_timeout(), session.is_expired()), (None, true));
    session.handle_time(999 * S);
    assert_eq!(drain(&mut session), []);
}

#[test]
fn chunk_resets_the_idle_time() {
    const S: u64 = 1_000_000_000;
    let mut session = session(|config| config.idle = IdleConfig { expire_ms: 10_000, warn_ms: 3000 });
    session.handle_time(8 * S);
    session.handle_chunk(9 * S, None, chunk(0.0, 1.0, "a", None)).unwrap();
    session.handle_time(15 * S);
    assert_eq!(event_lines(&mut session), ["expiring in 2000", "partial a"]);
    session.handle_time(16 * S);
    assert_eq!(event_lines(&mut session), ["expiring in 3000"]);
}

#[test]
fn queues_are_bounded_and_report_dropped_segments() {
    let mut session = session(|config| config.routing = RoutingConfig { queue_len_max: [2; 4], queued_max: 3 });
    for (at, text) in ["who is it?", "the sky was grey", "I'll send it", "why is that?"].iter().enumerate() {
        session.handle_chunk(0, None, chunk(at as f64, at as f64, text, Some(text))).unwrap();
    }
    session.handle_end(0, None).unwrap();
    assert!(event_lines(&mut session).contains(&"dropped 1".to_owned()));
    let metrics = session.metrics(0);
    assert_eq!((metrics.queue_depths, metrics.counters.segments_dropped), ([2, 1, 0, 0], [0, 0, 0, 1]));
    let queues = session.checkpoint(0).unwrap().queues;
    let ids = queues.each_ref().map(|queue| queue.iter().map(|segment| segment.id).collect::<Vec<_>>());
    assert_eq!(ids, [vec![0, 3], vec![2], vec![], vec![]]);
}

#[test]
fn unread_events_block_further_input() {
    let mut session = session(|_| {});
    let mut accepted = 0;
    let error = loop {
        match session.handle_chunk(0, None, chunk(0.0, 0.0, "", None)) {
            Ok(_) => accepted += 1,
            Err(error) => break error,
        }
    };
    assert_eq!((accepted, error), (EVENTS_MAX, ChunkError::Undrained));
    assert_eq!(session.checkpoint(0), None);
    drain(&mut session);
    assert!(session.handle_chunk(0, None, chunk(0.0, 0.0, "", None)).is_ok());
}

#[test]
fn metrics_have_the_counts_of_the_contract() {
    let mut session = session(|_| {});
    let at = 1_000_000_000;
    session.handle_chunk(at, None, chunk(1.0, 2.0, "a", Some("x"))).unwrap();
    session.handle_chunk(at, None, chunk(2.0, 3.0, "b", Some("y"))).unwrap();
    session.record_llm_call();
    while session.poll_event(at + 2_000_000).is_some() {}
    let metrics = session.metrics(2 * at);
    let Counters { chunks_ingested, segments_finalized, segments_partial, llm_calls, .. } = metrics.counters;
    assert_eq!((chunks_ingested, segments_finalized, segments_partial, llm_calls), (2, 1, 2, 1));
    assert_eq!((metrics.elapsed_sec, metrics.chunks_per_sec, metrics.llm_calls_per_min), (2.0, 1.0, 30.0));
    assert_eq!((metrics.context_segments, metrics.context_span_sec), (1, 1.0));
    assert_eq!((metrics.latency.count, metrics.latency.mean_ms(), metrics.latency.max_ns), (3, 2.0, 2_000_000));
    assert_eq!(Session::new(SessionRules::new(SessionConfig::default()).unwrap(), 5).metrics(5).chunks_per_sec, 0.0);
}

#[test]
fn inconsistent_checkpoint_is_refused() {
    let mut session = session(|config| config.routing = RoutingConfig::queued());
    for at in 0..3 {
        session.handle_chunk(0, None, chunk(f64::from(at), f64::from(at), "a", Some(&at.to_string()))).unwrap();
    }
    drain(&mut session);
    let good = session.checkpoint(0).unwrap();
    type Change = fn(&mut Checkpoint);
    let changes: [(Change, &str); 6] = [
        (
            |checkpoint| checkpoint.window = vec![checkpoint.window[0].clone(); 11],
            "the checkpoint's window is 11 and may be at most 10",
        ),
        (
            |checkpoint| checkpoint.queues[0] = vec![checkpoint.window[0].clone(); 65],
            "the checkpoint's queue is 65 and may be at most 64",
        ),
        (
            |checkpoint| checkpoint.counters.segments_finalized = 1,
            "the checkpoint's final segments are more than were counted",
        ),
        (
            |checkpoint| checkpoint.current.as_mut().unwrap().end = f64::NAN,
            "the checkpoint's segments must end after they start",
        ),
        (
            |checkpoint| checkpoint.current.as_mut().unwrap().text = "x".repeat(16_385),
            "the checkpoint's text is 16385 and may be at most 16384",
        ),
        (
            |checkpoint| checkpoint.finals_since_end = 9,
            "the checkpoint's finals since the end are more than were counted",
        ),
    ];
    let rules = || session.rules.clone();
    for (change, message) in changes {
        let mut wrong = good.clone();
        change(&mut wrong);
        assert_eq!(Session::restore(rules(), wrong, 0).unwrap_err().to_string(), message);
    }
    let restored = Session::restore(rules(), good.clone(), 7).unwrap();
    assert_eq!(restored.checkpoint(7), Some(good));
    // A segment in the window and in a queue is stored once after a restart too.
    assert_eq!(restored.transcript_bytes(), session.transcript_bytes());
}

#[derive(Debug, Clone)]
enum Step {
    Chunk(Chunk),
    End,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let text = prop_oneof![
        Just("".to_owned()),
        Just("I'll check the price".to_owned()),
        Just("is it ready?".to_owned()),
        "[a-z ]{0,12}",
    ];
    let chunk = (-2i32..8, -1i32..6, text, 0usize..3);
    let step = prop_oneof![
        12 => chunk.prop_map(Some),
        1 => Just(None),
    ];
    proptest::collection::vec(step, 0..60).prop_map(|steps| {
        let mut at = 0.0;
        steps
            .into_iter()
            .map(|step| match step {
                Some((gap, length, text, speaker)) => {
                    let start = at + f64::from(gap) / 4.0;
                    let end = start + f64::from(length) / 4.0;
                    at = if end >= start && start >= at { end } else { at };
                    Step::Chunk(chunk_of(start, end, text, speaker))
                }
                None => Step::End,
            })
            .collect()
    })
}

fn chunk_of(start: f64, end: f64, text: String, speaker: usize) -> Chunk {
    Chunk { start, end, text, speaker_id: [None, Some("a"), Some("b")][speaker].map(str::to_owned) }
}

fn apply(session: &mut Session, now: u64, step: &Step, seq: Option<u64>) {
    match step {
        Step::Chunk(chunk) => {
            let _ = session.handle_chunk(now, seq, chunk.clone());
        }
        Step::End => {
            session.handle_end(now, seq).unwrap();
        }
    }
}

/// The stored form of an event.
fn stored_event(output: Output, seq: u64) -> Option<StoredEvent> {
    let body = match output.event {
        Event::Partial(segment) => StoredBody::Partial(segment),
        Event::Final(segment) => StoredBody::Final(segment.id, segment.segment.clone()),
        Event::Summary(due) => StoredBody::Summary(due.kind),
        Event::Expired => StoredBody::Expired,
        Event::Dropped(_) | Event::Expiring { .. } => return None,
    };
    Some(StoredEvent { number: output.number?, seq: Some(seq), body })
}

fn config() -> SessionConfig {
    let mut config = SessionConfig::default();
    config.context.max_segments = 3;
    config.context.max_time_sec = 4.0;
    config.summary.every_finals = 2;
    config.routing = RoutingConfig { queue_len_max: [2; 4], queued_max: 3 };
    config
}

proptest! {
    #[test]
    fn session_continues_from_any_checkpoint(steps in steps(), crash in 0usize..60) {
        let rules = SessionRules::new(config()).unwrap();
        let mut whole = Session::new(rules.clone(), 0);
        let mut broken = Session::new(rules.clone(), 0);
        for (now, step) in steps.iter().enumerate() {
            apply(&mut whole, now as u64, step, None);
            apply(&mut broken, now as u64, step, None);
            prop_assert_eq!(drain(&mut whole), drain(&mut broken));
            if now == crash {
                let checkpoint = broken.checkpoint(now as u64).unwrap();
                // The clock of another process starts elsewhere.
                let now = now as u64;
                broken = Session::restore(rules.clone(), checkpoint, now).unwrap();
            }
        }
        let end = steps.len() as u64;
        prop_assert_eq!(whole.checkpoint(end), broken.checkpoint(end));
    }

    /// After a restart the client submits again from any chunk before the checkpoint: no event is lost or repeated, and
    /// the numbers identify the delivered events.
    #[test]
    fn resubmission_loses_and_repeats_no_event(
        steps in steps(),
        checkpoint_at in 0usize..60,
        crash in 0usize..60,
        from in 0usize..60,
    ) {
        let rules = SessionRules::new(config()).unwrap();
        let chunks = &steps;
        let run = |session: &mut Session, from: usize, to: usize, events: &mut Vec<Output>| {
            for (seq, step) in chunks.iter().enumerate().take(to).skip(from) {
                apply(session, 0, step, Some(seq as u64));
                for output in drain(session) {
                    if let Some(number) = output.number {
                        let known = events.get(number as usize - 1);
                        assert!(known.is_none_or(|known| *known == output), "event {number} differs");
                        if known.is_none() {
                            assert_eq!(number, events.len() as u64 + 1);
                            events.push(output);
                        }
                    }
                }
            }
        };
        let mut want = Vec::new();
        run(&mut Session::new(rules.clone(), 0), 0, chunks.len(), &mut want);
        let mut got = Vec::new();
        let mut session = Session::new(rules.clone(), 0);
        let crash = crash.min(chunks.len());
        let checkpoint_at = checkpoint_at.min(crash);
        run(&mut session, 0, checkpoint_at, &mut got);
        let checkpoint = session.checkpoint(0).unwrap();
        run(&mut session, checkpoint_at, crash, &mut got);
        let mut session = Session::restore(rules.clone(), checkpoint, 0).unwrap();
        run(&mut session, from.min(checkpoint_at), chunks.len(), &mut got);
        prop_assert_eq!(got, want);
    }

    /// A checkpoint and the events that were stored after it restore the state of the session.
    #[test]
    fn stored_events_restore_a_session(steps in steps(), checkpoint_at in 0usize..60, overlap in 0usize..5) {
        let rules = SessionRules::new(config()).unwrap();
        let mut session = Session::new(rules.clone(), 0);
        let (mut checkpoint, mut stored) = (session.checkpoint(0).unwrap(), Vec::new());
        for (seq, step) in steps.iter().enumerate() {
            apply(&mut session, 0, step, Some(seq as u64));
            stored.extend(drain(&mut session).into_iter().filter_map(|output| stored_event(output, seq as u64)));
            if seq == checkpoint_at {
                checkpoint = session.checkpoint(0).unwrap();
            }
        }
        let mut restored = Session::restore(rules, checkpoint.clone(), 0).unwrap();
        // Events that the checkpoint includes are ignored.
        let from = stored.partition_point(|event| event.number <= checkpoint.events).saturating_sub(overlap);
        for event in &stored[from..] {
            restored.handle_stored(0, event.clone());
            prop_assert!(drain(&mut restored).is_empty());
        }
        let (mut got, mut want) = (restored.checkpoint(0).unwrap(), session.checkpoint(0).unwrap());
        for state in [&mut got, &mut want] {
            state.counters.chunks_refused = 0;
        }
        // An end without a segment in flight and a refused chunk have no event, and can be submitted again.
        prop_assert!(got.seq_last <= want.seq_last);
        got.seq_last = want.seq_last;
        prop_assert_eq!(got, want);
    }

    #[test]
    fn each_chunk_has_one_partial_and_at_most_one_final(steps in steps()) {
        let mut session = Session::new(SessionRules::new(config()).unwrap(), 0);
        for step in &steps {
            let Step::Chunk(chunk) = step else { continue };
            let accepted = session.handle_chunk(0, None, chunk.clone()).is_ok();
            let outputs = drain(&mut session);
            let count = |is: fn(&Event) -> bool| outputs.iter().filter(|output| is(&output.event)).count();
            prop_assert_eq!(count(|event| matches!(event, Event::Partial(_))), usize::from(accepted));
            prop_assert!(count(|event| matches!(event, Event::Final(_))) <= usize::from(accepted));
            let ends_with_partial = outputs.last().is_none_or(|output| matches!(output.event, Event::Partial(_)));
            prop_assert!(ends_with_partial);
        }
    }
}
