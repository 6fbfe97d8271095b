//! The language model of the demo over HTTP: `WEIR_TEST_LM` names its file, and `cargo xtask test` sets it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Server, tool};

use crate::{cancelled, frames, send, text_of, until};

const NAME: &str = "smollm";

/// The arguments that serve the model.
fn arguments() -> Result<Vec<String>> {
    let file = tool("WEIR_TEST_LM")?;
    let folder = file.parent().context("the folder of the model")?;
    Ok(vec!["--model".to_owned(), format!("{NAME}={}", folder.display())])
}

/// A server with the model, and with more settings.
async fn start(arguments: &[String], settings: &[&str]) -> Result<Server> {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(settings).collect();
    Server::start_stub(&arguments).await
}

fn chat_request(text: &str, tokens_max: u32, stream: bool) -> Value {
    json!({
        "model": NAME, "messages": [{ "role": "user", "content": text }], "temperature": 0, "max_tokens": tokens_max,
        "stream": stream,
    })
}

async fn generate(server: &Server, text: &str, tokens_max: u32) -> Result<String> {
    let answer = send(server, "/v1/chat/completions", &chat_request(text, tokens_max, false)).await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    Ok(answer["choices"][0]["message"]["content"].as_str().context("a text")?.to_owned())
}

#[tokio::test]
async fn model_that_cannot_be_loaded_is_named_with_the_reason_and_without_its_path() -> Result<()> {
    let folder = tempfile::tempdir()?;
    std::fs::write(folder.path().join("model.gguf"), "not a model")?;
    let model = ["--model".to_owned(), format!("broken={}", folder.path().display())];
    let server = start(&model, &[]).await?;
    let ready: Value = reqwest::get(server.url("/readyz")).await?.json().await?;
    let models = ready["models"].as_array().context("models")?;
    let broken = models.iter().find(|model| model["name"] == "broken").context("the model")?;
    assert_eq!((&ready["status"], &broken["ready"]), (&json!("ready"), &json!(false)), "{ready}");
    let reason = broken["reason"].as_str().context("a reason")?;
    assert!(reason.starts_with("model.gguf: not a GGUF file"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn greedy_text_is_the_same_alone_in_a_batch_and_after_a_restart() -> Result<()> {
    let arguments = arguments()?;
    let server = start(&arguments, &[]).await?;
    let ready: Value = reqwest::get(server.url("/readyz")).await?.json().await?;
    let is_named = |model: &Value| model["name"] == NAME && model["ready"] == true;
    assert!(ready["models"].as_array().context("models")?.iter().any(is_named), "{ready}");
    let alone = generate(&server, "Name three colours.", 24).await?;
    assert!(!alone.is_empty());
    let others = ["What is rain?", "Count to ten.", "Tell me about the sea.", "Name three colours."];
    let batched = try_join_all(others.iter().map(|text| generate(&server, text, 24))).await?;
    assert_eq!(batched[3], alone);
    assert_eq!(generate(&server, "Name three colours.", 24).await?, alone, "its prompt is in the cache");
    let text =
        send(&server, "/v1/chat/completions", &chat_request("Name three colours.", 24, true)).await?.text().await?;
    assert_eq!(text_of(&frames(&text)?), alone);
    drop(server);
    let server = start(&arguments, &["generate.threads=1"]).await?;
    assert_eq!(generate(&server, "Name three colours.", 24).await?, alone);
    let mut body = chat_request("Write a sentence.", 16, false);
    (body["temperature"], body["seed"]) = (1.0.into(), 5.into());
    let mut texts = Vec::new();
    for _ in 0..2 {
        let answer: Value = send(&server, "/v1/chat/completions", &body).await?.json().await?;
        texts.push(answer["choices"][0]["message"]["content"].clone());
    }
    assert_eq!(texts[0], texts[1], "the same seed");
    Ok(())
}

/// The prefix of an earlier prompt is not computed again: of a prompt with a shared system message, at most a twentieth of the tokens of
/// the first one is computed.
#[tokio::test]
async fn shared_system_message_is_computed_once() -> Result<()> {
    let arguments = arguments()?;
    let server = start(&arguments, &[REQUEST_TIMEOUT]).await?;
    let system = "You answer questions about the sea, its fish and its ships. ".repeat(80);
    let mut computed = Vec::new();
    let mut before = 0.0;
    for question in ["Why is it salty?", "What is a tide?"] {
        let mut body = chat_request(question, 4, false);
        body["messages"] = json!([{ "role": "system", "content": system }, { "role": "user", "content": question }]);
        let answer: Value = send(&server, "/v1/chat/completions", &body).await?.error_for_status()?.json().await?;
        let now = server.metric("weir_generate_prefill_tokens_total").await?;
        computed.push(now - before);
        before = now;
        // The last token of a prompt is computed with the first sample, and not counted.
        let usage = &answer["usage"];
        let cached = usage["prompt_tokens_details"]["cached_tokens"].as_f64().context("a count")?;
        let rest = usage["prompt_tokens"].as_f64().context("a count")? - cached;
        assert!((rest - 1.0..=rest).contains(&computed[computed.len() - 1]), "{computed:?} {answer}");
    }
    assert!(computed[0] > 800.0 && computed[1] * 20.0 <= computed[0], "{computed:?}");
    Ok(())
}

/// Time for a text of some hundred tokens on a busy machine.
const TEXT_PATIENCE: Duration = Duration::from_secs(180);
/// The timeout of requests, which no text reaches on a busy machine.
const REQUEST_TIMEOUT: &str = "http.request_timeout_ms=600000";

/// Reads a stream until a condition on its text is true.
async fn read_until(answer: &mut Response, mut is_enough: impl FnMut(&str) -> bool) -> Result<String> {
    let read = async {
        let mut text = String::new();
        while !is_enough(&text) {
            text += std::str::from_utf8(&answer.chunk().await?.context("a stream that continues")?)?;
        }
        Ok(text)
    };
    tokio::time::timeout(TEXT_PATIENCE, read).await.context("a stream that continues in time")?
}

/// The text of the frames that are complete.
fn complete(text: &str) -> &str {
    text.rfind("\n\n").map_or("", |end| &text[..end])
}

#[tokio::test]
async fn killed_server_keeps_the_exact_prefix_of_three_generations() -> Result<()> {
    let arguments = arguments()?;
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    let settings = ["events.store=disk", "events.durable=true", &path, "events.lease_ms=1000", REQUEST_TIMEOUT];
    let mut server = start(&arguments, &settings).await?;
    let prompts = ["Tell me about the sea.", "Tell me about the sun.", "Tell me about the rain."];
    let mut streams = Vec::new();
    for prompt in prompts {
        streams.push(send(&server, "/v1/chat/completions?detach=true", &chat_request(prompt, 1800, true)).await?);
    }
    let mut before = Vec::new();
    for answer in &mut streams {
        let id = answer.headers()["x-weir-generation"].to_str()?.to_owned();
        before
            .push((id, read_until(answer, |text| frames(complete(text)).is_ok_and(|frames| frames.len() > 5)).await?));
    }
    ensure!(server.metric("weir_generate_requests_running").await? == 3.0, "a generation has ended before the crash");
    server.signal("KILL")?;
    server.wait().await?;
    let server = start(&arguments, &settings).await?;
    for ((id, received), prompt) in before.into_iter().zip(prompts) {
        let stored = reqwest::get(server.url(&format!("/v1/generations/{id}?stream=true"))).await?.text();
        let stored = tokio::time::timeout(PATIENCE, stored).await.context("a stored stream has an end")??;
        let (received, stored) = (frames(complete(&received))?, frames(&stored)?);
        assert!(stored.starts_with(&received), "{received:?}\n---\n{stored:?}");
        assert_eq!(stored.last().context("a frame")?["error"]["code"], "interrupted", "{stored:?}");
        let generated = text_of(&stored);
        // The same request generates the same text up to the point of the crash.
        let mut again = send(&server, "/v1/chat/completions", &chat_request(prompt, 1800, true)).await?;
        let enough = |text: &str| frames(complete(text)).is_ok_and(|frames| text_of(&frames).len() >= generated.len());
        let again = read_until(&mut again, enough).await?;
        let again = text_of(&frames(complete(&again))?);
        assert!(again.starts_with(&generated) && !generated.is_empty(), "{generated}\n---\n{again}");
    }
    Ok(())
}

/// Sends a request, waits for a state of the server, and disconnects; returns when the generation is cancelled.
async fn disconnect_when(
    server: &Server,
    body: Value,
    state: &str,
    is_state: impl AsyncFn() -> Result<bool>,
) -> Result<()> {
    let before = cancelled(server).await?;
    let request = Client::new().post(server.url("/v1/chat/completions")).json(&body).send();
    let request = tokio::spawn(async move { request.await?.text().await });
    until(state, &is_state).await?;
    request.abort();
    until("the generation is cancelled", async || Ok(cancelled(server).await? > before)).await
}

#[tokio::test]
async fn disconnected_client_frees_its_pages_queued_prefilling_and_not_streaming() -> Result<()> {
    const TOKENS: u32 = 2048;
    let arguments = arguments()?;
    let cache = format!("generate.cache_tokens_max={TOKENS}");
    // One request at a time, and its prompt in the smallest parts.
    let server = &start(&arguments, &[&cache, "generate.running_max=1", "generate.step_ms=1", REQUEST_TIMEOUT]).await?;
    let metric = async |name: &str| server.metric(name).await;
    let is_running = async || Ok(metric("weir_generate_requests_running").await? >= 1.0);
    let is_queued = async || Ok(metric("weir_generate_requests_queued").await? >= 1.0);
    let is_idle = async || {
        Ok(metric("weir_generate_requests_running").await? + metric("weir_generate_requests_queued").await? == 0.0)
    };

    // While it generates, and its client waits for the whole text.
    disconnect_when(server, chat_request("Tell me about the sea.", 1500, false), "it runs", is_running).await?;
    until("nothing runs or waits", is_idle).await?;

    // While its prompt is computed: a part is computed, and no token is sampled before the cancellation. On a fast machine the prompt may
    // be complete before: then another prompt is tried.
    let mut was_prefilling = false;
    for attempt in 0..5 {
        let prompt = format!("{attempt}. {}", "The sea is wide and deep. ".repeat(240));
        let (prefilled, sampled) = ("weir_generate_prefill_tokens_total", "weir_generate_tokens_total");
        let (prefilled_before, sampled_before) = (metric(prefilled).await?, metric(sampled).await?);
        let is_prefilling = async || Ok(metric(prefilled).await? > prefilled_before);
        disconnect_when(server, chat_request(&prompt, 100, false), "its prompt is computed", is_prefilling).await?;
        until("nothing runs or waits", is_idle).await?;
        was_prefilling = metric(sampled).await? == sampled_before;
        if was_prefilling {
            break;
        }
    }
    assert!(was_prefilling, "in five attempts the prompt was computed before the client disconnected");

    // While it is queued behind another, which continues to its end.
    let first = send(server, "/v1/chat/completions", &chat_request("Tell me about the sun.", 300, true)).await?;
    until("the first runs", is_running).await?;
    disconnect_when(server, chat_request("Tell me about the rain.", 900, true), "the second is queued", is_queued)
        .await?;
    let text = tokio::time::timeout(TEXT_PATIENCE, first.text()).await.context("the first ends")??;
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    until("nothing runs or waits", is_idle).await?;

    // A request that reserves nearly all pages starts only if each cancelled one has freed its pages.
    let mut last = send(server, "/v1/chat/completions", &chat_request("Say yes.", TOKENS - 100, true)).await?;
    let first_text =
        read_until(&mut last, |text| frames(complete(text)).is_ok_and(|frames| !text_of(&frames).is_empty()));
    first_text.await.context("the pages of a cancelled generation are free")?;
    Ok(())
}
