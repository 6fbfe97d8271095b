//! Server-sent events read by two packages from npm, through connections that are cut at any byte.

use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::client::post;
use weir_tests::cutting_proxy::start_cutting_proxy;
use weir_tests::{PATIENCE, Server, ndjson, root, tool};

const EVENTS: usize = 60;

#[tokio::test]
async fn sse_clients_with_cut_connections_get_every_event_once() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.retry_ms=10"]).await?;
    let mut sent = Vec::new();
    for n in 0..EVENTS {
        let message = format!("{n} a\r\nid: 7\n\ndata: x\r\u{0}\u{feff}\u{2028}é🙂 {}", "y".repeat(n * 13));
        let body = json!({"step": "s", "progress": n, "message": message, "metadata": {"n": n, "list": ["\n", "\r"]}});
        let (status, response) = post(&server, "/stream/publish/workflow/w", &body).await?;
        ensure!(status == 200, "{response}");
        sent.push((response["id"].clone(), body));
    }
    for reader in ["eventsource", "eventsource-parser"] {
        let (address, connections) = start_cutting_proxy(server.address().to_owned()).await?;
        let url = format!("http://{address}/stream/workflow/w");
        let events = read(reader, &url).await?;
        assert_eq!(events.len(), EVENTS, "{reader}");
        for (event, (id, body)) in events.iter().zip(&sent) {
            assert_eq!((&event["id"], &event["name"]), (id, &json!("workflow_progress")), "{reader}");
            for field in ["step", "progress", "message", "metadata"] {
                assert_eq!(event["data"][field], body[field], "{reader}");
            }
        }
        assert!(connections.load(Ordering::Relaxed) > 3, "{reader} was not cut often enough");
    }
    Ok(())
}

/// The events that a package receives.
async fn read(reader: &str, url: &str) -> Result<Vec<Value>> {
    let mut command = Command::new("node");
    command.arg(root().join("tests/readers/read.mjs")).args([reader, url, &EVENTS.to_string(), "workflow_progress"]);
    command.env("WEIR_TEST_NPM", tool("WEIR_TEST_NPM")?).stdin(Stdio::null()).stderr(Stdio::inherit());
    let reading = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, reading).await.context("not all events in time")???;
    ensure!(output.status.success(), "{output:?}");
    ndjson(&String::from_utf8(output.stdout)?)
}
