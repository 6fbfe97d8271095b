//! `/process-stream` and `/process-batch` over real sockets: order, content, offsets, framing, and readers that are slow or disconnect.

use anyhow::{Context, Result, ensure};
use expect_test::expect;
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Raw, Server, ndjson, statuses, until};

const TEXT: &str = "Weir is a wonderful piece of work, and the team in Geneva is proud of it. The train from Paris was late \
    again and the coffee was terrible. Maria Schmidt of Siemens said that she would come back next year.";

async fn stream(server: &Server, body: Value) -> Result<Vec<Value>> {
    let response = reqwest::Client::new().post(server.url("/process-stream")).json(&body).send().await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    ensure!(response.headers()["content-type"] == "application/x-ndjson");
    ndjson(&response.text().await?)
}

fn code_points(text: &str, start: u64, end: u64) -> String {
    text.chars().skip(start as usize).take((end - start) as usize).collect()
}

#[tokio::test]
async fn shipped_models_complete_every_step_in_order() -> Result<()> {
    let server = Server::start(&[]).await?;
    let events = stream(&server, json!({"text": TEXT, "include_entities": true, "chunk_size": 100})).await?;
    let chunks = TEXT.chars().count().div_ceil(100);
    let mut expected = vec!["started", "chunking", "chunked", "sentiment_processing"];
    expected.extend(std::iter::repeat_n("sentiment_progress", chunks));
    expected.extend(["sentiment_complete", "summarization_processing", "summarization_complete"]);
    expected.extend(["entities_processing", "entities_complete", "completed"]);
    assert_eq!(statuses(&events), expected);
    assert_eq!(events[0]["text_length"], TEXT.chars().count());
    assert_eq!(events[2]["chunks"], chunks);
    for (i, event) in events[4..4 + chunks].iter().enumerate() {
        assert_eq!(event["chunk_result"]["chunk"], i + 1);
        assert_eq!(event["progress"], (i + 1) as f64 / chunks as f64);
        let confidence = event["chunk_result"]["confidence"].as_f64().context("a number")?;
        assert!((1.0 / 3.0..=1.0).contains(&confidence), "{event}");
    }
    let event_with = |status: &str| events.iter().find(|event| event["status"] == status).context("no such event");
    let summary = event_with("summarization_complete")?["summary"].as_str().context("a string")?;
    let ratio = summary.chars().count() as f64 / TEXT.chars().count() as f64;
    assert_eq!(event_with("summarization_complete")?["compression_ratio"], ratio);
    let entities = event_with("entities_complete")?["entities"].as_array().context("a list")?;
    let texts_and_labels: Vec<(String, &str)> = entities
        .iter()
        .map(|e| {
            let (start, end) = (e["start"].as_u64().unwrap_or(0), e["end"].as_u64().unwrap_or(0));
            assert_eq!(e["text"], code_points(TEXT, start, end));
            (code_points(TEXT, start, end), e["label"].as_str().unwrap_or("?"))
        })
        .collect();
    for expected in [("Geneva", "LOC"), ("Paris", "LOC"), ("Maria Schmidt", "PER"), ("Siemens", "ORG")] {
        assert!(texts_and_labels.contains(&(expected.0.into(), expected.1)), "{expected:?} in {texts_and_labels:?}");
    }
    Ok(())
}

#[tokio::test]
async fn process_batch_returns_the_results_of_the_stream() -> Result<()> {
    let server = Server::start(&[]).await?;
    let client = reqwest::Client::new();
    let body = json!({"text": TEXT, "include_entities": true});
    let response = client.post(server.url("/process-batch")).json(&body).send().await?;
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-type"], "application/json");
    let batch: Value = response.json().await?;
    let events = stream(&server, body).await?;
    let event_with = |status: &str| events.iter().find(|event| event["status"] == status).context("no such event");
    assert_eq!(batch["summary"], event_with("summarization_complete")?["summary"]);
    let texts = |list: &Value| -> Vec<Value> {
        list.as_array().into_iter().flatten().map(|entity| entity["text"].clone()).collect()
    };
    assert_eq!(texts(&batch["entities"]), texts(&event_with("entities_complete")?["entities"]));
    for entity in batch["entities"].as_array().context("entities")? {
        let (start, end) = (entity["start"].as_u64().context("start")?, entity["end"].as_u64().context("end")?);
        assert_eq!(entity["text"], code_points(TEXT, start, end));
    }
    assert!(batch["sentiment"]["label"].is_string() && batch["sentiment"]["confidence"].is_f64(), "{batch}");
    assert!(batch["processing_time"].as_f64().context("a number")? > 0.0);

    let body = json!({"text": "far too short for it", "include_sentiment": false, "include_entities": false});
    let batch: Value = client.post(server.url("/process-batch")).json(&body).send().await?.json().await?;
    assert_eq!(batch.as_object().context("an object")?.keys().collect::<Vec<_>>(), ["processing_time"]);
    Ok(())
}

#[tokio::test]
async fn unknown_field_is_refused_with_the_nearest_name() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for path in ["/process-stream", "/process-batch"] {
        let body = json!({"text": "ten points and more", "include_entity": true});
        let response = reqwest::Client::new().post(server.url(path)).json(&body).send().await?;
        assert_eq!(response.status(), 422, "{path}");
        let problem: Value = response.json().await?;
        assert_eq!(
            (&problem["errors"][0]["field"], &problem["errors"][0]["reason"]),
            (&json!("include_entity"), &json!("unknown"))
        );
        let detail = problem["detail"].as_str().context("a detail")?;
        assert!(detail.contains("did you mean `include_entities`?"), "{detail}");
    }
    Ok(())
}

/// JSON bodies of the gateway and of the host end with a newline; scores are the shortest decimals of their f32 in every response.
#[tokio::test]
async fn json_bodies_end_with_a_newline_and_scores_have_one_form() -> Result<()> {
    let server = Server::start(&[]).await?;
    let client = reqwest::Client::new();
    for path in ["/", "/livez", "/readyz", "/v1/models", "/openapi.json", "/stream/health", "/nowhere", "/v1/classify"]
    {
        let response = client.get(server.url(path)).send().await?;
        let length = response.content_length();
        let body = response.text().await?;
        assert!(body.ends_with("}\n") && !body.ends_with("\n\n"), "{path}: {body:?}");
        assert_eq!(length, Some(body.len() as u64), "{path}");
    }
    let text = "What a wonderful evening it was!";
    let mut scores = Vec::new();
    for (path, body) in [
        ("/v1/classify", json!({"inputs": text})),
        ("/models/sentiment", json!({"inputs": text})),
        ("/predict", json!({"inputs": text})),
        ("/process-batch", json!({"text": text, "include_summary": false})),
        ("/process-stream", json!({"text": text, "include_summary": false})),
    ] {
        let body = client.post(server.url(path)).json(&body).send().await?.text().await?;
        assert!(body.ends_with('\n'), "{path}: {body:?}");
        let name = if path.starts_with("/process") { "\"confidence\":" } else { "\"score\":" };
        let score = body.split(name).nth(1).context("a score")?;
        let score = score.split([',', '}']).next().context("a number")?.to_owned();
        assert_eq!(score.parse::<f32>()?.to_string(), score, "{path}");
        scores.push(score);
    }
    assert!(scores.iter().all(|score| *score == scores[0]), "{scores:?}");
    Ok(())
}

#[tokio::test]
async fn offsets_and_chunks_count_code_points() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    // The family emoji has seven code points, the flag two, and the `e` with a combining accent two.
    let text = "Zoe\u{301} and 👨‍👩‍👧‍👦 went to Köln 🇩🇪, and Ελένη stayed. ".repeat(3);
    let length = text.chars().count();
    let events =
        stream(&server, json!({"text": text, "include_entities": true, "include_summary": false, "chunk_size": 50}))
            .await?;
    assert_eq!(events[0]["text_length"], length);
    assert_eq!(events[2]["chunks"], length.div_ceil(50));
    let last = events.iter().find(|event| event["status"] == "entities_complete").context("entities")?;
    let entities = last["entities"].as_array().context("a list")?;
    assert!(entities.len() >= 6, "{last}");
    for entity in entities {
        let (start, end) = (entity["start"].as_u64().context("start")?, entity["end"].as_u64().context("end")?);
        assert_eq!(entity["text"], code_points(&text, start, end));
    }
    assert_eq!(last["total_entities"], entities.len());
    Ok(())
}

#[tokio::test]
async fn process_stream_over_sse_has_the_same_events() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let text = "a good line\nand a bad one, at some length";
    let response = reqwest::Client::new()
        .post(server.url("/process-stream"))
        .header("accept", "text/event-stream")
        .json(&json!({"text": text, "include_summary": false}))
        .send()
        .await?;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    assert_eq!(response.headers()["cache-control"], "no-store");
    assert_eq!(response.headers()["x-accel-buffering"], "no");
    let body = response.text().await?;
    let events: Vec<Value> = body
        .split("\n\n")
        .filter(|block| !block.is_empty())
        .map(|block| {
            let data = block.lines().find_map(|line| line.strip_prefix("data: ")).context("data")?;
            let event: Value = serde_json::from_str(data)?;
            let name = block.lines().find_map(|line| line.strip_prefix("event: ")).context("event")?;
            assert_eq!(event["status"], name);
            Ok(event)
        })
        .collect::<Result<_>>()?;
    let plain = stream(&server, json!({"text": text, "include_summary": false})).await?;
    assert_eq!(statuses(&events), statuses(&plain));
    Ok(())
}

#[tokio::test]
async fn first_event_is_sent_before_the_model_returns() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut raw = Raw::post(&server, "/process-stream", &body).await?;
    let text = raw.read_until("sentiment_processing").await?;
    assert!(text.contains(r#""status":"started""#), "{text}");
    assert!(!text.contains("sentiment_progress"), "{text}");
    Ok(())
}

#[tokio::test]
async fn failing_step_is_an_event_and_the_stream_continues() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let text = format!("{TEXT} !fail");
    let events = stream(&server, json!({"text": text, "include_entities": true, "chunk_size": 500})).await?;
    expect![[r#"
        [
            "started",
            "chunking",
            "chunked",
            "sentiment_processing",
            "sentiment_error",
            "summarization_processing",
            "summarization_error",
            "entities_processing",
            "entities_error",
            "completed",
        ]
    "#]]
    .assert_debug_eq(&statuses(&events));
    Ok(())
}

/// Checks that the items of a disconnected client are not computed: its request waits behind another that occupies the only replica.
async fn check_disconnect(path: &str) -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let warm_ups = server.metric("weir_infer_items_total").await?;
    // Five chunks of 300 ms each.
    let text = "this one is !slow to come. ".repeat(10);
    let blocking = json!({"text": text, "include_summary": false, "chunk_size": 54}).to_string();
    let mut blocking = Raw::post(&server, "/process-stream", &blocking).await?;
    until("the items are computed", || async { Ok(server.metric("weir_infer_items_total").await? >= warm_ups + 5.0) })
        .await?;
    let waiting = json!({"text": "good morning to you", "include_summary": false}).to_string();
    let waiting = Raw::post(&server, path, &waiting).await?;
    until("the item is queued", || async { Ok(server.metric("weir_infer_queue_items").await? == 1.0) }).await?;
    drop(waiting);
    until("the request is closed", || async { Ok(server.metric("weir_http_requests_open").await? == 1.0) }).await?;
    blocking.read_until("\"completed\"").await?;
    until("the item is abandoned", || async { Ok(server.metric("weir_infer_items_abandoned_total").await? == 1.0) })
        .await?;
    assert_eq!(server.metric("weir_infer_items_total").await?, warm_ups + 5.0);
    Ok(())
}

#[tokio::test]
async fn stream_of_a_client_that_left_is_not_computed() -> Result<()> {
    check_disconnect("/process-stream").await
}

#[tokio::test]
async fn batch_of_a_client_that_left_is_not_computed() -> Result<()> {
    check_disconnect("/process-batch").await
}

#[tokio::test]
async fn slow_reader_delays_no_other() -> Result<()> {
    const READERS: usize = 8;
    const ANSWERS: usize = 64;
    let server = Server::start_stub(&[]).await?;
    // Clients that do not read, each with responses of about 8 MB in all: more than the buffers of the kernel.
    let text = "Geneva Paris Rome Bern Oslo Wien ".repeat(150);
    let body = json!({"text": text, "include_entities": true, "include_summary": false, "chunk_size": 50}).to_string();
    let mut stalled = Vec::new();
    for _ in 0..READERS {
        let mut raw = Raw::connect_with_small_buffer(&server).await?;
        for _ in 0..ANSWERS {
            raw.send_post("/process-stream", &body).await?;
        }
        stalled.push(raw);
    }
    // A client that reads is served repeatedly, until no response of another client has begun for 20 rounds.
    let (mut started, mut own, mut rounds_without_progress) = (0.0, 0.0, 0);
    let client = reqwest::Client::new();
    let began = std::time::Instant::now();
    while rounds_without_progress < 20 {
        ensure!(began.elapsed() < PATIENCE, "the stalled clients still make progress");
        let body = json!({"text": "a client that reads is served", "include_summary": false});
        let response = client.post(server.url("/process-stream")).json(&body).send().await?.text().await?;
        ensure!(response.contains("\"completed\""), "{response}");
        own += 1.0;
        let before = started;
        started = server.post_count().await? - own;
        rounds_without_progress = if started == before { rounds_without_progress + 1 } else { 0 };
    }
    assert!(started < (READERS * ANSWERS) as f64, "{started} responses began: no client was stalled");
    // The stalled clients get all their responses when they read.
    for mut raw in stalled {
        let all = raw.read_until_nth("\"completed\"", ANSWERS).await?;
        assert!(all > ANSWERS * 50_000, "{all} bytes are too few to stall a client");
    }
    Ok(())
}
