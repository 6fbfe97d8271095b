//! The operations of a client of Weir, one function each: classify, send lines, publish, follow, feed a session, run a pipeline.

use anyhow::{Context, Result, ensure};
use reqwest::{Body, Client, Response};
use serde_json::{Value, json};

use crate::follow::Follower;
use crate::{Server, ndjson, pipelines};

/// The media type of newline-delimited JSON.
pub const NDJSON: &str = "application/x-ndjson";

/// Posts JSON; the status and the body of the response.
pub async fn post(server: &Server, path: &str, body: &Value) -> Result<(u16, Value)> {
    let response = Client::new().post(server.url(path)).json(body).send().await?;
    let status = response.status().as_u16();
    let text = response.text().await?;
    Ok((status, serde_json::from_str(&text).with_context(|| format!("{status}: {text}"))?))
}

/// Posts a body of a media type.
pub async fn post_body(server: &Server, path: &str, content_type: &str, body: impl Into<Body>) -> Result<Response> {
    Ok(Client::new().post(server.url(path)).header("content-type", content_type).body(body).send().await?)
}

/// Posts a body of a media type; the lines of the response, whose status must be 200.
pub async fn post_lines(server: &Server, path: &str, content_type: &str, body: impl Into<Body>) -> Result<Vec<Value>> {
    let response = post_body(server, path, content_type, body).await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    ensure!(response.headers()["content-type"] == NDJSON, "{:?}", response.headers());
    ndjson(&response.text().await?)
}

/// Values as an NDJSON body.
pub fn ndjson_body(lines: &[Value]) -> String {
    lines.iter().map(|line| format!("{line}\n")).collect()
}

/// The scores of all labels of each text, in the order of the texts.
pub async fn classify(server: &Server, texts: &[&str]) -> Result<Vec<Value>> {
    let (status, response) = post(server, "/v1/classify", &json!({"inputs": texts})).await?;
    ensure!(status == 200, "{response}");
    Ok(response["outputs"].as_array().context("outputs")?.clone())
}

/// Publishes an event of a workflow whose message is `nN`; the status and the body of the response.
pub async fn try_publish(server: &Server, workflow: &str, n: u32) -> Result<(u16, Value)> {
    let body = json!({"step": "work", "progress": n % 100, "message": format!("n{n}")});
    post(server, &format!("/stream/publish/workflow/{workflow}"), &body).await
}

/// [`try_publish`], which must succeed; the id of the event.
pub async fn publish(server: &Server, workflow: &str, n: u32) -> Result<String> {
    let (status, response) = try_publish(server, workflow, n).await?;
    ensure!(status == 200, "{status}: {response}");
    Ok(response["id"].as_str().context("an id")?.to_owned())
}

/// Follows a channel, given as `workflow/42`, from its beginning.
pub async fn follow(server: &Server, channel: &str) -> Result<Follower> {
    Follower::open(server, &format!("/stream/{channel}"), None).await
}

/// Creates a stored session; its id.
pub async fn create_session(server: &Server, config: &Value) -> Result<String> {
    let response = Client::new().post(server.url("/sessions")).json(config).send().await?;
    ensure!(response.status() == 201, "{}", response.text().await?);
    let location = response.headers()["location"].to_str()?.to_owned();
    let response: Value = response.json().await?;
    ensure!(response["links"]["self"] == location, "{response}");
    Ok(response["session_id"].as_str().context("an id")?.to_owned())
}

/// The path of a session's chunks.
pub fn chunks_path(session: &str) -> String {
    format!("/sessions/{session}/chunks")
}

/// Feeds a session in one request; the lines of the response.
pub async fn feed(server: &Server, session: &str, chunks: &[Value]) -> Result<Vec<Value>> {
    post_lines(server, &chunks_path(session), NDJSON, ndjson_body(chunks)).await
}

/// Ends a session; the lines of the response.
pub async fn end_session(server: &Server, session: &str) -> Result<Vec<Value>> {
    let response = Client::new().post(server.url(&format!("/sessions/{session}/end"))).send().await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    ndjson(&response.text().await?)
}

/// Runs a pipeline to its end; its output.
pub async fn pipeline(server: &Server, name: &str, input: &Value) -> Result<Value> {
    let status = pipelines::run(server, name, input).await?;
    ensure!(status["state"] == "completed", "{status}");
    Ok(status["output"].clone())
}
