//! A Redis server that a test controls.

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

/// Arguments with which every write is on the disk before it is acknowledged.
const DURABLE: &[&str] = &["--appendonly", "yes", "--appendfsync", "always"];
/// Arguments with which only [`Redis::snapshot`] writes to the disk.
const SNAPSHOTS: &[&str] = &["--appendonly", "no"];

impl Redis {
    /// Starts a server that keeps every acknowledged write when it is killed.
    pub fn start() -> Result<Self> {
        Self::start_with(DURABLE)
    }

    /// Starts a server that loses the writes after the last snapshot when it is killed.
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

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Writes all data to the disk.
    pub fn snapshot(&self) -> Result<()> {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        connection.write_all(b"SAVE\r\n")?;
        let mut reply = [0; 5];
        connection.read_exact(&mut reply)?;
        ensure!(&reply == b"+OK\r\n", "{reply:?}");
        Ok(())
    }

    /// Sends a command; its reply as it is on the wire.
    pub fn command(&self, words: &[&str]) -> Result<String> {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", self.port))?;
        let mut command = format!("*{}\r\n", words.len());
        words.iter().for_each(|word| command += &format!("${}\r\n{word}\r\n", word.len()));
        // The server closes the connection after its reply to QUIT.
        command += "*1\r\n$4\r\nQUIT\r\n";
        connection.write_all(command.as_bytes())?;
        let mut reply = String::new();
        connection.read_to_string(&mut reply)?;
        let reply = reply.strip_suffix("+OK\r\n").unwrap_or(&reply).to_owned();
        ensure!(!reply.starts_with('-'), "{reply}");
        Ok(reply)
    }

    /// Starts the server again, on the same port and folder.
    pub fn restart(&mut self) -> Result<()> {
        self.child = Self::spawn(&self.program, self.port, self.dir.path(), self.persistence)?;
        Ok(())
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// The setting of `weir serve` with the URL of the server.
    pub fn url_setting(&self) -> String {
        format!("events.redis_url={}", self.url())
    }

    /// Starts `weir serve` with its channels in this Redis server and with the stand-in for the infer component.
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
