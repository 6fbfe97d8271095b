//! A stored session whose keeper may die between any two steps: whoever submits again what was not answered finds every event once,
//! whatever was appended, answered or kept when it died.
//!
//! The keeper of this test is the gateway's without its sockets: a session from its checkpoint and its channel, batches that are
//! appended, then answered, then kept.

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

/// What outlives the keeper.
#[derive(Default)]
struct Store {
    channel: Vec<String>,
    kept: Vec<u8>,
}

/// The keeper dies.
struct Dead;

/// How many steps it has yet to live.
struct Life(usize);

impl Life {
    fn step(&mut self) -> Result<(), Dead> {
        self.0 = self.0.checked_sub(1).ok_or(Dead)?;
        Ok(())
    }
}

fn ask() -> SessionRequest {
    SessionRequest::from_json(br#"{"max_gap_sec":1.0,"summary":{"every_finals":2},"context":{"max_segments":3}}"#)
        .expect("it is as it was made")
}

/// The rules of the one configuration, which sessions share as they do in the component.
fn rules() -> Arc<SessionRules> {
    static RULES: LazyLock<Arc<SessionRules>> =
        LazyLock::new(|| SessionRules::new(ask().config).expect("it is as it was made"));
    RULES.clone()
}

/// A new session, as `POST /sessions` keeps it.
fn create(store: &mut Store) {
    let ask = ask();
    let session = Session::new(rules(), 0);
    let bytes = checkpoint::encode(&ask, &session.checkpoint(0).expect("it is as it was made"));
    store.kept = stored::encode(&Head::new(None, 0, &ask), &bytes);
}

/// The session of a store: from its checkpoint, carried on by its channel.
fn open(store: &Store) -> (SessionRequest, Head, Session) {
    let (head, bytes) = stored::decode(&store.kept).expect("it is as it was made");
    let (ask, mut session) = checkpoint::decode(bytes, |_| Ok((ask(), rules())), 0).expect("it is as it was made");
    for line in &store.channel[head.after.1 as usize..] {
        if let Some(event) = stored_event(line.as_bytes()) {
            session.handle_stored(0, event);
        }
    }
    (ask, head, session)
}

/// One life of the keeper: a request brings lines in pieces, each ending in a checkpoint. What the client has of the answers.
fn feed(
    store: &mut Store,
    lines: &[String],
    (piece, ahead, put_every): (usize, usize, usize),
    life: &mut Life,
    seen: &mut Vec<String>,
) -> Result<(), Dead> {
    let (ask, mut head, mut session) = open(store);
    head.after.1 = store.channel.len() as u64;
    let mut outbox = EventOutbox::stored((&ask).into(), Framing::Ndjson);
    let mut count = 0;
    for (at, line) in (1_usize..).zip(lines) {
        say(&mut session, &mut outbox, at as u64, line);
        if at.is_multiple_of(piece) || at == lines.len() {
            outbox.handle_checkpoint(checkpoint::encode(&ask, &session.checkpoint(0).expect("it is as it was made")));
        }
        // What the session says runs ahead of what is stored.
        if !at.is_multiple_of(ahead) && at < lines.len() {
            continue;
        }
        while let Some(mut batch) = outbox.poll_batch() {
            life.step()?;
            store.channel.extend(batch.records().into_iter().map(|record| record.data));
            life.step()?;
            let kept = batch.checkpoint.take();
            answer(&mut outbox, batch, seen);
            life.step()?;
            head.after.1 = store.channel.len() as u64;
            if let Some(kept) = kept {
                if count % put_every == 0 {
                    store.kept = stored::encode(&head, &kept);
                }
                count += 1;
            }
            life.step()?;
        }
    }
    Ok(())
}

fn say(session: &mut Session, outbox: &mut EventOutbox, at: u64, line: &str) {
    let input = read(line.as_bytes()).expect("it is as it was made");
    let taken = match input.body {
        Body::Chunk(chunk) => session.handle_chunk(0, input.seq, chunk),
        Body::End => session.handle_end(0, input.seq),
    };
    let mut next = session.poll_event(0);
    while let Some(output) = next {
        next = session.poll_event(0);
        outbox.handle_event(output.event, output.number, input.seq, next.is_some());
    }
    match taken {
        Ok(Receipt::New) => {}
        Ok(Receipt::Repeated { seq_last }) => {
            outbox.handle_repeated(input.seq.expect("it is as it was made"), seq_last)
        }
        Err(error) => outbox.handle_refusal(at, &Refusal::from(&error)),
    }
}

fn answer(outbox: &mut EventOutbox, batch: Batch, seen: &mut Vec<String>) {
    outbox.handle_stored(batch, &[]);
    let out = String::from_utf8(outbox.poll_output().unwrap_or_default()).expect("it is as it was made");
    seen.extend(out.lines().map(str::to_owned));
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
    let line: serde_json::Value = serde_json::from_str(line).expect("it is as it was made");
    Some(line["seq"].as_u64()? as usize)
}

proptest! {
    #[test]
    fn crash_at_any_point_loses_and_repeats_no_event(
        lines in lines(),
        lives in proptest::collection::vec((0usize..40, (1usize..8, 1usize..12, 1usize..5), 0usize..6), 0..8),
    ) {
        let mut want = Store::default();
        create(&mut want);
        prop_assert!(feed(&mut want, &lines, (7, 1, 1), &mut Life(usize::MAX), &mut Vec::new()).is_ok());

        let mut store = Store::default();
        create(&mut store);
        let mut seen = Vec::new();
        for (steps, pace, again) in lives {
            // A client goes on after the last line that was answered, or submits some of them again.
            let answered = seen.iter().filter_map(|line: &String| seq(line)).max().unwrap_or(0);
            let from = answered.saturating_sub(again);
            let _ = feed(&mut store, &lines[from..], pace, &mut Life(steps), &mut seen);
        }
        let answered = seen.iter().filter_map(|line| seq(line)).max().unwrap_or(0);
        prop_assert!(feed(&mut store, &lines[answered..], (5, 3, 1), &mut Life(usize::MAX), &mut seen).is_ok());
        prop_assert_eq!(&store.channel, &want.channel);
        // Whatever the client has is what the channel has, each once.
        let mut events: Vec<&String> = seen.iter().filter(|line| line.contains("\"event_id\":")).collect();
        let count = events.len();
        events.dedup();
        prop_assert_eq!(events.len(), count);
        prop_assert!(events.iter().all(|event| store.channel.contains(event)));
        // And the session is where it would be.
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
