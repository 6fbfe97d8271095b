//! Pipelines of a test: their folder, their executions and what these tell.

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

/// A folder of pipelines.
pub struct Folder {
    dir: TempDir,
    set: String,
}

impl Folder {
    /// A folder with these: a name and its steps each.
    pub fn new(pipelines: &[(&str, Value)]) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let set = format!("pipelines.dir={}", dir.path().display());
        let folder = Self { dir, set };
        for (name, steps) in pipelines {
            folder.write(name, steps)?;
        }
        Ok(folder)
    }

    /// Puts a pipeline there, or another in its place. What is told of it is told at once.
    pub fn write(&self, name: &str, steps: &Value) -> Result<()> {
        let definition = json!({"name": name, "streaming": {"flush_interval_ms": 0}, "steps": steps});
        self.write_text(name, &definition.to_string())
    }

    /// Puts a file there.
    pub fn write_text(&self, name: &str, text: &str) -> Result<()> {
        Ok(std::fs::write(self.dir.path().join(format!("{name}.json")), text)?)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// The arguments that tell a server of it.
    pub fn arguments(&self) -> [&str; 2] {
        ["--set", &self.set]
    }
}

/// Starts an execution, with headers.
pub async fn start(server: &Server, name: &str, input: &Value, headers: &[(&str, &str)]) -> Result<Response> {
    let mut request = Client::new().post(server.url(&format!("/pipelines/{name}"))).json(input);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    Ok(request.send().await?)
}

/// Starts an execution; its id.
pub async fn start_execution(server: &Server, name: &str, input: &Value) -> Result<String> {
    let answer = start(server, name, input, &[]).await?;
    let (status, location) = (answer.status(), answer.headers().get("location").cloned());
    let body: Value = answer.json().await?;
    ensure!(status == 202, "{status}: {body}");
    let id = body["execution_id"].as_str().context("an id")?.to_owned();
    ensure!(location.context("a location")?.to_str()? == format!("/executions/{id}"));
    ensure!(body["links"]["events"] == format!("/stream/pipeline/{id}"), "{body}");
    Ok(id)
}

/// Runs an execution to its end; its status.
pub async fn run(server: &Server, name: &str, input: &Value) -> Result<Value> {
    let answer = start(server, name, input, &[("prefer", "wait")]).await?;
    let status = answer.status();
    let body: Value = answer.json().await?;
    ensure!(status == 200, "{status}: {body}");
    Ok(body)
}

/// How far an execution is.
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

/// Follows the events of an execution.
pub async fn follow(server: &Server, id: &str, last_id: Option<&str>) -> Result<Follower> {
    Follower::open(server, &format!("/stream/pipeline/{id}"), last_id).await
}

/// All events of an execution, to its end.
pub async fn events(server: &Server, id: &str) -> Result<Vec<Event>> {
    follow(server, id, None).await?.remaining_events().await
}

/// The names of events, with the step that each is about.
pub fn event_names(events: &[Event]) -> Vec<String> {
    let one = |event: &Event| match event.data["step_id"].as_str() {
        Some(step) => format!("{} {step}", event.name),
        None => event.name.clone(),
    };
    events.iter().map(one).collect()
}

/// Checks that events are a whole sequence from its first: places without a hole in one epoch, numbers that agree with them.
pub fn check_contiguous(events: &[Event]) -> Result<()> {
    let epoch = |event: &Event| event.id.split('-').next().map(str::to_owned);
    for (event, place) in events.iter().zip(1u64..) {
        ensure!(event.seq()? == place && epoch(event) == epoch(&events[0]), "a hole before {event:?}");
        ensure!(event.data["metadata"]["seq"] == place, "{event:?}");
    }
    Ok(())
}
