//! The clients of other servers, unchanged: each streams, asks for the whole, and meets errors.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{Server, root, tool};

use crate::SAID;

/// What a client from PyPI understood.
async fn python(server: &Server, client: &str) -> Result<Value> {
    let mut command = Command::new(tool("WEIR_TEST_PYTHON")?);
    command.arg(root().join("tests/readers/generation.py"));
    run(command, server, client).await
}

/// What a client from npm understood.
async fn node(server: &Server, client: &str) -> Result<Value> {
    // A module from the standard input finds the packages of the working folder.
    let script = std::fs::File::open(root().join("tests/readers/generation.mjs"))?;
    let mut command = Command::new("node");
    command.args(["--input-type=module", "-"]).current_dir(tool("WEIR_TEST_NPM")?).stdin(script);
    run(command, server, client).await
}

async fn run(mut command: Command, server: &Server, client: &str) -> Result<Value> {
    let home = tempfile::tempdir()?;
    // It has nobody else to ask, and nothing to keep.
    command.arg(client).arg(server.url("")).env("HF_HOME", home.path()).env("HF_HUB_DISABLE_TELEMETRY", "1");
    command
        .env_remove("HF_TOKEN")
        .env_remove("OPENAI_API_KEY")
        .env("NO_PROXY", "*")
        .env("TIKTOKEN_CACHE_DIR", home.path());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), server.log());
    let text = String::from_utf8_lossy(&output.stdout);
    // Some greet before they answer.
    Ok(serde_json::from_str(text.trim_end().lines().last().unwrap_or_default())?)
}

#[tokio::test]
async fn openai_for_python_understands_chats_responses_and_errors() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let found = python(&server, "openai").await?;
    assert_eq!(found["stream"], SAID);
    assert_eq!(found["usage"][1], 5);
    assert_eq!(found["whole"], json!(["One two", "length"]));
    assert_eq!(found["tool"], json!(["tool_calls", "weather"]));
    assert_eq!(found["broken"], "APIError");
    assert_eq!(found["unknown"], json!(["NotFoundError", "model_not_found"]));
    assert_eq!((&found["responses"], &found["response"]), (&json!(SAID), &json!([SAID, "completed"])));
    assert_eq!((&found["resumed"], &found["completions"]), (&json!(true), &json!(SAID)));
    assert_eq!(found["models"], json!(["stub"]));
    Ok(())
}

#[tokio::test]
async fn anthropic_for_python_understands_messages_and_errors() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let found = python(&server, "anthropic").await?;
    assert_eq!((&found["stream"], &found["whole"]), (&json!(SAID), &json!(["One two", "max_tokens"])));
    assert_eq!(found["tool"], json!(["tool_use", "weather", { "city": "Bern" }]));
    assert_eq!((&found["usage"][1], &found["broken"]), (&json!(5), &json!(true)));
    assert_eq!(found["count"], found["usage"][0]);
    Ok(())
}

#[tokio::test]
async fn google_genai_for_python_understands_streams_without_comments() -> Result<()> {
    let server = Server::start_generate_stub(&["--set", "events.heartbeat_ms=100"]).await?;
    let found = python(&server, "google").await?;
    assert_eq!((&found["stream"], &found["whole"]), (&json!(SAID), &json!(["One two", "MAX_TOKENS"])));
    assert_eq!((&found["usage"][1], &found["unknown"]), (&json!(5), &json!(404)));
    assert_eq!(found["count"], found["usage"][0]);
    Ok(())
}

#[tokio::test]
async fn litellm_understands_three_dialects() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let said = json!([SAID, SAID]);
    assert_eq!(python(&server, "litellm").await?, json!({ "openai": said, "anthropic": said, "gemini": said }));
    Ok(())
}

#[tokio::test]
async fn langchain_and_huggingface_hub_understand_chats() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    for client in ["langchain", "huggingface"] {
        assert_eq!(python(&server, client).await?, json!({ "stream": SAID, "whole": SAID }), "{client}");
    }
    Ok(())
}

#[tokio::test]
async fn openai_and_anthropic_for_javascript_understand_streams() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let found = node(&server, "openai").await?;
    assert_eq!((&found["stream"], &found["responses"]), (&json!(SAID), &json!(SAID)));
    assert_eq!((&found["whole"], &found["unknown"]), (&json!(["One two", "length"]), &json!([404, "model_not_found"])));
    assert_eq!(found["usage"][1], 5);
    let found = node(&server, "anthropic").await?;
    assert_eq!(found, json!({ "stream": SAID, "whole": SAID, "stop": "end_turn" }));
    Ok(())
}

#[tokio::test]
async fn ai_sdk_understands_responses_chats_and_its_own_stream() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let found = node(&server, "ai").await?;
    for dialect in ["responses", "chat", "compatible"] {
        assert_eq!(found[dialect], json!([SAID, "stop", 5]), "{dialect}");
    }
    assert_eq!((&found["whole"], &found["failed"]), (&json!(SAID), &json!(true)));
    assert_eq!(node(&server, "ui").await?, json!({ "text": SAID }));
    Ok(())
}
