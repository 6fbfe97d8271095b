//! Malformed and hostile requests over HTTP/2: the checks of HTTP/1.1 hold there too. Frames are written by hand, since clients refuse to
//! send most of these requests.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use weir_tests::{PATIENCE, Server, until};

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// The response to a request, or its refusal by the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Status(u16),
    /// `RST_STREAM` with this code.
    Reset(u32),
    /// `GOAWAY` with this code.
    GoAway(u32),
    Closed,
}

impl Answer {
    /// Whether the request was refused, by a status of the client's errors or by the protocol.
    fn is_refusal(self) -> bool {
        matches!(self, Self::Status(400..=499 | 501) | Self::Reset(_) | Self::GoAway(_))
    }
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = payload.len().to_be_bytes();
    [&length[5..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A field as a literal without indexing and without Huffman coding (RFC 7541, section 6.2.2).
fn field((name, value): (&str, &str)) -> Vec<u8> {
    let text = |text: &str| {
        let mut bytes = Vec::new();
        // An integer with a prefix of 7 bits (section 5.1).
        match text.len() {
            short @ ..127 => bytes.push(short as u8),
            long => {
                bytes.push(127);
                let mut rest = long - 127;
                while rest >= 128 {
                    bytes.push((rest % 128 + 128) as u8);
                    rest /= 128;
                }
                bytes.push(rest as u8);
            }
        }
        bytes.extend_from_slice(text.as_bytes());
        bytes
    };
    [vec![0], text(name), text(value)].concat()
}

/// The status at the beginning of a header block, if it is the first of its connection.
fn status(block: &[u8]) -> Result<u16> {
    // Updates of the size of the dynamic table come before the first field.
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20).context("an empty block")?;
    const INDEXED: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    match block[at..] {
        [indexed @ 0x88..=0x8e, ..] => Ok(INDEXED[usize::from(indexed - 0x88)]),
        // A value with the indexed name `:status`, as text or with the Huffman codes of digits.
        [0x48 | 0x08, length, ref value @ ..] => {
            let bytes = value.get(..usize::from(length & 0x7f)).context("a short block")?;
            if length & 0x80 == 0 {
                return Ok(std::str::from_utf8(bytes)?.parse()?);
            }
            let bits: Vec<u32> =
                bytes.iter().flat_map(|byte| (0..8).rev().map(move |bit| u32::from(byte >> bit & 1))).collect();
            let (mut status, mut bits) = (0, bits.as_slice());
            for _ in 0..3 {
                let code = |count: usize| bits.get(..count).map(|bits| bits.iter().fold(0, |code, bit| code * 2 + bit));
                // `0` to `2` have codes of 5 bits, the other digits of 6 bits from 0b011001 on.
                let (digit, count) = match code(5).context("a short status")? {
                    digit @ 0..=2 => (digit, 5),
                    _ => (code(6).context("a short status")?.checked_sub(0b01_1001).context("no digit")? + 3, 6),
                };
                (status, bits) = (status * 10 + digit, &bits[count..]);
            }
            Ok(u16::try_from(status)?)
        }
        _ => bail!("no status in {block:02x?}"),
    }
}

/// A connection on which frames are written by hand.
struct Connection(TcpStream);

impl Connection {
    async fn open(server: &Server) -> Result<Self> {
        let mut stream = TcpStream::connect(server.address()).await?;
        stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await?;
        stream.write_all(&frame(SETTINGS, 0, 0, &[])).await?;
        Ok(Self(stream))
    }

    /// Sends a request on stream 1 and reads to the first frame that answers it. The body is sent after the header with the end of the
    /// stream; none ends the stream with the header.
    async fn request(&mut self, fields: &[(&str, &str)], body: Option<&[u8]>) -> Result<Answer> {
        let block: Vec<u8> = fields.iter().flat_map(|pair| field(*pair)).collect();
        let end = if body.is_none() { END_STREAM } else { 0 };
        let mut parts = block.chunks(16_000);
        let first = parts.next().unwrap_or_default();
        let rest: Vec<_> = parts.collect();
        let flags = if rest.is_empty() { END_HEADERS | end } else { end };
        let mut bytes = frame(HEADERS, flags, 1, first);
        for (index, part) in rest.iter().enumerate() {
            let flags = if index + 1 == rest.len() { END_HEADERS } else { 0 };
            bytes.extend(frame(CONTINUATION, flags, 1, part));
        }
        if let Some(body) = body {
            bytes.extend(frame(DATA, END_STREAM, 1, body));
        }
        // The server may close the connection before it has read all.
        let _ = self.0.write_all(&bytes).await;
        tokio::time::timeout(PATIENCE, self.answer()).await.context("no answer")?
    }

    async fn answer(&mut self) -> Result<Answer> {
        loop {
            let mut head = [0; 9];
            if self.0.read_exact(&mut head).await.is_err() {
                return Ok(Answer::Closed);
            }
            let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
            let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
            let mut payload = vec![0; length];
            if self.0.read_exact(&mut payload).await.is_err() {
                return Ok(Answer::Closed);
            }
            let code =
                |at: usize| payload.get(at..at + 4).and_then(|code| Some(u32::from_be_bytes(code.try_into().ok()?)));
            match (head[3], stream) {
                (HEADERS, 1) => return status(&payload).map(Answer::Status),
                (RESET, 1) => return code(0).map(Answer::Reset).context("a code"),
                (GOAWAY, _) => return code(4).map(Answer::GoAway).context("a code"),
                _ => {}
            }
        }
    }
}

async fn answer(server: &Server, fields: &[(&str, &str)], body: Option<&[u8]>) -> Result<Answer> {
    Connection::open(server).await?.request(fields, body).await
}

/// The fields of a request to a path, with further ones.
fn get<'a>(path: &'a str, more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
    let head = [(":method", "GET"), (":scheme", "http"), (":authority", "localhost"), (":path", path)];
    head.into_iter().chain(more.iter().copied()).collect()
}

#[tokio::test]
async fn http2_request_is_answered_or_refused_by_its_header() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let base = [(":method", "GET"), (":scheme", "http"), (":path", "/livez")];
    let with = |more: &[(&'static str, &'static str)]| base.iter().chain(more).copied().collect::<Vec<_>>();
    let served = [
        get("/livez", &[]),
        // The host may be a header, and may be both.
        with(&[("host", "localhost")]),
        get("/livez", &[("host", "localhost")]),
        get("/%6civez", &[]),
        get("/livez?a=%20", &[]),
        get("/livez", &[("te", "trailers")]),
        get("/livez", &[("accept", "*/*;q=.8")]),
        get("/livez", &[("cookie", "a=1"), ("cookie", "b=2")]),
    ];
    for fields in served {
        assert_eq!(answer(&server, &fields, None).await?, Answer::Status(200), "{fields:?}");
    }
    let long = "x".repeat(100_000);
    let refused = [
        // Hosts: none, two, different ones, and names that this server does not have.
        base.to_vec(),
        with(&[(":authority", "localhost"), (":authority", "localhost")]),
        with(&[(":authority", "localhost"), (":authority", "evil.example")]),
        get("/livez", &[("host", "evil.example")]),
        get("/livez", &[("host", "localhost"), ("host", "localhost")]),
        with(&[("host", "localhost"), ("host", "evil.example")]),
        with(&[(":authority", "evil.example")]),
        with(&[("host", "evil.example")]),
        with(&[(":authority", "user@localhost")]),
        with(&[(":authority", "localhost/x")]),
        with(&[(":authority", "a b")]),
        with(&[(":authority", "")]),
        // Paths.
        get("/a%zz", &[]),
        get("/%ff", &[]),
        get("/livez?a=%", &[]),
        get("", &[]),
        get("livez", &[]),
        get("*", &[]),
        get("/nowhere", &[]),
        get("/livez /x", &[]),
        // Pseudo-headers (RFC 9113, section 8.3): missing, twice, unknown, of responses, and after others.
        vec![(":scheme", "http"), (":authority", "localhost"), (":path", "/livez")],
        vec![(":method", "GET"), (":authority", "localhost"), (":path", "/livez")],
        vec![(":method", "GET"), (":scheme", "http"), (":authority", "localhost")],
        get("/livez", &[(":path", "/livez")]),
        get("/livez", &[(":method", "GET")]),
        get("/livez", &[(":unknown", "x")]),
        get("/livez", &[(":status", "200")]),
        get("/livez", &[(":protocol", "websocket")]),
        vec![
            ("accept", "*/*"),
            (":method", "GET"),
            (":scheme", "http"),
            (":authority", "localhost"),
            (":path", "/livez"),
        ],
        get("/livez", &[("accept", "*/*"), (":path", "/livez")]),
        vec![(":method", "G ET"), (":scheme", "http"), (":authority", "localhost"), (":path", "/livez")],
        vec![(":method", "CONNECT"), (":authority", "localhost:80")],
        // Header fields: of connections, in upper case, and with characters that they may not have (sections 8.2.1 and 8.2.2).
        get("/livez", &[("connection", "close")]),
        get("/livez", &[("keep-alive", "5")]),
        get("/livez", &[("proxy-connection", "close")]),
        get("/livez", &[("transfer-encoding", "chunked")]),
        get("/livez", &[("upgrade", "websocket")]),
        get("/livez", &[("te", "gzip")]),
        get("/livez", &[("te", "trailers, deflate")]),
        get("/livez", &[("Accept", "*/*")]),
        get("/livez", &[("x y", "a")]),
        get("/livez", &[("", "a")]),
        get("/livez", &[("x", "a\r\nb: c")]),
        get("/livez", &[("x", "a\0b")]),
        get("/livez", &[("content-length", "x")]),
        get("/livez", &[("x", &long)]),
    ];
    for fields in refused {
        let answer = answer(&server, &fields, None).await?;
        let shown: String = format!("{fields:?}").chars().take(200).collect();
        assert!(answer.is_refusal(), "{answer:?} to {shown}");
    }
    // A header that is longer than the connection takes ends it; one that is longer than a request may have is answered.
    let long = answer(&server, &get("/v1/models", &[("x", &long[..17_000])]), None).await?;
    assert_eq!(long, Answer::Status(431));
    assert_eq!(answer(&server, &get("/livez", &[]), None).await?, Answer::Status(200));
    Ok(())
}

#[tokio::test]
async fn http2_body_that_is_not_as_long_as_its_header_says_is_refused() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    const GOOD: &[u8] = br#"{"inputs":"good"}"#;
    let post = |length: &'static str| {
        let head = [(":method", "POST"), (":scheme", "http"), (":authority", "localhost"), (":path", "/v1/classify")];
        let more = [("content-type", "application/json"), ("content-length", length)];
        head.into_iter().chain(more).collect::<Vec<_>>()
    };
    assert_eq!(answer(&server, &post("17"), Some(GOOD)).await?, Answer::Status(200));
    for length in ["16", "18", "0", "1000000", "-1", "17, 17", "99999999999999999999"] {
        let answer = answer(&server, &post(length), Some(GOOD)).await?;
        assert!(answer.is_refusal(), "{length}: {answer:?}");
    }
    // The client ends its body by a reset: its stream ends, and the connection serves the next.
    let mut connection = Connection::open(&server).await?;
    let block: Vec<u8> = post("17").into_iter().flat_map(field).collect();
    let mut bytes = frame(HEADERS, END_HEADERS, 1, &block);
    bytes.extend(frame(DATA, 0, 1, &GOOD[..5]));
    bytes.extend(frame(RESET, 0, 1, &8_u32.to_be_bytes()));
    connection.0.write_all(&bytes).await?;
    let mut next = frame(
        HEADERS,
        END_HEADERS | END_STREAM,
        3,
        &get("/livez", &[]).into_iter().flat_map(field).collect::<Vec<_>>(),
    );
    next.extend(frame(SETTINGS, 1, 0, &[]));
    connection.0.write_all(&next).await?;
    let served = async {
        loop {
            let mut head = [0; 9];
            connection.0.read_exact(&mut head).await?;
            let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
            connection.0.read_exact(&mut payload).await?;
            if (head[3], head[8]) == (HEADERS, 3) {
                return status(&payload);
            }
        }
    };
    assert_eq!(tokio::time::timeout(PATIENCE, served).await.context("no answer")??, 200);
    until("the request has ended", || async { Ok(server.metric("weir_http_requests_open").await? == 0.0) }).await
}

async fn exchange(send: &mut SendRequest<Bytes>, request: Request<()>, body: &str) -> Result<(StatusCode, HeaderMap)> {
    let (response, mut stream) = send.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        // A response may come before the end of the body.
        let _ = stream.send_data(Bytes::copy_from_slice(body.as_bytes()), true);
    }
    let response = tokio::time::timeout(PATIENCE, response).await.context("no head")??;
    Ok((response.status(), response.headers().clone()))
}

const ORIGIN: &str = "https://app.example";

/// A server that allows the origin, and a connection to it.
async fn start_for_pages(setting: &str) -> Result<(Server, SendRequest<Bytes>)> {
    let origins = format!("auth.cors_origins=[\"{ORIGIN}\"]");
    let server = Server::start_stub(&["--set", &origins, "--set", setting]).await?;
    let stream = TcpStream::connect(server.address()).await?;
    let (send, connection) = h2::client::Builder::new().handshake::<_, Bytes>(stream).await?;
    tokio::spawn(async move { connection.await.ok() });
    Ok((server, send.ready().await?))
}

/// The head of a request of a page.
fn from_page(server: &Server, method: Method, path: &str) -> Result<Request<()>> {
    let request = Request::builder().method(method).uri(server.url(path)).header("origin", ORIGIN);
    Ok(request.header("content-type", "application/json").body(())?)
}

fn check_readable(what: &str, (status, headers): (StatusCode, HeaderMap), wanted: u16) -> Result<()> {
    ensure!(status == wanted, "{what}: {status}, not {wanted}");
    let allowed = headers.get("access-control-allow-origin").map(|value| value.as_bytes());
    ensure!(allowed == Some(ORIGIN.as_bytes()), "{what}: {headers:?}");
    Ok(())
}

#[tokio::test]
async fn http2_errors_have_cors_headers() -> Result<()> {
    let (server, mut send) = start_for_pages("http.body_bytes_max=1000").await?;
    let large = format!("{{\"inputs\":\"{}\"}}", "x".repeat(2000));
    for (method, path, body, wanted) in [
        (Method::GET, "/nowhere", "", 404),
        (Method::GET, "/a%zz", "", 400),
        (Method::PUT, "/v1/classify", "", 405),
        (Method::POST, "/v1/classify", "{", 400),
        (Method::POST, "/v1/classify", "{\"inputs\":1}", 422),
        (Method::POST, "/v1/classify", large.as_str(), 413),
        (Method::POST, "/sessions?unknown=1", "{}", 422),
    ] {
        let response = exchange(&mut send, from_page(&server, method, path)?, body).await?;
        check_readable(path, response, wanted)?;
    }
    Ok(())
}

#[tokio::test]
async fn page_can_read_overload_over_http2_and_preflights_succeed() -> Result<()> {
    let (server, mut send) = start_for_pages("http.requests_max=1").await?;
    let body = r#"{"text":"this one is !never answered","include_summary":false}"#;
    let request = from_page(&server, Method::POST, "/process-stream")?;
    let (response, mut stream) = send.send_request(request, false)?;
    stream.send_data(Bytes::from_static(body.as_bytes()), true)?;
    let mut occupying = tokio::time::timeout(PATIENCE, response).await.context("no head")??.into_body();
    let mut events = Vec::new();
    while !String::from_utf8_lossy(&events).contains("sentiment_processing") {
        let data = tokio::time::timeout(PATIENCE, occupying.data()).await.context("no event")?;
        events.extend_from_slice(&data.context("the stream has ended")??);
    }
    let response = exchange(&mut send, from_page(&server, Method::GET, "/v1/models")?, "").await?;
    check_readable("a full server", response, 503)?;
    let preflight = Request::options(server.url("/v1/classify"));
    let preflight = preflight.header("origin", ORIGIN).header("access-control-request-method", "POST").body(())?;
    let response = exchange(&mut send, preflight, "").await?;
    check_readable("a preflight", response, 204)
}
