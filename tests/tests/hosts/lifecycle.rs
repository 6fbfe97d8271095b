//! The life of a server: start, readiness, drain, kill, and replacement of instances.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::{Raw, Server, statuses, until};

#[tokio::test]
async fn server_is_ready_once_every_model_has_answered() -> Result<()> {
    let server = Server::launch(&[])?;
    // The server is alive at once; whether it is ready depends on the speed of the machine.
    assert_eq!(reqwest::get(server.url("/livez")).await?.status(), 200);
    server.ready().await?;
    let models: Value = reqwest::get(server.url("/v1/models")).await?.json().await?;
    let text = models.to_string();
    for name in ["sentiment", "entities", "embeddings"] {
        assert!(text.contains(name), "{text}");
    }
    assert!(server.metric("weir_infer_replicas_ready").await? >= 3.0);
    Ok(())
}

#[tokio::test]
async fn model_that_cannot_load_is_named_and_the_others_serve() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let good = weir_tests::models().join("sentiment");
    let broken = dir.path().join("broken");
    std::fs::create_dir(&broken)?;
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(good.join(file), broken.join(file))?;
    }
    std::fs::write(broken.join("model.onnx"), b"this is no graph")?;
    let model = format!("broken={}", broken.display());
    let server = Server::launch(&["--model", &model])?;
    until("the model is named in the log", || async { Ok(server.log().contains("broken")) }).await?;
    let response = reqwest::get(server.url("/readyz")).await?;
    assert_eq!(response.status(), 503);
    assert!(response.text().await?.contains("broken"));
    let body = json!({"text": "the other models are served", "include_summary": false});
    let client = reqwest::Client::new();
    let response = client.post(server.url("/process-stream")).json(&body).send().await?.text().await?;
    assert!(response.contains("sentiment_complete"), "{response}");
    Ok(())
}

#[tokio::test]
async fn sigterm_finishes_streams_and_refuses_new_requests() -> Result<()> {
    let mut server = Server::start_stub(&[]).await?;
    // Twenty chunks of 300 ms each: the stream is open during the requests below.
    let text = "this one is !slow to come. ".repeat(40);
    let body = json!({"text": text, "include_summary": false, "chunk_size": 50}).to_string();
    let mut streaming = Raw::post(&server, "/process-stream", &body).await?;
    streaming.read_until("sentiment_processing").await?;
    server.signal("TERM")?;
    until("draining", || async {
        Ok(reqwest::get(server.url("/readyz")).await.is_ok_and(|response| response.status() == 503))
    })
    .await?;
    assert_eq!(reqwest::get(server.url("/livez")).await?.status(), 200);
    let response = reqwest::Client::new().post(server.url("/process-batch")).body(body).send().await?;
    assert_eq!(response.status(), 503);
    assert_eq!(response.json::<Value>().await?["code"], "draining");

    let all = streaming.read_to_end().await?;
    assert!(all.contains("\"completed\""), "{all}");
    let status = server.wait().await?;
    ensure!(status.success(), "{status}: {}", server.log());
    Ok(())
}

#[tokio::test]
async fn stream_that_does_not_finish_is_cut_after_the_drain_timeout() -> Result<()> {
    let mut server = Server::start_stub(&["--set", "http.drain_timeout_ms=300"]).await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut streaming = Raw::post(&server, "/process-stream", &body).await?;
    streaming.read_until("sentiment_processing").await?;
    let began = Instant::now();
    server.signal("INT")?;
    let status = server.wait().await?;
    assert_eq!(status.code(), Some(1), "{}", server.log());
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    Ok(())
}

#[tokio::test]
async fn killed_server_leaves_a_stream_without_its_end() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut streaming = Raw::post(&server, "/process-stream", &body).await?;
    streaming.read_until("sentiment_processing").await?;
    server.signal("KILL")?;
    // Without the last chunk of the encoding, a client detects that the response is incomplete.
    if let Ok(all) = streaming.read_to_end().await {
        assert!(!all.ends_with("0\r\n\r\n"), "{all}");
    }
    // Another server starts: there is no state to repair.
    Server::start_stub(&[]).await.map(drop)
}

#[tokio::test]
async fn lost_infer_instance_is_replaced_and_its_items_get_outcomes() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    // The stand-in ends its stream of outcomes early, which breaks its contract: the instance is replaced.
    let body = json!({"text": "this one makes it !end early", "include_summary": false});
    let client = reqwest::Client::new();
    let response = client.post(server.url("/process-stream")).json(&body).send().await?.text().await?;
    let events = weir_tests::ndjson(&response)?;
    assert!(statuses(&events).contains(&"sentiment_error"), "{response}");
    assert_eq!(statuses(&events).last(), Some(&"completed"), "{response}");
    until("the instance is replaced", || async {
        Ok(server.metric("weir_infer_replica_restarts_total").await? >= 1.0)
    })
    .await?;
    server.ready().await?;
    let body = json!({"text": "a good one after that", "include_summary": false});
    let response = client.post(server.url("/process-stream")).json(&body).send().await?.text().await?;
    assert!(response.contains("sentiment_complete"), "{response}");
    Ok(())
}

#[tokio::test]
async fn steps_whose_models_are_not_served_make_the_server_not_ready() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let empty = dir.path().display().to_string();
    let client = reqwest::Client::new();
    // No model; one step without its model; an unknown model; a model of another task than its step.
    for (arguments, keys) in [
        (vec!["--models-dir", &empty], vec!["steps.sentiment", "steps.summary", "steps.entities"]),
        (vec!["--set", "models.names=[\"sentiment\", \"embeddings\"]"], vec!["steps.entities"]),
        (vec!["--set", "steps.summary=nope"], vec!["steps.summary"]),
        (vec!["--set", "steps.sentiment=entities"], vec!["steps.sentiment"]),
    ] {
        let server = Server::launch(&arguments)?;
        let not_ready = |response: &Value| response["detail"].as_str().is_some_and(|detail| detail.contains("steps."));
        until("the missing models are reported", || async {
            let response = client.get(server.url("/readyz")).send().await?;
            Ok(response.status() == 503 && not_ready(&response.json().await?))
        })
        .await?;
        let response: Value = client.get(server.url("/readyz")).send().await?.json().await?;
        let detail = response["detail"].as_str().unwrap_or_default();
        for key in ["steps.sentiment", "steps.summary", "steps.entities"] {
            assert_eq!(detail.contains(key), keys.contains(&key), "{key}: {detail}");
        }
        assert_eq!(response["retryable"], false, "{response}");
        let health: Value = client.get(server.url("/stream/health")).send().await?.json().await?;
        assert!(health.to_string().contains(keys[0]), "{health}");
        server.wait_for_log(keys[0]).await?;
    }
    Ok(())
}

#[tokio::test]
async fn failed_steps_are_listed_in_the_last_event() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let empty = dir.path().display().to_string();
    let off = ["--set", "steps.sentiment=", "--set", "steps.entities=", "--set", "steps.summary="];
    let server = Server::start(&[["--models-dir", &empty].as_slice(), &off].concat()).await?;
    let body = json!({"text": "no model reads this text", "include_summary": false, "include_entities": true});
    let client = reqwest::Client::new();
    let response = client.post(server.url("/process-stream")).json(&body).send().await?.text().await?;
    assert!(response.contains("sentiment_error") && response.contains("unknown_model"), "{response}");
    let events = weir_tests::ndjson(&response)?;
    let last = events.last().context("no event")?;
    assert_eq!(last["status"], "completed");
    assert_eq!(last["message"], "Processing ended; failed: sentiment, entities");
    assert_eq!(last["failed_steps"], json!(["sentiment", "entities"]));
    let response = client.post(server.url("/process-batch")).json(&body).send().await?;
    assert_eq!(response.status(), 500);
    Ok(())
}

/// A classifier whose `config.json` is an empty list is refused at the start, not served as an embedding model.
#[tokio::test]
async fn model_configuration_that_is_no_object_stops_the_start() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for file in std::fs::read_dir(weir_tests::models().join("sentiment"))? {
        let file = file?;
        std::fs::copy(file.path(), dir.path().join(file.file_name()))?;
    }
    std::fs::write(dir.path().join("config.json"), "[]")?;
    let model = format!("mine={}", dir.path().display());
    let output = tokio::process::Command::new(weir_tests::weir()?)
        .args(["serve", "--listen", "127.0.0.1:0", "--model", &model])
        .output()
        .await?;
    let error = String::from_utf8(output.stderr)?;
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(error.contains("config.json: a list, where a JSON object is required"), "{error}");
    Ok(())
}
