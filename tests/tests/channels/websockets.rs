//! WebSockets with the npm package `ws` as client: several channels over one socket, resumed, refused, closed and cut.

use std::process::Stdio;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use weir_tests::client::{self, create_session, post};
use weir_tests::follow::Follower;
use weir_tests::{Duplex, PATIENCE, Raw, Server, ndjson, root, tool, until};

/// A WebSocket of the package `ws`, in a process of Node.js.
struct Socket {
    _node: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Socket {
    fn open(server: &Server, path: &str, headers: &Value) -> Result<Self> {
        let mut command = Command::new("node");
        command.arg(root().join("tests/readers/socket.mjs")).arg(format!("ws://{}{path}", server.address()));
        command.arg(headers.to_string()).env("WEIR_TEST_NPM", tool("WEIR_TEST_NPM")?).kill_on_drop(true);
        let mut node = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("node")?;
        let input = node.stdin.take().context("stdin")?;
        let output = BufReader::new(node.stdout.take().context("stdout")?).lines();
        Ok(Self { _node: node, input, output })
    }

    async fn connect(server: &Server, path: &str) -> Result<Self> {
        let mut socket = Self::open(server, path, &json!({}))?;
        let first = socket.next().await?;
        ensure!(first == json!({"open": true}), "{first}");
        Ok(socket)
    }

    async fn send(&mut self, line: impl ToString) -> Result<()> {
        Ok(self.input.write_all(format!("{}\n", line.to_string()).as_bytes()).await?)
    }

    /// The next line that the client prints: what happened to its socket.
    async fn next(&mut self) -> Result<Value> {
        let line = tokio::time::timeout(PATIENCE, self.output.next_line()).await.context("no line in time")??;
        Ok(serde_json::from_str(&line.context("the client ended")?)?)
    }

    /// The next message that is not a heartbeat.
    async fn message(&mut self) -> Result<Value> {
        loop {
            let mut next = self.next().await?;
            ensure!(next.get("message").is_some(), "{next}");
            let message = next["message"].take();
            if message["type"] != "heartbeat" {
                return Ok(message);
            }
        }
    }
}

async fn publish(server: &Server, workflow: &str, n: u32) -> Result<Value> {
    Ok(json!(client::publish(server, workflow, n).await?))
}

fn subscribe(channel: &str, after: Option<&Value>) -> Value {
    match after {
        Some(id) => json!({"type": "subscribe", "channel": channel, "last_event_id": id}),
        None => json!({"type": "subscribe", "channel": channel}),
    }
}

#[tokio::test]
async fn websocket_follows_many_channels_and_resumes() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let first = publish(&server, "a", 1).await?;
    let second = publish(&server, "a", 2).await?;
    let mut socket = Socket::connect(&server, "/ws").await?;
    // From a cursor, and from the beginning.
    socket.send(subscribe("workflow:a", Some(&first))).await?;
    let connected = socket.message().await?;
    assert_eq!((&connected["type"], &connected["channel"]), (&json!("connected"), &json!("workflow:a")));
    let event = socket.message().await?;
    assert_eq!(
        (&event["type"], &event["id"], &event["data"]["message"]),
        (&json!("workflow_progress"), &second, &json!("n2"))
    );
    socket.send(subscribe("workflow:b", None)).await?;
    assert_eq!(socket.message().await?["channel"], "workflow:b");
    for n in 3..40 {
        let (channel, id) = if n % 2 == 0 { ("a", "workflow:a") } else { ("b", "workflow:b") };
        let at = publish(&server, channel, n).await?;
        let event = socket.message().await?;
        assert_eq!((&event["channel"], &event["id"]), (&json!(id), &at));
        assert_eq!(event["data"]["message"], format!("n{n}"));
    }
    // After unsubscribing from one channel, the other continues.
    socket.send(json!({"type": "unsubscribe", "channel": "workflow:a"})).await?;
    let disconnected = socket.message().await?;
    assert_eq!(
        (&disconnected["type"], &disconnected["data"]["reason"]),
        (&json!("disconnected"), &json!("unsubscribed"))
    );
    let missed = publish(&server, "a", 41).await?;
    publish(&server, "b", 42).await?;
    assert_eq!(socket.message().await?["data"]["message"], "n42");
    // Subscribing again resumes after the given cursor.
    socket.send(subscribe("workflow:a", Some(&json!(previous_cursor(&missed)?)))).await?;
    assert_eq!(socket.message().await?["type"], "connected");
    assert_eq!(socket.message().await?["id"], missed);
    // The last event of a channel ends it, not the socket.
    let last = json!({"step": "s", "progress": 100, "message": "over", "last": true});
    assert_eq!(post(&server, "/stream/publish/workflow/a", &last).await?.0, 200);
    assert_eq!(socket.message().await?["data"]["message"], "over");
    assert_eq!(socket.message().await?["data"]["reason"], "finished");
    publish(&server, "b", 43).await?;
    assert_eq!(socket.message().await?["data"]["message"], "n43");
    socket.send("!close").await?;
    assert_eq!(socket.next().await?["close"], 1000);
    let is_closed = async || Ok(server.metric("weir_websockets_open").await? == 0.0);
    until("the socket is released", is_closed).await
}

/// The cursor before an event id.
fn previous_cursor(id: &Value) -> Result<String> {
    let (epoch, seq) = id.as_str().and_then(|id| id.split_once('-')).context("an id")?;
    Ok(format!("{epoch}-{}", seq.parse::<u64>()? - 1))
}

#[tokio::test]
async fn websocket_path_names_the_first_channel() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.heartbeat_ms=50"]).await?;
    let first = publish(&server, "w", 1).await?;
    let second = publish(&server, "w", 2).await?;
    let path = format!("/ws/workflow/w?last_event_id={}", first.as_str().context("an id")?);
    let mut socket = Socket::connect(&server, &path).await?;
    assert_eq!(socket.message().await?["type"], "connected");
    assert_eq!(socket.message().await?["id"], second);
    while socket.next().await?["message"]["type"] != "heartbeat" {}
    socket.send(subscribe("file:f", None)).await?;
    assert_eq!(socket.message().await?["channel"], "file:f");
    // An invalid message gets an error and does not close the socket.
    for (message, code) in [
        (json!({"type": "jump"}).to_string(), "invalid_message"),
        ("no json".to_owned(), "invalid_message"),
        (json!({"type": "unsubscribe", "channel": "user:nobody"}).to_string(), "not_followed"),
        (format!("{{\"type\":\"subscribe\",\"channel\":\"{}\"}}", "x".repeat(20_000)), "message_too_long"),
    ] {
        socket.send(&message).await?;
        let error = socket.message().await?;
        assert_eq!((&error["type"], &error["error"]["code"]), (&json!("error"), &json!(code)), "{message:.99}");
    }
    // An id that the channel never issued is a gap, followed by all retained events.
    socket.send(subscribe("workflow:w", Some(&json!("x")))).await?;
    assert_eq!(socket.message().await?["type"], "connected");
    assert_eq!(socket.message().await?["type"], "gap");
    for id in [&first, &second] {
        assert_eq!(&socket.message().await?["id"], id);
    }
    for n in 0..63 {
        socket.send(subscribe(&format!("workflow:many{n}"), None)).await?;
    }
    let mut responses = Vec::new();
    for _ in 0..63 {
        responses.push(socket.message().await?);
    }
    assert_eq!(responses.iter().filter(|response| response["type"] == "connected").count(), 62);
    // A refusal may be sent before the confirmation of an earlier subscription, which waits for the store.
    assert_eq!(responses.iter().filter(|response| response["error"]["code"] == "too_many_channels").count(), 1);
    socket.send("!binary").await?;
    // Heartbeats may precede it.
    let close = loop {
        let next = socket.next().await?;
        if next["message"]["type"] != "heartbeat" {
            break next;
        }
    };
    assert_eq!(close["close"], 1003, "{close}");
    Ok(())
}

#[tokio::test]
async fn websocket_of_a_session_accepts_chunks_and_sends_events() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let id = create_session(&server, &json!({"annotate": ["keywords"]})).await?;
    let mut socket = Socket::connect(&server, &format!("/ws/session/{id}")).await?;
    let mut events = Vec::new();
    for (start, speaker) in [(0.5, "ann"), (1.5, "ann"), (2.5, "bob")] {
        let chunk = json!({"start": start, "end": start + 1.0, "text": "we will cancel", "speaker_id": speaker});
        socket.send(&chunk).await?;
        let event = socket.message().await?;
        if event["type"] == "final_segment" {
            events.push(event);
            events.push(socket.message().await?);
        } else {
            events.push(event);
        }
    }
    let types: Vec<_> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(types, ["partial_segment", "partial_segment", "final_segment", "partial_segment"]);
    assert_eq!(events[2]["segment"]["text"], "we will cancel we will cancel");
    // An invalid chunk gets an error.
    socket.send(json!({"start": 1, "end": 0, "text": "x"})).await?;
    assert_eq!(socket.message().await?["type"], "error");
    socket.send("!close").await?;
    assert_eq!(socket.next().await?["close"], 1000);
    let has_all = async || {
        let state: Value = reqwest::get(server.url(&format!("/sessions/{id}"))).await?.json().await?;
        Ok(state["metrics"]["chunks_ingested"] == 3)
    };
    until("the session has the chunks", has_all).await?;
    let mut replay = Follower::open(&server, &format!("/stream/session/{id}"), None).await?;
    for event in &events {
        assert_eq!(replay.next_stored_event().await?.data["segment"], event["segment"]);
    }
    let mut socket = Socket::open(&server, "/ws/session/nobody", &json!({}))?;
    assert_eq!(socket.next().await?["refused"], 404);
    Ok(())
}

#[tokio::test]
async fn request_that_is_no_websocket_handshake_is_refused() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let response = reqwest::get(server.url("/ws/workflow/w")).await?;
    assert_eq!(
        (response.status().as_u16(), response.json::<Value>().await?["code"].clone()),
        (426, json!("upgrade_required"))
    );
    let mut socket = Socket::open(&server, "/ws/workflow/.bad", &json!({}))?;
    let refused = socket.next().await?;
    assert_eq!(refused["refused"], 422, "{refused}");
    let mut socket = Socket::open(&server, "/ws/nothing/1", &json!({}))?;
    assert_eq!(socket.next().await?["refused"], 404);
    // A page of another origin: browsers do not restrict WebSockets to their origin, so the server has to.
    let mut socket = Socket::open(&server, "/ws", &json!({"origin": "https://evil.example"}))?;
    assert_eq!(socket.next().await?["refused"], 403);
    let own = json!({"origin": format!("http://{}", server.address())});
    let mut socket = Socket::open(&server, "/ws", &own)?;
    assert_eq!(socket.next().await?["open"], true);
    // An unsupported version.
    let request = reqwest::Client::new().get(server.url("/ws")).header("connection", "upgrade");
    let request = request.header("upgrade", "websocket").header("sec-websocket-key", "AAAAAAAAAAAAAAAAAAAAAA==");
    let response = request.header("sec-websocket-version", "8").send().await?;
    assert_eq!((response.status().as_u16(), &response.headers()["sec-websocket-version"]), (426, &"13".parse()?));
    // The same messages as NDJSON, which a host without WebSockets serves.
    publish(&server, "w", 1).await?;
    let mut lines = Duplex::open(&server, "/ws").await?;
    lines.send(format!("{}\n", subscribe("workflow:w", None)).as_bytes()).await?;
    lines.raw.read_until("\"message\":\"n1\"").await?;
    lines.end().await?;
    let whole = reqwest::Client::new().post(server.url("/ws")).header("content-type", "application/x-ndjson");
    let whole = whole.body(format!("{}\n", subscribe("workflow:w", None))).send().await?.text().await?;
    assert_eq!(ndjson(&whole)?[0]["type"], "connected");
    Ok(())
}

#[tokio::test]
async fn unsubscribing_sends_the_throttled_progress_first() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut socket = Socket::connect(&server, "/ws").await?;
    socket.send(json!({"type": "subscribe", "channel": "workflow:w", "throttle_ms": 60_000})).await?;
    assert_eq!(socket.message().await?["type"], "connected");
    publish(&server, "w", 1).await?;
    assert_eq!(socket.message().await?["data"]["message"], "n1");
    let last = publish(&server, "w", 2).await?;
    socket.send(json!({"type": "unsubscribe", "channel": "workflow:w"})).await?;
    assert_eq!(socket.message().await?["id"], last);
    assert_eq!(socket.message().await?["data"]["reason"], "unsubscribed");
    Ok(())
}

/// A client that sends without pause and reads slowly gets events between the answers to its messages.
#[tokio::test]
async fn messages_of_a_client_do_not_delay_its_events() -> Result<()> {
    const MESSAGES: usize = 75_000;
    let server = Server::start_stub(&[]).await?;
    let mut lines = Duplex::send_head(Raw::connect_with_small_buffer(&server).await?, "/ws").await?;
    lines.send(format!("{}\n", subscribe("workflow:w", None)).as_bytes()).await?;
    lines.raw.read_until("\"connected\"").await?;
    lines.send("x\n".repeat(MESSAGES).as_bytes()).await?;
    lines.raw.read_until("invalid_message").await?;
    publish(&server, "w", 1).await?;
    let before = lines.raw.read_until("\"message\":\"n1\"").await?;
    let answers = before.matches("invalid_message").count();
    ensure!(answers < MESSAGES * 4 / 5, "the event comes after {answers} of {MESSAGES} answers");
    Ok(())
}

#[tokio::test]
async fn websocket_that_is_cut_or_drained_is_released() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut cut = Socket::connect(&server, "/ws/workflow/w").await?;
    assert_eq!(cut.message().await?["type"], "connected");
    cut.send("!cut").await?;
    let is_released = async || {
        let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
        Ok(health["active_streams"] == 0)
    };
    until("no stream is active", is_released).await?;
    let mut stays = Socket::connect(&server, "/ws/workflow/w").await?;
    assert_eq!(stays.message().await?["type"], "connected");
    server.signal("TERM")?;
    let end = loop {
        let next = stays.next().await?;
        if next.get("close").is_some() {
            break next;
        }
    };
    assert_eq!(end["close"], 1001, "{end}");
    Ok(())
}
