//! A generation is a channel: streams are resumed, several clients read one generation, and a crash ends it with an error.

use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::{Server, auth, follow::Follower, redis::Redis};

use crate::{GENERATED_TEXT, chat, frames, send, streamed, text_of, until};

/// The frames of an SSE stream, each with the blank line that ends it.
fn split_frames(text: &str) -> Vec<&str> {
    text.split_inclusive("\n\n").collect()
}

/// The complete frames at the beginning of received bytes.
fn complete_frames(received: &[u8]) -> Result<&str> {
    let end = received.windows(2).rposition(|pair| pair == b"\n\n").map_or(0, |at| at + 2);
    Ok(std::str::from_utf8(&received[..end])?)
}

async fn get(server: &Server, path: &str) -> Result<reqwest::Response> {
    Ok(Client::new().get(server.url(path)).send().await?)
}

#[tokio::test]
async fn resumed_stream_has_exactly_the_remaining_frames_in_every_dialect() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let messages = json!([{ "role": "user", "content": "hi" }]);
    for (path, body) in [
        ("/v1/chat/completions", streamed("hi")),
        ("/v1/completions", json!({ "prompt": "hi", "stream": true })),
        ("/v1/responses", json!({ "input": "hi", "stream": true })),
        ("/v1/messages", json!({ "messages": messages, "max_tokens": 64, "stream": true })),
        ("/v1/ui/chat", json!({ "messages": messages })),
    ] {
        let response = send(&server, path, &body).await?;
        let id = response.headers()["x-weir-generation"].to_str()?.to_owned();
        let all = response.text().await?;
        let all_frames = split_frames(&all);
        for (number, _) in all_frames.iter().enumerate() {
            let rest = all_frames[number + 1..].concat();
            let query = format!("/v1/generations/{id}?stream=true&starting_after={number}");
            assert_eq!(get(&server, &query).await?.text().await?, rest, "{path} after {number}");
            let resumed = Client::new().get(server.url(&format!("/v1/generations/{id}?stream=true")));
            let resumed = resumed.header("last-event-id", number.to_string()).send().await?;
            assert_eq!(resumed.text().await?, rest, "{path} after {number}");
        }
        if path == "/v1/responses" {
            let query = format!("/v1/responses/resp_{id}?stream=true&starting_after=4");
            let rest = frames(&get(&server, &query).await?.text().await?)?;
            assert_eq!(rest[0]["sequence_number"], 5);
        }
    }
    Ok(())
}

#[tokio::test]
async fn concurrent_readers_of_a_generation_get_the_same_stream() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let mut body = streamed("!slow");
    body["stream_options"] = json!({ "include_usage": true });
    let response = send(&server, "/v1/chat/completions", &body).await?;
    let id = response.headers()["x-weir-generation"].to_str()?.to_owned();
    let path = format!("/v1/generations/{id}?stream=true");
    let channel = format!("/stream/generation/{id}");
    let (first, second, follower) = tokio::join!(
        async { anyhow::Ok(response.text().await?) },
        async { anyhow::Ok(get(&server, &path).await?.text().await?) },
        async { Follower::open(&server, &channel, None).await?.remaining_events().await },
    );
    let (first, second, events) = (first?, second?, follower?);
    assert_eq!(first, second);
    assert_eq!(text_of(&frames(&first)?), GENERATED_TEXT);
    let seqs: Vec<u64> = events.iter().map(|event| event.seq()).collect::<Result<_>>()?;
    assert_eq!(seqs, (1..=seqs.len() as u64).collect::<Vec<_>>());
    let names: Vec<&str> = events.iter().map(|event| event.name.as_str()).collect();
    assert_eq!((names[0], names[names.len() - 1]), ("started", "done"));
    let pieces: String = events.iter().filter_map(|event| event.data["text"].as_str()).collect();
    assert_eq!(pieces, GENERATED_TEXT);
    Ok(())
}

#[tokio::test]
async fn detached_generation_continues_without_its_client_and_is_cancelled_by_id() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let response = send(&server, "/v1/chat/completions?detach=true", &streamed("!slow")).await?;
    let id = response.headers()["x-weir-generation"].to_str()?.to_owned();
    drop(response);
    let whole: Value = get(&server, &format!("/v1/generations/{id}")).await?.json().await?;
    assert_eq!(whole["choices"][0]["message"]["content"], GENERATED_TEXT);
    assert_eq!(whole["choices"][0]["finish_reason"], "stop");

    let body = json!({ "input": "!never", "background": true });
    let response: Value = send(&server, "/v1/responses", &body).await?.json().await?;
    assert_eq!(response["status"], "in_progress", "{response}");
    let id = response["id"].as_str().context("an id")?.to_owned();
    let response: Value = send(&server, &format!("/v1/responses/{id}/cancel"), &json!({})).await?.json().await?;
    assert_eq!(response["status"], "cancelled", "{response}");

    let response = send(&server, "/v1/chat/completions?detach=true", &streamed("!never")).await?;
    let id = response.headers()["x-weir-generation"].to_str()?.to_owned();
    let deleted = Client::new().delete(server.url(&format!("/v1/generations/{id}"))).send().await?;
    assert_eq!(deleted.status(), 204);
    let text = response.text().await?;
    assert_eq!(frames(&text)?.last().context("a frame")?["error"]["code"], "cancelled");
    assert_eq!(get(&server, "/v1/generations/none").await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn generation_interrupted_by_kill_9_keeps_its_prefix_and_ends_with_an_error() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("events.redb").display().to_string();
    let path = format!("events.path={path}");
    let arguments =
        ["--set", "events.store=disk", "--set", "events.durable=true", "--set", &path, "--set", "events.lease_ms=1000"];
    let mut server = Server::start_generate_stub(&arguments).await?;
    let mut before = Vec::new();
    for _ in 0..3 {
        let mut response = send(&server, "/v1/chat/completions?detach=true", &streamed("!slow")).await?;
        let id = response.headers()["x-weir-generation"].to_str()?.to_owned();
        let mut received = Vec::new();
        while text_of(&frames(complete_frames(&received)?)?).is_empty() {
            received.extend(response.chunk().await?.context("the stream ended")?);
        }
        before.push((id, String::from_utf8(received)?));
    }
    server.signal("KILL")?;
    server.wait().await?;
    let server = Server::start_generate_stub(&arguments).await?;
    let mut interrupted = 0;
    for (id, received) in before {
        let path = format!("/v1/generations/{id}?stream=true");
        let text = get(&server, &path).await?.text().await?;
        assert!(text.starts_with(&received), "{received}\n---\n{text}");
        let frames = frames(&text)?;
        let whole = get(&server, &format!("/v1/generations/{id}")).await?;
        let generated = text_of(&frames);
        // The first generation may have ended before the last began.
        if text.ends_with("data: [DONE]\n\n") {
            assert_eq!((generated.as_str(), whole.status().as_u16()), (GENERATED_TEXT, 200));
            continue;
        }
        interrupted += 1;
        assert_eq!(frames.last().context("a frame")?["error"]["code"], "interrupted", "{text}");
        assert!(GENERATED_TEXT.starts_with(&generated), "{generated}");
        assert_eq!(whole.status(), 503);
        assert_eq!(whole.json::<Value>().await?["code"], "interrupted");
    }
    assert!(interrupted > 0);
    Ok(())
}

/// The store refuses the events of a generation for a while; afterwards, its channel ends.
#[tokio::test]
async fn generation_whose_events_are_refused_ends_once_they_are_accepted() -> Result<()> {
    let redis = Redis::start()?;
    until("up", async || Ok(redis.command(&["PING"]).is_ok())).await?;
    let url = format!("events.redis_url={}", redis.url());
    let arguments = ["--set", "events.store=redis", "--set", &url, "--set", "events.redis_prefix=p:"];
    let arguments = [&arguments[..], &["--set", "events.lease_ms=1000"]].concat();
    let server = Server::start_generate_stub(&arguments).await?;
    let answer = send(&server, "/v1/chat/completions?detach=true", &streamed("!never")).await?;
    let id = answer.headers()["x-weir-generation"].to_str()?.to_owned();
    let (key, other_key) = (format!("p:generation:{id}"), "other");
    redis.command(&["RENAME", &key, other_key])?;
    // A value of another type, to which no event can be appended.
    redis.command(&["SET", &key, "x"])?;
    let deleted = Client::new().delete(server.url(&format!("/v1/generations/{id}")));
    let cancellation = tokio::spawn(deleted.send());
    let state = format!("p:@@state:generation:{id}");
    until("given up", async || Ok(server.log().contains("were not stored"))).await?;
    ensure!(redis.command(&["EXISTS", &state])?.trim() == ":1", "the key of the generation shows that it has no end");
    redis.command(&["DEL", &key])?;
    redis.command(&["RENAME", other_key, &key])?;
    let path = format!("/v1/generations/{id}?stream=true");
    // The store answers again once it has reconnected.
    let mut text = String::new();
    until("the store is available", async || {
        let response = get(&server, &path).await?;
        let is_available = response.status() == 200;
        text = response.text().await?;
        Ok(is_available)
    })
    .await
    .with_context(|| server.log())?;
    let frames = frames(&text)?;
    let last = frames.last().with_context(|| format!("no frame in {text:?}"))?;
    assert_eq!(last["error"]["code"], "interrupted", "{text}");
    until("forgotten", async || Ok(redis.command(&["EXISTS", &state])?.trim() == ":0")).await?;
    cancellation.abort();
    Ok(())
}

/// A key that the store refuses precedes those of the interrupted generations.
#[tokio::test]
async fn recovery_continues_after_a_key_that_fails() -> Result<()> {
    let redis = Redis::start()?;
    until("up", async || Ok(redis.command(&["PING"]).is_ok())).await?;
    let url = format!("events.redis_url={}", redis.url());
    let arguments = ["--set", "events.store=redis", "--set", &url, "--set", "events.redis_prefix=p:"];
    let arguments = [&arguments[..], &["--set", "events.lease_ms=1000"]].concat();
    let mut server = Server::start_generate_stub(&arguments).await?;
    let mut ids = Vec::new();
    for _ in 0..2 {
        let response = send(&server, "/v1/chat/completions?detach=true", &streamed("!never")).await?;
        ids.push(response.headers()["x-weir-generation"].to_str()?.to_owned());
    }
    server.signal("KILL")?;
    server.wait().await?;
    redis.command(&["ZADD", "p:@@state-keys:generation", "0", "generation: not a name"])?;
    redis.command(&["SET", "p:@@state:generation: not a name", "x"])?;
    let server = Server::start_generate_stub(&arguments).await?;
    for id in ids {
        let state = format!("p:@@state:generation:{id}");
        until("ended", async || {
            // A request starts the stateful instance.
            get(&server, &format!("/v1/generations/{id}")).await?;
            Ok(redis.command(&["EXISTS", &state])?.trim() == ":0")
        })
        .await
        .with_context(|| server.log())?;
    }
    until("the failure is logged", async || Ok(server.log().contains("cannot be ended yet"))).await?;
    Ok(())
}

#[tokio::test]
async fn generation_of_another_user_is_404() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let settings = auth::settings(dir.path())?;
    let arguments: Vec<&str> = settings.iter().flat_map(|setting| ["--set", setting.as_str()]).collect();
    let server = Server::start_generate_stub(&arguments).await?;
    let request = async |key: &str, header: &str, path: &str, body: Option<Value>| {
        let client = Client::new();
        let request = match &body {
            Some(body) => client.post(server.url(path)).json(body),
            None => client.get(server.url(path)),
        };
        let value = if header == "authorization" { format!("Bearer {key}") } else { key.to_owned() };
        anyhow::Ok(request.header(header, value).send().await?)
    };
    let response = send(&server, "/v1/chat/completions", &chat("hi")).await?;
    assert_eq!(response.status(), 401);
    assert_eq!(response.json::<Value>().await?["error"]["type"], "authentication_error");
    for header in ["authorization", "x-api-key", "x-goog-api-key"] {
        let response = request(auth::ANN, header, "/v1/chat/completions", Some(streamed("hi"))).await?;
        assert_eq!(response.status(), 200, "{header}");
        let id = response.headers()["x-weir-generation"].to_str()?.to_owned();
        let all = response.text().await?;
        let path = format!("/v1/generations/{id}?stream=true");
        assert_eq!(request(auth::ANN, header, &path, None).await?.text().await?, all);
        for path in [path, format!("/v1/generations/{id}"), format!("/stream/generation/{id}")] {
            assert_eq!(request(auth::BOB, header, &path, None).await?.status(), 404, "{path}");
        }
    }
    until("the server is alive", async || Ok(get(&server, "/livez").await?.status() == 200)).await
}
