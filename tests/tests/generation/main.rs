//! Generated text: the dialects over sockets, generations that are resumed, cancelled and interrupted, and the clients of other servers.

mod clients;
mod dialects;
mod resume;
mod steps;

use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Server};

/// What the stand-in generates.
const SAID: &str = "One two three four five.";

/// A chat with one message.
fn chat(text: &str) -> Value {
    json!({ "model": "stub", "messages": [{ "role": "user", "content": text }] })
}

/// The same as a stream.
fn streamed(text: &str) -> Value {
    let mut body = chat(text);
    body["stream"] = true.into();
    body
}

/// Posts JSON as OpenAI's clients do, which accept JSON also where they ask for a stream.
async fn send(server: &Server, path: &str, body: &Value) -> Result<Response> {
    let request = Client::new().post(server.url(path)).header("accept", "application/json").json(body);
    Ok(request.send().await?)
}

/// The JSON of the data lines of a stream.
fn frames(text: &str) -> Result<Vec<Value>> {
    let data = text.lines().filter_map(|line| line.strip_prefix("data: ")).filter(|data| *data != "[DONE]");
    data.map(|data| serde_json::from_str(data).with_context(|| data.to_owned())).collect()
}

/// The text that chunks of a chat add up to.
fn text_of(frames: &[Value]) -> String {
    frames.iter().filter_map(|frame| frame.pointer("/choices/0/delta/content")?.as_str()).collect()
}

/// How many generations were cancelled.
async fn cancelled(server: &Server) -> Result<u64> {
    let metrics = reqwest::get(server.url("/metrics")).await?.text().await?;
    let lines = metrics.lines().filter(|line| line.starts_with("weir_generate_requests_cancelled_total"));
    Ok(lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum::<f64>() as u64)
}

/// Waits until a condition holds.
async fn until(what: &str, mut holds: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let began = std::time::Instant::now();
    while !holds().await? {
        anyhow::ensure!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}
