//! Feeds over HTTP and webhooks, with a server of the test.

mod echo;

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, ensure};
use base64ct::{Base64, Encoding as _};
use echo::{start, until};
use hmac::{Hmac, Mac as _};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use weir_adapters::check;
use weir_adapters::driver::{Read, Source as _};
use weir_adapters::http::HttpRequest;
use weir_codec::adapter::decode::{PAYLOAD_BYTES_MAX, REFUSAL_HEADER};
use weir_config::{Adapter, AdapterSink, AdapterSource, FileSink, FileSource, HttpSink, HttpSource};
use weir_core::adapter::ReconnectConfig;

/// A request: its head in lower case, and its body.
#[derive(Debug, Clone)]
struct Request {
    head: String,
    body: Vec<u8>,
}

impl Request {
    /// The value of a header; its name is in lower case.
    fn header(&self, name: &str) -> Option<&str> {
        let prefix = format!("{name}: ");
        self.head.lines().find_map(|line| line.strip_prefix(prefix.as_str()))
    }
}

/// A server that gives each request the next response, then closes the connection.
struct Server {
    url: String,
    requests: Arc<Mutex<Vec<Request>>>,
    _task: tokio_util::task::AbortOnDropHandle<()>,
}

impl Server {
    async fn start(responses: &[&str]) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("http://{}/feed", listener.local_addr()?);
        let requests = Arc::new(Mutex::new(Vec::new()));
        let mut responses: VecDeque<String> = responses.iter().map(|response| (*response).to_owned()).collect();
        let seen = requests.clone();
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Some(response) = responses.pop_front() else { return };
                if let Some(request) = serve(stream, &response).await {
                    seen.lock().unwrap_or_else(PoisonError::into_inner).push(request);
                }
            }
        });
        Ok(Self { url, requests, _task: tokio_util::task::AbortOnDropHandle::new(task) })
    }

    fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

async fn serve(mut stream: TcpStream, response: &str) -> Option<Request> {
    let mut bytes = Vec::new();
    let end = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8_lossy(&bytes[..end]).into_owned();
    // Values keep their case.
    let head = text.lines().map(|line| match line.split_once(": ") {
        Some((name, value)) => format!("{}: {value}\n", name.to_lowercase()),
        None => format!("{line}\n"),
    });
    let mut request = Request { head: head.collect(), body: bytes.split_off(end) };
    let length = request.header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    while request.body.len() < length {
        if stream.read_buf(&mut request.body).await.ok()? == 0 {
            return None;
        }
    }
    stream.write_all(response.as_bytes()).await.ok()?;
    stream.shutdown().await.ok()?;
    Some(request)
}

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const NDJSON: &str = "HTTP/1.1 200 OK\r\ncontent-type: application/x-ndjson\r\nconnection: close\r\n\r\n";
const GONE: &str = "HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n";

fn feed(server: &Server, out: &Path) -> Adapter {
    Adapter {
        name: "feed".into(),
        reconnect_delay_ms: 1,
        reconnect_delay_ms_max: 5,
        source: AdapterSource::Http(HttpSource {
            url: server.url.clone(),
            requests_per_second: 1000,
            ..HttpSource::default()
        }),
        sink: AdapterSink::File(FileSink { path: out.to_owned(), ..FileSink::default() }),
        ..Adapter::default()
    }
}

#[tokio::test]
async fn lost_feed_of_events_is_requested_after_its_last_event() -> Result<()> {
    let server = Server::start(&[
        &format!("{SSE}retry: 3\nid: 1\ndata: one\n\nid: 2\ndata: two\n\nid: 3\ndata: never com"),
        "HTTP/1.1 503 Service Unavailable\r\nretry-after: 0\r\ncontent-length: 0\r\n\r\n",
        &format!("{SSE}: a comment\n\nevent: other\ndata: no record\n\nid: 3\nevent: text\ndata: three\n\n"),
        GONE,
    ])
    .await?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let mut adapter = feed(&server, &out);
    if let AdapterSource::Http(source) = &mut adapter.source {
        source.events = vec!["message".into(), "text".into()];
    }
    let status = start(&adapter)?.ended().await?;
    assert_eq!(std::fs::read_to_string(out)?, "one\ntwo\nthree\n");
    let requests = server.requests();
    let after: Vec<Option<&str>> = requests.iter().map(|request| request.header("last-event-id")).collect();
    assert_eq!(after, [None, Some("2"), Some("2"), Some("3")]);
    // The adapter did not connect anew: only the feed was requested again.
    assert_eq!((status.report().records, status.report().reconnects), (3, 0));
    Ok(())
}

/// Ids with control characters, and long ones, cannot be sent: the feed is resumed after the last one that can.
#[tokio::test]
async fn feed_is_resumed_after_the_last_id_that_a_header_can_have() -> Result<()> {
    let long = "x".repeat(5000);
    let server = Server::start(&[
        &format!("{SSE}id: 1\ndata: one\n\nid: a\u{1}b\ndata: two\n\nid: {long}\ndata: three\n\n"),
        &format!("{SSE}id: é\ndata: four\n\n"),
        GONE,
    ])
    .await?;
    let dir = tempfile::tempdir()?;
    let out = dir.path().join("out");
    let status = start(&feed(&server, &out))?.ended().await?;
    assert_eq!(std::fs::read_to_string(out)?, "one\ntwo\nthree\nfour\n");
    let requests = server.requests();
    let after: Vec<Option<&str>> = requests.iter().map(|request| request.header("last-event-id")).collect();
    assert_eq!(after, [None, Some("1"), Some("é")]);
    assert_eq!((status.report().records, status.report().reconnects), (4, 0));
    Ok(())
}

#[tokio::test]
async fn lines_are_records_until_the_response_ends() -> Result<()> {
    let server = Server::start(&[&format!("{NDJSON}\"a\"\n\n\"b\"\nbad\n\"c\"")]).await?;
    let dir = tempfile::tempdir()?;
    let (out, token) = (dir.path().join("out"), dir.path().join("token"));
    std::fs::write(&token, "secret\n")?;
    let mut adapter = feed(&server, &out);
    if let AdapterSource::Http(source) = &mut adapter.source {
        source.token_file = token;
    }
    let status = start(&adapter)?.ended().await?;
    let text = std::fs::read_to_string(out)?;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!((lines[0], lines[1], lines[3], lines.len()), ("\"a\"", "\"b\"", "\"c\"", 4));
    assert!(lines[2].contains(r#""code":"bad""#), "{text}");
    assert_eq!((status.report().results, status.report().errors), (3, 1));
    assert_eq!(server.requests()[0].header("authorization"), Some("Bearer secret"));
    Ok(())
}

#[tokio::test]
async fn refusal_stops_the_adapter_with_its_reason() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (response, reason) in [
        ("HTTP/1.1 401 Unauthorized\r\ncontent-length: 0\r\n\r\n", "401"),
        ("HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", "404"),
        ("HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 0\r\n\r\n", "`text/html`"),
    ] {
        let server = Server::start(&[response]).await?;
        let failure = start(&feed(&server, &dir.path().join("out")))?.failed().await?.to_string();
        ensure!(failure.contains(reason), "{failure}");
        ensure!(server.requests().len() == 1, "it was requested again");
    }
    Ok(())
}

#[tokio::test]
async fn unreachable_feed_ends_after_its_retries() -> Result<()> {
    let server = Server::start(&[SSE]).await?;
    let dir = tempfile::tempdir()?;
    let mut adapter = feed(&server, &dir.path().join("out"));
    adapter.reconnect_attempts_max = 2;
    if let AdapterSource::Http(source) = &mut adapter.source {
        source.max_retries = 2;
        source.timeout_ms = 200;
    }
    let running = start(&adapter)?;
    let status = running.status.clone();
    let failure = running.failed().await?;
    assert_eq!(status.report().state, "failed", "{failure}");
    assert_eq!(status.report().reconnects, 3);
    Ok(())
}

/// A webhook that fails once is called again with the same key; a result that it refuses is an error.
#[tokio::test]
async fn webhook_is_retried_with_the_same_key_and_signed() -> Result<()> {
    let ok = "HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n";
    let server = Server::start(&[
        "HTTP/1.1 500 Internal Server Error\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ok,
        "HTTP/1.1 422 Unprocessable Content\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
        ok,
    ])
    .await?;
    let dir = tempfile::tempdir()?;
    let (input, errors, secret) = (dir.path().join("in.ndjson"), dir.path().join("errors"), dir.path().join("secret"));
    std::fs::write(&input, "\"one\"\n\"two\"\n\"three\"\n")?;
    let key = b"0123456789abcdef";
    std::fs::write(&secret, format!("whsec_{}\n", Base64::encode_string(key)))?;
    let adapter = Adapter {
        name: "hook".into(),
        format: "ndjson".into(),
        source: AdapterSource::File(FileSource { paths: vec![input.display().to_string()], ..FileSource::default() }),
        sink: AdapterSink::Http(HttpSink {
            url: server.url.clone(),
            secret_file: secret,
            retry_delay_ms: 1,
            ..HttpSink::default()
        }),
        errors: Some(AdapterSink::File(FileSink { path: errors.clone(), ..FileSink::default() })),
        ..Adapter::default()
    };
    start(&adapter)?.ended().await?;
    let requests = server.requests();
    let bodies: Vec<&str> =
        requests.iter().map(|request| std::str::from_utf8(&request.body)).collect::<Result<_, _>>()?;
    assert_eq!(bodies, ["\"one\"", "\"one\"", "\"two\"", "\"three\""]);
    let keys: Vec<&str> =
        requests.iter().map(|request| request.header("idempotency-key").context("no key")).collect::<Result<_>>()?;
    assert!(keys[0] == keys[1] && keys[1] != keys[2] && keys[2] != keys[3], "{keys:?}");
    for request in &requests {
        let header = |name: &str| request.header(name).with_context(|| format!("no {name}"));
        let (id, timestamp, signature) =
            (header("webhook-id")?, header("webhook-timestamp")?, header("webhook-signature")?);
        let mut mac = Hmac::<Sha256>::new_from_slice(key)?;
        mac.update(format!("{id}.{timestamp}.").as_bytes());
        mac.update(&request.body);
        let signed = Base64::decode_vec(signature.strip_prefix("v1,").context("no version")?)
            .map_err(|error| anyhow::anyhow!("{error}"))?;
        mac.verify_slice(&signed)?;
    }
    let errors = std::fs::read_to_string(errors)?;
    assert!(errors.contains(r#""code":"sink_refused""#) && errors.contains(r#""payload":"\"two\"""#), "{errors}");
    Ok(())
}

#[tokio::test]
async fn checks_name_the_failure_and_a_remedy() -> Result<()> {
    let config = |url: &str| HttpSource { url: url.to_owned(), timeout_ms: 5000, ..HttpSource::default() };
    let server = Server::start(&["", SSE]).await?;
    // The first connection is the check of the port, which sends no request.
    let checks = check::http(&config(&server.url)).await;
    let names: Vec<&str> = checks.list.iter().map(|check| check.name).collect();
    assert!(checks.passed(), "{checks:?}");
    assert_eq!(names, ["resolve", "connect", "authenticate", "read"]);
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?;
    let checks = check::http(&config(&format!("http://{closed}/"))).await;
    let last = checks.list.last().context("no checks")?;
    assert_eq!(last.name, "connect");
    assert!(last.outcome.as_ref().is_err_and(|reason| reason.contains("check that the server runs")), "{last:?}");
    let checks = check::http(&config("ftp://x/")).await;
    assert!(!checks.passed() && checks.list.len() == 1, "{checks:?}");
    let server = Server::start(&["", "HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\n\r\n"]).await?;
    let checks = check::http(&config(&server.url)).await;
    let last = checks.list.last().context("no checks")?;
    assert!(last.name == "authenticate" && last.outcome.as_ref().is_err_and(|r| r.contains("token file")), "{last:?}");
    Ok(())
}

/// The rate of requests is bounded: a feed that ends at once is not requested in a loop.
#[tokio::test]
async fn rate_of_requests_is_bounded() -> Result<()> {
    let responses: Vec<&str> = [SSE; 4].into_iter().chain([GONE]).collect();
    let server = Server::start(&responses).await?;
    let dir = tempfile::tempdir()?;
    let mut adapter = feed(&server, &dir.path().join("out"));
    if let AdapterSource::Http(source) = &mut adapter.source {
        (source.requests_per_second, source.burst_size, source.max_retries) = (20, 1, 0);
    }
    let began = std::time::Instant::now();
    start(&adapter)?.ended().await?;
    // Four waits of 50 ms.
    ensure!(began.elapsed().as_millis() >= 195, "{:?}", began.elapsed());
    until("requested", async || Ok(server.requests().len() == 5)).await
}

#[tokio::test]
async fn request_has_its_headers_and_body_and_any_status_is_read() -> Result<()> {
    let server = Server::start(&["HTTP/1.1 404 Not Found\r\ncontent-type: text/plain\r\n\r\ngone"]).await?;
    let (method, headers) = (http::Method::POST, [("idempotency-key", "k"), ("accept", "application/json")]);
    let request =
        HttpRequest { method: &method, url: &server.url, headers: &headers, token: Some("t"), json: Some("{}") };
    let timeout = std::time::Duration::from_secs(60);
    let response = request.send(timeout).await?;
    ensure!(response.status() == 404 && response.content_type() == "text/plain");
    ensure!(response.text(timeout).await? == "gone");
    until("recorded", async || Ok(server.requests().len() == 1)).await?;
    let sent = server.requests().pop().context("no request")?;
    ensure!(sent.head.starts_with("POST /feed ") && sent.body == b"{}", "{sent:?}");
    let expected = [
        ("authorization", "Bearer t"),
        ("idempotency-key", "k"),
        ("accept", "application/json"),
        ("content-type", "application/json"),
    ];
    for (name, value) in expected {
        ensure!(sent.header(name) == Some(value), "{name}: {sent:?}");
    }
    Ok(())
}

#[tokio::test]
async fn request_without_a_response_fails_after_its_timeout() -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/", listener.local_addr()?);
    let request = HttpRequest { method: &http::Method::GET, url: &url, headers: &[], token: None, json: None };
    let error = request.send(std::time::Duration::from_millis(50)).await.err().context("a response")?;
    ensure!(error.to_string().contains("within 50 ms"), "{error}");
    Ok(())
}

#[tokio::test]
async fn line_that_is_too_long_is_refused_with_the_reason() -> Result<()> {
    let response = format!("{NDJSON}{}\n{{\"text\":\"a\"}}\n", "x".repeat(PAYLOAD_BYTES_MAX + 1));
    let server = Server::start(&[&response]).await?;
    let config = HttpSource { url: server.url.clone(), timeout_ms: 60_000, ..HttpSource::default() };
    let opened = weir_adapters::http::open(&config, ReconnectConfig::default(), 1, &Arc::default()).await;
    let (mut source, _committer) = opened?;
    let mut records = Vec::new();
    while let Read::Records(more) = source.read(10).await? {
        records.extend(more);
    }
    let reason = records[0].headers.iter().find(|header| header.name == REFUSAL_HEADER).context("no refusal")?;
    ensure!(String::from_utf8_lossy(&reason.value).contains("more than"), "{reason:?}");
    ensure!(records.len() == 2 && records[1].payload == br#"{"text":"a"}"#);
    ensure!(source.sets_control_headers(), "the supervisor would remove the refusal");
    Ok(())
}
