//! Shares of a user in shared resources: one user exhausts its share, and the others are served and keep their history.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::future::try_join_all;
use reqwest::{Client, Method, RequestBuilder, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_tests::follow::Follower;
use weir_tests::pipelines::Folder;
use weir_tests::redis::Redis;
use weir_tests::{Server, until};

const ANN: &str = "weir_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
const BOB: &str = "weir_AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI";
const API_KEYS: &str = "\
ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37 start:pipeline:* publish:workflow:* read:workflow:*
bob bob sha256:4d764170b1d6528180ca8f712c94a712b1c66239c05234a4264750a7c78c656c start:pipeline:* publish:workflow:* read:workflow:*
";
/// Time limit of the first event of a history.
const HISTORY: Duration = Duration::from_secs(10);
const NDJSON: &str = "application/x-ndjson";

/// A folder with the key file.
fn keys() -> Result<TempDir> {
    let keys = tempfile::tempdir()?;
    std::fs::write(keys.path().join("api_keys"), API_KEYS)?;
    Ok(keys)
}

/// Starts a server with authentication and with settings.
async fn start_server(keys: &Path, settings: &[&str], more: &[&str]) -> Result<Server> {
    let dir = format!("auth.dir={}", keys.display());
    let mut arguments = vec!["--set", "auth.mode=required", "--set", &dir];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    arguments.extend(more);
    let server = Server::start_stub(&arguments).await?;
    Ok(server)
}

fn request_as(server: &Server, method: Method, path: &str, key: &str) -> RequestBuilder {
    Client::new().request(method, server.url(path)).bearer_auth(key)
}

async fn create_session(server: &Server, key: &str, config: &Value) -> Result<Response> {
    Ok(request_as(server, Method::POST, "/sessions", key).json(config).send().await?)
}

/// The id of the session in a response, which must be 201.
async fn session_id(response: Response) -> Result<String> {
    let status = response.status();
    let body: Value = response.json().await?;
    ensure!(status == 201, "{status}: {body}");
    Ok(body["session_id"].as_str().context("an id")?.to_owned())
}

/// Checks that a response is a retryable refusal with a status, a code and `Retry-After`.
async fn check_refused(response: Response, status: u16, code: &str) -> Result<()> {
    let (got, after) = (response.status().as_u16(), response.headers().get("retry-after").cloned());
    let body: Value = response.json().await?;
    ensure!(got == status && body["code"] == code && body["retryable"] == true, "{got}: {body}");
    let seconds: u32 = after.context("Retry-After")?.to_str()?.parse()?;
    ensure!(seconds >= 1);
    Ok(())
}

/// Creates sessions until one is refused; the ids and the refusal.
async fn create_sessions_until_refused(server: &Server, key: &str) -> Result<(Vec<String>, Response)> {
    let mut ids = Vec::new();
    loop {
        let response = create_session(server, key, &json!({})).await?;
        if response.status() != 201 {
            return Ok((ids, response));
        }
        ids.push(session_id(response).await?);
        ensure!(ids.len() < 400, "no session is refused");
    }
}

/// Feeds one chunk to a session; the lines of the response.
async fn feed(server: &Server, key: &str, id: &str) -> Result<Vec<Value>> {
    let chunk = json!({"start": 0, "end": 1, "text": "I'll check the price", "speaker_id": "a", "seq": 1});
    let path = format!("/sessions/{id}/chunks");
    let request =
        request_as(server, Method::POST, &path, key).header("content-type", NDJSON).body(format!("{chunk}\n"));
    let response = request.send().await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    weir_tests::ndjson(&response.text().await?)
}

async fn readiness(server: &Server) -> Result<(u16, Value)> {
    let response = reqwest::get(server.url("/readyz")).await?;
    Ok((response.status().as_u16(), response.json().await?))
}

async fn can_classify(server: &Server, key: &str) -> Result<bool> {
    let response =
        request_as(server, Method::POST, "/v1/classify", key).json(&json!({"inputs": ["good"]})).send().await?;
    Ok(response.status() == 200)
}

/// Settings of a store, and its folder or its Redis server.
type StoreSettings = (Vec<String>, Option<TempDir>, Option<Redis>);

fn stores() -> Result<Vec<StoreSettings>> {
    let folder = tempfile::tempdir()?;
    let disk = vec!["events.store=disk".to_owned(), format!("events.path={}", folder.path().join("e.redb").display())];
    let redis = Redis::start()?;
    let in_redis = vec!["events.store=redis".to_owned(), format!("events.redis_url={}", redis.url())];
    Ok(vec![
        (vec!["events.store=memory".to_owned()], None, None),
        (disk, Some(folder), None),
        (in_redis, None, Some(redis)),
    ])
}

#[tokio::test]
async fn user_with_a_full_share_of_state_is_refused_and_another_served_across_a_restart() -> Result<()> {
    for (store, folder, redis) in stores()? {
        let keys = keys()?;
        let mut settings: Vec<&str> = store.iter().map(String::as_str).collect();
        settings.extend(["events.state_bytes_max=200000", "events.lease_ms=1000"]);
        let mut server = start_server(keys.path(), &settings, &[]).await?;
        let bobs_session = session_id(create_session(&server, BOB, &json!({})).await?).await?;
        let (ids, response) = create_sessions_until_refused(&server, ANN).await?;
        ensure!(ids.len() > 3, "{}", ids.len());
        check_refused(response, 429, "share_exceeded").await?;
        // The other user creates and feeds sessions.
        let second_session = session_id(create_session(&server, BOB, &json!({})).await?).await?;
        for id in [&bobs_session, &second_session] {
            let events = feed(&server, BOB, id).await?;
            ensure!(events.iter().all(|event| event["type"] != "error"), "{events:?}");
        }
        assert_eq!(readiness(&server).await?.1["exhausted"], json!([]));
        let survives_restart = folder.is_some() || redis.is_some();
        if survives_restart {
            server.signal("TERM")?;
            server.wait().await?;
            server = start_server(keys.path(), &settings, &[]).await?;
            check_refused(create_session(&server, ANN, &json!({})).await?, 429, "share_exceeded").await?;
            session_id(create_session(&server, BOB, &json!({})).await?).await?;
        }
        // Deleting a session frees its part of the share.
        let response = request_as(&server, Method::DELETE, &format!("/sessions/{}", ids[0]), ANN).send().await?;
        ensure!(response.status().is_success(), "{}", response.text().await?);
        session_id(create_session(&server, ANN, &json!({})).await?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn full_store_answers_503_and_readiness_names_it_while_inference_is_served() -> Result<()> {
    for (store, _folder, _redis) in stores()? {
        let keys = keys()?;
        let mut settings: Vec<&str> = store.iter().map(String::as_str).collect();
        settings.extend(["events.state_bytes_max=60000", "events.user_percent_max=100"]);
        let server = start_server(keys.path(), &settings, &[]).await?;
        let (ids, response) = create_sessions_until_refused(&server, ANN).await?;
        check_refused(response, 429, "share_exceeded").await?;
        check_refused(create_session(&server, BOB, &json!({})).await?, 503, "store_full").await?;
        let (status, body) = readiness(&server).await?;
        assert_eq!((status, &body["exhausted"]), (200, &json!(["events.state_bytes_max"])), "{body}");
        assert!(can_classify(&server, BOB).await?);
        for id in ids.iter().take(4) {
            let response = request_as(&server, Method::DELETE, &format!("/sessions/{id}"), ANN).send().await?;
            ensure!(response.status().is_success(), "{}", response.text().await?);
        }
        session_id(create_session(&server, BOB, &json!({})).await?).await?;
        assert_eq!(readiness(&server).await?.1["exhausted"], json!([]));
    }
    Ok(())
}

#[tokio::test]
async fn share_without_authentication_is_the_whole_store() -> Result<()> {
    let server =
        Server::start_stub(&["--set", "events.state_bytes_max=60000", "--set", "events.user_percent_max=1"]).await?;
    let mut count = 0;
    let response = loop {
        let response = Client::new().post(server.url("/sessions")).json(&json!({})).send().await?;
        if response.status() != 201 {
            break response;
        }
        count += 1;
    };
    check_refused(response, 503, "store_full").await?;
    ensure!(count > 10, "{count}");
    Ok(())
}

#[tokio::test]
async fn user_with_many_channels_evicts_no_history_of_another() -> Result<()> {
    for (store, _folder, _redis) in stores()? {
        let keys = keys()?;
        let mut settings: Vec<&str> = store.iter().map(String::as_str).collect();
        settings.push("events.channels_max=16");
        let server = start_server(keys.path(), &settings, &[]).await?;
        let publish = async |key: &str, id: &str| -> Result<()> {
            let body = json!({"step": "s", "progress": 1, "message": "m"});
            let response =
                request_as(&server, Method::POST, &format!("/stream/publish/workflow/{id}"), key).json(&body);
            let response = response.send().await?;
            ensure!(response.status() == 200, "{}", response.text().await?);
            Ok(())
        };
        let has_history = async |id: &str| -> Result<bool> {
            let response = request_as(&server, Method::GET, &format!("/stream/workflow/{id}"), BOB).send().await?;
            let mut follower = Follower::from_response(response, None)?;
            let next = tokio::time::timeout(HISTORY, follower.next_stored_event()).await;
            Ok(next.is_ok_and(|event| event.is_ok()))
        };
        for id in ["b0", "b1"] {
            publish(BOB, id).await?;
        }
        for id in 0..60 {
            publish(ANN, &format!("a{id}")).await?;
        }
        for id in ["b0", "b1", "a59"] {
            ensure!(has_history(id).await?, "the history of {id} is evicted");
        }
    }
    Ok(())
}

#[tokio::test]
async fn concurrent_requests_of_a_user_exceed_no_share_of_sessions_and_executions() -> Result<()> {
    let keys = keys()?;
    let folder = Folder::new(&[("mood", json!([{"id": "mood", "kind": "sentiment"}]))])?;
    let settings = [
        "sessions.user_live_max=3",
        "sessions.live_max=5",
        "pipelines.user_executions_max=3",
        "pipelines.executions_max=5",
    ];
    let server = start_server(keys.path(), &settings, &folder.arguments()).await?;
    let default = json!({});
    let sessions = try_join_all((0..12).map(|_| create_session(&server, ANN, &default))).await?;
    let mut ids = Vec::new();
    for response in sessions {
        if response.status() == 201 {
            ids.push(session_id(response).await?);
        } else {
            check_refused(response, 429, "too_many_sessions").await?;
        }
    }
    assert_eq!(ids.len(), 3);
    let start_execution = |key| request_as(&server, Method::POST, "/pipelines/mood", key).json(&json!("!never")).send();
    let mut started = 0;
    for response in try_join_all((0..12).map(|_| start_execution(ANN))).await? {
        if response.status() == 202 {
            started += 1;
        } else {
            check_refused(response, 429, "too_many_executions").await?;
        }
    }
    assert_eq!(started, 3);
    assert_eq!(readiness(&server).await?.1["exhausted"], json!([]));
    for _ in 0..2 {
        session_id(create_session(&server, BOB, &json!({})).await?).await?;
        ensure!(start_execution(BOB).await?.status() == 202);
    }
    // Now the bounds of all users together are reached.
    check_refused(create_session(&server, BOB, &json!({})).await?, 503, "sessions_full").await?;
    check_refused(start_execution(BOB).await?, 503, "executions_full").await?;
    let (status, body) = readiness(&server).await?;
    assert_eq!((status, &body["exhausted"]), (200, &json!(["sessions.live_max", "pipelines.executions_max"])));
    request_as(&server, Method::DELETE, &format!("/sessions/{}", ids[0]), ANN).send().await?.error_for_status()?;
    until("the sessions are not exhausted", || async {
        Ok(readiness(&server).await?.1["exhausted"] == json!(["pipelines.executions_max"]))
    })
    .await?;
    session_id(create_session(&server, ANN, &json!({})).await?).await?;
    Ok(())
}

#[tokio::test]
async fn session_without_expiry_needs_the_setting_of_the_operator() -> Result<()> {
    let keys = keys()?;
    let server = start_server(keys.path(), &["sessions.expire_ms_max=86400000"], &[]).await?;
    for expire_ms in [0_u64, 86_400_001] {
        let response = create_session(&server, ANN, &json!({"idle": {"expire_ms": expire_ms, "warn_ms": 0}})).await?;
        let status = response.status().as_u16();
        let body: Value = response.json().await?;
        ensure!(status == 422 && body.to_string().contains("86400000"), "{status}: {body}");
    }
    session_id(create_session(&server, ANN, &json!({"idle": {"expire_ms": 86_400_000}})).await?).await?;
    drop(server);
    let server = start_server(keys.path(), &["sessions.expire_ms_max=0"], &[]).await?;
    session_id(create_session(&server, ANN, &json!({"idle": {"expire_ms": 0, "warn_ms": 0}})).await?).await?;
    Ok(())
}

#[tokio::test]
async fn execution_of_a_user_with_a_full_share_completes() -> Result<()> {
    let keys = keys()?;
    let folder = Folder::new(&[("mood", json!([{"id": "mood", "kind": "sentiment"}]))])?;
    let server = start_server(keys.path(), &["events.state_bytes_max=200000"], &folder.arguments()).await?;
    let response = request_as(&server, Method::POST, "/pipelines/mood", ANN).json(&json!("!slow")).send().await?;
    ensure!(response.status() == 202);
    let body: Value = response.json().await?;
    let id = body["execution_id"].as_str().context("an id")?.to_owned();
    let (_, response) = create_sessions_until_refused(&server, ANN).await?;
    check_refused(response, 429, "share_exceeded").await?;
    until("the execution is completed", || async {
        let response = request_as(&server, Method::GET, &format!("/executions/{id}"), ANN).send().await?;
        let status: Value = response.error_for_status()?.json().await?;
        Ok(status["state"] == "completed")
    })
    .await?;
    Ok(())
}

/// Stored sessions count for their user from the first request to a new server.
#[tokio::test]
async fn user_with_a_full_share_of_sessions_is_refused_at_once_after_a_restart() -> Result<()> {
    const SESSIONS: usize = 300;
    let (keys, store) = (keys()?, tempfile::tempdir()?);
    let path = format!("events.path={}", store.path().join("events.redb").display());
    let max = format!("sessions.user_live_max={SESSIONS}");
    let settings = [
        "events.store=disk",
        &path,
        "events.durable=true",
        &max,
        "auth.publishes_burst=10000",
        "auth.requests_burst=10000",
    ];
    let mut server = start_server(keys.path(), &settings, &[]).await?;
    try_join_all((0..SESSIONS).map(|_| async { session_id(create_session(&server, ANN, &json!({})).await?).await }))
        .await?;
    check_refused(create_session(&server, ANN, &json!({})).await?, 429, "too_many_sessions").await?;
    server.signal("KILL")?;
    server.wait().await?;
    let dir = format!("auth.dir={}", keys.path().display());
    let mut arguments = vec!["--set", "auth.mode=required", "--set", &dir];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    // The server is not ready: these are its first requests.
    let server = Server::launch_stub(&arguments)?;
    let config = json!({});
    let responses = try_join_all((0..20).map(|_| create_session(&server, ANN, &config))).await?;
    for response in responses {
        let status = response.status().as_u16();
        let problem: Value = response.json().await?;
        let is_refused = match status {
            429 => problem["code"] == "too_many_sessions",
            503 => problem["code"] == "restoring",
            _ => false,
        };
        assert!(is_refused, "{status}: {problem}");
    }
    Ok(())
}
