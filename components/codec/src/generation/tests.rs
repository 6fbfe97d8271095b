//! The requirements of the clients of each API, one test for each.

use expect_test::{Expect, expect};
use serde_json::{Value, json};

use super::{
    ApiRequest, chat, completions,
    dialect::{Dialect, DialectKind, StreamFraming},
    event::{Alternative, Done, Failed, Finish, GenerationEvent, Started, Token, TokenLogprob, ToolDelta, Usage},
    gemini,
    generated::Generated,
    messages,
    render::GenerationStream,
    request::{Format, Prompt},
    responses, ui, weir,
};
use crate::{http::problem::Problem, json::field::RequestError};

const ALL: [DialectKind; 7] = [
    DialectKind::Weir,
    DialectKind::Chat,
    DialectKind::Completions,
    DialectKind::Responses,
    DialectKind::Messages,
    DialectKind::Gemini,
    DialectKind::Ui,
];

fn started(dialect: Dialect, choices: u32) -> GenerationEvent {
    GenerationEvent::Started(Started {
        generation_id: "g1".to_owned(),
        model: "m".to_owned(),
        created: 7,
        prompt_tokens: 5,
        cached_tokens: 2,
        seed: 9,
        choices,
        dialect,
    })
}

fn token(index: u32, text: &str) -> GenerationEvent {
    GenerationEvent::Token(Token { index, text: text.to_owned(), tokens: Vec::new() })
}

fn done(index: u32, finish_reason: Finish, is_last: bool) -> GenerationEvent {
    let usage = is_last.then_some(Usage { prompt_tokens: 5, cached_tokens: 2, completion_tokens: 3 });
    GenerationEvent::Done(Done { index, finish_reason, stop: None, usage })
}

fn failed(code: &str, status: u16) -> GenerationEvent {
    GenerationEvent::Error(Failed { code: code.to_owned(), message: "it broke".to_owned(), status, retryable: true })
}

fn call(id: Option<&str>, arguments: &str) -> GenerationEvent {
    GenerationEvent::ToolCall(ToolDelta {
        index: 0,
        call: 0,
        id: id.map(str::to_owned),
        name: id.map(|_| "weather".to_owned()),
        arguments: arguments.to_owned(),
    })
}

fn stream_after(dialect: &Dialect, framing: StreamFraming, after: Option<u64>, events: &[GenerationEvent]) -> String {
    let mut stream = GenerationStream::new(dialect, framing, after);
    let mut out = Vec::new();
    for (at, event) in events.iter().enumerate() {
        // Encoded and decoded, as when it is read from a channel.
        let event = GenerationEvent::from_json(&event.to_json()).expect("an event");
        stream.push(&format!("1-{}", at + 1), &event, &mut out);
    }
    String::from_utf8(out).expect("UTF-8")
}

fn stream(dialect: &Dialect, events: &[GenerationEvent]) -> String {
    stream_after(dialect, StreamFraming::Sse, None, events)
}

/// The JSON of the frames.
fn frames(stream: &str) -> Vec<Value> {
    let data = stream.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).expect(data)).collect()
}

fn whole(kind: DialectKind, events: &[GenerationEvent]) -> Value {
    let mut generated = Generated::default();
    events.iter().for_each(|event| generated.push(event));
    serde_json::from_slice(&kind.whole_json(&generated)).expect("JSON")
}

fn plain(kind: DialectKind) -> Dialect {
    Dialect::new(kind)
}

fn two_words(kind: DialectKind) -> Vec<GenerationEvent> {
    vec![started(plain(kind), 1), token(0, "Hel"), token(0, "lo"), done(0, Finish::Stop, true)]
}

fn check(kind: DialectKind, want: Expect) {
    want.assert_eq(&stream(&plain(kind), &two_words(kind)));
}

#[test]
fn chat_stream_has_the_chunks_of_openai() {
    check(
        DialectKind::Chat,
        expect![[r#"
            id: 0
            data: {"id":"chatcmpl-g1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"delta":{"content":"","role":"assistant"},"finish_reason":null,"index":0,"logprobs":null}]}

            id: 1
            data: {"id":"chatcmpl-g1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"delta":{"content":"Hel"},"finish_reason":null,"index":0,"logprobs":null}]}

            id: 2
            data: {"id":"chatcmpl-g1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"delta":{"content":"lo"},"finish_reason":null,"index":0,"logprobs":null}]}

            id: 3
            data: {"id":"chatcmpl-g1","object":"chat.completion.chunk","created":7,"model":"m","choices":[{"delta":{},"finish_reason":"stop","index":0,"logprobs":null}]}

            id: 4
            data: [DONE]

        "#]],
    );
}

#[test]
fn message_stream_has_the_events_of_anthropic() {
    let text = stream(&plain(DialectKind::Messages), &two_words(DialectKind::Messages));
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    let want = [
        "message_start",
        "ping",
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
        "content_block_stop",
        "message_delta",
        "message_stop",
    ];
    assert_eq!(names, want);
    let frames = frames(&text);
    assert_eq!(frames[0]["message"]["usage"]["input_tokens"], 3);
    assert_eq!(frames[0]["message"]["usage"]["cache_read_input_tokens"], 2);
    assert_eq!(frames[6]["delta"], json!({ "stop_reason": "end_turn", "stop_sequence": null }));
    assert_eq!(frames[6]["usage"]["output_tokens"], 3);
}

#[test]
fn responses_stream_numbers_every_event_and_ends_with_the_whole_response() {
    let text = stream(&plain(DialectKind::Responses), &two_words(DialectKind::Responses));
    let frames = frames(&text);
    let kinds: Vec<&str> = frames.iter().filter_map(|frame| frame["type"].as_str()).collect();
    let want = [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ];
    assert_eq!(kinds, want);
    for (number, frame) in frames.iter().enumerate() {
        assert_eq!(frame["sequence_number"], number);
    }
    let last = &frames[9]["response"];
    assert_eq!((&last["status"], &last["output"][0]["content"][0]["text"]), (&json!("completed"), &json!("Hello")));
    assert_eq!(last["usage"]["total_tokens"], 8);
    assert_eq!(last, &whole(DialectKind::Responses, &two_words(DialectKind::Responses)));
}

#[test]
fn ui_stream_has_the_parts_of_the_ai_sdk() {
    let text = stream(&plain(DialectKind::Ui), &two_words(DialectKind::Ui));
    let frames = frames(&text);
    let kinds: Vec<&str> = frames.iter().filter_map(|frame| frame["type"].as_str()).collect();
    let want = ["start", "start-step", "text-start", "text-delta", "text-delta", "text-end", "finish-step", "finish"];
    assert_eq!(kinds, want);
    assert!(text.ends_with("data: [DONE]\n\n"));
}

#[test]
fn weir_stream_is_texts_lines_or_events_with_the_ids_of_the_channel() {
    let events = two_words(DialectKind::Weir);
    let dialect = plain(DialectKind::Weir);
    assert_eq!(stream_after(&dialect, StreamFraming::Text, None, &events), "Hello");
    let lines = stream_after(&dialect, StreamFraming::Ndjson, None, &events);
    let kinds: Vec<String> = lines
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON")["type"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["started", "token", "token", "done"]);
    let text = stream(&dialect, &events);
    assert!(
        text.contains("id: 1-2\nevent: token\ndata: {\"type\":\"token\",\"index\":0,\"text\":\"Hel\"}\n\n"),
        "{text}"
    );
    for (accept, want) in [
        (None, Some(StreamFraming::Text)),
        (Some("*/*"), Some(StreamFraming::Text)),
        (Some("text/event-stream"), Some(StreamFraming::Sse)),
        (Some("application/x-ndjson"), Some(StreamFraming::Ndjson)),
        (Some("image/png"), None),
    ] {
        assert_eq!(weir::framing(accept), want, "{accept:?}");
    }
}

/// Requirement 3: one last chunk without choices, and never otherwise.
#[test]
fn usage_is_one_last_chunk_if_it_is_requested() {
    for kind in [DialectKind::Chat, DialectKind::Completions] {
        let without = frames(&stream(&plain(kind), &two_words(kind)));
        assert!(without.iter().all(|chunk| chunk.get("usage").is_none()), "{without:?}");
        assert!(without.iter().all(|chunk| chunk["choices"].as_array().is_some_and(|all| all.len() == 1)));
        let dialect = Dialect { include_usage: true, ..plain(kind) };
        let with = frames(&stream(&dialect, &two_words(kind)));
        let (last, others) = with.split_last().expect("chunks");
        assert_eq!(last["choices"], json!([]));
        assert_eq!(last["usage"]["total_tokens"], 8);
        assert_eq!(last["usage"]["prompt_tokens_details"]["cached_tokens"], 2);
        assert!(others.iter().all(|chunk| chunk["usage"].is_null() && chunk["choices"].as_array().unwrap().len() == 1));
    }
}

/// Requirement 5: a failure after the first token is an error in the form of the API, and the end of the stream.
#[test]
fn error_within_a_stream_has_the_form_of_its_api_and_is_the_end() {
    for kind in ALL {
        let events = [started(plain(kind), 1), token(0, "a"), failed("engine_failed", 502)];
        let text = stream(&plain(kind), &events);
        let frames = frames(&text);
        let last = frames.last().expect("a frame");
        match kind {
            DialectKind::Chat | DialectKind::Completions => {
                let error =
                    json!({ "message": "it broke", "type": "server_error", "param": null, "code": "engine_failed" });
                assert_eq!(last, &json!({ "error": error }));
                assert!(!text.contains("[DONE]") && !text.contains("\"stop\""));
            }
            DialectKind::Responses => {
                assert_eq!(frames[frames.len() - 2]["type"], "error");
                assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
            }
            DialectKind::Messages => {
                assert_eq!(last["error"], json!({ "type": "api_error", "message": "it broke" }));
                assert!(text.contains("event: error\n"));
            }
            DialectKind::Gemini => assert_eq!(last["error"]["code"], 502),
            DialectKind::Ui => assert_eq!(last, &json!({ "type": "error", "errorText": "it broke" })),
            DialectKind::Weir => assert_eq!(last["code"], "engine_failed"),
        }
    }
}

/// Requirement 6: each choice has one finish reason; a cancelled generation has none.
#[test]
fn choice_has_one_finish_reason_and_a_cancelled_one_has_none() {
    for (finish, want) in [
        (Finish::Stop, "stop"),
        (Finish::Length, "length"),
        (Finish::ToolCalls, "tool_calls"),
        (Finish::Filtered, "content_filter"),
    ] {
        let events = [started(plain(DialectKind::Chat), 2), done(1, finish, false), done(0, finish, true)];
        let frames = frames(&stream(&plain(DialectKind::Chat), &events));
        let reasons: Vec<_> = frames
            .iter()
            .filter(|chunk| chunk["choices"][0]["finish_reason"].is_string())
            .map(|chunk| (chunk["choices"][0]["index"].clone(), chunk["choices"][0]["finish_reason"].clone()))
            .collect();
        assert_eq!(reasons, [(json!(1), json!(want)), (json!(0), json!(want))]);
    }
    for kind in ALL {
        let text = stream(&plain(kind), &[started(plain(kind), 1), token(0, "a"), failed("cancelled", 499)]);
        for name in ["\"finish_reason\":\"", "\"finishReason\":\"", "\"stop_reason\":\"", "response.completed"] {
            assert!(!text.contains(name), "{kind:?} {name}: {text}");
        }
    }
}

/// Requirement 7: comments for clients that ignore them, nothing for Gemini's clients, a ping for Anthropic's.
#[test]
fn keep_alive_has_the_form_that_the_clients_of_the_api_accept() {
    let keep_alive = |kind, framing| GenerationStream::new(&plain(kind), framing, None).keep_alive();
    assert_eq!(keep_alive(DialectKind::Chat, StreamFraming::Sse), Some(b":\n\n".as_slice()));
    assert!(keep_alive(DialectKind::Messages, StreamFraming::Sse).is_some_and(|text| text.starts_with(b"event: ping")));
    assert_eq!(keep_alive(DialectKind::Gemini, StreamFraming::Sse), None);
    assert_eq!(keep_alive(DialectKind::Weir, StreamFraming::Text), None);
    let text = stream(&plain(DialectKind::Gemini), &two_words(DialectKind::Gemini));
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with("data: {")), "{text}");
}

/// Requirement 8: the error has both token counts, and the code that clients compare.
#[test]
fn prompt_that_is_too_long_is_400_with_both_counts() {
    let failure = weir_core::failure::Failure::TooLong { tokens: 3000, tokens_max: 2048 };
    let problem = Problem::item(&failure);
    for kind in ALL {
        let (status, body) = kind.error_json(&problem);
        let body = String::from_utf8(body).expect("UTF-8");
        assert!(body.contains("3000") && body.contains("2048"), "{body}");
        match kind {
            DialectKind::Weir | DialectKind::Ui => assert_eq!(status, 422),
            _ => assert_eq!(status, 400, "{kind:?}"),
        }
        if kind == DialectKind::Chat {
            assert!(body.contains("\"code\":\"context_length_exceeded\""), "{body}");
        }
    }
}

fn messages_of(request: &ApiRequest) -> Value {
    match &request.request.prompt {
        super::request::Prompt::Chat { messages, .. } => serde_json::from_str(messages).expect("JSON"),
        other => panic!("{other:?}"),
    }
}

fn chat_of(body: Value) -> Result<ApiRequest, RequestError> {
    chat::read(body.to_string().as_bytes())
}

/// Requirement 9: an invalid role is named in the error; text parts are joined; `developer` is `system`.
#[test]
fn roles_and_contents_are_normalized_and_a_wrong_role_is_named() {
    let request = chat_of(json!({ "messages": [
        { "role": "developer", "content": "a" },
        { "role": "user", "content": [{ "type": "text", "text": "b" }, { "type": "text", "text": "c" }] },
    ] }));
    let want = json!([{ "role": "system", "content": "a" }, { "role": "user", "content": "bc" }]);
    assert_eq!(messages_of(&request.expect("a request")), want);
    let error = chat_of(json!({ "messages": [{ "role": "robot", "content": "a" }] })).unwrap_err();
    assert!(error.to_string().contains("messages[0].role") && error.to_string().contains("robot"), "{error}");
    let image = json!({ "type": "image_url", "image_url": { "url": "x" } });
    let error = chat_of(json!({ "messages": [{ "role": "user", "content": [image] }] })).unwrap_err();
    assert!(error.to_string().contains("image_url"), "{error}");
}

/// Requirement 10: every delta has the index; only the first has the id and the name.
#[test]
fn tool_call_is_sent_in_deltas_with_its_id_and_name_once() {
    let calls = |kind| {
        [
            started(plain(kind), 1),
            call(Some("c1"), ""),
            call(None, "{\"city\":"),
            call(None, "\"Bern\"}"),
            done(0, Finish::ToolCalls, true),
        ]
    };
    let kind = DialectKind::Chat;
    let chunks = frames(&stream(&plain(kind), &calls(kind)));
    let deltas: Vec<&Value> =
        chunks.iter().filter_map(|chunk| chunk.pointer("/choices/0/delta/tool_calls/0")).collect();
    assert_eq!(deltas.len(), 3);
    assert!(deltas.iter().all(|delta| delta["index"] == 0));
    assert_eq!((&deltas[0]["id"], &deltas[0]["function"]["name"]), (&json!("c1"), &json!("weather")));
    assert!(deltas[1..].iter().all(|delta| delta.get("id").is_none() && delta["function"].get("name").is_none()));
    let arguments: String = deltas.iter().filter_map(|delta| delta["function"]["arguments"].as_str()).collect();
    assert_eq!(arguments, r#"{"city":"Bern"}"#);
    let answer = whole(kind, &calls(kind));
    assert_eq!(answer["choices"][0]["message"]["content"], Value::Null);
    assert_eq!(answer["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"], r#"{"city":"Bern"}"#);
    assert_eq!(answer["choices"][0]["finish_reason"], "tool_calls");

    let kind = DialectKind::Messages;
    let blocks = frames(&stream(&plain(kind), &calls(kind)));
    assert_eq!(blocks[2]["content_block"], json!({ "type": "tool_use", "id": "c1", "name": "weather", "input": {} }));
    assert_eq!(blocks[3]["delta"], json!({ "type": "input_json_delta", "partial_json": "{\"city\":" }));
    assert_eq!(whole(kind, &calls(kind))["content"][0]["input"], json!({ "city": "Bern" }));
    let kind = DialectKind::Gemini;
    let chunks = frames(&stream(&plain(kind), &calls(kind)));
    let part = &chunks[0]["candidates"][0]["content"]["parts"][0];
    assert_eq!(part["functionCall"], json!({ "id": "c1", "name": "weather", "args": { "city": "Bern" } }));
    let kind = DialectKind::Responses;
    let events = frames(&stream(&plain(kind), &calls(kind)));
    let item = events.iter().rfind(|event| event["type"] == "response.output_item.done").expect("an item");
    assert_eq!((&item["item"]["call_id"], &item["item"]["arguments"]), (&json!("c1"), &json!(r#"{"city":"Bern"}"#)));
}

/// Requirement 11: an unknown format is refused.
#[test]
fn unknown_format_is_refused() {
    let format_of = |extra: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "a" }] });
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        chat_of(body).map(|request| request.request.format)
    };
    let schema = json!({ "type": "object" });
    for (extra, want) in [
        (json!({}), None),
        (json!({ "response_format": null }), None),
        (json!({ "response_format": { "type": "text" } }), None),
        (json!({ "response_format": { "type": "json_object" } }), Some(Format::Json)),
        (
            json!({ "response_format": { "type": "json_schema", "json_schema": { "name": "x", "schema": schema } } }),
            Some(Format::JsonSchema(schema.to_string())),
        ),
        (json!({ "guided_json": schema }), Some(Format::JsonSchema(schema.to_string()))),
        (json!({ "guided_regex": "a+" }), Some(Format::Regex("a+".to_owned()))),
    ] {
        assert_eq!(format_of(extra.clone()), Ok(want), "{extra}");
    }
    for extra in [
        json!({ "response_format": { "type": "xml" } }),
        json!({ "response_format": { "type": "json_schema" } }),
        json!({ "response_format": "json" }),
        json!({ "grammar": "root ::= \"a\"" }),
        json!({ "guided_choice": ["a"] }),
    ] {
        assert!(format_of(extra.clone()).is_err(), "{extra}");
    }
}

/// Requirement 12: each token has its bytes, is aligned with the text, and has a finite log probability.
#[test]
fn logprobs_are_aligned_with_the_tokens_of_a_stream_and_finite() {
    let logprob = |bytes: &[u8], logprob| TokenLogprob {
        id: 1,
        bytes: bytes.to_vec(),
        logprob,
        top: vec![Alternative { id: 2, bytes: b"x".to_vec(), logprob: -2.0 }],
    };
    // The first token is half of a character: it has a delta without text.
    let first = Token { index: 0, text: String::new(), tokens: vec![logprob(b"\xc3", -0.5)] };
    let second = Token { index: 0, text: "ü".to_owned(), tokens: vec![logprob(b"\xbc", f32::NEG_INFINITY)] };
    let kind = DialectKind::Chat;
    let events = [
        started(plain(kind), 1),
        GenerationEvent::Token(first),
        GenerationEvent::Token(Token { tokens: vec![logprob(b"\xbc", -9999.0)], ..second }),
        done(0, Finish::Stop, true),
    ];
    let chunks = frames(&stream(&plain(kind), &events));
    let content = |at: usize| &chunks[at]["choices"][0]["logprobs"]["content"][0];
    assert_eq!((&content(1)["bytes"], &content(1)["logprob"]), (&json!([0xc3]), &json!(-0.5)));
    assert_eq!(content(1)["top_logprobs"][0]["token"], "x");
    assert_eq!((&content(2)["bytes"], &content(2)["logprob"]), (&json!([0xbc]), &json!(-9999.0)));
    assert_eq!(chat::finite(f32::NEG_INFINITY), -9999.0);
    let answer = whole(kind, &events);
    assert_eq!(answer["choices"][0]["logprobs"]["content"].as_array().map(Vec::len), Some(2));
    let read = |extra: Value| {
        let mut body = json!({ "messages": [{ "role": "user", "content": "a" }] });
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        chat_of(body).map(|request| request.request.logprobs)
    };
    assert_eq!(read(json!({ "logprobs": true })), Ok(Some(0)));
    assert_eq!(read(json!({ "logprobs": true, "top_logprobs": 3 })), Ok(Some(3)));
    assert!(read(json!({ "top_logprobs": 3 })).is_err());
    assert!(read(json!({ "logprobs": true, "top_logprobs": 21 })).is_err());
}

/// Requirement 13: each choice has its index, and the tokens of the prompt are counted once.
#[test]
fn choices_have_their_indexes_and_one_usage() {
    let kind = DialectKind::Chat;
    let events = [
        started(plain(kind), 2),
        token(1, "b"),
        token(0, "a"),
        done(0, Finish::Stop, false),
        done(1, Finish::Length, true),
    ];
    let answer = whole(kind, &events);
    let texts: Vec<&Value> = (0..2).map(|at| &answer["choices"][at]["message"]["content"]).collect();
    assert_eq!(texts, [&json!("a"), &json!("b")]);
    assert_eq!(answer["choices"][1]["finish_reason"], "length");
    assert_eq!(answer["usage"]["prompt_tokens"], 5);
    for (n, want) in [(json!(null), 1), (json!(2), 2), (json!(8), 8)] {
        let request = chat_of(json!({ "n": n, "messages": [{ "role": "user", "content": "a" }] }));
        assert_eq!(request.expect("a request").request.choices, want);
    }
    for n in [json!(0), json!(9), json!("2")] {
        assert!(chat_of(json!({ "n": n, "messages": [{ "role": "user", "content": "a" }] })).is_err(), "{n}");
    }
}

/// Requirement 16: both names of the bound are read, null counts as absent, unknown fields are ignored.
#[test]
fn both_names_of_the_bound_are_read_nulls_are_absent_and_unknown_fields_ignored() {
    let tokens_max = |extra: Value| {
        let mut body =
            json!({ "messages": [{ "role": "user", "content": "a" }], "user": "u", "store": false, "x": [{}] });
        for (name, value) in extra.as_object().expect("an object") {
            body[name] = value.clone();
        }
        chat_of(body).map(|request| request.request.tokens_max)
    };
    assert_eq!(tokens_max(json!({})), Ok(None));
    assert_eq!(tokens_max(json!({ "max_tokens": 5 })), Ok(Some(5)));
    assert_eq!(tokens_max(json!({ "max_completion_tokens": 6 })), Ok(Some(6)));
    assert_eq!(tokens_max(json!({ "max_tokens": 5, "max_completion_tokens": 6 })), Ok(Some(6)));
    let nulls = json!({
        "max_tokens": null, "temperature": null, "top_p": null, "stop": null, "n": null, "seed": null, "tools": null,
        "tool_choice": null, "response_format": null, "logprobs": null, "top_logprobs": null, "logit_bias": null,
        "stream": null, "stream_options": null, "presence_penalty": null, "model": null,
    });
    assert_eq!(tokens_max(nulls), Ok(None));
}

#[test]
fn client_that_reconnects_receives_exactly_the_remaining_frames() {
    for kind in [DialectKind::Chat, DialectKind::Responses, DialectKind::Messages, DialectKind::Ui] {
        let dialect = Dialect { include_usage: true, ..plain(kind) };
        let events = [
            started(dialect.clone(), 1),
            token(0, "a"),
            call(Some("c1"), "{}"),
            token(0, "b"),
            done(0, Finish::Stop, true),
        ];
        let all = stream(&dialect, &events);
        let parts: Vec<&str> = all.split_inclusive("\n\n").collect();
        for (number, _) in parts.iter().enumerate() {
            let rest = stream_after(&dialect, StreamFraming::Sse, Some(number as u64), &events);
            assert_eq!(rest, parts[number + 1..].concat(), "{kind:?} after {number}");
        }
    }
}

#[test]
fn gemini_stream_without_sse_is_one_json_array() {
    let kind = DialectKind::Gemini;
    let text = stream_after(&plain(kind), StreamFraming::JsonArray, None, &two_words(kind));
    let array: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!(array[0]["candidates"][0]["content"]["parts"][0]["text"], "Hel");
    assert_eq!(array[2]["candidates"][0]["finishReason"], "STOP");
    assert_eq!(array[2]["usageMetadata"]["totalTokenCount"], 8);
}

#[test]
fn requests_of_all_apis_give_the_same_messages() {
    let want = json!([
        { "role": "system", "content": "s" },
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": "", "tool_calls": [
            { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } }] },
        { "role": "tool", "content": "r", "tool_call_id": "c1" },
    ]);
    let anthropic = json!({ "model": "m", "max_tokens": 9, "system": [{ "type": "text", "text": "s" }], "messages": [
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": [{ "type": "tool_use", "id": "c1", "name": "f", "input": { "a": 1 } }] },
        { "role": "user", "content": [{ "type": "tool_result", "tool_use_id": "c1", "content": "r" }] },
    ], "stop_sequences": ["x"], "tools": [{ "name": "f", "input_schema": { "type": "object" } }],
        "tool_choice": { "type": "any" } });
    let request = messages::read(anthropic.to_string().as_bytes(), true).expect("a request");
    assert_eq!(messages_of(&request), want);
    assert_eq!((request.request.stop, request.request.tokens_max), (vec!["x".to_owned()], Some(9)));
    let responses = json!({ "model": "m", "instructions": "s", "input": [
        { "role": "user", "content": [{ "type": "input_text", "text": "q" }] },
        { "type": "function_call", "call_id": "c1", "name": "f", "arguments": "{\"a\":1}" },
        { "type": "function_call_output", "call_id": "c1", "output": "r" },
    ], "max_output_tokens": 9, "background": true });
    let request = responses::read(responses.to_string().as_bytes()).expect("a request");
    let mut read = messages_of(&request);
    read[2]["content"] = json!("");
    assert_eq!(read, want);
    assert!(request.detach);
    let gemini = json!({ "systemInstruction": { "parts": [{ "text": "s" }] }, "contents": [
        { "role": "user", "parts": [{ "text": "q" }] },
        { "role": "model", "parts": [{ "functionCall": { "id": "c1", "name": "f", "args": { "a": 1 } } }] },
        { "role": "user", "parts": [{ "functionResponse": { "id": "c1", "name": "f", "response": { "x": 1 } } }] },
    ], "generationConfig": { "maxOutputTokens": 9, "responseMimeType": "application/json",
        "responseSchema": { "type": "OBJECT" }, "topK": 40.0 } });
    let request = gemini::read(gemini.to_string().as_bytes(), "m", true).expect("a request");
    assert_eq!(messages_of(&request)[2], want[2]);
    assert_eq!(request.request.format, Some(Format::JsonSchema(r#"{"type":"object"}"#.to_owned())));
    assert_eq!(request.request.sampling.top_k, Some(40));
    let page =
        json!({ "id": "x", "messages": [{ "id": "1", "role": "user", "parts": [{ "type": "text", "text": "q" }] }] });
    let request = ui::read(page.to_string().as_bytes()).expect("a request");
    assert_eq!(messages_of(&request), json!([want[1]]));
    let prompt = completions::read(br#"{"prompt":["q"],"max_tokens":3,"echo":true}"#).expect("a request");
    assert_eq!(prompt.dialect.echo, "q");
    let own = weir::read(br#"{"prompt":"q","detach":true}"#).expect("a request");
    assert!(own.detach && own.stream);
    assert!(weir::read(br#"{"prompt":"q","max_token":1}"#).is_err());
}

#[test]
fn gemini_tool_config_selects_among_the_tools() {
    let read = |calling: &str| {
        let body = format!(
            r#"{{"contents":"q","tools":[{{"functionDeclarations":[{{"name":"f"}},{{"name":"g"}}]}}],{calling}}}"#
        );
        let body = body.replace(r#""contents":"q""#, r#""contents":[{"parts":[{"text":"q"}]}]"#);
        gemini::read(body.as_bytes(), "m", false).map(|request| match request.request.prompt {
            Prompt::Chat { tools, tool_choice, .. } => {
                let tools: Value = serde_json::from_str(&tools.unwrap_or_default()).unwrap_or_default();
                let tools = tools.as_array().cloned().unwrap_or_default();
                let names: Vec<_> = tools.iter().map(|tool| tool["function"]["name"].clone()).collect();
                (json!(names), tool_choice)
            }
            _ => panic!("a chat"),
        })
    };
    let config = |calling: &str| read(&format!(r#""toolConfig":{{"functionCallingConfig":{calling}}}"#));
    let choice = |name: &str| Some(format!("\"{name}\""));
    assert_eq!(config(r#"{"mode":"ANY","allowedFunctionNames":["g"]}"#), Ok((json!(["g"]), choice("required"))));
    assert_eq!(config(r#"{"mode":"ANY"}"#), Ok((json!(["f", "g"]), choice("required"))));
    assert_eq!(config(r#"{"mode":"NONE"}"#), Ok((json!(["f", "g"]), choice("none"))));
    assert_eq!(config(r#"{"mode":null}"#), Ok((json!(["f", "g"]), choice("auto"))));
    let snake = r#""tool_config":{"function_calling_config":{"mode":"ANY","allowed_function_names":["f"]}}"#;
    assert_eq!(read(snake), Ok((json!(["f"]), choice("required"))));
    for invalid in [
        r#"{"mode":"SOMETIMES"}"#,
        r#"{"mode":"ANY","allowedFunctionNames":["h"]}"#,
        r#"{"mode":"ANY","allowedFunctionNames":[1]}"#,
        r#"{"mode":"AUTO","allowedFunctionNames":["g"]}"#,
    ] {
        assert!(matches!(config(invalid), Err(RequestError::Invalid(_))), "{invalid}");
    }
}

#[test]
fn error_before_a_stream_has_the_form_and_the_status_of_the_api() {
    let problem = Problem::from(chat_of(json!({ "messages": "x" })).unwrap_err());
    let (status, body) = DialectKind::Chat.error_json(&problem);
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    assert_eq!(
        (status, &body["error"]["type"], &body["error"]["param"]),
        (400, &json!("invalid_request_error"), &json!("messages"))
    );
    let busy = Problem::item(&weir_core::failure::Failure::Overloaded { retry_after_ms: 10 });
    assert_eq!(DialectKind::Messages.error_json(&busy).0, 529);
    assert_eq!(DialectKind::Gemini.error_json(&busy).0, 503);
    let unknown = weir_core::failure::Failure::UnknownModel { name: "x".to_owned(), served: Vec::new() };
    let (status, body) = DialectKind::Chat.error_json(&Problem::item(&unknown));
    assert_eq!(status, 404);
    assert!(String::from_utf8(body).expect("UTF-8").contains("model_not_found"));
}
