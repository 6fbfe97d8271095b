//! Executions across crashes: the process is killed, and the next one continues from the last checkpoint.

use std::path::Path;

use anyhow::{Context, Result};
use reqwest::Client;
use serde_json::{Value, json};
use weir_tests::Server;
use weir_tests::follow::Event;
use weir_tests::pipelines::{
    Folder, check_contiguous, check_steps_completed_once, events, follow, run, start, start_execution, status,
    wait_until_ended,
};

/// A server with a durable disk store.
async fn on_disk(folder: &Folder, file: &Path) -> Result<Server> {
    let path = format!("events.path={}", file.display());
    let disk = ["--set", "events.store=disk", "--set", "events.durable=true", "--set", &path];
    Server::start_stub(&[&folder.arguments()[..], &disk].concat()).await
}

/// Sequential steps that call a model.
fn slow_steps(count: usize) -> Value {
    let step = |n: usize| json!({"id": format!("s{n}"), "kind": "sentiment", "input": "input"});
    (0..count).map(step).collect()
}

#[tokio::test]
async fn killed_execution_continues_in_the_same_sequence() -> Result<()> {
    const STEPS: usize = 8;
    let folder = Folder::new(&[("slow", slow_steps(STEPS))])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let mut server = on_disk(&folder, &file).await?;
    let ids = [
        start_execution(&server, "slow", &json!("!slow good")).await?,
        start_execution(&server, "slow", &json!(["!slow bad", "good", "bad"])).await?,
    ];
    let mut received: Vec<Event> = Vec::new();
    // Killed after the end of a step, within a step, and right after the restart of a step.
    for (kill_after, name) in [(2, "step_complete"), (4, "step_start"), (1, "step_start")] {
        let last_id = received.last().map(|event| event.id.clone());
        let mut live = follow(&server, &ids[0], last_id.as_deref()).await?;
        let mut count = 0;
        while count < kill_after {
            let event = live.next_stored_event().await?;
            count += usize::from(event.name == name);
            received.push(event);
        }
        server.signal("KILL")?;
        server.wait().await?;
        server = on_disk(&folder, &file).await?;
    }
    let last_id = received.last().map(|event| event.id.clone());
    received.extend(follow(&server, &ids[0], last_id.as_deref()).await?.remaining_events().await?);
    // The events received over several connections are those of the channel.
    assert_eq!(received, events(&server, &ids[0]).await?);
    check_steps_completed_once(&received, STEPS)?;
    assert_eq!(received.last().context("events")?.data["metadata"]["resumed"], 3);
    let status_at_end = wait_until_ended(&server, &ids[0]).await?;
    assert_eq!(
        (&status_at_end["state"], &status_at_end["output"]["overall_sentiment"], &status_at_end["resumed"]),
        (&json!("completed"), &json!("POSITIVE"), &json!(3))
    );
    // The execution without a subscriber continued too.
    assert_eq!(wait_until_ended(&server, &ids[1]).await?["state"], "completed");
    let other = events(&server, &ids[1]).await?;
    check_steps_completed_once(&other, STEPS)?;

    // An execution that has ended is known after another restart, and does not start again.
    server.signal("KILL")?;
    server.wait().await?;
    let server = on_disk(&folder, &file).await?;
    let status_after_restart = status(&server, &ids[0]).await?;
    assert_eq!(
        (&status_after_restart["state"], &status_after_restart["output"], &status_after_restart["events"]),
        (&status_at_end["state"], &status_at_end["output"], &status_at_end["events"])
    );
    weir_tests::until("listed", || async {
        let listed: Value = reqwest::get(server.url("/executions")).await?.json().await?;
        Ok(listed["executions"].as_array().context("a list")?.iter().filter(|e| e["state"] == "completed").count() == 2)
    })
    .await?;
    assert_eq!(events(&server, &ids[0]).await?, received);
    Ok(())
}

#[tokio::test]
async fn compensation_continues_after_kill_9() -> Result<()> {
    let undo = |n: usize| json!([{"id": format!("undo{n}"), "kind": "sentiment", "input": "input"}]);
    let step = |n: usize| json!({"id": format!("s{n}"), "kind": "map", "expression": "@", "compensation": undo(n)});
    let mut steps: Vec<Value> = (0..5).map(step).collect();
    steps.push(json!({"id": "broken", "kind": "map", "expression": "`1` / `0`", "on_error": "compensate"}));
    let folder = Folder::new(&[("order", json!(steps))])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let mut server = on_disk(&folder, &file).await?;
    let id = start_execution(&server, "order", &json!("!slow good")).await?;
    let mut live = follow(&server, &id, None).await?;
    loop {
        let event = live.next_stored_event().await?;
        if event.name == "step_complete" && event.data["step_id"] == "undo3" {
            break;
        }
    }
    server.signal("KILL")?;
    server.wait().await?;
    server = on_disk(&folder, &file).await?;
    let status_at_end = wait_until_ended(&server, &id).await?;
    assert_eq!(
        (&status_at_end["state"], &status_at_end["failure"]["compensated"], &status_at_end["failure"]["failed_step"]),
        (&json!("failed"), &json!(5), &json!("broken"))
    );
    let all = events(&server, &id).await?;
    check_contiguous(&all)?;
    let compensated: Vec<String> = all
        .iter()
        .filter(|event| event.name == "step_complete" && !event.data["metadata"]["compensates"].is_null())
        .map(|event| event.data["step_id"].as_str().unwrap_or_default().to_owned())
        .collect();
    assert_eq!(compensated, ["undo4", "undo3", "undo2", "undo1", "undo0"]);
    Ok(())
}

#[tokio::test]
async fn checkpoint_of_many_megabytes_survives_kill_9() -> Result<()> {
    // Twelve outputs of 150,000 bytes each do not fit into one value of the store.
    let mut steps =
        vec![json!({"id": "grow", "kind": "map", "expression": "join('', [@, @, @, @, @, @, @, @, @, @])"})];
    steps.extend(
        (0..11).map(|n| json!({"id": format!("copy{n}"), "kind": "map", "input": "steps.grow", "expression": "@"})),
    );
    steps.push(json!({"id": "s0", "kind": "sentiment", "input": "'!slow !slow good'"}));
    steps.push(json!({"id": "end", "kind": "map", "input": "steps.copy10", "expression": "length(@)"}));
    let folder = Folder::new(&[("large", json!(steps))])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let more = ["--set", "pipelines.outputs_bytes_max=4000000", "--set", "events.bytes_max=16000000"];
    let path = format!("events.path={}", file.display());
    let disk = ["--set", "events.store=disk", "--set", "events.durable=true", "--set", &path];
    let arguments = [&folder.arguments()[..], &disk, &more].concat();
    let open = || Server::start_stub(&arguments);
    let mut server = open().await?;
    let id = start_execution(&server, "large", &json!("x".repeat(15_000))).await?;
    let mut live = follow(&server, &id, None).await?;
    loop {
        let event = live.next_stored_event().await?;
        if event.name == "step_start" && event.data["step_id"] == "s0" {
            break;
        }
    }
    server.signal("KILL")?;
    server.wait().await?;
    server = open().await?;
    let status_at_end = wait_until_ended(&server, &id).await?;
    assert_eq!(
        (&status_at_end["state"], &status_at_end["output"], &status_at_end["resumed"]),
        (&json!("completed"), &json!(150_000), &json!(1)),
        "{status_at_end}"
    );
    check_contiguous(&events(&server, &id).await?)?;
    Ok(())
}

#[tokio::test]
async fn idempotency_key_starts_one_execution_across_a_crash() -> Result<()> {
    let folder = Folder::new(&[("slow", slow_steps(3))])?;
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("events.redb");
    let mut server = on_disk(&folder, &file).await?;
    let key = [("idempotency-key", "k1"), ("prefer", "wait")];
    let first = start(&server, "slow", &json!("!slow good"), &key[..1]).await?.json::<Value>().await?;
    server.signal("KILL")?;
    server.wait().await?;
    server = on_disk(&folder, &file).await?;
    let id = first["execution_id"].as_str().context("an id")?;
    let completed = wait_until_ended(&server, id).await?;
    let repeated = start(&server, "slow", &json!("!slow good"), &key).await?.json::<Value>().await?;
    assert_eq!((&repeated["execution_id"], &repeated["state"]), (&json!(id), &completed["state"]), "{repeated}");
    let other = run(&server, "slow", &json!("good")).await?;
    assert_ne!(other["execution_id"], json!(id));
    let deleted = Client::new().delete(server.url(&format!("/executions/{id}"))).send().await?;
    assert_eq!(deleted.status(), 409);
    Ok(())
}
