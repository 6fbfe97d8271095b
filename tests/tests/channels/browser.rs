//! Server-sent events read by the `EventSource` of Chromium, on a page of another origin, through connections that are cut at any byte. It
//! reconnects with `Last-Event-ID`, and stops when the channel is finished.

use std::sync::atomic::Ordering;

use anyhow::{Context, Result, ensure};
use serde_json::json;
use tokio::net::TcpListener;
use weir_tests::browser::{Browser, File, page_report};
use weir_tests::client::post;
use weir_tests::cutting_proxy::start_cutting_proxy;
use weir_tests::{Server, root};

const EVENTS: usize = 60;

#[tokio::test]
async fn browser_with_cut_connections_gets_every_event_once_and_stops_at_the_end() -> Result<()> {
    let page = TcpListener::bind("127.0.0.1:0").await?;
    let origin = format!("http://{}", page.local_addr()?);
    let origins = format!("auth.cors_origins=[{}]", json!(origin));
    let server = Server::start_stub(&["--set", "events.retry_ms=10", "--set", &origins]).await?;
    let mut sent = Vec::new();
    for n in 0..EVENTS {
        // A browser accepts gzip: a message that compresses well would arrive before the first cut.
        let noise: String = (0..n * 4).map(|at| format!("{:04x}", (n * 7919 + at * 31_337) % 65_521)).collect();
        let message = format!("{n} a\r\nid: 7\n\ndata: x\r\u{0}\u{feff}\u{2028}é🙂 {noise}");
        let body = json!({"step": "s", "progress": n, "message": message, "last": n == EVENTS - 1});
        let (status, response) = post(&server, "/stream/publish/workflow/w", &body).await?;
        ensure!(status == 200, "{response}");
        sent.push((response["id"].clone(), body));
    }
    let (address, connections) = start_cutting_proxy(server.address().to_owned()).await?;
    let channel = format!("http://{address}/stream/workflow/w");
    let _browser = Browser::open(&format!("{origin}/?url={channel}"))?;
    let html = std::fs::read(root().join("tests/readers/page.html"))?;
    let file = move |path: &str| {
        path.starts_with("/?url=").then(|| File { media_type: "text/html; charset=utf-8", bytes: html.clone() })
    };
    let report = page_report(&page, file).await?;

    let events = report["events"].as_array().context("a list")?;
    assert_eq!(events.len(), EVENTS, "{report}");
    for (event, (id, body)) in events.iter().zip(&sent) {
        assert_eq!((&event["id"], &event["name"]), (id, &json!("workflow_progress")));
        assert_eq!(event["origin"], json!(format!("http://{address}")));
        for field in ["step", "progress", "message"] {
            assert_eq!(event["data"][field], body[field]);
        }
    }
    let opened = report["opened"].as_u64().context("a number")?;
    assert!(opened > 2, "the EventSource was opened {opened} times");
    // Each opened stream broke, and the last request got 204, possibly over the last connection.
    assert_eq!(report["broken"], json!(opened + 1));
    let connections = connections.load(Ordering::Relaxed) as u64;
    assert!((opened..=opened + 1).contains(&connections), "{connections} connections, {opened} opened");
    Ok(())
}
