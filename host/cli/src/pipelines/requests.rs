//! Requests to a running server.

use anyhow::{Context, bail};
use http::Method;
use serde_json::Value;
use weir_adapters::http::HttpResponse;

use crate::remote::Client;

/// The default timeout of a response, in seconds.
pub(super) const TIMEOUT_S: f64 = 30.0;

/// Sends a request. Its response has a status below 400.
pub(super) async fn send(
    client: &Client,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> anyhow::Result<HttpResponse> {
    let response = client.send(method, path, headers, body).await?;
    let status = response.status();
    if status.as_u16() < 400 {
        return Ok(response);
    }
    let problem: Value = serde_json::from_str(&response.text(client.timeout()).await?).unwrap_or_default();
    let message = problem["detail"].as_str().or(problem["error"].as_str()).unwrap_or_default();
    let fields = problem["errors"].as_array().into_iter().flatten().filter_map(|error| error["message"].as_str());
    let fields: Vec<&str> = fields.filter(|field| !message.contains(field)).collect();
    let fields = if fields.is_empty() { String::new() } else { format!(": {}", fields.join("; ")) };
    bail!("{method} {path}: the server answers {status}: {message}{fields}")
}

/// Sends a request and reads the JSON of its response.
pub(super) async fn json(
    client: &Client,
    method: &Method,
    path: &str,
    headers: &[(&str, &str)],
    body: Option<&str>,
) -> anyhow::Result<Value> {
    let response = send(client, method, path, headers, body).await?;
    let text = response.text(client.timeout()).await?;
    serde_json::from_str(&text).with_context(|| format!("the response of {path} is not JSON"))
}
