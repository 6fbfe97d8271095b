//! A Redis server of a test.

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, ensure};

use crate::{Server, tool};

/// A Redis server that the test starts and stops.
pub struct Redis {
    child: Child,
    port: u16,
    program: PathBuf,
    dir: tempfile::TempDir,
    persistence: &'static [&'static str],
}

/// Every write is on the disk before it is answered.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];
/// Only [`Redis::snapshot`] writes to the disk.
const SNAPSHOTS: &[&str] = &["--appendonly", "no"];

impl Redis {
    /// Starts it, with every write kept.
    pub fn start() -> Result<Self> {
        Self::start_with(DURABLE)
    }

    /// Starts one that loses what was written after the last snapshot when it is killed.
    pub fn start_with_snapshots() -> Result<Self> {
        Self::start_with(SNAPSHOTS)
    }

    fn start_with(persistence: &'static [&'static str]) -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (program, dir) = (tool("WEIR_TEST_REDIS")?, tempfile::tempdir()?);
        let child = Self::spawn(&program, port, dir.path(), persistence)?;
        Ok(Self { child, port, program, dir, persistence })
    }

    fn spawn(program: &Path, port: u16, dir: &Path, persistence: &[&str]) -> Result<Child> {
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--save", ""]).args(persistence);
        command.arg("--dir").arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// `kill -9`.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Writes all that it has to the disk.
    pub fn snapshot(&self) -> Result<()> {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        connection.write_all(b"SAVE\r\n")?;
        let mut answer = [0; 5];
        connection.read_exact(&mut answer)?;
        ensure!(&answer == b"+OK\r\n", "{answer:?}");
        Ok(())
    }

    /// Sends a command, and returns the answer as it is on the wire.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        let mut command = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| command += &format!("${}\r\n{word}\r\n", word.len()));
        // The server closes the connection after its answer.
        command += "*1\r\n$4\r\nQUIT\r\n";
        connection.write_all(command.as_bytes())?;
        let mut answer = String::new();
        connection.read_to_string(&mut answer)?;
        let answer = answer.strip_suffix("+OK\r\n").unwrap_or(&answer).to_owned();
        ensure!(!answer.starts_with('-'), "{answer}");
        Ok(answer)
    }

    /// Starts it where it was.
    pub fn restart(&mut self) -> Result<()> {
        self.child = Self::spawn(&self.program, self.port, self.dir.path(), self.persistence)?;
        Ok(())
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The setting of `weir serve` that says where it is.
    pub fn url_setting(&self) -> String {
        format!("events.redis_url={}", self.url())
    }

    /// Starts `weir serve` with the stand-in for the infer component, whose channels are there.
    pub async fn start_server(&self, more: &[&str]) -> Result<Server> {
        let url = self.url_setting();
        let mut arguments = vec!["--set", "events.store=redis", "--set", "events.durable=true", "--set", &url];
        arguments.extend(more);
        Server::start_stub(&arguments).await
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
