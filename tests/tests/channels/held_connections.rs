//! Subscriptions held by the host: they occupy no instance and no request, hold headers of clients are ignored, and clients that
//! disconnect, stall or send slowly are detected.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::client::{post, publish};
use weir_tests::follow::Follower;
use weir_tests::{PATIENCE, Raw, Server, tool, until};

const SUBSCRIBE: &[u8] = b"GET /stream/workflow/w HTTP/1.1\r\nHost: localhost\r\n\r\n";

async fn wait_for_held(server: &Server, count: usize) -> Result<()> {
    until(&format!("{count} connections held"), || async {
        Ok(server.metric("weir_http_connections_held").await? == count as f64)
    })
    .await
}

#[tokio::test]
async fn quiet_subscriber_occupies_no_request_and_no_instance() -> Result<()> {
    const FOLLOWERS: usize = 40;
    let server =
        Server::start_stub(&["--set", "http.requests_max=4", "--set", "gateway.instance_requests_max=2"]).await?;
    let mut followers = Vec::new();
    for _ in 0..FOLLOWERS {
        let mut follower = Follower::open(&server, "/stream/workflow/w", None).await?;
        assert_eq!(follower.next_event().await?.name, "connected");
        followers.push(follower);
    }
    wait_for_held(&server, FOLLOWERS).await?;
    assert_eq!(server.metric("weir_http_requests_open").await?, 0.0);
    assert_eq!(post(&server, "/v1/classify", &json!({"inputs": "good"})).await?.0, 200);
    let id = publish(&server, "w", 1).await?;
    for follower in &mut followers {
        assert_eq!(follower.next_stored_event().await?.id, id);
    }
    let instances = server.metric("weir_gateway_instances_total").await?;
    assert!(instances < 10.0, "{instances} instances for {FOLLOWERS} subscribers");
    drop(followers);
    wait_for_held(&server, 0).await
}

#[tokio::test]
async fn disconnect_from_a_quiet_subscription_is_detected_at_once() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.heartbeat_ms=3600000"]).await?;
    let mut followers = Vec::new();
    for _ in 0..3 {
        let mut raw = Raw::connect(&server).await?;
        raw.send(SUBSCRIBE).await?;
        raw.read_until("event: connected").await?;
        followers.push(raw);
    }
    let shared = Client::builder().http2_prior_knowledge().build()?;
    let mut streams = Vec::new();
    for _ in 0..2 {
        let mut stream = Follower::from_response(shared.get(server.url("/stream/workflow/w")).send().await?, None)?;
        stream.next_event().await?;
        streams.push(stream);
    }
    wait_for_held(&server, 5).await?;
    // The disconnect is detected although no heartbeat is written.
    drop(followers.pop());
    wait_for_held(&server, 4).await?;
    drop(streams.pop());
    wait_for_held(&server, 3).await?;
    // Bytes that a subscriber sends are not read as a request, and its connection stays.
    followers[0].send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let id = publish(&server, "w", 1).await?;
    let text = followers[0].read_until(&id).await?;
    assert_eq!(text.matches("HTTP/1.1").count(), 1, "{text}");
    assert_eq!(streams[0].next_stored_event().await?.id, id);
    drop((followers, streams));
    wait_for_held(&server, 0).await
}

#[tokio::test]
async fn subscriber_over_the_bound_is_refused_with_503() -> Result<()> {
    let server =
        Server::start_stub(&["--set", "events.subscribers_max=2", "--set", "http.client_share_percent=100"]).await?;
    let mut followers = Vec::new();
    for _ in 0..2 {
        followers.push(Follower::open(&server, "/stream/workflow/w", None).await?);
    }
    let response = reqwest::get(server.url("/stream/workflow/w")).await?;
    assert_eq!(response.status(), 503);
    assert!(response.headers()["retry-after"].to_str()?.parse::<u32>()? >= 1);
    assert!(response.headers().contains_key("x-request-id"));
    assert_eq!(response.json::<Value>().await?["code"], "connections_full");
    followers.pop();
    until("a subscription is accepted again", || async {
        Ok(reqwest::get(server.url("/stream/workflow/w")).await?.status() == 200)
    })
    .await
}

#[tokio::test]
async fn hold_headers_of_a_client_are_ignored() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let others = publish(&server, "others", 1).await?;
    let with_hold_headers = |request: reqwest::RequestBuilder| {
        request
            .header("grip-hold", "stream")
            .header("grip-channel", "workflow:others")
            .header("grip-last", "workflow:others; last-id=0")
            .header("weir-hold", "after=0; framing=sse; heartbeat-ms=1; user=root")
    };
    let response = with_hold_headers(Client::new().get(server.url("/stream/workflow/w"))).send().await?;
    let headers = response.headers().clone();
    let names: Vec<&str> = headers.keys().map(|name| name.as_str()).collect();
    assert!(!names.iter().any(|name| name.starts_with("grip-") || name.starts_with("weir-")), "{names:?}");
    let mut follower = Follower::from_response(response, None)?;
    assert_eq!(follower.next_event().await?.data["workflow_id"], "w");
    let own = publish(&server, "w", 2).await?;
    assert_ne!(own, others);
    assert_eq!(follower.next_stored_event().await?.id, own);
    // Responses to other requests are not held.
    let response = with_hold_headers(Client::new().get(server.url("/livez"))).send().await?;
    assert_eq!((response.status().as_u16(), response.text().await?.as_str()), (200, "{\"status\":\"alive\"}\n"));
    let response = with_hold_headers(Client::new().head(server.url("/stream/workflow/w"))).send().await?;
    assert_eq!((response.status().as_u16(), response.bytes().await?.len()), (200, 0));
    wait_for_held(&server, 1).await
}

#[tokio::test]
async fn subscription_over_any_http_version_is_held_by_the_host() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    // Pipelined after other requests, which are answered first and whole.
    let mut pipelined = Raw::connect(&server).await?;
    let livez = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n".as_slice();
    pipelined.send(&[livez, livez, SUBSCRIBE].concat()).await?;
    let text = pipelined.read_until("event: connected").await?;
    assert_eq!(text.matches(r#"{"status":"alive"}"#).count(), 2, "{text}");
    // A client of HTTP/1.0, which has no chunked encoding.
    let mut old = Raw::connect(&server).await?;
    old.send(b"GET /stream/workflow/w HTTP/1.0\r\nHost: localhost\r\n\r\n").await?;
    let text = old.read_until("event: connected").await?;
    assert!(!text.to_ascii_lowercase().contains("chunked"), "{text}");
    let two = Client::builder().http2_prior_knowledge().build()?;
    let mut shared = Follower::from_response(two.get(server.url("/stream/workflow/w")).send().await?, None)?;
    let id = publish(&server, "w", 1).await?;
    pipelined.read_until(&id).await?;
    old.read_until(&id).await?;
    assert_eq!(shared.next_stored_event().await?.id, id);
    let last = json!({"event": "temporal_status", "status": "COMPLETED"});
    assert_eq!(post(&server, "/stream/publish/workflow/w", &last).await?.0, 200);
    let text = pipelined.read_to_end().await?;
    assert!(text.contains("\"reason\":\"finished\"") && text.ends_with("\r\n0\r\n\r\n"), "{text}");
    assert!(old.read_to_end().await?.contains("\"reason\":\"finished\""));
    assert_eq!(shared.remaining_events().await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn slow_request_occupies_no_instance() -> Result<()> {
    const SLOW: usize = 100;
    let server = Server::start_stub(&["--set", "http.header_timeout_ms=500", "--set", "http.requests_max=8"]).await?;
    let mut follower = Follower::open(&server, "/stream/workflow/w", None).await?;
    follower.next_event().await?;
    // Heads that are sent a byte at a time and never end, until the server closes their connection.
    let dribble = |mut raw: Raw| async move {
        let began = Instant::now();
        for byte in SUBSCRIBE[..SUBSCRIBE.len() - 2].iter().chain(b"X-Slow: ").chain([b'x'; 1000].iter()) {
            let cut = raw.send(&[*byte]).await.is_err();
            if cut || tokio::time::timeout(Duration::from_millis(20), raw.read_to_end()).await.is_ok() {
                return Ok(began.elapsed());
            }
        }
        anyhow::bail!("the server waited for a head of {} bytes", SUBSCRIBE.len() + 1000)
    };
    let mut slow = Vec::new();
    for _ in 0..SLOW {
        slow.push(tokio::spawn(dribble(Raw::connect(&server).await?)));
    }
    // Other clients are served meanwhile.
    for n in 0..10 {
        let id = publish(&server, "w", n).await?;
        assert_eq!(follower.next_stored_event().await?.id, id);
    }
    for slow in slow {
        let duration = slow.await??;
        assert!(duration < Duration::from_secs(10), "{duration:?}");
    }
    wait_for_held(&server, 1).await
}

#[tokio::test]
async fn stalled_subscriber_among_a_thousand_delays_no_other_and_resumes() -> Result<()> {
    const READERS: usize = 1000;
    const EVENTS: usize = 30;
    let arguments = ["--set", "events.outbox_bytes_max=100000", "--set", "events.bytes_max=100000000"];
    let server = Server::start_stub(&arguments).await?;
    let mut stalled = Raw::connect_with_small_buffer(&server).await?;
    stalled.send(SUBSCRIBE).await?;
    stalled.read_until("event: connected").await?;
    let (arrivals, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let mut readers = tokio::task::JoinSet::new();
    for _ in 0..READERS {
        let mut raw = Raw::connect(&server).await?;
        raw.send(SUBSCRIBE).await?;
        raw.read_until("event: connected").await?;
        let arrivals = arrivals.clone();
        readers.spawn(async move {
            for _ in 0..EVENTS {
                raw.skip_past("event: temporal_status").await?;
                arrivals.send(Instant::now())?;
            }
            anyhow::Ok(())
        });
    }
    wait_for_held(&server, READERS + 1).await?;
    // These events do not coalesce, and exceed the outbox of the stalled subscriber.
    let (mut ids, mut delays) = (Vec::new(), Vec::new());
    for n in 0..EVENTS {
        let pad = "x".repeat(if n % 2 == 0 { 100 } else { 40_000 });
        let body = json!({"event": "temporal_status", "status": "RUNNING", "metadata": {"pad": pad}});
        let sent = Instant::now();
        let (status, response) = post(&server, "/stream/publish/workflow/w", &body).await?;
        ensure!(status == 200, "{response}");
        ids.push(response["id"].as_str().context("an id")?.to_owned());
        // All other subscribers have the event before the next is sent.
        for _ in 0..READERS {
            let at = tokio::time::timeout(PATIENCE, arrived.recv()).await.with_context(|| format!("event {n}"))?;
            delays.push(at.context("a reader")?.saturating_duration_since(sent));
        }
    }
    while let Some(reader) = readers.join_next().await {
        reader??;
    }
    delays.sort();
    let p99 = delays[delays.len() * 99 / 100];
    println!("{READERS} readers, {EVENTS} events: p50 {:?}, p99 {p99:?}", delays[delays.len() / 2]);
    assert!(p99 < Duration::from_secs(5), "{p99:?}");
    // The stalled subscriber gets the reason of its end, and resumes after the last event that it received.
    let text = stalled.read_until("\"reason\":\"slow\"").await?;
    assert_eq!(server.metric("weir_events_closed_slow_total").await?, 1.0);
    let received_ids: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert!(received_ids.len() < EVENTS, "the subscriber was not closed before the last event");
    assert_eq!(received_ids, ids[..received_ids.len()]);
    let mut resumed = Follower::open(&server, "/stream/workflow/w", received_ids.last().copied()).await?;
    for id in &ids[received_ids.len()..] {
        assert_eq!(&resumed.next_stored_event().await?.id, id);
    }
    Ok(())
}

/// A reader of gzip in Python: prints each event on arrival, and at the end whether the stream was complete.
const GUNZIP: &str = r#"
import http.client, sys, zlib
connection = http.client.HTTPConnection(sys.argv[1], timeout=60)
connection.request("GET", "/stream/workflow/w", headers={"Accept-Encoding": "gzip"})
answer = connection.getresponse()
print(answer.status, answer.getheader("content-encoding"), answer.getheader("vary"), flush=True)
gunzip, text, wire = zlib.decompressobj(16 + zlib.MAX_WBITS), b"", 0
while piece := answer.read1():
    wire += len(piece)
    text += gunzip.decompress(piece)
    while b"\n\n" in text:
        event, text = text.split(b"\n\n", 1)
        print(repr(event.decode()), flush=True)
print("whole" if gunzip.eof and not gunzip.unused_data and not text else "cut", wire, flush=True)
"#;

#[tokio::test]
async fn compressed_stream_is_readable_event_by_event() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.heartbeat_ms=200"]).await?;
    publish(&server, "w", 0).await?;
    let mut command = Command::new(tool("WEIR_TEST_PYTHON")?);
    let mut reader = command.args(["-c", GUNZIP, server.address()]).stdout(Stdio::piped()).spawn()?;
    let mut lines = BufReader::new(reader.stdout.take().context("an output")?).lines();
    let mut line = || -> Result<String> { Ok(lines.next().context("the reader ended")??) };
    assert_eq!(line()?, "200 gzip accept, origin, accept-encoding");
    assert_eq!(line()?, "'retry: 3000'");
    assert!(line()?.starts_with("'event: connected"));
    let mut bytes = 0;
    for n in 0..20 {
        if n > 0 {
            publish(&server, "w", n).await?;
        }
        // The event is readable before the next is sent; heartbeats may arrive between them.
        let event = loop {
            let event = line()?;
            bytes += event.len();
            if event != "':'" {
                break event;
            }
        };
        assert!(event.contains("workflow_progress") && event.contains(&format!("\"n{n}\"")), "{event}");
    }
    while line()? != "':'" {}
    let pad = "all work and no play ".repeat(2000);
    let last = json!({"event": "temporal_status", "status": "COMPLETED", "result": pad});
    assert_eq!(post(&server, "/stream/publish/workflow/w", &last).await?.0, 200);
    let end = loop {
        let end = line()?;
        bytes += end.len();
        if end.starts_with("whole") || end.starts_with("cut") {
            break end;
        }
    };
    let wire: usize = end.strip_prefix("whole ").with_context(|| end.clone())?.parse()?;
    assert!(wire * 5 < bytes, "{wire} bytes for {bytes}");
    assert!(reader.wait()?.success());
    // Requests without gzip, and NDJSON, are not compressed; `Vary` names the header.
    for (header, value) in [("accept", "application/x-ndjson"), ("accept-encoding", "gzip;q=0")] {
        let response = Client::new().get(server.url("/stream/workflow/plain")).header(header, value).send().await?;
        assert!(!response.headers().contains_key("content-encoding"));
        assert!(response.headers().get_all("vary").iter().any(|vary| vary == "accept-encoding"));
    }
    Ok(())
}
