//! HTTP of real and of hostile clients: hosts, handshakes, paths, codings, negotiation, pages of other origins, idle connections, and the
//! log of these.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};
use weir_tests::{PATIENCE, Raw, Server, tool, until};

/// A path of each kind of route that accepts GET.
const PATHS: [&str; 10] = [
    "/",
    "/livez",
    "/readyz",
    "/metrics",
    "/v1/models",
    "/openapi.json",
    "/stream/health",
    "/stream/workflow/w",
    "/pipelines",
    "/nowhere",
];

/// Sends a request without changes; the head of the response.
async fn response_head(server: &Server, request: &str) -> Result<String> {
    let mut raw = Raw::connect(server).await?;
    raw.send(request.as_bytes()).await?;
    raw.read_until("\r\n\r\n").await
}

fn status(head: &str) -> &str {
    head.split(' ').nth(1).unwrap_or(head)
}

#[tokio::test]
async fn host_of_another_name_is_refused_on_every_route() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.hosts=[\"weir.internal\"]"]).await?;
    for path in PATHS {
        for host in ["evil.example", "evil.example:8080", "localhost.evil.example", "0.0.0.0"] {
            let head = response_head(&server, &format!("GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
            assert_eq!(status(&head), "403", "{path} {host}: {head}");
        }
        for host in ["localhost", "127.0.0.1:80", "[::1]", "a.localhost:1", "WEIR.internal:8080"] {
            let head = response_head(&server, &format!("HEAD {path} HTTP/1.1\r\nHost: {host}\r\n\r\n")).await?;
            assert_ne!(status(&head), "403", "{path} {host}: {head}");
            assert_ne!(status(&head), "400", "{path} {host}: {head}");
        }
    }
    let body = "{\"inputs\":\"good\"}";
    let head = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    let response =
        response_head(&server, &format!("POST /v1/classify HTTP/1.1\r\nHost: evil.example\r\n{head}")).await?;
    assert_eq!(status(&response), "403");
    // An absolute target names the host too, and has to agree with `Host`.
    for (target, host, want) in [
        ("http://evil.example/metrics", "Host: localhost\r\n", "400"),
        ("http://localhost/metrics", "Host: evil.example\r\n", "400"),
        ("http://evil.example/metrics", "Host: evil.example\r\n", "403"),
        ("http://localhost/metrics", "Host: localhost\r\n", "200"),
    ] {
        let response = response_head(&server, &format!("GET {target} HTTP/1.1\r\n{host}\r\n")).await?;
        assert_eq!(status(&response), want, "{target} {host}");
    }
    // HTTP/2 has the name in `:authority`, and possibly in `Host` too.
    let h2 = Client::builder().http2_prior_knowledge().build()?;
    let response = h2.get(server.url("/metrics")).send().await?;
    assert_eq!((response.status().as_u16(), response.version()), (200, reqwest::Version::HTTP_2));
    assert_eq!(h2.get(server.url("/metrics")).header("host", "evil.example").send().await?.status(), 400);
    let address = server.address().parse()?;
    let rebound = Client::builder().http2_prior_knowledge().resolve("evil.example", address).build()?;
    let port = server.address().rsplit_once(':').context("a port")?.1;
    for path in PATHS {
        assert_eq!(rebound.get(format!("http://evil.example:{port}{path}")).send().await?.status(), 403, "{path}");
    }
    // The operator gets one log line with the reason.
    let log_message = "`evil.example` is not a name of this server";
    until("in the log", || async { Ok(server.log().contains(log_message)) }).await?;
    assert_eq!(server.log().matches(log_message).count(), 1);
    Ok(())
}

#[tokio::test]
async fn missing_or_repeated_host_is_400() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for path in PATHS {
        for hosts in [
            "",
            "Host: localhost\r\nHost: localhost\r\n",
            "Host: localhost\r\nX: y\r\nhOST: evil.example\r\n",
            "Host: evil.example\r\nHost: localhost\r\n",
            "Host:\r\n",
            "Host: a b\r\n",
            "Host: localhost/\r\n",
            "Host: user@localhost\r\n",
            "Host: localhost:port\r\n",
        ] {
            let response = response_head(&server, &format!("GET {path} HTTP/1.1\r\n{hosts}\r\n")).await?;
            assert_eq!(status(&response), "400", "{path} {hosts:?}: {response}");
        }
    }
    // HTTP/1.0 has no `Host`.
    assert_eq!(status(&response_head(&server, "GET /livez HTTP/1.0\r\n\r\n").await?), "200");
    Ok(())
}

#[tokio::test]
async fn websocket_handshake_that_is_not_valid_is_refused() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    const GOOD: [(&str, &str); 5] = [
        ("Host", "localhost"),
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let response = |path: &'static str, version: &'static str, changed: Vec<(&'static str, Option<&'static str>)>| {
        let headers = GOOD.iter().map(|(name, value)| {
            let change = changed.iter().find(|(changed, _)| changed == name);
            (*name, change.map_or(Some(*value), |(_, value)| *value))
        });
        let more = changed.iter().copied().filter(|(name, _)| !GOOD.iter().any(|(good, _)| good == name));
        let lines: String =
            headers.chain(more).filter_map(|(name, value)| value.map(|value| format!("{name}: {value}\r\n"))).collect();
        let server = &server;
        async move { response_head(server, &format!("GET {path} HTTP/{version}\r\n{lines}\r\n")).await }
    };
    for path in ["/ws", "/ws/workflow/w", "/ws/session/s", "/%77s"] {
        for key in
            ["x", "", "dGhlIHNhbXBsZSBub25jZQ", "AAAA", "dGhlIHNhbXBsZSBub25jZQ==, x", "!GhlIHNhbXBsZSBub25jZQ=="]
        {
            let head = response(path, "1.1", vec![("Sec-WebSocket-Key", Some(key))]).await?;
            assert_eq!(status(&head), "400", "{path} {key}: {head}");
        }
    }
    for (changed, want) in [
        (vec![], "101"),
        (vec![("Connection", Some("keep-alive, upgrade"))], "101"),
        (vec![("Sec-WebSocket-Key", None)], "400"),
        (vec![("sec-websocket-key", Some("AAAAAAAAAAAAAAAAAAAAAA=="))], "400"),
        (vec![("Connection", None)], "400"),
        (vec![("Connection", Some("close"))], "400"),
        (vec![("Upgrade", None)], "400"),
        (vec![("Upgrade", Some("h2c"))], "400"),
        (vec![("Sec-WebSocket-Version", None)], "400"),
        (vec![("Sec-WebSocket-Version", Some("8"))], "426"),
        (vec![("Host", None)], "400"),
        (vec![("Host", Some("evil.example"))], "403"),
        (vec![("Content-Length", Some("3"))], "400"),
        (vec![("Upgrade", None), ("Sec-WebSocket-Key", None)], "426"),
    ] {
        let head = response("/ws", "1.1", changed.clone()).await?;
        assert_eq!(status(&head), want, "{changed:?}: {head}");
    }
    assert_eq!(status(&response("/ws", "1.0", vec![]).await?), "400");
    Ok(())
}

#[tokio::test]
async fn accept_of_real_clients_is_understood_on_every_route() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let texts = json!({"text": "a good text that is long enough", "include_summary": false});
    let posts = [
        ("/process-stream", texts.clone()),
        ("/process-batch", texts),
        ("/v1/classify", json!({"inputs": "good"})),
        ("/v1/annotate", json!({"inputs": "good"})),
        ("/v1/transcript", json!({"op": "end"})),
        ("/models/sentiment", json!({"inputs": "good"})),
        ("/predict", json!({"inputs": "good"})),
    ];
    let accepts: [&[&str]; 9] = [
        &["text/html, image/gif, image/jpeg, *; q=.2, */*; q=.2"],
        &["*/*;q=.8"],
        &["*"],
        &[" */* ; q = 0.5 "],
        &["*/*;q=\"0.5\""],
        &["text/plain;a=\"x,y;q=0\", */*"],
        &["text/html", "application/xhtml+xml", "*/*;q=0.1"],
        &[""],
        &[],
    ];
    let client = Client::new();
    for accept in accepts {
        let with = |mut request: reqwest::RequestBuilder| {
            for value in accept {
                request = request.header("accept", *value);
            }
            request
        };
        for (path, body) in &posts {
            let response = with(client.post(server.url(path)).json(body)).send().await?;
            let status = response.status();
            ensure!(status == 200, "{path} {accept:?}: {status} {}", response.text().await?);
        }
        for path in
            ["/", "/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/stream/health", "/pipelines"]
        {
            assert_eq!(with(client.get(server.url(path))).send().await?.status(), 200, "{path} {accept:?}");
        }
        assert_eq!(with(client.head(server.url("/stream/workflow/w"))).send().await?.status(), 200, "{accept:?}");
    }
    // Ranges that exclude every media type are refused.
    for accept in ["*/*;q=0", "image/png", "*;q=.0"] {
        let request = client.post(server.url("/process-batch")).header("accept", accept);
        assert_eq!(request.json(&posts[1].1).send().await?.status(), 406, "{accept}");
    }
    Ok(())
}

const PAGE: &str = "https://app.example";
const PAGES: &str = "auth.cors_origins=[\"https://app.example\"]";

/// A request of a page of the allowed origin.
fn from_page(server: &Server, method: Method, path: &str) -> RequestBuilder {
    Client::new().request(method, server.url(path)).header("origin", PAGE)
}

/// Checks that the page can read the response, and its status.
async fn check_readable(request: RequestBuilder, want: u16) -> Result<()> {
    let response = request.send().await?;
    let head = format!("{} {} {:?}", response.url(), response.status(), response.headers());
    ensure!(response.status() == want, "{want}: {head}");
    let all = |name: &str| -> Vec<String> {
        let values = response.headers().get_all(name).iter();
        values.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned()).collect()
    };
    ensure!(all("access-control-allow-origin") == [PAGE], "{head}");
    ensure!(all("access-control-expose-headers").concat().contains("retry-after"), "{head}");
    ensure!(all("vary").iter().filter(|vary| vary.contains("origin")).count() == 1, "{head}");
    Ok(())
}

/// Checks the responses to CORS preflights of the page.
async fn check_preflights(server: &Server) -> Result<()> {
    for (path, allow) in [
        ("/v1/classify", "POST, OPTIONS"),
        ("/metrics", "GET, HEAD, OPTIONS"),
        ("/livez", "GET, HEAD, OPTIONS"),
        ("/sessions/s/chunks", "POST, OPTIONS"),
        ("/pipelines/p", "GET, HEAD, POST, OPTIONS"),
    ] {
        let request = from_page(server, Method::OPTIONS, path).header("access-control-request-method", "POST");
        let response = request.header("access-control-request-headers", "content-type").send().await?;
        let head = format!("{path}: {} {:?}", response.status(), response.headers());
        ensure!(response.status() == 204 && response.headers()["access-control-allow-origin"] == PAGE, "{head}");
        ensure!(response.headers()["access-control-allow-methods"] == allow, "{head}");
        ensure!(response.headers().contains_key("access-control-max-age"), "{head}");
    }
    Ok(())
}

#[tokio::test]
async fn allowed_page_can_read_each_response() -> Result<()> {
    let server = Server::start_stub(&["--set", PAGES]).await?;
    let page_request = |method: Method, path: &str| from_page(&server, method, path);
    for path in ["/", "/livez", "/readyz", "/metrics", "/v1/models", "/openapi.json", "/stream/health", "/pipelines"] {
        check_readable(page_request(Method::GET, path), 200).await?;
    }
    check_readable(page_request(Method::GET, "/nowhere"), 404).await?;
    check_readable(page_request(Method::DELETE, "/v1/classify"), 405).await?;
    check_readable(page_request(Method::POST, "/metrics"), 405).await?;
    check_readable(page_request(Method::GET, "/v1/%zz"), 400).await?;
    check_readable(page_request(Method::GET, &format!("/?{}", "x".repeat(9000))), 414).await?;
    check_readable(page_request(Method::GET, "/").header("x-long", "y".repeat(20_000)), 431).await?;
    check_readable(page_request(Method::POST, "/v1/classify").header("content-type", "text/css").body("x"), 415)
        .await?;
    check_readable(page_request(Method::POST, "/v1/classify").json(&json!({"inputs": "x".repeat(1 << 20)})), 413)
        .await?;
    check_readable(page_request(Method::POST, "/v1/classify").json(&json!({})), 422).await?;
    check_readable(page_request(Method::GET, "/ws"), 426).await?;
    let handshake = page_request(Method::GET, "/ws").header("connection", "upgrade").header("upgrade", "websocket");
    check_readable(handshake.header("sec-websocket-version", "13").header("sec-websocket-key", "x"), 400).await?;
    check_preflights(&server).await
}

#[tokio::test]
async fn page_can_read_overload_and_draining_and_preflights_succeed() -> Result<()> {
    let server =
        Server::start_stub(&["--set", PAGES, "--set", "http.requests_max=1", "--set", "http.drain_timeout_ms=60000"])
            .await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut occupying = Raw::post(&server, "/process-stream", &body).await?;
    occupying.read_until("sentiment_processing").await?;
    let page_request = |path: &str| from_page(&server, Method::GET, path);
    check_readable(page_request("/v1/models"), 503).await?;
    check_readable(page_request("/metrics"), 200).await?;
    check_preflights(&server).await?;
    server.signal("TERM")?;
    let draining = async || Ok(reqwest::get(server.url("/readyz")).await?.status() == 503);
    until("draining", draining).await?;
    check_readable(page_request("/v1/models"), 503).await?;
    check_readable(page_request("/readyz"), 503).await?;
    check_preflights(&server).await
}

#[tokio::test]
async fn refused_origin_gets_the_configuration_key_and_one_log_line() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let client = Client::new();
    for path in ["/v1/models", "/metrics", "/stream/workflow/w"] {
        for _ in 0..3 {
            let response = client.get(server.url(path)).header("origin", "https://app.example").send().await?;
            assert_eq!(response.status(), 403, "{path}");
            assert!(!response.headers().contains_key("access-control-allow-origin"));
            let problem: Value = response.json().await?;
            let detail = problem["detail"].as_str().context("a detail")?;
            assert!(detail.contains("https://app.example") && detail.contains("auth.cors_origins"), "{detail}");
        }
    }
    // The log lines for many origins of one client are bounded.
    for n in 0..200 {
        client.get(server.url("/livez")).header("origin", format!("https://a{n}.example")).send().await?;
    }
    let log = server.log();
    let count = |text: &str| log.matches(text).count();
    assert_eq!(count("https://app.example"), 1, "{log}");
    assert!(count("auth.cors_origins") <= 40, "{log}");
    Ok(())
}

#[tokio::test]
async fn percent_encoded_path_is_decoded_on_every_route_and_bad_encoding_is_400() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let escaped = |path: &str| {
        path.bytes().map(|byte| if byte == b'/' { "/".to_owned() } else { format!("%{byte:02x}") }).collect::<String>()
    };
    let client = Client::new();
    for path in PATHS {
        let plain = client.head(server.url(path)).send().await?.status();
        let head =
            response_head(&server, &format!("HEAD {} HTTP/1.1\r\nHost: localhost\r\n\r\n", escaped(path))).await?;
        assert_eq!(status(&head), plain.as_str(), "{path}");
    }
    for (path, body) in [
        ("/v1/classify", json!({"inputs": "good"})),
        ("/models/sentiment", json!({"inputs": "good"})),
        ("/predict", json!({"inputs": "good"})),
        ("/process-batch", json!({"text": "a good text that is long enough", "include_summary": false})),
        ("/stream/publish/workflow/w", json!({"step": "s", "progress": 1})),
    ] {
        let response = client.post(server.url(&escaped(path))).json(&body).send().await?;
        assert_eq!(response.status(), 200, "{path}");
    }
    let created = client.post(server.url("/%73essions")).json(&json!({})).send().await?;
    assert_eq!(created.status(), 201);
    let id = created.json::<Value>().await?["session_id"].as_str().context("an id")?.to_owned();
    assert_eq!(reqwest::get(server.url(&format!("/s%65ssions/{}", escaped(&id)))).await?.status(), 200);
    for path in PATHS {
        for bad in ["%", "%4", "%zz", "%ff", "%c3%28"] {
            let head = response_head(&server, &format!("GET {path}{bad} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await?;
            assert_eq!(status(&head), "400", "{path}{bad}");
            let head =
                response_head(&server, &format!("GET {path}?a={bad} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await?;
            assert_eq!(status(&head), "400", "{path}?a={bad}");
        }
    }
    // An escaped slash does not separate segments.
    assert_eq!(client.post(server.url("/v1%2Fclassify")).json(&json!({"inputs": "good"})).send().await?.status(), 404);
    Ok(())
}

#[tokio::test]
async fn unsupported_codings_are_refused_and_empty_ones_are_ignored() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let body = "{\"inputs\":\"good\"}";
    let chunked = format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let head = "Host: localhost\r\nContent-Type: application/json\r\n";
    for coding in ["gzip, chunked", "chunked, chunked", "identity, chunked", "x, chunked"] {
        let request = format!("POST /v1/classify HTTP/1.1\r\n{head}Transfer-Encoding: {coding}\r\n\r\n{chunked}");
        let mut raw = Raw::connect(&server).await?;
        raw.send(request.as_bytes()).await?;
        // The end of the body is not known, so that nothing after it may be read as a request.
        let response = raw.read_to_end().await?;
        assert!(matches!(status(&response), "501" | "400"), "{coding}: {response}");
        assert_eq!(response.matches("HTTP/1.1 ").count(), 1, "{coding}: {response}");
    }
    let good = format!("POST /v1/classify HTTP/1.1\r\n{head}Transfer-Encoding: Chunked\r\n\r\n{chunked}");
    assert_eq!(status(&response_head(&server, &good).await?), "200");
    for (coding, want) in
        [("", "200"), ("identity", "200"), (" , Identity ,", "200"), ("gzip", "415"), ("identity, br", "415")]
    {
        for path in ["/v1/classify", "/models/sentiment", "/predict"] {
            let length = body.len();
            let request = format!(
                "POST {path} HTTP/1.1\r\n{head}Content-Encoding: {coding}\r\nContent-Length: {length}\r\n\r\n{body}"
            );
            let response = response_head(&server, &request).await?;
            assert_eq!(status(&response), want, "{path} {coding}: {response}");
            assert!(
                want != "415" || response.to_lowercase().contains("\r\naccept-encoding: identity\r\n"),
                "{response}"
            );
        }
    }
    // The response to an unsupported media type lists the supported ones.
    for (path, accepted) in [
        ("/process-batch", "application/json"),
        ("/v1/classify", "application/json, application/x-ndjson"),
        ("/v1/annotate", "application/x-ndjson, text/plain, application/json"),
        ("/v1/transcript", "application/x-ndjson, application/json, text/vtt, application/x-subrip"),
        ("/stream/publish/workflow/w", "application/json"),
        ("/ws", "application/x-ndjson"),
    ] {
        let request = Client::new().post(server.url(path)).header("content-type", "text/css");
        let response = request.body("x").send().await?;
        assert_eq!(response.status(), 415, "{path}");
        assert_eq!(response.headers()["accept"], accepted, "{path}");
        let problem: Value = response.json().await?;
        for name in accepted.split(", ") {
            assert!(problem["detail"].as_str().context("a detail")?.contains(name), "{path}: {problem}");
            assert!(problem["available"].as_array().context("a list")?.contains(&json!(name)), "{path}: {problem}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn idle_connection_outlives_the_header_timeout_and_ends_with_its_own() -> Result<()> {
    const LIVEZ: &[u8] = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let server = Server::start_stub(&["--set", "http.header_timeout_ms=1000"]).await?;
    let mut raw = Raw::connect(&server).await?;
    for _ in 0..2 {
        raw.send(LIVEZ).await?;
        raw.skip_past("alive").await?;
        raw.skip_past("}").await?;
        tokio::time::sleep(std::time::Duration::from_millis(1500)).await;
    }
    // The head of the next request has its own timeout.
    raw.send(b"GET /livez HTTP/1.1\r\nHost: loc").await?;
    raw.read_to_end().await?;

    let server =
        Server::start_stub(&["--set", "http.header_timeout_ms=1000", "--set", "http.idle_timeout_ms=1500"]).await?;
    let mut raw = Raw::connect(&server).await?;
    raw.send(LIVEZ).await?;
    raw.read_until("alive").await?;
    raw.read_to_end().await?;
    Ok(())
}

#[tokio::test]
async fn log_lines_caused_by_a_client_are_bounded() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for n in 0..120 {
        let path = ["/process-batch", "/v1/classify", "/sessions", "/v1/transcript"][n % 4];
        let head = format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n");
        let mut raw = Raw::connect(&server).await?;
        raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n5\r\nabc\r\nzz\r\n").as_bytes()).await?;
        let _ = raw.read_to_end_of_response().await;
    }
    let log = server.log();
    let warnings = log.lines().filter(|line| line.contains(" WARN ") || line.contains(" ERROR ")).count();
    assert!(warnings <= 40, "{warnings} lines:\n{log}");
    assert!(!log.contains("Error("), "a `Debug` value in the log:\n{log}");
    Ok(())
}

#[tokio::test]
async fn json_log_lines_are_json_with_numbers() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("torn.json"), "{")?;
    let pipelines = format!("pipelines.dir={}", dir.path().display());
    let server =
        Server::start_stub(&["--set", "log.format=json", "--set", &pipelines, "--set", "models.replicas=1"]).await?;
    // Components write to their standard error: the report of an invalid definition, and a panic.
    reqwest::get(server.url("/pipelines")).await?;
    let trap = Client::new().post(server.url("/v1/classify")).json(&json!({"inputs": "this is a !trap"}));
    trap.send().await?;
    let lines = || -> Vec<String> {
        server.log().lines().filter(|line| !line.starts_with("listening on ")).map(str::to_owned).collect()
    };
    let has_line_of = |component: &str| {
        let log = lines().join("\n");
        log.contains(&format!("\"component\":\"{component}\""))
    };
    until("both components have written", || async {
        Ok(has_line_of("infer") && (has_line_of("gateway") || has_line_of("stateful-gateway")))
    })
    .await?;
    for line in lines() {
        let record: Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        for name in ["timestamp", "level", "fields", "target"] {
            ensure!(record.get(name).is_some(), "{line}");
        }
        ensure!(record["fields"]["message"].is_string(), "{line}");
        if record["target"] == "guest" {
            ensure!(record["fields"]["component"].is_string() && record["level"].is_string(), "{line}");
        }
        for name in ["after_ms", "ms", "replica", "count", "files"] {
            ensure!(record["fields"].get(name).is_none_or(Value::is_number), "{line}");
        }
    }
    ensure!(lines().iter().any(|line| line.contains("\"after_ms\":")), "no line has `after_ms`");
    Ok(())
}

/// Runs `weir serve` on a pseudo-terminal until its models are ready; its output.
fn run_on_terminal(environment: &[(&str, &str)]) -> Result<String> {
    const PTY: &str = "
import os, pty, signal, sys
pid, fd = pty.fork()
if pid == 0:
    os.execv(sys.argv[1], sys.argv[1:])
# The end of this program closes the terminal, which ends the server.
signal.alarm(60)
out = b''
try:
    while b'ready' not in out:
        read = os.read(fd, 4096)
        if not read:
            break
        out += read
except OSError:
    pass
os.kill(pid, signal.SIGKILL)
os.waitpid(pid, 0)
sys.stdout.buffer.write(out)
";
    let stub = format!("infer={}", weir_tests::component("infer_stub.wasm")?.display());
    let mut command = Command::new(tool("WEIR_TEST_PYTHON")?);
    command.args(["-c", PTY]).arg(weir_tests::weir()?).args(["serve", "--listen", "127.0.0.1:0", "--component", &stub]);
    command.arg("--models-dir").arg(weir_tests::models()).envs(environment.iter().copied()).env("TERM", "xterm");
    let output = command.output()?;
    ensure!(output.status.success(), "{output:?}");
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test]
async fn terminal_has_three_start_lines_80_columns_and_respects_no_color() -> Result<()> {
    let run = |environment: &'static [(&str, &str)]| tokio::task::spawn_blocking(|| run_on_terminal(environment));
    let plain = tokio::time::timeout(PATIENCE, run(&[("NO_COLOR", "1")])).await???;
    ensure!(plain.contains("ready") && !plain.contains('\u{1b}'), "{plain:?}");
    for line in plain.lines() {
        ensure!(line.trim_end().chars().count() <= 80, "{line}");
    }
    // The URL of the page, the models, and the place of stored data.
    let starts =
        ["listening on http://127.0.0.1:", "models: embeddings, entities, sentiment", "stored data: in memory"];
    let found: Vec<&str> =
        plain.lines().filter_map(|line| starts.into_iter().find(|start| line.starts_with(start))).collect();
    ensure!(found == starts && plain.contains(" (page: http://127.0.0.1:"), "{plain}");
    let colored = tokio::time::timeout(PATIENCE, run(&[])).await???;
    ensure!(colored.contains("\u{1b}["), "{colored:?}");
    Ok(())
}

#[tokio::test]
async fn page_that_is_off_is_not_served() -> Result<()> {
    for (setting, content_type) in [("on", "text/html"), ("off", "application/json")] {
        let server = Server::start_stub(&["--set", &format!("gateway.ui={setting}")]).await?;
        let request = reqwest::Client::new().get(server.url("/")).header("accept", "text/html,*/*;q=0.8");
        let answer = request.send().await?;
        ensure!(answer.headers()["content-type"].to_str()?.starts_with(content_type), "{setting}: {answer:?}");
    }
    Ok(())
}
