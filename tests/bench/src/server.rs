//! Measured servers: started on a core of their own, awaited, and ended with all of their descendants.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::corpus::Text;
use crate::http::{Form, Target};
use crate::process;

/// How long a start may take: torch is slow to import on a busy machine.
const START_MAX: Duration = Duration::from_secs(120);
/// How long a server may take to end before it is killed.
const STOP_MAX: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(50);

/// How to start a server, and its request format.
#[derive(Debug, Clone)]
pub(crate) struct Spec {
    pub(crate) name: String,
    pub(crate) title: String,
    /// `{port}`, `{port2}` and `{port3}` are replaced by free ports.
    pub(crate) command: Vec<String>,
    pub(crate) environment: Vec<(String, String)>,
    pub(crate) path: String,
    pub(crate) form: Form,
    pub(crate) headers: Vec<String>,
    /// Whether it takes NDJSON streams.
    pub(crate) streams: bool,
    /// Of Weir: the engine whose ceiling it is compared with, or the precision of the built-in one.
    pub(crate) engine: Option<&'static str>,
    /// The largest difference of a score from the first server's, and from its own outside of a batch.
    pub(crate) difference_max: f64,
    pub(crate) together_max: f64,
}

impl Spec {
    pub(crate) fn is_weir(&self) -> bool {
        self.engine.is_some()
    }
}

/// A running server, which is ended on drop.
pub(crate) struct RunningServer {
    child: Child,
    pub(crate) address: SocketAddr,
    pub(crate) spec: Spec,
    pub(crate) log: PathBuf,
    pub(crate) start_s: f64,
}

/// A command on one core, with the highest limit of open files.
pub(crate) fn pinned(core: usize, command: &[String]) -> Command {
    let mut pinned = Command::new("sh");
    let script = r#"ulimit -n "$(ulimit -H -n)" 2>/dev/null; core=$1; shift; exec taskset -c "$core" "$@""#;
    pinned.args(["-c", script, "sh", &core.to_string()]).args(command).stdin(Stdio::null());
    // Errors are one line, without backtraces.
    pinned.env("RUST_BACKTRACE", "0");
    pinned
}

impl RunningServer {
    /// Starts it and waits until it answers `text` with 200.
    pub(crate) fn start(spec: &Spec, core: usize, logs: &Path, root: &Path, text: &Text) -> Result<Self> {
        let ports = free_ports()?;
        let fill_ports = |word: &String| {
            let names = ["{port}", "{port2}", "{port3}"];
            names.iter().zip(ports).fold(word.clone(), |word, (name, port)| word.replace(name, &port.to_string()))
        };
        let command: Vec<String> = spec.command.iter().map(fill_ports).collect();
        let log = logs.join(format!("{}.log", spec.name));
        let output = File::options().create(true).append(true).open(&log)?;
        let began = Instant::now();
        let child = pinned(core, &command)
            .current_dir(root)
            .envs(spec.environment.iter().cloned())
            .stdout(output.try_clone()?)
            .stderr(output)
            // A process group of its own: its children are found even when it ends first.
            .process_group(0)
            .spawn()
            .with_context(|| format!("cannot start {}", spec.name))?;
        let address = SocketAddr::from(([127, 0, 0, 1], ports[0]));
        let mut server = Self { child, address, spec: spec.clone(), log, start_s: 0.0 };
        while began.elapsed() < START_MAX {
            if let Some(status) = server.child.try_wait()? {
                bail!("it ended while it started ({status}): {}", server.last_log_lines());
            }
            let wait = Duration::from_secs(5);
            match server.probe(text, wait) {
                Ok(200) => {
                    server.start_s = began.elapsed().as_secs_f64();
                    return Ok(server);
                }
                // It listens, but the path is unknown or the request is refused: waiting does not help.
                Ok(status @ (400 | 404 | 405 | 415 | 422 | 501)) if spec.is_weir() => {
                    bail!("`POST {}` answers {status}", spec.path)
                }
                _ => std::thread::sleep(POLL),
            }
        }
        bail!("it did not answer within {} s: {}", START_MAX.as_secs(), server.last_log_lines())
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}{}", self.address, self.spec.path)
    }

    pub(crate) fn is_alive(&self) -> bool {
        process::is_alive(self.child.id())
    }

    /// Sends one request; returns the status.
    pub(crate) fn probe(&self, text: &Text, wait: Duration) -> Result<u16> {
        let target = Target {
            address: self.address,
            path: self.spec.path.clone(),
            form: self.spec.form,
            headers: self.spec.headers.clone(),
        };
        let mut stream = TcpStream::connect_timeout(&self.address, wait)?;
        stream.set_read_timeout(Some(wait))?;
        stream.write_all(&target.request(text))?;
        let mut start = [0; 12];
        stream.read_exact(&mut start)?;
        let status = std::str::from_utf8(&start[9..]).ok().and_then(|code| code.parse().ok());
        status.with_context(|| format!("not an HTTP response: {start:?}"))
    }

    /// Waits until the earlier load is finished: a probe is answered again.
    pub(crate) fn settle(&self, text: &Text, wait: Duration) -> Result<()> {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero() && self.is_alive(), "{} does not answer after its load", self.spec.name);
            if matches!(self.probe(text, left.max(Duration::from_millis(1))), Ok(200)) {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Lines of its log that show a fault.
    pub(crate) fn panics(&self) -> Vec<String> {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        log.lines()
            .filter(|line| line.contains("panicked at") || line.contains("wasm trap"))
            .map(str::to_owned)
            .collect()
    }

    fn last_log_lines(&self) -> String {
        let log = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().filter(|line| !line.trim().is_empty()).collect();
        let words = lines[lines.len().saturating_sub(4)..].join(" | ");
        words.chars().take(600).collect()
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        // Its descendants, each with its start time, so that a reused id is not mistaken.
        let pids: Vec<(u32, Option<u64>)> =
            process::tree(self.child.id()).into_iter().map(|pid| (pid, process::start_ticks(pid))).collect();
        signal("TERM", &[self.child.id()]);
        let stop = Instant::now();
        while stop.elapsed() < STOP_MAX && matches!(self.child.try_wait(), Ok(None)) {
            std::thread::sleep(POLL);
        }
        if matches!(self.child.try_wait(), Ok(None)) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        let left = |(pid, ticks): &(u32, Option<u64>)| ticks.is_some() && process::start_ticks(*pid) == *ticks;
        let left: Vec<u32> = pids.iter().filter(|one| left(one)).map(|(pid, _)| *pid).collect();
        signal("KILL", &left);
    }
}

fn signal(name: &str, pids: &[u32]) {
    if !pids.is_empty() {
        // By the shell, since a machine may have no program `kill`.
        let mut kill = Command::new("sh");
        let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
        kill.args(["-c", &format!("kill -s {name} {}", pids.join(" "))]).stderr(Stdio::null());
        let _ = kill.status();
    }
}

/// Free ports.
fn free_ports() -> Result<[u16; 3]> {
    let listeners =
        [TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?];
    let mut ports = [0; 3];
    for (port, listener) in ports.iter_mut().zip(&listeners) {
        *port = listener.local_addr()?.port();
    }
    Ok(ports)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_ends_with_its_child_processes() {
        let logs = std::env::temp_dir().join(format!("weir-bench-{}", std::process::id()));
        std::fs::create_dir_all(&logs).unwrap();
        let spec = Spec {
            name: "sleeper".to_owned(),
            title: String::new(),
            command: ["sh", "-c", "echo port {port}; sleep 60 & sleep 60"].map(str::to_owned).to_vec(),
            environment: Vec::new(),
            path: "/".to_owned(),
            form: Form::Text,
            headers: Vec::new(),
            streams: false,
            engine: None,
            difference_max: 0.0,
            together_max: 0.0,
        };
        let child = pinned(0, &spec.command).stdout(Stdio::null()).spawn().unwrap();
        let pid = child.id();
        let address = SocketAddr::from(([127, 0, 0, 1], 1));
        let running = RunningServer { child, address, spec: spec.clone(), log: logs.join("x"), start_s: 0.0 };
        let until = Instant::now() + Duration::from_secs(20);
        while process::tree(pid).len() < 3 && Instant::now() < until {
            std::thread::yield_now();
        }
        let tree = process::tree(pid);
        assert_eq!(tree.len(), 3);
        drop(running);
        while tree.iter().any(|pid| process::is_alive(*pid)) && Instant::now() < until {
            std::thread::yield_now();
        }
        assert!(tree.iter().all(|pid| !process::is_alive(*pid)));
        // A server that ends at once is an error with its output.
        let broken = Spec { command: ["sh", "-c", "echo no such model; exit 3"].map(str::to_owned).to_vec(), ..spec };
        let text = Text { text: "a".to_owned(), tokens: 3 };
        let error = RunningServer::start(&broken, 0, &logs, Path::new("."), &text).err().unwrap().to_string();
        assert!(error.contains("no such model") && error.contains("3"), "{error}");
        std::fs::remove_dir_all(&logs).unwrap();
    }
}
