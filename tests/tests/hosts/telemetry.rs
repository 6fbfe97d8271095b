//! Traces and metrics over OTLP: a request and a record of an adapter, from the header `traceparent` to a receiver.

use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;
use weir_tests::http::read_request;
use weir_tests::{Server, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// A receiver: the spans that it has received, and the last metrics.
#[derive(Clone, Default)]
struct Receiver(Arc<Mutex<(Vec<Value>, Vec<Value>)>>);

impl Receiver {
    async fn start() -> Result<(String, Self)> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}", listener.local_addr()?);
        let receiver = Self::default();
        let shared = receiver.clone();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let Some(request) = read_request(&mut stream).await else { continue };
                shared.add(request.split_once("\r\n\r\n").map_or("", |(_, body)| body).as_bytes());
                // The server may have closed the connection.
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await;
            }
        });
        Ok((url, receiver))
    }

    fn add(&self, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        let mut received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(spans) = body["resourceSpans"][0]["scopeSpans"][0]["spans"].as_array() {
            received.0.extend(spans.iter().cloned());
        }
        if let Some(metrics) = body["resourceMetrics"][0]["scopeMetrics"][0]["metrics"].as_array() {
            received.1.clone_from(metrics);
        }
    }

    /// The first span with a name and an attribute.
    fn span(&self, name: &str, attribute: (&str, &str)) -> Option<Value> {
        let received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let has = |span: &&Value| {
            let expected = json!({"key": attribute.0, "value": {"stringValue": attribute.1}});
            span["name"] == name && span["attributes"].as_array().is_some_and(|all| all.contains(&expected))
        };
        received.0.iter().find(has).cloned()
    }

    fn metric(&self, name: &str) -> Option<Value> {
        let received = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.1.iter().find(|metric| metric["name"] == name).cloned()
    }
}

#[tokio::test]
async fn requests_and_records_are_traced_and_metrics_exported() -> Result<()> {
    let (endpoint, receiver) = Receiver::start().await?;
    let dir = tempfile::tempdir()?;
    let (input, config) = (dir.path().join("in.ndjson"), dir.path().join("weir.toml"));
    std::fs::write(&input, "{\"text\": \"a good Day\"}\nbroken\n")?;
    let output = dir.path().join("out.ndjson");
    let errors = dir.path().join("errors.ndjson");
    std::fs::write(
        &config,
        format!(
            "[log]\notlp_endpoint = '{endpoint}'\notlp_metrics_interval_ms = 200\n\n[[adapter]]\nname = 'moods'\nformat = 'ndjson'\n\
             [adapter.source]\nkind = 'file'\npaths = ['{}']\n[adapter.sink]\nkind = 'file'\npath = '{}'\n\
             [adapter.errors]\nkind = 'file'\npath = '{}'\n",
            input.display(),
            output.display(),
            errors.display()
        ),
    )?;
    let server = Server::start_stub(&["--config", config.to_str().context("a path")?]).await?;
    let request = reqwest::Client::new().post(server.url("/v1/classify")).json(&json!({"inputs": ["a good Day"]}));
    let response = request.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-01")).send().await?;
    let id = response.headers().get("x-request-id").context("no request id")?.to_str()?.to_owned();
    ensure!(response.status() == 200, "{}", response.text().await?);
    // A trace that its sender does not sample is not exported.
    let quiet = reqwest::Client::new().get(server.url("/v1/models"));
    quiet.header("traceparent", format!("00-{TRACE}-b7ad6b7169203331-00")).send().await?.error_for_status()?;

    until("traced", || async { Ok(receiver.span("POST", ("weir.request_id", &id)).is_some()) }).await?;
    let span = receiver.span("POST", ("weir.request_id", &id)).context("no span")?;
    ensure!(span["traceId"] == TRACE && span["parentSpanId"] == "b7ad6b7169203331" && span["kind"] == 2, "{span}");
    let status = json!({"key": "http.response.status_code", "value": {"intValue": "200"}});
    ensure!(span["attributes"].as_array().is_some_and(|all| all.contains(&status)), "{span}");
    ensure!(receiver.span("GET", ("url.path", "/v1/models")).is_none());
    ensure!(receiver.span("GET", ("url.path", "/readyz")).is_none());

    // Both records have a span; the broken one has failed, and the write links them.
    let records = || {
        let received = receiver.0.lock().unwrap_or_else(PoisonError::into_inner);
        received.0.iter().filter(|span| span["name"] == "adapter record").cloned().collect::<Vec<_>>()
    };
    until("records", || std::future::ready(Ok(records().len() == 2))).await?;
    let failed: Vec<Value> = records().into_iter().filter(|span| span["status"]["code"] == 2).collect();
    ensure!(failed.len() == 1 && failed[0]["status"]["message"] == "malformed_json", "{failed:?}");
    let linked = |name: &str| {
        let received = receiver.0.lock().unwrap_or_else(PoisonError::into_inner);
        let spans = received.0.iter().filter(|span| span["name"] == name);
        spans.flat_map(|span| span["links"].as_array().cloned().unwrap_or_default()).collect::<Vec<_>>()
    };
    for record in records() {
        let link = json!({"traceId": record["traceId"], "spanId": record["spanId"]});
        until("linked", || std::future::ready(Ok(linked("adapter write").contains(&link)))).await?;
    }
    // A batch links the request of one item and the record of another; the broken record has no item.
    let mut items: Vec<Value> = records().into_iter().filter(|span| span["status"].is_null()).collect();
    items.push(span);
    for item in items {
        let link = json!({"traceId": item["traceId"], "spanId": item["spanId"]});
        until("computed", || std::future::ready(Ok(linked("infer batch").contains(&link)))).await?;
    }
    let batch = receiver.span("infer batch", ("weir.model", "sentiment")).context("no batch")?;
    ensure!(batch["parentSpanId"].is_null() && batch["kind"] == 1, "{batch}");

    let is_counted = || {
        let metric = receiver.metric("weir_http_requests_total");
        let is_post = |point: &Value| point["attributes"].to_string().contains("POST") && point["asDouble"] == 1.0;
        metric.is_some_and(|metric| {
            metric["sum"]["dataPoints"].as_array().is_some_and(|points| points.iter().any(is_post))
        })
    };
    until("counted", || std::future::ready(Ok(is_counted()))).await?;
    let histogram = receiver.metric("weir_http_first_byte_seconds").context("no histogram")?;
    ensure!(histogram["histogram"]["aggregationTemporality"] == 2 && histogram["unit"] == "s", "{histogram}");
    for name in ["weir_infer_queue_seconds", "weir_infer_compute_seconds", "weir_infer_batch_fill_ratio"] {
        let is_counted = || {
            let metric = receiver.metric(name).unwrap_or_default();
            let points = metric["histogram"]["dataPoints"].as_array().cloned().unwrap_or_default();
            points.iter().any(|point| {
                let count: Option<u64> = point["count"].as_str().and_then(|count| count.parse().ok());
                count.is_some_and(|count| count > 0) && point["attributes"].to_string().contains("sentiment")
            })
        };
        until(name, || std::future::ready(Ok(is_counted()))).await?;
    }
    Ok(())
}
