//! `weir-keyvalue.wasm`, whose store is in `wasi:keyvalue@0.2.0-draft`, under an unmodified `wasmtime serve`, whose buckets end with their
//! instance. `wasmcloud.rs` has the test with a host that keeps them.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::client::{post, post_lines};
use weir_tests::pipelines::{Folder, run};
use weir_tests::{IDLE_INSTANCE, ONE_INSTANCE, Server, component, conformance, tool};

const LOOPBACK: &str = "WEIR_AUTH_LOOPBACK=true";

async fn wasmtime(flags: &[&str]) -> Result<Server> {
    let mut command = Command::new(tool("WEIR_TEST_WASMTIME")?);
    command.args(["serve", "-Sp3,cli,keyvalue", "-Wcomponent-model-async", "--addr", "127.0.0.1:0", "--env", LOOPBACK]);
    command.args(flags).arg(component("weir-keyvalue.wasm")?);
    let server = Server::spawn(command, "Serving HTTP on http://")?;
    server.wait_for_probe("/livez").await?;
    Ok(server)
}

async fn publish(server: &Server, id: &str, progress: u32) -> Result<String> {
    let body = json!({"step": "s", "progress": progress});
    let (status, answer) = post(server, &format!("/stream/publish/workflow/{id}"), &body).await?;
    ensure!(status == 200, "{status} {answer}");
    Ok(answer["id"].as_str().context("an id")?.to_owned())
}

#[tokio::test]
async fn one_instance_of_wasmtime_serve_has_channels_in_its_bucket() -> Result<()> {
    let server = wasmtime(&ONE_INSTANCE).await?;
    conformance::channels(&server).await?;
    let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
    assert_eq!(health["services"]["keyvalue"], "healthy", "{health}");
    Ok(())
}

#[tokio::test]
async fn executions_and_sessions_are_in_the_bucket() -> Result<()> {
    let steps = json!([
        {"id": "own", "kind": "component", "path": "own", "on_error": "continue"},
        {"id": "both", "kind": "map", "after": ["own"], "expression": "'stored'"},
    ]);
    let pipelines = Folder::new(&[("own", steps)])?;
    let folder = format!("{}::/pipelines", pipelines.path().display());
    let server = wasmtime(&[&ONE_INSTANCE[..], &[IDLE_INSTANCE, "--dir", &folder]].concat()).await?;
    let execution = run(&server, "own", &json!({"text": "good"})).await?;
    assert_eq!((&execution["state"], &execution["output"]), (&json!("completed"), &json!("stored")), "{execution}");

    let body = json!({"annotate": ["keywords"], "summary": {"every_finals": 0, "at_end": false}});
    let (status, session) = post(&server, "/sessions", &body).await?;
    ensure!(status == 200 || status == 201, "{status} {session}");
    let path = format!("/sessions/{}/chunks", session["session_id"].as_str().context("a session")?);
    let chunk = "{\"start\":0,\"end\":1,\"text\":\"Can you send the price list?\",\"speaker_id\":\"ann\",\"seq\":1}\n";
    for expected in ["partial_segment", "repeated"] {
        let events = post_lines(&server, &path, "application/x-ndjson", chunk).await?;
        assert_eq!(events[0]["type"], expected, "{events:?}");
    }
    Ok(())
}

/// A bucket of wasmtime is made anew when it is opened, so another instance has none of it. `docs/guides/wasmtime.md` says so.
#[tokio::test]
async fn instances_of_wasmtime_serve_share_no_bucket() -> Result<()> {
    let server = wasmtime(&["--max-instance-reuse-count=1"]).await?;
    let (first, second) = (publish(&server, "w1", 1).await?, publish(&server, "w1", 2).await?);
    // Each is the first event of its channel.
    ensure!(first.ends_with("-1") && second.ends_with("-1"), "{first} {second}");
    Ok(())
}
