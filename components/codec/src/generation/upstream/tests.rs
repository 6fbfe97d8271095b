//! Hand-written streams of upstreams, split into pieces of several sizes.

use serde_json::{Value, json};

use super::*;
use crate::generation::{event::Finish, request::Prompt};

fn read(kind: UpstreamKind, stream: &str, piece_bytes: usize) -> Vec<UpstreamEvent> {
    let mut reader = UpstreamStream::new(kind, 1);
    let mut events = Vec::new();
    for piece in stream.as_bytes().chunks(piece_bytes) {
        events.extend(reader.push(piece));
    }
    events.extend(reader.end());
    events
}

/// The text and the events of a stream; they must be the same for every size of pieces.
fn read_in_pieces(kind: UpstreamKind, stream: &str) -> (String, Vec<UpstreamEvent>) {
    let whole = read(kind, stream, stream.len());
    for piece_bytes in [1, 2, 3, 7, 64] {
        assert_eq!(read(kind, stream, piece_bytes), whole, "in pieces of {piece_bytes}");
    }
    let text = whole.iter().filter_map(|event| match event {
        UpstreamEvent::Piece(token) => Some(token.text.as_str()),
        _ => None,
    });
    (text.collect(), whole.clone())
}

fn done(finish: Finish) -> UpstreamEvent {
    UpstreamEvent::Done { index: 0, finish, stop: None }
}

const OPENAI: &str = "\
: a comment, as vLLM and proxies send it

data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":null}}]}

data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Gr\u{fc}\"}}]}\r
\r
data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\u{df}e\"},\"finish_reason\":null}]}

data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}

data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":2}}

data: [DONE]

";

#[test]
fn openai_stream_is_read_in_every_split() {
    let (text, events) = read_in_pieces(UpstreamKind::OpenAi, OPENAI);
    assert_eq!(text, "Grüße");
    assert_eq!(events[0], UpstreamEvent::Begun { prompt_tokens: 0, cached_tokens: 0 });
    assert!(events.contains(&done(Finish::Length)));
    assert!(events.contains(&UpstreamEvent::PromptTokens(3)) && events.contains(&UpstreamEvent::Tokens(2)));
}

const ANTHROPIC: &str = "\
event: message_start
data: {\"type\":\"message_start\",\"message\":{\"usage\":{\"input_tokens\":3,\"cache_read_input_tokens\":4}}}

event: ping
data: {\"type\":\"ping\"}

event: content_block_start
data: {\"type\":\"content_block_start\",\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}

event: content_block_delta
data: {\"type\":\"content_block_delta\",\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":\"Hello\"}}

event: content_block_start
data: {\"type\":\"content_block_start\",\"index\":1,\"content_block\":{\"type\":\"tool_use\",\"id\":\"t1\",\"name\":\"f\",\"input\":{}}}

event: content_block_delta
data: {\"type\":\"content_block_delta\",\"index\":1,\"delta\":{\"type\":\"input_json_delta\",\"partial_json\":\"{}\"}}

event: message_delta
data: {\"type\":\"message_delta\",\"delta\":{\"stop_reason\":\"tool_use\"},\"usage\":{\"output_tokens\":5}}

event: message_stop
data: {\"type\":\"message_stop\"}

";

#[test]
fn anthropic_stream_is_read_in_every_split() {
    let (text, events) = read_in_pieces(UpstreamKind::Anthropic, ANTHROPIC);
    assert_eq!(text, "Hello");
    assert_eq!(events[0], UpstreamEvent::Begun { prompt_tokens: 7, cached_tokens: 4 });
    assert_eq!(events.last(), Some(&done(Finish::ToolCalls)));
    let tools: Vec<_> = events.iter().filter(|event| matches!(event, UpstreamEvent::Tool(_))).collect();
    assert_eq!(tools.len(), 2);
}

const GEMINI: &str = "\
data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"Hel\"}],\"role\":\"model\"},\"index\":0}],\"usageMetadata\":{\"promptTokenCount\":4}}

data: {\"candidates\":[{\"content\":{\"parts\":[{\"text\":\"lo\"}],\"role\":\"model\"},\"finishReason\":\"STOP\",\"index\":0}],\"usageMetadata\":{\"promptTokenCount\":4,\"candidatesTokenCount\":2}}

";

#[test]
fn gemini_stream_is_read_in_every_split() {
    let (text, events) = read_in_pieces(UpstreamKind::Gemini, GEMINI);
    assert_eq!(text, "Hello");
    assert_eq!(events[0], UpstreamEvent::Begun { prompt_tokens: 4, cached_tokens: 0 });
    assert!(events.contains(&done(Finish::Stop)));
}

/// A stream that is cut at any line is a failure, never a finish reason.
#[test]
fn stream_that_ends_without_a_finish_reason_is_a_failure() {
    for (kind, stream) in
        [(UpstreamKind::OpenAi, OPENAI), (UpstreamKind::Anthropic, ANTHROPIC), (UpstreamKind::Gemini, GEMINI)]
    {
        let whole = read(kind, stream, 64).iter().position(|event| matches!(event, UpstreamEvent::Done { .. }));
        assert!(whole.is_some());
        for (at, _) in stream.match_indices('\n') {
            let events = read(kind, &stream[..at], 64);
            let is_done = events.iter().any(|event| matches!(event, UpstreamEvent::Done { .. }));
            let has_failed = matches!(events.last(), Some(UpstreamEvent::Failed(_)));
            assert!(is_done != has_failed, "{kind:?} cut at {at}: {events:?}");
        }
    }
}

#[test]
fn error_within_a_stream_is_a_failure_and_nothing_follows() {
    for (kind, error) in [
        (UpstreamKind::OpenAi, "data: {\"error\":{\"message\":\"broke\"}}\n\n"),
        (
            UpstreamKind::Anthropic,
            "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"broke\"}}\n\n",
        ),
        (UpstreamKind::Gemini, "data: {\"error\":{\"code\":500,\"message\":\"broke\"}}\n\n"),
    ] {
        let events = read(kind, &format!("{error}{OPENAI}"), 16);
        assert_eq!(events, [UpstreamEvent::Failed(Failure::Engine("broke".to_owned()))], "{kind:?}");
    }
    for stream in ["data: {\n\n", "data: \u{0}\n\n"] {
        assert!(matches!(read(UpstreamKind::OpenAi, stream, 3).last(), Some(UpstreamEvent::Failed(_))));
    }
}

#[test]
fn error_response_is_a_failure_by_its_status() {
    let refusal = |status, body: &str| UpstreamKind::OpenAi.refusal(status, Some(2), body.as_bytes());
    let body = r#"{"error":{"message":"too long"}}"#;
    assert_eq!(refusal(400, body), Failure::InvalidInput("too long".to_owned()));
    assert_eq!(refusal(429, body), Failure::Overloaded { retry_after_ms: 2000 });
    let Failure::Unavailable(text) = refusal(401, r#"{"error":{"message":"key sk-1 is wrong"}}"#) else { panic!() };
    assert!(!text.contains("sk-1"));
    assert!(matches!(refusal(502, "<html>"), Failure::Unavailable(_)));
    assert_eq!(refusal(404, body), Failure::InvalidInput("too long".to_owned()));
    assert!(matches!(refusal(404, "<html>"), Failure::Unavailable(_)), "a wrong address");
}

fn chat() -> GenerateRequest {
    let messages = json!([
        { "role": "system", "content": "s" },
        { "role": "user", "content": "q" },
        { "role": "assistant", "content": null, "tool_calls": [
            { "id": "c1", "type": "function", "function": { "name": "f", "arguments": "{\"a\":1}" } }] },
        { "role": "tool", "content": "r", "tool_call_id": "c1" },
    ]);
    let tools = json!([{ "type": "function", "function": { "name": "f", "parameters": { "type": "object" } } }]);
    let prompt = Prompt::Chat {
        messages: messages.to_string(),
        tools: Some(tools.to_string()),
        tool_choice: Some("\"required\"".to_owned()),
    };
    GenerateRequest { tokens_max: Some(9), stop: vec!["x".to_owned()], ..GenerateRequest::new(prompt) }
}

#[test]
fn request_has_the_form_of_each_api() {
    let body = |kind: UpstreamKind| {
        let request = kind.request("m", &chat()).expect("a request");
        (request.path, serde_json::from_slice::<Value>(&request.body).expect("JSON"))
    };
    let (path, openai) = body(UpstreamKind::OpenAi);
    assert_eq!(path, "/chat/completions");
    assert_eq!((&openai["max_tokens"], &openai["stop"], &openai["stream"]), (&json!(9), &json!(["x"]), &json!(true)));
    let (path, anthropic) = body(UpstreamKind::Anthropic);
    assert_eq!(path, "/v1/messages");
    assert_eq!((&anthropic["system"], &anthropic["tool_choice"]), (&json!("s"), &json!({ "type": "any" })));
    assert_eq!(anthropic["messages"][1]["content"][0]["input"], json!({ "a": 1 }));
    assert_eq!(anthropic["messages"][2]["content"][0]["tool_use_id"], "c1");
    let (path, gemini) = body(UpstreamKind::Gemini);
    assert_eq!(path, "/v1beta/models/m:streamGenerateContent?alt=sse");
    assert_eq!(gemini["contents"][1]["parts"][0]["functionCall"]["args"], json!({ "a": 1 }));
    assert_eq!(gemini["generationConfig"], json!({ "maxOutputTokens": 9, "stopSequences": ["x"] }));
    let tokens = GenerateRequest::new(Prompt::Tokens(vec![1]));
    for kind in [UpstreamKind::OpenAi, UpstreamKind::Anthropic, UpstreamKind::Gemini] {
        assert!(kind.request("m", &tokens).is_err());
    }
}
