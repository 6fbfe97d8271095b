//! The routes of lines in both directions as WebSockets: a message in is a line, a message out is an outcome.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use serde_json::{Value, json};
use weir_tests::websocket::{Frame, WebSocket};
use weir_tests::{Duplex, Raw, Server, until};

const NORMAL: u16 = 1000;

/// The messages until the end, and the code of the end.
async fn rest(socket: &mut WebSocket) -> Result<(Vec<Value>, u16)> {
    let mut messages = Vec::new();
    loop {
        match socket.next().await? {
            Frame::Text(text) => messages.push(serde_json::from_str(&text)?),
            Frame::Close(code) => return Ok((messages, code)),
        }
    }
}

#[tokio::test]
async fn messages_are_answered_one_by_one_and_an_empty_one_ends_the_input() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for (path, member) in [("/v1/classify?top_k=1", "scores"), ("/v1/tokens", "entities"), ("/v1/embed", "embedding")] {
        let mut socket = WebSocket::connect(&server, path, None).await?;
        for id in 0..3 {
            socket.send(&json!({"text": "a good Day", "id": id}).to_string()).await?;
            let answer = socket.message().await?;
            ensure!(answer["id"] == id && answer["index"] == id && answer[member].is_array(), "{path}: {answer}");
        }
        // Line ends inside of a message are white space, and a broken message is an error of its own.
        socket.send("{\"text\":\n\"a good Day\"}").await?;
        ensure!(socket.message().await?["index"] == 3, "{path}");
        socket.send("broken").await?;
        ensure!(socket.message().await?["error"]["code"] == "malformed_json", "{path}");
        for _ in 0..100 {
            socket.send("\"a good Day\"").await?;
        }
        socket.send("").await?;
        let (messages, code) = rest(&mut socket).await?;
        let indexes: BTreeSet<u64> = messages.iter().filter_map(|message| message["index"].as_u64()).collect();
        ensure!(indexes == (5..105).collect(), "{path}: {indexes:?}");
        ensure!(messages.last() == Some(&json!({"done": true, "ok": 104, "failed": 1})), "{path}: {messages:?}");
        ensure!(code == NORMAL, "{path}: {code}");
    }
    until("closed", || async { Ok(server.metric("weir_websockets_open").await? == 0.0) }).await?;
    until("returned", || async { Ok(server.metric("weir_http_requests_open").await? == 0.0) }).await
}

#[tokio::test]
async fn transcript_is_answered_with_its_events() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut socket = WebSocket::connect(&server, "/v1/transcript?annotate=none", None).await?;
    let chunk = |start: f64, text: &str| json!({"start": start, "end": start + 1.0, "text": text, "speaker_id": "A"});
    socket.send(&chunk(0.0, "hello").to_string()).await?;
    let partial = socket.message().await?;
    assert_eq!((&partial["type"], &partial["segment"]["text"]), (&json!("partial_segment"), &json!("hello")));
    socket.send(&chunk(10.0, "world").to_string()).await?;
    assert_eq!(socket.message().await?["type"], "final_segment");
    assert_eq!(socket.message().await?["type"], "partial_segment");
    socket.send("").await?;
    let (messages, code) = rest(&mut socket).await?;
    assert_eq!((messages[0]["segment"]["text"].as_str(), code), (Some("world"), NORMAL), "{messages:?}");
    Ok(())
}

/// A client that does not read is not read from either, and loses nothing.
#[tokio::test]
async fn client_that_does_not_read_is_not_read_from() -> Result<()> {
    const MESSAGES_MAX: usize = 20_000;
    let server = Server::start_stub(&[]).await?;
    let WebSocket { mut reader, mut writer } = WebSocket::connect(&server, "/v1/tokens", None).await?;
    // Large in both directions, so that the buffers of the kernel are soon full.
    let text = json!(format!("{}{}", "Aa ".repeat(40), "b".repeat(4000))).to_string();
    // A message that is cut by the timeout would leave half a frame: the writer is on a task of its own.
    let (sent, mut count) = tokio::sync::watch::channel(0);
    let (resume, mut resumed) = tokio::sync::watch::channel(false);
    let writing = tokio::spawn(async move {
        for number in 1..=MESSAGES_MAX {
            writer.send(&text).await?;
            sent.send_replace(number);
            if *resumed.borrow_and_update() {
                writer.send("").await?;
                // The writer is returned: dropping it would end the connection.
                return Ok((number, writer));
            }
        }
        bail!("all {MESSAGES_MAX} messages were read")
    });
    while let Ok(changed) = tokio::time::timeout(Duration::from_secs(2), count.changed()).await {
        if changed.is_err() {
            break;
        }
    }
    ensure!(!writing.is_finished(), "the server has read everything");
    resume.send_replace(true);
    let mut outcomes = 0;
    loop {
        match reader.next().await? {
            Frame::Text(message) if message.contains("\"done\"") => break,
            Frame::Text(_) => outcomes += 1,
            Frame::Close(code) => bail!("closed with {code} after {outcomes} outcomes"),
        }
    }
    let (sent, _writer) = writing.await??;
    ensure!(outcomes == sent, "{outcomes} outcomes of {sent} messages");
    Ok(())
}

/// A request ends when nothing arrives for `http.body_timeout_ms`; a WebSocket stays, since its client answers pings.
#[tokio::test]
async fn idle_socket_outlives_an_idle_request() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=300"]).await?;
    let mut socket = WebSocket::connect(&server, "/v1/classify", None).await?;
    let mut request = Duplex::open(&server, "/v1/classify").await?;
    request.raw.read_until("body_timeout").await?;
    socket.send("\"good\"").await?;
    assert_eq!(socket.message().await?["scores"][0]["label"], "positive");
    // No client can ask for that with a request.
    let mut raw = Raw::connect(&server).await?;
    let head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-ndjson\r\n\
                weir-socket: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    raw.send(head.as_bytes()).await?;
    raw.read_until("body_timeout").await?;
    Ok(())
}

#[tokio::test]
async fn handshake_is_checked_as_a_request() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let answer = reqwest::get(server.url("/v1/classify")).await?;
    assert_eq!((answer.status().as_u16(), answer.headers()["allow"].to_str()?), (405, "POST, OPTIONS"));
    let refused = WebSocket::open(&server, "/v1/classify?top_k=x", None).await?.err();
    assert_eq!(refused, Some(422));
    for (header, status) in [("Origin: https://evil.example\r\n", 403), ("", 101)] {
        let mut raw = Raw::connect(&server).await?;
        let head = format!(
            "GET /v1/classify HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{header}\r\n"
        );
        raw.send(head.as_bytes()).await?;
        raw.read_until(&format!("HTTP/1.1 {status} ")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn message_after_the_end_of_the_input_is_refused() -> Result<()> {
    const POLICY: u16 = 1008;
    let server = Server::start_stub(&[]).await?;
    let mut socket = WebSocket::connect(&server, "/v1/classify", None).await?;
    socket.send("\"!never\"").await?;
    socket.send("").await?;
    socket.send("\"good\"").await?;
    let (messages, code) = rest(&mut socket).await?;
    assert_eq!((messages.len(), code), (0, POLICY), "{messages:?}");
    until("closed", || async { Ok(server.metric("weir_websockets_open").await? == 0.0) }).await
}
