//! The stateful instance serves all users on one thread: light requests of one user wait for slices of the work of another, not for all of it.

use std::pin::pin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures::future::{Either, select, try_join_all};
use reqwest::Client;
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
/// Concurrent requests of the heavy user.
const HEAVY: usize = 40;
/// Measured requests of the light user beside them.
const LIGHT: usize = 60;
/// Bounds of the duration of a light request beside [`HEAVY`] heavy ones, as multiples of the duration of one heavy request alone: of the
/// median, and of the second highest. A light request has a few turns, and waits before each for the end of one slice of the other user. In
/// the order of arrival it would wait for the work of half of the heavy requests in the median, and of all of them at worst. Both durations
/// are measured on the same machine, so that other work there slows both.
const MEDIAN_FACTOR: u32 = 2;
const HIGH_FACTOR: u32 = 10;

struct Users {
    server: Server,
    _folder: Folder,
    _keys: TempDir,
    client: Client,
}

async fn start_users() -> Result<Users> {
    // Uses most of the budget of an evaluation: passes over the largest number of inputs.
    let step = |n: usize| {
        let expression = "[length(map(&(@ == `1`), @)), length(map(&(@ == `2`), @))]";
        json!({"id": format!("s{n}"), "kind": "map", "input": "input", "expression": expression})
    };
    let folder = Folder::new(&[
        ("heavy", (0..6).map(step).collect::<Value>()),
        ("light", json!([{"id": "light", "kind": "map", "expression": "@"}])),
    ])?;
    let keys = tempfile::tempdir()?;
    std::fs::write(keys.path().join("api_keys"), API_KEYS)?;
    let dir = format!("auth.dir={}", keys.path().display());
    let mut arguments = vec!["--set", "auth.mode=required", "--set", &dir];
    arguments.extend(["--set", "auth.requests_per_s=10000", "--set", "auth.publishes_per_s=10000"]);
    arguments.extend(["--set", "events.user_percent_max=100", "--set", "pipelines.ttl_ms=5000"]);
    // An execution whose client no longer waits for it continues beside the next.
    arguments.extend(["--set", "pipelines.user_executions_max=2000", "--set", "pipelines.executions_max=2000"]);
    arguments.extend(folder.arguments());
    let server = Server::start_stub(&arguments).await?;
    Ok(Users { server, _folder: folder, _keys: keys, client: Client::new() })
}

impl Users {
    /// Starts an execution and waits for its end, up to the longest wait of the server.
    async fn run(&self, name: &str, key: &str, input: &Value) -> Result<()> {
        let request = self.client.post(self.server.url(&format!("/pipelines/{name}"))).bearer_auth(key);
        let response = request.header("prefer", "wait").json(input).send().await?;
        let status = response.status();
        ensure!(status.is_success(), "{status}: {}", response.text().await?);
        Ok(())
    }

    /// Creates a session, feeds it many lines in one body, and deletes it.
    async fn transcribe(&self, key: &str, body: &str) -> Result<()> {
        let response = self.client.post(self.server.url("/sessions")).bearer_auth(key).json(&json!({})).send().await?;
        let created: Value = response.error_for_status()?.json().await?;
        let id = created["session_id"].as_str().context("an id")?;
        let path = self.server.url(&format!("/sessions/{id}/chunks"));
        let request = self.client.post(path).bearer_auth(key).header("content-type", "application/x-ndjson");
        let response = request.body(body.to_owned()).send().await?.error_for_status()?;
        response.text().await?;
        let path = self.server.url(&format!("/sessions/{id}"));
        self.client.delete(path).bearer_auth(key).send().await?.error_for_status()?;
        Ok(())
    }

    async fn light(&self) -> Result<Duration> {
        let began = Instant::now();
        self.run("light", BOB, &json!("x")).await?;
        Ok(began.elapsed())
    }

    /// Measures light requests of one user beside the repeated heavy work of another, and checks the bounds. Returns a line with the
    /// durations.
    async fn measure<F: Future<Output = Result<()>>>(&self, what: &str, heavy: impl Fn() -> F) -> Result<String> {
        let mut alone = Vec::new();
        for _ in 0..3 {
            let began = Instant::now();
            heavy().await?;
            alone.push(began.elapsed());
        }
        alone.sort_unstable();
        let heavy_alone = alone[1];
        let all = pin!(try_join_all((0..HEAVY).map(|_| async {
            loop {
                heavy().await?;
            }
            #[expect(unreachable_code, reason = "the statement determines the type of the result")]
            anyhow::Ok(())
        })));
        let measured = pin!(async {
            let mut durations = Vec::new();
            // The first requests are sent while the heavy work begins.
            for _ in 0..5 {
                self.light().await?;
            }
            for _ in 0..LIGHT {
                durations.push(self.light().await?);
            }
            anyhow::Ok(durations)
        });
        let mut durations = match select(all, measured).await {
            Either::Left((result, _)) => {
                result?;
                unreachable!("the heavy work repeats without end")
            }
            Either::Right((durations, _)) => durations?,
        };
        durations.sort_unstable();
        let (median, second_highest) = (durations[LIGHT / 2], durations[LIGHT - 2]);
        let summary = format!(
            "{what}: a light request beside {HEAVY} heavy ones takes {median:?} in the median and {second_highest:?} at the second highest; a heavy one \
             takes {heavy_alone:?} alone"
        );
        ensure!(median <= heavy_alone * MEDIAN_FACTOR, "{summary}");
        ensure!(second_highest <= heavy_alone * HIGH_FACTOR, "{summary}");
        ensure!(!self.server.log().contains("gateway instance is lost"), "{}", self.server.log());
        Ok(summary)
    }
}

#[tokio::test]
async fn light_requests_wait_for_slices_of_heavy_expressions() -> Result<()> {
    let users = start_users().await?;
    let numbers: Value = (0..95_000).map(|n| n % 10).collect();
    println!("{}", users.measure("expressions", || users.run("heavy", ANN, &numbers)).await?);
    Ok(())
}

#[tokio::test]
async fn light_requests_wait_for_slices_of_large_transcripts() -> Result<()> {
    let users = start_users().await?;
    let text = "I'll check the price of the blue one and we agreed on Tuesday. ".repeat(4);
    let line = |at: usize| json!({"start": at, "end": at + 1, "text": text, "speaker_id": "a", "seq": at + 1});
    let body: String = (0..1_000).map(|at| format!("{}\n", line(at))).collect();
    println!("{}", users.measure("transcripts", || users.transcribe(ANN, &body)).await?);
    Ok(())
}
