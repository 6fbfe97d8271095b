//! Pipelines of a test: their folder, their executions and the events of these.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Server,
    follow::{Event, Follower},
    until,
};

/// A temporary folder of pipeline definitions.
pub struct Folder {
    dir: TempDir,
    setting: String,
}

impl Folder {
    /// A folder with pipelines, each given by its name and its steps.
    pub fn new(pipelines: &[(&str, Value)]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let setting = format!("pipelines.dir={}", dir.path().display());
        let folder = Self { dir, setting };
        for (name, steps) in pipelines {
            folder.write(name, steps)?;
        }
        Ok(folder)
    }

    /// Writes or replaces a definition. Its executions flush their events without delay.
    pub fn write(&self, name: &str, steps: &Value) -> Result<()> {
        let definition = json!({"name": name, "streaming": {"flush_interval_ms": 0}, "steps": steps});
        self.write_text(name, &definition.to_string())
    }

    /// Writes or replaces the file of a definition.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.path().join(format!("{name}.json")), text)?)
    }

    /// The path of the folder.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The arguments with which a server uses the folder.
    pub fn arguments(&self) -> [&str; 2] {
        ["--set", &self.setting]
    }
}

/// Sends the request that starts an execution, with headers.
pub async fn start(server: &Server, name: &str, input: &Value, headers: &[(&str, &str)]) -> Result<Response> {
    let mut request = Client::new().post(server.url(&format!("/pipelines/{name}"))).json(input);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.send().await?)
}

/// Starts an execution, which must be accepted; its id.
pub async fn start_execution(server: &Server, name: &str, input: &Value) -> Result<String> {
    let response = start(server, name, input, &[]).await?;
    let (status, location) = (response.status(), response.headers().get("location").cloned());
    let body: Value = response.json().await?;
    ensure!(status == 202, "{status}: {body}");
    let id = body["execution_id"].as_str().context("an id")?.to_owned();
    ensure!(location.context("a location")?.to_str()? == format!("/executions/{id}"));
    ensure!(body["links"]["events"] == format!("/stream/pipeline/{id}"), "{body}");
    Ok(id)
}

/// Starts an execution and waits for its end; its status.
pub async fn run(server: &Server, name: &str, input: &Value) -> Result<Value> {
    let response = start(server, name, input, &[("prefer", "wait")]).await?;
    let status = response.status();
    let body: Value = response.json().await?;
    ensure!(status == 200, "{status}: {body}");
    Ok(body)
}

/// The status of an execution.
pub async fn status(server: &Server, id: &str) -> Result<Value> {
    Ok(reqwest::get(server.url(&format!("/executions/{id}"))).await?.error_for_status()?.json().await?)
}

/// Waits until an execution has ended; its status.
pub async fn wait_until_ended(server: &Server, id: &str) -> Result<Value> {
    until("ended", || async {
        Ok(!matches!(status(server, id).await?["state"].as_str(), Some("running" | "compensating")))
    })
    .await?;
    status(server, id).await
}

/// Subscribes to the events of an execution.
pub async fn follow(server: &Server, id: &str, last_id: Option<&str>) -> Result<Follower> {
    Follower::open(server, &format!("/stream/pipeline/{id}"), last_id).await
}

/// All events of an execution, to its end.
pub async fn events(server: &Server, id: &str) -> Result<Vec<Event>> {
    follow(server, id, None).await?.remaining_events().await
}

/// The names of events, followed by the id of their step where they have one.
pub fn event_names(events: &[Event]) -> Vec<String> {
    let name = |event: &Event| match event.data["step_id"].as_str() {
        Some(step) => format!("{} {step}", event.name),
        None => event.name.clone(),
    };
    events.iter().map(name).collect()
}

/// Checks that events have the sequence numbers from 1 without a gap, in one epoch, and that their metadata agrees.
pub fn check_contiguous(events: &[Event]) -> Result<()> {
    let epoch = |event: &Event| event.id.split('-').next().map(str::to_owned);
    for (event, seq) in events.iter().zip(1u64..) {
        ensure!(event.seq()? == seq && epoch(event) == epoch(&events[0]), "a gap before {event:?}");
        ensure!(event.data["metadata"]["seq"] == seq, "{event:?}");
    }
    Ok(())
}

/// Checks that the events of an execution have no gap, and that the execution and each of its steps `s0`, `s1` and so on was completed once.
pub fn check_steps_completed_once(events: &[Event], steps: usize) -> Result<()> {
    check_contiguous(events)?;
    for n in 0..steps {
        let completes_step = |event: &&Event| event.name == "step_complete" && event.data["step_id"] == format!("s{n}");
        let completed = events.iter().filter(completes_step).count();
        ensure!(completed == 1, "s{n} was completed {completed} times");
    }
    let ends: Vec<_> =
        events.iter().filter(|event| event.name.starts_with("pipeline_")).map(|event| event.name.as_str()).collect();
    ensure!(ends == ["pipeline_start", "pipeline_complete"], "{ends:?}");
    Ok(())
}
