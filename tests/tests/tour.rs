//! A tour of the product in short stories, in the order of README.md: first its recipes, then its features. The folder of each feature tests
//! it in depth.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use weir_tests::auth::{ANN, BOB, issue_ticket, progress_body, request_as, start_with_auth};
use weir_tests::client::{
    NDJSON, classify, create_session, end_session, feed, follow, pipeline, post, post_lines, publish,
};
use weir_tests::follow::Follower;
use weir_tests::pipelines::{Folder, event_names, events, start_execution};
use weir_tests::{Duplex, Server, auth, models, ndjson, statuses, weir};

#[tokio::test]
async fn text_is_classified_by_a_model_that_ships() -> Result<()> {
    let server = Server::start(&[]).await?;
    let scores = classify(&server, &["what a wonderful day", "what an awful day"]).await?;
    assert_eq!((&scores[0][0]["label"], &scores[1][0]["label"]), (&json!("positive"), &json!("negative")));
    Ok(())
}

#[tokio::test]
async fn line_is_classified_while_the_request_is_open() -> Result<()> {
    let server = Server::start(&[]).await?;
    let mut stream = Duplex::open(&server, "/v1/classify?top_k=1").await?;
    stream.send(b"{\"text\":\"what a wonderful day\"}\n").await?;
    stream.raw.read_until("positive").await?;
    stream.send(b"{\"text\":\"what an awful day\"}\n").await?;
    stream.raw.read_until("negative").await?;
    stream.end().await?;
    stream.raw.read_until("\"done\":true").await?;
    Ok(())
}

#[tokio::test]
async fn document_is_processed_step_by_step() -> Result<()> {
    let server = Server::start(&[]).await?;
    let text = "Maria Schmidt liked Geneva. The hotel was wonderful and the lake was beautiful.";
    let body = json!({"text": text, "include_entities": true}).to_string();
    let events = post_lines(&server, "/process-stream", "application/json", body).await?;
    let names = statuses(&events);
    assert_eq!((names.first(), names.last()), (Some(&"started"), Some(&"completed")));
    let entities = events.iter().find(|event| event["status"] == "entities_complete").context("entities")?;
    ensure!(entities.to_string().contains("Geneva"), "{entities}");
    Ok(())
}

#[tokio::test]
async fn request_of_a_hugging_face_client_is_answered_in_its_shape() -> Result<()> {
    let server = Server::start(&[]).await?;
    let (status, response) = post(&server, "/models/sentiment", &json!({"inputs": "what a wonderful day"})).await?;
    assert_eq!((status, &response[0][0]["label"]), (200, &json!("positive")), "{response}");
    Ok(())
}

#[test]
fn file_is_classified_on_the_command_line() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("reviews.txt");
    std::fs::write(&file, "what a wonderful day\nwhat an awful day\n")?;
    let mut run = Command::new(weir()?);
    let output = run.args(["run", "--task", "sentiment", "--models-dir"]).arg(models()).arg(&file).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let output = String::from_utf8(output.stdout)?;
    let output: Vec<&str> = output.lines().collect();
    ensure!(output.len() == 2 && output[0].contains("positive") && output[1].contains("negative"), "{output:?}");
    Ok(())
}

#[tokio::test]
async fn subscriber_resumes_after_the_last_event_that_it_received() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut subscriber = follow(&server, "workflow/42").await?;
    let first_id = publish(&server, "42", 1).await?;
    assert_eq!(subscriber.next_stored_event().await?.id, first_id);
    drop(subscriber);
    publish(&server, "42", 2).await?;
    let mut subscriber = Follower::open(&server, "/stream/workflow/42", Some(&first_id)).await?;
    assert_eq!(subscriber.next_stored_event().await?.data["message"], "n2");
    Ok(())
}

#[tokio::test]
async fn transcript_chunks_become_annotated_segments() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let chunk =
        |at: u32, speaker: &str, text: &str| json!({"start": at, "end": at + 1, "speaker_id": speaker, "text": text});
    let session = create_session(&server, &json!({"annotate": ["keywords", "intent"]})).await?;
    let lines =
        feed(&server, &session, &[chunk(0, "ann", "can you send me the"), chunk(1, "ann", "price please?")]).await?;
    assert_eq!(lines.last().context("an event")?["segment"]["text"], "can you send me the price please?");
    let last_lines = end_session(&server, &session).await?;
    let segment = last_lines.iter().find(|event| event["type"] == "final_segment").context("a segment")?;
    assert_eq!(segment["segment"]["speaker_id"], "ann");
    Ok(())
}

#[tokio::test]
async fn stored_session_continues_after_a_crash() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    let disk = ["--set", "events.store=disk", "--set", "events.durable=true", "--set", &path];
    let mut server = Server::start_stub(&disk).await?;
    let session = create_session(&server, &json!({})).await?;
    let chunk = |at: u32, text: &str| json!({"start": at, "end": at + 1, "speaker_id": "ann", "text": text});
    feed(&server, &session, &[chunk(0, "we agreed")]).await?;
    server.signal("KILL")?;
    server.wait().await?;
    let server = Server::start_stub(&disk).await?;
    let lines = feed(&server, &session, &[chunk(1, "on the price")]).await?;
    assert_eq!(lines.last().context("an event")?["segment"]["text"], "we agreed on the price");
    Ok(())
}

#[tokio::test]
async fn pipeline_of_steps_runs_and_its_events_are_followed() -> Result<()> {
    let steps = json!([
        {"id": "mood", "kind": "sentiment"},
        {"id": "answer", "kind": "map", "input": "steps.mood", "expression": "overall_sentiment"},
    ]);
    let folder = Folder::new(&[("review", steps)])?;
    let server = Server::start(&folder.arguments()).await?;
    let input = json!({"text": "what a wonderful day"});
    assert_eq!(pipeline(&server, "review", &input).await?, json!("POSITIVE"));
    let id = start_execution(&server, "review", &input).await?;
    let names = event_names(&events(&server, &id).await?);
    assert_eq!(
        (names.first().map(String::as_str), names.last().map(String::as_str)),
        (Some("pipeline_start"), Some("pipeline_complete"))
    );
    ensure!(names.iter().any(|name| name == "step_complete mood"), "{names:?}");
    Ok(())
}

#[test]
fn adapter_writes_a_result_for_each_record_of_a_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (input, results) = (dir.path().join("reviews.ndjson"), dir.path().join("results.ndjson"));
    std::fs::write(
        &input,
        "{\"text\":\"what a wonderful day\",\"id\":7}\n{\"text\":\"what an awful day\",\"id\":8}\n",
    )?;
    let mut stream = Command::new(weir()?);
    stream.args(["stream", "file"]).arg(&input).arg("--output-file").arg(&results);
    let output = stream.arg("--quiet").arg("--models-dir").arg(models()).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let results = ndjson(&std::fs::read_to_string(&results)?)?;
    let labels: Vec<(&Value, &Value)> = results.iter().map(|result| (&result["id"], &result["label"])).collect();
    assert_eq!(labels, [(&json!(7), &json!("positive")), (&json!(8), &json!("negative"))]);
    Ok(())
}

#[tokio::test]
async fn user_reads_only_its_own_channels() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &[]).await?;
    let published =
        auth::publish(&server, "/stream/publish/workflow/42", auth::WORKER, &progress_body(Some("ann"))).await?;
    assert_eq!(published, 200);
    let open =
        async |key: &str| auth::status(request_as(&server, reqwest::Method::GET, "/stream/workflow/42", key)).await;
    assert_eq!((open(ANN).await?, open(BOB).await?), (200, 404));
    // An EventSource cannot send an `Authorization` header: its page uses a ticket, which is accepted once.
    let ticket = issue_ticket(&server, ANN, &json!({"path": "/stream/workflow/42"})).await?;
    let url = server.url(&format!("/stream/workflow/42?ticket={ticket}"));
    assert_eq!((reqwest::get(&url).await?.status().as_u16(), reqwest::get(&url).await?.status().as_u16()), (200, 401));
    Ok(())
}

#[tokio::test]
async fn readiness_and_metrics_are_served_to_an_operator() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    post_lines(&server, "/v1/classify", NDJSON, "{\"text\":\"good\"}\n").await?;
    let ready: Value = reqwest::get(server.url("/readyz")).await?.error_for_status()?.json().await?;
    ensure!(ready["models"].as_array().is_some_and(|models| !models.is_empty()), "{ready}");
    ensure!(server.post_count().await? >= 1.0);
    let (status, problem) = post(&server, "/v1/classify", &json!({"input": "good"})).await?;
    assert_eq!(status, 422);
    ensure!(problem["detail"].as_str().is_some_and(|detail| detail.contains("did you mean `inputs`?")), "{problem}");
    Ok(())
}
