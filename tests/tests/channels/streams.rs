//! Channels over HTTP: publishing and following, across restarts, crashes and slow readers.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::client::{post, try_publish};
use weir_tests::follow::{Event, Follower};
use weir_tests::redis::Redis;
use weir_tests::{Raw, Server, ndjson, until};

/// The number that [`try_publish`] put into the message of an event.
fn number(event: &Event) -> Result<u32> {
    let message = event.data["message"].as_str().with_context(|| format!("{event:?}"))?;
    Ok(message.trim_start_matches('n').parse()?)
}

#[tokio::test]
async fn published_event_reaches_its_subscribers() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let response = reqwest::get(server.url("/stream/workflow/w1")).await?;
    let headers = response.headers().clone();
    assert_eq!(headers["content-type"], "text/event-stream");
    assert_eq!(headers["cache-control"], "no-store");
    assert_eq!(headers["x-accel-buffering"], "no");
    let mut live = Follower::from_response(response, None)?;
    let mut user = Follower::open(&server, "/stream/user/ann", None).await?;
    let connected = live.next_event().await?;
    assert_eq!((connected.name.as_str(), &connected.data["workflow_id"]), ("connected", &json!("w1")));
    assert_eq!(connected.id, "");

    let body = json!({
        "step": "parse", "progress": 12.5, "message": "a\r\nid: 9\u{0}\u{2028}", "metadata": {"n": 1.10},
        "user_id": "ann",
    });
    let (status, published) = post(&server, "/stream/publish/workflow/w1", &body).await?;
    assert_eq!((status, &published["status"]), (200, &json!("published")), "{published}");
    let event = live.next_event().await?;
    assert_eq!((event.name.as_str(), &json!(event.id)), ("workflow_progress", &published["id"]));
    for field in ["step", "progress", "message", "metadata", "user_id"] {
        assert_eq!(event.data[field], body[field], "{field}");
    }
    assert_eq!(event.data["workflow_id"], "w1");
    let copy = user.next_stored_event().await?;
    assert_eq!((&copy.data, &json!(copy.id)), (&event.data, &published["user_event_id"]));

    let (status, _) =
        post(&server, "/stream/publish/user/ann", &json!({"message": "hello", "level": "success"})).await?;
    assert_eq!(status, 200);
    let notification = user.next_stored_event().await?;
    assert_eq!((notification.name.as_str(), &notification.data["level"]), ("notification", &json!("success")));

    let status = json!({"event": "temporal_status", "status": "COMPLETED", "result": [1]});
    assert_eq!(post(&server, "/stream/publish/workflow/w1", &status).await?.0, 200);
    let last = live.next_event().await?;
    assert_eq!((last.name.as_str(), &last.data["status"]), ("temporal_status", &json!("COMPLETED")));
    let end = live.next_event().await?;
    assert_eq!((end.name.as_str(), &end.data["reason"]), ("disconnected", &json!("finished")));
    assert_eq!(live.next().await?, None);

    // A finished channel accepts no event; a late subscriber gets all events, and one that resumes after the last gets 204.
    let (status, problem) = try_publish(&server, "w1", 3).await?;
    assert_eq!((status, &problem["code"]), (409, &json!("channel_finished")));
    let late = Follower::open(&server, "/stream/workflow/w1", None).await?.remaining_events().await?;
    assert_eq!(late, [event, last.clone()]);
    let response =
        Client::new().get(server.url("/stream/workflow/w1")).header("last-event-id", &last.id).send().await?;
    assert_eq!(response.status(), 204);
    let query = reqwest::get(server.url(&format!("/stream/workflow/w1?last_event_id={}", last.id))).await?;
    assert_eq!(query.status(), 204);
    Ok(())
}

#[tokio::test]
async fn file_channel_is_followed_as_ndjson() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for (percent, result) in [(10, Value::Null), (100, json!({"label": "invoice"}))] {
        let body = json!({"step": "read", "progress": percent, "message": "m", "result": result});
        assert_eq!(post(&server, "/stream/publish/analysis/f.pdf", &body).await?.0, 200);
    }
    let response = Client::new().get(server.url("/stream/file/f.pdf")).header("accept", "application/x-ndjson");
    let lines = ndjson(&response.send().await?.text().await?)?;
    let names: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap_or("?")).collect();
    assert_eq!(names, ["connected", "analysis_progress", "analysis_progress", "disconnected"]);
    assert_eq!(lines[2]["data"]["result"]["label"], "invoice");
    assert_eq!(lines[2]["channel"], "file:f.pdf");
    assert!(lines[2]["id"].is_string() && lines[0]["id"].is_null());
    let response = Client::new().get(server.url("/stream/file/f.pdf")).header("accept", "image/png").send().await?;
    assert_eq!(response.status(), 406);
    Ok(())
}

#[tokio::test]
async fn events_of_every_channel_are_in_events_file_and_metrics() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.ndjson");
    let server = Server::start_stub(&["--set", &format!("events.file={}", file.display())]).await?;
    for n in 0..40 {
        assert_eq!(try_publish(&server, &format!("w{}", n % 4), n).await?.0, 200);
    }
    let has_all = async || Ok(ndjson(&std::fs::read_to_string(&file)?)?.len() == 40);
    until("all events are in the file", has_all).await?;
    for (n, line) in ndjson(&std::fs::read_to_string(&file)?)?.iter().enumerate() {
        assert_eq!(
            (&line["type"], &line["channel"]),
            (&json!("workflow_progress"), &json!(format!("workflow:w{}", n % 4)))
        );
        assert_eq!(line["data"]["message"], format!("n{n}"));
        assert!(line["id"].is_string() && line["time"].is_u64());
    }
    let has_counted = async || Ok(server.metric("weir_events_published_total").await? == 40.0);
    until("all events are counted", has_counted).await
}

#[tokio::test]
async fn health_reports_the_store_and_its_subscribers() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.heartbeat_ms=100", "--set", "events.retry_ms=1234"]).await?;
    let health = |server: &Server| reqwest::get(server.url("/stream/health"));
    let before: Value = health(&server).await?.json().await?;
    assert_eq!((&before["status"], &before["active_streams"]), (&json!("healthy"), &json!(0)), "{before}");
    assert_eq!(before["services"], json!({"memory": "healthy", "inference": "healthy"}));
    let mut raw = Raw::connect(&server).await?;
    raw.send(b"GET /stream/workflow/w HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    let text = raw.read_until(":\n\n").await?;
    assert!(text.contains("retry: 1234\n\n") && text.contains("event: connected\n"), "{text}");
    let now: Value = health(&server).await?.json().await?;
    assert_eq!(now["active_streams"], 1, "{now}");
    // A subscriber that disconnects is detected.
    drop(raw);
    until("no stream is active", || async {
        let now: Value = health(&server).await?.json().await?;
        Ok(now["active_streams"] == 0)
    })
    .await
}

#[tokio::test]
async fn subscriber_that_resumes_gets_every_event_once() -> Result<()> {
    const EVENTS: u32 = 400;
    let server = Server::start_stub(&[]).await?;
    let publish = async {
        for n in 0..EVENTS {
            let (status, response) = try_publish(&server, "w", n).await?;
            ensure!(status == 200, "{response}");
        }
        Ok(())
    };
    let follow = async {
        let mut received = Vec::new();
        let mut last: Option<String> = None;
        // Each connection receives a few events and disconnects while more are published.
        for count in (1..).map(|round: u32| round * 7 % 23 + 1) {
            let mut follower = Follower::open(&server, "/stream/workflow/w", last.as_deref()).await?;
            for _ in 0..count {
                let event = follower.next_stored_event().await?;
                ensure!(event.name == "workflow_progress", "{event:?}");
                received.push(number(&event)?);
                if received.len() == EVENTS as usize {
                    return Ok(received);
                }
            }
            last = Some(follower.last_id().to_owned());
        }
        Ok(received)
    };
    let (published, received): (Result<()>, Result<Vec<u32>>) = tokio::join!(publish, follow);
    published?;
    assert_eq!(received?, (0..EVENTS).collect::<Vec<_>>());
    Ok(())
}

#[tokio::test]
async fn events_past_retention_are_a_gap() -> Result<()> {
    let server = Server::start_stub(&["--set", "events.events_max=5"]).await?;
    let mut ids = Vec::new();
    for n in 0..10 {
        ids.push(try_publish(&server, "w", n).await?.1["id"].as_str().context("an id")?.to_owned());
    }
    let mut follower = Follower::open(&server, "/stream/workflow/w", Some(&ids[1])).await?;
    let gap = follower.next_stored_event().await?;
    assert_eq!(gap.name, "gap");
    assert_eq!((&gap.data["missing_from"], &gap.data["missing_to"]), (&json!(ids[2]), &json!(ids[4])));
    assert_eq!(gap.id, ids[4], "the id of a gap is its last missing event");
    for (n, id) in ids.iter().enumerate().skip(5) {
        let event = follower.next_stored_event().await?;
        assert_eq!((&event.id, number(&event)?), (id, n as u32));
    }
    // A subscription from the beginning starts at the first retained event; a cursor of another epoch is a gap.
    let mut fresh = Follower::open(&server, "/stream/workflow/w", None).await?;
    assert_eq!(&fresh.next_stored_event().await?.id, &ids[5]);
    let mut other = Follower::open(&server, "/stream/workflow/w", Some("7-3")).await?;
    assert_eq!(other.next_stored_event().await?.name, "gap");
    // So is an id that the channel never issued: with an error status, an EventSource would not reconnect.
    for foreign in ["x", "1-", "-1", "1-2-3", "9999999999999999999999-1"] {
        let mut other = Follower::open(&server, "/stream/workflow/w", Some(foreign)).await?;
        assert_eq!(other.next_stored_event().await?.name, "gap", "{foreign}");
        assert_eq!(&other.next_stored_event().await?.id, &ids[5], "{foreign}");
    }
    Ok(())
}

async fn on_disk(path: &Path) -> Result<Server> {
    let path = format!("events.path={}", path.display());
    Server::start_stub(&["--set", "events.store=disk", "--set", "events.durable=true", "--set", &path]).await
}

#[tokio::test]
async fn acknowledged_events_survive_restart_and_kill_9() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let mut acknowledged: Vec<(u32, String)> = Vec::new();
    let mut received: Vec<(u32, String)> = Vec::new();
    let mut last: Option<String> = None;
    let mut next = 0;
    for (round, signal) in ["KILL", "TERM", "KILL", "KILL"].into_iter().enumerate() {
        let mut server = on_disk(&file).await?;
        let mut follower = Follower::open(&server, "/stream/workflow/w", last.as_deref()).await?;
        // Events that were acknowledged before the crash and not yet received come first.
        while received.len() < acknowledged.len() {
            let event = follower.next_stored_event().await?;
            received.push((number(&event)?, event.id));
        }
        let stop = Instant::now() + Duration::from_millis(150 + 50 * round as u64);
        while Instant::now() < stop {
            let (status, response) = try_publish(&server, "w", next).await?;
            ensure!(status == 200, "{response}");
            acknowledged.push((next, response["id"].as_str().context("an id")?.to_owned()));
            next += 1;
        }
        // Half of the events are received before the server ends.
        while received.len() < acknowledged.len() / 2 {
            let event = follower.next_stored_event().await?;
            received.push((number(&event)?, event.id));
        }
        last = Some(follower.last_id().to_owned());
        server.signal(signal)?;
        server.wait().await?;
    }
    let server = on_disk(&file).await?;
    let mut follower = Follower::open(&server, "/stream/workflow/w", last.as_deref()).await?;
    while received.len() < acknowledged.len() {
        let event = follower.next_stored_event().await?;
        received.push((number(&event)?, event.id));
    }
    assert!(acknowledged.len() > 20, "{} events", acknowledged.len());
    assert_eq!(received, acknowledged);
    Ok(())
}

#[tokio::test]
async fn slow_reader_is_closed_and_resumes() -> Result<()> {
    const EVENTS: usize = 120;
    let server =
        Server::start_stub(&["--set", "events.outbox_bytes_max=200000", "--set", "events.bytes_max=100000000"]).await?;
    let mut slow = Raw::connect_with_small_buffer(&server).await?;
    slow.send(b"GET /stream/user/u HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    slow.read_until("event: connected").await?;
    let mut quick = Follower::open(&server, "/stream/user/u", None).await?;
    let mut ids = Vec::new();
    for n in 0..EVENTS {
        let body = json!({"message": format!("n{n}"), "metadata": {"pad": "x".repeat(50_000)}});
        let (status, response) = post(&server, "/stream/publish/user/u", &body).await?;
        ensure!(status == 200, "{response}");
        ids.push(response["id"].as_str().context("an id")?.to_owned());
        // The reader that keeps up has each event before the next is published.
        assert_eq!(quick.next_stored_event().await?.id, ids[n]);
    }
    // When the slow reader reads, it gets the buffered events and the reason of the end.
    slow.read_until("event: disconnected").await?;
    let text = slow.read_until("\"reason\":\"slow\"").await?;
    assert_eq!(server.metric("weir_events_closed_slow_total").await?, 1.0);
    let received: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("id: ")).collect();
    assert!(received.len() < EVENTS, "the reader was not closed before the last event");
    assert_eq!(received, ids[..received.len()]);
    let mut resumed = Follower::open(&server, "/stream/user/u", received.last().copied()).await?;
    for id in &ids[received.len()..] {
        assert_eq!(&resumed.next_stored_event().await?.id, id);
    }
    Ok(())
}

#[tokio::test]
async fn stalled_subscriber_delays_no_other() -> Result<()> {
    const READERS: usize = 200;
    const EVENTS: u32 = 50;
    let server = Server::start_stub(&[]).await?;
    let mut stalled = Raw::connect_with_small_buffer(&server).await?;
    stalled.send(b"GET /stream/workflow/w HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    stalled.read_until("event: connected").await?;
    let mut readers = Vec::new();
    for _ in 0..READERS {
        let mut follower = Follower::open(&server, "/stream/workflow/w", None).await?;
        assert_eq!(follower.next_event().await?.name, "connected");
        readers.push(tokio::spawn(async move {
            let mut received = Vec::new();
            for _ in 0..EVENTS {
                let event = follower.next_stored_event().await?;
                received.push((number(&event)?, Instant::now()));
            }
            anyhow::Ok(received)
        }));
    }
    let mut sent = Vec::new();
    for n in 0..EVENTS {
        sent.push(Instant::now());
        assert_eq!(try_publish(&server, "w", n).await?.0, 200);
    }
    let mut delays = Vec::new();
    for reader in readers {
        for (at, (n, received)) in reader.await??.into_iter().enumerate() {
            assert_eq!(at as u32, n);
            delays.push(received.saturating_duration_since(sent[at]));
        }
    }
    delays.sort();
    let p99 = delays[delays.len() * 99 / 100];
    println!("{READERS} readers, {EVENTS} events: p50 {:?}, p99 {p99:?}", delays[delays.len() / 2]);
    assert!(p99 < Duration::from_secs(5), "{p99:?}");
    Ok(())
}

#[tokio::test]
async fn subscriber_is_disconnected_when_the_server_stops() -> Result<()> {
    let mut server = Server::start_stub(&[]).await?;
    try_publish(&server, "w", 1).await?;
    let mut follower = Follower::open(&server, "/stream/workflow/w", None).await?;
    follower.next_stored_event().await?;
    server.signal("TERM")?;
    let end = follower.next_event().await?;
    assert_eq!((end.name.as_str(), &end.data["resumable"]), ("disconnected", &json!(true)));
    assert_eq!(follower.next().await?, None);
    assert!(server.wait().await?.success(), "{}", server.log());
    Ok(())
}

async fn publish_when_available(server: &Server, id: &str, n: u32) -> Result<()> {
    until("published", || async { Ok(try_publish(server, id, n).await?.0 == 200) }).await
}

#[tokio::test]
async fn servers_on_one_redis_share_channels_across_its_restarts() -> Result<()> {
    let mut redis = Redis::start()?;
    let (one, two) = (redis.start_server(&[]).await?, redis.start_server(&[]).await?);
    publish_when_available(&one, "w", 0).await?;
    let mut follower = Follower::open(&two, "/stream/workflow/w", None).await?;
    assert_eq!(number(&follower.next_stored_event().await?)?, 0);
    for n in 1..20 {
        assert_eq!(try_publish(&one, "w", n).await?.0, 200);
        assert_eq!(number(&follower.next_stored_event().await?)?, n);
    }
    redis.kill()?;
    until("publishing is refused as retryable", || async {
        let (status, problem) = try_publish(&one, "lost", 0).await?;
        Ok((status, &problem["code"], &problem["retryable"]) == (503, &json!("events_unavailable"), &json!(true)))
    })
    .await?;
    let health = reqwest::get(one.url("/stream/health")).await?;
    assert_eq!(health.status(), 503);
    assert_eq!(health.json::<Value>().await?["services"]["events"], "unhealthy");
    assert_eq!(reqwest::get(one.url("/readyz")).await?.status(), 503);
    redis.restart()?;
    one.ready().await?;
    two.ready().await?;
    publish_when_available(&one, "w", 20).await?;
    // The sequence continues with each event once and no gap.
    let mut resumed = Follower::open(&two, "/stream/workflow/w", Some(follower.last_id())).await?;
    let event = resumed.next_stored_event().await?;
    assert_eq!((event.name.as_str(), number(&event)?), ("workflow_progress", 20));
    let mut all_events = Follower::open(&one, "/stream/workflow/w", None).await?;
    for n in 0..=20 {
        let event = all_events.next_stored_event().await?;
        assert_eq!((number(&event)?, event.seq()?), (n, u64::from(n) + 1));
    }
    Ok(())
}

#[tokio::test]
async fn memory_replaces_redis_during_an_outage() -> Result<()> {
    let mut redis = Redis::start()?;
    let server = redis.start_server(&["--set", "events.fallback=memory"]).await?;
    publish_when_available(&server, "w", 0).await?;
    redis.kill()?;
    publish_when_available(&server, "w", 1).await?;
    until("degraded", || async {
        let response = reqwest::get(server.url("/stream/health")).await?;
        let (status, health) = (response.status(), response.json::<Value>().await?);
        Ok(status == 200 && health["status"] == "degraded" && health["services"]["redis"] == "unhealthy")
    })
    .await?;
    server.ready().await?;
    redis.restart()?;
    until("healthy", || async {
        let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
        Ok(health["status"] == "healthy")
    })
    .await?;
    publish_when_available(&server, "w", 2).await
}
