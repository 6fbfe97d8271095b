//! More work than there is room for, over HTTP: what is refused is told when to come back, what is accepted is answered,
//! and memory stays where it is.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, bail, ensure};
use futures::stream::{FuturesUnordered, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::Server;
use weir_tests::texts::Random;

/// What became of a request.
#[derive(Debug, PartialEq)]
enum ItemResult {
    Answered,
    /// 429 or 503.
    Refused(u16),
}

/// Sends texts as one request; a refusal must say when to come back.
async fn send(client: &Client, server: &Server, texts: &[String]) -> Result<ItemResult> {
    let response = client.post(server.url("/v1/classify")).json(&json!({"inputs": texts})).send().await?;
    let status = response.status().as_u16();
    let after = response.headers().get("retry-after").map(|value| value.to_str().map(str::to_owned)).transpose()?;
    let body: Value = response.json().await?;
    match status {
        200 => {
            let outputs = body["outputs"].as_array().context("outputs")?;
            ensure!(outputs.len() == texts.len() && outputs.iter().all(Value::is_array), "{body}");
            Ok(ItemResult::Answered)
        }
        429 | 503 => {
            let seconds: u32 = after.with_context(|| format!("no Retry-After with {body}"))?.parse()?;
            ensure!(seconds >= 1 && body["retryable"] == true && body["status"] == status, "{body}");
            Ok(ItemResult::Refused(status))
        }
        _ => bail!("{status}: {body}"),
    }
}

/// So many requests of eight texts from so many clients; the resident memory that it takes, looked at as it goes.
async fn press(server: &Server, clients: usize, requests: usize) -> Result<(Vec<ItemResult>, u64)> {
    let client = Client::new();
    let next = AtomicUsize::new(0);
    let mut most = 0;
    let mut became = Vec::new();
    let one = |number: usize| {
        let (client, next) = (&client, &next);
        async move {
            let mut random = Random(number as u64 + 1);
            let mut mine = Vec::new();
            while next.fetch_add(1, Ordering::Relaxed) < requests {
                let texts: Vec<String> = (0..8).map(|_| random.text(8)).collect();
                mine.push(send(client, server, &texts).await?);
            }
            Ok::<_, anyhow::Error>((mine, server.resident_bytes()?))
        }
    };
    let mut all: FuturesUnordered<_> = (0..clients).map(one).collect();
    while let Some(done) = all.next().await {
        let (mine, resident) = done?;
        became.extend(mine);
        most = most.max(resident);
    }
    Ok((became, most))
}

const ROOM: [&str; 12] = [
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

/// Ten times the texts that fit into the queue are sent at once, over and over: 200 clients with 8 texts each.
#[tokio::test(flavor = "multi_thread")]
async fn tenfold_overload_keeps_memory_constant() -> Result<()> {
    let server = Server::start(&ROOM).await?;
    // The first wave brings every buffer, instance and plan that this load needs.
    press(&server, 200, 1_000).await?;
    let before = server.resident_bytes()?;
    let (became, most) = press(&server, 200, 5_000).await?;
    let answered = became.iter().filter(|one| **one == ItemResult::Answered).count();
    println!("{answered} of {} answered, {} MiB before, {} MiB at most", became.len(), before >> 20, most >> 20);
    ensure!(became.len() == 5_000 && answered > 0 && answered < 5_000, "{answered} answered");
    ensure!(most < before + before / 10 + (16 << 20), "{before} bytes grew to {most}");
    ensure!(server.metric("weir_infer_queue_items").await? == 0.0, "something is left in the queue");
    // Nothing broke: the next one is answered.
    ensure!(send(&Client::new(), &server, &["A fine day.".into()]).await? == ItemResult::Answered);
    Ok(())
}

/// A client over its own share is told so with 429, and another is served meanwhile; a full server says 503.
#[tokio::test(flavor = "multi_thread")]
async fn client_over_its_share_gets_429_and_over_a_full_queue_503() -> Result<()> {
    let server = Server::start(&[ROOM.as_slice(), &["--set", "infer.caller_items_max=40"]].concat()).await?;
    let (became, _) = press(&server, 60, 600).await?;
    let refused = |became: &[ItemResult], status| became.contains(&ItemResult::Refused(status));
    ensure!(refused(&became, 429) && !refused(&became, 503), "a client over its share was not told so");
    let other = Client::builder().local_address(Some([127, 0, 0, 2].into())).build()?;
    let (pressed, other) = tokio::join!(press(&server, 60, 600), async {
        let mut became = Vec::new();
        for _ in 0..20 {
            became.push(send(&other, &server, &["A fine day.".into()]).await?);
        }
        Ok::<_, anyhow::Error>(became)
    });
    ensure!(refused(&pressed?.0, 429));
    ensure!(other?.iter().all(|one| *one == ItemResult::Answered), "one client's load refused another");

    let server = Server::start(&ROOM).await?;
    let (became, _) = press(&server, 60, 600).await?;
    ensure!(refused(&became, 503), "a full server did not say so");
    Ok(())
}
