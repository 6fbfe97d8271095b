//! What we write is read back by two readers of server-sent events that are not ours, through connections that are cut anywhere.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_tests::follow::post;
use weir_tests::{PATIENCE, Server, ndjson, root, tool};

const EVENTS: usize = 60;

#[tokio::test]
async fn two_readers_get_every_event_once_through_cut_connections() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.retry_ms=10"])?;
    server.ready().await?;
    let mut sent = Vec::new();
    for n in 0..EVENTS {
        let message = format!("{n} a\r\nid: 7\n\ndata: x\r\u{0}\u{feff}\u{2028}é🙂 {}", "y".repeat(n * 13));
        let body = json!({"step": "s", "progress": n, "message": message, "metadata": {"n": n, "list": ["\n", "\r"]}});
        let (status, answer) = post(&server, "/stream/publish/workflow/w", &body).await?;
        ensure!(status == 200, "{answer}");
        sent.push((answer["id"].clone(), body));
    }
    for reader in ["eventsource", "eventsource-parser"] {
        let (address, connections) = cutting(server.address().to_owned()).await?;
        let url = format!("http://{address}/stream/workflow/w");
        let events = read(reader, &url).await?;
        assert_eq!(events.len(), EVENTS, "{reader}");
        for (event, (id, body)) in events.iter().zip(&sent) {
            assert_eq!((&event["id"], &event["name"]), (id, &json!("workflow_progress")), "{reader}");
            for field in ["step", "progress", "message", "metadata"] {
                assert_eq!(event["data"][field], body[field], "{reader}");
            }
        }
        assert!(connections.load(Ordering::Relaxed) > 3, "{reader} was cut");
    }
    Ok(())
}

/// Passes connections on to a server, and cuts each after a while: later each time, at any byte.
async fn cutting(server: String) -> Result<(String, Arc<AtomicUsize>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let connections = Arc::new(AtomicUsize::new(0));
    let counted = connections.clone();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let nth = counted.fetch_add(1, Ordering::Relaxed);
            let server = server.clone();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(server).await?;
                let (mut from_client, mut to_client) = client.split();
                let (mut from_server, mut to_server) = server.split();
                let down = async {
                    let mut left = 1500 + nth * 2777;
                    let mut buffer = [0; 4096];
                    while left > 0 {
                        let read = from_server.read(&mut buffer).await?;
                        if read == 0 {
                            break;
                        }
                        let passed = read.min(left);
                        to_client.write_all(&buffer[..passed]).await?;
                        left -= passed;
                    }
                    std::io::Result::Ok(())
                };
                tokio::select! {
                    done = down => done,
                    done = tokio::io::copy(&mut from_client, &mut to_server) => done.map(drop),
                }
            });
        }
    });
    Ok((address, connections))
}

/// The events that a reader gets.
async fn read(reader: &str, url: &str) -> Result<Vec<Value>> {
    let mut command = Command::new("node");
    command.arg(root().join("tests/readers/read.mjs")).args([reader, url, &EVENTS.to_string(), "workflow_progress"]);
    command.env("WEIR_TEST_NPM", tool("WEIR_TEST_NPM")?).stdin(Stdio::null()).stderr(Stdio::inherit());
    let reading = tokio::task::spawn_blocking(move || command.output());
    let output = tokio::time::timeout(PATIENCE, reading).await.context("not all in time")???;
    ensure!(output.status.success(), "{output:?}");
    ndjson(&String::from_utf8(output.stdout)?)
}
