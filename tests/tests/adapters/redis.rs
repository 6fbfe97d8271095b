//! `weir stream redis` with a Redis server.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_tests::redis::Redis;
use weir_tests::{PATIENCE, until};

use super::stub_stream;

/// Runs a Redis command; its reply as it is on the wire.
fn command(redis: &Redis, words: &[&str]) -> Result<String> {
    redis.command(words)
}

/// A consumer is killed after each first write of a round: in the end every entry has a result and is acknowledged.
#[tokio::test]
async fn killed_consumers_lose_no_entry() -> Result<()> {
    let redis = Redis::start()?;
    until("up", || async { Ok(command(&redis, &["PING"]).is_ok()) }).await?;
    let count = 400;
    for id in 0..count {
        let payload = format!("{{\"text\":\"I love number {id}\",\"id\":{id}}}");
        command(&redis, &["XADD", "text-input", "*", "payload", &payload])?;
    }
    let url = redis.url();
    let start = |consumer: &str| -> Result<std::process::Child> {
        let arguments = ["redis", "--url", &url, "--consumer", consumer, "--quiet", "--in-flight", "16"];
        Ok(stub_stream(&arguments)?.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
    };
    let length = |stream: &str| -> Result<usize> {
        Ok(command(&redis, &["XLEN", stream])?.trim_start_matches(':').trim().parse()?)
    };
    for round in 0..6 {
        let before = length("sentiment-output")?;
        let mut child = start("one")?;
        let began = Instant::now();
        while length("sentiment-output")? <= before && before < count {
            ensure!(began.elapsed() < PATIENCE, "the process writes nothing in round {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        child.kill()?;
        child.wait()?;
    }
    let mut child = start("one")?;
    // Once this entry is acknowledged, the process handles signals.
    command(
        &redis,
        &["XADD", "text-input", "*", "payload", &format!("{{\"text\":\"I love the last\",\"id\":{count}}}")],
    )?;
    let count = count + 1;
    let pending = || -> Result<bool> {
        let pending = command(&redis, &["XPENDING", "text-input", "weir"])?;
        let groups = command(&redis, &["XINFO", "GROUPS", "text-input"])?;
        Ok(pending.contains(":0\r\n") && groups.replace("\r\n", " ").contains("lag :0"))
    };
    until("acknowledged", || async { pending() }).await?;
    // SIGTERM drains the process.
    std::process::Command::new("sh").args(["-c", &format!("kill -TERM {}", child.id())]).status()?;
    ensure!(child.wait()?.success(), "the exit status after SIGTERM is not 0");
    let written = command(&redis, &["XRANGE", "sentiment-output", "-", "+"])?;
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for line in written.lines().filter(|line| line.starts_with("{\"id\":")) {
        let result: serde_json::Value = serde_json::from_str(line)?;
        *counts.entry(usize::try_from(result["id"].as_u64().unwrap_or(u64::MAX))?).or_default() += 1;
    }
    ensure!(counts.len() == count, "{} of {count} entries have a result", counts.len());
    Ok(())
}
