//! The stateful instance serves all users on one thread: light requests of one user wait for slices of the work of another, not for all of it.
//!
//! The tests compare the order in which requests end, not durations. The bounds of slices are shown by tests of the crates that compute:
//! `weir-expression` (`tests/turns.rs`) and `weir-codec` (`pipelines::checkpoint`).

use anyhow::{Context, Result, bail, ensure};
use futures::future::try_join_all;
use reqwest::{Client, Response};
use serde_json::{Value, json};
use tempfile::TempDir;
use weir_tests::Server;
use weir_tests::pipelines::Folder;

const ANN: &str = "weir_AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE";
const BOB: &str = "weir_AgICAgICAgICAgICAgICAgICAgICAgICAgICAgICAgI";
const API_KEYS: &str = "\
ann ann sha256:0c931af1becde644feaacb8c72cda351e1e5197468018114afcfb614aa558b37 start:pipeline:*
bob bob sha256:4d764170b1d6528180ca8f712c94a712b1c66239c05234a4264750a7c78c656c start:pipeline:*
";
/// Concurrent requests of the heavy user. Each takes about a hundred slices or more.
const HEAVY: usize = 32;
/// Requests of the light user beside them, one after the other. Each has a few turns.
const LIGHT: usize = 5;
/// Another process may stop this one, or a thread of the server, for so long that heavy requests end meanwhile; then the attempt shows
/// nothing. In the order of arrival, heavy requests would end first in every attempt.
const ATTEMPTS: usize = 3;

struct Users {
    server: Server,
    _folder: Folder,
    _keys: TempDir,
    client: Client,
}

async fn start_users() -> Result<Users> {
    let repeat = |count: usize, expression: &str| -> Value {
        let step = |n| json!({"id": format!("s{n}"), "kind": "map", "input": "input", "expression": expression});
        (0..count).map(step).collect()
    };
    let folder = Folder::new(&[
        // Passes over the largest number of inputs.
        ("expressions", repeat(6, "[length(map(&(@ == `1`), @)), length(map(&(@ == `2`), @))]")),
        // Reads and writes the largest outputs, all of which are in each checkpoint.
        ("checkpoints", repeat(4, "@")),
        ("light", json!([{"id": "light", "kind": "map", "expression": "@"}])),
    ])?;
    let keys = tempfile::tempdir()?;
    std::fs::write(keys.path().join("api_keys"), API_KEYS)?;
    let dir = format!("auth.dir={}", keys.path().display());
    let mut arguments = vec!["--set", "auth.mode=required", "--set", &dir];
    arguments.extend(["--set", "auth.requests_per_s=10000", "--set", "auth.publishes_per_s=10000"]);
    // Executions that wait for room compute nothing.
    arguments.extend(["--set", "events.user_percent_max=100", "--set", "events.state_bytes_max=1000000000"]);
    arguments.extend(["--set", "pipelines.user_executions_max=2000", "--set", "pipelines.executions_max=2000"]);
    arguments.extend(folder.arguments());
    let server = Server::start_stub(&arguments).await?;
    Ok(Users { server, _folder: folder, _keys: keys, client: Client::new() })
}

impl Users {
    /// Starts an execution; its id.
    async fn start(&self, name: &str, key: &str, input: &Value) -> Result<String> {
        let request = self.client.post(self.server.url(&format!("/pipelines/{name}"))).bearer_auth(key);
        let body = body(request.json(input).send().await?).await?;
        Ok(body["execution_id"].as_str().context("an id")?.to_owned())
    }

    /// Runs the execution of the light user to its end; when it ended, by the clock of the server.
    async fn light(&self) -> Result<f64> {
        let request = self.client.post(self.server.url("/pipelines/light")).bearer_auth(BOB);
        let response = request.header("prefer", "wait").json(&json!("x")).send().await?;
        end(&body(response).await?).context("the light execution has not ended")
    }

    /// Starts heavy executions, then runs light ones. Returns how many of the former ended before the last of the latter.
    async fn heavy_executions_before_light(&self, name: &str, input: &Value) -> Result<usize> {
        let ids = try_join_all((0..HEAVY).map(|_| self.start(name, ANN, input))).await?;
        let mut light = 0.0;
        for _ in 0..LIGHT {
            light = self.light().await?;
        }
        let mut before = 0;
        for id in ids {
            let path = format!("/executions/{id}");
            let status = body(self.client.get(self.server.url(&path)).bearer_auth(ANN).send().await?).await?;
            ensure!(status["state"] == "running" || status["state"] == "completed", "{status}");
            before += usize::from(end(&status).is_some_and(|heavy| heavy <= light));
            self.client.delete(self.server.url(&path)).bearer_auth(ANN).send().await?.bytes().await?;
        }
        Ok(before)
    }

    /// Creates a session and begins to feed it the lines of a body; the response, of which a part was read.
    async fn transcribe(&self, body_lines: &str) -> Result<Response> {
        let request = self.client.post(self.server.url("/sessions")).bearer_auth(ANN).json(&json!({}));
        let created = body(request.send().await?).await?;
        let id = created["session_id"].as_str().context("an id")?;
        let path = self.server.url(&format!("/sessions/{id}/chunks"));
        let request = self.client.post(path).bearer_auth(ANN).header("content-type", "application/x-ndjson");
        let mut response = request.body(body_lines.to_owned()).send().await?.error_for_status()?;
        response.chunk().await?.context("an event of the session")?;
        Ok(response)
    }

    /// Begins heavy sessions, then runs light executions. Returns how many of the former had ended.
    async fn heavy_sessions_before_light(&self, body_lines: &str) -> Result<usize> {
        let sessions = try_join_all((0..HEAVY).map(|_| self.transcribe(body_lines))).await?;
        let sessions: Vec<_> = sessions
            .into_iter()
            .map(|mut response| {
                tokio::spawn(async move {
                    while response.chunk().await?.is_some() {}
                    anyhow::Ok(())
                })
            })
            .collect();
        for _ in 0..LIGHT {
            self.light().await?;
        }
        let before = sessions.iter().filter(|session| session.is_finished()).count();
        for session in sessions {
            session.abort();
        }
        Ok(before)
    }
}

async fn body(response: Response) -> Result<Value> {
    let status = response.status();
    let text = response.text().await?;
    ensure!(status.is_success(), "{status}: {text}");
    Ok(serde_json::from_str(&text)?)
}

/// When an execution ended, from its status, by the clock of the server, in milliseconds of its day. An attempt around midnight may
/// show nothing.
fn end(status: &Value) -> Option<f64> {
    let time = status["started_at"].as_str()?.trim_end_matches('Z').split_once('T')?.1;
    let seconds = time.split(':').try_fold(0.0, |seconds, part| Some(seconds * 60.0 + part.parse::<f64>().ok()?))?;
    let is_over = status["state"] != "running";
    is_over.then_some(seconds * 1000.0 + status["duration_ms"].as_f64()?)
}

/// Makes attempts until no heavy request ends before the light ones.
async fn expect_light_first(users: &Users, attempt: impl AsyncFn() -> Result<usize>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        let before = attempt().await?;
        ensure!(!users.server.log().contains("gateway instance is lost"), "{}", users.server.log());
        match before {
            0 => return Ok(()),
            before => eprintln!("{before} of {HEAVY} heavy requests ended before {LIGHT} light ones"),
        }
    }
    bail!("heavy requests ended before light ones in each of {ATTEMPTS} attempts")
}

#[tokio::test]
async fn light_requests_end_before_heavy_expressions() -> Result<()> {
    let users = start_users().await?;
    let numbers: Value = (0..95_000).map(|n| n % 10).collect();
    expect_light_first(&users, async || users.heavy_executions_before_light("expressions", &numbers).await).await
}

#[tokio::test]
async fn light_requests_end_before_large_checkpoints() -> Result<()> {
    let users = start_users().await?;
    let numbers: Value = (0..95_000).map(|n| n % 10).collect();
    expect_light_first(&users, async || users.heavy_executions_before_light("checkpoints", &numbers).await).await
}

#[tokio::test]
async fn light_requests_end_before_large_transcripts() -> Result<()> {
    let users = start_users().await?;
    let text = "I'll check the price of the blue one and we agreed on Tuesday. ".repeat(4);
    let line = |at: usize| json!({"start": at, "end": at + 1, "text": text, "speaker_id": "a", "seq": at + 1});
    let body: String = (0..1_000).map(|at| format!("{}\n", line(at))).collect();
    expect_light_first(&users, async || users.heavy_sessions_before_light(&body).await).await
}
