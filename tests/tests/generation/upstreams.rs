//! Upstreams: servers with the APIs of OpenAI, Anthropic and Gemini behind every dialect, and their failures.

mod mock;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use reqwest::Client;
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_tests::{Server, ndjson};

use self::mock::{APIS, Api, MockUpstream, PIECES, TOKENS};
use crate::{chat, frames, send, text_of, until};

/// The text that the servers generate.
fn generated() -> String {
    PIECES.concat()
}

/// A server with upstreams.
struct Fixture {
    server: Server,
    _dir: TempDir,
}

/// The `[[upstream]]` table of a mock that has every model, with short timeouts.
fn table(name: &str, mock: &MockUpstream, more: &str) -> String {
    let (kind, url) = (mock.api.name(), mock.url());
    let models = if more.contains("models") { "" } else { "models = ['*']\n" };
    // The circuit breaker has its own test.
    let circuit = if more.contains("circuit_failures") { "" } else { "circuit_failures = 1000\n" };
    let short = format!("retry_base_backoff_ms = 5\nidle_timeout_ms = 500\n{circuit}");
    format!("[[upstream]]\nname = '{name}'\nkind = '{kind}'\nurl = '{url}'\n{models}{short}{more}\n")
}

/// Starts a server without models of its own, or with the stand-in for one.
async fn start(tables: &str, with_stub: bool) -> Result<Fixture> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("weir.toml");
    std::fs::write(dir.path().join("key"), "secret-of-the-operator\n")?;
    std::fs::write(&file, tables.replace("KEY_FILE", &dir.path().join("key").display().to_string()))?;
    let arguments = ["--config", file.to_str().context("a path")?];
    let server = match with_stub {
        true => Server::start_generate_stub(&arguments).await?,
        false => Server::start_stub(&arguments).await?,
    };
    Ok(Fixture { server, _dir: dir })
}

/// A server with one upstream.
async fn start_one(mock: &MockUpstream, more: &str) -> Result<Fixture> {
    start(&table("one", mock, more), false).await
}

fn chat_request(model: &str, stream: bool) -> Value {
    let mut body = chat("hello");
    (body["model"], body["stream"]) = (model.into(), stream.into());
    body
}

/// The status and the complete stream of a chat.
async fn stream_of(server: &Server, model: &str) -> Result<(u16, String)> {
    let answer = send(server, "/v1/chat/completions", &chat_request(model, true)).await?;
    Ok((answer.status().as_u16(), answer.text().await?))
}

/// The response of `/generate-stream`, which is plain text.
async fn plain(server: &Server, model: &str) -> Result<reqwest::Response> {
    let body = json!({ "model": model, "messages": [{ "role": "user", "content": "hi" }] });
    Ok(Client::new().post(server.url("/generate-stream")).json(&body).send().await?)
}

/// The status and the body of a chat that is not streamed.
async fn whole_of(server: &Server, model: &str) -> Result<(u16, Value)> {
    let answer = send(server, "/v1/chat/completions", &chat_request(model, false)).await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

#[tokio::test]
async fn every_dialect_generates_with_every_upstream() -> Result<()> {
    let expected = generated();
    for api in APIS {
        let mock = MockUpstream::start(api).await?;
        let fixture = start_one(&mock, "").await?;
        let server = &fixture.server;
        let answer = plain(server, "good").await?;
        assert_eq!((answer.status().as_u16(), answer.text().await?), (200, expected.clone()), "{api:?}");
        let body = json!({ "model": "good", "messages": [{ "role": "user", "content": "hi" }] });
        let events = Client::new().post(server.url("/generate-stream")).header("accept", "application/x-ndjson");
        let events = ndjson(&events.json(&body).send().await?.text().await?)?;
        let done = events.last().context("an event")?;
        let usage = json!({ "prompt_tokens": TOKENS.0, "cached_tokens": 0, "completion_tokens": TOKENS.1 });
        assert_eq!((&done["finish_reason"], &done["usage"]), (&json!("stop"), &usage), "{api:?}");

        let whole = whole_of(server, "long").await?.1;
        assert_eq!(whole["choices"][0]["message"]["content"], expected, "{api:?}");
        assert_eq!(whole["choices"][0]["finish_reason"], "length", "{api:?}");
        assert_eq!(whole["usage"]["total_tokens"], TOKENS.0 + TOKENS.1, "{api:?}");
        let (status, text) = stream_of(server, "good").await?;
        assert_eq!(status, 200);
        assert!(text.ends_with("data: [DONE]\n\n"), "{api:?}: {text}");
        assert_eq!(text_of(&frames(&text)?), expected, "{api:?}");

        let whole: Value =
            send(server, "/v1/responses", &json!({ "model": "good", "input": "hi" })).await?.json().await?;
        assert_eq!(whole["output"][0]["content"][0]["text"], expected, "{api:?}");
        let messages = json!([{ "role": "user", "content": "hi" }]);
        let body = json!({ "model": "good", "max_tokens": 64, "messages": messages });
        let whole: Value = send(server, "/v1/messages", &body).await?.json().await?;
        assert_eq!(
            (&whole["content"][0]["text"], &whole["stop_reason"]),
            (&json!(expected), &json!("end_turn")),
            "{api:?}"
        );
        let count: Value = send(server, "/v1/messages/count_tokens", &body).await?.json().await?;
        assert_eq!(count["input_tokens"], TOKENS.0, "{api:?}");
        let body = json!({ "contents": [{ "role": "user", "parts": [{ "text": "hi" }] }] });
        let path = "/v1beta/models/good:streamGenerateContent?alt=sse";
        let text = send(server, path, &body).await?.text().await?;
        let parts = frames(&text)?;
        let parts = parts.iter().filter_map(|chunk| chunk.pointer("/candidates/0/content/parts/0/text")?.as_str());
        assert_eq!(parts.collect::<String>(), expected, "{api:?}");
        let body = json!({ "model": "good", "id": "c", "messages": [
            { "id": "1", "role": "user", "parts": [{ "type": "text", "text": "hi" }] }] });
        let deltas = frames(&send(server, "/v1/ui/chat", &body).await?.text().await?)?;
        assert_eq!(deltas.iter().filter_map(|part| part["delta"].as_str()).collect::<String>(), expected, "{api:?}");

        let body = json!({ "model": "good", "prompt": "hi" });
        let answer = send(server, "/v1/completions", &body).await?;
        let status = answer.status();
        match api {
            // The API has completions of texts.
            Api::OpenAi => assert_eq!(answer.json::<Value>().await?["choices"][0]["text"], expected),
            Api::Anthropic | Api::Gemini => assert_eq!(status, 400, "{api:?}"),
        }
        let call = whole_of(server, "tool").await?.1;
        let choice = &call["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{api:?}: {call}");
        let function = &choice["message"]["tool_calls"][0]["function"];
        assert_eq!((&function["name"], &function["arguments"]), (&json!("weather"), &json!("{\"city\":\"Rome\"}")));
    }
    Ok(())
}

#[tokio::test]
async fn key_goes_to_the_upstream_and_nowhere_else() -> Result<()> {
    for (api, header, value) in [
        (Api::OpenAi, "authorization", "Bearer secret-of-the-operator"),
        (Api::Anthropic, "x-api-key", "secret-of-the-operator"),
        (Api::Gemini, "x-goog-api-key", "secret-of-the-operator"),
    ] {
        let mock = MockUpstream::start(api).await?;
        let fixture = start_one(&mock, "key_file = 'KEY_FILE'").await?;
        let server = &fixture.server;
        let request = Client::new().post(server.url("/v1/chat/completions")).bearer_auth("of-the-client");
        let answer = request.header("x-api-key", "of-the-client").json(&chat_request("good", false)).send().await?;
        let mut shown = format!("{:?}{}", answer.headers().clone(), answer.text().await?);
        let requests = mock.requests();
        let request = requests.first().context("a request")?;
        assert_eq!(request.headers.get(header).map(String::as_str), Some(value), "{api:?}");
        assert!(!format!("{request:?}").contains("of-the-client"), "the key of a client is not forwarded: {request:?}");
        assert!(request.path.starts_with("/base/"), "{}", request.path);
        // A server may repeat the key in its message, which no client receives.
        let (status, body) = whole_of(server, "denied").await?;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("model_unavailable")));
        shown += &body.to_string();
        shown += &reqwest::get(server.url("/metrics")).await?.text().await?;
        shown += &server.log();
        assert!(!shown.contains("secret-of-the-operator"), "{shown}");
        // The key is replaced without a restart.
        std::fs::write(fixture._dir.path().join("key"), "another")?;
        whole_of(server, "good").await?;
        let last = mock.requests().pop().context("a request")?;
        assert!(last.headers[header].ends_with("another"), "{api:?}");
    }
    Ok(())
}

#[tokio::test]
async fn requests_one_after_another_share_connections() -> Result<()> {
    for api in APIS {
        let mock = MockUpstream::start(api).await?;
        let fixture = start_one(&mock, "").await?;
        for _ in 0..5 {
            let (status, text) = stream_of(&fixture.server, "good").await?;
            assert_eq!((status, text_of(&frames(&text)?)), (200, generated()), "{api:?}");
        }
        // A connection is idle again shortly after the end of its response, so a request may open another one before. The unit tests wait
        // until it is idle, and count one.
        let opened = mock.connections();
        assert!(mock.count("good") == 5 && opened < 5, "{api:?}: {opened} connections");
        // The mock closes this connection after its response, and the next request opens another one.
        assert_eq!(whole_of(&fixture.server, "long").await?.0, 200);
        assert_eq!(whole_of(&fixture.server, "good").await?.0, 200);
        assert!(mock.count("good") == 6 && mock.connections() <= opened + 2, "{api:?}");
    }
    Ok(())
}

#[tokio::test]
async fn component_of_an_upstream_replaces_the_built_in_one() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    let stub = weir_tests::component("generate_stub.wasm")?;
    let other = table("other", &mock, &format!("models = ['stub']\ncomponent = '{}'", stub.display()));
    let fixture = start(&format!("{other}{}", table("one", &mock, "models = ['good']")), false).await?;
    let (_, whole) = whole_of(&fixture.server, "stub").await?;
    assert_eq!(whole["choices"][0]["message"]["content"], crate::GENERATED_TEXT, "{whole}");
    assert!(mock.requests().is_empty());
    assert_eq!(whole_of(&fixture.server, "good").await?.1["choices"][0]["message"]["content"], generated());
    let Err(error) = start_one(&mock, "component = '/nowhere/upstream.wasm'").await.map(drop) else {
        anyhow::bail!("it started without its component")
    };
    assert!(format!("{error:#}").contains("/nowhere/upstream.wasm"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn missing_key_prevents_the_start() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    for (more, named) in
        [("key_env = 'WEIR_NO_SUCH_KEY'", "WEIR_NO_SUCH_KEY"), ("key_file = '/nowhere/key'", "/nowhere/key")]
    {
        let Err(error) = start_one(&mock, more).await.map(drop) else { anyhow::bail!("it started with {more}") };
        assert!(format!("{error:#}").contains(named), "{error:#}");
    }
    Ok(())
}

#[tokio::test]
async fn failure_before_the_first_token_is_retried() -> Result<()> {
    for api in APIS {
        let mock = MockUpstream::start(api).await?;
        let fixture = start_one(&mock, "").await?;
        let server = &fixture.server;
        let (status, text) = stream_of(server, "flaky").await?;
        assert_eq!((status, text_of(&frames(&text)?)), (200, generated()), "{api:?}");
        assert_eq!(mock.count("flaky"), 2, "{api:?}");
        let (status, body) = whole_of(server, "down").await?;
        assert_eq!((status, &body["error"]["code"]), (503, &json!("model_unavailable")), "{api:?}: {body}");
        assert_eq!(mock.count("down"), 3, "{api:?}: the most attempts");
        let (status, body) = whole_of(server, "error-first").await?;
        assert_eq!((status, &body["error"]["message"]), (502, &json!("the engine failed on this text: it broke")));
        assert_eq!(mock.count("error-first"), 3, "{api:?}");
        let (status, body) = whole_of(server, "invalid").await?;
        assert_eq!(status, 400, "{api:?}");
        assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains("too long")), "{body}");
        assert_eq!(mock.count("invalid"), 1, "{api:?}: a refused request is not repeated");
        let (status, _) = whole_of(server, "page").await?;
        assert_eq!((status, mock.count("page")), (503, 1), "{api:?}: a page of HTML is not a stream");
    }
    Ok(())
}

#[tokio::test]
async fn retry_after_of_the_upstream_is_respected() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    let fixture = start_one(&mock, "").await?;
    let server = &fixture.server;
    let began = Instant::now();
    assert_eq!(whole_of(server, "throttled").await?.0, 200);
    assert!(began.elapsed() >= Duration::from_secs(1), "{:?}", began.elapsed());
    assert_eq!(mock.count("throttled"), 2);
    // The delay exceeds that of retries: the client receives it.
    let answer = send(server, "/v1/chat/completions", &chat_request("full", false)).await?;
    assert_eq!((answer.status().as_u16(), &answer.headers()["retry-after"]), (503, &"30".parse()?));
    assert_eq!(mock.count("full"), 1);
    Ok(())
}

#[tokio::test]
async fn unreachable_or_silent_upstream_is_unavailable() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    let gone = {
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.local_addr()?.to_string()
    };
    let nowhere = table("nowhere", &mock, "models = ['gone']").replace(&mock.address, &gone);
    let fixture = start(&format!("{nowhere}{}", table("one", &mock, "retry_max_attempts = 1")), false).await?;
    let server = &fixture.server;
    let began = Instant::now();
    let (status, body) = whole_of(server, "silent").await?;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("model_unavailable")), "{body}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    until("the silent connection is closed", async || Ok(mock.disconnects() == 1)).await?;
    // It is the first upstream of the model, and the other one generates.
    assert_eq!(whole_of(server, "gone").await?.0, 200);
    let metrics = reqwest::get(server.url("/metrics")).await?.text().await?;
    assert!(
        metrics.contains("weir_upstream_requests_total{upstream=\"nowhere\",outcome=\"unreachable\"} 3"),
        "{metrics}"
    );
    let fixture = start(&table("nowhere", &mock, "").replace(&mock.address, &gone), false).await?;
    let (status, body) = whole_of(&fixture.server, "gone").await?;
    assert_eq!((status, &body["error"]["code"]), (503, &json!("model_unavailable")));
    assert!(!body.to_string().contains(&gone), "addresses are not for clients: {body}");
    Ok(())
}

/// After the first token there is no other attempt, and the stream ends with an error and without a finish reason.
#[tokio::test]
async fn stream_that_is_cut_silent_failing_or_unfinished_is_a_failure() -> Result<()> {
    for api in APIS {
        let mock = MockUpstream::start(api).await?;
        let fixture = start_one(&mock, "").await?;
        let server = &fixture.server;
        for behavior in ["cut", "gap", "error", "unfinished"] {
            let (status, text) = stream_of(server, behavior).await?;
            assert_eq!(status, 200, "{api:?} {behavior}");
            assert!(!text.contains("[DONE]") && !text.contains("\"finish_reason\":\""), "{api:?} {behavior}: {text}");
            let frames = frames(&text)?;
            assert!(generated().starts_with(&text_of(&frames)) && !text_of(&frames).is_empty(), "{text}");
            let last = frames.last().context("a frame")?;
            let code = if behavior == "error" { "engine_failed" } else { "model_unavailable" };
            assert_eq!(last["error"]["code"], code, "{api:?} {behavior}: {text}");
            assert_eq!(mock.count(behavior), 1, "{api:?} {behavior}: text that was sent is not generated again");
            // The connection is closed, possibly before the head of the response is sent.
            if let Ok(response) = plain(server, behavior).await {
                assert_eq!(response.status(), 200);
                assert!(response.text().await.is_err(), "{api:?} {behavior}: an incomplete text looks complete");
            }
            let body =
                json!({ "model": behavior, "max_tokens": 9, "stream": true, "messages": chat("hi")["messages"] });
            let text = send(server, "/v1/messages", &body).await?.text().await?;
            assert!(text.contains("event: error") && !text.contains("message_stop"), "{api:?} {behavior}: {text}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn local_model_precedes_the_upstreams_in_their_order() -> Result<()> {
    let (first, second) = (MockUpstream::start(Api::OpenAi).await?, MockUpstream::start(Api::Anthropic).await?);
    let tables = format!(
        "{}{}",
        table("first", &first, "models = ['down', 'cut', 'invalid', 'full']\naliases = ['stub=flaky']"),
        table(
            "second",
            &second,
            "models = ['down', 'cut', 'invalid', 'full', 'only']\naliases = ['both=good']\nretry_max_attempts = 1"
        )
    );
    let fixture = start(&tables, true).await?;
    let server = &fixture.server;
    let local = |whole: &Value| whole["choices"][0]["message"]["content"] == crate::GENERATED_TEXT;
    let (status, whole) = whole_of(server, "stub").await?;
    assert!(status == 200 && local(&whole), "{whole}");
    assert!(first.requests().is_empty());
    for prompt in ["!overloaded", "!down"] {
        let mut body = chat(prompt);
        body["stream"] = true.into();
        let text = send(server, "/v1/chat/completions", &body).await?.text().await?;
        assert_eq!(text_of(&frames(&text)?), generated(), "{prompt}");
    }
    assert_eq!(first.count("flaky"), 3, "one failed once");
    // An invalid request is not sent to another model, and a generation that has begun is not repeated.
    let mut body = chat("!template");
    body["stream"] = true.into();
    assert_eq!(send(server, "/v1/chat/completions", &body).await?.status(), 400);
    assert_eq!(first.count("flaky"), 3);
    assert_eq!(whole_of(server, "invalid").await?.0, 400);
    let (_, text) = stream_of(server, "cut").await?;
    assert_eq!(frames(&text)?.last().context("a frame")?["error"]["code"], "model_unavailable");
    assert_eq!((second.count("invalid"), second.count("cut")), (0, 0));
    // Both upstreams fail: the response is the failure of the second.
    let (status, _) = whole_of(server, "down").await?;
    assert_eq!((status, first.count("down"), second.count("down")), (503, 3, 1));
    let (status, _) = whole_of(server, "full").await?;
    assert_eq!((status, first.count("full"), second.count("full")), (503, 1, 1));
    assert!(server.metric("weir_generate_fallbacks_total").await? >= 4.0);
    Ok(())
}

#[tokio::test]
async fn models_of_upstreams_are_listed_and_their_patterns_are_not() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    let more = "models = ['named', 'vendor/*']\naliases = ['small=good']";
    let fixture = start_one(&mock, more).await?;
    let server = &fixture.server;
    let response: Value = reqwest::get(server.url("/v1/models")).await?.json().await?;
    let models = response["models"].as_array().context("models")?.iter();
    let models = models.filter(|model| model["kind"] == "text-generation");
    let names: Vec<&str> = models.clone().filter_map(|model| model["name"].as_str()).collect();
    assert_eq!(names, ["named", "small"]);
    assert!(models.clone().all(|model| model["ready"] == true));
    assert_eq!(whole_of(server, "small").await?.0, 200);
    assert_eq!(whole_of(server, "vendor/good").await?.0, 200);
    let requested: Vec<String> = mock.requests().into_iter().map(|request| request.model).collect();
    assert_eq!(requested, ["good", "vendor/good"]);
    let (status, body) = whole_of(server, "other").await?;
    assert_eq!((status, &body["error"]["code"]), (404, &json!("model_not_found")));
    assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains("small")), "{body}");
    // A request without a model uses the first one.
    let mut body = chat("hi");
    body.as_object_mut().context("an object")?.remove("model");
    assert_eq!(send(server, "/v1/chat/completions", &body).await?.status(), 200);
    assert_eq!(mock.count("named"), 1);
    let ready: Value = reqwest::get(server.url("/readyz")).await?.json().await?;
    assert!(ready["models"].as_array().context("models")?.iter().any(|model| model["name"] == "small"), "{ready}");
    Ok(())
}

#[tokio::test]
async fn disconnected_client_cancels_the_request_to_the_upstream() -> Result<()> {
    for api in APIS {
        let mock = MockUpstream::start(api).await?;
        let fixture = start_one(&mock, "").await?;
        let server = &fixture.server;
        let mut response = send(server, "/v1/chat/completions", &chat_request("endless", true)).await?;
        response.chunk().await?.context("a chunk")?;
        drop(response);
        until("the upstream is disconnected", async || Ok(mock.disconnects() == 1)).await?;
        let body = chat_request("endless", false);
        let request = Client::new().post(server.url("/v1/chat/completions")).json(&body).send();
        let request = tokio::spawn(async move { request.await?.text().await });
        until("the upstream generates", async || Ok(mock.count("endless") == 2)).await?;
        request.abort();
        until("the upstream is disconnected", async || Ok(mock.disconnects() == 2)).await?;
        // A client may also cancel by the id.
        let detached = send(server, "/v1/chat/completions?detach=true", &chat_request("endless", true)).await?;
        let id = detached.headers()["x-weir-generation"].to_str()?.to_owned();
        drop(detached);
        assert_eq!(Client::new().delete(server.url(&format!("/v1/generations/{id}"))).send().await?.status(), 204);
        until("the upstream is disconnected", async || Ok(mock.disconnects() == 3)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn circuit_opens_after_failures_and_stops_requests() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    let more = "retry_max_attempts = 1\ncircuit_failures = 3\ncircuit_open_ms = 600000";
    let fixture = start_one(&mock, more).await?;
    for _ in 0..5 {
        assert_eq!(whole_of(&fixture.server, "down").await?.0, 503);
    }
    let answer = send(&fixture.server, "/v1/chat/completions", &chat_request("good", false)).await?;
    assert_eq!(answer.status(), 503);
    assert!(answer.headers().contains_key("retry-after"));
    assert_eq!(answer.json::<Value>().await?["error"]["code"], "circuit_open");
    assert_eq!((mock.count("down"), mock.count("good")), (3, 0));
    Ok(())
}

#[tokio::test]
async fn tokens_and_concurrent_requests_of_a_user_are_bounded() -> Result<()> {
    let mock = MockUpstream::start(Api::OpenAi).await?;
    let fixture = start_one(&mock, "user_tokens_per_minute = 5").await?;
    assert_eq!(whole_of(&fixture.server, "good").await?.0, 200, "its 10 tokens are counted at its end");
    let answer = send(&fixture.server, "/v1/chat/completions", &chat_request("good", false)).await?;
    assert_eq!(answer.status(), 429);
    let seconds: u32 = answer.headers()["retry-after"].to_str()?.parse()?;
    assert!((60..=73).contains(&seconds), "{seconds}");
    assert_eq!(mock.count("good"), 1);

    let fixture = start_one(&mock, "user_running_max = 1").await?;
    let mut first = send(&fixture.server, "/v1/chat/completions", &chat_request("endless", true)).await?;
    first.chunk().await?.context("a chunk")?;
    assert_eq!(whole_of(&fixture.server, "good").await?.0, 429);
    drop(first);
    until("another request is admitted", async || Ok(whole_of(&fixture.server, "good").await?.0 == 200)).await
}
