//! Stored transcript sessions over real sockets: lifecycle, ownership, competing feeders, crashes, and the vectors of slower-whisper.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Method};
use serde_json::{Value, json};
use weir_tests::client::{NDJSON, create_session, end_session, feed};
use weir_tests::follow::{Event, Follower};
use weir_tests::texts::Random;
use weir_tests::{Duplex, Raw, Server, ndjson, root, until};

async fn get(server: &Server, path: &str) -> Result<(u16, Value)> {
    let response = reqwest::get(server.url(path)).await?;
    let status = response.status().as_u16();
    Ok((status, response.json().await?))
}

/// The events in the channel of a session that has ended.
async fn channel_events(server: &Server, id: &str) -> Result<Vec<Event>> {
    Follower::open(server, &format!("/stream/session/{id}"), None).await?.remaining_events().await
}

fn chunk(at: usize, text: &str, speaker: &str) -> Value {
    json!({"start": at, "end": at, "text": text, "speaker_id": speaker, "seq": at + 1})
}

/// A conversation, each chunk with its sequence number.
fn conversation(chunks: usize, random: &mut Random) -> Vec<Value> {
    let text = ["I'll check the price", "are you leaving?", "the sky was grey", "we agreed", ""];
    (0..chunks).map(|at| chunk(at, text[random.below(5)], ["a", "b", "c"][random.below(3)])).collect()
}

/// An event without the members that only stored sessions have.
fn without_stored_fields(event: &Value) -> Value {
    let mut event = event.clone();
    if let Some(event) = event.as_object_mut() {
        event.remove("seq");
        event.remove("event_id");
    }
    event
}

/// The events of the same chunks in one request to `/v1/transcript`.
async fn one_shot_events(server: &Server, chunks: &[Value]) -> Result<Vec<Value>> {
    let body: String = chunks.iter().map(|chunk| format!("{chunk}\n")).collect();
    let path = "/v1/transcript?summary_every=5&summary_at_end=true";
    let response = Client::new().post(server.url(path)).header("content-type", NDJSON).body(body).send().await?;
    ndjson(&response.text().await?)
}

/// Checks that the channel of a session that has ended has the events of one request, each once and in order.
fn check_agrees(channel: &[Event], expected: &[Value]) -> Result<()> {
    let (last, events) = channel.split_last().context("no events")?;
    ensure!(last.name == "session_ended", "{last:?}");
    for (at, event) in events.iter().enumerate() {
        ensure!(event.data["event_id"] == at + 1, "{} is at {at}: {}", event.data["event_id"], event.data);
        ensure!(
            Some(&without_stored_fields(&event.data)) == expected.get(at),
            "{}\n{:?}",
            event.data,
            expected.get(at)
        );
    }
    ensure!(events.len() == expected.len(), "{} of {}", events.len(), expected.len());
    Ok(())
}

#[tokio::test]
async fn session_has_its_events_from_start_to_end() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let id = create_session(&server, &json!({"summary": {"every_finals": 2}})).await?;
    let path = format!("/sessions/{id}");
    let events = feed(&server, &id, &[chunk(0, "can you send", "a"), chunk(1, "the price list?", "a")]).await?;
    assert_eq!(events[1]["segment"]["text"], "can you send the price list?");
    assert_eq!((&events[1]["seq"], &events[1]["event_id"]), (&json!(2), &json!(2)));
    // A second request continues the session; an invalid chunk is an error at its line, and a repeated one is not ingested again.
    let wrong = json!({"start": 0, "end": -1, "text": "", "seq": 3});
    let events = feed(&server, &id, &[wrong, chunk(1, "the price list?", "a"), chunk(2, "yes", "b")]).await?;
    let kinds: Vec<&str> = events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["error", "repeated", "final_segment", "partial_segment"]);
    assert_eq!((&events[0]["error"]["code"], &events[0]["line"]), (&json!("end_before_start"), &json!(1)));
    assert_eq!(events[2]["semantic"]["keywords"], json!(["price"]));

    let (status, state) = get(&server, &path).await?;
    assert_eq!((status, &state["state"], &state["events"]), (200, &json!("open"), &json!(4)));
    assert_eq!((&state["metrics"]["chunks_ingested"], &state["seq_last"]), (&json!(3), &json!(3)));
    let (_, context) = get(&server, &format!("{path}/context")).await?;
    assert_eq!(context["text"], "Recent conversation context:\n[0.0s] a: can you send the price list?");
    let request = Client::new().get(server.url(&format!("{path}/context"))).header("accept", "text/plain");
    assert_eq!(request.send().await?.text().await?, context["text"].as_str().context("a text")?);

    let last_events = end_session(&server, &id).await?;
    let kinds: Vec<&str> = last_events.iter().filter_map(|event| event["type"].as_str()).collect();
    assert_eq!(kinds, ["final_segment", "summary_due", "summary_due", "session_ended"]);
    assert_eq!(last_events[2]["summary"], "stub summary of 32 code points");
    let channel = channel_events(&server, &id).await?;
    assert_eq!(channel.len(), 8);
    assert_eq!(channel[2].data, events[2]);
    let rest = Follower::open(&server, &format!("/stream/session/{id}"), Some(&channel[5].id))
        .await?
        .remaining_events()
        .await?;
    assert_eq!(rest, channel[6..]);
    assert_eq!(get(&server, &path).await?.1["state"], "ended");
    let response = Client::new().post(server.url(&format!("{path}/end"))).send().await?;
    assert_eq!(
        (response.status().as_u16(), response.json::<Value>().await?["code"].clone()),
        (409, json!("session_ended"))
    );

    assert_eq!(Client::new().delete(server.url(&path)).send().await?.status(), 204);
    assert_eq!(get(&server, &path).await?.0, 404);
    assert_eq!(Client::new().delete(server.url(&path)).send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn invalid_session_request_is_refused_with_its_reason() -> Result<()> {
    let server = Server::start_stub(&["--set", "sessions.live_max=1"]).await?;
    let post = async |path: &str, content_type: &str, body: &str| -> Result<(u16, Value)> {
        let request = Client::new().post(server.url(path)).header("content-type", content_type).body(body.to_owned());
        let response = request.send().await?;
        Ok((response.status().as_u16(), response.json().await?))
    };
    for (path, content_type, body, status, code) in [
        ("/sessions", "application/json", "{\"gap\":1}", 422, "invalid_request"),
        ("/sessions", "application/json", "{\"limits\":{\"segment_bytes_max\":65536}}", 422, "invalid_request"),
        ("/sessions", "application/json", "{\"context\":{\"max_segments\":1000}}", 422, "invalid_request"),
        ("/sessions", "text/plain", "{}", 415, "unsupported_media_type"),
        ("/sessions/none/chunks", NDJSON, "", 404, "not_found"),
        ("/sessions/none/end", NDJSON, "", 404, "not_found"),
        ("/sessions/a%00b/end", NDJSON, "", 422, "invalid_request"),
        ("/sessions/none", NDJSON, "", 405, "method_not_allowed"),
    ] {
        let (got, problem) = post(path, content_type, body).await?;
        assert_eq!((got, problem["code"].as_str()), (status, Some(code)), "{path} {body}: {problem}");
    }
    let id = create_session(&server, &json!({})).await?;
    let chunks = format!("/sessions/{id}/chunks");
    assert_eq!(post(&chunks, "text/html", "").await?.0, 415);
    let (status, problem) = post("/sessions", "application/json", "{}").await?;
    assert_eq!((status, problem["code"].as_str()), (503, Some("sessions_full")));
    // Deleting a session frees its permit.
    Client::new().delete(server.url(&format!("/sessions/{id}"))).send().await?;
    create_session(&server, &json!({})).await?;
    Ok(())
}

/// The state of a session includes each chunk whose events were received.
#[tokio::test]
async fn state_has_the_acknowledged_chunks() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let id = create_session(&server, &json!({})).await?;
    let mut follower = Follower::open(&server, &format!("/stream/session/{id}"), None).await?;
    let mut duplex = Duplex::open(&server, &format!("/sessions/{id}/chunks")).await?;
    for at in 0..20 {
        duplex.send(format!("{}\n", chunk(at, "a", "x")).as_bytes()).await?;
        duplex.raw.read_until(&format!(r#""event_id":{}}}"#, at + 1)).await?;
        let (_, state) = get(&server, &format!("/sessions/{id}")).await?;
        assert_eq!((&state["seq_last"], &state["feeding"]), (&json!(at + 1), &json!(true)));
        assert_eq!(follower.next_stored_event().await?.data["event_id"], at + 1);
    }
    duplex.send(b"nonsense\n").await?;
    duplex.raw.read_until("malformed_json").await?;
    duplex.end().await?;
    duplex.raw.read_until("\r\n0\r\n\r\n").await?;
    until("the session has no feeder", || async {
        Ok(get(&server, &format!("/sessions/{id}")).await?.1["feeding"] == false)
    })
    .await?;
    Ok(())
}

#[tokio::test]
async fn newer_feeder_replaces_the_earlier_one() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let id = create_session(&server, &json!({})).await?;
    let path = format!("/sessions/{id}/chunks");
    let mut old = Duplex::open(&server, &path).await?;
    old.send(format!("{}\n", chunk(0, "one", "a")).as_bytes()).await?;
    old.raw.read_until(r#""event_id":1}"#).await?;
    let mut new = Duplex::open(&server, &path).await?;
    new.send(format!("{}\n", chunk(1, "two", "a")).as_bytes()).await?;
    let new_text = new.raw.read_until(r#""event_id":2}"#).await?;
    assert!(new_text.contains("one two"), "{new_text}");
    let old_text = old.raw.read_until("\r\n0\r\n\r\n").await?;
    assert!(
        old_text.contains(r#"{"type":"error","error":{"message":"another request feeds this session now"#),
        "{old_text}"
    );
    assert!(old_text.contains(r#""code":"superseded""#), "{old_text}");
    new.end().await?;
    new.raw.read_until("\r\n0\r\n\r\n").await?;
    end_session(&server, &id).await?;
    check_agrees(
        &channel_events(&server, &id).await?,
        &one_shot_events(&server, &[chunk(0, "one", "a"), chunk(1, "two", "a")]).await?,
    )
}

/// A feeder whose client does not read is replaced at once too.
#[tokio::test]
async fn feeder_that_does_not_read_is_replaced() -> Result<()> {
    const CHUNKS: usize = 20_000;
    let server = Server::start_stub(&[]).await?;
    let id = create_session(&server, &json!({"summary": {"every_finals": 0, "at_end": false}})).await?;
    let path = format!("/sessions/{id}/chunks");
    let mut old = Duplex::send_head(Raw::connect_with_small_buffer(&server).await?, &path).await?;
    let chunks = conversation(CHUNKS, &mut Random(5));
    let body: String = chunks.iter().map(|chunk| format!("{chunk}\n")).collect();
    // The server stops reading from this client once much of its response is unsent.
    let sending = tokio::spawn(async move {
        let sent = old.send(body.as_bytes()).await;
        (old, sent)
    });
    let last_seq = async || -> Result<u64> {
        Ok(get(&server, &format!("/sessions/{id}")).await?.1["seq_last"].as_u64().unwrap_or(0))
    };
    let before = std::cell::Cell::new(0);
    until("the feeder is pushed back", || async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        let now = last_seq().await?;
        Ok(now > 0 && before.replace(now) == now)
    })
    .await?;
    let began = Instant::now();
    let from = last_seq().await? as usize;
    assert!(from < CHUNKS, "all chunks were ingested");
    let mut events = Vec::new();
    for chunks in chunks[from..].chunks(4000) {
        events.extend(feed(&server, &id, chunks).await?);
    }
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    assert!(events.iter().all(|event| event["type"] != "error"));
    assert_eq!(last_seq().await?, CHUNKS as u64);
    sending.abort();
    Ok(())
}

/// Three clients submit the same chunks and replace each other as feeder: no event is lost or repeated.
#[tokio::test]
async fn competing_feeders_lose_and_repeat_no_event() -> Result<()> {
    const CHUNKS: usize = 300;
    let server = Server::start_stub(&[]).await?;
    let chunks = conversation(CHUNKS, &mut Random(7));
    let id = create_session(&server, &json!({})).await?;
    let feed_repeatedly = async |mut random: Random| -> Result<()> {
        let mut acknowledged = 0;
        while acknowledged < CHUNKS {
            let to = (acknowledged + 1 + random.below(60)).min(CHUNKS);
            for line in feed(&server, &id, &chunks[acknowledged..to]).await? {
                let seq = line["seq"].as_u64().unwrap_or(0) as usize;
                ensure!(matches!(line["error"]["code"].as_str(), None | Some("superseded")), "{line}");
                if matches!(line["type"].as_str(), Some("partial_segment" | "repeated")) {
                    acknowledged = acknowledged.max(seq);
                }
            }
        }
        Ok(())
    };
    futures::try_join!(feed_repeatedly(Random(1)), feed_repeatedly(Random(2)), feed_repeatedly(Random(3)))?;
    end_session(&server, &id).await?;
    check_agrees(&channel_events(&server, &id).await?, &one_shot_events(&server, &chunks).await?)
}

/// Concurrent sessions, each fed in requests of random sizes: each has the events that it has alone.
#[tokio::test]
async fn concurrent_sessions_do_not_mix() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let run = async |seed: u64| -> Result<()> {
        let mut random = Random(seed);
        let chunks = conversation(60, &mut random);
        let id = create_session(&server, &json!({})).await?;
        let mut from = 0;
        while from < chunks.len() {
            let to = (from + 1 + random.below(20)).min(chunks.len());
            feed(&server, &id, &chunks[from..to]).await?;
            from = to;
        }
        end_session(&server, &id).await?;
        check_agrees(&channel_events(&server, &id).await?, &one_shot_events(&server, &chunks).await?)
    };
    futures::future::try_join_all((1..=12).map(run)).await?;
    Ok(())
}

async fn on_disk(path: &Path) -> Result<Server> {
    let path = format!("events.path={}", path.display());
    Server::start_stub(&["--set", "events.store=disk", "--set", "events.durable=true", "--set", &path]).await
}

/// The server is killed repeatedly while a session is fed: a client that submits unacknowledged chunks again finds each event once, and the
/// events that it received are those of the channel.
#[tokio::test]
async fn kill_9_loses_and_repeats_no_event() -> Result<()> {
    const CHUNKS: usize = 400;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let mut random = Random(11);
    let chunks = conversation(CHUNKS, &mut random);
    let mut server = on_disk(&file).await?;
    let id = create_session(&server, &json!({})).await?;
    let path = format!("/sessions/{id}/chunks");
    let (mut acknowledged, mut lines) = (0, Vec::new());
    for round in 0..6 {
        let mut duplex = Duplex::open(&server, &path).await?;
        // Some acknowledged chunks are submitted again too.
        let from = acknowledged - random.below(acknowledged.min(30) + 1);
        let to = if round < 5 { (acknowledged + 40 + random.below(60)).min(CHUNKS - 1) } else { CHUNKS };
        for piece in chunks[from..to].chunks(1 + random.below(9)) {
            let piece: String = piece.iter().map(|chunk| format!("{chunk}\n")).collect();
            duplex.send(piece.as_bytes()).await?;
        }
        // Some events are read before the kill, and others are in transit.
        let wanted = if round < 5 { from + 1 + random.below(to - from) } else { CHUNKS };
        let text = duplex.raw.read_until(&format!(r#""seq":{wanted},"#)).await?;
        if round < 5 {
            server.signal("KILL")?;
            server.wait().await?;
        } else {
            duplex.end().await?;
        }
        let rest = duplex.raw.read_to_end_of_response().await?;
        for line in complete_lines(&format!("{text}{rest}")) {
            if matches!(line["type"].as_str(), Some("partial_segment" | "repeated")) {
                acknowledged = acknowledged.max(line["seq"].as_u64().unwrap_or(0) as usize);
            }
            ensure!(line["type"] != "error", "{line}");
            lines.push(line);
        }
        if round < 5 {
            server = on_disk(&file).await?;
        }
    }
    assert_eq!(acknowledged, CHUNKS);
    end_session(&server, &id).await?;
    let channel = channel_events(&server, &id).await?;
    check_agrees(&channel, &one_shot_events(&server, &chunks).await?)?;
    for line in lines.iter().filter(|line| line["event_id"].is_u64()) {
        let at = line["event_id"].as_u64().context("a number")? as usize - 1;
        assert_eq!(&channel[at].data, line);
    }
    Ok(())
}

/// The server is killed under a load that exceeds the retention of the channel: the state of the session is that of an uninterrupted one.
#[tokio::test]
async fn kill_9_under_load_loses_and_repeats_no_event() -> Result<()> {
    const CHUNKS: usize = 6000;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let chunks = conversation(CHUNKS, &mut Random(3));
    let config = json!({"summary": {"every_finals": 0, "at_end": false}});
    let mut server = on_disk(&file).await?;
    let id = create_session(&server, &config).await?;
    let mut acknowledged = 0;
    for wanted in [1500, 3500, CHUNKS] {
        let mut duplex = Duplex::open(&server, &format!("/sessions/{id}/chunks")).await?;
        let body: String = chunks[acknowledged..].iter().map(|chunk| format!("{chunk}\n")).collect();
        let raw = &mut duplex.raw;
        // Both directions exceed the buffers of the connection, so that sending and reading are concurrent.
        let text = raw.send_while_reading(body.as_bytes(), &format!(r#""seq":{wanted},"#)).await?;
        for line in complete_lines(&text) {
            ensure!(line["type"] != "error", "{line}");
            if matches!(line["type"].as_str(), Some("partial_segment" | "repeated")) {
                acknowledged = acknowledged.max(line["seq"].as_u64().unwrap_or(0) as usize);
            }
        }
        if wanted < CHUNKS {
            server.signal("KILL")?;
            server.wait().await?;
            server = on_disk(&file).await?;
        }
    }
    assert_eq!(acknowledged, CHUNKS);
    let uninterrupted = create_session(&server, &config).await?;
    feed(&server, &uninterrupted, &chunks).await?;
    let state = async |id: &str| -> Result<Value> {
        let (_, state) = get(&server, &format!("/sessions/{id}")).await?;
        let metrics = &state["metrics"];
        Ok(json!([
            state["events"],
            state["current"],
            state["seq_last"],
            metrics["chunks_ingested"],
            metrics["segments_finalized"]
        ]))
    };
    assert_eq!(state(&id).await?, state(&uninterrupted).await?);
    let (_, context) = get(&server, &format!("/sessions/{id}/context")).await?;
    assert_eq!(context, get(&server, &format!("/sessions/{uninterrupted}/context")).await?.1);
    Ok(())
}

/// The complete lines of JSON in a chunked response that may have been cut.
fn complete_lines(response: &str) -> Vec<Value> {
    response.lines().filter_map(|line| serde_json::from_str(line).ok()).filter(Value::is_object).collect()
}

/// A session that has ended and an open one are found after a restart.
#[tokio::test]
async fn session_survives_a_restart() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let mut server = on_disk(&file).await?;
    let (ended, open) = (create_session(&server, &json!({})).await?, create_session(&server, &json!({})).await?);
    for id in [&ended, &open] {
        feed(&server, id, &[chunk(0, "one", "a"), chunk(1, "two", "b")]).await?;
    }
    end_session(&server, &ended).await?;
    server.signal("TERM")?;
    server.wait().await?;
    let server = on_disk(&file).await?;
    assert_eq!(get(&server, &format!("/sessions/{ended}")).await?.1["state"], "ended");
    let (_, state) = get(&server, &format!("/sessions/{open}")).await?;
    assert_eq!((&state["state"], &state["seq_last"], &state["events"]), (&json!("open"), &json!(2), &json!(3)));
    let events = feed(&server, &open, &[chunk(1, "two", "b"), chunk(2, "three", "b")]).await?;
    assert_eq!((&events[0]["type"], &events[1]["segment"]["text"]), (&json!("repeated"), &json!("two three")));
    assert_eq!(events[1]["event_id"], 4);
    Ok(())
}

#[tokio::test]
async fn idle_session_is_warned_and_expires() -> Result<()> {
    let server = Server::start_stub(&["--set", "sessions.ended_ttl_ms=6000"]).await?;
    let id = create_session(&server, &json!({"idle": {"expire_ms": 3000, "warn_ms": 1500}})).await?;
    feed(&server, &id, &[chunk(0, "bye", "a")]).await?;
    let channel = channel_events(&server, &id).await?;
    let names: Vec<&str> = channel.iter().map(|event| event.name.as_str()).collect();
    assert_eq!(names, ["partial_segment", "session_expiring", "final_segment", "summary_due", "session_expired"]);
    assert!(channel[1].data["in_ms"].as_u64().is_some_and(|ms| ms <= 1500), "{:?}", channel[1]);
    assert_eq!(get(&server, &format!("/sessions/{id}")).await?.1["state"], "expired");
    let request = Client::new().post(server.url(&format!("/sessions/{id}/chunks"))).header("content-type", NDJSON);
    let response = request.body("").send().await?;
    assert_eq!(
        (response.status().as_u16(), response.json::<Value>().await?["code"].clone()),
        (409, json!("session_expired"))
    );
    until("the session is removed", || async { Ok(get(&server, &format!("/sessions/{id}")).await?.0 == 404) }).await?;
    Ok(())
}

/// Outputs of models are part of the events, which keep their order; a failing model leaves its error in the event.
#[tokio::test]
async fn models_annotate_final_segments() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let config = json!({"annotate": ["sentiment", "entities"], "summary": {"every_finals": 0}});
    let id = create_session(&server, &config).await?;
    let texts = ["a good day in Paris", "bad !fail", "Anna said", "!slow good", "so"];
    let chunks: Vec<Value> = texts.iter().enumerate().map(|(at, text)| chunk(at, text, &at.to_string())).collect();
    let mut events = feed(&server, &id, &chunks).await?;
    events.extend(end_session(&server, &id).await?);
    let ids: Vec<u64> = events.iter().filter_map(|event| event["event_id"].as_u64()).collect();
    assert_eq!(ids, (1..=11).collect::<Vec<u64>>());
    let finals: Vec<&Value> = events.iter().filter(|event| event["type"] == "final_segment").collect();
    assert_eq!(finals.len(), 5);
    assert_eq!(finals[0]["sentiment"]["label"], "positive");
    assert_eq!(finals[0]["entities"][0]["word"], "Paris");
    assert_eq!(
        (&finals[1]["sentiment_error"]["code"], &finals[1]["sentiment"]),
        (&json!("engine_failed"), &Value::Null)
    );
    assert_eq!(finals[2]["entities"][0]["word"], "Anna");
    assert_eq!(finals[3]["sentiment"]["label"], "positive");
    let summary = events.iter().find(|event| event["type"] == "summary_due").context("a summary")?;
    assert_eq!(summary["summary_error"]["code"], "engine_failed");
    assert!(summary["prompt"].as_str().is_some_and(|prompt| prompt.contains("Paris")), "{summary}");
    let channel = channel_events(&server, &id).await?;
    assert_eq!(channel.iter().map(|event| &event.data).collect::<Vec<_>>(), events.iter().collect::<Vec<_>>());

    // The same in one request.
    let path = "/v1/transcript?annotate=sentiment&summary_at_end=true";
    let body = format!("{}\n", chunk(0, "good", "a"));
    let response = Client::new().post(server.url(path)).header("content-type", NDJSON).body(body).send().await?;
    let events = ndjson(&response.text().await?)?;
    assert_eq!(events[1]["sentiment"]["label"], "positive");
    assert_eq!(events[2]["summary"], "stub summary of 4 code points");
    Ok(())
}

/// An API key whose hash is in [`API_KEYS`].
const ANN: &str = "weir_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
const BOB: &str = "weir_AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI";
const API_KEYS: &str = "\
ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37
bob bob sha256:4d764170b1d6528180ca8f712c94a712b1c66239c05234a4264750a7c78c656c
";

#[tokio::test]
async fn session_belongs_to_the_user_that_created_it() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("api_keys"), API_KEYS)?;
    let keys = format!("auth.dir={}", dir.path().display());
    let server = Server::start_stub(&["--set", "auth.mode=required", "--set", &keys]).await?;
    let request_as = |method: Method, path: &str, key: &str| {
        let request = Client::new().request(method, server.url(path)).bearer_auth(key);
        request.header("content-type", "application/json").body("{}")
    };
    let response = Client::new().post(server.url("/sessions")).json(&json!({})).send().await?;
    assert_eq!(response.status(), 401);
    let response = request_as(Method::POST, "/sessions", ANN).send().await?;
    assert_eq!(response.status(), 201);
    let id = response.json::<Value>().await?["session_id"].as_str().context("an id")?.to_owned();
    let comparable = |response: Value| {
        let mut response = response;
        response["request_id"] = Value::Null;
        response.to_string().replace(&id, "none")
    };
    for (method, rest) in [
        (Method::GET, ""),
        (Method::GET, "/context"),
        (Method::POST, "/chunks"),
        (Method::POST, "/end"),
        (Method::DELETE, ""),
    ] {
        // A session of another user reads as missing.
        let foreign = request_as(method.clone(), &format!("/sessions/{id}{rest}"), BOB).send().await?;
        let missing = request_as(method.clone(), &format!("/sessions/none{rest}"), BOB).send().await?;
        assert_eq!((foreign.status(), missing.status()), (404.try_into()?, 404.try_into()?), "{method} {rest}");
        assert_eq!(comparable(foreign.json().await?), comparable(missing.json().await?));
    }
    let channel = format!("/stream/session/{id}");
    assert_eq!(request_as(Method::GET, &channel, BOB).send().await?.status(), 404);
    assert_eq!(request_as(Method::GET, &format!("/sessions/{id}"), ANN).send().await?.status(), 200);
    let ended = request_as(Method::POST, &format!("/sessions/{id}/end"), ANN).send().await?.text().await?;
    assert!(ended.contains("session_ended"), "{ended}");
    let events = request_as(Method::GET, &channel, ANN).send().await?.text().await?;
    assert!(events.contains("session_ended"), "{events}");
    assert_eq!(request_as(Method::DELETE, &format!("/sessions/{id}"), ANN).send().await?.status(), 204);
    Ok(())
}

/// Each vector of slower-whisper as a stored session.
#[tokio::test]
async fn stored_session_agrees_with_slower_whisper() -> Result<()> {
    let dir = std::env::var_os("WEIR_GOLDEN_DIR").map_or_else(|| root().join("tests/golden"), PathBuf::from);
    let text = std::fs::read_to_string(dir.join("streaming_session.jsonl"))?;
    let server = Server::start_stub(&[]).await?;
    let vectors = ndjson(&text)?;
    ensure!(!vectors.is_empty(), "there are no vectors");
    for vector in vectors {
        let config = json!({
            "max_gap_sec": vector["max_gap_sec"], "annotate": [], "summary": {"every_finals": 0, "at_end": false},
        });
        let id = create_session(&server, &config).await?;
        let inputs = vector["input"].as_array().context("inputs")?;
        let mut expected = Vec::new();
        for (at, output) in vector["output"].as_array().context("outputs")?.iter().enumerate() {
            match output {
                Value::Array(events) => expected.extend(events.iter().cloned()),
                error => expected.push(json!({"type": "error", "message": error["error"], "line": at + 1})),
            }
        }
        let got: Vec<Value> = feed(&server, &id, inputs)
            .await?
            .into_iter()
            .map(|event| match event["type"].as_str() {
                Some("error") => {
                    json!({"type": "error", "message": event["error"]["message"], "line": event["line"]})
                }
                _ => json!({"type": event["type"], "segment": event["segment"]}),
            })
            .collect();
        ensure!(got == expected, "{vector}\n{got:?}");
        Client::new().delete(server.url(&format!("/sessions/{id}"))).send().await?;
    }
    Ok(())
}

/// Many open sessions are fed in turns for 5 s: each has all its chunks in the end. `weir-bench sessions` is the run of a minute.
#[tokio::test]
async fn many_sessions_are_fed_at_once() -> Result<()> {
    const SESSIONS: usize = 400;
    let server = Server::start_stub(&[]).await?;
    let config = json!({"summary": {"every_finals": 0, "at_end": false}});
    let mut ids = Vec::new();
    for _ in 0..SESSIONS {
        ids.push(create_session(&server, &config).await?);
    }
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < Duration::from_secs(5) {
        for ids in ids.chunks(40) {
            let responses = ids.iter().map(async |id| feed(&server, id, &[chunk(rounds, "a word", "a")]).await);
            for events in futures::future::try_join_all(responses).await? {
                ensure!(events.len() == 1 && events[0]["event_id"] == rounds + 1, "{events:?}");
            }
        }
        rounds += 1;
    }
    for id in &ids {
        let (_, state) = get(&server, &format!("/sessions/{id}")).await?;
        assert_eq!(state["metrics"]["chunks_ingested"], rounds);
    }
    println!("{} chunks in {rounds} rounds of {SESSIONS} sessions", rounds * SESSIONS);
    Ok(())
}
