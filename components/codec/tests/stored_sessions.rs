//! A stored session whose instance may crash between any two steps. A client that sends unanswered lines again receives every event exactly
//! once, whatever was appended, answered or checkpointed before the crash.
//!
//! The driver in this test works like that of the gateway, without sockets: a session is restored from its checkpoint and its channel, and
//! each batch is appended to the channel, then answered, then its checkpoint is stored.

use std::sync::{Arc, LazyLock};

use proptest::prelude::*;
use weir_codec::{
    http::framing::Framing,
    transcripts::{
        checkpoint,
        config::SessionRequest,
        input::{Body, Refusal, read},
        outbox::{Batch, EventOutbox},
        stored::{self, Head, stored_event},
    },
};
use weir_core::transcripts::{Receipt, Session, SessionRules};

/// The state that survives a crash.
#[derive(Default)]
struct Store {
    channel: Vec<String>,
    checkpoint: Vec<u8>,
}

/// The instance crashed.
struct Crash;

/// The number of steps before the instance crashes.
struct StepsLeft(usize);

impl StepsLeft {
    fn step(&mut self) -> Result<(), Crash> {
        self.0 = self.0.checked_sub(1).ok_or(Crash)?;
        Ok(())
    }
}

fn request() -> SessionRequest {
    SessionRequest::from_json(br#"{"max_gap_sec":1.0,"summary":{"every_finals":2},"context":{"max_segments":3}}"#)
        .expect("a valid value")
}

/// The rules of the configuration, shared by all sessions as in the component.
fn rules() -> Arc<SessionRules> {
    static RULES: LazyLock<Arc<SessionRules>> =
        LazyLock::new(|| SessionRules::new(request().config).expect("a valid value"));
    RULES.clone()
}

/// Creates a session, as `POST /sessions` does.
fn create(store: &mut Store) {
    let request = request();
    let session = Session::new(rules(), 0);
    let bytes = checkpoint::encode(&request, &session.checkpoint(0).expect("a valid value"));
    store.checkpoint = stored::encode(&Head::new(None, 0, &request), &bytes);
}

/// Restores the session of a store from its checkpoint and the later events in its channel.
fn open(store: &Store) -> (SessionRequest, Head, Session) {
    let (head, bytes) = stored::decode(&store.checkpoint).expect("a valid value");
    let (session_request, mut session) =
        checkpoint::decode(bytes, |_| Ok((request(), rules())), 0).expect("a valid value");
    for line in &store.channel[head.after.1 as usize..] {
        if let Some(event) = stored_event(line.as_bytes()) {
            session.handle_stored(0, event);
        }
    }
    (session_request, head, session)
}

/// Runs one instance until it crashes or all lines are processed. `piece` is the number of lines per checkpoint, `ahead` the number of
/// lines that the session processes before batches are stored, `put_every` the number of checkpoints per stored one. Appends the lines
/// that the client received to `received`.
fn feed(
    store: &mut Store,
    lines: &[String],
    (piece, ahead, put_every): (usize, usize, usize),
    steps: &mut StepsLeft,
    received: &mut Vec<String>,
) -> Result<(), Crash> {
    let (request, mut head, mut session) = open(store);
    head.after.1 = store.channel.len() as u64;
    let mut outbox = EventOutbox::stored((&request).into(), Framing::Ndjson);
    let mut count = 0;
    for (at, line) in (1_usize..).zip(lines) {
        pass_line(&mut session, &mut outbox, at as u64, line);
        if at.is_multiple_of(piece) || at == lines.len() {
            outbox.handle_checkpoint(checkpoint::encode(&request, &session.checkpoint(0).expect("a valid value")));
        }
        // The session may be ahead of the store.
        if !at.is_multiple_of(ahead) && at < lines.len() {
            continue;
        }
        while let Some(mut batch) = outbox.poll_batch() {
            steps.step()?;
            store.channel.extend(batch.records().into_iter().map(|record| record.data));
            steps.step()?;
            let checkpoint = batch.checkpoint.take();
            deliver(&mut outbox, batch, received);
            steps.step()?;
            head.after.1 = store.channel.len() as u64;
            if let Some(checkpoint) = checkpoint {
                if count % put_every == 0 {
                    store.checkpoint = stored::encode(&head, &checkpoint);
                }
                count += 1;
            }
            steps.step()?;
        }
    }
    Ok(())
}

fn pass_line(session: &mut Session, outbox: &mut EventOutbox, at: u64, line: &str) {
    let input = read(line.as_bytes()).expect("a valid value");
    let receipt = match input.body {
        Body::Chunk(chunk) => session.handle_chunk(0, input.seq, chunk),
        Body::End => session.handle_end(0, input.seq),
    };
    let mut next = session.poll_event(0);
    while let Some(output) = next {
        next = session.poll_event(0);
        outbox.handle_event(output.event, output.number, input.seq, next.is_some());
    }
    match receipt {
        Ok(Receipt::New) => {}
        Ok(Receipt::Repeated { seq_last }) => outbox.handle_repeated(input.seq.expect("a valid value"), seq_last),
        Err(error) => outbox.handle_refusal(at, &Refusal::from(&error)),
    }
}

fn deliver(outbox: &mut EventOutbox, batch: Batch, received: &mut Vec<String>) {
    outbox.handle_stored(batch, &[]);
    let out = String::from_utf8(outbox.poll_output().unwrap_or_default()).expect("a valid value");
    received.extend(out.lines().map(str::to_owned));
}

fn lines() -> impl Strategy<Value = Vec<String>> {
    let text = prop_oneof![Just("I'll check the price"), Just("is it ready?"), Just(""), Just("so")];
    let step = prop_oneof![10 => (0usize..3, text, 0u32..6).prop_map(Some), 1 => Just(None)];
    proptest::collection::vec(step, 1..60).prop_map(|steps| {
        let mut time = 0.0;
        (1..)
            .zip(steps)
            .map(|(seq, step)| match step {
                Some((speaker, text, gap)) => {
                    time += f64::from(gap) / 2.0;
                    let speaker = ["a", "b", "c"][speaker];
                    serde_json::json!({"start": time, "end": time, "text": text, "speaker_id": speaker, "seq": seq})
                        .to_string()
                }
                None => format!(r#"{{"op":"end","seq":{seq}}}"#),
            })
            .collect()
    })
}

fn seq(line: &str) -> Option<usize> {
    let line: serde_json::Value = serde_json::from_str(line).expect("a valid value");
    Some(line["seq"].as_u64()? as usize)
}

proptest! {
    #[test]
    fn crash_at_any_point_loses_and_repeats_no_event(
        lines in lines(),
        crashes in proptest::collection::vec((0usize..40, (1usize..8, 1usize..12, 1usize..5), 0usize..6), 0..8),
    ) {
        let mut want = Store::default();
        create(&mut want);
        prop_assert!(feed(&mut want, &lines, (7, 1, 1), &mut StepsLeft(usize::MAX), &mut Vec::new()).is_ok());

        let mut store = Store::default();
        create(&mut store);
        let mut received = Vec::new();
        for (steps, pace, again) in crashes {
            // A client continues after the last answered line, or sends some answered lines again.
            let answered = received.iter().filter_map(|line: &String| seq(line)).max().unwrap_or(0);
            let from = answered.saturating_sub(again);
            let _ = feed(&mut store, &lines[from..], pace, &mut StepsLeft(steps), &mut received);
        }
        let answered = received.iter().filter_map(|line| seq(line)).max().unwrap_or(0);
        prop_assert!(feed(&mut store, &lines[answered..], (5, 3, 1), &mut StepsLeft(usize::MAX), &mut received).is_ok());
        prop_assert_eq!(&store.channel, &want.channel);
        // The client received only events of the channel, each once.
        let mut events: Vec<&String> = received.iter().filter(|line| line.contains("\"event_id\":")).collect();
        let count = events.len();
        events.dedup();
        prop_assert_eq!(events.len(), count);
        prop_assert!(events.iter().all(|event| store.channel.contains(event)));
        // The session has the same state as without crashes.
        let (_, _, got) = open(&store);
        let (_, _, want) = open(&want);
        let state = |session: &Session| {
            let mut state = session.checkpoint(0).unwrap();
            (state.counters.chunks_refused, state.counters.chunks_repeated) = (0, 0);
            state
        };
        prop_assert_eq!(state(&got), state(&want));
    }
}
