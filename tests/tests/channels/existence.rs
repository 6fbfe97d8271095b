//! Requests and subscriptions for a session or an execution that does not exist are 404 in every form, not an empty stream.

use anyhow::Result;
use reqwest::{Client, Method, StatusCode};
use serde_json::{Value, json};
use weir_tests::auth::{ANN, BOB, request_as, start_with_auth};
use weir_tests::client::create_session;
use weir_tests::pipelines::{Folder, start_execution};
use weir_tests::websocket::WebSocket;
use weir_tests::{Raw, Server, ndjson};

/// Channels of a session and of an execution that do not exist.
const UNKNOWN: [(&str, &str); 2] = [("session", "unknown"), ("pipeline", "exec_AAAAAAAAAAAAAAAAAAAAAA")];

async fn get(server: &Server, path: &str, accept: &str) -> Result<(StatusCode, Value)> {
    let response = Client::new().get(server.url(path)).header("accept", accept).send().await?;
    Ok((response.status(), response.json().await?))
}

#[tokio::test]
async fn subscription_to_an_unknown_session_or_execution_is_404_in_every_form() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    for (kind, id) in UNKNOWN {
        let path = format!("/stream/{kind}/{id}");
        for accept in ["text/event-stream", "application/x-ndjson", "*/*"] {
            let (status, problem) = get(&server, &path, accept).await?;
            assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("not_found")), "{path} {accept}");
        }
        let resumed = Client::new().get(server.url(&path)).header("last-event-id", "1-1").send().await?;
        assert_eq!(resumed.status(), 404, "{path} after an event");
        assert_eq!(WebSocket::open(&server, &format!("/ws/{kind}/{id}"), None).await?.err(), Some(404), "{kind}");
        // A GET of HTTP/1.0.
        let mut old = Raw::connect(&server).await?;
        old.send(format!("GET {path} HTTP/1.0\r\nHost: {}\r\n\r\n", server.address()).as_bytes()).await?;
        assert!(old.read_to_end().await?.contains(" 404 "), "{path} over HTTP/1.0");
    }
    Ok(())
}

#[tokio::test]
async fn multiplexed_subscription_to_an_unknown_channel_is_an_error_and_the_others_continue() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let subscribe = |channel: &str| json!({"type": "subscribe", "channel": channel});
    let mut socket = WebSocket::connect(&server, "/ws", None).await?;
    let mut lines = String::new();
    for (kind, id) in UNKNOWN {
        let channel = format!("{kind}:{id}");
        socket.send(&subscribe(&channel).to_string()).await?;
        let error = socket.message().await?;
        assert_eq!((&error["type"], &error["channel"]), (&json!("error"), &json!(channel)), "{error}");
        assert_eq!((&error["error"]["code"], &error["error"]["retryable"]), (&json!("not_found"), &json!(false)));
        lines.push_str(&format!("{}\n", subscribe(&channel)));
    }
    socket.send(&subscribe("workflow:w").to_string()).await?;
    assert_eq!(socket.message().await?["type"], "connected");
    // The same messages as NDJSON over HTTP.
    let request = Client::new().post(server.url("/ws")).header("content-type", "application/x-ndjson");
    let response = request.body(format!("{lines}{}\n", subscribe("workflow:w"))).send().await?.text().await?;
    let codes: Vec<Value> = ndjson(&response)?.iter().map(|event| event["error"]["code"].clone()).collect();
    assert_eq!(codes, [json!("not_found"), json!("not_found"), Value::Null]);
    Ok(())
}

#[tokio::test]
async fn request_for_an_unknown_session_or_execution_is_404() -> Result<()> {
    let server = Server::start_stub(&[]).await?;
    let (session, execution) = ("/sessions/unknown", "/executions/exec_AAAAAAAAAAAAAAAAAAAAAA");
    let chunk = json!({"start": 0, "end": 1, "text": "hello", "speaker_id": "ann"});
    for (method, path, body) in [
        (Method::GET, session.to_owned(), None),
        (Method::DELETE, session.to_owned(), None),
        (Method::GET, format!("{session}/context"), None),
        (Method::POST, format!("{session}/end"), Some(json!({}))),
        (Method::POST, format!("{session}/chunks"), Some(chunk)),
        (Method::GET, execution.to_owned(), None),
        (Method::DELETE, execution.to_owned(), None),
        (Method::GET, "/pipelines/unknown".to_owned(), None),
        (Method::POST, "/pipelines/unknown".to_owned(), Some(json!({"text": "hello"}))),
    ] {
        let mut request = Client::new().request(method.clone(), server.url(&path));
        if let Some(body) = body {
            let is_lines = path.ends_with("/chunks");
            let media_type = if is_lines { "application/x-ndjson" } else { "application/json" };
            request = request.header("content-type", media_type).body(format!("{body}\n"));
        }
        let response = request.send().await?;
        let status = response.status();
        let problem: Value = response.json().await?;
        assert_eq!((status.as_u16(), &problem["code"]), (404, &json!("not_found")), "{method} {path}: {problem}");
    }
    Ok(())
}

#[tokio::test]
async fn known_session_and_execution_are_found_in_every_form() -> Result<()> {
    let folder = Folder::new(&[("p", json!([{"id": "a", "kind": "map", "expression": "@"}]))])?;
    let server = Server::start_stub(&folder.arguments()).await?;
    let session = create_session(&server, &json!({})).await?;
    let execution = start_execution(&server, "p", &json!({"text": "hello"})).await?;
    for path in [format!("session/{session}"), format!("pipeline/{execution}")] {
        for accept in ["text/event-stream", "application/x-ndjson"] {
            let response =
                Client::new().get(server.url(&format!("/stream/{path}"))).header("accept", accept).send().await?;
            assert_eq!(response.status(), 200, "{path} {accept}");
        }
        let mut socket = WebSocket::connect(&server, &format!("/ws/{path}"), None).await?;
        // The WebSocket of a session accepts chunks; that of an execution sends its events.
        let first = if path.starts_with("session") { "partial_segment" } else { "connected" };
        let chunk = json!({"start": 0, "end": 1, "text": "hello", "speaker_id": "ann"});
        socket.send(&chunk.to_string()).await?;
        let message = socket.message().await?;
        assert_eq!(message["type"], first, "{message}");
    }
    Ok(())
}

#[tokio::test]
async fn session_and_execution_of_another_user_read_as_unknown() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let folder = Folder::new(&[("p", json!([{"id": "a", "kind": "map", "expression": "@"}]))])?;
    let server = start_with_auth(dir.path(), &folder.arguments()).await?;
    let session: Value =
        request_as(&server, Method::POST, "/sessions", ANN).json(&json!({})).send().await?.json().await?;
    let session = session["session_id"].as_str().unwrap_or_default().to_owned();
    for path in [format!("/stream/session/{session}"), format!("/sessions/{session}")] {
        let unknown = path.replace(&session, "unknown");
        let mut responses = Vec::new();
        for path in [&path, &unknown] {
            let response = request_as(&server, Method::GET, path, BOB).send().await?;
            let (status, mut problem) = (response.status(), response.json::<Value>().await?);
            problem["detail"] = json!(problem["detail"].as_str().unwrap_or_default().replace(path.as_str(), "PATH"));
            problem["request_id"] = Value::Null;
            responses.push((status, problem));
        }
        assert_eq!(responses[0], responses[1], "{path}");
        assert_eq!(responses[0].0, 404, "{path}");
    }
    assert_eq!(WebSocket::open(&server, &format!("/ws/session/{session}"), Some(BOB)).await?.err(), Some(404));
    Ok(())
}
