//! Steps outside of Weir: components of the operator, and calls of HTTP services.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use weir_tests::http::read_request;
use weir_tests::pipelines::{Folder, check_contiguous, events, run, start_execution, wait_until_ended};
use weir_tests::{Server, component, until};

fn step(more: &Value) -> Value {
    let mut step = json!({"id": "own", "kind": "component", "path": "own", "retry": {"max_attempts": 1}});
    if let (Some(step), Some(more)) = (step.as_object_mut(), more.as_object()) {
        step.extend(more.clone());
    }
    json!([step])
}

/// A server with the guest `step_guest` as the step component `own`, from a file that the test may replace.
async fn start_with_step(folder: &Folder, file: &Path) -> Result<Server> {
    std::fs::copy(component("step_guest.wasm")?, file)?;
    let steps = format!("pipelines.steps=[\"own={}\"]", file.display());
    Server::start_stub(&[&folder.arguments()[..], &["--set", &steps]].concat()).await
}

#[tokio::test]
async fn faulty_component_step_is_contained() -> Result<()> {
    let folder = Folder::new(&[
        ("own", step(&json!({"config": {"threshold": 0.8}, "deadline_ms": 2000, "memory_bytes_max": 20_000_000}))),
        ("missing", step(&json!({"path": "nobody"}))),
    ])?;
    let dir = tempfile::tempdir()?;
    let server = start_with_step(&folder, &dir.path().join("own.wasm")).await?;
    // Each call has a new instance.
    for _ in 0..2 {
        let good = run(&server, "own", &json!({"a": [1, "é\n"]})).await?;
        assert_eq!(
            good["output"],
            json!({"input": {"a": [1, "é\n"]}, "config": {"threshold": 0.8}, "calls": 1}),
            "{good}"
        );
    }
    let look = run(&server, "own", &json!("!look")).await?;
    assert_eq!(look["output"], json!({"files": 0, "variables": 0, "arguments": 0, "denied": true}), "{look}");
    for (input, code) in [
        ("!trap", "step_trapped"),
        ("!spin", "step_deadline"),
        ("!sleep", "step_deadline"),
        ("!eat", "step_memory"),
        ("!fail", "not_today"),
        ("!last", "never"),
        ("!text", "step_output"),
    ] {
        let began = Instant::now();
        let execution = run(&server, "own", &json!(input)).await?;
        assert_eq!(
            (&execution["state"], &execution["failure"]["code"]),
            (&json!("failed"), &json!(code)),
            "{input}: {execution}"
        );
        assert!(began.elapsed() < Duration::from_secs(30), "{input} took {:?}", began.elapsed());
    }
    assert_eq!(run(&server, "missing", &json!(1)).await?["failure"]["code"], "unknown_step");
    // Other executions run while one spins.
    let spinning = start_execution(&server, "own", &json!("!spin")).await?;
    assert_eq!(run(&server, "own", &json!(1)).await?["state"], "completed");
    assert_eq!(wait_until_ended(&server, &spinning).await?["failure"]["code"], "step_deadline");
    assert!(server.metric("weir_step_calls_total").await? >= 11.0);
    assert_eq!(server.metric("weir_keeper_lost_total").await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn component_is_replaced_while_executions_run() -> Result<()> {
    let folder = Folder::new(&[("own", step(&json!({})))])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("own.wasm");
    let server = start_with_step(&folder, &file).await?;
    let is_new = |status: &Value| status["output"]["INPUT"] == 1;
    assert_eq!(run(&server, "own", &json!(1)).await?["output"]["input"], 1);
    // A file that is not a component does not replace the earlier one.
    std::fs::write(&file, b"half of a file")?;
    until("the file is rejected", || async {
        assert_eq!(run(&server, "own", &json!(1)).await?["output"]["input"], 1);
        Ok(server.log().contains("a component cannot be used"))
    })
    .await?;
    // The same component, with INPUT in place of input in its output.
    let old = std::fs::read(component("step_guest.wasm")?)?;
    let at = old.windows(9).position(|bytes| bytes == b"{\"input\":").context("the text to replace")?;
    let new = [&old[..at], b"{\"INPUT\":", &old[at + 9..]].concat();
    std::fs::write(dir.path().join("new.wasm"), new)?;
    std::fs::rename(dir.path().join("new.wasm"), &file)?;
    let mut is_new_in_order = Vec::new();
    let began = Instant::now();
    loop {
        let input = json!(1);
        let all = futures::future::try_join_all((0..4).map(|_| run(&server, "own", &input))).await?;
        for status in &all {
            assert_eq!(status["state"], "completed", "{status}");
            check_contiguous(&events(&server, status["execution_id"].as_str().context("an id")?).await?)?;
        }
        // Those of a round are concurrent: they have no order among themselves.
        let mut round: Vec<bool> = all.iter().map(is_new).collect();
        round.sort_unstable();
        is_new_in_order.extend(round);
        if all.iter().all(is_new) {
            break;
        }
        assert!(began.elapsed() < weir_tests::PATIENCE, "the component is not replaced");
    }
    assert!(is_new_in_order.is_sorted(), "{is_new_in_order:?}");
    Ok(())
}

/// Starts a service whose response depends on the path; its authority, its count of requests, and the requests.
async fn start_service() -> Result<(String, Arc<AtomicUsize>, Arc<std::sync::Mutex<Vec<String>>>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let authority = listener.local_addr()?.to_string();
    let (count, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(std::sync::Mutex::new(Vec::new())));
    let (counted, requests) = (count.clone(), heads.clone());
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let n = counted.fetch_add(1, Ordering::SeqCst);
            let requests = requests.clone();
            tokio::spawn(async move {
                let Some(request) = read_request(&mut socket).await else { return };
                let path = request.split(' ').nth(1).unwrap_or_default().to_owned();
                let body = request.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default();
                if let Ok(mut requests) = requests.lock() {
                    requests.push(request);
                }
                let (status, kind, body) = match path.as_str() {
                    "/echo" => ("200 OK", "application/json", format!("{{\"got\": {body}}}")),
                    "/busy" if n == 0 => ("503 Busy", "text/plain", String::new()),
                    "/busy" => ("200 OK", "text/plain", "at last".to_owned()),
                    "/large" => ("200 OK", "text/plain", "x".repeat(400_000)),
                    "/never" => return tokio::time::sleep(Duration::from_secs(600)).await,
                    "/torn" => ("200 OK", "application/json", "{".to_owned()),
                    _ => ("404 Not Found", "text/plain", String::new()),
                };
                let head =
                    format!("HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {}\r\n\r\n", body.len());
                let _ = socket.write_all(format!("{head}{body}").as_bytes()).await;
            });
        }
    });
    Ok((authority, count, heads))
}

#[tokio::test]
async fn http_step_calls_allowed_services_only() -> Result<()> {
    let (allowed, count, requests) = start_service().await?;
    let (other, other_count, _) = start_service().await?;
    let retry = json!({"max_attempts": 3, "base_backoff_ms": 1, "policy": "fixed_delay"});
    let call = |authority: &str, path: &str, more: Value| {
        let mut step =
            json!({"id": "call", "kind": "http", "url": format!("http://{authority}{path}"), "retry": retry});
        if let (Some(step), Some(more)) = (step.as_object_mut(), more.as_object()) {
            step.extend(more.clone());
        }
        json!([step])
    };
    let folder = Folder::new(&[
        ("busy", call(&allowed, "/busy", json!({"method": "GET"}))),
        ("echo", call(&allowed, "/echo", json!({"headers": {"X-Own": "yes"}, "body": "{total: sum(prices)}"}))),
        ("whole", call(&allowed, "/echo", json!({"method": "PUT"}))),
        ("large", call(&allowed, "/large", json!({"method": "GET"}))),
        ("never", call(&allowed, "/never", json!({"timeout_ms": 300, "retry": {"max_attempts": 1}}))),
        ("torn", call(&allowed, "/torn", json!({}))),
        ("missing", call(&allowed, "/missing", json!({}))),
        ("refused", call(&other, "/echo", json!({}))),
        ("closed", call("127.0.0.1:1", "/", json!({}))),
    ])?;
    let allow = format!("pipelines.http_allow=[\"{allowed}\", \"127.0.0.1:1\"]");
    let server = Server::start_stub(&[&folder.arguments()[..], &["--set", &allow]].concat()).await?;
    let busy = run(&server, "busy", &json!({})).await?;
    assert_eq!((&busy["output"], count.load(Ordering::SeqCst)), (&json!("at last"), 2), "{busy}");
    let echo = run(&server, "echo", &json!({"prices": [1, 2.5]})).await?;
    assert_eq!(echo["output"], json!({"got": {"total": 3.5}}), "{echo}");
    let whole = run(&server, "whole", &json!({"a": "é"})).await?;
    assert_eq!(whole["output"], json!({"got": {"a": "é"}}), "{whole}");
    {
        let requests = requests.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
        let key =
            |text: &String| text.lines().find(|line| line.starts_with("idempotency-key: exec_")).map(str::to_owned);
        // Both attempts of a step have the same key, and another execution has another.
        assert!(
            key(&requests[0]).is_some()
                && key(&requests[0]) == key(&requests[1])
                && key(&requests[0]) != key(&requests[2])
        );
        let post = requests[2].to_lowercase();
        assert!(post.starts_with("post /echo http/1.1\r\n") && post.contains("\r\nx-own: yes\r\n"), "{post}");
        assert!(post.contains("\r\ncontent-type: application/json\r\n"), "{post}");
        assert!(requests[3].starts_with("PUT "), "{}", requests[3]);
    }
    for (name, code) in [
        ("large", "output_too_large"),
        ("never", "step_timeout"),
        ("torn", "http_answer"),
        ("missing", "http_status"),
        ("refused", "http_not_allowed"),
        ("closed", "http_unreachable"),
    ] {
        let execution = run(&server, name, &json!({})).await?;
        assert_eq!(execution["failure"]["code"], code, "{name}: {execution}");
    }
    assert_eq!(other_count.load(Ordering::SeqCst), 0, "a service that is not allowed was called");
    Ok(())
}
