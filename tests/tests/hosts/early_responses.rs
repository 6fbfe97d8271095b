//! Responses that are complete before the body of the request: the client reads the whole response, however much it still sends.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use futures::future::try_join_all;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_tests::auth::{ANN, start_with_auth};
use weir_tests::{PATIENCE, Raw, Server, until};

/// A request with a body that the server does not need for its response.
struct Case {
    /// The method, the path and the headers, without the length.
    head: &'static str,
    /// The size of the body in bytes.
    size: usize,
    status: &'static str,
}

const fn case(head: &'static str, size: usize, status: &'static str) -> Case {
    Case { head, size, status }
}

const JSON: &str = "POST /process-stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n";
const NOWHERE: &str = "POST /nowhere HTTP/1.1\r\nHost: localhost\r\n";
const WEBSOCKET: &str = "GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n";

/// Refusals of the edge, of a stateless gateway instance and of the stateful one.
const CASES: [Case; 17] = [
    case(JSON, 2 << 20, "413"),
    case(JSON, 8 << 20, "413"),
    case("POST /v1/transcript HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/srt\r\n", 2 << 20, "413"),
    case(NOWHERE, 1, "404"),
    case(NOWHERE, 100 << 10, "404"),
    case(NOWHERE, 4 << 20, "404"),
    case("PUT /process-stream HTTP/1.1\r\nHost: localhost\r\n", 300 << 10, "405"),
    case("POST /metrics HTTP/1.1\r\nHost: localhost\r\n", 2 << 20, "405"),
    case("POST /process-stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n", 900 << 10, "415"),
    case("POST /process-stream HTTP/1.1\r\nHost: evil.example\r\n", 2 << 20, "403"),
    case("POST /process-stream HTTP/1.1\r\n", 2 << 20, "400"),
    case("POST /pipelines/none/execute HTTP/1.1\r\nHost: localhost\r\nContent-Type: text/plain\r\n", 2 << 20, ""),
    case("POST /sessions/s HTTP/1.1\r\nHost: localhost\r\n", 2 << 20, "405"),
    case("POST /sessions/no%20id/chunks HTTP/1.1\r\nHost: localhost\r\n", 2 << 20, ""),
    case(WEBSOCKET, 2 << 20, "400"),
    case("POST /process-stream HTTP/1.1\r\nHost: localhost\r\nbad header\r\n", 2 << 20, "400"),
    case("POST /livez HTTP/1.1\r\nHost: localhost\r\n", 2 << 20, "405"),
];

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Pace {
    Fast,
    Slow,
}

/// The head and the body of a response.
struct RawResponse {
    head: String,
    body: String,
}

impl RawResponse {
    fn status(&self) -> &str {
        self.head.split(' ').nth(1).unwrap_or_default()
    }

    fn has(&self, header: &str) -> bool {
        self.head.to_ascii_lowercase().split("\r\n").any(|line| line == header)
    }
}

/// Sends a whole request before reading anything, and reads the response.
async fn exchange(address: &str, head: &str, size: usize, pace: Pace, chunked: bool) -> Result<RawResponse> {
    let mut stream = TcpStream::connect(address).await?;
    let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {size}") };
    stream.write_all(format!("{head}{framing}\r\n\r\n").as_bytes()).await.context("the head")?;
    let piece_bytes = match pace {
        Pace::Fast => 64 << 10,
        Pace::Slow => (size / 24).max(1),
    };
    let body = vec![b'1'; size];
    for piece in body.chunks(piece_bytes) {
        if pace == Pace::Slow {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let size = if chunked { format!("{:x}\r\n", piece.len()) } else { String::new() };
        let end = if chunked { "\r\n" } else { "" };
        stream.write_all(&[size.as_bytes(), piece, end.as_bytes()].concat()).await.context("the body")?;
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n").await.context("the end of the body")?;
    }
    let response = read_response(&mut stream).await?;
    if response.has("connection: close") {
        let mut rest = Vec::new();
        tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.context("no end in time")??;
        ensure!(rest.is_empty(), "bytes after the response: {}", String::from_utf8_lossy(&rest));
    } else {
        // The connection is usable for another request.
        stream.write_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await.context("a second request")?;
        let next = read_response(&mut stream).await.context("a second response")?;
        ensure!(next.status() == "200", "the second response: {}", next.head);
    }
    Ok(response)
}

/// Reads a response; an error after [`PATIENCE`].
async fn read_response(stream: &mut TcpStream) -> Result<RawResponse> {
    tokio::time::timeout(PATIENCE, read_whole_response(stream)).await.context("no response in time")?
}

async fn read_whole_response(stream: &mut TcpStream) -> Result<RawResponse> {
    let mut read = Vec::new();
    let mut buffer = vec![0; 1 << 14];
    loop {
        if let Some(end) = read.windows(4).position(|window| window == b"\r\n\r\n") {
            let head = String::from_utf8(read[..end].to_vec())?;
            let lower = head.to_ascii_lowercase();
            let length: Option<usize> =
                lower.split("\r\n").find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            let body = &read[end + 4..];
            let is_complete = match length {
                Some(length) => body.len() == length,
                None => body.ends_with(b"0\r\n\r\n"),
            };
            if is_complete {
                return Ok(RawResponse { head, body: String::from_utf8(body.to_vec())? });
            }
        }
        match stream.read(&mut buffer).await.context("the response")? {
            0 => bail!("the connection ended within the response: {}", String::from_utf8_lossy(&read)),
            count => read.extend_from_slice(&buffer[..count]),
        }
    }
}

#[tokio::test]
async fn early_response_is_read_whole_by_a_client_that_sends_its_whole_body_first() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.hosts=[]"]).await?;
    for round in 0..10 {
        for pace in [Pace::Fast, Pace::Slow] {
            let exchanges = CASES.iter().map(|case| {
                let address = server.address();
                async move {
                    // A malformed head is refused before its framing is known.
                    let chunked = round % 3 == 2 && case.head != WEBSOCKET && !case.head.contains("bad header");
                    let response = exchange(address, case.head, case.size, pace, chunked)
                        .await
                        .with_context(|| format!("round {round}, {pace:?}, {} bytes: {}", case.size, case.head))?;
                    let about = format!("{} {} {}", case.head, response.head, response.body);
                    assert!(response.head.starts_with("HTTP/1.1 4"), "{about}");
                    assert!(case.status.is_empty() || response.status() == case.status, "{about}");
                    if !case.head.contains("bad header") {
                        assert!(response.body.contains("\"code\":"), "{about}");
                    }
                    anyhow::Ok(())
                }
            });
            try_join_all(exchanges).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn early_response_says_whether_its_connection_is_closed() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for _ in 0..20 {
        // A small body that has arrived is discarded, and the connection stays open for another request.
        let mut raw = Raw::connect(&server).await?;
        raw.send(format!("{NOWHERE}Content-Length: 5\r\n\r\nabcde").as_bytes()).await?;
        let response = raw.read_until("not_found").await?;
        assert!(!response.to_ascii_lowercase().contains("connection: close"), "{response}");
        raw.send(format!("{NOWHERE}Content-Length: 0\r\n\r\n").as_bytes()).await?;
        raw.read_until_nth("HTTP/1.1 404", 2).await?;
        // The server does not wait for a large body.
        let large = exchange(server.address(), NOWHERE, 1 << 20, Pace::Slow, false).await?;
        assert!(large.has("connection: close"), "{}", large.head);
        // A client that waits for `100 Continue` gets the final response instead.
        let mut expecting = Raw::connect(&server).await?;
        expecting.send(format!("{NOWHERE}Expect: 100-continue\r\nContent-Length: 5\r\n\r\n").as_bytes()).await?;
        let response = expecting.read_to_end().await?;
        assert!(response.starts_with("HTTP/1.1 404") && response.contains("connection: close"), "{response}");
    }
    Ok(())
}

#[tokio::test]
async fn early_response_of_a_full_or_guarded_server_is_read_whole() -> Result<()> {
    let full = Server::start_stub(&["--set", "http.requests_max=1"]).await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut occupying = Raw::post(&full, "/process-stream", &body).await?;
    occupying.read_until("sentiment_processing").await?;
    let dir = tempfile::tempdir()?;
    let few = ["--set", "auth.requests_per_s=1", "--set", "auth.requests_burst=1"];
    let authenticated = start_with_auth(dir.path(), &few).await?;
    let ann = format!("{JSON}Authorization: Bearer {ANN}\r\n");
    let address = authenticated.address();
    until("the rate of ann is used up", || {
        let ann = &ann;
        async move { Ok(exchange(address, ann, 2 << 20, Pace::Fast, false).await?.status() == "429") }
    })
    .await?;
    for pace in [Pace::Fast, Pace::Slow] {
        for _ in 0..10 {
            let (overloaded, anonymous, limited) = tokio::try_join!(
                exchange(full.address(), JSON, 2 << 20, pace, false),
                exchange(address, JSON, 2 << 20, pace, false),
                exchange(address, &ann, 2 << 20, pace, false),
            )?;
            assert_eq!((overloaded.status(), anonymous.status()), ("503", "401"));
            assert!(matches!(limited.status(), "429" | "413"), "{}", limited.head);
        }
    }
    Ok(())
}

#[tokio::test]
async fn early_response_of_a_draining_server_is_read_whole() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.drain_timeout_ms=20000"]).await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut occupying = Raw::post(&server, "/process-stream", &body).await?;
    occupying.read_until("sentiment_processing").await?;
    server.signal("TERM")?;
    until("draining", || async {
        Ok(exchange(server.address(), JSON, 2 << 20, Pace::Fast, false).await?.status() == "503")
    })
    .await?;
    for pace in [Pace::Fast, Pace::Slow] {
        for _ in 0..10 {
            let response = exchange(server.address(), JSON, 2 << 20, pace, false).await?;
            assert!(response.body.contains("\"draining\"") && response.has("connection: close"), "{}", response.head);
        }
    }
    Ok(())
}

#[tokio::test]
async fn body_that_stops_arriving_is_408_and_the_response_is_read() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=200"]).await?;
    for _ in 0..5 {
        let mut stream = TcpStream::connect(server.address()).await?;
        stream.write_all(format!("{JSON}Content-Length: 1000000\r\n\r\n").as_bytes()).await?;
        stream.write_all(&[b' '; 1000]).await?;
        let mut byte = [0];
        tokio::time::timeout(PATIENCE, stream.peek(&mut byte)).await.context("no response in time")??;
        // The rest is sent after the response has arrived and before the client reads it.
        stream.write_all(&vec![b' '; 999_000]).await?;
        let response = read_response(&mut stream).await?;
        assert_eq!(response.status(), "408");
        assert!(response.has("connection: close"), "{}", response.head);
    }
    Ok(())
}

#[tokio::test]
async fn client_that_sends_for_ever_is_disconnected() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.connections_max=8"]).await?;
    // Clients that send one byte at a time to keep their connection.
    let mut slow = Vec::new();
    for _ in 0..4 {
        let mut stream = TcpStream::connect(server.address()).await?;
        stream.write_all(format!("{NOWHERE}Content-Length: 100000000\r\n\r\n").as_bytes()).await?;
        slow.push(stream);
    }
    let began = std::time::Instant::now();
    let ends = slow.into_iter().map(|mut stream| async move {
        while stream.write_all(b"1").await.is_ok() {
            ensure!(began.elapsed() < Duration::from_secs(20), "the client is still connected");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        Ok(())
    });
    try_join_all(ends).await?;
    until("the connections are closed", || async { Ok(server.metric("weir_http_connections_open").await? <= 1.0) })
        .await?;
    // A client that sends as fast as possible is disconnected after a bounded number of bytes.
    let mut fast = TcpStream::connect(server.address()).await?;
    fast.write_all(format!("{NOWHERE}Content-Length: 100000000000\r\n\r\n").as_bytes()).await?;
    let (piece, mut sent) = (vec![b'1'; 1 << 20], 0_usize);
    while fast.write_all(&piece).await.is_ok() {
        sent += piece.len();
        ensure!(sent < 256 << 20, "the server reads the whole body");
    }
    Ok(())
}

#[tokio::test]
async fn early_responses_of_many_http2_streams_are_all_read() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for round in 0..10 {
        let stream = TcpStream::connect(server.address()).await?;
        let (mut sender, connection) = h2::client::handshake(stream).await?;
        let driving = tokio::spawn(connection);
        let mut streams = Vec::new();
        for number in 0..200 {
            sender = sender.ready().await?;
            let size = [1 << 10, 100 << 10, 2 << 20][number % 3];
            let request = http::Request::post(format!("http://{}/nowhere", server.address())).body(())?;
            let (response, mut body) = sender.send_request(request, false)?;
            streams.push(async move {
                // Sends as much as the flow control windows allow, also after the response.
                let mut rest = Bytes::from(vec![b'1'; size]);
                while !rest.is_empty() {
                    body.reserve_capacity(rest.len().min(16 << 10));
                    let Some(Ok(room)) = std::future::poll_fn(|cx| body.poll_capacity(cx)).await else { break };
                    if round % 2 == 1 {
                        tokio::task::yield_now().await;
                    }
                    if body.send_data(rest.split_to(room.min(rest.len())), rest.is_empty()).is_err() {
                        break;
                    }
                }
                let response = response.await.with_context(|| format!("stream {number}"))?;
                ensure!(response.status() == 404, "{}", response.status());
                let mut body = response.into_body();
                let mut received = Vec::new();
                while let Some(data) = body.data().await {
                    let data = data.with_context(|| format!("the body of stream {number}"))?;
                    let _ = body.flow_control().release_capacity(data.len());
                    received.extend_from_slice(&data);
                }
                ensure!(received.ends_with(b"}\n"), "{}", String::from_utf8_lossy(&received));
                Ok(())
            });
        }
        tokio::time::timeout(PATIENCE, try_join_all(streams)).await.context("no responses in time")??;
        drop(sender);
        driving.abort();
    }
    Ok(())
}

/// A frame of HTTP/2 (RFC 9113, section 4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Reads frames until one has at most this type, has this flag, and belongs to this stream; an error where the connection ends.
async fn read_frame(stream: &mut TcpStream, kind_max: u8, flag: u8, wanted: u32) -> Result<()> {
    const GOAWAY: u8 = 7;
    let reading = async {
        loop {
            let mut head = [0; 9];
            stream.read_exact(&mut head).await.context("a frame")?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            stream.read_exact(&mut payload).await.context("a payload")?;
            let (kind, flags) = (head[3], head[4]);
            ensure!(kind != GOAWAY, "the connection ends: {}", payload.escape_ascii());
            let id = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            if id == wanted && kind <= kind_max && flags & flag != 0 {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.context("no frame in time")?
}

#[tokio::test]
async fn data_of_completed_http2_streams_does_not_end_the_connection() -> Result<()> {
    let (data, headers, settings, ping) = (0, 1, 4, 6);
    let (end_headers, end_stream, ack) = (4, 1, 1);
    let server = Server::start_stub(&[]).await?;
    let mut stream = TcpStream::connect(server.address()).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
    stream.write_all(&frame(settings, 0, 0, &[])).await?;
    // `:scheme: http`, and `:path` and `:authority` as literals (RFC 7541).
    let post = b"\x83\x86\x04\x08/nowhere\x01\x09localhost";
    let get = b"\x82\x86\x04\x06/livez\x01\x09localhost";
    let streams: Vec<u32> = (0..200).map(|number| 2 * number + 1).collect();
    for id in &streams {
        stream.write_all(&frame(headers, end_headers, *id, post)).await?;
        read_frame(&mut stream, headers, end_stream, *id).await.context("a response")?;
    }
    // Data that a client with a long round trip sends before it receives the resets of its streams.
    for id in &streams {
        // After the reply to the ping the window of the connection is open again.
        let further = [frame(data, 0, *id, &[b'1'; 600]).repeat(16), frame(ping, 0, 0, &[0; 8])].concat();
        stream.write_all(&further).await.context("further data")?;
        read_frame(&mut stream, ping, ack, 0).await.with_context(|| format!("after the data of stream {id}"))?;
    }
    stream.write_all(&frame(headers, end_headers | end_stream, 401, get)).await?;
    read_frame(&mut stream, headers, end_stream, 401).await.context("another response")
}
