//! `weir stream redis` with a Redis server.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use weir_tests::redis::Redis;
use weir_tests::{PATIENCE, until};

use super::{StreamProcess, stub_stream};

/// Runs a Redis command; its reply as it is on the wire.
fn command(redis: &Redis, words: &[&str]) -> Result<String> {
    redis.command(words)
}

/// A consumer is killed after the first result of each round. At the end, every entry has a result and is acknowledged.
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
    let start = |consumer: &str| -> Result<StreamProcess> {
        let arguments = ["redis", "--url", &url, "--consumer", consumer, "--quiet", "--in-flight", "16"];
        StreamProcess::start(stub_stream(&arguments)?)
    };
    let length = |stream: &str| -> Result<usize> {
        Ok(command(&redis, &["XLEN", stream])?.trim_start_matches(':').trim().parse()?)
    };
    for round in 0..6 {
        let before = length("sentiment-output")?;
        let stream = start("one")?;
        let began = Instant::now();
        while length("sentiment-output")? <= before && before < count {
            ensure!(began.elapsed() < PATIENCE, "the process writes nothing in round {round}");
            std::thread::sleep(Duration::from_millis(1));
        }
        stream.kill()?;
    }
    let stream = start("one")?;
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
    ensure!(stream.terminate()?.success());
    let written = command(&redis, &["XRANGE", "sentiment-output", "-", "+"])?;
    let mut counts: BTreeMap<usize, usize> = BTreeMap::new();
    for line in written.lines().filter(|line| line.starts_with("{\"id\":")) {
        let result: serde_json::Value = serde_json::from_str(line)?;
        *counts.entry(usize::try_from(result["id"].as_u64().unwrap_or(u64::MAX))?).or_default() += 1;
    }
    ensure!(counts.len() == count, "{} of {count} entries have a result", counts.len());
    Ok(())
}
