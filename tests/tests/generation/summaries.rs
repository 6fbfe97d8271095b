//! Abstractive summaries: a language model rewrites an extractive summary, and its text is used only if it adds no number and no name.

use anyhow::{Context, Result};
use serde_json::{Value, json};
use weir_tests::Server;
use weir_tests::client::{NDJSON, create_session, end_session, feed, post, post_lines};
use weir_tests::pipelines::{Folder, run};

/// The stand-in summarizes a text as its length, and rewrites the summary without an addition, with a name, or with a number.
const CASES: [(usize, &str, &str, Option<&str>); 3] = [
    (120, "A stub summary.", "abstractive", None),
    (121, "stub summary of 121 code points", "extractive", Some("the name `Paris`")),
    (122, "stub summary of 122 code points", "extractive", Some("the number `2019`")),
];

fn check(event: &Value, (_, summary, mode, fallback): (usize, &str, &str, Option<&str>)) {
    assert_eq!((&event["summary"], &event["summary_mode"]), (&json!(summary), &json!(mode)), "{event}");
    match fallback {
        Some(what) => assert!(event["summary_fallback"].as_str().is_some_and(|text| text.contains(what)), "{event}"),
        None => assert!(event.get("summary_fallback").is_none(), "{event}"),
    }
}

#[tokio::test]
async fn process_stream_and_batch_rewrite_their_summary_or_fall_back_with_the_reason() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    for case in CASES {
        let body = json!({ "text": "a".repeat(case.0), "summary": { "mode": "abstractive" } });
        let events = post_lines(&server, "/process-stream", "application/json", body.to_string()).await?;
        let event = events.iter().find(|event| event["status"] == "summarization_complete").context("a summary")?;
        check(event, case);
        let (status, answer) = post(&server, "/process-batch", &body).await?;
        assert_eq!(status, 200);
        check(&answer, case);
    }
    let body = json!({ "text": "a".repeat(120), "summary": { "mode": "extractive" } });
    check(
        &post(&server, "/process-batch", &body).await?.1,
        (120, "stub summary of 120 code points", "extractive", None),
    );
    let plain = post(&server, "/process-batch", &json!({ "text": "a".repeat(120) })).await?.1;
    assert!(plain.get("summary_mode").is_none() && plain["summary"] == "stub summary of 120 code points", "{plain}");
    let body = json!({ "text": "a".repeat(120), "summary": { "mode": "poetic" } });
    let (status, problem) = post(&server, "/process-batch", &body).await?;
    assert_eq!(status, 422);
    assert!(problem.to_string().contains("summary.mode"), "{problem}");
    Ok(())
}

#[tokio::test]
async fn sessions_rewrite_their_summaries_or_fall_back_with_the_reason() -> Result<()> {
    let server = Server::start_generate_stub(&[]).await?;
    for case in CASES {
        let chunk = json!({ "start": 0.0, "end": 1.0, "text": "a".repeat(case.0) });
        let path = "/v1/transcript?summary_at_end=true&summary_mode=abstractive";
        let events = post_lines(&server, path, NDJSON, format!("{chunk}\n")).await?;
        check(events.iter().find(|event| event["type"] == "summary_due").context("a summary")?, case);
        let config = json!({ "summary": { "every_finals": 0, "mode": "abstractive" } });
        let id = create_session(&server, &config).await?;
        let state: Value = reqwest::get(server.url(&format!("/sessions/{id}"))).await?.json().await?;
        feed(&server, &id, &[chunk]).await?;
        let events = end_session(&server, &id).await?;
        let event = events.iter().find(|event| event["type"] == "summary_due");
        check(event.with_context(|| format!("a summary in {events:?} of {state}"))?, case);
    }
    Ok(())
}

#[tokio::test]
async fn summary_step_has_a_mode_and_without_a_model_the_sentences_are_the_summary() -> Result<()> {
    let steps = json!([{ "id": "short", "kind": "summary", "mode": "abstractive" }]);
    let folder = Folder::new(&[("short", steps)])?;
    let server = Server::start_generate_stub(&folder.arguments()).await?;
    let input = json!({ "text": "a".repeat(120) });
    check(&run(&server, "short", &input).await?["output"], CASES[0]);
    let server = Server::start_stub(&folder.arguments()).await?;
    let output = run(&server, "short", &input).await?["output"].clone();
    let fallback = Some("no model that generates text is served");
    check(&output, (120, "stub summary of 120 code points", "extractive", fallback));
    Ok(())
}
