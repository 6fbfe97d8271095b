//! Kafka with TLS and SCRAM: a `weir` with the feature `kafka-tls`, which `cargo xtask kafka-tls` builds, and a broker behind a proxy.

use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use weir_tests::kafka::Kafka;
use weir_tests::scram::Scram;
use weir_tests::{root, tool};

use super::kafka::{ids, texts};
use super::{StreamProcess, path, stub_stream_of};

/// Certificates of tests/data, without an authority: one for 127.0.0.1, where the brokers are, and one for another host.
const THIS_HOST: &str = "nats/server";
const OTHER_HOST: &str = "kafka/other-host";
const CERTIFICATE_REFUSED: &str =
    "the certificate is not of an authority in ssl.ca.location, or is for another host, or has expired";

/// How a client connects.
struct Access {
    arguments: Vec<String>,
    /// The file with the password of SASL.
    password_file: Option<String>,
}

impl Access {
    /// TLS alone, with one certificate of an authority.
    fn new(kafka: &Kafka, authority: &str) -> Self {
        let authority = root().join("tests/data").join(format!("{authority}.pem"));
        let access = Self { arguments: Vec::new(), password_file: None };
        let access = access.with(&["--brokers", kafka.brokers(), "--property", "security.protocol=ssl"]);
        access.with(&["--property", &format!("ssl.ca.location={}", authority.display())])
    }

    fn with(mut self, arguments: &[&str]) -> Self {
        self.arguments.extend(arguments.iter().map(|argument| (*argument).to_owned()));
        self
    }

    /// The user `ada` with a password, by SCRAM.
    fn with_scram(self, scram: Scram, folder: &Path, password: &str) -> Result<Self> {
        let file = path(folder, password);
        std::fs::write(&file, format!("{password}\n"))?;
        let mechanism = format!("sasl.mechanism={}", scram.name());
        let protocol = ["--property", "security.protocol=sasl_ssl", "--property", &mechanism];
        let access = self.with(&protocol).with(&["--username", "ada"]);
        Ok(Self { password_file: Some(file), ..access })
    }

    /// `weir stream kafka`, with the stand-in for the infer component.
    fn stream(&self) -> Result<Command> {
        let mut command =
            stub_stream_of(&tool("WEIR_TEST_KAFKA_TLS")?, &["kafka", "--quiet", "--session-timeout", "6"])?;
        command.args(["--property", "heartbeat.interval.ms=1000"]).args(&self.arguments);
        if let Some(file) = &self.password_file {
            command.args(["--password-file", file]);
        }
        Ok(command)
    }

    /// The last line of a `weir stream kafka` that is refused.
    fn refusal(&self) -> Result<String> {
        // The first attempt is the last one.
        let output = self.stream()?.args(["--connect-timeout", "0.1"]).output()?;
        let text = String::from_utf8(output.stderr)?;
        ensure!(output.status.code() == Some(2), "{}: {text}", output.status);
        Ok(text.lines().last().context("no output")?.to_owned())
    }

    /// `weir test-connection`: its exit status, and the name and the message of the last check.
    fn last_check(&self) -> Result<(Option<i32>, String, String)> {
        let mut command = Command::new(tool("WEIR_TEST_KAFKA_TLS")?);
        command.args(["test-connection", "--protocol", "kafka", "--json", "--timeout", "10"]).args(&self.arguments);
        if let Some(file) = &self.password_file {
            command.args(["--secret-file", file]);
        }
        let output = command.output()?;
        let lines = String::from_utf8(output.stdout)?;
        let last: Value = serde_json::from_str(lines.lines().last().context("no check")?)?;
        let text = |key: &str| last[key].as_str().unwrap_or_default().to_owned();
        Ok((output.status.code(), text("check"), text("message")))
    }

    /// Checks that the connection passes each check, and that records pass from topic to topic.
    fn passes_records(&self, kafka: &Kafka) -> Result<()> {
        let (code, check, message) = self.last_check()?;
        ensure!((code, check.as_str()) == (Some(0), "write"), "{check}: {message}");
        kafka.produce(texts(0..20))?;
        let stream = StreamProcess::start(self.stream()?)?;
        kafka.read("sentiment-output", |results| ids(results).len() == 20)?;
        ensure!(stream.terminate()?.success());
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn records_pass_with_scram() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for scram in [Scram::Sha256, Scram::Sha512] {
        let kafka = Kafka::start_with_tls(THIS_HOST, Some(scram), "ada", "secret").await?;
        let access = Access::new(&kafka, THIS_HOST).with_scram(scram, dir.path(), "secret")?;
        access.passes_records(&kafka).with_context(|| scram.name())?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn records_pass_with_tls_alone() -> Result<()> {
    let kafka = Kafka::start_with_tls(THIS_HOST, None, "ada", "secret").await?;
    Access::new(&kafka, THIS_HOST).passes_records(&kafka)
}

#[tokio::test(flavor = "multi_thread")]
async fn wrong_password_is_refused() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let kafka = Kafka::start_with_tls(THIS_HOST, Some(Scram::Sha512), "ada", "secret").await?;
    let access = Access::new(&kafka, THIS_HOST).with_scram(Scram::Sha512, dir.path(), "guess")?;
    let (code, check, message) = access.last_check()?;
    ensure!((code, check.as_str()) == (Some(1), "authenticate"), "{check}: {message}");
    ensure!(message.contains("Kafka refuses the credentials") && message.contains("check the user"), "{message}");
    let refusal = access.refusal()?;
    ensure!(refusal.contains("Kafka refuses the credentials") && !refusal.contains("guess"), "{refusal}");
    Ok(())
}

/// Checks that the certificate is refused.
fn is_refused(access: &Access, kafka: &Kafka) -> Result<()> {
    let failure = format!("TLS with {}: {CERTIFICATE_REFUSED}", kafka.brokers());
    let (code, check, message) = access.last_check()?;
    ensure!((code, check.as_str()) == (Some(1), "tls"), "{check}: {message}");
    let remedy = "check the property ssl.ca.location and the addresses of the brokers";
    ensure!(message == format!("{failure}; {remedy}"), "{message}");
    let refusal = access.refusal()?;
    ensure!(refusal.ends_with(&failure), "{refusal}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_of_an_unknown_authority_is_refused() -> Result<()> {
    let kafka = Kafka::start_with_tls(THIS_HOST, None, "ada", "secret").await?;
    is_refused(&Access::new(&kafka, OTHER_HOST), &kafka)
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_for_another_host_is_refused() -> Result<()> {
    let kafka = Kafka::start_with_tls(OTHER_HOST, None, "ada", "secret").await?;
    is_refused(&Access::new(&kafka, OTHER_HOST), &kafka)?;
    // Without a check of the host, the certificate is accepted.
    let access = Access::new(&kafka, OTHER_HOST).with(&["--property", "ssl.endpoint.identification.algorithm=none"]);
    let (code, check, message) = access.last_check()?;
    ensure!((code, check.as_str()) == (Some(0), "write"), "{check}: {message}");
    Ok(())
}
