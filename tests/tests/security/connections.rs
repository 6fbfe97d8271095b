//! The connections of a user are counted, and a ticket opens one connection.

use anyhow::{Result, ensure};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use weir_tests::auth::{ANN, BOB, issue_ticket, request_as, start_with_auth, status};
use weir_tests::follow::Follower;
use weir_tests::redis::Redis;
use weir_tests::websocket::WebSocket;
use weir_tests::{Raw, Server, until};

/// A subscription in the form that `accept` selects.
async fn subscribe(server: &Server, accept: &str) -> Result<Response> {
    Ok(request_as(server, Method::GET, "/stream/user/ann", ANN).header("accept", accept).send().await?)
}

/// A multiplexed subscription over NDJSON, the form of a WebSocket for hosts without them; its status and its connection.
async fn multiplex(server: &Server) -> Result<(u16, Raw)> {
    let mut raw = Raw::connect(server).await?;
    let head = format!(
        "POST /ws HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {ANN}\r\nContent-Type: application/x-ndjson\r\n",
        server.address()
    );
    raw.send(format!("{head}Transfer-Encoding: chunked\r\n\r\n").as_bytes()).await?;
    let head = raw.read_until("\r\n\r\n").await?;
    Ok((head[9..12].parse()?, raw))
}

#[tokio::test]
async fn connections_of_every_form_are_counted_together() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let one_each = ["--set", "auth.connections_max=4", "--set", "gateway.instance_requests_max=1"];
    let server = start_with_auth(dir.path(), &one_each).await?;
    let events = subscribe(&server, "text/event-stream").await?;
    let lines = subscribe(&server, "application/x-ndjson").await?;
    assert_eq!((events.status().as_u16(), lines.status().as_u16()), (200, 200));
    let socket = WebSocket::connect(&server, "/ws/user/ann", Some(ANN)).await?;
    let (status_of_lines, multiplexed) = multiplex(&server).await?;
    assert_eq!(status_of_lines, 200);
    // The share is exhausted for every form, and for this user alone.
    for accept in ["text/event-stream", "application/x-ndjson"] {
        let refused = subscribe(&server, accept).await?;
        assert_eq!(refused.status(), 429, "{accept}");
        assert!(refused.headers()["retry-after"].to_str()?.parse::<u32>()? >= 1);
        assert_eq!(refused.json::<Value>().await?["code"], "too_many_connections");
    }
    assert_eq!(WebSocket::open(&server, "/ws/user/ann", Some(ANN)).await?.err(), Some(429));
    assert_eq!(WebSocket::open(&server, "/ws", Some(ANN)).await?.err(), Some(429));
    assert_eq!(multiplex(&server).await?.0, 429);
    assert_eq!(status(request_as(&server, Method::GET, "/stream/user/bob", BOB)).await?, 200);
    // A closed connection of one form returns its permit for every form.
    drop(socket);
    let is_accepted = || async { Ok(subscribe(&server, "text/event-stream").await?.status() == 200) };
    until("the permit of the WebSocket is returned", is_accepted).await?;
    drop(events);
    until("the permit of the events is returned", || async {
        Ok(WebSocket::open(&server, "/ws/user/ann", Some(ANN)).await?.is_ok())
    })
    .await?;
    drop(multiplexed);
    until("the permit of the multiplexed lines is returned", is_accepted).await?;
    drop(lines);
    until("the permit of the lines is returned", || async { Ok(multiplex(&server).await?.0 == 200) }).await
}

#[tokio::test]
async fn refused_connection_uses_no_permit() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &["--set", "auth.connections_max=1"]).await?;
    for _ in 0..5 {
        assert_eq!(WebSocket::open(&server, "/ws/user/bob", Some(ANN)).await?.err(), Some(404));
        assert_eq!(status(request_as(&server, Method::GET, "/stream/user/bob", ANN)).await?, 404);
    }
    let _socket = WebSocket::connect(&server, "/ws/user/ann", Some(ANN)).await?;
    assert_eq!(subscribe(&server, "text/event-stream").await?.status(), 429);
    Ok(())
}

/// Opens the channel of a user with a ticket; the status.
async fn open_with_ticket(server: &Server, ticket: &str) -> Result<u16> {
    status(Client::new().get(server.url(&format!("/stream/user/ann?ticket={ticket}")))).await
}

/// Uses one of two tickets and kills the server; the statuses of both tickets at a new server.
async fn ticket_statuses_after_restart(settings: &[&str]) -> Result<[u16; 2]> {
    let dir = tempfile::tempdir()?;
    let path = format!("events.path={}", dir.path().join("events.redb").display());
    let more = [settings, &["--set", &path, "--set", "auth.ticket_ttl_s=300"]].concat();
    let mut server = start_with_auth(dir.path(), &more).await?;
    let mine = json!({"path": "/stream/user/ann"});
    let (used, unused) = (issue_ticket(&server, ANN, &mine).await?, issue_ticket(&server, ANN, &mine).await?);
    ensure!(open_with_ticket(&server, &used).await? == 200);
    ensure!(open_with_ticket(&server, &used).await? == 401);
    server.signal("KILL")?;
    server.wait().await?;
    let server = start_with_auth(dir.path(), &more).await?;
    let statuses = [open_with_ticket(&server, &used).await?, open_with_ticket(&server, &unused).await?];
    // A ticket of the new server is accepted.
    let fresh = issue_ticket(&server, ANN, &mine).await?;
    ensure!(open_with_ticket(&server, &fresh).await? == 200);
    Ok(statuses)
}

#[tokio::test]
async fn used_ticket_is_refused_after_a_restart_of_every_store() -> Result<()> {
    // The memory store loses the claims, so that all earlier tickets are refused.
    assert_eq!(ticket_statuses_after_restart(&["--set", "events.store=memory"]).await?, [401, 401]);
    for durable in ["events.durable=true", "events.durable=false"] {
        let disk = ["--set", "events.store=disk", "--set", durable];
        assert_eq!(ticket_statuses_after_restart(&disk).await?, [401, 200], "{durable}");
    }
    let redis = Redis::start()?;
    let url = redis.url_setting();
    let settings = ["--set", "events.store=redis", "--set", "events.durable=true", "--set", &url];
    assert_eq!(ticket_statuses_after_restart(&settings).await?, [401, 200], "redis");
    Ok(())
}

#[tokio::test]
async fn used_ticket_is_refused_after_redis_has_lost_its_newest_writes() -> Result<()> {
    let mut redis = Redis::start_with_snapshots()?;
    let dir = tempfile::tempdir()?;
    let url = redis.url_setting();
    let settings = ["--set", "events.store=redis", "--set", "events.durable=false", "--set", &url];
    let server = start_with_auth(dir.path(), &[&settings[..], &["--set", "auth.ticket_ttl_s=300"]].concat()).await?;
    let mine = json!({"path": "/stream/user/ann"});
    let ticket = issue_ticket(&server, ANN, &mine).await?;
    // Redis keeps the epoch of the claims, and loses the claim of the ticket.
    redis.snapshot()?;
    ensure!(open_with_ticket(&server, &ticket).await? == 200);
    redis.kill()?;
    redis.restart()?;
    until("Redis answers again", || async { Ok(open_with_ticket(&server, &ticket).await? != 503) }).await?;
    assert_eq!(open_with_ticket(&server, &ticket).await?, 401);
    let fresh = issue_ticket(&server, ANN, &mine).await?;
    assert_eq!(open_with_ticket(&server, &fresh).await?, 200);
    Ok(())
}

#[tokio::test]
async fn subscription_by_ticket_is_a_connection_of_its_user() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let server = start_with_auth(dir.path(), &["--set", "auth.connections_max=1"]).await?;
    let mine = json!({"path": "/stream/user/ann"});
    let ticket = issue_ticket(&server, ANN, &mine).await?;
    let response = reqwest::get(server.url(&format!("/stream/user/ann?ticket={ticket}"))).await?;
    let mut follower = Follower::from_response(response, None)?;
    assert_eq!(follower.next_event().await?.name, "connected");
    assert_eq!(WebSocket::open(&server, "/ws/user/ann", Some(ANN)).await?.err(), Some(429));
    Ok(())
}
