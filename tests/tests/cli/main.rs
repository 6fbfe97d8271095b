//! The command line, the commands of the documentation, and the examples.

mod commands;
mod documents;
mod examples;
mod generate;
mod json;
mod pipelines;
mod run;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};

use anyhow::{Context, Result, bail};
use weir_tests::{PATIENCE, exit_status, weir};

/// A running `weir`, whose outputs are read by the line; killed when dropped.
struct Running {
    child: Child,
    output: Receiver<String>,
    errors: Receiver<String>,
}

impl Running {
    /// Starts `weir` with bytes on its standard input.
    fn start(arguments: &[&str], input: &str) -> Result<Self> {
        let mut command = Command::new(weir()?);
        command.args(arguments);
        Self::spawn(command, input)
    }

    fn spawn(mut command: Command, input: &str) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let output = lines(child.stdout.take().context("a pipe")?);
        let errors = lines(child.stderr.take().context("a pipe")?);
        let (mut stdin, input) = (child.stdin.take().context("a pipe")?, input.to_owned());
        // An error means that the program reads no more.
        std::thread::spawn(move || stdin.write_all(input.as_bytes()));
        Ok(Self { child, output, errors })
    }

    /// The next line of the standard output.
    fn line(&self) -> Result<String> {
        self.output.recv_timeout(PATIENCE).context("no line in time")
    }

    /// Sends SIGTERM.
    fn terminate(&self) -> Result<()> {
        weir_tests::send_signal("TERM", &self.child.id().to_string())
    }

    /// Waits for the end: the exit status, and the remaining lines of the standard output and of the standard error.
    fn end(mut self) -> Result<(ExitStatus, Vec<String>, Vec<String>)> {
        let (output, errors) = (remaining(&self.output)?, remaining(&self.errors)?);
        Ok((exit_status(&mut self.child)?, output, errors))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The lines of an output, which a thread reads.
fn lines(output: impl Read + Send + 'static) -> Receiver<String> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let output = BufReader::new(output);
    std::thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
    receiver
}

/// The lines up to the end of an output.
fn remaining(lines: &Receiver<String>) -> Result<Vec<String>> {
    let mut all = Vec::new();
    loop {
        match lines.recv_timeout(PATIENCE) {
            Ok(line) => all.push(line),
            Err(RecvTimeoutError::Disconnected) => return Ok(all),
            Err(RecvTimeoutError::Timeout) => bail!("no line and no end in time, after {all:?}"),
        }
    }
}
