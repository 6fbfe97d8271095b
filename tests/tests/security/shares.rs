//! What one user may have of what all users share: one fills its share, and the others go on working and keep their history.

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
/// How long the history of a channel may take to come.
const HISTORY: Duration = Duration::from_secs(10);
const NDJSON: &str = "application/x-ndjson";

/// The folder of keys of a test.
fn keys() -> Result<TempDir> {
    let keys = tempfile::tempdir()?;
    std::fs::write(keys.path().join("api_keys"), API_KEYS)?;
    Ok(keys)
}

/// A server that asks for keys, with settings.
async fn server(keys: &Path, settings: &[&str], more: &[&str]) -> Result<Server> {
    let dir = format!("auth.dir={}", keys.display());
    let mut arguments = vec!["--set", "auth.mode=required", "--set", &dir];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    arguments.extend(more);
    let server = Server::start_stub(&arguments).await?;
    Ok(server)
}

fn ask(server: &Server, method: Method, path: &str, key: &str) -> RequestBuilder {
    Client::new().request(method, server.url(path)).bearer_auth(key)
}

async fn create(server: &Server, key: &str, config: &Value) -> Result<Response> {
    Ok(ask(server, Method::POST, "/sessions", key).json(config).send().await?)
}

/// The id of a session that was created.
async fn created(response: Response) -> Result<String> {
    let status = response.status();
    let body: Value = response.json().await?;
    ensure!(status == 201, "{status}: {body}");
    Ok(body["session_id"].as_str().context("an id")?.to_owned())
}

/// Checks that an answer refuses with a status and a code, and says when to come back.
async fn refused(response: Response, status: u16, code: &str) -> Result<()> {
    let (got, after) = (response.status().as_u16(), response.headers().get("retry-after").cloned());
    let body: Value = response.json().await?;
    ensure!(got == status && body["code"] == code && body["retryable"] == true, "{got}: {body}");
    let seconds: u32 = after.context("Retry-After")?.to_str()?.parse()?;
    ensure!(seconds >= 1);
    Ok(())
}

/// Creates sessions until one is refused; the ids and the refusal.
async fn fill(server: &Server, key: &str) -> Result<(Vec<String>, Response)> {
    let mut ids = Vec::new();
    loop {
        let response = create(server, key, &json!({})).await?;
        if response.status() != 201 {
            return Ok((ids, response));
        }
        ids.push(created(response).await?);
        ensure!(ids.len() < 400, "nothing is refused");
    }
}

/// Feeds a session a chunk, and ends it; the types of what it says.
async fn feed(server: &Server, key: &str, id: &str) -> Result<Vec<Value>> {
    let chunk = json!({"start": 0, "end": 1, "text": "I'll check the price", "speaker_id": "a", "seq": 1});
    let path = format!("/sessions/{id}/chunks");
    let request = ask(server, Method::POST, &path, key).header("content-type", NDJSON).body(format!("{chunk}\n"));
    let response = request.send().await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    weir_tests::ndjson(&response.text().await?)
}

async fn readiness(server: &Server) -> Result<(u16, Value)> {
    let response = reqwest::get(server.url("/readyz")).await?;
    Ok((response.status().as_u16(), response.json().await?))
}

async fn classifies(server: &Server, key: &str) -> Result<bool> {
    let response = ask(server, Method::POST, "/v1/classify", key).json(&json!({"inputs": ["good"]})).send().await?;
    Ok(response.status() == 200)
}

/// Settings of a store, and its folder or its server.
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
        let mut server = server(keys.path(), &settings, &[]).await?;
        let of_bob = created(create(&server, BOB, &json!({})).await?).await?;
        let (ids, response) = fill(&server, ANN).await?;
        ensure!(ids.len() > 3, "{}", ids.len());
        refused(response, 429, "share_exceeded").await?;
        // The other creates, feeds and reads.
        let another = created(create(&server, BOB, &json!({})).await?).await?;
        for id in [&of_bob, &another] {
            let events = feed(&server, BOB, id).await?;
            ensure!(events.iter().all(|event| event["type"] != "error"), "{events:?}");
        }
        assert_eq!(readiness(&server).await?.1["exhausted"], json!([]));
        let is_kept = folder.is_some() || redis.is_some();
        if is_kept {
            server.signal("TERM")?;
            server.wait().await?;
            server = self::server(keys.path(), &settings, &[]).await?;
            refused(create(&server, ANN, &json!({})).await?, 429, "share_exceeded").await?;
            created(create(&server, BOB, &json!({})).await?).await?;
        }
        // What is deleted is given back.
        let response = ask(&server, Method::DELETE, &format!("/sessions/{}", ids[0]), ANN).send().await?;
        ensure!(response.status().is_success(), "{}", response.text().await?);
        created(create(&server, ANN, &json!({})).await?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn full_store_answers_503_and_readiness_names_it_while_inference_is_served() -> Result<()> {
    for (store, _folder, _redis) in stores()? {
        let keys = keys()?;
        let mut settings: Vec<&str> = store.iter().map(String::as_str).collect();
        settings.extend(["events.state_bytes_max=60000", "events.user_percent_max=100"]);
        let server = server(keys.path(), &settings, &[]).await?;
        let (ids, response) = fill(&server, ANN).await?;
        refused(response, 429, "share_exceeded").await?;
        refused(create(&server, BOB, &json!({})).await?, 503, "store_full").await?;
        let (status, body) = readiness(&server).await?;
        assert_eq!((status, &body["exhausted"]), (200, &json!(["events.state_bytes_max"])), "{body}");
        assert!(classifies(&server, BOB).await?);
        for id in ids.iter().take(4) {
            let response = ask(&server, Method::DELETE, &format!("/sessions/{id}"), ANN).send().await?;
            ensure!(response.status().is_success(), "{}", response.text().await?);
        }
        created(create(&server, BOB, &json!({})).await?).await?;
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
    refused(response, 503, "store_full").await?;
    ensure!(count > 10, "{count}");
    Ok(())
}

#[tokio::test]
async fn user_with_many_channels_evicts_no_history_of_another() -> Result<()> {
    for (store, _folder, _redis) in stores()? {
        let keys = keys()?;
        let mut settings: Vec<&str> = store.iter().map(String::as_str).collect();
        settings.push("events.channels_max=16");
        let server = server(keys.path(), &settings, &[]).await?;
        let publish = async |key: &str, id: &str| -> Result<()> {
            let body = json!({"step": "s", "progress": 1, "message": "m"});
            let response = ask(&server, Method::POST, &format!("/stream/publish/workflow/{id}"), key).json(&body);
            let response = response.send().await?;
            ensure!(response.status() == 200, "{}", response.text().await?);
            Ok(())
        };
        let has_history = async |id: &str| -> Result<bool> {
            let response = ask(&server, Method::GET, &format!("/stream/workflow/{id}"), BOB).send().await?;
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
            ensure!(has_history(id).await?, "{id} is gone");
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
    let server = server(keys.path(), &settings, &folder.arguments()).await?;
    let default = json!({});
    let sessions = try_join_all((0..12).map(|_| create(&server, ANN, &default))).await?;
    let mut taken = Vec::new();
    for response in sessions {
        if response.status() == 201 {
            taken.push(created(response).await?);
        } else {
            refused(response, 429, "too_many_sessions").await?;
        }
    }
    assert_eq!(taken.len(), 3);
    let begin = |key| ask(&server, Method::POST, "/pipelines/mood", key).json(&json!("!never")).send();
    let mut begun = 0;
    for response in try_join_all((0..12).map(|_| begin(ANN))).await? {
        if response.status() == 202 {
            begun += 1;
        } else {
            refused(response, 429, "too_many_executions").await?;
        }
    }
    assert_eq!(begun, 3);
    assert_eq!(readiness(&server).await?.1["exhausted"], json!([]));
    for _ in 0..2 {
        created(create(&server, BOB, &json!({})).await?).await?;
        ensure!(begin(BOB).await?.status() == 202);
    }
    // Now there are as many as there may be for all.
    refused(create(&server, BOB, &json!({})).await?, 503, "sessions_full").await?;
    refused(begin(BOB).await?, 503, "executions_full").await?;
    let (status, body) = readiness(&server).await?;
    assert_eq!((status, &body["exhausted"]), (200, &json!(["sessions.live_max", "pipelines.executions_max"])));
    ask(&server, Method::DELETE, &format!("/sessions/{}", taken[0]), ANN).send().await?.error_for_status()?;
    until("there is room", || async {
        Ok(readiness(&server).await?.1["exhausted"] == json!(["pipelines.executions_max"]))
    })
    .await?;
    created(create(&server, ANN, &json!({})).await?).await?;
    Ok(())
}

#[tokio::test]
async fn session_without_expiry_needs_the_setting_of_the_operator() -> Result<()> {
    let keys = keys()?;
    let server = server(keys.path(), &["sessions.expire_ms_max=86400000"], &[]).await?;
    for expire_ms in [0_u64, 86_400_001] {
        let response = create(&server, ANN, &json!({"idle": {"expire_ms": expire_ms, "warn_ms": 0}})).await?;
        let status = response.status().as_u16();
        let body: Value = response.json().await?;
        ensure!(status == 422 && body.to_string().contains("86400000"), "{status}: {body}");
    }
    created(create(&server, ANN, &json!({"idle": {"expire_ms": 86_400_000}})).await?).await?;
    drop(server);
    let server = self::server(keys.path(), &["sessions.expire_ms_max=0"], &[]).await?;
    created(create(&server, ANN, &json!({"idle": {"expire_ms": 0, "warn_ms": 0}})).await?).await?;
    Ok(())
}

#[tokio::test]
async fn execution_of_a_user_with_a_full_share_completes() -> Result<()> {
    let keys = keys()?;
    let folder = Folder::new(&[("mood", json!([{"id": "mood", "kind": "sentiment"}]))])?;
    let server = server(keys.path(), &["events.state_bytes_max=200000"], &folder.arguments()).await?;
    let response = ask(&server, Method::POST, "/pipelines/mood", ANN).json(&json!("!slow")).send().await?;
    ensure!(response.status() == 202);
    let body: Value = response.json().await?;
    let id = body["execution_id"].as_str().context("an id")?.to_owned();
    let (_, response) = fill(&server, ANN).await?;
    refused(response, 429, "share_exceeded").await?;
    until("it has ended", || async {
        let response = ask(&server, Method::GET, &format!("/executions/{id}"), ANN).send().await?;
        let status: Value = response.error_for_status()?.json().await?;
        Ok(status["state"] == "completed")
    })
    .await?;
    Ok(())
}

/// The sessions of before count for their user from the first request of a new server on.
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
    let mut server = server(keys.path(), &settings, &[]).await?;
    try_join_all((0..SESSIONS).map(|_| async { created(create(&server, ANN, &json!({})).await?).await })).await?;
    refused(create(&server, ANN, &json!({})).await?, 429, "too_many_sessions").await?;
    server.signal("KILL")?;
    server.wait().await?;
    let dir = format!("auth.dir={}", keys.path().display());
    let mut arguments = vec!["--set", "auth.mode=required", "--set", &dir];
    arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
    // Not ready yet: these are its first requests.
    let server = Server::launch_stub(&arguments)?;
    let config = json!({});
    let responses = try_join_all((0..20).map(|_| create(&server, ANN, &config))).await?;
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
