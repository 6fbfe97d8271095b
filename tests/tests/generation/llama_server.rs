//! A real llama-server as an upstream: `WEIR_TEST_LLAMA_SERVER` names its folder and `WEIR_TEST_LM` the model that it serves;
//! `cargo xtask test` sets both.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Server, ndjson, tool};

use crate::{frames, send, text_of, until};

const QUESTION: &str = "Name three colours.";
const TOKENS_MAX: u32 = 24;

/// A server with llama-server as its only model.
struct Fixture {
    server: Server,
    /// Killed when dropped.
    llama: Server,
    _dir: tempfile::TempDir,
}

impl Fixture {
    async fn start(kind: &str, more: &str) -> Result<Self> {
        let (folder, model) = (tool("WEIR_TEST_LLAMA_SERVER")?, tool("WEIR_TEST_LM")?);
        let mut command = Command::new(folder.join("llama-server"));
        command.env("LD_LIBRARY_PATH", &folder).arg("--model").arg(model);
        // Computed by the processor, with two concurrent requests.
        command.args(["--host", "127.0.0.1", "--port", "0", "--no-webui", "-ngl", "0", "-c", "4096", "-np", "2"]);
        let llama = Server::spawn(command, "listening on http://")?;
        let health = format!("http://{}/health", llama.address());
        until("llama-server has loaded its model", async || {
            Ok(reqwest::get(&health).await.is_ok_and(|response| response.status() == 200))
        })
        .await?;
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("weir.toml");
        let base = if kind == "openai" { "/v1" } else { "" };
        let url = llama.url(base);
        let table = format!("[[upstream]]\nname = 'llama'\nkind = '{kind}'\nurl = '{url}'\nmodels = ['*']\n{more}\n");
        std::fs::write(&file, table)?;
        let server = Server::start_stub(&["--config", file.to_str().context("a path")?]).await?;
        Ok(Self { server, llama, _dir: dir })
    }

    /// The response of llama-server to a direct request.
    async fn direct(&self) -> Result<Value> {
        let answer =
            Client::new().post(self.llama.url("/v1/chat/completions")).json(&chat_request(false)).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// Whether llama-server generates.
    async fn is_busy(&self) -> Result<bool> {
        let slots: Value = reqwest::get(self.llama.url("/slots")).await?.json().await?;
        let slots = slots.as_array().with_context(|| slots.to_string())?;
        Ok(slots.iter().any(|slot| slot["is_processing"] == true))
    }
}

fn messages(text: &str) -> Value {
    json!([{ "role": "user", "content": text }])
}

fn chat_request(stream: bool) -> Value {
    json!({ "model": "m", "messages": messages(QUESTION), "temperature": 0, "max_tokens": TOKENS_MAX, "stream": stream })
}

#[tokio::test]
async fn llama_server_generates_in_every_dialect() -> Result<()> {
    let fixture = Fixture::start("openai", "").await?;
    let server = &fixture.server;
    let direct = fixture.direct().await?;
    let text = direct["choices"][0]["message"]["content"].as_str().context("a text")?.to_owned();
    assert!(text.len() > 20, "{direct}");

    let whole: Value = send(server, "/v1/chat/completions", &chat_request(false)).await?.json().await?;
    assert_eq!(whole["choices"][0]["message"]["content"], text);
    assert_eq!(whole["choices"][0]["finish_reason"], direct["choices"][0]["finish_reason"]);
    for count in ["prompt_tokens", "completion_tokens", "total_tokens"] {
        assert_eq!(whole["usage"][count], direct["usage"][count], "{count}");
    }
    let stream = send(server, "/v1/chat/completions", &chat_request(true)).await?.text().await?;
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    let chunks = frames(&stream)?;
    assert_eq!(text_of(&chunks), text);
    assert!(chunks.len() > 10, "a chunk for about each token: {}", chunks.len());

    let body = json!({ "model": "m", "messages": messages(QUESTION), "temperature": 0, "max_tokens": TOKENS_MAX });
    let plain = Client::new().post(server.url("/generate-stream")).json(&body).send().await?;
    assert_eq!((plain.status().as_u16(), plain.text().await?), (200, text.clone()));
    let lines = Client::new().post(server.url("/generate-stream")).header("accept", "application/x-ndjson");
    let events = ndjson(&lines.json(&body).send().await?.text().await?)?;
    assert_eq!(events.last().context("an event")?["usage"]["completion_tokens"], direct["usage"]["completion_tokens"]);

    let response = json!({ "model": "m", "input": QUESTION, "temperature": 0, "max_output_tokens": TOKENS_MAX });
    let response: Value = send(server, "/v1/responses", &response).await?.json().await?;
    assert_eq!(response["output"][0]["content"][0]["text"], text, "{response}");
    let message: Value = send(server, "/v1/messages", &body).await?.json().await?;
    assert_eq!(message["content"][0]["text"], text, "{message}");
    let settings = json!({ "temperature": 0, "maxOutputTokens": TOKENS_MAX });
    let contents = json!([{ "role": "user", "parts": [{ "text": QUESTION }] }]);
    let gemini = json!({ "contents": contents, "generationConfig": settings });
    let stream = send(server, "/v1beta/models/m:streamGenerateContent?alt=sse", &gemini).await?.text().await?;
    let parts = frames(&stream)?;
    let parts = parts.iter().filter_map(|chunk| chunk.pointer("/candidates/0/content/parts/0/text")?.as_str());
    assert_eq!(parts.collect::<String>(), text);
    // A text to continue, without a template.
    let prompt = json!({ "model": "m", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 5 });
    let completion: Value = send(server, "/v1/completions", &prompt).await?.json().await?;
    assert!(completion["choices"][0]["text"].as_str().is_some_and(|text| text.contains("Paris")), "{completion}");
    Ok(())
}

#[tokio::test]
async fn llama_server_generates_by_the_api_of_anthropic() -> Result<()> {
    let fixture = Fixture::start("anthropic", "").await?;
    let direct = fixture.direct().await?;
    let stream = send(&fixture.server, "/v1/chat/completions", &chat_request(true)).await?.text().await?;
    assert!(stream.ends_with("data: [DONE]\n\n"), "{stream}");
    assert_eq!(text_of(&frames(&stream)?), direct["choices"][0]["message"]["content"].as_str().context("a text")?);
    Ok(())
}

#[tokio::test]
async fn client_that_disconnects_ends_the_generation_of_llama_server() -> Result<()> {
    let fixture = Fixture::start("openai", "").await?;
    for stream in [true, false] {
        let mut body = chat_request(stream);
        (body["max_tokens"], body["temperature"]) = (1900.into(), 1.into());
        body["messages"] = messages("Tell a long story about the sea.");
        let request = Client::new().post(fixture.server.url("/v1/chat/completions")).json(&body).send();
        let request = tokio::spawn(async move { request.await?.text().await });
        until("llama-server generates", async || fixture.is_busy().await).await?;
        request.abort();
        until("llama-server is idle", async || Ok(!fixture.is_busy().await?)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn llama_server_that_is_killed_ends_the_stream_with_an_error() -> Result<()> {
    let fixture = Fixture::start("openai", "retry_max_attempts = 1").await?;
    let mut body = chat_request(true);
    (body["max_tokens"], body["messages"]) = (1900.into(), messages("Tell a long story about the sea."));
    let mut answer = send(&fixture.server, "/v1/chat/completions", &body).await?;
    let mut text = Vec::new();
    let read = async {
        while text.windows(2).filter(|pair| pair == b"\n\n").count() < 5 {
            text.extend(answer.chunk().await?.context("a stream that continues")?);
        }
        fixture.llama.signal("KILL")?;
        while let Some(chunk) = answer.chunk().await? {
            text.extend(chunk);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, read).await.context("the stream has an end")??;
    let text = String::from_utf8(text)?;
    let frames = frames(&text)?;
    assert!(!text.contains("[DONE]") && !text.contains("\"finish_reason\":\""), "{text}");
    assert!(!text_of(&frames).is_empty());
    assert_eq!(frames.last().context("a frame")?["error"]["code"], "model_unavailable", "{text}");
    let body = chat_request(false);
    let answer = send(&fixture.server, "/v1/chat/completions", &body);
    let answer = tokio::time::timeout(Duration::from_secs(30), answer).await.context("an answer")??;
    assert_eq!(answer.status(), 503);
    Ok(())
}
