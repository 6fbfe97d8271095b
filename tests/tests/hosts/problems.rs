//! Invalid requests over real sockets: each gets one problem document, and the server continues.

use anyhow::{Context, Result};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use weir_tests::{Raw, Server};

struct Case {
    name: &'static str,
    method: Method,
    path: &'static str,
    headers: &'static [(&'static str, &'static str)],
    body: Vec<u8>,
    status: u16,
    code: &'static str,
    detail: &'static str,
}

fn case(name: &'static str, body: impl Into<Vec<u8>>, status: u16, code: &'static str, detail: &'static str) -> Case {
    let headers = &[("content-type", "application/json")];
    Case { name, method: Method::POST, path: "/process-stream", headers, body: body.into(), status, code, detail }
}

fn cases() -> Vec<Case> {
    let text = "long enough to be a text";
    let deep = format!("{{\"text\":{}1{}}}", "[".repeat(5000), "]".repeat(5000));
    let good = json!({"text": text}).to_string();
    vec![
        case("malformed", "{\"text\": ", 400, "malformed_json", "line 1"),
        case("empty", "", 400, "empty_body", ""),
        case("not an object", "[1]", 400, "", ""),
        case("not UTF-8", b"{\"text\":\"\xff\xfe long enough\"}".to_vec(), 400, "not_utf8", ""),
        case("a lone surrogate", r#"{"text":"\ud800 long enough"}"#, 400, "malformed_json", ""),
        case("deep", deep, 400, "", ""),
        case("missing", "{}", 422, "invalid_request", "text"),
        case("wrong type", r#"{"text": 5}"#, 422, "invalid_request", "text"),
        case("short", r#"{"text": "short"}"#, 422, "invalid_request", "10"),
        case("long", json!({"text": "x".repeat(5001)}).to_string(), 422, "invalid_request", "5000"),
        case("chunk", json!({"text": text, "chunk_size": 49}).to_string(), 422, "invalid_request", "50"),
        case(
            "flag",
            json!({"text": text, "include_summary": "yes"}).to_string(),
            422,
            "invalid_request",
            "include_summary",
        ),
        case("too large", vec![b' '; (1 << 20) + 1], 413, "body_too_large", "1048576"),
        Case { name: "no such path", path: "/nowhere", ..case("", good.clone(), 404, "not_found", "/nowhere") },
        Case { name: "wrong method", method: Method::GET, ..case("", "", 405, "method_not_allowed", "POST") },
        Case {
            name: "not acceptable",
            headers: &[("content-type", "application/json"), ("accept", "image/png")],
            ..case("", good.clone(), 406, "not_acceptable", "")
        },
        Case {
            name: "media type",
            headers: &[("content-type", "text/plain")],
            ..case("", good.clone(), 415, "unsupported_media_type", "text/plain")
        },
        Case { name: "metrics", path: "/metrics", ..case("", "", 405, "method_not_allowed", "GET") },
        Case { name: "generation", path: "/generate-stream", ..case("", good, 422, "invalid_request", "messages") },
        Case {
            name: "no model",
            path: "/generate-stream",
            ..case("", r#"{"prompt": "a"}"#, 503, "model_not_loaded", "weir models pull")
        },
    ]
}

#[tokio::test]
async fn invalid_request_is_answered_with_one_problem() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let client = reqwest::Client::new();
    for case in cases() {
        let mut request = client.request(case.method.clone(), server.url(case.path)).body(case.body.clone());
        for (name, value) in case.headers {
            request = request.header(*name, *value);
        }
        let response = request.header("x-request-id", "abc-123").send().await.with_context(|| case.name)?;
        let head = format!("{} {:?}", response.status(), response.headers());
        assert_eq!(response.status().as_u16(), case.status, "{}: {head} {}", case.name, response.text().await?);
        assert_eq!(response.headers()["content-type"], "application/problem+json", "{}: {head}", case.name);
        assert_eq!(response.headers()["x-request-id"], "abc-123", "{}: {head}", case.name);
        if case.status == 405 {
            let allow = response.headers()["allow"].to_str()?;
            assert!(allow.contains(if case.method == Method::POST { "GET" } else { "POST" }), "{head}");
        }
        let problem: Value = response.json().await?;
        assert_eq!(problem["status"], case.status, "{}: {problem}", case.name);
        assert_eq!(problem["request_id"], "abc-123", "{}: {problem}", case.name);
        assert!(problem["retryable"] == false, "{}: {problem}", case.name);
        assert!(problem["type"].is_string() && problem["title"].is_string(), "{}: {problem}", case.name);
        if !case.code.is_empty() {
            assert_eq!(problem["code"], case.code, "{}: {problem}", case.name);
        }
        let detail = problem["detail"].as_str().context("a detail")?;
        assert!(detail.contains(case.detail), "{}: {detail}", case.name);
    }
    let good = client.post(server.url("/process-batch")).json(&json!({"text": "a valid request"})).send().await?;
    assert_eq!(good.status(), StatusCode::OK);
    assert!(!good.headers()["x-request-id"].is_empty());
    Ok(())
}

#[tokio::test]
async fn body_that_does_not_arrive_is_408() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=200"]).await?;
    let mut raw = Raw::connect(&server).await?;
    raw.send(b"POST /process-stream HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{\"te").await?;
    let response = raw.read_until("body_timeout").await?;
    assert!(response.starts_with("HTTP/1.1 408"), "{response}");
    Ok(())
}

#[tokio::test]
async fn header_that_does_not_arrive_ends_the_connection() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.header_timeout_ms=200"]).await?;
    // No bytes, a part of a header, a part of the preface of HTTP/2.
    for bytes in [&b""[..], b"POST /process-stream HTTP/1.1\r\nHost: w", b"PRI * HTTP/2.0"] {
        let mut raw = Raw::connect(&server).await?;
        raw.send(bytes).await?;
        raw.read_to_end().await?;
    }
    Ok(())
}

#[tokio::test]
async fn request_past_its_timeout_ends_with_an_error() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.request_timeout_ms=300"]).await?;
    let client = reqwest::Client::new();
    let body = json!({"text": "this one is !never answered", "include_summary": false});
    let response = client.post(server.url("/process-stream")).json(&body).send().await?;
    assert_eq!(response.status(), 200);
    let events = weir_tests::ndjson(&response.text().await?)?;
    let last = events.last().context("an event")?;
    assert_eq!((&last["status"], &last["code"]), (&json!("error"), &json!("request_timeout")), "{last}");

    let server = Server::start_stub(&["--set", "http.request_timeout_ms=300"]).await?;
    let response = client.post(server.url("/process-batch")).json(&body).send().await?;
    assert_eq!(response.status(), 504);
    assert_eq!(response.json::<Value>().await?["code"], "request_timeout");
    Ok(())
}

#[tokio::test]
async fn texts_without_an_outcome_in_the_time_of_their_request_end_it_with_504() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.request_timeout_ms=300"]).await?;
    let client = reqwest::Client::new();
    let classify = async |body: Value| client.post(server.url("/v1/classify")).json(&body).send().await;
    // The first text occupies the only replica for longer than this test; the others wait for it.
    for body in [
        json!({"inputs": "this one is !never answered"}),
        json!({"inputs": ["a good day", "a bad day"]}),
        json!({"inputs": "a good day", "parameters": {"timeout_ms": 60_000}}),
    ] {
        let response = classify(body).await?;
        assert_eq!(response.status(), 504);
        assert_eq!(response.json::<Value>().await?["code"], "request_timeout");
    }
    let response = client.post(server.url("/predict")).json(&json!({"inputs": "a good day"})).send().await?;
    assert_eq!(response.status(), 504);
    Ok(())
}

#[tokio::test]
async fn full_server_responds_503_and_serves_probes() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.requests_max=1"]).await?;
    let body = json!({"text": "this one is !never answered", "include_summary": false}).to_string();
    let mut occupying = Raw::post(&server, "/process-stream", &body).await?;
    occupying.read_until("sentiment_processing").await?;
    let response = reqwest::Client::new().post(server.url("/process-batch")).body(body).send().await?;
    assert_eq!(response.status(), 503);
    assert_eq!(response.headers()["retry-after"], "1");
    let problem: Value = response.json().await?;
    assert_eq!((&problem["code"], &problem["retryable"]), (&json!("overloaded"), &json!(true)));
    // A full server is alive and ready, and serves its metrics.
    for probe in ["/livez", "/readyz", "/metrics"] {
        assert_eq!(reqwest::get(server.url(probe)).await?.status(), 200, "{probe}");
    }
    Ok(())
}

#[tokio::test]
async fn random_bytes_on_a_socket_affect_no_other_client() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for garbage in [
        &b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..],
        b"GET",
        b"\r\n\r\n\r\n",
        &[b'A'; 100_000],
        b"POST / HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
    ] {
        let mut raw = Raw::connect(&server).await?;
        let _ = raw.send(garbage).await;
        drop(raw);
    }
    assert_eq!(reqwest::get(server.url("/livez")).await?.status(), 200);
    Ok(())
}
