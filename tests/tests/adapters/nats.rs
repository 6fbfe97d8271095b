//! `weir stream nats` with a nats-server.

use std::collections::BTreeSet;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use weir_tests::nats::{Nats, NatsMessage};
use weir_tests::{PATIENCE, Server, root, until};

use super::{StreamProcess, path, stub_stream, weir_command};

fn texts(ids: std::ops::Range<u64>) -> impl Iterator<Item = String> {
    ids.map(|id| format!("{{\"text\":\"I love number {id}\",\"id\":{id}}}"))
}

/// Starts `weir stream nats` with an unlimited number of attempts to reconnect.
fn start(nats: &Nats, more: &[&str]) -> Result<StreamProcess> {
    let url = nats.url();
    let mut arguments = vec!["nats", "--url", &url, "--quiet", "--reconnect-delay", "0.1"];
    arguments.extend(["--max-reconnect-attempts", "0"]);
    arguments.extend(more);
    StreamProcess::start(stub_stream(&arguments)?)
}

/// The ids of results in their order.
fn ids(results: &[NatsMessage]) -> Result<Vec<u64>> {
    let id = |result: &NatsMessage| {
        let result: Value = serde_json::from_slice(&result.payload)?;
        result["id"].as_u64().context("no id")
    };
    results.iter().map(id).collect()
}

/// Waits until every message is acknowledged.
async fn wait_until_acknowledged(nats: &Nats) -> Result<()> {
    until("acknowledged", || async { nats.is_acknowledged() }).await
}

/// Waits until the stream has another result.
async fn wait_for_result(nats: &Nats) -> Result<()> {
    let before = nats.count("sentiment-output")?;
    until("written", || async { Ok(nats.count("sentiment-output")? > before) }).await
}

/// A consumer is killed after the first results of each round, and the server after those of the last one. At the end, every message has
/// a result and is acknowledged.
#[tokio::test]
async fn killed_consumers_and_server_lose_no_message() -> Result<()> {
    let mut nats = Nats::start()?;
    let mut count = 400;
    nats.publish(texts(0..count))?;
    // A message may be delivered again after each end.
    let redelivery = ["--ack-wait", "1", "--max-deliveries", "1000000"];
    for round in 0..3 {
        // Few records in flight, so that not all are processed before the end.
        let stream = start(&nats, &[&redelivery[..], &["--in-flight", "8"]].concat())?;
        wait_for_result(&nats).await.with_context(|| format!("round {round}"))?;
        stream.kill()?;
        nats.publish(texts(count..count + 100))?;
        count += 100;
    }
    let stream = start(&nats, &[&redelivery[..], &["--in-flight", "8"]].concat())?;
    wait_for_result(&nats).await?;
    nats.kill()?;
    nats.restart()?;
    nats.publish(texts(count..count + 100))?;
    count += 100;
    wait_until_acknowledged(&nats).await?;
    ensure!(stream.terminate()?.success());
    let results = nats.read("sentiment-output")?;
    let (actual, expected): (BTreeSet<u64>, BTreeSet<u64>) =
        (ids(&results)?.into_iter().collect(), (0..count).collect());
    ensure!(actual == expected, "{:?} have no result", expected.difference(&actual));
    for (result, id) in results.iter().zip(ids(&results)?) {
        ensure!(result.header("traceparent") == Some("00-1"), "{result:?}");
        ensure!(result.header("weir-model") == Some("sentiment"), "{result:?}");
        // The messages of the stream have the numbers 1, 2 and so on.
        ensure!(result.header("weir-record-id") == Some(&format!("text-input-{}", id + 1)), "{result:?}");
    }
    Ok(())
}

/// Messages that are not text or have none, and one that was delivered too often, go to the subject for errors with their bytes, their
/// headers and the reason.
#[tokio::test]
async fn bad_messages_and_those_delivered_too_often_are_errors() -> Result<()> {
    let nats = Nats::start()?;
    nats.publish(texts(1..2))?;
    let mut client = nats.client()?;
    let consumer = json!({ "durable_name": "weir", "ack_policy": "explicit", "max_deliver": -1 });
    let consumer = json!({ "stream_name": "text-input", "config": consumer });
    client.api("CONSUMER.DURABLE.CREATE.text-input.weir", &consumer)?;
    for _ in 0..3 {
        let message = client.request("$JS.API.CONSUMER.MSG.NEXT.text-input.weir", "", b"")?;
        client.publish(&message.reply, "", "", b"-NAK")?;
    }
    let bad: [&[u8]; 2] = [b"broken \xff bytes", b"{\"id\":7}"];
    nats.publish(bad)?;
    nats.publish(texts(2..3))?;
    let stream = start(&nats, &["--max-deliveries", "3"])?;
    wait_until_acknowledged(&nats).await?;
    assert_eq!(stream.terminate()?.code(), Some(1), "a record had an error");
    assert_eq!(ids(&nats.read("sentiment-output")?)?, [2]);
    let errors = nats.read("sentiment-errors")?;
    let describe = |error: &NatsMessage| {
        let header = |name: &str| error.header(name).unwrap_or_default().to_owned();
        (error.payload.clone(), header("weir-error-category"), header("weir-error-code"))
    };
    let error = |payload: &[u8], category: &str, code: &str| (payload.to_owned(), category.to_owned(), code.to_owned());
    let dead = texts(1..2).next().context("no text")?;
    let expected = BTreeSet::from([
        error(bad[0], "client", "not_utf8"),
        error(bad[1], "client", "text_missing"),
        error(dead.as_bytes(), "system", "deliveries_exhausted"),
    ]);
    assert_eq!(errors.iter().map(describe).collect::<BTreeSet<_>>(), expected);
    for error in &errors {
        let reason = error.header("weir-error-reason").unwrap_or_default();
        ensure!(!reason.is_empty() && error.header("traceparent") == Some("00-1"), "{error:?}");
    }
    Ok(())
}

/// No message is acknowledged before a stream stores the results; then every message is.
#[tokio::test]
async fn messages_are_acknowledged_after_their_results_are_stored() -> Result<()> {
    let nats = Nats::start_with("jetstream { store_dir: data }")?;
    nats.add_stream("text-input", &["text-input"])?;
    nats.publish(texts(0..20))?;
    let mut results = nats.client()?;
    // A subscriber receives the results, but no stream stores them.
    results.subscribe("sentiment-output")?;
    let stream = start(&nats, &["--timeout", "1", "--ack-wait", "1", "--max-deliveries", "1000000", "--strict"])?;
    // Another attempt, after the first one has failed.
    for _ in 0..40 {
        results.next_message()?;
    }
    let consumer = nats.consumer()?.context("no consumer")?;
    ensure!(consumer["ack_floor"]["stream_seq"] == 0, "acknowledged without a stored result: {consumer}");
    nats.add_stream("sentiment-output", &["sentiment-output"])?;
    wait_until_acknowledged(&nats).await?;
    ensure!(stream.terminate()?.success());
    let results: BTreeSet<u64> = ids(&nats.read("sentiment-output")?)?.into_iter().collect();
    ensure!(results == (0..20).collect(), "{results:?}");
    Ok(())
}

/// While the model computes, messages in flight are reported as in progress; those beyond the bound of records in flight stay in the stream.
#[tokio::test]
async fn messages_in_flight_are_bounded_and_in_progress() -> Result<()> {
    let nats = Nats::start()?;
    nats.publish((0..10).map(|id| format!("{{\"text\":\"!never\",\"id\":{id}}}")))?;
    let mut acknowledgements = nats.client()?;
    acknowledgements.subscribe("$JS.ACK.>")?;
    let stream = start(&nats, &["--ack-wait", "1", "--in-flight", "4"])?;
    let mut reported: BTreeSet<String> = BTreeSet::new();
    let began = Instant::now();
    while reported.len() < 4 {
        ensure!(began.elapsed() < PATIENCE, "only {reported:?} are in progress");
        let message = acknowledgements.next_message()?;
        ensure!(message.payload == b"+WPI", "{message:?}");
        // The fourth token from the end is the number in the stream.
        reported.insert(message.subject.rsplit('.').nth(3).context("no number")?.to_owned());
    }
    let consumer = nats.consumer()?.context("no consumer")?;
    ensure!(consumer["num_ack_pending"] == 4 && consumer["num_pending"] == 6, "{consumer}");
    stream.kill()
}

/// An adapter of a server: results in the order of the messages, and its state in `/stream/health`, `weir status` and the metrics.
#[tokio::test]
async fn server_has_results_in_order_and_reports_the_adapter() -> Result<()> {
    let mut nats = Nats::start()?;
    nats.publish(texts(0..200))?;
    let (dir, url) = (tempfile::tempdir()?, nats.url());
    let file = path(dir.path(), "weir.toml");
    std::fs::write(
        &file,
        format!(
            "[[adapter]]\nname = 'n'\nordering = 'strict'\nreconnect_delay_ms = 50\n[adapter.source]\nkind = 'nats'\nurl = '{url}'\n\
             [adapter.sink]\nkind = 'nats'\nurl = '{url}'\n"
        ),
    )?;
    let mut server = Server::start_stub(&["--config", &file]).await?;
    wait_until_acknowledged(&nats).await?;
    assert_eq!(ids(&nats.read("sentiment-output")?)?, (0..200).collect::<Vec<_>>());
    until("counted", || async { Ok(server.metric("weir_adapter_results_total").await? == 200.0) }).await?;
    let status = || -> Result<String> {
        let output = weir_command(&["status", "--url", &server.url("")])?.output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let text = "n (nats to nats) running, 200 records, 200 results, 0 errors";
    until("shown", || async { Ok(status()?.contains(text)) }).await?;
    nats.kill()?;
    until("reported", || async {
        let health: Value = reqwest::get(server.url("/stream/health")).await?.json().await?;
        Ok(health["status"] == "degraded" && health["adapters"][0]["state"] == "reconnecting")
    })
    .await?;
    nats.restart()?;
    nats.publish(texts(200..210))?;
    wait_until_acknowledged(&nats).await?;
    // The killed server may not have stored the last acknowledgements.
    let results: BTreeSet<u64> = ids(&nats.read("sentiment-output")?)?.into_iter().collect();
    assert_eq!(results, (0..210).collect());
    until("running", || async { Ok(status()?.contains("n (nats to nats) running")) }).await?;
    server.signal("TERM")?;
    let status = server.wait().await?;
    ensure!(status.success(), "{status}: {}", server.log());
    Ok(())
}

/// A source that delivers the results of its own adapter is refused.
#[test]
fn results_that_would_become_records_are_refused() -> Result<()> {
    let nats = Nats::start()?;
    nats.add_stream("reviews", &["reviews.>"])?;
    let url = nats.url();
    let run = |more: &[&str]| -> Result<(Option<i32>, String)> {
        let mut arguments = vec!["nats", "--url", &url, "--max-reconnect-attempts", "1", "--reconnect-delay", "0.01"];
        arguments.extend(more);
        let output = stub_stream(&arguments)?.output()?;
        Ok((output.status.code(), String::from_utf8(output.stderr)?))
    };
    let (code, text) = run(&["--stream", "reviews", "--output-subject", "reviews.out"])?;
    ensure!(
        code == Some(2) && text.contains("each result would become a record; give source.subject"),
        "{code:?} {text}"
    );
    let (code, text) = run(&["--stream", "nothing"])?;
    ensure!(code == Some(2) && text.contains("NATS has no stream `nothing`; create it"), "{code:?} {text}");
    Ok(())
}

/// The checks of a connection, as JSON: the last one and its message.
fn check(nats: &Nats, more: &[&str]) -> Result<(Option<i32>, Vec<String>, String)> {
    let url = nats.url();
    let mut arguments = vec!["test-connection", "--protocol", "nats", "--json"];
    if !more.contains(&"--url") {
        arguments.extend(["--url", &url]);
    }
    arguments.extend(more);
    let output = weir_command(&arguments)?.output()?;
    let lines = String::from_utf8(output.stdout)?;
    let lines: Vec<Value> = lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let name = |line: &Value| line["check"].as_str().unwrap_or_default().to_owned();
    let message = lines.last().and_then(|line| line["message"].as_str()).unwrap_or_default().to_owned();
    Ok((output.status.code(), lines.iter().map(name).collect(), message))
}

#[test]
fn checks_name_what_fails_and_what_to_do() -> Result<()> {
    let mut nats = Nats::start()?;
    nats.publish(texts(0..3))?;
    let (code, names, message) = check(&nats, &[])?;
    assert_eq!(names, ["resolve", "connect", "authenticate", "stream", "read", "write"]);
    assert_eq!((code, message.as_str()), (Some(0), "`sentiment-output` stores `sentiment-output`"));
    // The results of this adapter have no subject.
    let dir = tempfile::tempdir()?;
    let (file, url) = (path(dir.path(), "weir.toml"), nats.url());
    let source = format!("[adapter.source]\nkind = 'nats'\nurl = '{url}'\n");
    std::fs::write(&file, format!("[[adapter]]\nname = 'n'\n{source}[adapter.sink]\nkind = 'stdout'\n"))?;
    let output = weir_command(&["test-connection", "--protocol", "all", "--config", &file])?.output()?;
    let text = String::from_utf8(output.stdout)?;
    ensure!(output.status.success() && text.contains("n read") && !text.contains("n write"), "{text}");
    for (arguments, name, expected) in [
        (&["--stream", "nothing"][..], "stream", "NATS has no stream `nothing`; create it"),
        (&["--output-subject", "nothing"], "write", "no stream stores `nothing`; create one with this subject"),
        (&["--url", "localhost"], "resolve", "url must be nats://host:port or tls://host:port"),
        (&["--secret-file", "/nowhere"], "authenticate", "/nowhere cannot be read"),
        (
            &["--url", &nats.url().replace("nats:", "tls:")],
            "tls",
            "has no TLS, which the URL requires; enable it, or use nats",
        ),
    ] {
        let (code, names, message) = check(&nats, arguments)?;
        ensure!(code == Some(1) && names.last().is_some_and(|last| last == name), "{arguments:?}: {names:?} {message}");
        ensure!(message.contains(expected), "{arguments:?}: {message}");
    }
    nats.kill()?;
    let (code, names, message) = check(&nats, &[])?;
    ensure!(code == Some(1) && names == ["resolve", "connect"], "{names:?}");
    ensure!(message.contains("check that the server runs"), "{message}");
    Ok(())
}

/// A server that cannot be reached is named, whether it is the first or not, and the stream is checked with one that can.
#[test]
fn every_server_is_checked_by_its_address() -> Result<()> {
    let nats = Nats::start()?;
    let address = nats.url().replace("nats://", "");
    // Nothing listens on port 1.
    for urls in [format!("{},nats://127.0.0.1:1", nats.url()), format!("nats://127.0.0.1:1, {}", nats.url())] {
        let output = weir_command(&["test-connection", "--protocol", "nats", "--url", &urls])?.output()?;
        let text = String::from_utf8(output.stdout)?;
        ensure!(output.status.code() == Some(1), "{text}");
        let failures: Vec<&str> = text.lines().filter(|line| line.starts_with("failed")).collect();
        ensure!(failures.len() == 1 && failures[0].contains("connect      127.0.0.1:1: Connection refused"), "{text}");
        ensure!(text.contains(&format!("ok     nats authenticate {address}: accepted")), "{text}");
        let last = format!("ok     nats write        {address}: `sentiment-output` stores `sentiment-output`");
        ensure!(text.lines().last().is_some_and(|line| line.starts_with(&last)), "{text}");
    }
    Ok(())
}

/// Each form of credentials, wrong ones, permissions, and TLS with a certificate of another authority than Mozilla's.
#[test]
fn credentials_permissions_and_tls_are_checked() -> Result<()> {
    let data = root().join("tests/data/nats");
    let file = |name: &str| data.join(name).display().to_string();
    let dir = tempfile::tempdir()?;
    let (secret, wrong) = (path(dir.path(), "secret"), path(dir.path(), "wrong"));
    std::fs::write(&secret, "right\n")?;
    std::fs::write(&wrong, "wrong\n")?;
    let users = "jetstream { store_dir: data }
authorization { users: [
  { user: admin, password: right }
  { user: reader, password: right, permissions: { publish: ['$JS.API.STREAM.INFO.>', '_INBOX.>'] } }
  { nkey: UDLL3HPONRSVS44ZKO7DEBNKPTU42CYQ2CTFD3GN5BLTBGNNR6MUQZNK }
] }";
    let nats = Nats::start_with(users)?;
    let last = |nats: &Nats, more: &[&str]| -> Result<(String, String)> {
        let (_, mut names, message) = check(nats, more)?;
        Ok((names.pop().unwrap_or_default(), message))
    };
    // The authentication succeeds, and there is no stream yet.
    let no_stream = ("stream".to_owned(), "NATS has no stream `text-input`; create it".to_owned());
    assert_eq!(last(&nats, &["--username", "admin", "--secret-file", &secret])?, no_stream);
    assert_eq!(last(&nats, &["--nkey-file", &file("user.nk")])?, no_stream);
    let (name, message) = last(&nats, &["--username", "admin", "--secret-file", &wrong])?;
    ensure!(name == "authenticate" && message.contains("Authorization Violation; check the user"), "{name}: {message}");
    let (name, message) = last(&nats, &["--credentials-file", &file("user.creds")])?;
    ensure!(name == "authenticate" && message.contains("NATS refuses the credentials"), "{name}: {message}");

    let mut admin = nats.client_of("\"user\":\"admin\",\"pass\":\"right\"")?;
    admin.api("STREAM.CREATE.text-input", &json!({ "name": "text-input", "subjects": ["text-input"] }))?;
    let (name, message) = last(&nats, &["--username", "reader", "--secret-file", &secret])?;
    ensure!(name == "read" && message.contains("Permissions Violation"), "{name}: {message}");
    ensure!(message.contains("check the permissions of the user"), "{message}");

    let tls = "tls { cert_file: 'DATA/server.pem', key_file: 'DATA/server.key' }\nauthorization { token: right }";
    let nats = Nats::start_with(tls)?;
    let url = nats.url().replace("nats:", "tls:");
    let (name, message) = last(&nats, &["--secret-file", &secret, "--url", &url, "--ca-file", &file("server.pem")])?;
    ensure!(name == "stream" && message.contains("NATS has no JetStream for this user"), "{name}: {message}");
    let (name, message) = last(&nats, &["--secret-file", &secret])?;
    ensure!(name == "tls" && message.contains("check ca_file"), "{name}: {message}");
    let (name, message) = last(&nats, &["--secret-file", &wrong, "--ca-file", &file("server.pem")])?;
    ensure!(name == "authenticate" && message.contains("NATS refuses the credentials"), "{name}: {message}");

    let nats = Nats::start_with(&std::fs::read_to_string(data.join("operator.conf"))?)?;
    let (name, message) = last(&nats, &["--credentials-file", &file("user.creds")])?;
    ensure!(name == "stream" && message.contains("NATS has no JetStream for this user"), "{name}: {message}");
    Ok(())
}
