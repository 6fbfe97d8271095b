//! Requests whose items have more tokens than the queue has room for: the items of a request wait for each other, on every route, and
//! leave room for the requests of others.

use std::time::Duration;

use anyhow::{Result, ensure};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::Server;

/// Room for four of the texts.
const SMALL_QUEUE: [&str; 2] = ["--set", "infer.queue_tokens_max=1000"];
const TEXTS: usize = 64;

/// Texts of about 200 tokens each, as estimated from their bytes.
fn texts() -> Vec<String> {
    (0..TEXTS).map(|n| format!("{n} {}", "The room was fine and the people were kind to us. ".repeat(16))).collect()
}

async fn post(client: &Client, server: &Server, path: &str, accept: &str, body: &Value) -> Result<(u16, String)> {
    let request = client.post(server.url(path)).header("accept", accept).timeout(weir_tests::PATIENCE).json(body);
    let response = request.send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

#[tokio::test(flavor = "multi_thread")]
async fn items_of_a_large_request_wait_for_each_other_on_every_route() -> Result<()> {
    let server = Server::start(&SMALL_QUEUE).await?;
    let (client, texts) = (Client::new(), texts());
    // Most code points of a document are 5,000.
    let document = texts[..6].join(" ");
    let truncated = json!({"truncation": true});
    for (path, accept, body) in [
        ("/v1/classify", "application/json", json!({"inputs": texts})),
        ("/v1/classify", "application/x-ndjson", json!({"inputs": texts})),
        ("/v1/classify", "text/event-stream", json!({"inputs": texts})),
        ("/v1/tokens", "application/json", json!({"inputs": texts})),
        ("/v1/embed", "application/json", json!({"inputs": texts})),
        ("/models/sentiment", "application/json", json!({"inputs": texts, "parameters": truncated})),
        ("/models/embeddings", "application/json", json!({"inputs": texts, "parameters": truncated})),
        ("/v1/embeddings", "application/json", json!({"input": texts})),
        ("/v1/moderations", "application/json", json!({"input": texts, "model": "sentiment"})),
        ("/embed", "application/json", json!({"inputs": texts, "truncate": true})),
        ("/predict", "application/json", json!({"inputs": texts.iter().map(|text| [text]).collect::<Vec<_>>()})),
        ("/process-stream", "text/event-stream", json!({"text": document})),
    ] {
        let (status, response) = post(&client, &server, path, accept, &body).await?;
        ensure!(status == 200 && !response.contains("overloaded"), "{path} {accept}: {status} {response:.300}");
    }
    Ok(())
}

/// The timeout of an item includes its wait for earlier items of its request.
#[tokio::test(flavor = "multi_thread")]
async fn item_of_a_large_request_has_its_deadline() -> Result<()> {
    let server = Server::start_stub(&[SMALL_QUEUE.as_slice(), &["--set", "infer.queue_items_max=4"]].concat()).await?;
    let inputs = vec!["!slow"; TEXTS];
    let body = json!({"inputs": inputs, "parameters": {"timeout_ms": 1500}});
    let began = std::time::Instant::now();
    let (status, response) = post(&Client::new(), &server, "/v1/classify", "application/json", &body).await?;
    let problem: Value = serde_json::from_str(&response)?;
    ensure!((status, &problem["code"]) == (503, &json!("deadline_exceeded")), "{status} {response}");
    ensure!(began.elapsed() < Duration::from_secs(20), "the answer took {:?}", began.elapsed());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn large_request_leaves_room_for_small_ones() -> Result<()> {
    let server = Server::start(&SMALL_QUEUE).await?;
    let client = Client::new();
    let large = async {
        for _ in 0..3 {
            let body = json!({"inputs": texts()});
            let (status, response) = post(&client, &server, "/v1/classify", "application/json", &body).await?;
            ensure!(status == 200, "{status} {response:.300}");
        }
        anyhow::Ok(())
    };
    let small = async {
        for _ in 0..20 {
            let body = json!({"inputs": ["A fine day."]});
            let (status, response) = post(&client, &server, "/v1/classify", "application/json", &body).await?;
            ensure!(status == 200, "{status} {response:.300}");
        }
        anyhow::Ok(())
    };
    let (large, small) = tokio::join!(large, small);
    large?;
    small
}
