//! Overload over HTTP: requests beyond the queue are refused with `Retry-After`, accepted ones are answered, and memory is bounded.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::Server;
use weir_tests::texts::Random;

/// The result of a request.
#[derive(Debug, PartialEq)]
enum RequestResult {
    Answered,
    /// 429 or 503.
    Refused(u16),
}

/// Sends texts as one request; a refusal must have `Retry-After`.
async fn send(client: &Client, server: &Server, texts: &[String]) -> Result<RequestResult> {
    let response = client.post(server.url("/v1/classify")).json(&json!({"inputs": texts})).send().await?;
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").map(|value| value.to_str().map(str::to_owned)).transpose()?;
    let body: Value = response.json().await?;
    match status {
        200 => {
            let outputs = body["outputs"].as_array().context("outputs")?;
            ensure!(outputs.len() == texts.len() && outputs.iter().all(Value::is_array), "{body}");
            Ok(RequestResult::Answered)
        }
        429 | 503 => {
            let seconds: u32 = after.with_context(|| format!("no Retry-After with {body}"))?.parse()?;
            ensure!(seconds >= 1 && body["retryable"] == true && body["status"] == status, "{body}");
            Ok(RequestResult::Refused(status))
        }
        _ => bail!("{status}: {body}"),
    }
}

/// Sends requests of eight texts from concurrent clients; their results, and the largest resident memory in bytes, sampled as clients
/// finish.
async fn send_load(server: &Server, clients: usize, requests: usize) -> Result<(Vec<RequestResult>, u64)> {
    let client = Client::new();
    let next = AtomicUsize::new(0);
    let mut resident_max = 0;
    let mut results = Vec::new();
    let one = |number: usize| {
        let (client, next) = (&client, &next);
        async move {
            let mut random = Random(number as u64 + 1);
            let mut own = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < requests {
                let texts: Vec<String> = (0..8).map(|_| random.text(8)).collect();
                own.push(send(client, server, &texts).await?);
            }
            Ok::<_, anyhow::Error>((own, server.resident_bytes()?))
        }
    };
    let mut all: FuturesUnordered<_> = (0..clients).map(one).collect();
    while let Some(done) = all.next().await {
        let (own, resident) = done?;
        results.extend(own);
        resident_max = resident_max.max(resident);
    }
    Ok((results, resident_max))
}

const SMALL_QUEUE: [&str; 12] = [
    "--set",
    "infer.queue_items_max=160",
    "--set",
    "infer.caller_items_max=1000",
    "--set",
    "models.names=[\"sentiment\"]",
    "--set",
    "steps.entities=",
    "--set",
    "steps.summary=",
    "--set",
    "models.replicas=1",
];

/// 200 clients send 8 texts each, ten times what fits into the queue, repeatedly.
#[tokio::test(flavor = "multi_thread")]
async fn tenfold_overload_keeps_memory_constant() -> Result<()> {
    let server = Server::start(&SMALL_QUEUE).await?;
    // The first load allocates the buffers, instances and plans.
    send_load(&server, 200, 1_000).await?;
    let before = server.resident_bytes()?;
    let (results, resident_max) = send_load(&server, 200, 5_000).await?;
    let answered = results.iter().filter(|one| **one == RequestResult::Answered).count();
    println!(
        "{answered} of {} answered, {} MiB before, {} MiB at most",
        results.len(),
        before >> 20,
        resident_max >> 20
    );
    ensure!(results.len() == 5_000 && answered > 0 && answered < 5_000, "{answered} answered");
    ensure!(resident_max < before + before / 10 + (16 << 20), "{before} bytes grew to {resident_max}");
    ensure!(server.metric("weir_infer_queue_items").await? == 0.0, "the queue is not empty");
    // The next request is answered.
    ensure!(send(&Client::new(), &server, &["A fine day.".into()]).await? == RequestResult::Answered);
    Ok(())
}

/// Another client is served while one is over its share.
#[tokio::test(flavor = "multi_thread")]
async fn client_over_its_share_gets_429_and_over_a_full_queue_503() -> Result<()> {
    let server = Server::start(&[SMALL_QUEUE.as_slice(), &["--set", "infer.caller_items_max=40"]].concat()).await?;
    let (results, _) = send_load(&server, 60, 600).await?;
    let refused = |results: &[RequestResult], status| results.contains(&RequestResult::Refused(status));
    ensure!(refused(&results, 429) && !refused(&results, 503), "a client over its share did not get 429 alone");
    let other = Client::builder().local_address(Some([127, 0, 0, 2].into())).build()?;
    let (pressed, other) = tokio::join!(send_load(&server, 60, 600), async {
        let mut results = Vec::new();
        for _ in 0..20 {
            results.push(send(&other, &server, &["A fine day.".into()]).await?);
        }
        Ok::<_, anyhow::Error>(results)
    });
    ensure!(refused(&pressed?.0, 429));
    ensure!(other?.iter().all(|one| *one == RequestResult::Answered), "the load of one client refused another");

    let server = Server::start(&SMALL_QUEUE).await?;
    let (results, _) = send_load(&server, 60, 600).await?;
    ensure!(refused(&results, 503), "a full queue did not answer 503");
    Ok(())
}
