//! The definitions of the demo, driven from JSON to JSON: definition, execution, checkpoint, events, status.

use std::sync::Arc;

use expect_test::expect;
use proptest::prelude::*;
use weir_codec::pipelines::{checkpoint, definition, event, execution, execution_id, text};
use weir_core::{
    pipelines::{
        Definition, Execution, Json, Kind, Limits, Reliability, ReliabilityConfig, RunRequest, Sequenced, StepFailure,
    },
    time::Now,
};
use weir_expression::{Bounds, Expression, Input};

const REVIEW: &str = include_str!("../../../demo/pipelines/review.json");
const ORDER: &str = include_str!("../../../demo/pipelines/order.json");

fn now(ms: u64) -> Now {
    Now { monotonic_ns: ms * 1_000_000, unix_ns: 1_761_129_000_000_000_000 + ms * 1_000_000 }
}

fn json(body: &str) -> Json {
    text::read(body.as_bytes()).expect("JSON")
}

/// A driver of an execution with its stored checkpoint and its channel.
struct Driver {
    execution: Execution,
    saved: Vec<u8>,
    channel: Vec<Sequenced>,
    ms: u64,
}

impl Driver {
    fn new(body: &str, input: &str) -> Self {
        let definition = definition::read(body.as_bytes()).expect("a definition");
        let id = execution_id::from_random([7; 16]);
        let execution = Execution::new(Arc::new(definition), id, json(input), Limits::default(), 3, now(0));
        Self { execution: execution.expect("fits"), saved: Vec::new(), channel: Vec::new(), ms: 0 }
    }

    fn drain(&mut self) -> Vec<RunRequest> {
        self.ms += 1;
        let now = now(self.ms);
        let mut started = Vec::new();
        loop {
            if let Some(checkpoint) = self.execution.poll_checkpoint(now) {
                self.saved = checkpoint::encode(&checkpoint, self.execution.definition());
                self.execution.handle_checkpoint_saved(checkpoint.number);
            } else if let Some(batch) = self.execution.poll_events(now) {
                self.channel.extend(batch.events);
                self.execution.handle_stored(self.channel.len() as u64);
            } else if let Some(request) = self.execution.poll_start(now) {
                started.push(request);
            } else {
                return started;
            }
        }
    }

    /// The input of a step: the value of its expression, or the default input.
    fn input(&self, request: &RunRequest) -> Json {
        let task = self.execution.definition().task(request.run.place).expect("a task");
        match &task.input {
            None => request.inputs.default_json(),
            Some(text) => evaluate(text, &request.inputs),
        }
    }

    fn finish(&mut self, request: &RunRequest, output: &Json) -> Vec<RunRequest> {
        self.execution.handle_finished(now(self.ms), request.run, output.clone());
        self.drain()
    }

    fn crash(&mut self) {
        let (definition, checkpoint) = checkpoint::decode(&self.saved).expect("a checkpoint");
        assert_eq!(&definition, &**self.execution.definition());
        let stored = self.channel.len() as u64;
        let resumed =
            Execution::resume(Arc::new(definition), checkpoint, stored, Limits::default(), 4, now(self.ms + 100));
        self.execution = resumed.expect("it fits");
    }

    fn status(&self) -> String {
        execution::status_json(&self.execution.status(now(self.ms).monotonic_ns))
    }

    fn lines(&self) -> String {
        self.channel.iter().map(|s| format!("{}\n", event::to_json(self.execution.id(), &s.event))).collect()
    }
}

fn evaluate<'a>(text: &str, input: impl Into<Input<'a>>) -> Json {
    Expression::parse(text).expect("an expression").evaluate(input, Bounds::default()).expect("a value")
}

fn id(definition: &Definition, request: &RunRequest) -> String {
    definition.task(request.run.place).expect("a task").id.to_string()
}

#[test]
fn pipeline_from_text_to_report_completes() {
    let mut driver = Driver::new(REVIEW, r#"{"text": "It was fine."}"#);
    let definition = driver.execution.definition().clone();
    let started = driver.drain();
    let ids: Vec<String> = started.iter().map(|request| id(&definition, request)).collect();
    assert_eq!(ids, ["chunk", "summary", "entities"]);
    assert_eq!(driver.input(&started[1]), json(r#"{"text":"It was fine."}"#));
    let sentiment = driver.finish(&started[0], &json(r#"{"chunks":["It was fine."]}"#)).remove(0);
    assert_eq!(driver.input(&sentiment), json(r#"{"chunks":["It was fine."]}"#));
    driver.execution.handle_failed(now(5), started[1].run, StepFailure::last("too_short", "too short"));
    driver.finish(&started[2], &json(r#"{"entities":[{"text":"Ann"}]}"#));
    let output = r#"{"overall_sentiment":"POSITIVE","chunk_sentiments":[{"chunk":1}],"positive_chunks":1}"#;
    let report = driver.finish(&sentiment, &json(output)).remove(0);
    let Kind::Map { expression } = &definition.task(report.run.place).expect("a task").kind else { panic!("a map") };
    let output = evaluate(expression, &driver.input(&report));
    expect![[r#"{"in_short":"too short to sum up","names":["Ann"],"share_positive":1,"verdict":"POSITIVE"}"#]]
        .assert_eq(output.as_str());
    driver.finish(&report, &output);
    expect![[r#"{"execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","pipeline":"review","state":"completed","started_at":"2025-10-22T10:30:00.000Z","duration_ms":4,"events":17,"resumed":0,"steps":[{"id":"chunk","state":"completed","attempts":1,"kind":"chunk","after":[],"started_at":"2025-10-22T10:30:00.001Z","duration_ms":0,"progress":1.0},{"id":"sentiment","state":"completed","attempts":1,"kind":"sentiment","after":["chunk"],"started_at":"2025-10-22T10:30:00.002Z","duration_ms":1,"progress":1.0},{"id":"summary","state":"failed","attempts":1,"kind":"summary","after":[],"started_at":"2025-10-22T10:30:00.001Z","duration_ms":4,"progress":null,"error":"too short","code":"too_short","retryable":false},{"id":"entities","state":"completed","attempts":1,"kind":"entities","after":[],"started_at":"2025-10-22T10:30:00.001Z","duration_ms":1,"progress":1.0},{"id":"report","state":"completed","attempts":1,"kind":"map","after":["sentiment","summary","entities"],"started_at":"2025-10-22T10:30:00.004Z","duration_ms":0,"progress":1.0}],"output":{"in_short":"too short to sum up","names":["Ann"],"share_positive":1,"verdict":"POSITIVE"},"failure":null,"links":{"self":"/executions/exec_BwcHBwcHBwcHBwcHBwcHBw","events":"/stream/pipeline/exec_BwcHBwcHBwcHBwcHBwcHBw","websocket":"/ws/pipeline/exec_BwcHBwcHBwcHBwcHBwcHBw"}}"#]].assert_eq(&driver.status());
    let mut reliability = Reliability::new(ReliabilityConfig::default());
    driver.channel.iter().for_each(|sequenced| reliability.handle_event(0, &sequenced.event));
    expect![[r#"{"total":{"sr":1.0,"cr":0.0,"tcl_ms":1.0,"wct_ms":4.0,"executions_completed":1,"executions_failed":0,"executions_cancelled":0,"steps_completed":4,"steps_failed":1,"retries":0,"compensations":0,"tool_calls":2},"window":{"seconds":300,"sr":1.0,"cr":0.0,"tcl_ms":1.0,"wct_ms":4.0,"executions_completed":1,"executions_failed":0,"executions_cancelled":0,"steps_completed":4,"steps_failed":1,"retries":0,"compensations":0,"tool_calls":2}}"#]].assert_eq(&execution::reliability_json(&reliability.snapshot(0)));
}

#[test]
fn killed_execution_is_resumed_and_compensated() {
    let mut driver =
        Driver::new(ORDER, r#"{"customer": "c1", "items": [{"price": 2, "note": "nice"}, {"price": 3.5}]}"#);
    let definition = driver.execution.definition().clone();
    let read = driver.drain().remove(0);
    let Kind::Map { expression } = &definition.task(read.run.place).expect("a task").kind else { panic!("a map") };
    let output = evaluate(expression, &driver.input(&read));
    assert_eq!(output, json(r#"{"customer":"c1","texts":["nice"],"total":5.5}"#));
    let both = driver.finish(&read, &output);
    assert_eq!(driver.input(&both[1]), json(r#""nice""#));
    let Kind::Http { body: Some(body), .. } = &definition.task(both[0].run.place).expect("a task").kind else {
        panic!("a call with a body")
    };
    assert_eq!(evaluate(body, &driver.input(&both[0])), json(r#"{"customer":"c1","items":1}"#));
    driver.finish(&both[0], &json(r#"{"id":"r-9"}"#));
    driver.crash();
    // Completed steps are not repeated; steps that were running are.
    let again = driver.drain();
    assert_eq!(again.iter().map(|request| id(&definition, request)).collect::<Vec<_>>(), ["mood"]);
    let score = driver.finish(&again[0], &json("null")).remove(0);
    driver.execution.handle_failed(now(driver.ms), score.run, StepFailure::last("trapped", "the component trapped"));
    let release = driver.drain().remove(0);
    assert_eq!(driver.input(&release), json(r#"{"reservation":"r-9"}"#));
    driver.crash();
    let release = driver.drain().remove(0);
    driver.finish(&release, &json("{}"));
    assert!(driver.execution.is_drained());
    expect![[r#"
        {"event_type":"pipeline_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.000Z","data":{"name":"order","steps":4},"metadata":null}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.001Z","data":{"checkpoint":1,"steps_completed":0},"metadata":null}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"read","timestamp":"2025-10-22T10:30:00.001Z","data":{"kind":"map"},"metadata":{"attempt":1,"run":1}}
        {"event_type":"step_complete","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"read","timestamp":"2025-10-22T10:30:00.001Z","data":{"kind":"map","output":{"customer":"c1","texts":["nice"],"total":5.5},"duration_ms":0},"metadata":{"attempt":1,"run":1}}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.002Z","data":{"checkpoint":2,"steps_completed":1},"metadata":null}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"reserve","timestamp":"2025-10-22T10:30:00.002Z","data":{"kind":"http"},"metadata":{"attempt":1,"run":2}}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"mood","timestamp":"2025-10-22T10:30:00.002Z","data":{"kind":"sentiment"},"metadata":{"attempt":1,"run":3}}
        {"event_type":"step_complete","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"reserve","timestamp":"2025-10-22T10:30:00.002Z","data":{"kind":"http","output":{"id":"r-9"},"duration_ms":0},"metadata":{"attempt":1,"run":2}}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.003Z","data":{"checkpoint":3,"steps_completed":2},"metadata":null}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.004Z","data":{"checkpoint":4,"steps_completed":2},"metadata":{"resumed":1}}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"mood","timestamp":"2025-10-22T10:30:00.004Z","data":{"kind":"sentiment"},"metadata":{"attempt":1,"run":10,"resumed":1}}
        {"event_type":"step_complete","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"mood","timestamp":"2025-10-22T10:30:00.004Z","data":{"kind":"sentiment","output":null,"duration_ms":0},"metadata":{"attempt":1,"run":10,"resumed":1}}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.005Z","data":{"checkpoint":5,"steps_completed":3},"metadata":{"resumed":1}}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"score","timestamp":"2025-10-22T10:30:00.005Z","data":{"kind":"component"},"metadata":{"attempt":1,"run":11,"resumed":1}}
        {"event_type":"step_error","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"score","timestamp":"2025-10-22T10:30:00.005Z","data":{"kind":"component","error":"the component trapped","code":"trapped","retryable":false,"retry_in_ms":null,"duration_ms":0},"metadata":{"attempt":1,"run":11,"resumed":1}}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.006Z","data":{"checkpoint":6,"steps_completed":3},"metadata":{"resumed":1}}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"release","timestamp":"2025-10-22T10:30:00.006Z","data":{"kind":"http"},"metadata":{"attempt":1,"run":12,"resumed":1,"compensates":"reserve"}}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.007Z","data":{"checkpoint":7,"steps_completed":3},"metadata":{"resumed":2}}
        {"event_type":"step_start","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"release","timestamp":"2025-10-22T10:30:00.007Z","data":{"kind":"http"},"metadata":{"attempt":1,"run":18,"resumed":2,"compensates":"reserve"}}
        {"event_type":"step_complete","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":"release","timestamp":"2025-10-22T10:30:00.007Z","data":{"kind":"http","output":{},"duration_ms":0},"metadata":{"attempt":1,"run":18,"resumed":2,"compensates":"reserve"}}
        {"event_type":"checkpoint_saved","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.007Z","data":{"checkpoint":8,"steps_completed":3},"metadata":{"resumed":2}}
        {"event_type":"pipeline_error","execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","step_id":null,"timestamp":"2025-10-22T10:30:00.007Z","data":{"error":"the component trapped","code":"trapped","retryable":false,"failed_step":"score","cancelled":false,"compensated":1,"compensations_failed":0,"duration_ms":203},"metadata":{"resumed":2}}
    "#]].assert_eq(&driver.lines());
    expect![[r#"{"execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","pipeline":"order","state":"failed","started_at":"2025-10-22T10:30:00.000Z","duration_ms":203,"events":22,"resumed":2,"steps":[{"id":"read","state":"completed","attempts":0,"kind":"map","after":[],"started_at":"2025-10-22T10:30:00.001Z","duration_ms":0,"progress":1.0},{"id":"reserve","state":"completed","attempts":0,"kind":"http","after":["read"],"started_at":"2025-10-22T10:30:00.002Z","duration_ms":0,"progress":1.0},{"id":"mood","state":"completed","attempts":0,"kind":"sentiment","after":["read"],"started_at":"2025-10-22T10:30:00.004Z","duration_ms":0,"progress":1.0},{"id":"score","state":"failed","attempts":0,"kind":"component","after":["reserve","mood"],"started_at":"2025-10-22T10:30:00.005Z","duration_ms":0,"progress":null,"error":"the component trapped","code":"trapped","retryable":false}],"output":null,"failure":{"error":"the component trapped","code":"trapped","retryable":false,"failed_step":"score","cancelled":false,"compensated":1,"compensations_failed":0},"links":{"self":"/executions/exec_BwcHBwcHBwcHBwcHBwcHBw","events":"/stream/pipeline/exec_BwcHBwcHBwcHBwcHBwcHBw","websocket":"/ws/pipeline/exec_BwcHBwcHBwcHBwcHBwcHBw"}}"#]].assert_eq(&driver.status());
    expect![[r#"{"execution_id":"exec_BwcHBwcHBwcHBwcHBwcHBw","pipeline":"order","state":"running","links":{"self":"/executions/exec_BwcHBwcHBwcHBwcHBwcHBw","events":"/stream/pipeline/exec_BwcHBwcHBwcHBwcHBwcHBw","websocket":"/ws/pipeline/exec_BwcHBwcHBwcHBwcHBwcHBw"}}"#]].assert_eq(&execution::accepted_json(driver.execution.id(), "order"));
    // The last checkpoint reads back, too.
    let (definition, decoded) = checkpoint::decode(&driver.saved).expect("a checkpoint");
    assert_eq!(checkpoint::encode(&decoded, &definition), driver.saved);
}

#[test]
fn definition_written_as_json_reads_back() {
    for body in [REVIEW, ORDER] {
        let once = definition::read(body.as_bytes()).expect("a definition");
        let written = definition::to_json(&once);
        assert_eq!(definition::read(written.as_bytes()).expect("a definition"), once);
        assert!(!written.contains('\n'));
    }
}

#[test]
fn errors_of_a_definition_name_their_paths() {
    let check = |body: &str, want: expect_test::Expect| {
        let error = definition::read(body.as_bytes()).expect_err("mistakes");
        want.assert_eq(&error.to_string().replace("; ", "\n"));
    };
    check(
        "{}",
        expect![[r#"
        `name` is required
        `steps` is required"#]],
    );
    check(
        r#"{"name":1,"step":[],"streaming":{"enabled":"yes","buffer_size":0,"x":1},"parallel_max":1.5,"steps":[
            {"id":"a","kind":"chunk","chunk_size":"x","size":1},
            {"kind":"nope","after":"a","on_error":"panic","timeout_ms":-1},
            {"id":"h","kind":"http","url":"ftp://x","method":"get","headers":{"Host":"x","a b":"1","k":"a\nb","n":1},"body":"a.."},
            {"id":"m","kind":"map"},
            {"id":"c","kind":"component","path":"","memory_bytes_max":1,"retry":{"policy":"never","max":2},
             "compensation":[{"id":"u","kind":"map","expression":"(","after":[]}]},
            7
        ]}"#,
        expect![[r#"
            `name` must be a string, and is an integer
            `streaming.enabled` must be a boolean, and is a string
            `streaming.buffer_size` must be 1 to 100000, and is 0
            `streaming.x` is not known here
            there are enabled, emit_progress, buffer_size, flush_interval_ms
            `parallel_max` must be an integer, and is a number
            `steps[0].chunk_size` must be an integer, and is a string
            `steps[0].size` is not known here
            there are id, kind, input, timeout_ms, retry, chunk_size, after, on_error, compensation
            `steps[1].id` is required
            `steps[1].kind` must be one of chunk, sentiment, entities, summary, embed, annotate, generate, http, map, component
            `steps[1].timeout_ms` must be 1 to 86400000, and is -1
            `steps[1].after` must be an array, and is a string
            `steps[1].on_error` must be one of fail, continue, compensate
            `steps[2].method` must be one of GET, POST, PUT, PATCH, DELETE (did you mean `GET`?)
            `steps[2].headers.Host` is set by the HTTP client
            `steps[2].headers.a b` is no name of a header
            `steps[2].headers.k` is no value of a header
            `steps[2].headers.n` must be a string, and is an integer
            `steps[2].body` is no expression: an unexpected `.` at byte 3
            `steps[2].url` must be an http or https URL without spaces, user or fragment
            `steps[3].expression` is required
            `steps[4].retry.policy` must be one of no_retry, fixed_delay, exponential_jitter, exponential_decorrelated
            `steps[4].retry.max` is not known here
            there are max_attempts, base_backoff_ms, backoff_ms_max, policy
            `steps[4].memory_bytes_max` must be 65536 to 4294967296, and is 1
            `steps[4].path` must be the path of a component
            `steps[4].compensation[0].expression` is no expression: an unexpected end at byte 2
            `steps[4].compensation[0].after` is not known here
            there are id, kind, input, timeout_ms, retry, expression
            `steps[5]` must be an object, and is an integer
            `step` is not known here (did you mean `steps`?)
            there are name, streaming, parallel_max, steps"#]],
    );
    check(
        r#"{"name":"a/b","steps":[{"id":"a","kind":"annotate","after":["b"]},{"id":"b","kind":"annotate"},
            {"id":"b","kind":"annotate","after":["x","a","a"]}]}"#,
        expect![[r#"
            `name`: the name must be 1 to 64 of A-Z, a-z, 0-9, _, - and ., and is `a/b`
            `steps[2].id`: the id `b` is taken
            `steps[2].after[0]`: there is no step `x`
            `steps[2].after[2]`: the step `a` is named twice"#]],
    );
    check(
        r#"{"name":"p","steps":[{"id":"a","kind":"annotate","after":["b"]},{"id":"b","kind":"annotate"}]}"#,
        expect!["`steps[0].after`: steps wait for each other: a after b after a"],
    );
    check(r#"{"name":"p","name":"q"}"#, expect!["the key `name` appears twice, the second time at line 1, column 18"]);
    let many = format!(r#"{{"name":"p","steps":[{}{{}}]}}"#, r#"{"id":"a","kind":"annotate"},"#.repeat(64));
    check(&many, expect!["`steps` must have a number of items of 0 to 64, and is 65"]);
}

/// The bytes of a checkpoint with random changes.
fn damaged() -> impl Strategy<Value = Vec<u8>> {
    let mut driver = Driver::new(ORDER, r#"{"customer": "c1", "items": []}"#);
    let read = driver.drain().remove(0);
    driver.finish(&read, &json(r#"{"customer":"c1","texts":[]}"#));
    let saved = driver.saved;
    let changes = prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 0u8..3), 1..6);
    changes.prop_map(move |changes| {
        let mut bytes = saved.clone();
        for (index, byte, how) in changes {
            let at = index.index(bytes.len());
            match how {
                0 => bytes[at] = byte,
                1 => bytes[at] = b'0' + byte % 10,
                _ => bytes.truncate(at.max(1)),
            }
        }
        bytes
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn arbitrary_bytes_give_an_error_or_an_execution(bytes in damaged(), stored in 0u64..10) {
        let Ok((definition, checkpoint)) = checkpoint::decode(&bytes) else { return Ok(()) };
        let resumed = Execution::resume(Arc::new(definition), checkpoint, stored, Limits::default(), 1, now(9));
        let Ok(mut execution) = resumed else { return Ok(()) };
        for ms in 9..60 {
            if let Some(checkpoint) = execution.poll_checkpoint(now(ms)) {
                let bytes = checkpoint::encode(&checkpoint, execution.definition());
                let (_, decoded) = checkpoint::decode(&bytes).expect("an encoded checkpoint decodes");
                prop_assert_eq!(&decoded, &checkpoint);
                execution.handle_checkpoint_saved(checkpoint.number);
            }
            if let Some(batch) = execution.poll_events(now(ms)) {
                execution.handle_stored(batch.events.last().map_or(0, |event| event.seq));
            }
            while let Some(request) = execution.poll_start(now(ms)) {
                execution.handle_finished(now(ms), request.run, json("{}"));
            }
        }
    }

    #[test]
    fn arbitrary_checkpoint_gives_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        prop_assert!(checkpoint::decode(&bytes).is_err());
        prop_assert!(definition::read(&bytes).is_err());
    }
}
