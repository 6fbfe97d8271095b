//! Kafka brokers that do not speak the protocol, or stop to.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use weir_tests::kafka::Kafka;
use weir_tests::kafka_faults::{Fault, FaultyBroker, JOIN_GROUP};
use weir_tests::{PATIENCE, Server, memory_bytes, until};

use super::kafka::{ids, texts};
use super::{path, stub_stream, weir_command};

/// The most memory of a process, in bytes. Without a broker it has less than half.
const MEMORY_BYTES_MAX: u64 = 400 << 20;

/// `weir stream kafka` reports each fault in one line, and ends after its time with another one; so does a check of the connection.
#[tokio::test(flavor = "multi_thread")]
async fn broker_that_speaks_no_kafka_ends_the_command_with_one_error() -> Result<()> {
    let commands = Fault::ALL.map(|fault| tokio::spawn(end_of_command(fault)));
    for (fault, command) in Fault::ALL.into_iter().zip(commands) {
        command.await?.with_context(|| format!("{fault:?}"))?;
    }
    Ok(())
}

async fn end_of_command(fault: Fault) -> Result<()> {
    let broker = FaultyBroker::start(fault).await?;
    let address = broker.address();
    let mut arguments = vec!["kafka", "--brokers", &address, "--quiet", "--connect-timeout", "1"];
    arguments.extend(["--reconnect-delay", "0.1", "--max-reconnect-attempts", "0"]);
    let mut command = stub_stream(&arguments)?;
    let began = Instant::now();
    let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let process = child.id();
    let output = tokio::task::spawn_blocking(move || child.wait_with_output());
    let mut peak_bytes = 0;
    while !output.is_finished() {
        // The process may have ended.
        peak_bytes = memory_bytes(process, "VmHWM:").unwrap_or(0).max(peak_bytes);
        ensure!(began.elapsed() < PATIENCE, "it does not end");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let output = output.await??;
    let text = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2) && broker.requests() > 0, "{}: {text}", output.status);
    // The others are of the log.
    let lines: Vec<&str> = text.lines().filter(|line| line.starts_with("weir: ")).collect();
    ensure!(lines.len() == 2 && lines[0].starts_with("weir: no connection yet; the attempts end 1 s"), "{text}");
    ensure!(lines[1].contains("no connection within 1 s (--connect-timeout): Kafka: "), "{text}");
    ensure!(!text.replace('\n', "").contains(char::is_control), "{text:?}");
    ensure!(peak_bytes < MEMORY_BYTES_MAX, "{peak_bytes} bytes");

    let arguments = ["test-connection", "--protocol", "kafka", "--timeout", "3", "--brokers", &address];
    let mut command = weir_command(&arguments)?;
    let output = tokio::task::spawn_blocking(move || command.output()).await??;
    let text = String::from_utf8(output.stdout)?;
    let last = text.lines().last().context("no check")?;
    ensure!(output.status.code() == Some(1) && text.lines().count() == 3, "{}: {text}", output.status);
    ensure!(last.starts_with("failed kafka authenticate Kafka: "), "{text}");
    Ok(())
}

/// An adapter whose broker gives wrong responses connects again and loses no record. Another adapter and HTTP go on, memory is bounded, and
/// the server ends in its time.
#[tokio::test(flavor = "multi_thread")]
async fn faults_of_a_broker_affect_no_other_adapter_and_lose_no_record() -> Result<()> {
    let (kafka, proxy) = Kafka::start_faulty().await?;
    kafka.produce(texts(0..200))?;
    let dir = tempfile::tempdir()?;
    let (file, lines, results) =
        (path(dir.path(), "weir.toml"), path(dir.path(), "in.ndjson"), path(dir.path(), "out.ndjson"));
    std::fs::write(&lines, "{\"text\":\"I love it\"}\n".repeat(2_000))?;
    let brokers = kafka.brokers();
    let properties = "properties = { 'socket.timeout.ms' = '2000', 'reconnect.backoff.max.ms' = '200' }";
    // The time that librdkafka waits for the response to a request to join the group.
    let source_properties = properties.replace(" }", ", 'max.poll.interval.ms' = '6000' }");
    std::fs::write(
        &file,
        format!(
            "[[adapter]]\nname = 'k'\nreconnect_delay_ms = 20\nreconnect_delay_ms_max = 200\n\
             [adapter.source]\nkind = 'kafka'\nbrokers = '{brokers}'\ntimeout_ms = 2000\nsession_timeout_ms = 6000\n{source_properties}\n\
             [adapter.sink]\nkind = 'kafka'\nbrokers = '{brokers}'\ntimeout_ms = 5000\n{properties}\n\
             [[adapter]]\nname = 'f'\nformat = 'ndjson'\n[adapter.source]\nkind = 'file'\npaths = ['{lines}']\n\
             [adapter.sink]\nkind = 'file'\npath = '{results}'\n",
        ),
    )?;
    let drain = "http.drain_timeout_ms=3000";
    let mut server = Server::start_stub(&["--config", &file, "--set", drain]).await?;
    until("the file is processed", || async {
        Ok(std::fs::read_to_string(&results).unwrap_or_default().lines().count() == 2_000)
    })
    .await?;
    // Each fault at least once.
    let mut peak_bytes = 0;
    until("faults", || {
        peak_bytes = server.resident_bytes().unwrap_or(u64::MAX).max(peak_bytes);
        let is_over = proxy.faults().len() > Fault::ALL.len();
        async move { Ok(is_over) }
    })
    .await
    .with_context(|| format!("{:?}\n{}", proxy.faults(), server.log()))?;
    ensure!(reqwest::get(server.url("/readyz")).await?.status() == 200);
    ensure!(peak_bytes < MEMORY_BYTES_MAX, "{peak_bytes} bytes");
    proxy.set_faulty(false);
    until("committed", || async { Ok(kafka.committed("weir")? == 200) })
        .await
        .with_context(|| format!("{:?}\n{}", proxy.faults(), server.log()))?;
    let written = kafka.read("sentiment-output", |results| ids(results).len() == 200)?;
    ensure!(ids(&written) == (0..200).collect::<BTreeSet<i64>>());
    proxy.set_faulty(true);
    kafka.produce(texts(200..400))?;
    let began = Instant::now();
    server.signal("TERM")?;
    let status = server.wait().await?;
    ensure!(status.success() && began.elapsed() < Duration::from_secs(20), "{status} after {:?}", began.elapsed());
    ensure!(!server.log().contains("panicked"), "{}", server.log());
    Ok(())
}

/// The coordinator delays its response to a request to join until all members have joined, so librdkafka waits for it for
/// `max.poll.interval.ms`. One that is lost is requested again after that time.
#[tokio::test(flavor = "multi_thread")]
async fn lost_response_to_a_request_to_join_delays_the_consumer_for_a_bounded_time() -> Result<()> {
    let (kafka, proxy) = Kafka::start_faulty().await?;
    proxy.set_faulty(false);
    proxy.lose_next(JOIN_GROUP);
    kafka.produce(texts(0..50))?;
    let mut arguments = vec!["kafka", "--brokers", kafka.brokers(), "--quiet", "--session-timeout", "6"];
    arguments.extend(["--property", "max.poll.interval.ms=6000"]);
    let child = stub_stream(&arguments)?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    until("committed", || async { Ok(kafka.committed("weir")? == 50) }).await?;
    ensure!(proxy.faults() == [(JOIN_GROUP, Fault::Unasked)], "{:?}", proxy.faults());
    weir_tests::send_signal("TERM", &child.id().to_string())?;
    let output = child.wait_with_output()?;
    ensure!(output.status.success(), "{}: {}", output.status, String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A command that is to end waits for a silent broker no longer than its bound.
#[tokio::test]
async fn silent_broker_does_not_delay_the_end_of_the_command() -> Result<()> {
    let kafka = Kafka::start().await?;
    kafka.produce(texts(0..50))?;
    let mut arguments = vec!["kafka", "--brokers", kafka.brokers(), "--quiet", "--session-timeout", "6"];
    arguments.extend(["--property", "heartbeat.interval.ms=1000", "--set", "http.drain_timeout_ms=1000"]);
    let child = stub_stream(&arguments)?.stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    until("committed", || async { Ok(kafka.committed("weir")? == 50) }).await?;
    kafka.signal("STOP")?;
    let began = Instant::now();
    weir_tests::send_signal("TERM", &child.id().to_string())?;
    let output = child.wait_with_output()?;
    kafka.signal("CONT")?;
    let text = String::from_utf8(output.stderr)?;
    // librdkafka would wait for minutes.
    ensure!(began.elapsed() < Duration::from_secs(20), "{:?}: {text}", began.elapsed());
    ensure!(output.status.code() == Some(2) && text.contains("no progress for 1000 ms after the signal"), "{text}");
    Ok(())
}
