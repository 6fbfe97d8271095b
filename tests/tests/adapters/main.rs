//! Adapters from end to end: the built `weir`, real components, files and a Redis server.

mod feeds;
mod files;
mod kafka;
mod nats;
mod redis;
mod serve;
mod soak;
mod transcripts;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result};
use weir_tests::{component, models, weir};

/// `weir` with arguments.
fn weir_command(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(weir()?);
    command.args(arguments);
    Ok(command)
}

/// `weir stream`, with the models that ship.
fn stream(arguments: &[&str]) -> Result<Command> {
    let mut command = Command::new(weir()?);
    command.arg("stream").args(arguments).arg("--models-dir").arg(models());
    Ok(command)
}

/// `weir stream`, with the stand-in for the infer component, which derives outputs from keywords.
fn stub_stream(arguments: &[&str]) -> Result<Command> {
    let mut command = stream(arguments)?;
    command.args(["--component", &format!("infer={}", component("infer_stub.wasm")?.display())]);
    Ok(command)
}

/// Runs a command with bytes on its standard input.
fn run(mut command: Command, input: &[u8]) -> Result<Output> {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("a pipe")?;
    let input = input.to_vec();
    // The program may exit before it has read everything.
    let feeding = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let output = child.wait_with_output()?;
    let _ = feeding.join();
    Ok(output)
}

/// A path as an argument.
fn path(dir: &Path, name: &str) -> String {
    dir.join(name).display().to_string()
}
