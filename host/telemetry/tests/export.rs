//! Exports to a receiver over sockets, which reads the requests with the types of OpenTelemetry's own definitions.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use weir_telemetry::{Settings, Span, SpanContext, SpanKind, start};

const TIMEOUT: Duration = Duration::from_secs(30);
const METRICS: &str = "# HELP weir_items_total items\n# TYPE weir_items_total counter\nweir_items_total{model=\"m\"} 3\n\
                       # TYPE weir_wait_seconds histogram\nweir_wait_seconds_bucket{le=\"1\"} 1\n\
                       weir_wait_seconds_bucket{le=\"+Inf\"} 2\nweir_wait_seconds_sum 3\nweir_wait_seconds_count 2\n";

/// A receiver that refuses the first request for traces. It gives the path and the body of each request that it accepts.
async fn receiver() -> Result<(String, mpsc::UnboundedReceiver<(String, Vec<u8>)>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/otlp", listener.local_addr()?);
    let (sender, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        let mut refused = false;
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut input = Vec::new();
            let (head_bytes, length) = loop {
                if stream.read_buf(&mut input).await? == 0 {
                    break (0, 0);
                }
                if let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                    let head = String::from_utf8_lossy(&input[..end]).to_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
                    break (end + 4, length.and_then(|length| length.parse::<usize>().ok()).unwrap_or(0));
                }
            };
            while input.len() < head_bytes + length && stream.read_buf(&mut input).await? > 0 {}
            let path = String::from_utf8_lossy(&input).split(' ').nth(1).unwrap_or_default().to_owned();
            if path.ends_with("traces") && !refused {
                refused = true;
                stream.write_all(b"HTTP/1.1 503 Busy\r\nRetry-After: 0\r\nContent-Length: 0\r\n\r\n").await?;
                continue;
            }
            stream
                .write_all(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}")
                .await?;
            if sender.send((path, input[head_bytes..].to_vec())).is_err() {
                break;
            }
        }
        std::io::Result::Ok(())
    });
    Ok((url, requests))
}

// One test, since a process has one exporter of spans.
#[tokio::test]
async fn spans_and_metrics_reach_a_receiver() -> Result<()> {
    ensure!(Span::start("before the start", SpanKind::Internal, None).is_none());
    let (url, mut requests) = receiver().await?;
    let settings = Settings {
        endpoint: url.parse()?,
        metrics_interval: Duration::from_secs(3600),
        sample_percent: 100,
        service: "weir".into(),
        version: "1".into(),
        instance: "a".into(),
    };
    let exporter = start(settings.clone(), || METRICS.to_owned());

    let (path, body) = tokio::time::timeout(TIMEOUT, requests.recv()).await?.context("no request")?;
    ensure!(path == "/otlp/v1/metrics", "{path}");
    let metrics: ExportMetricsServiceRequest = serde_json::from_slice(&body)?;
    let metrics = &metrics.resource_metrics[0].scope_metrics[0].metrics;
    let names: Vec<&str> = metrics.iter().map(|metric| metric.name.as_str()).collect();
    ensure!(names == ["weir_items_total", "weir_wait_seconds"], "{names:?}");
    match (&metrics[0].data, &metrics[1].data) {
        (Some(Data::Sum(sum)), Some(Data::Histogram(histogram))) => {
            ensure!(
                sum.is_monotonic && sum.aggregation_temporality == 2 && sum.data_points[0].attributes[0].key == "model"
            );
            let point = &histogram.data_points[0];
            ensure!(point.bucket_counts == [1, 1] && point.explicit_bounds == [1.0] && point.count == 2, "{point:?}");
        }
        other => anyhow::bail!("{other:?}"),
    }

    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".parse()?;
    let span = Span::start("item", SpanKind::Consumer, Some(parent)).context("sampled")?;
    let unsampled: SpanContext = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00".parse()?;
    let links = |contexts: [SpanContext; 2]| {
        Span::linked("batch", SpanKind::Internal, contexts.into_iter(), Duration::from_secs(1))
    };
    ensure!(links([unsampled, unsampled]).is_none());
    let batch = links([unsampled, span.context()]).context("sampled")?;
    batch.set_number("items", 1);
    span.set("origin", "feed");
    span.fail("refused");
    ensure!(Span::start("not sampled", SpanKind::Consumer, Some(unsampled)).is_none());
    let (item, batch_context) = (span.context(), batch.context());
    drop(span.clone());
    drop(span);
    drop(batch);

    // The first attempt is refused.
    let (path, body) = tokio::time::timeout(TIMEOUT, requests.recv()).await?.context("no request")?;
    ensure!(path == "/otlp/v1/traces", "{path}");
    let traces: ExportTraceServiceRequest = serde_json::from_slice(&body)?;
    let resource = traces.resource_spans[0].resource.as_ref().context("no resource")?;
    ensure!(resource.attributes.iter().any(|attribute| attribute.key == "service.name"));
    let spans = &traces.resource_spans[0].scope_spans[0].spans;
    ensure!(spans.len() == 2, "{spans:?}");
    let (first, second) = (&spans[0], &spans[1]);
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    ensure!(
        hex(&first.trace_id) == "0af7651916cd43dd8448eb211c80319c" && hex(&first.parent_span_id) == "b7ad6b7169203331"
    );
    ensure!(format!("00-{}-{}-01", hex(&first.trace_id), hex(&first.span_id)) == item.to_string());
    ensure!((first.name.as_str(), first.kind) == ("item", 5) && first.end_time_unix_nano >= first.start_time_unix_nano);
    let status = first.status.as_ref().context("no status")?;
    ensure!((status.code, status.message.as_str()) == (2, "refused"));
    ensure!(second.parent_span_id.is_empty() && hex(&second.span_id) == batch_context.to_string()[36..52]);
    ensure!(second.links.len() == 1 && second.links[0].span_id == first.span_id);
    ensure!(second.end_time_unix_nano - second.start_time_unix_nano >= 1_000_000_000, "it began a second ago");

    // The spans that wait at the end are exported, and the metrics again.
    drop(Span::start("last", SpanKind::Internal, None));
    exporter.finish(TIMEOUT).await;
    let mut paths = Vec::new();
    while let Ok((path, body)) = requests.try_recv() {
        ensure!(path.ends_with("metrics") || String::from_utf8_lossy(&body).contains("\"last\""));
        paths.push(path);
    }
    ensure!(paths == ["/otlp/v1/traces", "/otlp/v1/metrics"], "{paths:?}");

    // The spans of the process are those of the first exporter; another one exports metrics only.
    let (url, mut requests) = receiver().await?;
    let exporter = start(Settings { endpoint: url.parse()?, ..settings }, || METRICS.to_owned());
    let (path, _) = tokio::time::timeout(TIMEOUT, requests.recv()).await?.context("no request")?;
    ensure!(path == "/otlp/v1/metrics", "{path}");
    exporter.finish(TIMEOUT).await;
    let (path, _) = tokio::time::timeout(TIMEOUT, requests.recv()).await?.context("no last request")?;
    ensure!(path == "/otlp/v1/metrics", "{path}");
    Ok(())
}
