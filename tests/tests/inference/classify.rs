//! `/v1/classify`, `/v1/tokens` and `/v1/embed` over real sockets: whole responses, streams in both directions over HTTP/1.1 and HTTP/2,
//! invalid lines, and clients that stall or disconnect.

use std::time::Instant;

use anyhow::{Context, Result};
use bytes::Bytes;
use futures::StreamExt;
use futures::channel::mpsc;
use serde_json::{Value, json};
use weir_tests::client::{NDJSON, post, post_lines};
use weir_tests::{Duplex, PATIENCE, Raw, Server, ndjson, until};

/// Posts a whole NDJSON body; the lines of the response in the order of their indexes, with the summary line last.
async fn post_lines_sorted(server: &Server, path: &str, body: impl Into<reqwest::Body>) -> Result<Vec<Value>> {
    let mut lines = post_lines(server, path, NDJSON, body).await?;
    lines.sort_by_key(|line| line["index"].as_u64().unwrap_or(u64::MAX));
    Ok(lines)
}

#[tokio::test]
async fn shipped_models_serve_every_task() -> Result<()> {
    let server = Server::start(&[]).await?;
    let (status, response) =
        post(&server, "/v1/classify", &json!({"inputs": ["what a wonderful day", "awful"]})).await?;
    assert_eq!(status, 200, "{response}");
    assert_eq!(response["model"], "sentiment");
    let outputs = response["outputs"].as_array().context("outputs")?;
    assert_eq!(outputs.len(), 2);
    assert_eq!((&outputs[0][0]["label"], &outputs[1][0]["label"]), (&json!("positive"), &json!("negative")));
    for scores in outputs {
        let scores: Vec<f64> =
            scores.as_array().context("scores")?.iter().filter_map(|label| label["score"].as_f64()).collect();
        assert_eq!(scores.len(), 3);
        assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
        assert!((scores.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{scores:?}");
    }
    let parameters = json!({"top_k": 1, "function_to_apply": "none"});
    let (_, response) = post(&server, "/v1/classify", &json!({"inputs": "a day", "parameters": parameters})).await?;
    assert_eq!(response["outputs"][0].as_array().context("scores")?.len(), 1);

    let text = "Maria Schmidt lives in Geneva.";
    let body = json!({"inputs": text, "parameters": {"aggregation_strategy": "simple"}});
    let (_, response) = post(&server, "/v1/tokens", &body).await?;
    let groups: Vec<_> =
        response["outputs"][0].as_array().context("entities")?.iter().map(|e| &e["entity_group"]).collect();
    assert_eq!(groups, ["PER", "LOC"], "{response}");
    let (_, response) = post(&server, "/v1/tokens", &json!({"inputs": text})).await?;
    assert_eq!(response["outputs"][0][0]["entity"], "B-PER", "{response}");
    assert_eq!(response["outputs"][0][0]["index"], 1, "{response}");

    let (_, response) = post(&server, "/v1/embed", &json!({"inputs": [text]})).await?;
    let vector: Vec<f64> =
        response["outputs"][0].as_array().context("an embedding")?.iter().filter_map(Value::as_f64).collect();
    assert_eq!(vector.len(), 384);
    assert!((vector.iter().map(|x| x * x).sum::<f64>() - 1.0).abs() < 1e-4);

    let long = "word ".repeat(2000);
    let (status, problem) = post(&server, "/v1/classify", &json!({"inputs": long})).await?;
    assert_eq!((status, &problem["code"]), (422, &json!("too_long")), "{problem}");
    let (status, response) =
        post(&server, "/v1/classify", &json!({"inputs": long, "parameters": {"truncation": true}})).await?;
    assert_eq!(status, 200, "{response}");
    let (status, response) = post(&server, "/v1/classify", &json!({"inputs": [long, "a day"]})).await?;
    assert_eq!(status, 200, "{response}");
    assert_eq!(response["outputs"][0]["error"]["code"], "too_long", "{response}");
    assert!(response["outputs"][1][0]["score"].is_f64(), "{response}");
    let (status, problem) = post(&server, "/v1/classify", &json!({"inputs": "a", "model": "entities"})).await?;
    assert_eq!((status, &problem["code"]), (422, &json!("invalid_input")), "{problem}");
    Ok(())
}

#[tokio::test]
async fn failed_text_is_an_error_output_and_a_refused_request_has_a_status() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let label = json!([{"label": "positive", "score": 0.75}]);
    let (_, response) = post(&server, "/v1/classify", &json!({"inputs": ["good", "!fail", {"text": "good"}]})).await?;
    assert_eq!((&response["outputs"][0], &response["outputs"][2]), (&label, &label));
    assert_eq!(response["outputs"][1]["error"]["code"], "engine_failed", "{response}");
    let (_, response) = post(&server, "/v1/classify", &json!({"inputs": []})).await?;
    assert_eq!(response, json!({"outputs": [], "model": "sentiment"}));
    for (inputs, status, code) in [
        (json!("!fail"), 502, "engine_failed"),
        (json!(["good", "!overloaded"]), 503, "overloaded"),
        (json!(["!down", "good"]), 503, "model_unavailable"),
        (json!("!unknown"), 404, "unknown_model"),
    ] {
        let response = reqwest::Client::new().post(server.url("/v1/classify")).json(&json!({"inputs": inputs}));
        let response = response.send().await?;
        assert_eq!(response.status().as_u16(), status, "{inputs}");
        assert_eq!(response.headers().contains_key("retry-after"), status == 503, "{inputs}");
        assert_eq!(response.json::<Value>().await?["code"], code, "{inputs}");
    }
    for (path, body, field) in [
        ("/v1/classify", json!({"inputs": [1]}), "inputs[0]"),
        ("/v1/classify", json!({}), "inputs"),
        ("/v1/classify", json!({"inputs": "a", "parameters": {"top_k": 0}}), "parameters.top_k"),
        ("/v1/tokens", json!({"inputs": "a", "parameters": {"top_k": 1}}), "parameters.top_k"),
        ("/v1/embed?normalize=perhaps", json!({"inputs": "a"}), "normalize"),
        ("/v1/embed", json!({"inputs": "a", "options": {}}), "options"),
    ] {
        let (status, problem) = post(&server, path, &body).await?;
        assert_eq!((status, &problem["code"]), (422, &json!("invalid_request")), "{body}: {problem}");
        assert_eq!(problem["errors"][0]["field"], field, "{problem}");
    }
    Ok(())
}

#[tokio::test]
async fn each_line_has_its_outcome_and_a_wrong_line_its_error() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut body =
        b"\"good\"\r\n\n{\"text\":\"bad\",\"id\":\"x\"}\nnonsense\n{\"text\":5,\"id\":\"y\"}\n\"\xff\"\n".to_vec();
    body.extend_from_slice(b"{\"text\":\"a\",\"colour\":1}\n[1]\n\"");
    body.extend_from_slice(&[b'y'; 100_000]);
    body.extend_from_slice(b"\"\n{\"text\":\"!fail\",\"id\":7}\n\"last\"");
    let lines_of_response = post_lines_sorted(&server, "/v1/classify?top_k=1", body).await?;
    let brief: Vec<Value> = lines_of_response
        .iter()
        .map(|line| {
            let error = &line["error"];
            json!([line["index"], line["id"], line["scores"][0]["label"], error["code"], error["field"], error["line"]])
        })
        .collect();
    assert_eq!(
        brief,
        [
            json!([0, null, "positive", null, null, null]),
            json!([1, "x", "negative", null, null, null]),
            json!([2, null, null, "malformed_json", null, 4]),
            json!([3, "y", null, "invalid_item", "text", 5]),
            json!([4, null, null, "not_utf8", null, 6]),
            json!([5, null, null, "invalid_item", "colour", 7]),
            json!([6, null, null, "invalid_item", "line", 8]),
            json!([7, null, null, "line_too_long", null, 9]),
            json!([8, 7, null, "engine_failed", null, null]),
            json!([9, null, "neutral", null, null, null]),
            json!([null, null, null, null, null, null]),
        ],
        "{lines_of_response:?}"
    );
    assert_eq!(lines_of_response.last(), Some(&json!({"done": true, "ok": 3, "failed": 7})));
    assert_eq!(post_lines_sorted(&server, "/v1/embed", "").await?, [json!({"done": true, "ok": 0, "failed": 0})]);
    let lines_of_response = post_lines_sorted(&server, "/v1/embed", "\"a\"\n").await?;
    assert_eq!(lines_of_response[0], json!({"index": 0, "embedding": [0.5, -0.5, 0.5, -0.5]}));
    let lines_of_response = post_lines_sorted(&server, "/v1/tokens", "\"Ann\"\n").await?;
    assert_eq!(lines_of_response[0]["entities"][0]["word"], "Ann");
    Ok(())
}

#[tokio::test]
async fn json_request_with_accept_of_events_is_answered_with_a_stream() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let body = json!({"inputs": ["good", {"text": "!fail", "id": "x"}]});
    let client = reqwest::Client::new();
    let request = |accept: &str| client.post(server.url("/v1/classify")).header("accept", accept).json(&body).send();
    let events = ndjson(&request(NDJSON).await?.text().await?)?;
    assert_eq!(events.last(), Some(&json!({"done": true, "ok": 1, "failed": 1})));
    let response = request("text/event-stream").await?;
    assert_eq!(response.headers()["content-type"], "text/event-stream");
    let text = response.text().await?;
    let names: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    assert_eq!((names.len(), names.last()), (3, Some(&"done")), "{text}");
    assert!(names.contains(&"result") && names.contains(&"error"), "{text}");
    assert_eq!(request("image/png").await?.status(), 406);
    Ok(())
}

#[tokio::test]
async fn outcome_is_sent_before_the_last_line_arrives() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    // HTTP/1.1: each line is sent after the outcome of the line before has arrived.
    let mut duplex = Duplex::open(&server, "/v1/classify").await?;
    duplex.raw.read_until("\r\n\r\n").await?;
    for id in 0..5 {
        duplex.send(format!("{{\"text\":\"good\",\"id\":{id}}}\n").as_bytes()).await?;
        duplex.raw.read_until(&format!("\"id\":{id},\"scores\"")).await?;
    }
    duplex.end().await?;
    duplex.raw.read_until(r#"{"done":true,"ok":5,"failed":0}"#).await?;
    // The connection is usable for another request.
    duplex.raw.send(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n").await?;
    duplex.raw.read_until("alive").await?;

    // The same over HTTP/2.
    let client = reqwest::Client::builder().http2_prior_knowledge().build()?;
    let (sender, body) = mpsc::unbounded::<Result<Bytes, std::io::Error>>();
    let send = |id: usize| sender.unbounded_send(Ok(Bytes::from(format!("{{\"text\":\"good\",\"id\":{id}}}\n"))));
    send(0)?;
    let request = client.post(server.url("/v1/classify")).header("content-type", NDJSON);
    let response = request.body(reqwest::Body::wrap_stream(body)).send().await?;
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    let mut pieces = response.bytes_stream();
    let mut text = String::new();
    for id in 0..5 {
        while !text.contains(&format!("\"id\":{id},\"scores\"")) {
            let piece = tokio::time::timeout(PATIENCE, pieces.next()).await?.context("the stream ended")??;
            text.push_str(&String::from_utf8_lossy(&piece));
        }
        if id < 4 {
            send(id + 1)?;
        }
    }
    drop(sender);
    while let Some(piece) = tokio::time::timeout(PATIENCE, pieces.next()).await? {
        text.push_str(&String::from_utf8_lossy(&piece?));
    }
    assert_eq!(ndjson(&text)?.last(), Some(&json!({"done": true, "ok": 5, "failed": 0})));
    Ok(())
}

#[tokio::test]
async fn client_that_expects_100_continue_gets_it() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut raw = Raw::connect(&server).await?;
    let head = "POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Type: application/x-ndjson\r\n";
    raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await?;
    let text = raw.read_until("\r\n\r\n").await?;
    assert!(text.starts_with("HTTP/1.1 100"), "{text}");
    raw.send(b"7\r\n\"good\"\n\r\n0\r\n\r\n").await?;
    let text = raw.read_until(r#""ok":1"#).await?;
    assert!(text.contains("HTTP/1.1 200"), "{text}");
    Ok(())
}

#[tokio::test]
async fn body_that_breaks_off_ends_the_stream() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut duplex = Duplex::open(&server, "/v1/classify").await?;
    // A valid chunk, and then an invalid one.
    duplex.send(b"\"good\"\n\"half a li").await?;
    duplex.raw.read_until("\"index\":0").await?;
    duplex.raw.send(b"nonsense\r\n").await?;
    let text = duplex.raw.read_to_end().await?;
    assert!(!text.contains("\"index\":1"), "an incomplete line has an outcome: {text}");
    until("the request is closed", || async { Ok(server.metric("weir_http_requests_open").await? == 0.0) }).await
}

#[tokio::test]
async fn stream_without_activity_ends() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.body_timeout_ms=1000"]).await?;
    let mut duplex = Duplex::open(&server, "/v1/classify").await?;
    // Outcomes that take longer than the timeout, four times 300 ms, are still sent.
    duplex.send(b"\"!slow\"\n\"!slow\"\n\"!slow\"\n\"!slow\"\n").await?;
    let text = duplex.raw.read_until(r#"{"done":true,"ok":4,"failed":0}"#).await?;
    assert!(text.contains("body_timeout"), "{text}");
    Ok(())
}

#[tokio::test]
async fn active_stream_outlives_the_request_timeout() -> Result<()> {
    let server = Server::start_stub(&["--set", "http.request_timeout_ms=300"]).await?;
    let mut duplex = Duplex::open(&server, "/v1/classify").await?;
    let began = Instant::now();
    let mut sent = 0;
    while began.elapsed().as_millis() < 900 {
        duplex.send(format!("{{\"text\":\"!slow\",\"id\":{sent}}}\n").as_bytes()).await?;
        duplex.raw.read_until(&format!("\"id\":{sent},\"scores\"")).await?;
        sent += 1;
    }
    duplex.end().await?;
    duplex.raw.read_until(&format!("\"done\":true,\"ok\":{sent},\"failed\":0")).await?;
    Ok(())
}

#[tokio::test]
async fn texts_of_a_client_that_left_are_not_computed() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let warm_ups = server.metric("weir_infer_items_total").await?;
    let mut blocking = Duplex::open(&server, "/v1/classify").await?;
    blocking.send("\"!slow\"\n".repeat(5).as_bytes()).await?;
    until("the items are computed", || async { Ok(server.metric("weir_infer_items_total").await? >= warm_ups + 5.0) })
        .await?;
    let mut leaving = Duplex::open(&server, "/v1/classify").await?;
    leaving.send(b"\"one\"\n\"two\"\n\"three\"\n").await?;
    until("the items are queued", || async { Ok(server.metric("weir_infer_queue_items").await? == 3.0) }).await?;
    drop(leaving);
    until("the request is closed", || async { Ok(server.metric("weir_http_requests_open").await? == 1.0) }).await?;
    blocking.end().await?;
    blocking.raw.read_until("\"done\":true").await?;
    until("the items are abandoned", || async { Ok(server.metric("weir_infer_items_abandoned_total").await? == 3.0) })
        .await?;
    Ok(())
}

#[tokio::test]
async fn stream_of_many_lines_takes_constant_memory() -> Result<()> {
    const LINES: usize = 20_000;
    let server = Server::start_stub(&[]).await?;
    // First a stream that fills the buffers; then one with twenty times as many lines.
    let filler = "x".repeat(1000);
    let body = |lines: usize| {
        let filler = filler.clone();
        let line = move |id: usize| {
            Ok::<_, std::io::Error>(Bytes::from(format!("{{\"text\":\"good {filler}\",\"id\":{id}}}\n")))
        };
        reqwest::Body::wrap_stream(futures::stream::iter((0..lines).map(line)))
    };
    let done = |lines: usize| json!({"done": true, "ok": lines, "failed": 0});
    let warm = LINES / 20;
    assert_eq!(post_lines_sorted(&server, "/v1/classify", body(warm)).await?.last(), Some(&done(warm)));
    let before = server.resident_bytes()?;
    let lines_of_response = post_lines_sorted(&server, "/v1/classify", body(LINES)).await?;
    assert_eq!(lines_of_response.last(), Some(&done(LINES)));
    for (index, line) in lines_of_response[..LINES].iter().enumerate() {
        assert_eq!((&line["index"], &line["id"]), (&json!(index), &json!(index)));
    }
    let growth = server.resident_bytes()?.saturating_sub(before);
    assert!(growth < 8 << 20, "the memory grew by {growth} bytes for 20 MB of lines");
    Ok(())
}

#[tokio::test]
async fn client_that_does_not_read_is_pushed_back() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let mut stalled = Duplex::send_head(Raw::connect_with_small_buffer(&server).await?, "/v1/classify").await?;
    let before = server.resident_bytes()?;
    let lines = "\"a good line whose outcome the client does not read\"\n".repeat(2000);
    // The client writes until a write makes no progress for 2 s.
    let is_pushed_back = async {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if tokio::time::timeout(std::time::Duration::from_secs(2), stalled.send(lines.as_bytes())).await.is_err() {
                return true;
            }
        }
        false
    };
    assert!(is_pushed_back.await, "the server reads without bound");
    let growth = server.resident_bytes()?.saturating_sub(before);
    assert!(growth < 32 << 20, "the memory grew by {growth} bytes for a client that does not read");
    // Other clients are served meanwhile.
    assert_eq!(post(&server, "/v1/classify", &json!({"inputs": "good"})).await?.0, 200);
    Ok(())
}

#[tokio::test]
async fn wrong_method_or_media_type_is_answered_with_those_accepted() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let client = reqwest::Client::new();
    for path in ["/v1/classify", "/v1/tokens", "/v1/embed", "/models/sentiment", "/predict"] {
        let response = client.request(reqwest::Method::OPTIONS, server.url(path)).send().await?;
        assert_eq!(
            (response.status().as_u16(), response.headers()["allow"].to_str()?),
            (204, "POST, OPTIONS"),
            "{path}"
        );
        let response = client.head(server.url(path)).send().await?;
        assert_eq!(response.status(), 405, "{path}");
        for content_type in ["application/json", NDJSON] {
            let request = client.post(server.url(path)).header("content-type", content_type);
            let response = request.header("content-encoding", "gzip").body("\"a\"").send().await?;
            assert_eq!(response.status(), 415, "{path} {content_type}");
        }
    }
    let request = client.post(server.url("/v1/classify")).header("content-type", "text/plain").body("a");
    let problem: Value = request.send().await?.json().await?;
    assert!(problem["detail"].as_str().context("a detail")?.contains(NDJSON), "{problem}");
    let index: Value = reqwest::get(server.url("/")).await?.json().await?;
    let api: Value = reqwest::get(server.url("/openapi.json")).await?.json().await?;
    for route in ["/v1/classify", "/v1/tokens", "/v1/embed", "/models/{name}", "/predict"] {
        assert!(index["routes"].as_array().context("routes")?.contains(&json!(format!("POST {route}"))), "{index}");
        assert!(api["paths"][route]["post"].is_object(), "{route}");
    }
    Ok(())
}
