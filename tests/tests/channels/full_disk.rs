//! A full disk: the behaviour of the channel store and of `events.file`, readiness, the exit status, and the stored events afterwards.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use weir_tests::client::{post, publish};
use weir_tests::follow::Follower;
use weir_tests::pipelines::Folder;
use weir_tests::{Server, auth, until};

/// A server with a disk store whose file size can be limited: with SIGXFSZ ignored, writes past the limit fail as on a full disk.
async fn on_full_disk(path: &Path, durable: bool) -> Result<Server> {
    let path = format!("events.path={}", path.display());
    bounded(&["events.store=disk", &path, &format!("events.durable={durable}")]).await
}

/// A server with settings whose file sizes can be limited.
async fn bounded(settings: &[&str]) -> Result<Server> {
    let stub = weir_tests::component("infer_stub.wasm")?;
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\""]).arg(weir_tests::weir()?);
    command.args(["serve", "--listen", "127.0.0.1:0", "--set", "models.replicas=1"]);
    command.args(["--component", &format!("infer={}", stub.display())]).arg("--models-dir").arg(weir_tests::models());
    for setting in settings {
        command.args(["--set", setting]);
    }
    let server = Server::spawn(command, "listening on http://")?;
    server.ready().await?;
    Ok(server)
}

/// Limits the size of the files of a server.
fn bound_files(server: &Server, bytes: &str) -> Result<()> {
    let (pid, bound) = (server.id().to_string(), format!("--fsize={bytes}:unlimited"));
    ensure!(Command::new("prlimit").args([&bound, "--pid", &pid]).status()?.success(), "prlimit {bound}");
    Ok(())
}

/// Publishes to users in turn until a response is 503; appends the user and the event id of each 200.
async fn publish_until_refused(server: &Server, acknowledged: &mut Vec<(String, String)>) -> Result<()> {
    let pad = "x".repeat(20_000);
    for number in acknowledged.len().. {
        let user = format!("u{}", number % 200);
        let body = json!({"message": user, "metadata": {"number": number, "pad": pad}});
        let (status, response) = post(server, &format!("/stream/publish/user/{user}"), &body).await?;
        if status != 200 {
            ensure!(status == 503 && response["code"] == "events_unavailable", "{status} {response}");
            break;
        }
        acknowledged.push((user, response["id"].as_str().context("an id")?.to_owned()));
    }
    Ok(())
}

async fn readiness(server: &Server) -> Result<u16> {
    Ok(reqwest::get(server.url("/readyz")).await?.status().as_u16())
}

#[tokio::test]
async fn full_disk_makes_the_server_unready_and_loses_no_event() -> Result<()> {
    for durable in [true, false] {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("events.redb");
        let mut acknowledged = Vec::new();
        let mut server = on_full_disk(&file, durable).await?;
        for _ in 0..2 {
            bound_files(&server, &std::fs::metadata(&file)?.len().to_string())?;
            publish_until_refused(&server, &mut acknowledged).await?;
            assert_eq!(readiness(&server).await?, 503);
            bound_files(&server, "unlimited")?;
            // The server becomes ready without a request.
            server.ready().await?;
            let (status, _) = post(&server, "/stream/publish/user/new", &json!({"message": "new"})).await?;
            assert_eq!(status, 200);
        }
        server.signal("TERM")?;
        assert!(server.wait().await?.success(), "{}", server.log());
        let server = on_full_disk(&file, durable).await?;
        for user in (0..200).map(|user| format!("u{user}")) {
            let ids: Vec<_> = acknowledged.iter().filter(|(owner, _)| *owner == user).map(|(_, id)| id).collect();
            let mut follower = Follower::open(&server, &format!("/stream/user/{user}"), None).await?;
            for id in &ids {
                let event = loop {
                    // A refused event may be stored nevertheless, or have left a gap.
                    let event = follower.next_stored_event().await?;
                    if event.name == "notification" {
                        assert_eq!(event.data["message"], json!(user), "{event:?}");
                    }
                    if event.id == **id {
                        break event;
                    }
                };
                assert_eq!(event.name, "notification");
            }
        }
    }
    Ok(())
}

/// A retry does not wait for the claim of the failed attempt to expire.
#[tokio::test]
async fn channel_and_key_with_a_failed_first_write_recover_with_the_disk() -> Result<()> {
    // A failed claim would block a channel for 5 s, and an idempotency key for 10 s.
    const RECOVERY_MAX: Duration = Duration::from_secs(4);
    const ROUNDS: usize = 6;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let folder = Folder::new(&[("p", json!([{"id": "a", "kind": "map", "expression": "@"}]))])?;
    let mut settings = auth::settings(dir.path())?;
    settings.extend(["events.store=disk".to_owned(), format!("events.path={}", file.display())]);
    settings.push(format!("pipelines.dir={}", folder.path().display()));
    settings.extend(["auth.publishes_burst=100000".to_owned(), "auth.requests_burst=100000".to_owned()]);
    let server = bounded(&settings.iter().map(String::as_str).collect::<Vec<_>>()).await?;
    let publish = async |id: usize| {
        let path = format!("/stream/publish/workflow/w{id}");
        auth::publish(&server, &path, auth::WORKER, &auth::progress_body(Some("ann"))).await
    };
    let start = async |id: usize| {
        let request = auth::request_as(&server, Method::POST, "/pipelines/p", auth::ADMIN);
        let request = request.header("idempotency-key", format!("key-{id}")).header("prefer", "respond-async");
        auth::status(request.json(&json!({"text": "x".repeat(3000)}))).await
    };
    let mut next = 0;
    for _ in 0..ROUNDS {
        bound_files(&server, &std::fs::metadata(&file)?.len().to_string())?;
        let mut refused = Vec::new();
        while refused.len() < 12 {
            next += 1;
            for (what, status) in [("workflow", publish(next).await?), ("pipeline", start(next).await?)] {
                ensure!(matches!(status, 200 | 202 | 503), "{what}: {status}");
                if status == 503 {
                    refused.push((what, next));
                }
            }
        }
        bound_files(&server, "unlimited")?;
        server.ready().await?;
        let freed_at = Instant::now();
        // All at once, so that none waits for the writes of the others.
        let recoveries = refused.into_iter().map(async |(what, id)| {
            let is_accepted = async || match what {
                "workflow" => Ok(publish(id).await? == 200),
                _ => Ok(start(id).await? == 202),
            };
            until(&format!("{what} {id}"), is_accepted).await?;
            let after = freed_at.elapsed();
            ensure!(after < RECOVERY_MAX, "{what} {id}: {after:?} after the disk had space");
            anyhow::Ok(())
        });
        futures::future::try_join_all(recoveries).await?;
    }
    Ok(())
}

#[tokio::test]
async fn full_disk_leaves_whole_lines_and_the_missed_count_in_the_events_file() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.ndjson");
    let server = bounded(&[&format!("events.file={}", file.display())]).await?;
    bound_files(&server, "4000")?;
    for number in 0..70 {
        publish(&server, "w", number).await?;
    }
    until("events are missing", || async { Ok(server.log().contains("events cannot be written to events.file")) })
        .await?;
    bound_files(&server, "unlimited")?;
    let lines = || std::fs::read_to_string(&file).unwrap_or_default();
    // The gap is written without a further event.
    until("the loss is recorded", || async { Ok(lines().contains("{\"type\":\"gap\"")) }).await?;
    publish(&server, "w", 70).await?;
    until("events are written again", || async { Ok(lines().contains("\"message\":\"n70\"")) }).await?;
    let mut next = 0;
    for line in lines().lines() {
        let line: Value = serde_json::from_str(line).with_context(|| format!("an incomplete line: {line}"))?;
        if line["type"] == "gap" {
            next += line["missed"].as_u64().context("a number")?;
        } else {
            assert_eq!(line["data"]["message"], json!(format!("n{next}")));
            next += 1;
        }
    }
    assert_eq!(next, 71);
    Ok(())
}

#[tokio::test]
async fn shutdown_on_a_full_disk_exits_with_1_and_leaves_a_gap() -> Result<()> {
    for durable in [true, false] {
        let dir = tempfile::tempdir()?;
        let file = dir.path().join("events.redb");
        let mut acknowledged = Vec::new();
        let mut server = on_full_disk(&file, durable).await?;
        bound_files(&server, &std::fs::metadata(&file)?.len().to_string())?;
        publish_until_refused(&server, &mut acknowledged).await?;
        // With this limit no write at all succeeds.
        bound_files(&server, "0")?;
        server.signal("TERM")?;
        assert_eq!(server.wait().await?.code(), Some(1), "{}", server.log());
        server.wait_for_log("the last write of the channel store failed").await?;
        let server = on_full_disk(&file, durable).await?;
        let (user, id) = acknowledged.last().context("an acknowledged event")?;
        let (_, response) = post(&server, &format!("/stream/publish/user/{user}"), &json!({"message": user})).await?;
        let mut follower = Follower::open(&server, &format!("/stream/user/{user}"), Some(id)).await?;
        loop {
            let event = follower.next_stored_event().await?;
            assert!(event.name == "gap" || event.data["message"] == json!(user), "{event:?}");
            if json!(event.id) == response["id"] {
                break;
            }
        }
    }
    Ok(())
}
