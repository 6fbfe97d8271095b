//! Compares sessions, context windows and annotations with the vectors of `tests/golden`, which were recorded from slower-whisper.
//! `WEIR_GOLDEN_DIR` names another directory with more vectors.
//!
//! Sessions and windows must agree exactly. Annotations must agree too, except for the differences that
//! `weir_core::transcripts::annotate` documents; for these the documented result is expected. A naive model of both in this file decides
//! for every vector whether it must agree or differ; no vector is skipped.

use std::{path::PathBuf, sync::Arc};

use serde_json::{Value, json};
use weir_codec::{
    http::lines::{Line, Lines},
    transcripts::{
        checkpoint,
        config::SessionRequest,
        event::EventLine,
        input::{self, Body, Refusal},
        semantic::{Semantic, SemanticParts},
    },
};
use weir_core::transcripts::{
    Annotation, Annotator, ContextConfig, ContextWindow, Final, Segment, Session, SessionRules, Workflow,
    annotate::AnnotateConfig,
};

/// The directory of the vectors, and whether it is the one in the repository.
fn directory() -> (PathBuf, bool) {
    match std::env::var_os("WEIR_GOLDEN_DIR") {
        Some(dir) => (dir.into(), false),
        None => (PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/golden"), true),
    }
}

fn vectors(name: &str) -> Vec<Value> {
    let file = directory().0.join(name);
    let text = std::fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let vectors: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("a valid vector")).collect();
    assert!(!vectors.is_empty(), "{} is empty", file.display());
    vectors
}

/// The events of a session for one line, or its refusal.
fn events_for(session: &mut Session, line: &[u8]) -> Result<Vec<Value>, Refusal> {
    let input = input::read_line(&Line { number: 1, content: Some(line) })?;
    let receipt = match input.body {
        Body::Chunk(chunk) => session.handle_chunk(0, input.seq, chunk),
        Body::End => session.handle_end(0, input.seq),
    };
    receipt.map_err(|error| Refusal::from(&error))?;
    let mut events = Vec::new();
    while let Some(output) = session.poll_event(0) {
        let mut line = Vec::new();
        EventLine::new(&output.event, None, SemanticParts { keywords: false, intent: false }).write(&mut line);
        let mut event: Value = serde_json::from_slice(&line).expect("a valid vector");
        // slower-whisper does not number final segments.
        event.as_object_mut().expect("a valid vector").remove("segment_id");
        events.push(event);
    }
    Ok(events)
}

#[test]
fn sessions_agree_exactly() {
    let mut counts = (0, 0);
    for vector in vectors("streaming_session.jsonl") {
        let mut request = SessionRequest::one_shot();
        request.config.max_gap_sec = vector["max_gap_sec"].as_f64().unwrap();
        let mut session = Session::new(SessionRules::new(request.config).unwrap(), 0);
        let inputs = vector["input"].as_array().unwrap();
        let outputs = vector["output"].as_array().unwrap();
        assert_eq!(inputs.len(), outputs.len());
        for (line, want) in inputs.iter().zip(outputs) {
            match events_for(&mut session, line.to_string().as_bytes()) {
                Ok(events) => {
                    counts.0 += events.len();
                    assert_eq!(&Value::from(events), want, "{vector}");
                }
                Err(refusal) => {
                    counts.1 += 1;
                    assert_eq!(&json!({"error": refusal.message}), want, "{vector}");
                }
            }
        }
    }
    println!("{} events and {} refusals agree", counts.0, counts.1);
    if directory().1 {
        assert_eq!(counts, (2185, 139));
    }
}

/// The same vectors, with an encoded and decoded checkpoint after every line.
#[test]
fn sessions_restored_after_every_line_agree_exactly() {
    for vector in vectors("streaming_session.jsonl") {
        let mut request = SessionRequest::one_shot();
        request.config.max_gap_sec = vector["max_gap_sec"].as_f64().unwrap();
        let rules = SessionRules::new(request.config.clone()).unwrap();
        let mut session = Session::new(rules.clone(), 0);
        for (line, want) in vector["input"].as_array().unwrap().iter().zip(vector["output"].as_array().unwrap()) {
            let got = events_for(&mut session, line.to_string().as_bytes());
            let got = got.map_or_else(|refusal| json!({"error": refusal.message}), Value::from);
            assert_eq!(&got, want, "{vector}");
            let bytes = checkpoint::encode(&request, &session.checkpoint(0).unwrap());
            session = checkpoint::decode(&bytes, |_| Ok((request.clone(), rules.clone())), 0).unwrap().1;
        }
    }
}

#[test]
fn context_windows_agree_exactly() {
    let mut states = 0;
    for vector in vectors("context_window.jsonl") {
        let config = ContextConfig {
            max_segments: vector["max_segments"].as_u64().unwrap() as usize,
            max_time_sec: vector["max_time_sec"].as_f64().unwrap(),
        };
        let mut window = ContextWindow::default();
        for (segment, want) in vector["input"].as_array().unwrap().iter().zip(vector["after_each"].as_array().unwrap())
        {
            let segment = Segment {
                start: segment["start"].as_f64().unwrap(),
                end: segment["end"].as_f64().unwrap(),
                text: segment["text"].as_str().unwrap().to_owned(),
                speaker_id: segment["speaker_id"].as_str().map(str::to_owned),
            };
            let final_segment =
                Final { id: 0, segment, annotation: Annotation::default(), workflow: Workflow::General };
            window.add(&config, Arc::new(final_segment));
            let got = json!({"n": window.segments().len(), "render": window.render_for_llm()});
            assert_eq!(&got, want, "{vector}");
            states += 1;
        }
    }
    println!("{states} states agree");
    if directory().1 {
        assert_eq!(states, 721);
    }
}

/// The patterns that can match first, in order: the name, and the phrases in slower-whisper and in Weir.
const PATTERNS: [(&str, &[&str], &[&str]); 5] = [
    ("\\b(i['’]?ll|i will)\\s+", &["i'll", "i’ll", "ill", "i will"], &["i'll", "i’ll", "i will"]),
    ("\\bwe('?ll| will)\\s+", &["we'll", "well", "we will"], &["we'll", "we’ll", "we will"]),
    ("\\blet me\\s+", &["let me"], &["let me"]),
    ("\\bwe should\\s+", &["we should"], &["we should"]),
    ("\\bi can\\s+", &["i can"], &["i can"]),
];

/// The pattern that makes a text an action, by trying every position.
fn pattern(text: &str, is_weir: bool) -> Option<&'static str> {
    let text = text.trim().to_lowercase();
    let matches = |phrase: &str| {
        text.match_indices(phrase).any(|(at, _)| {
            let before = text[..at].chars().next_back();
            let after = text[at + phrase.len()..].chars().next();
            !before.is_some_and(|c| c.is_alphanumeric() || c == '_') && after.is_some_and(char::is_whitespace)
        })
    };
    let (name, ..) = PATTERNS.into_iter().find(|(_, slower_whisper, weir)| {
        let phrases = if is_weir { weir } else { slower_whisper };
        phrases.iter().any(|phrase| matches(phrase))
    })?;
    Some(name)
}

#[test]
fn annotations_agree_or_differ_as_documented() {
    let annotator = Annotator::new(&AnnotateConfig::default()).unwrap();
    let (mut equal, mut different) = (0, Vec::new());
    for vector in vectors("keyword_annotator.jsonl") {
        let text = vector["text"].as_str().unwrap();
        let annotation = annotator.annotate(text, &mut Default::default());
        let parts = SemanticParts { keywords: true, intent: false };
        let block = Semantic::new(&annotation, parts, 0, text, Some("spk_0"));
        let mut got = serde_json::to_value(&block).unwrap();
        let mut want = vector["semantic"].clone();
        let slower_whisper = want["actions"][0]["pattern"].as_str().map(str::to_owned);
        assert_eq!(
            slower_whisper.as_deref(),
            pattern(text, false),
            "the model of slower-whisper is wrong about {text:?}"
        );
        let documented = pattern(text, true);
        if slower_whisper.as_deref() == documented {
            equal += 1;
        } else {
            different.push(text.to_owned());
            want["actions"] = match documented {
                Some(pattern) => {
                    json!([{"text": text.trim(), "speaker_id": "spk_0", "segment_ids": [0], "pattern": pattern}])
                }
                None => json!([]),
            };
        }
        // The order of members is not compared.
        got.sort_all_objects();
        want.sort_all_objects();
        assert_eq!(got, want, "{text:?}");
    }
    println!("{equal} agree, {} differ as documented: {different:#?}", different.len());
    if directory().1 {
        assert_eq!((equal, different.len()), (135, 15));
        assert!(different.contains(&"I feel ill today".to_owned()));
    }
}

mod properties {
    use super::*;
    use proptest::prelude::*;

    fn body() -> impl Strategy<Value = String> {
        let line = prop_oneof![
            8 => (0u32..40, 0u32..6, "[a-z' ?]{0,10}", proptest::option::of("[ab]")).prop_map(|(start, length, text, speaker)| {
                let start = f64::from(start) / 4.0;
                json!({"start": start, "end": start + f64::from(length) / 4.0, "text": text, "speaker_id": speaker}).to_string()
            }),
            1 => Just(r#"{"op":"end"}"#.to_owned()),
            1 => Just("{\"start\":".to_owned()),
            1 => Just(String::new()),
            1 => "[a-z{}\":\r]{0,8}",
        ];
        proptest::collection::vec(line, 0..30).prop_map(|lines| lines.join("\n"))
    }

    /// The output for a body that arrives in pieces, with a restart from a checkpoint after some of its lines.
    fn run(pieces: &[&[u8]], crashes: &[usize]) -> Vec<String> {
        let request = SessionRequest::stored();
        let rules = SessionRules::new(request.config.clone()).expect("a valid session");
        let mut session = Session::new(rules.clone(), 0);
        let mut lines = Lines::new(1 << 16);
        let (mut output, mut count) = (Vec::new(), 0);
        let mut take = |line: &Line<'_>| {
            match events_for(&mut session, line.content.expect("a valid session")) {
                Ok(events) => output.extend(events.iter().map(Value::to_string)),
                Err(refusal) => output.push(format!("{}: {}", line.number, refusal.message)),
            }
            if crashes.contains(&count) {
                let bytes = checkpoint::encode(&request, &session.checkpoint(0).expect("a valid session"));
                session =
                    checkpoint::decode(&bytes, |_| Ok((request.clone(), rules.clone())), 0).expect("a valid session").1;
            }
            count += 1;
        };
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(line) = lines.next_line(&mut bytes) {
                take(&line);
            }
        }
        if let Some(line) = lines.last_line() {
            take(&line);
        }
        output
    }

    proptest! {
        #[test]
        fn output_does_not_depend_on_pieces_or_crashes(
            body in body(),
            cuts in proptest::collection::vec(0usize..2000, 0..12),
            crashes in proptest::collection::vec(0usize..30, 0..4),
        ) {
            let bytes = body.as_bytes();
            let mut cuts: Vec<usize> = cuts.into_iter().map(|at| at % (bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for at in cuts.into_iter().chain([bytes.len()]) {
                pieces.push(&bytes[from..at]);
                from = at;
            }
            prop_assert_eq!(run(&pieces, &crashes), run(&[bytes], &[]));
        }
    }
}
