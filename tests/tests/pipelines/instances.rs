//! Two instances of Weir on one Redis: each execution and each stored session is run by one of them at a time, also when one is killed or
//! paused.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::sync::watch;
use weir_tests::client::{NDJSON, chunks_path, create_session, ndjson_body, post_body};
use weir_tests::follow::{Event, Follower};
use weir_tests::http::read_request;
use weir_tests::pipelines::{
    Folder, check_steps_completed_once, events, follow, start, start_execution, status, wait_until_ended,
};
use weir_tests::redis::Redis;
use weir_tests::texts::Random;
use weir_tests::{Duplex, PATIENCE, Server, ndjson, until};

/// `events.lease_ms` of these tests.
const LEASE_MS: u64 = 2000;

/// A service that steps call. It records each call, and responds at a path once the test has released it.
struct Service {
    authority: String,
    calls: Arc<Mutex<Vec<(String, String)>>>,
    open: watch::Sender<Vec<String>>,
}

impl Service {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let authority = listener.local_addr()?.to_string();
        let calls: Arc<Mutex<Vec<(String, String)>>> = Arc::default();
        let (open, gate) = watch::channel(Vec::new());
        let recorded = calls.clone();
        tokio::spawn(async move {
            while let Ok((mut socket, _)) = listener.accept().await {
                let (calls, mut gate) = (recorded.clone(), gate.clone());
                tokio::spawn(async move {
                    let Some(head) = read_request(&mut socket).await else { return };
                    let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                    let key = head.lines().find_map(|line| line.strip_prefix("idempotency-key: "));
                    let key = key.unwrap_or_default().to_owned();
                    calls.lock().unwrap_or_else(PoisonError::into_inner).push((path.clone(), key));
                    if gate.wait_for(|open| open.iter().any(|other| *other == path || other == "*")).await.is_err() {
                        return;
                    }
                    let body = format!("\"{path}\"");
                    let length = body.len();
                    let response = format!(
                        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
                    );
                    let _ = socket.write_all(response.as_bytes()).await;
                });
            }
        });
        Ok(Self { authority, calls, open })
    }

    /// Lets the service respond to the calls of a path, to waiting and to later ones.
    fn release(&self, path: &str) {
        self.open.send_modify(|open| open.push(path.to_owned()));
    }

    /// The number of calls to a path.
    fn count(&self, path: &str) -> usize {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter().filter(|(other, _)| other == path).count()
    }

    /// The number of calls with each idempotency key, which each step of each execution has one of.
    fn counts_by_key(&self) -> HashMap<String, usize> {
        let mut counts = HashMap::new();
        for (_, key) in self.calls.lock().unwrap_or_else(PoisonError::into_inner).iter() {
            *counts.entry(key.clone()).or_insert(0) += 1;
        }
        counts
    }

    /// Sequential steps that call the service, at `/s0`, `/s1` and so on.
    fn steps(&self, count: usize) -> Value {
        let url = |n: usize| format!("http://{}/s{n}", self.authority);
        let step = |n: usize| json!({"id": format!("s{n}"), "kind": "http", "url": url(n), "timeout_ms": 120_000});
        (0..count).map(step).collect()
    }
}

/// The resources that instances share: a Redis server, a service, and a folder with the pipeline `calls`.
struct Shared {
    redis: Redis,
    service: Service,
    folder: Folder,
}

impl Shared {
    async fn new(steps: usize) -> Result<Self> {
        let service = Service::start().await?;
        let folder = Folder::new(&[("calls", service.steps(steps))])?;
        Ok(Self { redis: Redis::start()?, service, folder })
    }

    async fn instance(&self) -> Result<Server> {
        let allow = format!("pipelines.http_allow=[\"{}\"]", self.service.authority);
        let lease = format!("events.lease_ms={LEASE_MS}");
        let more = ["--set", &allow, "--set", &lease];
        self.redis.start_server(&[&self.folder.arguments()[..], &more].concat()).await
    }
}

/// Waits for longer than several scans for executions without an owner take.
async fn wait_for_several_scans() {
    tokio::time::sleep(Duration::from_millis(2 * LEASE_MS)).await;
}

/// Checks that a response refuses a request because another instance owns the execution or session.
async fn check_owned_elsewhere(response: Response) -> Result<()> {
    let (status, retry) = (response.status(), response.headers().get("retry-after").cloned());
    let body: Value = response.json().await?;
    ensure!((status.as_u16(), &body["code"]) == (409, &json!("owned_elsewhere")), "{status}: {body}");
    let retry: u64 = retry.context("no Retry-After")?.to_str()?.parse()?;
    ensure!((1..=LEASE_MS / 1000 + 1).contains(&retry) && body["retryable"] == true, "{retry}: {body}");
    Ok(())
}

fn start_count(all: &[Event], step: &str) -> usize {
    all.iter().filter(|event| event.name == "step_start" && event.data["step_id"] == step).count()
}

#[tokio::test]
async fn execution_of_a_living_instance_is_not_run_by_another() -> Result<()> {
    let shared = Shared::new(2).await?;
    let one = shared.instance().await?;
    let id = start_execution(&one, "calls", &json!({})).await?;
    until("the service is called", || async { Ok(shared.service.count("/s0") == 1) }).await?;
    // The second instance starts while a step runs, and scans for executions without an owner.
    let two = shared.instance().await?;
    wait_for_several_scans().await;
    assert_eq!(status(&two, &id).await?["state"], "running");
    check_owned_elsewhere(Client::new().delete(two.url(&format!("/executions/{id}"))).send().await?).await?;
    shared.service.release("/s0");
    until("the service is called", || async { Ok(shared.service.count("/s1") > 0) }).await?;
    wait_for_several_scans().await;
    shared.service.release("/s1");
    assert_eq!(wait_until_ended(&one, &id).await?["state"], "completed");
    assert_eq!(wait_until_ended(&two, &id).await?["state"], "completed");
    assert_eq!((shared.service.count("/s0"), shared.service.count("/s1")), (1, 1));
    let all = events(&two, &id).await?;
    check_steps_completed_once(&all, 2)?;
    assert_eq!((start_count(&all, "s0"), start_count(&all, "s1")), (1, 1));
    Ok(())
}

/// The ids and states that `GET /executions` lists.
async fn list_executions(server: &Server) -> Result<Vec<(String, String)>> {
    let list: Value = reqwest::get(server.url("/executions")).await?.error_for_status()?.json().await?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let executions = list["executions"].as_array().context("a list")?;
    Ok(executions.iter().map(|listed| (text(&listed["execution_id"]), text(&listed["state"]))).collect())
}

#[tokio::test]
async fn executions_of_every_instance_are_listed_by_each_newest_first() -> Result<()> {
    let shared = Shared::new(1).await?;
    let (one, two) = (shared.instance().await?, shared.instance().await?);
    let first = start_execution(&one, "calls", &json!({})).await?;
    let second = start_execution(&two, "calls", &json!({})).await?;
    let third = start_execution(&one, "calls", &json!({})).await?;
    let all = |state: &str| [&third, &second, &first].map(|id| (id.clone(), state.to_owned())).to_vec();
    for server in [&one, &two] {
        assert_eq!(list_executions(server).await?, all("running"));
    }
    shared.service.release("*");
    for (server, id) in [(&one, &first), (&two, &second), (&one, &third)] {
        assert_eq!(wait_until_ended(server, id).await?["state"], "completed");
    }
    for server in [&one, &two] {
        until("the ends are listed", || async { Ok(list_executions(server).await? == all("completed")) }).await?;
    }
    // An instance that starts later lists them too, and so does the remaining one.
    drop(one);
    let third_instance = shared.instance().await?;
    for server in [&two, &third_instance] {
        assert_eq!(list_executions(server).await?, all("completed"));
    }
    Ok(())
}

#[tokio::test]
async fn execution_of_a_killed_instance_is_resumed_by_another() -> Result<()> {
    let shared = Shared::new(3).await?;
    let (mut one, two) = (shared.instance().await?, shared.instance().await?);
    let key = [("idempotency-key", "k")];
    let first: Value = start(&one, "calls", &json!({}), &key).await?.json().await?;
    let id = first["execution_id"].as_str().context("an id")?.to_owned();
    shared.service.release("/s0");
    until("the service is called", || async { Ok(shared.service.count("/s1") == 1) }).await?;
    // A key that was used at one instance starts no execution at the other.
    let repeated: Value = start(&two, "calls", &json!({}), &key).await?.json().await?;
    assert_eq!(repeated["execution_id"], json!(id));
    one.signal("KILL")?;
    one.wait().await?;
    let killed = Instant::now();
    until("the execution is taken over", || async { Ok(shared.service.count("/s1") == 2) }).await?;
    // The bound is the lease, with a reserve for a busy machine.
    assert!(killed.elapsed() < Duration::from_millis(LEASE_MS) + PATIENCE / 4, "{:?}", killed.elapsed());
    shared.service.release("*");
    let status_at_end = wait_until_ended(&two, &id).await?;
    assert_eq!((&status_at_end["state"], &status_at_end["resumed"]), (&json!("completed"), &json!(1)));
    assert_eq!((shared.service.count("/s0"), shared.service.count("/s1"), shared.service.count("/s2")), (1, 2, 1));
    check_steps_completed_once(&events(&two, &id).await?, 3)
}

#[tokio::test]
async fn paused_instance_is_fenced_after_a_takeover() -> Result<()> {
    let shared = Shared::new(3).await?;
    let (one, two) = (shared.instance().await?, shared.instance().await?);
    let id = start_execution(&one, "calls", &json!({})).await?;
    until("the service is called", || async { Ok(shared.service.count("/s0") == 1) }).await?;
    // The event of the start may be stored after the call; it has to be stored before the pause for the counts below.
    let mut follower = follow(&two, &id, None).await?;
    while start_count(&[follower.next_stored_event().await?], "s0") == 0 {}
    drop(follower);
    one.signal("STOP")?;
    until("the execution is taken over", || async { Ok(shared.service.count("/s0") == 2) }).await?;
    // Both calls get a response: that of the paused instance stays in its socket until the instance continues.
    shared.service.release("/s0");
    until("the service is called", || async { Ok(shared.service.count("/s1") == 1) }).await?;
    one.signal("CONT")?;
    until("the execution is given up", || async { Ok(one.log().contains("is owned by another instance now")) }).await?;
    wait_for_several_scans().await;
    assert_eq!((shared.service.count("/s0"), shared.service.count("/s1"), shared.service.count("/s2")), (2, 1, 0));
    check_owned_elsewhere(Client::new().delete(one.url(&format!("/executions/{id}"))).send().await?).await?;
    shared.service.release("*");
    for server in [&two, &one] {
        let status_at_end = wait_until_ended(server, &id).await?;
        assert_eq!((&status_at_end["state"], &status_at_end["resumed"]), (&json!("completed"), &json!(1)));
    }
    assert_eq!((shared.service.count("/s1"), shared.service.count("/s2")), (1, 1));
    let all = events(&one, &id).await?;
    assert_eq!(all, events(&two, &id).await?);
    check_steps_completed_once(&all, 3)?;
    assert_eq!((start_count(&all, "s0"), start_count(&all, "s1"), start_count(&all, "s2")), (2, 1, 1));
    Ok(())
}

#[tokio::test]
async fn executions_run_once_across_kills_and_pauses_at_random() -> Result<()> {
    const EXECUTIONS: usize = 8;
    const STEPS: usize = 4;
    const ROUNDS: usize = 6;
    let shared = Shared::new(STEPS).await?;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut instances = [shared.instance().await?, shared.instance().await?];
    let mut ids = Vec::new();
    for n in 0..EXECUTIONS {
        ids.push(start_execution(&instances[n % 2], "calls", &json!({"n": n})).await?);
    }
    for round in 0..ROUNDS {
        let victim = random.below(2);
        let wait = Duration::from_millis(random.below(LEASE_MS as usize) as u64);
        if random.below(2) == 0 {
            instances[victim].signal("KILL")?;
            instances[victim].wait().await?;
            tokio::time::sleep(wait).await;
            instances[victim] = shared.instance().await?;
        } else {
            instances[victim].signal("STOP")?;
            tokio::time::sleep(wait * 2).await;
            instances[victim].signal("CONT")?;
        }
        // The calls of one more step get a response.
        if round < STEPS {
            shared.service.release(&format!("/s{round}"));
        }
        tokio::time::sleep(Duration::from_millis(random.below(300) as u64)).await;
    }
    shared.service.release("*");
    for id in &ids {
        let status_at_end = wait_until_ended(&instances[random.below(2)], id).await?;
        ensure!(status_at_end["state"] == "completed", "{status_at_end}");
        let all = events(&instances[random.below(2)], id).await?;
        check_steps_completed_once(&all, STEPS).with_context(|| format!("{id}: {all:?}"))?;
    }
    wait_for_several_scans().await;
    // Each step was called, and again only after its owner was interrupted.
    let counts = shared.service.counts_by_key();
    ensure!(counts.len() == EXECUTIONS * STEPS, "{counts:?}");
    ensure!(counts.values().all(|count| *count <= 1 + ROUNDS), "{counts:?}");
    let total: usize = counts.values().sum();
    // A round interrupts at most the executions of one instance, and each of these has one step in flight.
    ensure!(total <= EXECUTIONS * (STEPS + ROUNDS), "{total} calls");
    Ok(())
}

fn chunk(at: usize) -> Value {
    json!({"start": at, "end": at, "text": format!("word{at}"), "speaker_id": "a", "seq": at + 1})
}

async fn post_chunks(server: &Server, id: &str, chunks: &[Value]) -> Result<Response> {
    post_body(server, &chunks_path(id), NDJSON, ndjson_body(chunks)).await
}

/// Feeds a session, with retries while another instance owns it.
async fn feed(server: &Server, id: &str, chunks: &[Value]) -> Result<Vec<Value>> {
    let began = Instant::now();
    loop {
        let response = post_chunks(server, id, chunks).await?;
        if response.status() == 409 && began.elapsed() < PATIENCE {
            check_owned_elsewhere(response).await?;
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        }
        ensure!(response.status() == 200, "{}", response.text().await?);
        return ndjson(&response.text().await?);
    }
}

/// Ends a session, and checks that its channel has the partial segment of each chunk once, in order.
async fn check_channel(server: &Server, id: &str, chunks: usize) -> Result<()> {
    let response = Client::new().post(server.url(&format!("/sessions/{id}/end"))).send().await?;
    ensure!(response.status() == 200, "{}", response.text().await?);
    response.text().await?;
    let all = Follower::open(server, &format!("/stream/session/{id}"), None).await?.remaining_events().await?;
    for (at, event) in all.iter().enumerate().take(all.len() - 1) {
        ensure!(event.data["event_id"] == at + 1, "{} is at {at}: {}", event.data["event_id"], event.data);
    }
    let seqs: Vec<u64> = all
        .iter()
        .filter(|event| event.name == "partial_segment")
        .filter_map(|event| event.data["seq"].as_u64())
        .collect();
    ensure!(seqs == (1..=chunks as u64).collect::<Vec<_>>(), "{seqs:?}");
    Ok(())
}

#[tokio::test]
async fn session_is_fed_at_one_of_two_instances() -> Result<()> {
    let shared = Shared::new(1).await?;
    let (one, two) = (shared.instance().await?, shared.instance().await?);
    let id = create_session(&one, &json!({})).await?;
    let path = format!("/sessions/{id}");
    // A session without a feeder can be fed at any instance.
    feed(&two, &id, &[chunk(0)]).await?;
    feed(&one, &id, &[chunk(1)]).await?;
    // While one instance has the feeder, the other can read the session and not change it.
    let mut feeder = Duplex::open(&one, &format!("{path}/chunks")).await?;
    feeder.send(format!("{}\n", chunk(2)).as_bytes()).await?;
    feeder.raw.read_until("word2").await?;
    wait_for_several_scans().await;
    check_owned_elsewhere(post_chunks(&two, &id, &[chunk(3)]).await?).await?;
    check_owned_elsewhere(Client::new().post(two.url(&format!("{path}/end"))).send().await?).await?;
    check_owned_elsewhere(Client::new().delete(two.url(&path)).send().await?).await?;
    until("read", || async {
        let state: Value = reqwest::get(two.url(&path)).await?.error_for_status()?.json().await?;
        Ok(state["state"] == "open" && state["events"] == 3)
    })
    .await?;
    feeder.send(format!("{}\n", chunk(3)).as_bytes()).await?;
    feeder.end().await?;
    feeder.raw.read_to_end_of_response().await?;
    let lines = feed(&two, &id, &[chunk(3), chunk(4)]).await?;
    ensure!(lines.iter().any(|event| event["type"] == "repeated"), "{lines:?}");
    // An instance reloads a session that the other has changed.
    for server in [&one, &two] {
        let state: Value = reqwest::get(server.url(&path)).await?.error_for_status()?.json().await?;
        assert_eq!(state["events"], 5, "{state}");
    }
    feed(&one, &id, &[chunk(5)]).await?;
    check_channel(&two, &id, 6).await?;
    // The end and the deletion apply at both instances.
    assert_eq!(post_chunks(&one, &id, &[chunk(6)]).await?.json::<Value>().await?["code"], "session_ended");
    assert_eq!(Client::new().delete(one.url(&path)).send().await?.status(), 204);
    for server in [&one, &two] {
        assert_eq!(reqwest::get(server.url(&path)).await?.status(), 404);
    }
    Ok(())
}

#[tokio::test]
async fn session_of_a_killed_or_paused_instance_is_fed_at_another() -> Result<()> {
    let shared = Shared::new(1).await?;
    let (mut one, two) = (shared.instance().await?, shared.instance().await?);
    let id = create_session(&one, &json!({})).await?;
    let path = format!("/sessions/{id}/chunks");
    let mut feeder = Duplex::open(&one, &path).await?;
    feeder.send(format!("{}\n{}\n", chunk(0), chunk(1)).as_bytes()).await?;
    feeder.raw.read_until("word1").await?;
    one.signal("STOP")?;
    // The client does not know which chunks were accepted, and submits all again.
    feed(&two, &id, &[chunk(0), chunk(1), chunk(2)]).await?;
    feeder.send(format!("{}\n", json!({"start": 9, "end": 9, "text": "late", "seq": 90})).as_bytes()).await?;
    one.signal("CONT")?;
    feeder.raw.read_until("owned_elsewhere").await?;
    feed(&two, &id, &[chunk(3)]).await?;
    let mut feeder = Duplex::open(&one, &path).await?;
    feeder.send(format!("{}\n", chunk(4)).as_bytes()).await?;
    feeder.raw.read_until("word4").await?;
    one.signal("KILL")?;
    one.wait().await?;
    feed(&two, &id, &[chunk(4), chunk(5)]).await?;
    check_channel(&two, &id, 6).await
}

#[tokio::test]
async fn session_of_a_killed_instance_expires_at_another() -> Result<()> {
    let shared = Shared::new(1).await?;
    // The other instance starts before the session is created, and gets no request for it.
    let (mut one, two) = (shared.instance().await?, shared.instance().await?);
    let id = create_session(&one, &json!({"idle": {"expire_ms": 3000, "warn_ms": 1500}})).await?;
    feed(&one, &id, &[chunk(0)]).await?;
    one.signal("KILL")?;
    one.wait().await?;
    let all = Follower::open(&two, &format!("/stream/session/{id}"), None).await?.remaining_events().await?;
    let expired: Vec<_> = all.iter().filter(|event| event.name == "session_expired").collect();
    assert_eq!((expired.len(), all.last().map(|event| event.name.as_str())), (1, Some("session_expired")), "{all:?}");
    Ok(())
}
