//! Six adapters at once in a server that is killed at random: every item is counted as its guarantee says. `WEIR_TEST_KILLS` sets the number of
//! kills, for a longer run.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weir_tests::client::publish;
use weir_tests::kafka::Kafka;
use weir_tests::nats::Nats;
use weir_tests::redis::Redis;
use weir_tests::{Server, ndjson, until};

use super::files::seeded_random;
use super::path;

/// Default number of kills.
const KILLS: usize = 8;
/// Lines of the file.
const LINES: usize = 20_000;
/// Entries of the stream of Redis, messages of that of NATS, records of the topic of Kafka, and events of the channel that is read over HTTP and over a WebSocket.
const ENTRIES: u32 = 400;

/// The table of an adapter.
fn adapter(name: &str, more: &str, source: &str, sink: &str) -> String {
    format!(
        "[[adapter]]\nname = '{name}'\nreconnect_delay_ms = 50\n{more}\n[adapter.source]\n{source}\n[adapter.sink]\n{sink}\n"
    )
}

fn configuration(dir: &Path, redis: &Redis, kafka: &Kafka, nats: &Nats, feed: &Server) -> String {
    let sink = |stream: &str| format!("kind = 'redis'\nurl = '{}'\nstream = '{stream}'", redis.url());
    let lines = adapter(
        "lines",
        "format = 'ndjson'",
        &format!("kind = 'file'\npaths = ['{}']\ncheckpoint = '{}'", path(dir, "in.ndjson"), path(dir, "checkpoint")),
        &format!("kind = 'file'\npath = '{}'", path(dir, "out.ndjson")),
    );
    let entries = adapter(
        "entries",
        "in_flight_max = 16",
        // An entry may be delivered again after each kill.
        &format!("kind = 'redis'\nurl = '{}'\nconsumer = 'one'\nblock_ms = 100\ndeliveries_max = 1000000", redis.url()),
        &sink("entries"),
    );
    let events = adapter(
        "events",
        "text = '/message'\noutput_text = true",
        &format!("kind = 'http'\nurl = '{}'\nevents = ['workflow_progress']", feed.url("/stream/workflow/feed")),
        &sink("events"),
    );
    let messages = adapter(
        "messages",
        "text = '/data/message'\noutput_text = true",
        &format!(
            "kind = 'websocket'\nurl = 'ws://{}/ws'\nsubscribe = '{{\"type\":\"subscribe\",\"channel\":\"workflow:feed\"}}'",
            feed.address()
        ),
        &format!("{}\n[adapter.errors]\n{}", sink("messages"), sink("messages-errors")),
    );
    let brokers = kafka.brokers();
    let topic = |topic: &str| format!("kind = 'kafka'\nbrokers = '{brokers}'\ntopic = '{topic}'");
    let records = adapter(
        "records",
        "in_flight_max = 16",
        &format!("kind = 'kafka'\nbrokers = '{brokers}'\nguarantee = 'transactional'\nsession_timeout_ms = 6000"),
        &format!("{}\n[adapter.errors]\n{}", topic("sentiment-output"), topic("sentiment-errors")),
    );
    let url = format!("kind = 'nats'\nurl = '{}'", nats.url());
    // A message may be delivered again after each kill.
    let source = format!("{url}\nack_wait_ms = 1000\ndeliveries_max = 1000000");
    let jobs = adapter("jobs", "in_flight_max = 16", &source, &url);
    lines + &entries + &events + &messages + &records + &jobs
}

/// The payloads of a stream that are JSON objects.
fn payloads(redis: &Redis, stream: &str) -> Result<Vec<Value>> {
    let reply = redis.command(&["XRANGE", stream, "-", "+"])?;
    let lines = reply.lines().filter(|line| line.starts_with('{'));
    lines.map(|line| serde_json::from_str(line).with_context(|| line.to_owned())).collect()
}

/// The texts of the results in a stream.
fn texts(redis: &Redis, stream: &str) -> Result<BTreeSet<String>> {
    let payloads = payloads(redis, stream)?;
    let texts = payloads.iter().map(|result| result["text"].as_str().map(str::to_owned).context("no text"));
    texts.collect()
}

#[tokio::test]
async fn six_adapters_of_a_killed_server_lose_nothing() -> Result<()> {
    let kills = std::env::var("WEIR_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(KILLS);
    let dir = tempfile::tempdir()?;
    let redis = Redis::start()?;
    until("up", || async { Ok(redis.command(&["PING"]).is_ok()) }).await?;
    let feed = Server::start_stub(&[]).await?;
    let (kafka, nats) = (Kafka::start().await?, Nats::start()?);
    let lines: String = (0..LINES).map(|id| format!("{{\"text\":\"I love number {id}\",\"id\":{id}}}\n")).collect();
    std::fs::write(dir.path().join("in.ndjson"), lines)?;
    let config = path(dir.path(), "weir.toml");
    std::fs::write(&config, configuration(dir.path(), &redis, &kafka, &nats, &feed))?;
    let output = dir.path().join("out.ndjson");
    let length =
        |stream: &str| -> Result<u64> { Ok(redis.command(&["XLEN", stream])?.trim_start_matches(':').trim().parse()?) };
    let written = || -> Result<u64> {
        let bytes = std::fs::metadata(&output).map_or(0, |file| file.len());
        Ok(bytes + length("entries")? + length("events")? + length("messages")?)
    };
    let mut random = seeded_random(14);
    let (mut added, mut round) = (0, 0);
    while round < kills {
        // A part of the items arrives in each round, so that the last kills find work too.
        let target = ENTRIES * u32::try_from(round + 1)? / u32::try_from(kills)?;
        for number in added..target {
            publish(&feed, "feed", number).await?;
            let payload = format!("{{\"text\":\"I love entry {number}\",\"id\":{number}}}");
            redis.command(&["XADD", "text-input", "*", "payload", &payload])?;
        }
        let payload = |number| format!("{{\"text\":\"I love record {number}\",\"id\":{number}}}");
        kafka.produce((added..target).map(|number| (format!("k{}", number % 16), payload(number))))?;
        nats.publish((added..target).map(payload))?;
        added = target;
        let before = written()?;
        let server = Server::start_stub(&["--config", &config]).await?;
        until("written", || async { Ok(written()? > before) }).await?;
        tokio::time::sleep(Duration::from_millis(random() % 150)).await;
        server.signal("KILL")?;
        drop(server);
        round += 1;
    }
    let mut server = Server::start_stub(&["--config", &config]).await?;
    let expected: BTreeSet<String> = (0..ENTRIES).map(|number| format!("n{number}")).collect();
    let read = || std::fs::read_to_string(&output).unwrap_or_default();
    until("lines", || async { Ok(read().lines().count() >= LINES) }).await?;
    until("acknowledged", || async {
        let pending = redis.command(&["XPENDING", "text-input", "weir"])?;
        let groups = redis.command(&["XINFO", "GROUPS", "text-input"])?.replace("\r\n", " ");
        Ok(pending.contains(":0\r\n") && groups.contains("lag :0"))
    })
    .await?;
    until("committed", || async { Ok(kafka.committed("weir")? == i64::from(ENTRIES)) }).await?;
    until("acknowledged by NATS", || async { nats.is_acknowledged() }).await?;
    until("events", || async { Ok(texts(&redis, "events")?.len() >= expected.len()) }).await?;
    until("messages", || async { Ok(texts(&redis, "messages")?.len() >= expected.len()) }).await?;
    server.signal("TERM")?;
    let status = server.wait().await?;
    ensure!(status.success(), "{status}: {}", server.log());

    // From a file to a file: exactly once, in order.
    let results = ndjson(&read())?;
    ensure!(results.len() == LINES, "{} results of {LINES} lines", results.len());
    let wrong = results.iter().enumerate().find(|(id, result)| result["id"] != *id);
    ensure!(wrong.is_none(), "{wrong:?}");
    // From Redis: at least once, and nothing else.
    let ids: BTreeSet<u64> =
        payloads(&redis, "entries")?.iter().map(|result| result["id"].as_u64().unwrap_or(u64::MAX)).collect();
    ensure!(ids == (0..u64::from(ENTRIES)).collect(), "{} entries have a result", ids.len());
    // From NATS: at least once, and nothing else.
    let results = nats.read("sentiment-output")?;
    let id = |payload: &[u8]| serde_json::from_slice::<Value>(payload).ok()?["id"].as_u64();
    let ids: BTreeSet<u64> = results.iter().map(|result| id(&result.payload).unwrap_or(u64::MAX)).collect();
    ensure!(ids == (0..u64::from(ENTRIES)).collect(), "{} messages have a result", ids.len());
    // From a topic to a topic, with transactions: exactly once.
    let records = kafka.read_committed("sentiment-output")?;
    let ids: BTreeSet<u64> = records
        .iter()
        .filter_map(|record| serde_json::from_str::<Value>(&record.payload).ok()?["id"].as_u64())
        .collect();
    ensure!(ids == (0..u64::from(ENTRIES)).collect(), "{} records have a result", ids.len());
    ensure!(records.len() == ids.len(), "{} results of {ENTRIES} records", records.len());
    // From a feed that repeats its events to a new reader: each of them, and nothing else.
    ensure!(texts(&redis, "events")? == expected);
    ensure!(texts(&redis, "messages")? == expected);
    // What a WebSocket sends besides events has no text.
    let errors = redis.command(&["XRANGE", "messages-errors", "-", "+"])?;
    let foreign = errors.lines().find(|line| line.starts_with("{\"type\":\"workflow_progress\""));
    ensure!(foreign.is_none(), "{foreign:?}");
    Ok(())
}
