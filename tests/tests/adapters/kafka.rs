//! `weir stream kafka` with a broker.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use weir_tests::kafka::{Kafka, KafkaRecord};
use weir_tests::{Server, until};

use super::files::seeded_random;
use super::{StreamProcess, path, stub_stream, weir_command};

/// Texts with ids, and keys of which several are in each partition.
pub(super) fn texts(ids: std::ops::Range<i64>) -> impl Iterator<Item = (String, String)> {
    ids.map(|id| (format!("key-{}", id % 16), format!("{{\"text\":\"I love number {id}\",\"id\":{id}}}")))
}

/// Starts `weir stream kafka`.
fn start(kafka: &Kafka, more: &[&str]) -> Result<StreamProcess> {
    let mut arguments = vec!["kafka", "--brokers", kafka.brokers(), "--quiet", "--session-timeout", "6"];
    arguments.extend(["--property", "heartbeat.interval.ms=1000"]);
    arguments.extend(more);
    StreamProcess::start(stub_stream(&arguments)?)
}

/// The different ids of results.
pub(super) fn ids(results: &[KafkaRecord]) -> BTreeSet<i64> {
    let id = |result: &KafkaRecord| serde_json::from_str::<serde_json::Value>(&result.payload).ok()?["id"].as_i64();
    results.iter().filter_map(id).collect()
}

/// A consumer is killed after the first results of each round, and the broker is suspended for a while. At the end, every record has a
/// result, and every position is committed.
#[tokio::test]
async fn killed_consumers_and_a_silent_broker_lose_no_record() -> Result<()> {
    let kafka = Kafka::start().await?;
    let mut count = 400;
    kafka.produce(texts(0..count))?;
    for round in 0..3 {
        let before = kafka.count("sentiment-output")?;
        // Few records in flight, so that not all are processed before the end.
        let stream = start(&kafka, &["--in-flight", "8"])?;
        let written = until("written", || async { Ok(kafka.count("sentiment-output")? > before) }).await;
        stream.kill()?;
        written.with_context(|| format!("round {round}"))?;
        kafka.produce(texts(count..count + 100))?;
        count += 100;
    }
    let stream = start(&kafka, &["--strict"])?;
    let before = kafka.count("sentiment-output")?;
    until("written", || async { Ok(kafka.count("sentiment-output")? > before) }).await?;
    kafka.signal("STOP")?;
    // The broker is silent for less than the session timeout.
    tokio::time::sleep(Duration::from_secs(3)).await;
    kafka.signal("CONT")?;
    kafka.produce(texts(count..count + 200))?;
    count += 200;
    until("committed", || async { Ok(kafka.committed("weir")? == count) }).await?;
    ensure!(stream.terminate()?.success());
    let expected: BTreeSet<i64> = (0..count).collect();
    let results = kafka.read("sentiment-output", |results| ids(results).len() == expected.len())?;
    ensure!(ids(&results) == expected, "{:?} have no result", expected.difference(&ids(&results)));
    for result in &results {
        let id: i64 = ids(std::slice::from_ref(result)).into_iter().next().context("no id")?;
        ensure!(result.key == format!("key-{}", id % 16), "{result:?}");
        ensure!(result.headers.get("traceparent").map(String::as_str) == Some("00-1"), "{result:?}");
        ensure!(result.headers.get("weir-model").map(String::as_str) == Some("sentiment"), "{result:?}");
    }
    Ok(())
}

/// A drained process repeats no result; records without a text go to the topic for errors, and make the exit status 1.
#[tokio::test]
async fn transactions_commit_results_errors_and_positions() -> Result<()> {
    let kafka = Kafka::start().await?;
    kafka.produce(texts(0..200))?;
    kafka.produce([("bad".to_owned(), "broken".to_owned()), ("bad".to_owned(), "{\"id\":7}".to_owned())])?;
    for (count, code) in [(202, 1), (302, 0)] {
        let stream = start(&kafka, &["--transactional"])?;
        until("committed", || async { Ok(kafka.committed("weir")? == count) }).await?;
        assert_eq!(stream.terminate()?.code(), Some(code));
        kafka.produce(texts(count - 2..count + 98))?;
    }
    let results = kafka.read("sentiment-output", |results| ids(results).len() == 300)?;
    let entries = kafka.count("sentiment-output")?;
    ensure!(results.len() == 300, "{} results of 300 records, {entries} with markers of transactions", results.len());
    let errors = kafka.read("sentiment-errors", |errors| errors.len() >= 2)?;
    let payloads: BTreeSet<&str> = errors.iter().map(|error| error.payload.as_str()).collect();
    assert_eq!(payloads, BTreeSet::from(["broken", "{\"id\":7}"]));
    for error in &errors {
        assert_eq!((error.key.as_str(), error.headers["weir-error-category"].as_str()), ("bad", "client"));
    }
    Ok(())
}

#[tokio::test]
async fn killed_transactions_have_each_result_once() -> Result<()> {
    let kafka = Kafka::start().await?;
    let count = kill_in_transactions(&kafka, &[]).await?;
    has_each_once(&kafka.read_committed("sentiment-output")?, count)
}

/// A consumer of committed records has each result once. The members of the group are static, so that the next process has the partitions at once:
/// this broker waits for a killed member.
#[tokio::test]
async fn consumers_of_killed_transactions_have_each_result_once() -> Result<()> {
    let kafka = Kafka::start_second().await?;
    let count = kill_in_transactions(&kafka, &["--property", "group.instance.id=weir-0"]).await?;
    has_each_once(&kafka.read_committed_by_broker("sentiment-output")?, count)?;
    // The tests read the log as this broker does.
    has_each_once(&kafka.read_committed("sentiment-output")?, count)
}

/// A topic that is deleted and created while it is read is read from its beginning.
#[tokio::test]
async fn recreated_topic_is_read_from_its_beginning() -> Result<()> {
    // This broker reports that the committed positions are out of range.
    let kafka = Kafka::start_second().await?;
    kafka.produce(texts(0..200))?;
    let stream = start(&kafka, &["--reconnect-delay", "0.1"])?;
    until("committed", || async { Ok(kafka.committed("weir")? == 200) }).await?;
    kafka.recreate("text-input").await?;
    kafka.produce(texts(200..240))?;
    kafka.read("sentiment-output", |results| ids(results).len() == 240)?;
    until("committed again", || async { Ok(kafka.committed("weir")? == 40) }).await?;
    ensure!(stream.terminate()?.success());
    let results = kafka.read("sentiment-output", |results| ids(results).len() == 240)?;
    has_each_once(&results, 240)
}

/// Kills the process after a random number of log entries, so within a transaction, between transactions or while it joins the group, until
/// the last one processes the rest. Returns the number of records. `WEIR_TEST_KILLS` sets the number of kills, for a longer run.
async fn kill_in_transactions(kafka: &Kafka, more: &[&str]) -> Result<i64> {
    const PER_ROUND: i64 = 100;
    let kills = std::env::var("WEIR_TEST_KILLS").ok().and_then(|kills| kills.parse().ok()).unwrap_or(2);
    let mut random = seeded_random(11);
    let mut count = 0;
    for round in 0..kills {
        kafka.produce(texts(count..count + PER_ROUND))?;
        count += PER_ROUND;
        let before = kafka.count("sentiment-output")?;
        let entries = i64::try_from(random() % 40)?;
        let stream = start(kafka, &[&["--transactional", "--in-flight", "4"], more].concat())?;
        let written = until("written", || async { Ok(kafka.count("sentiment-output")? > before + entries) }).await;
        stream.kill()?;
        written.with_context(|| format!("round {round}"))?;
    }
    let stream = start(kafka, &[&["--transactional"], more].concat())?;
    until("committed", || async { Ok(kafka.committed("weir")? == count) }).await?;
    ensure!(stream.terminate()?.success());
    Ok(count)
}

/// Fails unless each of `count` records has one result.
fn has_each_once(results: &[KafkaRecord], count: i64) -> Result<()> {
    let expected: BTreeSet<i64> = (0..count).collect();
    ensure!(ids(results) == expected, "{:?} have no result", expected.difference(&ids(results)));
    ensure!(results.len() == expected.len(), "{} results of {count} records", results.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn clients_authenticate_with_sasl_plain() -> Result<()> {
    let kafka = Kafka::start_with_password("ada", "secret").await?;
    kafka.produce(texts(0..20))?;
    let dir = tempfile::tempdir()?;
    let (right, wrong) = (path(dir.path(), "right"), path(dir.path(), "wrong"));
    std::fs::write(&right, "secret\n")?;
    std::fs::write(&wrong, "guess\n")?;
    let properties = ["--property", "security.protocol=sasl_plaintext", "--property", "sasl.mechanism=PLAIN"];
    let with = |file| [&properties[..], &["--username", "ada", "--password-file", file]].concat();
    let stream = start(&kafka, &with(&right))?;
    kafka.read("sentiment-output", |results| ids(results).len() == 20)?;
    ensure!(stream.terminate()?.success());
    let arguments = ["kafka", "--brokers", kafka.brokers(), "--quiet"];
    let output = stub_stream(&[&arguments[..], &with(&wrong)].concat())?.output()?;
    let text = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2) && text.contains("Kafka refuses the credentials"), "{text}");
    ensure!(!text.contains("guess"), "{text}");
    Ok(())
}

/// The command reports the unreachable broker, and ends.
#[test]
fn broker_that_does_not_exist_ends_the_command() -> Result<()> {
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
    let run = |more: &[&str]| -> Result<(Option<i32>, String)> {
        let mut arguments = vec!["kafka", "--brokers", &closed, "--quiet", "--connect-timeout", "0.2"];
        arguments.extend(more);
        let output = stub_stream(&arguments)?.output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, text) = run(&["--reconnect-delay", "0.1", "--max-reconnect-attempts", "0"])?;
    ensure!(
        code == Some(2) && text.contains("no connection yet") && text.contains("test-connection"),
        "{code:?} {text}"
    );
    ensure!(text.contains("no connection within 0.2 s (--connect-timeout)"), "{text}");
    // Refused before anything connects.
    let (code, text) = run(&["--property", "security.protocol=sasl_ssl"])?;
    ensure!(code == Some(2) && text.contains("`kafka-tls`") && text.lines().count() == 1, "{code:?} {text}");
    let property = "security.protocol=ssl";
    let arguments = ["test-connection", "--protocol", "kafka", "--property", property, "--brokers", &closed];
    let output = weir_command(&arguments)?.output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1) && text.contains("`kafka-tls`") && !text.contains("resolve"), "{text}");
    Ok(())
}

/// An adapter of the server shows its lag, and `weir test-connection` finds the topics.
#[tokio::test]
async fn server_reports_lag_and_connection_is_checked() -> Result<()> {
    let kafka = Kafka::start().await?;
    kafka.produce(texts(0..50))?;
    let dir = tempfile::tempdir()?;
    let file = path(dir.path(), "weir.toml");
    let brokers = kafka.brokers();
    std::fs::write(
        &file,
        format!(
            "[[adapter]]\nname = 'k'\n[adapter.source]\nkind = 'kafka'\nbrokers = '{brokers}'\n[adapter.source.properties]\n'statistics.interval.ms' = '100'\n\
             [adapter.sink]\nkind = 'kafka'\nbrokers = '{brokers}'\n",
        ),
    )?;
    let mut server = Server::start_stub(&["--config", &file]).await?;
    kafka.read("sentiment-output", |results| ids(results).len() == 50)?;
    until("committed", || async { Ok(kafka.committed("weir")? == 50) }).await?;
    until("reported", || async {
        let metrics = reqwest::get(server.url("/metrics")).await?.text().await?;
        let mut lags = metrics.lines().filter(|line| line.starts_with("weir_adapter_lag_records{")).peekable();
        Ok(lags.peek().is_some() && lags.all(|line| line.ends_with(" 0")))
    })
    .await?;
    server.signal("TERM")?;
    let status = server.wait().await?;
    ensure!(status.success(), "{status}: {}", server.log());

    let check = |arguments: &[&str]| -> Result<(bool, String)> {
        let mut all = vec!["test-connection", "--protocol", "kafka", "--brokers", brokers, "--json"];
        all.extend(arguments);
        let output = weir_command(&all)?.output()?;
        Ok((output.status.success(), String::from_utf8(output.stdout)?))
    };
    let (passed, lines) = check(&[])?;
    ensure!(passed && lines.contains("\"read\"") && lines.contains("\"write\""), "{lines}");
    let (passed, lines) = check(&["--property", "no.such.property=1"])?;
    ensure!(!passed && lines.contains("no.such.property"), "{lines}");
    // The flags replace the values of the adapter, and each broker is checked.
    let brokers = format!("{brokers},127.0.0.1:1");
    let flags = ["--brokers", &brokers, "--topic", "nothing", "--json"];
    let flags = [&["test-connection", "--protocol", "kafka", "--config", &file][..], &flags].concat();
    let output = weir_command(&flags)?.output()?;
    let lines = String::from_utf8(output.stdout)?;
    ensure!(output.status.code() == Some(1) && lines.contains("`nothing`: Kafka: "), "{lines}");
    let failures = lines.lines().filter(|line| line.contains("\"passed\":false")).collect::<Vec<_>>();
    ensure!(failures.len() == 2 && failures[0].contains("127.0.0.1:1: Connection refused"), "{lines}");
    Ok(())
}
