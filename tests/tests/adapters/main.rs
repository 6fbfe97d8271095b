//! Adapters from end to end: the built `weir`, real components, files, and servers of Redis, Kafka and NATS.

mod feeds;
mod files;
mod kafka;
mod kafka_faults;
mod kafka_tls;
mod nats;
mod redis;
mod serve;
mod soak;
mod transcripts;

use std::io::Write as _;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use anyhow::{Context as _, Result};
use weir_tests::{component, exit_status, models, weir};

/// `weir` with arguments.
fn weir_command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(weir()?);
    command.args(arguments);
    Ok(command)
}

/// `weir stream`, with the models that ship.
fn stream(arguments: &[&str]) -> Result<Command> {
    Ok(stream_of(&weir()?, arguments))
}

/// [`stream`] of a given `weir`.
fn stream_of(program: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.arg("stream").args(arguments).arg("--models-dir").arg(models());
    command
}

/// `weir stream`, with the stand-in for the infer component, which derives outputs from keywords.
fn stub_stream(arguments: &[&str]) -> Result<Command> {
    stub_stream_of(&weir()?, arguments)
}

/// [`stub_stream`] of a given `weir`.
fn stub_stream_of(program: &Path, arguments: &[&str]) -> Result<Command> {
    let mut command = stream_of(program, arguments);
    command.args(["--component", &format!("infer={}", component("infer_stub.wasm")?.display())]);
    Ok(command)
}

/// A process of `weir stream`, without its output; killed when dropped.
struct StreamProcess(Child);

impl StreamProcess {
    /// Starts a command.
    fn start(mut command: Command) -> Result<Self> {
        Ok(Self(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?))
    }

    /// Ends it with SIGKILL.
    fn kill(mut self) -> Result<()> {
        self.0.kill()?;
        self.0.wait()?;
        Ok(())
    }

    /// Ends it with SIGTERM, which drains it; returns its exit status.
    fn terminate(self) -> Result<ExitStatus> {
        weir_tests::send_signal("TERM", &self.0.id().to_string())?;
        self.wait()
    }

    /// Waits until it ends; returns its exit status.
    fn wait(mut self) -> Result<ExitStatus> {
        exit_status(&mut self.0)
    }
}

impl Drop for StreamProcess {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a command with bytes on its standard input.
fn run(mut command: Command, input: &[u8]) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let input = input.to_vec();
    // The program may exit before it has read everything.
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output()?;
    let _ = writer.join();
    Ok(output)
}

/// A path as an argument.
fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}
