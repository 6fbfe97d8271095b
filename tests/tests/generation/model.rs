//! The language model of the demo over HTTP: `WEIR_TEST_LM` names its file, and `cargo xtask test` sets it.

use std::path::PathBuf;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use serde_json::{Value, json};
use weir_tests::Server;

use crate::{frames, send, text_of};

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

#[tokio::test]
async fn greedy_text_is_the_same_alone_in_a_batch_and_after_a_restart() -> Result<()> {
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
