//! The gateway under another WASI 0.3 host: composed with the stand-in for infer (it has the session component inside), served
//! by an unmodified `wasmtime serve`.

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions};
use weir_tests::follow::{Follower, post};
use weir_tests::pipelines::{Folder, run};
use weir_tests::{Server, component, ndjson, statuses, tool, until};

/// Plugs the exports of components into the imports of another, as `wac plug` does.
fn plug(socket: &[u8], plugs: &[&[u8]]) -> Result<Vec<u8>> {
    let mut graph = CompositionGraph::new();
    let mut plugged = Vec::new();
    for (at, plug) in plugs.iter().enumerate() {
        let package = Package::from_bytes(&format!("weir:plug{at}"), None, plug.to_vec(), graph.types_mut())?;
        plugged.push(graph.register_package(package)?);
    }
    let socket = Package::from_bytes("weir:socket", None, socket.to_vec(), graph.types_mut())?;
    let socket = graph.register_package(socket)?;
    wac_graph::plug(&mut graph, plugged, socket)?;
    Ok(graph.encode(EncodeOptions::default())?)
}

/// The gateway with stand-ins for infer and the channel store, under `wasmtime serve`.
fn composed(arguments: &[&str]) -> Result<(Server, tempfile::TempDir)> {
    let gateway = std::fs::read(component("gateway.wasm")?)?;
    let (infer, events) =
        (std::fs::read(component("infer_stub.wasm")?)?, std::fs::read(component("events_stub.wasm")?)?);
    let dir = tempfile::tempdir()?;
    let composed = dir.path().join("composed.wasm");
    std::fs::write(&composed, plug(&gateway, &[&infer, &events])?)?;
    let mut command = Command::new(tool("WEIR_TEST_WASMTIME")?);
    command.args(["serve", "-Sp3,cli", "-Wcomponent-model-async", "--addr", "127.0.0.1:0"]).args(arguments);
    command.arg(&composed);
    Ok((Server::spawn(command, "Serving HTTP on http://")?, dir))
}

#[tokio::test]
async fn the_gateway_answers_under_wasmtime_serve() -> Result<()> {
    let (server, _dir) = composed(&[])?;
    server.ready().await?;
    assert_eq!(reqwest::get(server.url("/livez")).await?.status(), 200);

    let client = reqwest::Client::new();
    let body = json!({"text": "a good day in Rome, and a bad night in Bern", "include_entities": true});
    let answer = client.post(server.url("/process-stream")).json(&body).send().await?;
    assert_eq!(answer.status(), 200);
    let events = ndjson(&answer.text().await?)?;
    assert_eq!(statuses(&events).first(), Some(&"started"));
    assert_eq!(statuses(&events).last(), Some(&"completed"));
    let entities = events.iter().find(|event| event["status"] == "entities_complete").context("entities")?;
    assert!(entities.to_string().contains("Rome"), "{entities}");

    let answer = client.post(server.url("/process-stream")).body("{").header("content-type", "application/json");
    let answer = answer.send().await?;
    assert_eq!(answer.status(), 400);
    assert_eq!(answer.json::<Value>().await?["code"], "malformed_json");

    let chunks = "{\"start\":0,\"end\":1,\"text\":\"I'll check\"}\n{\"start\":0.5,\"end\":1,\"text\":\"early\"}\n{\"op\":\"end\"}\n";
    let answer = client.post(server.url("/v1/transcript")).header("content-type", "application/x-ndjson").body(chunks);
    let answer = answer.send().await?;
    assert_eq!(answer.status(), 200);
    let events = ndjson(&answer.text().await?)?;
    let types: Vec<&Value> = events.iter().map(|event| &event["type"]).collect();
    assert_eq!(types, ["partial_segment", "error", "final_segment"], "{events:?}");
    assert_eq!(events[2]["semantic"]["intent"], "commitment", "{events:?}");
    let api: Value = reqwest::get(server.url("/openapi.json")).await?.json().await?;
    assert!(api["openapi"].as_str().context("a version")?.starts_with("3."));
    Ok(())
}

/// Follows a channel and its user's, publishes, and resumes.
async fn publish_and_resume(server: &Server, id: &str) -> Result<()> {
    let (workflow, user) = (format!("/stream/workflow/{id}"), format!("/stream/user/{id}"));
    let mut live = Follower::open(server, &workflow, None).await?;
    ensure!(live.event().await?.name == "connected");
    for n in 0..10 {
        let body = json!({"step": "s", "progress": n, "user_id": id});
        let (status, answer) = post(server, &format!("/stream/publish/workflow/{id}"), &body).await?;
        ensure!(status == 200, "{answer}");
        let event = live.placed().await?;
        ensure!((&event.data["progress"], &json!(event.id)) == (&json!(n), &answer["id"]), "{event:?}");
    }
    let mut whole = Follower::open(server, &user, None).await?;
    let third = (whole.placed().await?, whole.placed().await?, whole.placed().await?).2;
    let mut again = Follower::open(server, &user, Some(&third.id)).await?;
    ensure!(again.placed().await?.data["progress"] == 3);
    Ok(())
}

#[tokio::test]
async fn channels_are_served_under_wasmtime_serve() -> Result<()> {
    // The stand-in's channels are as old as its instance, so there must be one.
    let one = ["--max-instance-reuse-count=100000", "--max-instance-concurrent-reuse-count=1000"];
    let (server, _dir) = composed(&[&one[..], &["--env", "WEIR_AUTH_LOOPBACK=true"]].concat())?;
    server.ready().await?;
    // The host may make a second instance all the same, with channels of its own: then another channel is tried.
    let tries = AtomicU32::new(0);
    until("all in one instance", || async {
        let id = format!("w{}", tries.fetch_add(1, Ordering::Relaxed));
        let done = tokio::time::timeout(Duration::from_secs(3), publish_and_resume(&server, &id)).await;
        Ok(done.is_ok_and(|done| done.is_ok()))
    })
    .await?;
    let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
    assert_eq!(health["status"], "healthy", "{health}");
    Ok(())
}

#[tokio::test]
async fn pipelines_run_under_wasmtime_serve() -> Result<()> {
    let pipelines = Folder::new(&[(
        "mood",
        json!([
            {"id": "mood", "kind": "sentiment"},
            {"id": "own", "kind": "component", "path": "own", "on_error": "continue", "after": []},
            {"id": "both", "kind": "map", "after": ["mood", "own"], "expression": "{mood: mood.overall_sentiment, own: own}"},
        ]),
    )])?;
    let dir = format!("{}::/pipelines", pipelines.path().display());
    let (server, _dir) = composed(&["--dir", &dir, "--env", "WEIR_AUTH_LOOPBACK=true"])?;
    server.ready().await?;
    let over = run(&server, "mood", &json!({"text": "good"})).await?;
    assert_eq!(
        (&over["state"], &over["output"]),
        (&json!("completed"), &json!({"mood": "POSITIVE", "own": null})),
        "{over}"
    );
    assert_eq!(over["steps"][1]["code"], "unknown_step", "{over}");
    Ok(())
}

#[tokio::test]
async fn elsewhere_nobody_is_taken_to_be_on_this_machine() -> Result<()> {
    let (server, _dir) = composed(&[])?;
    server.ready().await?;
    assert_eq!(reqwest::get(server.url("/stream/workflow/w")).await?.status(), 403);
    Ok(())
}

#[test]
fn the_gateway_imports_only_wasi_and_weir() -> Result<()> {
    let gateway = std::fs::read(component("gateway.wasm")?)?;
    let mut graph = CompositionGraph::new();
    let package = Package::from_bytes("weir:gateway", None, gateway, graph.types_mut())?;
    let world = &graph.types()[package.ty()];
    for name in world.imports.keys() {
        assert!(name.starts_with("wasi:") || name.starts_with("weir:stream/"), "the gateway imports {name}");
    }
    assert!(world.imports.keys().any(|name| name.starts_with("weir:stream/infer@")));
    // It has the session component inside.
    assert!(!world.imports.keys().any(|name| name.starts_with("weir:stream/session@")));
    assert!(world.imports.keys().any(|name| name.starts_with("weir:stream/events@")));
    assert!(world.exports.keys().any(|name| name.starts_with("wasi:http/handler@0.3")), "{:?}", world.exports.keys());

    let session = std::fs::read(component("session.wasm")?)?;
    let session = Package::from_bytes("weir:session", None, session, graph.types_mut())?;
    for name in graph.types()[session.ty()].imports.keys() {
        assert!(
            name.starts_with("wasi:cli/") || name.starts_with("wasi:io/") || name.starts_with("wasi:clocks/"),
            "session imports {name}"
        );
    }

    let infer = Package::from_bytes("weir:infer", None, std::fs::read(component("infer.wasm")?)?, graph.types_mut())?;
    let world = &graph.types()[infer.ty()];
    for name in world.imports.keys() {
        assert!(name.starts_with("wasi:") || name.starts_with("weir:stream/types"), "infer imports {name}");
    }
    assert!(world.imports.keys().any(|name| name.starts_with("wasi:nn/graph@0.2.0-rc-2024-10-28")));
    Ok(())
}
