//! Clients that do not read, do not send, or hold shared resources: each affects only itself, for a bounded time.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{Request, StatusCode};
use reqwest::Client;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use weir_tests::client::{chunks_path, create_session};
use weir_tests::websocket::{Frame, WebSocket};
use weir_tests::{PATIENCE, Raw, Server, until};

const ONE: Ipv4Addr = Ipv4Addr::LOCALHOST;
const TWO: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

async fn connect(server: &Server, from: Ipv4Addr) -> Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::from((from, 0)))?;
    Ok(socket.connect(server.address().parse()?).await?)
}

/// An HTTP/2 connection with this initial window for each response.
async fn http2(server: &Server, from: Ipv4Addr, window_bytes: u32) -> Result<SendRequest<Bytes>> {
    let stream = connect(server, from).await?;
    let (send, connection) =
        h2::client::Builder::new().initial_window_size(window_bytes).handshake::<_, Bytes>(stream).await?;
    tokio::spawn(async move { connection.await.ok() });
    Ok(send.ready().await?)
}

/// The head of a POST.
fn post_head(server: &Server, path: &str, content_type: &str) -> Result<Request<()>> {
    Ok(Request::post(server.url(path)).header("content-type", content_type).body(())?)
}

/// Sends a request with its body; the status and the body of the response.
async fn send_request(
    send: &mut SendRequest<Bytes>,
    request: Request<()>,
    body: &str,
) -> Result<(StatusCode, RecvStream)> {
    let (response, mut stream) = send.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true)?;
    }
    let response = tokio::time::timeout(PATIENCE, response).await.context("no head")??;
    Ok((response.status(), response.into_body()))
}

/// Reads a stream until it is reset; the reason of the reset, and the bytes before it.
async fn read_until_reset(body: &mut RecvStream) -> Result<(Reason, Vec<u8>)> {
    let mut all = Vec::new();
    let reading = async {
        loop {
            match body.data().await {
                Some(Ok(data)) => {
                    body.flow_control().release_capacity(data.len())?;
                    all.extend_from_slice(&data);
                }
                Some(Err(error)) => return error.reason().context("no reset"),
                None => bail!("the stream ended without a reset: {:?}", String::from_utf8_lossy(&all)),
            }
        }
    };
    let reason = tokio::time::timeout(PATIENCE, reading).await.context("neither end nor reset")??;
    Ok((reason, all))
}

const GOOD: &str = r#"{"inputs":"good"}"#;

#[tokio::test]
async fn stream_that_reads_nothing_is_reset_and_its_permit_returned() -> Result<()> {
    let server = Server::start_stub(&[
        "--set",
        "http.requests_max=8",
        "--set",
        "http.client_share_percent=100",
        "--set",
        "http.write_timeout_ms=1000",
    ])
    .await?;
    let mut send = http2(&server, ONE, 0).await?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(send_request(&mut send, post_head(&server, "/v1/classify", "application/json")?, GOOD).await?);
        let lines = post_head(&server, "/v1/classify", "application/x-ndjson")?;
        open.push(send_request(&mut send, lines, "{\"text\":\"good\"}\n").await?);
    }
    for path in ["/readyz", "/metrics", "/nowhere"] {
        open.push(send_request(&mut send, Request::get(server.url(path)).body(())?, "").await?);
    }
    for (_, body) in &mut open {
        assert_eq!(read_until_reset(body).await?, (Reason::CANCEL, Vec::new()));
    }
    until("the permits are returned", || async { Ok(server.metric("weir_http_requests_open").await? == 0.0) }).await?;
    ensure!(server.metric("weir_http_stalled_total").await? >= open.len() as f64);
    // The connection is usable for another request.
    let (status, _) = send_request(&mut send, Request::head(server.url("/livez")).body(())?, "").await?;
    assert_eq!(status, StatusCode::OK);
    Ok(())
}

#[tokio::test]
async fn stream_that_reads_slowly_is_served() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.write_timeout_ms=4000"]).await?;
    let mut send = http2(&server, ONE, 8).await?;
    let inputs: Vec<_> = (0..8).map(|_| "good").collect();
    let body = json!({ "inputs": inputs }).to_string();
    let (_, mut body) = send_request(&mut send, post_head(&server, "/v1/classify", "application/json")?, &body).await?;
    let mut all = Vec::new();
    while let Some(data) = tokio::time::timeout(PATIENCE, body.data()).await.context("no end")? {
        let data = data.context("reset although the client was reading")?;
        all.extend_from_slice(&data);
        tokio::time::sleep(Duration::from_millis(100)).await;
        body.flow_control().release_capacity(data.len())?;
    }
    let response: serde_json::Value = serde_json::from_slice(&all)?;
    assert_eq!(response["outputs"].as_array().map(Vec::len), Some(8));
    ensure!(all.len() > 8 * 40, "the response is too short to take longer than the timeout");
    Ok(())
}

#[tokio::test]
async fn http2_header_that_does_not_arrive_closes_the_connection() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.header_timeout_ms=300"]).await?;
    const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    // A header block without its end. The last case sends only a part of this frame.
    const HEADERS: &[u8] = &[0, 0, 1, 1, 1, 0, 0, 0, 1, 0x82];
    for (what, sent) in [
        ("half a preface", PREFACE[..10].to_vec()),
        ("no settings", PREFACE.to_vec()),
        ("no request", [PREFACE, SETTINGS].concat()),
        ("no end of the header", [PREFACE, SETTINGS, HEADERS].concat()),
        ("no end of a frame", [PREFACE, SETTINGS, &HEADERS[..9]].concat()),
    ] {
        let mut stream = connect(&server, ONE).await?;
        stream.write_all(&sent).await?;
        let mut rest = Vec::new();
        let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
        ensure!(ended.is_ok(), "{what}: the connection is still open");
    }
    Ok(())
}

/// Creates a session; the path of its chunks.
async fn new_chunks_path(server: &Server) -> Result<String> {
    Ok(chunks_path(&create_session(server, &json!({})).await?))
}

/// Settings with which one long body exceeds the memory of an instance.
const SMALL_INSTANCES: [&str; 16] = [
    "--set",
    "http.requests_max=128",
    "--set",
    "http.client_share_percent=100",
    "--set",
    "gateway.body_bytes_max=100000000",
    "--set",
    "gateway.keeper_body_bytes_max=100000000",
    "--set",
    "http.body_bytes_max=100000000",
    "--set",
    "gateway.memory_bytes_max=16777216",
    "--set",
    "gateway.keeper_memory_bytes_max=16777216",
    "--set",
    "gateway.idle_timeout_ms=600000",
];

/// Ends the instance that serves a path, with a body that exceeds its memory.
async fn end_instance(server: &Server, path: &str) -> Result<()> {
    let body = format!(r#"{{"inputs":"{}"}}"#, "x".repeat(40 << 20));
    let request = Client::new().post(server.url(path)).header("content-type", "application/json").body(body);
    // A client that is still sending when the instance ends may not read the response.
    if let Ok(response) = request.send().await {
        assert_eq!(response.status(), 503);
        assert_eq!(response.json::<serde_json::Value>().await?["code"], "instance_lost");
    }
    Ok(())
}

/// Opens an NDJSON stream over HTTP/1.1 and over HTTP/2 and reads a response on each, ends the instance, and checks that the streams end
/// with an error.
async fn check_lost_streams_are_cut(server: &Server, [path, path2]: [&str; 2], line: &str, ends: &str) -> Result<()> {
    let mut raw = Raw::connect(server).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.address()
    );
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    raw.send(format!("{head}{chunk}").as_bytes()).await?;
    raw.read_until("\r\n\r\n").await?;
    let mut send = http2(server, ONE, 65_535).await?;
    let (response, mut lines) = send.send_request(post_head(server, path2, "application/x-ndjson")?, false)?;
    lines.send_data(Bytes::copy_from_slice(line.as_bytes()), false)?;
    let response = tokio::time::timeout(PATIENCE, response).await.context("no head")??;
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    end_instance(server, ends).await?;
    let read = raw.read_to_end().await?;
    ensure!(read.starts_with("HTTP/1.1 200") && !read.ends_with("0\r\n\r\n"), "the response looks complete:\n{read}");
    assert_eq!(read_until_reset(&mut body).await?.0, Reason::INTERNAL_ERROR);
    hold_until_here(&mut lines);
    Ok(())
}

/// Keeps the body of a request open up to this call.
fn hold_until_here(_: &mut SendStream<Bytes>) {}

#[tokio::test]
async fn response_of_a_lost_instance_is_cut_short() -> Result<()> {
    let server = Server::start_stub(&SMALL_INSTANCES).await?;
    // Subscriptions that the host holds do not depend on an instance.
    let mut subscription = Raw::connect(&server).await?;
    let head = format!("GET /stream/workflow/w HTTP/1.1\r\nHost: {}\r\n", server.address());
    subscription.send(format!("{head}\r\n").as_bytes()).await?;
    subscription.read_until("event: connected").await?;
    let mut gzip_subscription = Raw::connect(&server).await?;
    gzip_subscription.send(format!("{head}Accept-Encoding: gzip\r\n\r\n").as_bytes()).await?;
    gzip_subscription.read_until("\r\n\r\n").await?;
    check_lost_streams_are_cut(&server, ["/v1/classify"; 2], "{\"text\":\"good\"}\n", "/v1/classify").await?;
    until("the loss is counted", async || Ok(server.metric("weir_gateway_instances_lost_total").await? == 1.0)).await?;
    assert_eq!(server.metric("weir_http_connections_held").await?, 2.0);
    Ok(())
}

#[tokio::test]
async fn response_of_the_lost_stateful_instance_is_cut_short() -> Result<()> {
    let server = Server::start_stub(&SMALL_INSTANCES).await?;
    let (one, two) = (new_chunks_path(&server).await?, new_chunks_path(&server).await?);
    let line = "{\"start\":0,\"end\":1,\"text\":\"hello there\",\"speaker_id\":\"a\",\"seq\":1}\n";
    check_lost_streams_are_cut(&server, [&one, &two], line, "/sessions").await?;
    until("the loss is counted", async || Ok(server.metric("weir_keeper_lost_total").await? == 1.0)).await
}

/// Sends the head of a request and its body without the last byte, as far as the server reads it within 200 ms; the connection.
async fn open_unfinished(server: &Server, from: Ipv4Addr, path: &str, bytes: usize) -> Result<TcpStream> {
    let mut stream = connect(server, from).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {bytes}\r\n\r\n",
        server.address()
    );
    stream.write_all(head.as_bytes()).await?;
    let body = vec![b' '; bytes - 1];
    // The server does not read bodies that wait for memory.
    let _ = tokio::time::timeout(Duration::from_millis(200), stream.write_all(&body)).await;
    Ok(stream)
}

#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_of_one_client_end_no_instance_and_leave_capacity() -> Result<()> {
    let server = Server::start_stub(&[
        "--set",
        "http.client_share_percent=80",
        "--set",
        "http.requests_max=256",
        "--set",
        "gateway.instance_requests_max=256",
        "--set",
        "gateway.keeper_memory_bytes_max=268435456",
        "--set",
        "gateway.keeper_body_bytes_max=33554432",
    ])
    .await?;
    for path in ["/v1/classify", "/sessions"] {
        let open = try_join_all((0..150).map(|_| open_unfinished(&server, ONE, path, 1 << 20))).await?;
        // A small and a long request of another client are served.
        let other = Client::builder().local_address(Some(TWO.into())).build()?;
        for inputs in ["good".to_owned(), "x".repeat(900_000)] {
            let sent = other.post(server.url(path)).json(&json!({ "inputs": inputs })).send();
            let response = tokio::time::timeout(PATIENCE, sent).await.context("no answer")??;
            ensure!(response.status() != 503 && response.status() != 429, "{}", response.text().await?);
        }
        drop(open);
        until("the requests are closed", || async { Ok(server.metric("weir_http_requests_open").await? == 0.0) })
            .await?;
    }
    assert_eq!(server.metric("weir_gateway_instances_lost_total").await?, 0.0);
    assert_eq!(server.metric("weir_keeper_lost_total").await?, 0.0);
    Ok(())
}

/// The numbers of bodies are those that exceeded the memory of an instance before bodies waited for memory.
#[tokio::test(flavor = "multi_thread")]
async fn unfinished_bodies_of_hundreds_of_mebibytes_fit_the_memory_formula() -> Result<()> {
    const MIB: u64 = 1 << 20;
    const REQUESTS_MAX: u64 = 700;
    const INSTANCE_BYTES_MAX: u64 = 256 * MIB;
    const CONNECTION_BYTES_MAX: u64 = 400 << 10;
    let set = |key: &str, value: u64| ["--set".to_owned(), format!("{key}={value}")];
    let settings = [
        set("http.client_share_percent", 95),
        set("http.requests_max", REQUESTS_MAX),
        set("http.connections_max", REQUESTS_MAX),
        set("gateway.instance_requests_max", REQUESTS_MAX),
        set("gateway.memory_bytes_max", INSTANCE_BYTES_MAX),
        set("gateway.keeper_memory_bytes_max", INSTANCE_BYTES_MAX),
    ]
    .concat();
    let server = Server::start_stub(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let models_bytes = server.resident_bytes()?;
    // One stateless and the stateful instance, and the buffers of the connections.
    let formula = models_bytes + 2 * INSTANCE_BYTES_MAX + REQUESTS_MAX * CONNECTION_BYTES_MAX;
    for (path, bodies) in [("/v1/classify", 120), ("/sessions", 520)] {
        let open = try_join_all((0..bodies).map(|_| open_unfinished(&server, ONE, path, 1 << 20))).await?;
        let other = Client::builder().local_address(Some(TWO.into())).build()?;
        let sent = other.post(server.url(path)).json(&json!({"inputs": "good"})).send();
        let response = tokio::time::timeout(PATIENCE, sent).await.context("no answer")??;
        ensure!(response.status() != 503 && response.status() != 429, "{}", response.text().await?);
        let resident = server.resident_bytes()?;
        ensure!(resident <= formula, "{bodies} bodies at {path}: {resident} bytes resident, {formula} at most");
        drop(open);
        until("the requests are closed", || async { Ok(server.metric("weir_http_requests_open").await? == 0.0) })
            .await?;
    }
    assert_eq!(server.metric("weir_gateway_instances_lost_total").await?, 0.0);
    assert_eq!(server.metric("weir_keeper_lost_total").await?, 0.0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn instance_count_follows_the_memory_formula() -> Result<()> {
    for (requests_max, instance_requests_max) in [(128, 128), (128, 32)] {
        let server = Server::start_stub(&[
            "--set",
            &format!("http.requests_max={requests_max}"),
            "--set",
            "http.client_share_percent=100",
            "--set",
            &format!("gateway.instance_requests_max={instance_requests_max}"),
        ])
        .await?;
        let client = Client::new();
        let all =
            (0..requests_max).map(|_| client.post(server.url("/v1/classify")).json(&json!({"inputs": "good"})).send());
        for response in try_join_all(all).await? {
            assert_eq!(response.status(), 200);
        }
        let instances = server.metric("weir_gateway_instances_total").await?;
        let formula = f64::from(requests_max) / f64::from(instance_requests_max);
        ensure!(instances >= 1.0 && instances <= formula, "{instances} instances; {formula} at most");
    }
    Ok(())
}

/// Opens an NDJSON stream that stays open; the head of the response, and the connection.
async fn open_stream(server: &Server, from: Ipv4Addr) -> Result<(String, TcpStream)> {
    let mut stream = connect(server, from).await?;
    let head = format!(
        "POST /v1/classify HTTP/1.1\r\nHost: {}\r\nContent-Type: application/x-ndjson\r\nTransfer-Encoding: chunked\r\n\r\n",
        server.address()
    );
    stream.write_all(head.as_bytes()).await?;
    let mut response = Vec::new();
    while !response.windows(4).any(|window| window == b"\r\n\r\n") {
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut response)).await.context("no answer")??;
        ensure!(read > 0, "closed");
    }
    Ok((String::from_utf8_lossy(&response).into_owned(), stream))
}

#[tokio::test]
async fn client_over_its_share_of_permits_is_refused_and_another_is_served() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.requests_max=4"]).await?;
    let first = [open_stream(&server, ONE).await?, open_stream(&server, ONE).await?];
    let (refused, _) = open_stream(&server, ONE).await?;
    ensure!(refused.starts_with("HTTP/1.1 429") && refused.contains("retry-after: 1"), "{refused}");
    // The same over HTTP/2, where requests share a connection.
    let mut send = http2(&server, ONE, 65_535).await?;
    let (status, _) = send_request(&mut send, post_head(&server, "/v1/classify", "application/json")?, GOOD).await?;
    assert_eq!(status, 429);
    let (served, _stream) = open_stream(&server, TWO).await?;
    ensure!(served.starts_with("HTTP/1.1 200"), "{served}");
    drop(first);
    until("another stream is accepted", || async { Ok(open_stream(&server, ONE).await?.0.starts_with("HTTP/1.1 200")) })
        .await
}

#[tokio::test]
async fn client_over_its_share_of_connections_is_closed_and_another_is_served() -> Result<()> {
    let server = Server::launch_stub(&["--set", "http.connections_max=8"])?;
    let probe = Client::builder().local_address(Some(TWO.into())).pool_max_idle_per_host(0).build()?;
    let get = || probe.get(server.url("/livez")).send();
    until("ready", || async { Ok(get().await.is_ok_and(|response| response.status() == 200)) }).await?;
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(open_stream(&server, ONE).await?);
    }
    let mut refused = connect(&server, ONE).await?;
    let mut rest = Vec::new();
    // The write may fail, as the server closes the connection without reading.
    let _ = refused.write_all(b"GET /livez HTTP/1.1\r\nHost: weir\r\n\r\n").await;
    let read = tokio::time::timeout(PATIENCE, refused.read_to_end(&mut rest)).await.context("still open")?;
    ensure!(read.is_err() || rest.is_empty(), "{}", String::from_utf8_lossy(&rest));
    assert_eq!(get().await?.status(), 200);
    Ok(())
}

/// Routes that read lines, each with its media type.
fn line_routes(chunks: &str) -> [(&str, &str); 5] {
    [
        ("/v1/classify", "application/x-ndjson"),
        ("/v1/transcript", "application/x-ndjson"),
        ("/v1/annotate", "application/x-ndjson"),
        ("/v1/annotate", "text/plain"),
        (chunks, "application/x-ndjson"),
    ]
}

/// A part of the last line of the response to an idle stream.
const IDLE: &str = "nothing arrived for 1000 ms";
const BLANK: &[u8] = b" \r\n";
const BLANK_EVERY: Duration = Duration::from_millis(50);

#[tokio::test]
async fn http2_stream_of_blank_lines_is_idle() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=1000"]).await?;
    let chunks = new_chunks_path(&server).await?;
    for (path, content_type) in line_routes(&chunks) {
        let mut send = http2(&server, ONE, 65_535).await?;
        let (response, mut lines) = send.send_request(post_head(&server, path, content_type)?, false)?;
        let blank = tokio::spawn(async move {
            while lines.send_data(Bytes::from_static(BLANK), false).is_ok() {
                tokio::time::sleep(BLANK_EVERY).await;
            }
        });
        let response = tokio::time::timeout(PATIENCE, response).await.context("no head")??;
        assert_eq!(response.status(), 200, "{path}");
        let mut body = response.into_body();
        let mut all = Vec::new();
        let reading = async {
            while let Some(Ok(data)) = body.data().await {
                all.extend_from_slice(&data);
            }
        };
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        blank.abort();
        ensure!(ended.is_ok(), "{path} as {content_type} is still open");
        ensure!(String::from_utf8_lossy(&all).contains(IDLE), "{path}: {}", String::from_utf8_lossy(&all));
    }
    Ok(())
}

#[tokio::test]
async fn http1_stream_of_blank_lines_is_idle() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=1000"]).await?;
    let chunks = new_chunks_path(&server).await?;
    for (path, content_type) in line_routes(&chunks) {
        let (mut read, mut write) = connect(&server, ONE).await?.into_split();
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {content_type}\r\n",
            server.address()
        );
        write.write_all(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await?;
        let blank = tokio::spawn(async move {
            while write.write_all(b"3\r\n \r\n\r\n").await.is_ok() {
                tokio::time::sleep(BLANK_EVERY).await;
            }
        });
        let mut all = Vec::new();
        let reading = async {
            // A connection that is reset is an end, too.
            while read.read_buf(&mut all).await.is_ok_and(|count| count > 0) {}
        };
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        blank.abort();
        let all = String::from_utf8_lossy(&all);
        ensure!(ended.is_ok(), "{path} as {content_type} is still open: {all}");
        ensure!(all.starts_with("HTTP/1.1 200") && all.contains(IDLE), "{path}: {all}");
    }
    Ok(())
}

#[tokio::test]
async fn websocket_with_blank_messages_is_idle() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=1000"]).await?;
    for blank in ["", " ", " \r\n \t"] {
        let chunks = new_chunks_path(&server).await?;
        let path = chunks.replace("/sessions/", "/ws/session/").replace("/chunks", "");
        let WebSocket { mut reader, mut writer } = WebSocket::connect(&server, &path, None).await?;
        let sender = tokio::spawn(async move {
            while writer.send(blank).await.is_ok() {
                tokio::time::sleep(BLANK_EVERY).await;
            }
        });
        let mut messages = String::new();
        let reading = async {
            while let Frame::Text(text) = reader.next().await? {
                messages.push_str(&text);
            }
            anyhow::Ok(())
        };
        let ended = tokio::time::timeout(PATIENCE, reading).await;
        sender.abort();
        ended.with_context(|| format!("{blank:?}: still open: {messages}"))??;
        ensure!(messages.contains(IDLE), "{blank:?}: {messages}");
    }
    Ok(())
}
