//! A Redis server of a test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::Result;

use crate::{Server, tool};

/// A Redis server that the test starts and stops.
pub struct Redis {
    child: Child,
    port: u16,
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts it, with every write kept.
    pub fn start() -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let (program, dir) = (tool("WEIR_TEST_REDIS")?, tempfile::tempdir()?);
        let child = Self::spawn(&program, port, dir.path())?;
        Ok(Self { child, port, program, dir })
    }

    fn spawn(program: &Path, port: u16, dir: &Path) -> Result<Child> {
        let mut command = Command::new(program);
        command.args(["--port", &port.to_string(), "--appendonly", "yes", "--appendfsync", "always", "--save", ""]);
        command.arg("--dir").arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(command.spawn()?)
    }

    /// `kill -9`.
    pub fn stop(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it where it was.
    pub fn again(&mut self) -> Result<()> {
        self.child = Self::spawn(&self.program, self.port, self.dir.path())?;
        Ok(())
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    /// Starts `weir serve` with the stand-in for the infer component, whose channels are there.
    pub fn weir(&self, more: &[&str]) -> Result<Server> {
        let url = format!("events.redis_url={}", self.url());
        let mut arguments = vec!["--set", "events.store=redis", "--set", "events.durable=true", "--set", &url];
        arguments.extend(more);
        Server::start_stub(&arguments)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        let _ = self.stop();
    }
}
