//! Generated text: the dialects over HTTP; generations that are resumed, cancelled and interrupted; clients of other servers.

mod clients;
mod dialects;
mod language_model;
mod llama_server;
mod resume;
mod steps;
mod summaries;
mod upstreams;

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Server};

/// The text that the stand-in for the generate component generates.
const GENERATED_TEXT: &str = "One two three four five.";

/// A chat with one message.
fn chat(text: &str) -> Value {
    json!({ "model": "stub", "messages": [{ "role": "user", "content": text }] })
}

/// [`chat`] as a stream.
fn streamed(text: &str) -> Value {
    let mut body = chat(text);
    body["stream"] = true.into();
    body
}

/// Posts JSON with `Accept: application/json`, which clients of OpenAI send also where they request a stream.
async fn send(server: &Server, path: &str, body: &Value) -> Result<Response> {
    let request = Client::new().post(server.url(path)).header("accept", "application/json").json(body);
    Ok(request.send().await?)
}

/// The JSON of the data lines of an SSE stream, without `[DONE]`.
fn frames(text: &str) -> Result<Vec<Value>> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).with_context(|| data.to_owned())).collect()
}

/// The concatenated text of the chunks of a chat.
fn text_of(frames: &[Value]) -> String {
    frames.iter().filter_map(|frame| frame.pointer("/choices/0/delta/content")?.as_str()).collect()
}

/// The number of cancelled generations.
async fn cancelled(server: &Server) -> Result<u64> {
    let metrics = reqwest::get(server.url("/metrics")).await?.text().await?;
    let lines = metrics.lines().filter(|line| line.starts_with("weir_generate_requests_cancelled_total"));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64)
}

/// Waits until a condition is true.
async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = std::time::Instant::now();
    while !condition().await? {
        anyhow::ensure!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
