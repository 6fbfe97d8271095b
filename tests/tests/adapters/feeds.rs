//! Feeds of a running server as sources, channels inside of a server, and the adapters in the output of `weir status`.

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weir_tests::client::{follow, post, publish};
use weir_tests::{Server, ndjson, until};

use super::{StreamProcess, path, run, stub_stream, weir_command};

/// The last event of a workflow.
async fn finish(server: &Server, workflow: &str) -> Result<()> {
    let last = json!({"step": "s", "progress": 100, "message": "over", "last": true});
    let (status, answer) = post(server, &format!("/stream/publish/workflow/{workflow}"), &last).await?;
    ensure!(status == 200, "{answer}");
    Ok(())
}

fn start(arguments: &[&str]) -> Result<StreamProcess> {
    StreamProcess::start(stub_stream(arguments)?)
}

/// A channel over server-sent events, until the channel ends.
#[tokio::test]
async fn channel_over_http_is_read_to_its_end() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for n in 0..50 {
        publish(&server, "feed", n).await?;
    }
    let dir = tempfile::tempdir()?;
    let out = path(dir.path(), "out");
    let url = server.url("/stream/workflow/feed");
    let stream = start(&[
        "http",
        "--url",
        &url,
        "--event",
        "workflow_progress",
        "--text",
        "/message",
        "--with-text",
        "--output-file",
        &out,
        "--quiet",
    ])?;
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    until("read", || async { Ok(read().lines().count() == 50) }).await?;
    for n in 50..100 {
        publish(&server, "feed", n).await?;
    }
    finish(&server, "feed").await?;
    ensure!(stream.wait()?.success());
    let texts: Vec<String> =
        ndjson(&read())?.iter().map(|result| result["text"].as_str().unwrap_or_default().to_owned()).collect();
    let expected: Vec<String> = (0..100).map(|n| format!("n{n}")).chain(["over".to_owned()]).collect();
    assert_eq!(texts.len(), expected.len());
    assert_eq!(texts.iter().collect::<std::collections::BTreeSet<_>>(), expected.iter().collect());
    Ok(())
}

#[tokio::test]
async fn channel_over_a_websocket_is_read() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let dir = tempfile::tempdir()?;
    let (out, errors) = (path(dir.path(), "out"), path(dir.path(), "errors"));
    let url = format!("ws://{}/ws", server.address());
    let subscribe = json!({"type": "subscribe", "channel": "workflow:feed"}).to_string();
    let stream = start(&[
        "websocket",
        "--url",
        &url,
        "--subscribe",
        &subscribe,
        "--text",
        "/data/message",
        "--with-text",
        "--output-file",
        &out,
        "--errors-file",
        &errors,
        "--quiet",
    ])?;
    for n in 0..50 {
        publish(&server, "feed", n).await?;
    }
    let read = || std::fs::read_to_string(&out).unwrap_or_default();
    until("read", || async { Ok(read().lines().count() == 50) }).await?;
    stream.terminate()?;
    // `connected` has no text.
    assert!(std::fs::read_to_string(&errors)?.contains("connected"));
    Ok(())
}

/// A server whose adapter labels the events of one channel in another.
#[tokio::test]
async fn events_of_a_channel_become_results_in_another() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = path(dir.path(), "weir.toml");
    std::fs::write(
        &config,
        "[[adapter]]\nname = 'moods'\ntext = '/message'\n[adapter.source]\nkind = 'channel'\nchannel = 'workflow:in'\n\
         events = ['workflow_progress']\n[adapter.sink]\nkind = 'channel'\nchannel = 'workflow:out'\n",
    )?;
    let server = Server::start_stub(&["--config", &config]).await?;
    publish(&server, "in", 1).await?;
    let mut results = follow(&server, "workflow/out").await?;
    let result = loop {
        let event = results.next().await?.context("the channel has ended")?;
        if event.name == "adapter_result" {
            break event.data;
        }
    };
    assert_eq!(result["label"], "neutral");
    let health = || async { Ok(reqwest::get(server.url("/stream/health")).await?.json::<Value>().await?) };
    until("counted", || async {
        let health: Result<Value> = health().await;
        Ok(health?["adapters"][0]["results"] == 1)
    })
    .await?;
    let health: Value = health().await.map_err(|error: anyhow::Error| error)?;
    assert_eq!((&health["status"], &health["services"]["adapters"]), (&json!("healthy"), &json!("healthy")));
    let adapter = &health["adapters"][0];
    assert_eq!(
        (&adapter["name"], &adapter["source"], &adapter["state"]),
        (&json!("moods"), &json!("channel"), &json!("running"))
    );
    Ok(())
}

#[tokio::test]
async fn status_and_metrics_of_a_server_are_shown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = path(dir.path(), "weir.toml");
    std::fs::write(
        &config,
        "[[adapter]]\nname = 'broken'\nreconnect_delay_ms = 20\n[adapter.source]\nkind = 'redis'\nurl = 'redis://127.0.0.1:1/0'\n",
    )?;
    let healthy = Server::start_stub(&[]).await?;
    let degraded = Server::start_stub(&["--config", &config]).await?;
    let command = |server: &Server, arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = weir_command(arguments)?;
        command.args(["--url", &server.url("")]);
        let output = run(command, b"")?;
        Ok((output.status.code(), String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?))
    };
    let (code, text) = command(&healthy, &["status"])?;
    assert!(code == Some(0) && text.contains("status     healthy") && text.contains("model      sentiment"), "{text}");
    until("reconnecting", || async {
        Ok(command(&degraded, &["status"])?.1.contains("broken (redis to stdout) reconnecting"))
    })
    .await?;
    let (code, text) = command(&degraded, &["status", "--json"])?;
    let answer: Value = serde_json::from_str(&text)?;
    assert_eq!((code, &answer["health"]["status"]), (Some(1), &json!("degraded")));
    assert!(
        answer["health"]["adapters"][0]["failure"].as_str().is_some_and(|failure| failure.contains("Redis")),
        "{text}"
    );
    assert!(answer["stats"]["models"].is_array(), "{text}");
    let (code, text) = command(&healthy, &["metrics", "--filter", "weir_http_requests_open"])?;
    assert!(code == Some(0) && text.starts_with("weir_http_requests_open") && text.lines().count() == 1, "{text}");
    let (code, text) = command(&healthy, &["metrics", "--json"])?;
    let samples: Vec<Value> = serde_json::from_str(&text)?;
    assert!(code == Some(0) && samples.iter().any(|sample| sample["name"] == "weir_http_connections_open"), "{text}");
    let mut nothing = weir_command(&["status", "--url", "http://127.0.0.1:1"])?;
    assert_eq!(nothing.output()?.status.code(), Some(2));
    Ok(())
}

#[tokio::test]
async fn connections_are_checked_one_by_one() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let check = |arguments: &[&str]| -> Result<(Option<i32>, String)> {
        let mut command = weir_command(&["test-connection"])?;
        command.args(arguments);
        let output = run(command, b"")?;
        Ok((output.status.code(), String::from_utf8(output.stdout)? + &String::from_utf8(output.stderr)?))
    };
    let (code, text) = check(&["--protocol", "http", "--url", &server.url("/stream/workflow/a")])?;
    assert!(code == Some(0) && text.contains("ok     http read         text/event-stream"), "{text}");
    let (code, text) = check(&["--protocol", "http", "--url", &server.url("/nowhere"), "--json"])?;
    let last: Value = serde_json::from_str(text.lines().last().context("nothing")?)?;
    assert_eq!((code, &last["check"], &last["passed"]), (Some(1), &json!("read"), &json!(false)));
    let socket = format!("ws://{}/ws", server.address());
    let (code, text) = check(&["--protocol", "websocket", "--url", &socket])?;
    assert!(code == Some(0) && text.contains("the server responds to a ping"), "{text}");
    let (code, text) = check(&["--protocol", "redis", "--url", "redis://127.0.0.1:1/0"])?;
    assert!(code == Some(1) && text.contains("check that the server runs"), "{text}");
    assert_eq!(check(&["--protocol", "all", "--url", &socket])?.0, Some(2));
    assert_eq!(check(&["--protocol", "http"])?.0, Some(2));
    // The adapters of a configuration.
    let dir = tempfile::tempdir()?;
    let config = path(dir.path(), "weir.toml");
    let url = server.url("/stream/workflow/a");
    std::fs::write(&config, format!("[[adapter]]\nname = 'feed'\n[adapter.source]\nkind = 'http'\nurl = '{url}'\n"))?;
    let (code, text) = check(&["--protocol", "all", "--config", &config])?;
    assert!(code == Some(0) && text.contains("ok     feed read"), "{text}");
    // A flag takes precedence.
    let nowhere = server.url("/nowhere");
    let (code, text) = check(&["--protocol", "http", "--config", &config, "--url", &nowhere])?;
    assert!(code == Some(1) && text.contains("failed feed read         the server answers 404"), "{text}");
    Ok(())
}

#[test]
fn texts_are_annotated_without_a_model() -> Result<()> {
    let output = run(
        stub_stream(&["file", "-", "--format", "text", "--task", "annotate", "--quiet"])?,
        b"I want to cancel, this is unacceptable.\n",
    )?;
    ensure!(output.status.success(), "{output:?}");
    let line: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(line["semantic"]["risk_tags"], json!(["churn_risk", "escalation"]), "{line}");
    Ok(())
}

#[test]
fn configuration_file_is_written_and_loads() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let command = |arguments: &[&str]| -> Result<std::process::Output> {
        Ok(weir_command(arguments)?.current_dir(dir.path()).output()?)
    };
    let output = command(&["init-config", "--preset", "low-latency"])?;
    ensure!(output.status.success(), "{output:?}");
    let output = command(&["config", "--effective", "weir.toml"])?;
    let effective: Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!((&effective["infer"]["batch_size"], &effective["infer"]["window_ms"]), (&json!(4), &json!(100)));
    assert_eq!(command(&["init-config"])?.status.code(), Some(2));
    // The file of the environment, and one of its keys.
    let mut aliases = weir_command(&["config", "--effective"])?;
    aliases.current_dir(dir.path()).env("STREAMING_CONFIG_FILE", "weir.toml").env("STREAMING_LOG_LEVEL", "debug");
    let effective: Value = serde_json::from_slice(&aliases.output()?.stdout)?;
    assert_eq!((&effective["infer"]["batch_size"], &effective["log"]["level"]), (&json!(4), &json!("debug")));
    Ok(())
}
