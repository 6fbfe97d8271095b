//! The language model of the demo over HTTP: `WEIR_TEST_LM` names its file, and `cargo xtask test` sets it.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::Server;

use crate::{cancelled, frames, send, text_of, until};

const NAME: &str = "smollm";

/// The arguments that serve the model; none where it is not here.
fn arguments() -> Option<Vec<String>> {
    let Some(file) = std::env::var_os("WEIR_TEST_LM").map(PathBuf::from) else {
        eprintln!("WEIR_TEST_LM is not set: `cargo xtask setup` fetches the model");
        return None;
    };
    Some(vec!["--model".to_owned(), format!("{NAME}={}", file.parent()?.display())])
}

/// A server with the model, and with more settings.
async fn start(arguments: &[String], settings: &[&str]) -> Result<Server> {
    let settings = settings.iter().flat_map(|setting| ["--set", setting]);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).chain(settings).collect();
    Server::start_stub(&arguments).await
}

fn ask(text: &str, tokens_max: u32, stream: bool) -> Value {
    json!({
        "model": NAME, "messages": [{ "role": "user", "content": text }], "temperature": 0, "max_tokens": tokens_max,
        "stream": stream,
    })
}

async fn generate(server: &Server, text: &str, tokens_max: u32) -> Result<String> {
    let answer = send(server, "/v1/chat/completions", &ask(text, tokens_max, false)).await?;
    let answer: Value = answer.error_for_status()?.json().await?;
    Ok(answer["choices"][0]["message"]["content"].as_str().context("a text")?.to_owned())
}

/// A value of the metrics, in whole numbers.
async fn metric(server: &Server, name: &str) -> Result<u64> {
    Ok(server.metric(name).await? as u64)
}

#[tokio::test]
async fn greedy_text_is_the_same_alone_in_company_and_after_a_restart() -> Result<()> {
    let Some(arguments) = arguments() else { return Ok(()) };
    let server = start(&arguments, &[]).await?;
    let ready: Value = reqwest::get(server.url("/readyz")).await?.json().await?;
    let is_named = |model: &Value| model["name"] == NAME && model["ready"] == true;
    assert!(ready["models"].as_array().context("models")?.iter().any(is_named), "{ready}");
    let alone = generate(&server, "Name three colours.", 24).await?;
    assert!(!alone.is_empty());
    let others = ["What is rain?", "Count to ten.", "Tell me about the sea.", "Name three colours."];
    let company = try_join_all(others.iter().map(|text| generate(&server, text, 24))).await?;
    assert_eq!(company[3], alone);
    assert_eq!(generate(&server, "Name three colours.", 24).await?, alone, "its prompt is in the cache");
    let text = send(&server, "/v1/chat/completions", &ask("Name three colours.", 24, true)).await?.text().await?;
    assert_eq!(text_of(&frames(&text)?), alone);
    drop(server);
    let server = start(&arguments, &["generate.threads=1"]).await?;
    assert_eq!(generate(&server, "Name three colours.", 24).await?, alone);
    let mut body = ask("Write a sentence.", 16, false);
    (body["temperature"], body["seed"]) = (1.0.into(), 5.into());
    let mut texts = Vec::new();
    for _ in 0..2 {
        let answer: Value = send(&server, "/v1/chat/completions", &body).await?.json().await?;
        texts.push(answer["choices"][0]["message"]["content"].clone());
    }
    assert_eq!(texts[0], texts[1], "the same seed");
    Ok(())
}

#[tokio::test]
async fn killed_server_keeps_the_exact_prefix_of_three_generations() -> Result<()> {
    let Some(arguments) = arguments() else { return Ok(()) };
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    let settings = ["events.store=disk", "events.durable=true", path.as_str(), "events.lease_ms=1000"];
    let mut server = start(&arguments, &settings).await?;
    let prompts = ["Tell me about the sea.", "Tell me about the sun.", "Tell me about the rain."];
    let mut streams = Vec::new();
    for prompt in prompts {
        streams.push(send(&server, "/v1/chat/completions?detach=true", &ask(prompt, 400, true)).await?);
    }
    // Each has shown some of its text.
    let mut before = Vec::new();
    for mut answer in streams {
        let id = answer.headers()["x-weir-generation"].to_str()?.to_owned();
        let mut seen = Vec::new();
        while seen.windows(2).filter(|pair| pair == b"\n\n").count() < 5 {
            seen.extend(answer.chunk().await?.context("a stream that continues")?);
        }
        before.push((id, String::from_utf8(seen)?));
    }
    assert_eq!(metric(&server, "weir_generate_requests_running").await?, 3, "all of them run");
    server.signal("KILL")?;
    server.wait().await?;
    let server = start(&arguments, &settings).await?;
    for ((id, seen), prompt) in before.into_iter().zip(prompts) {
        let text = reqwest::get(server.url(&format!("/v1/generations/{id}?stream=true"))).await?.text().await?;
        assert!(text.starts_with(&seen), "{seen}\n---\n{text}");
        let frames = frames(&text)?;
        assert_eq!(frames.last().context("a frame")?["error"]["code"], "interrupted", "{text}");
        let said = text_of(&frames);
        let whole = generate(&server, prompt, 400).await?;
        assert!(whole.starts_with(&said) && !said.is_empty(), "{said}\n---\n{whole}");
    }
    Ok(())
}

/// A client that leaves frees what its generation has while it is queued, while its prompt is computed, and where it waits for the whole.
#[tokio::test]
async fn client_that_leaves_frees_its_pages_queued_prefilling_and_not_streaming() -> Result<()> {
    const TOKENS: u32 = 1024;
    let Some(arguments) = arguments() else { return Ok(()) };
    let cache = format!("generate.cache_tokens_max={TOKENS}");
    // One at a time, prompts in small parts.
    let server = start(&arguments, &[&cache, "generate.running_max=1", "generate.step_ms=1"]).await?;
    let long = "The sea is wide and deep. ".repeat(100);
    let leave = async |body: Value, wait: &str, metric_name: &str| -> Result<()> {
        let request = Client::new().post(server.url("/v1/chat/completions")).json(&body).send();
        let request = tokio::spawn(async move { request.await?.text().await });
        until(wait, async || Ok(metric(&server, metric_name).await? >= 1)).await?;
        let before = cancelled(&server).await?;
        request.abort();
        until("the generation is cancelled", async || Ok(cancelled(&server).await? > before)).await
    };
    // While it generates and its client waits for the whole.
    leave(ask("Tell me about the sea.", 900, false), "it runs", "weir_generate_requests_running").await?;
    // While its prompt is computed: it has not begun, and nothing else has.
    leave(ask(&long, 100, false), "its prompt is computed", "weir_generate_requests_queued").await?;
    // While it is queued behind another, which then continues to its end.
    let first = send(&server, "/v1/chat/completions", &ask("Tell me about the sun.", 200, true)).await?;
    until("the first runs", async || Ok(metric(&server, "weir_generate_requests_running").await? == 1)).await?;
    leave(ask("Tell me about the rain.", 900, true), "the second is queued", "weir_generate_requests_queued").await?;
    assert!(!text_of(&frames(&first.text().await?)?).is_empty());
    until("nothing runs or waits", async || {
        let running = metric(&server, "weir_generate_requests_running").await?;
        Ok(running + metric(&server, "weir_generate_requests_queued").await? == 0)
    })
    .await?;
    // All pages are there for one that needs nearly all of them; had one of the four kept its own, it would wait for ever.
    let fits = tokio::time::timeout(Duration::from_secs(120), generate(&server, "Say yes.", TOKENS - 100));
    assert!(!fits.await.context("the pages of a cancelled generation are free")??.is_empty());
    Ok(())
}
