//! Overload over HTTP: requests beyond the queue are refused with `Retry-After`, accepted ones are answered, and memory is bounded.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use futures::stream::{FuturesUnordered, StreamExt};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufStream};
use tokio::net::TcpStream;
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

/// The outcomes of the requests of one load, and how long it ran.
#[derive(Debug, Default)]
struct LoadResult {
    answered: usize,
    refused: usize,
    seconds: f64,
}

impl LoadResult {
    fn goodput(&self) -> f64 {
        self.answered as f64 / self.seconds
    }
}

/// Sends requests on persistent connections for a time, each after the response to the one before, and not before
/// `interval` has passed since that was sent. The requests are bytes made before, since the client must be faster than
/// the server.
async fn load(
    server: &Server,
    connections: usize,
    interval: Duration,
    time: Duration,
    body: &str,
) -> Result<LoadResult> {
    let start = Instant::now();
    let one = async || {
        let mut result = LoadResult::default();
        let mut stream = BufStream::new(TcpStream::connect(server.address()).await?);
        let head =
            "POST /v1/classify HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\ncontent-length: ";
        let request = format!("{head}{}\r\n\r\n{body}", body.len());
        let mut ticks = tokio::time::interval(interval);
        while start.elapsed() < time {
            ticks.tick().await;
            stream.write_all(request.as_bytes()).await?;
            stream.flush().await?;
            match response_status(&mut stream).await? {
                200 => result.answered += 1,
                429 | 503 => result.refused += 1,
                status => bail!("{status}"),
            }
        }
        Ok::<_, anyhow::Error>(result)
    };
    let results = try_join_all((0..connections).map(|_| one())).await?;
    let total = |count: fn(&LoadResult) -> usize| results.iter().map(count).sum();
    Ok(LoadResult {
        answered: total(|result| result.answered),
        refused: total(|result| result.refused),
        seconds: start.elapsed().as_secs_f64(),
    })
}

/// Reads a response with a length, and returns its status; a refusal must say when to come back.
async fn response_status(stream: &mut BufStream<TcpStream>) -> Result<u16> {
    let (mut status, mut length, mut has_retry_after) = (0, 0, false);
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(stream.read_line(&mut line).await? > 0, "the connection ended");
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(code) = line.strip_prefix("http/1.1 ") {
            status = code.split(' ').next().unwrap_or_default().parse()?;
        } else if let Some(value) = line.strip_prefix("content-length: ") {
            length = value.parse()?;
        }
        has_retry_after |= line.starts_with("retry-after: ");
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    if matches!(status, 429 | 503) {
        let body: Value = serde_json::from_slice(&body)?;
        ensure!(has_retry_after && body["retryable"] == true && body["status"] == status, "{body}");
    }
    Ok(status)
}

/// Far more requests than one model can answer do not take the time of those that it can: most refusals are the edge's
/// own. Meanwhile a probe is answered, and so are a request for another model and one of another client.
#[tokio::test(flavor = "multi_thread")]
async fn goodput_under_overload_does_not_collapse() -> Result<()> {
    const TIME: Duration = Duration::from_secs(3);
    let settings = ["models.names=[\"sentiment\",\"entities\"]", "steps.summary=", "models.replicas=1"];
    let settings: Vec<&str> = settings.into_iter().flat_map(|setting| ["--set", setting]).collect();
    let server = Server::start(&settings).await?;
    let texts: Vec<String> = (0..4).map(|number| Random(number + 1).text(12)).collect();
    let body = json!({"inputs": texts, "parameters": {"timeout_ms": 200}}).to_string();
    let peak = load(&server, 8, Duration::from_nanos(1), TIME, &body).await?;
    // Ten times as many.
    let interval = Duration::from_secs_f64(400.0 / (10.0 * peak.goodput()));
    let other = Client::builder().local_address(Some([127, 0, 0, 2].into())).build()?;
    let (overload, others) = tokio::join!(load(&server, 400, interval, 2 * TIME, &body), async {
        let mut answered = 0;
        let entities = json!({"inputs": "Ada lives in London.", "model": "entities"});
        for _ in 0..20 {
            let here = Client::new();
            ensure!(here.get(server.url("/livez")).send().await?.status() == 200, "a probe was refused");
            let answer = here.post(server.url("/v1/tokens")).json(&entities).send().await?;
            ensure!(answer.status() == 200, "an idle model is refused: {}", answer.text().await?);
            // Its time is longer than what waits.
            let good = json!({"inputs": "A fine day.", "parameters": {"timeout_ms": 20_000}});
            answered += usize::from(other.post(server.url("/v1/classify")).json(&good).send().await?.status() == 200);
        }
        Ok::<_, anyhow::Error>(answered)
    });
    let (overload, others) = (overload?, others?);
    // Other tests may take the processor at one time and not at another.
    let later = load(&server, 8, Duration::from_nanos(1), TIME, &body).await?;
    let shed = server.metric("weir_http_shed_total").await?;
    println!(
        "at the peak {peak:?} and {later:?}, overloaded {overload:?}, {shed} without the component, {others} of 20 of another client"
    );
    // A pause of the machine makes the time of a few requests too short.
    ensure!(peak.refused < peak.answered / 10 && overload.refused > overload.answered, "this is no overload");
    // Without shedding it is a twentieth of the peak or less.
    ensure!(overload.goodput() >= peak.goodput().min(later.goodput()) / 4.0, "goodput collapsed");
    ensure!(shed >= overload.refused as f64 / 2.0, "the component refused most of them");
    ensure!(others == 20, "one client's load refused another");
    Ok(())
}
