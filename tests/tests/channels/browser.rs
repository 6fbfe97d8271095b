//! Server-sent events read by the `EventSource` of Chromium, on a page of another origin, through connections that are cut at any byte. It
//! reconnects with `Last-Event-ID`, and stops when the channel is finished.

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use weir_tests::client::post;
use weir_tests::cutting_proxy::start_cutting_proxy;
use weir_tests::{PATIENCE, Server, root, send_signal, tool};

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
    let report = tokio::time::timeout(PATIENCE, page_report(&page)).await.context("the page sent no report")??;

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

/// A browser with a page; killed when dropped.
struct Browser {
    child: Child,
    _profile: tempfile::TempDir,
}

impl Browser {
    fn open(url: &str) -> Result<Self> {
        let profile = tempfile::tempdir()?;
        let mut command = Command::new(tool("WEIR_TEST_BROWSER")?);
        // The sandbox of Chromium needs privileges that containers lack, and the page is from this repository.
        command.args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]);
        command.arg("--remote-debugging-port=0").arg(format!("--user-data-dir={}", profile.path().display())).arg(url);
        // The browser has several processes, which are killed as a group.
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).process_group(0).spawn();
        Ok(Self { child: child.context("cannot start the browser")?, _profile: profile })
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = send_signal("KILL", &format!("-{}", self.child.id()));
        let _ = self.child.wait();
    }
}

/// Serves the page until it posts its report.
async fn page_report(page: &TcpListener) -> Result<Value> {
    let html = std::fs::read_to_string(root().join("tests/readers/page.html"))?;
    loop {
        let (mut client, _) = page.accept().await?;
        let (head, body) = request(&mut client).await?;
        let (status, response) = match head.split(' ').collect::<Vec<_>>()[..] {
            ["GET", path, ..] if path.starts_with("/?url=") => ("200 OK", html.as_str()),
            ["POST", "/done", ..] => {
                respond(&mut client, "204 No Content", "").await?;
                return Ok(serde_json::from_slice(&body)?);
            }
            // A request for an icon.
            _ => ("404 Not Found", ""),
        };
        respond(&mut client, status, response).await?;
    }
}

/// The head and the body of a request.
async fn request(client: &mut TcpStream) -> Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    loop {
        if client.read_buf(&mut bytes).await? == 0 {
            bail!("the request is incomplete");
        }
        let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else { continue };
        let head = String::from_utf8(bytes[..end].to_vec())?;
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length:")?.trim().parse().ok());
        if bytes.len() - end - 4 >= length.unwrap_or(0) {
            return Ok((head, bytes.split_off(end + 4)));
        }
    }
}

async fn respond(client: &mut TcpStream, status: &str, body: &str) -> Result<()> {
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: text/html; charset=utf-8\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    client.write_all([head, body.to_owned()].concat().as_bytes()).await.context("cannot respond to the page")
}
