//! Unmodified clients of other servers: each generates as a stream and as a whole, and receives errors.

use std::process::Command;

use anyhow::{Result, ensure};
use serde_json::{Value, json};
use weir_tests::{Server, root, tool};

use crate::GENERATED_TEXT;

/// Runs a client from PyPI; its report of what it parsed.
async fn python(server: &Server, client: &str) -> Result<Value> {
    let mut command = Command::new(tool("WEIR_TEST_PYTHON")?);
    command.arg(root().join("tests/readers/generation.py"));
    run(command, server, client).await
}

/// Runs a client from npm; its report of what it parsed.
async fn node(server: &Server, client: &str) -> Result<Value> {
    // A module read from the standard input resolves packages in the working folder.
    let script = std::fs::File::open(root().join("tests/readers/generation.mjs"))?;
    let mut command = Command::new("node");
    command.args(["--input-type=module", "-"]).current_dir(tool("WEIR_TEST_NPM")?).stdin(script);
    run(command, server, client).await
}

async fn run(mut command: Command, server: &Server, client: &str) -> Result<Value> {
    let home = tempfile::tempdir()?;
    // The client contacts no other server, and keeps no files.
    command.arg(client).arg(server.url("")).env("HF_HOME", home.path()).env("HF_HUB_DISABLE_TELEMETRY", "1");
    command
        .env_remove("HF_TOKEN")
        .env_remove("OPENAI_API_KEY")
        .env("NO_PROXY", "*")
        .env("TIKTOKEN_CACHE_DIR", home.path());
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    ensure!(output.status.success(), "{}\n{}", String::from_utf8_lossy(&output.stderr), server.log());
    let text = String::from_utf8_lossy(&output.stdout);
    // Some clients print a greeting before the report.
    Ok(serde_json::from_str(text.trim_end().lines().last().unwrap_or_default())?)
}

#[tokio::test]
async fn openai_for_python_understands_chats_responses_and_errors() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let report = python(&server, "openai").await?;
    assert_eq!(report["stream"], GENERATED_TEXT);
    assert_eq!(report["usage"][1], 5);
    assert_eq!(report["whole"], json!(["One two", "length"]));
    assert_eq!(report["tool"], json!(["tool_calls", "weather"]));
    assert_eq!(report["broken"], "APIError");
    assert_eq!(report["unknown"], json!(["NotFoundError", "model_not_found"]));
    assert_eq!(
        (&report["responses"], &report["response"]),
        (&json!(GENERATED_TEXT), &json!([GENERATED_TEXT, "completed"]))
    );
    assert_eq!((&report["resumed"], &report["completions"]), (&json!(true), &json!(GENERATED_TEXT)));
    assert_eq!(report["models"], json!(["stub"]));
    Ok(())
}

#[tokio::test]
async fn anthropic_for_python_understands_messages_and_errors() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let report = python(&server, "anthropic").await?;
    assert_eq!((&report["stream"], &report["whole"]), (&json!(GENERATED_TEXT), &json!(["One two", "max_tokens"])));
    assert_eq!(report["tool"], json!(["tool_use", "weather", { "city": "Bern" }]));
    assert_eq!((&report["usage"][1], &report["broken"]), (&json!(5), &json!(true)));
    assert_eq!(report["count"], report["usage"][0]);
    Ok(())
}

#[tokio::test]
async fn google_genai_for_python_understands_streams_without_comments() -> Result<()> {
    let server = Server::start_generate_stub(&["--set", "events.heartbeat_ms=100"]).await?;
    let report = python(&server, "google").await?;
    assert_eq!((&report["stream"], &report["whole"]), (&json!(GENERATED_TEXT), &json!(["One two", "MAX_TOKENS"])));
    assert_eq!((&report["usage"][1], &report["unknown"]), (&json!(5), &json!(404)));
    assert_eq!(report["count"], report["usage"][0]);
    Ok(())
}

#[tokio::test]
async fn litellm_understands_three_dialects() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let texts = json!([GENERATED_TEXT, GENERATED_TEXT]);
    assert_eq!(python(&server, "litellm").await?, json!({ "openai": texts, "anthropic": texts, "gemini": texts }));
    Ok(())
}

#[tokio::test]
async fn langchain_and_huggingface_hub_understand_chats() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    for client in ["langchain", "huggingface"] {
        assert_eq!(
            python(&server, client).await?,
            json!({ "stream": GENERATED_TEXT, "whole": GENERATED_TEXT }),
            "{client}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn openai_and_anthropic_for_javascript_understand_streams() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let report = node(&server, "openai").await?;
    assert_eq!((&report["stream"], &report["responses"]), (&json!(GENERATED_TEXT), &json!(GENERATED_TEXT)));
    assert_eq!(
        (&report["whole"], &report["unknown"]),
        (&json!(["One two", "length"]), &json!([404, "model_not_found"]))
    );
    assert_eq!(report["usage"][1], 5);
    let report = node(&server, "anthropic").await?;
    assert_eq!(report, json!({ "stream": GENERATED_TEXT, "whole": GENERATED_TEXT, "stop": "end_turn" }));
    Ok(())
}

#[tokio::test]
async fn ai_sdk_understands_responses_chats_and_its_own_stream() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    let report = node(&server, "ai").await?;
    for dialect in ["responses", "chat", "compatible"] {
        assert_eq!(report[dialect], json!([GENERATED_TEXT, "stop", 5]), "{dialect}");
    }
    assert_eq!((&report["whole"], &report["failed"]), (&json!(GENERATED_TEXT), &json!(true)));
    assert_eq!(node(&server, "ui").await?, json!({ "text": GENERATED_TEXT }));
    Ok(())
}
