//! `cargo xtask serve`, and a server process for the demo and the measurements.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use crate::args::Args;
use crate::house::House;
use crate::{build, http, setup, sh};

pub(crate) const USAGE: &str = "All arguments after `serve` are passed to `weir serve`.";

/// How long a start may take: every model is loaded and run once.
pub(crate) const START_MAX: Duration = Duration::from_secs(60);
/// How long a graceful end may take.
const STOP_MAX: Duration = Duration::from_secs(30);
/// The interval between checks of `/readyz` or of the process.
const POLL: Duration = Duration::from_millis(5);

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    setup::ensure(house)?;
    build::components(house, &[])?;
    build::weir(house)?;
    let mut command = sh::program(house, house.weir());
    command.stdin(Stdio::inherit()).arg("serve").args(args.take_rest());
    // Replaces this process, so that signals reach weir and its exit status is returned.
    Err(command.exec()).with_context(|| format!("cannot start {}", house.weir().display()))
}

/// A running `weir serve`, stopped when dropped.
pub(crate) struct Server {
    child: Child,
    pub(crate) address: SocketAddr,
    /// From exec to the line with the address.
    pub(crate) listening_after: Duration,
    /// From exec until `/readyz` is 200.
    pub(crate) ready_after: Duration,
}

impl Server {
    /// Starts `weir serve` on a free port and waits until it is ready.
    pub(crate) fn start(house: &House, args: &[&str]) -> Result<Self> {
        let mut command = sh::program(house, house.weir());
        command.arg("serve").args(args);
        Self::spawn(&mut command, START_MAX)
    }

    /// As [`Server::start`], with the command of a `weir serve` and the time that its start may take.
    pub(crate) fn spawn(command: &mut Command, start_max: Duration) -> Result<Self> {
        let started = Instant::now();
        let mut child = command
            .args(["--listen", "127.0.0.1:0"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let log = child.stderr.take().map(|stderr| thread::spawn(move || last_lines(stderr)));
        let address = match listening(&mut child, started, start_max) {
            Ok(address) => address,
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = log.and_then(|thread| thread.join().ok()).unwrap_or_default();
                bail!("{}\n{error:#}", log.trim());
            }
        };
        let listening_after = started.elapsed();
        let mut server = Self { child, address, listening_after, ready_after: listening_after };
        server.wait_ready(started, start_max)?;
        server.ready_after = started.elapsed();
        Ok(server)
    }

    fn wait_ready(&mut self, started: Instant, start_max: Duration) -> Result<()> {
        while started.elapsed() < start_max {
            if http::request(self.address, "GET", "/readyz", None).is_ok_and(|response| response.status == 200) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("weir ended while it was starting: {status}");
            }
            thread::sleep(POLL);
        }
        bail!("weir was not ready after {} s", start_max.as_secs())
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Waits for its end. Ctrl-C on a terminal is sent to this process and to the server.
    pub(crate) fn wait(mut self) -> Result<()> {
        match self.child.wait()? {
            status if status.success() => Ok(()),
            status => bail!("weir ended badly: {status}"),
        }
    }

    /// Stops it with SIGTERM and waits for its end.
    pub(crate) fn stop(mut self) -> Result<()> {
        let pid = self.child.id();
        // By the shell, since a machine may have no program `kill`.
        sh::stdout_of(Command::new("sh").args(["-c", &format!("kill -s TERM {pid}")]))?;
        let stop = Instant::now();
        while stop.elapsed() < STOP_MAX {
            match self.child.try_wait()? {
                Some(status) if status.success() => return Ok(()),
                Some(status) => bail!("weir ended badly after SIGTERM: {status}"),
                None => thread::sleep(POLL),
            }
        }
        bail!("weir did not end within {} s of SIGTERM", STOP_MAX.as_secs())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After an error the process still runs.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Waits for `listening on http://ADDR`, and keeps reading, so that the server never blocks on its output.
fn listening(child: &mut Child, started: Instant, start_max: Duration) -> Result<SocketAddr> {
    let stdout = child.stdout.take().ok_or_else(|| anyhow!("weir has no standard output"))?;
    let (sender, lines) = channel();
    thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(Result::ok) {
            let _ = sender.send(line);
        }
    });
    loop {
        match lines.recv_timeout(start_max.saturating_sub(started.elapsed())) {
            Ok(line) => {
                if let Some(address) = line.trim().strip_prefix("listening on http://") {
                    return address.parse().with_context(|| format!("weir listens on `{address}`"));
                }
            }
            Err(RecvTimeoutError::Timeout) => bail!("weir did not listen after {} s", start_max.as_secs()),
            Err(RecvTimeoutError::Disconnected) => bail!("weir ended before it listened"),
        }
    }
}

/// The last lines of a program's output, for an error message.
fn last_lines(from: impl Read) -> String {
    const LINES_MAX: usize = 30;
    let mut lines = std::collections::VecDeque::new();
    for line in BufReader::new(from).lines().map_while(Result::ok) {
        if lines.len() == LINES_MAX {
            lines.pop_front();
        }
        lines.push_back(line);
    }
    lines.into_iter().collect::<Vec<_>>().join("\n")
}
