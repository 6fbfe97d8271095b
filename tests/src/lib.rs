//! Helpers of the end-to-end tests: the built `weir`, started on a free port and stopped at the end of the test, and the clients that
//! send requests to it.
//!
//! Every wait is for a condition and has a deadline.

pub mod auth;
pub mod browser;
pub mod client;
pub mod conformance;
pub mod cutting_proxy;
pub mod documents;
mod duplex;
pub mod follow;
pub mod http;
pub mod kafka;
pub mod kafka_faults;
mod kafka_log;
mod kafka_proxy;
pub mod nats;
pub mod pipelines;
pub mod redis;
pub mod scram;
pub mod texts;
pub mod tokens;
pub mod websocket;

pub use duplex::Duplex;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// Deadline of every wait. It is long because the machines that run these tests are small and busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Flags of `wasmtime serve` with which one instance serves all requests, until it is idle for a second. On a busy machine the host may make a
/// second one.
pub const ONE_INSTANCE: [&str; 2] = ["--max-instance-reuse-count=100000", "--max-instance-concurrent-reuse-count=1000"];
/// A flag with which an idle instance does not end. A second instance remains too, so tests that try until all is in one do without it.
pub const IDLE_INSTANCE: &str = "--idle-instance-timeout=3600s";

/// The root folder of the repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// The target folder of cargo.
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from)
}

/// The path of the built `weir`.
pub fn weir() -> Result<PathBuf> {
    built(target().join("release/weir"))
}

/// The path of a built component or guest, by its file name.
pub fn component(name: &str) -> Result<PathBuf> {
    let dir = std::env::var_os("WEIR_COMPONENTS_DIR").map_or_else(|| target().join("components"), PathBuf::from);
    built(dir.join(name))
}

/// The folder of the models that ship.
pub fn models() -> PathBuf {
    root().join("host/nn/models")
}

fn built(path: PathBuf) -> Result<PathBuf> {
    ensure!(path.is_file(), "{} is missing: run `cargo xtask build --guests` first", path.display());
    Ok(path)
}

/// The path in an environment variable that a command of xtask sets or passes on.
pub fn tool(variable: &str) -> Result<PathBuf> {
    let value = std::env::var_os(variable).with_context(|| missing(variable))?;
    Ok(value.into())
}

/// That a variable is not set, with the command that sets it.
fn missing(variable: &str) -> String {
    let command = match variable {
        "WEIR_TEST_KAFKA_TLS" => "cargo xtask kafka-tls",
        "WEIR_TEST_SPIN" => "cargo xtask hosts spin --bin PATH",
        _ => "cargo xtask test",
    };
    format!("{variable} is not set: run `{command}`")
}

/// Waits for the exit of a process.
pub fn exit_status(child: &mut Child) -> Result<ExitStatus> {
    let began = Instant::now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        ensure!(began.elapsed() < PATIENCE, "the process {} has not exited after {PATIENCE:?}", child.id());
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The ONNX Runtime library of the Python environment of the tests.
pub fn onnxruntime() -> Result<PathBuf> {
    let python = tool("WEIR_TEST_PYTHON")?;
    let code = "import glob, onnxruntime, os; \
        print(glob.glob(os.path.join(os.path.dirname(onnxruntime.__file__), 'capi', 'libonnxruntime.so.*'))[0])";
    let output = Command::new(python).args(["-c", code]).output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().into())
}

/// A port of this machine that was free just now, for programs that cannot choose one.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A program that serves HTTP and prints its address; killed when dropped.
pub struct Server {
    child: Child,
    address: String,
    log: Arc<Mutex<String>>,
    /// Bearer token of requests to `/metrics`.
    token: Option<String>,
    /// Whether it is ended by SIGTERM, because it ends processes of its own then.
    is_terminated: bool,
}

impl Server {
    /// Starts `weir serve` with the models that ship, unless `arguments` name others, and waits until it is ready.
    pub async fn start(arguments: &[&str]) -> Result<Self> {
        let server = Self::launch(arguments)?;
        server.ready().await?;
        Ok(server)
    }

    /// Starts `weir serve` with the stand-in for the infer component, which derives outputs from keywords without an engine, and waits
    /// until it is ready.
    pub async fn start_stub(arguments: &[&str]) -> Result<Self> {
        let server = Self::launch_stub(arguments)?;
        server.ready().await?;
        Ok(server)
    }

    /// [`Server::start_stub`], with the stand-in for the generate component as the language model `stub`.
    pub async fn start_generate_stub(arguments: &[&str]) -> Result<Self> {
        let stub = format!("generate={}", component("generate_stub.wasm")?.display());
        let model = format!("stub={}", root().join("tests/data/language-model").display());
        let mut all = vec!["--component", stub.as_str(), "--model", model.as_str()];
        all.extend(arguments);
        Self::start_stub(&all).await
    }

    /// [`Server::start`] without waiting for readiness: the server listens, and may never become ready.
    pub fn launch(arguments: &[&str]) -> Result<Self> {
        let mut command = Command::new(weir()?);
        command.arg("serve").args(arguments);
        if !arguments.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        if !arguments.contains(&"--models-dir") {
            command.arg("--models-dir").arg(models());
        }
        Self::spawn(command, "listening on http://")
    }

    /// [`Server::start_stub`] without waiting for readiness: the server listens, and may never become ready.
    pub fn launch_stub(arguments: &[&str]) -> Result<Self> {
        let stub = format!("infer={}", component("infer_stub.wasm")?.display());
        let mut all = vec!["--component", stub.as_str(), "--set", "models.replicas=1"];
        all.extend(arguments);
        Self::launch(&all)
    }

    /// Starts a program and waits for the line in which `announcement` precedes the address that it listens on.
    pub fn spawn(command: Command, announcement: &str) -> Result<Self> {
        Self::spawn_within(command, announcement, PATIENCE)
    }

    /// As [`Server::spawn`], for a program that compiles a component before it listens.
    pub fn spawn_within(mut command: Command, announcement: &str, patience: Duration) -> Result<Self> {
        let program = format!("{command:?}");
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {program}"))?;
        let log = Arc::new(Mutex::new(String::new()));
        let (addresses, address) = std::sync::mpsc::channel();
        let outputs: [Option<Box<dyn std::io::Read + Send>>; 2] = [
            child.stdout.take().map(|out| Box::new(out) as Box<_>),
            child.stderr.take().map(|err| Box::new(err) as Box<_>),
        ];
        for output in outputs.into_iter().flatten() {
            let (log, addresses, announcement) = (log.clone(), addresses.clone(), announcement.to_string());
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some((_, address)) = line.split_once(&announcement) {
                        let _ = addresses.send(address.trim_end_matches('/').to_string());
                    }
                    let mut log = log.lock().unwrap_or_else(PoisonError::into_inner);
                    log.push_str(&line);
                    log.push('\n');
                }
            });
        }
        drop(addresses);
        match address.recv_timeout(patience) {
            Ok(address) => Ok(Self { child, address, log, token: None, is_terminated: false }),
            Err(_) => {
                let _ = child.kill();
                let _ = child.wait();
                let log = log.lock().unwrap_or_else(PoisonError::into_inner).clone();
                bail!("{program} did not print the address that it listens on; its output:\n{log}")
            }
        }
    }

    /// The same server, which has processes of its own that it ends on SIGTERM.
    pub fn with_processes(mut self) -> Self {
        self.is_terminated = true;
        self
    }

    /// The same server, whose metrics are read with a bearer token.
    pub fn with_token(mut self, token: &str) -> Self {
        self.token = Some(token.to_owned());
        self
    }

    /// The process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// `host:port`.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// The URL of a path on this server.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The output so far, standard output and standard error together.
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until a text is in the output, which another thread reads.
    pub async fn wait_for_log(&self, text: &str) -> Result<()> {
        let found = until("a text is in the log", || async { Ok(self.log().contains(text)) }).await;
        found.with_context(|| format!("`{text}` is not in\n{}", self.log()))
    }

    /// Waits until `/readyz` is 200.
    pub async fn ready(&self) -> Result<()> {
        self.wait_for_probe("/readyz").await
    }

    /// Waits until a probe is 200, and reads its response.
    pub async fn wait_for_probe(&self, path: &str) -> Result<()> {
        let is_ok = || async {
            let Ok(response) = reqwest::get(self.url(path)).await else { return Ok(false) };
            let status = response.status();
            Ok(response.bytes().await.is_ok() && status == 200)
        };
        until(path, is_ok).await.with_context(|| self.log())
    }

    /// Sends a signal by its name: `TERM`, `INT`, `KILL`.
    pub fn signal(&self, signal: &str) -> Result<()> {
        send_signal(signal, &self.child.id().to_string())
    }

    /// Waits for the process to exit.
    pub async fn wait(&mut self) -> Result<ExitStatus> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            ensure!(began.elapsed() < PATIENCE, "the server did not exit; its output:\n{}", self.log());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The value of a metric, summed over its labels; 0 when `/metrics` does not have it yet.
    pub async fn metric(&self, name: &str) -> Result<f64> {
        self.sum_metrics(|key| key.split('{').next() == Some(name)).await
    }

    /// The number of POST requests that have been answered.
    pub async fn post_count(&self) -> Result<f64> {
        self.sum_metrics(|key| key.starts_with("weir_http_requests_total{") && key.contains("method=\"POST\"")).await
    }

    /// The sum of the metrics whose name and labels match.
    pub async fn sum_metrics(&self, matches: impl Fn(&str) -> bool) -> Result<f64> {
        let mut request = reqwest::Client::new().get(self.url("/metrics"));
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        let text = request.send().await?.error_for_status()?.text().await?;
        let values = text.lines().filter_map(|line| {
            let (key, value) = line.rsplit_once(' ')?;
            matches(key).then(|| value.parse::<f64>().ok())?
        });
        Ok(values.sum())
    }

    /// Resident memory of the process, in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        memory_bytes(self.child.id(), "VmRSS:")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if self.is_terminated && self.signal("TERM").is_ok() {
            let began = Instant::now();
            while began.elapsed() < PATIENCE && matches!(self.child.try_wait(), Ok(None)) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A line of `/proc/ID/status` about memory, in bytes: `VmRSS:`, the resident memory, or `VmHWM:`, its peak.
pub fn memory_bytes(process: u32, name: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name}"))?;
    let kib: u64 = line.split_whitespace().nth(1).context("no value")?.parse()?;
    Ok(kib * 1024)
}

/// Evaluates a condition repeatedly until it is true; an error after [`PATIENCE`].
pub async fn until<F: Future<Output = Result<bool>>>(what: &str, mut condition: impl FnMut() -> F) -> Result<()> {
    let began = Instant::now();
    while !condition().await? {
        ensure!(began.elapsed() < PATIENCE, "not within {PATIENCE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Sends a signal by its name to a process, or to a group of them: its number with a minus sign. By the shell, since a machine may have no
/// program `kill`.
pub fn send_signal(name: &str, process: &str) -> Result<()> {
    let output = Command::new("sh").args(["-c", &format!("kill -s {name} -- {process}")]).output()?;
    ensure!(output.status.success(), "kill -s {name}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Copies a folder with its files.
pub fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_tree(&entry.path(), &to)?;
        } else {
            std::fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// The lines of an NDJSON body.
pub fn ndjson(body: &str) -> Result<Vec<Value>> {
    body.lines().map(|line| serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))).collect()
}

/// The `status` of each event.
pub fn statuses(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["status"].as_str().unwrap_or("?")).collect()
}

/// A TCP connection on which a test writes its own bytes.
pub struct Raw {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Raw {
    /// Connects to a server.
    pub async fn connect(server: &Server) -> Result<Self> {
        let stream = TcpStream::connect(server.address()).await?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Connects with a small receive buffer, so that writes of the server soon block when the test does not read.
    pub async fn connect_with_small_buffer(server: &Server) -> Result<Self> {
        let socket = tokio::net::TcpSocket::new_v4()?;
        socket.set_recv_buffer_size(4096)?;
        Ok(Self { stream: socket.connect(server.address().parse()?).await?, read: Vec::new() })
    }

    /// Connects and sends a POST of JSON over HTTP/1.1, without reading anything.
    pub async fn post(server: &Server, path: &str, body: &str) -> Result<Self> {
        let mut raw = Self::connect(server).await?;
        raw.send_post(path, body).await?;
        Ok(raw)
    }

    /// Sends a POST of JSON, without reading anything.
    pub async fn send_post(&mut self, path: &str, body: &str) -> Result<()> {
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.send(head.as_bytes()).await?;
        self.send(body.as_bytes()).await
    }

    /// Writes bytes.
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.write_all(bytes).await?)
    }

    /// Reads until the text contains `needle`; returns all that was read so far.
    pub async fn read_until(&mut self, needle: &str) -> Result<String> {
        let reading = async {
            // Only new bytes are searched, since an answer may be long.
            let mut from = 0;
            loop {
                if self.read[from..].windows(needle.len()).any(|window| window == needle.as_bytes()) {
                    return Ok(String::from_utf8_lossy(&self.read).into_owned());
                }
                from = self.read.len().saturating_sub(needle.len());
                let mut buffer = [0; 4096];
                match self.stream.read(&mut buffer).await? {
                    0 => {
                        let text = String::from_utf8_lossy(&self.read);
                        bail!("the connection ended before {needle:?}; it brought:\n{text}");
                    }
                    read => self.read.extend_from_slice(&buffer[..read]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.with_context(|| format!("no {needle:?} in time"))?
    }

    /// Reads to the end of the connection; a reset counts as an end.
    pub async fn read_to_end(&mut self) -> Result<String> {
        let reading = self.stream.read_to_end(&mut self.read);
        match tokio::time::timeout(PATIENCE, reading).await.context("no end in time")? {
            Err(error) if error.kind() != std::io::ErrorKind::ConnectionReset => return Err(error.into()),
            _ => {}
        }
        Ok(String::from_utf8_lossy(&self.read).into_owned())
    }

    /// Sends a body as chunks of HTTP/1.1 while reading, until the text contains `needle`; the unsent part of the body is dropped.
    /// Returns everything that was read.
    pub async fn send_while_reading(&mut self, body: &[u8], needle: &str) -> Result<String> {
        let (mut read, mut write) = self.stream.split();
        let sending = async {
            for piece in body.chunks(8192) {
                let size = format!("{:x}\r\n", piece.len());
                write.write_all(&[size.as_bytes(), piece, b"\r\n"].concat()).await?;
            }
            std::future::pending::<Result<String>>().await
        };
        let all = &mut self.read;
        let reading = async {
            let (mut buffer, mut from) = (vec![0; 1 << 16], 0);
            loop {
                if all[from..].windows(needle.len()).any(|window| window == needle.as_bytes()) {
                    return Ok(String::from_utf8_lossy(all).into_owned());
                }
                from = all.len().saturating_sub(needle.len());
                match read.read(&mut buffer).await? {
                    0 => bail!("the connection ended before {needle:?}"),
                    count => all.extend_from_slice(&buffer[..count]),
                }
            }
        };
        let either = async {
            tokio::select! {
                sent = sending => sent,
                received = reading => received,
            }
        };
        tokio::time::timeout(PATIENCE, either).await.with_context(|| format!("no {needle:?} in time"))?
    }

    /// Reads to the end of a chunked response, or of the connection; returns the text that this call has read.
    pub async fn read_to_end_of_response(&mut self) -> Result<String> {
        let from = self.read.len();
        let reading = async {
            let mut buffer = [0; 4096];
            while !self.read.ends_with(b"\r\n0\r\n\r\n") {
                match self.stream.read(&mut buffer).await {
                    Ok(0) | Err(_) => break,
                    Ok(read) => self.read.extend_from_slice(&buffer[..read]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.context("no end in time")?;
        Ok(String::from_utf8_lossy(&self.read[from..]).into_owned())
    }

    /// Reads to the next `needle` and discards everything up to its end.
    pub async fn skip_past(&mut self, needle: &str) -> Result<()> {
        let needle = needle.as_bytes();
        let mut buffer = vec![0; 1 << 14];
        let reading = async {
            loop {
                if let Some(at) = self.read.windows(needle.len()).position(|window| window == needle) {
                    self.read.drain(..at + needle.len());
                    return Ok(());
                }
                // The last bytes may be the beginning of `needle`.
                self.read.drain(..self.read.len().saturating_sub(needle.len() - 1));
                match self.stream.read(&mut buffer).await? {
                    0 => bail!("the connection ended before {:?}", String::from_utf8_lossy(needle)),
                    read => self.read.extend_from_slice(&buffer[..read]),
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.context("not in time")?
    }

    /// Reads and discards until `needle` has arrived `count` times; returns the number of bytes read.
    pub async fn read_until_nth(&mut self, needle: &str, count: usize) -> Result<usize> {
        let needle = needle.as_bytes();
        let (mut matches, mut total) = (0, 0);
        let mut buffer = vec![0; 1 << 16];
        let reading = async {
            loop {
                let mut from = 0;
                while let Some(at) = self.read[from..].windows(needle.len()).position(|window| window == needle) {
                    matches += 1;
                    from += at + needle.len();
                }
                if matches >= count {
                    return Ok(total);
                }
                // The last bytes may be the beginning of the next match.
                let matched_end = from.max(self.read.len().saturating_sub(needle.len() - 1));
                self.read.drain(..matched_end);
                match self.stream.read(&mut buffer).await? {
                    0 => bail!("the connection ended after {matches} of {count} {:?}", String::from_utf8_lossy(needle)),
                    read => {
                        total += read;
                        self.read.extend_from_slice(&buffer[..read]);
                    }
                }
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.context("not all in time")?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missing_variable_names_the_command_that_sets_it() {
        assert_eq!(missing("WEIR_TEST_REDIS"), "WEIR_TEST_REDIS is not set: run `cargo xtask test`");
        assert_eq!(missing("WEIR_TEST_KAFKA_TLS"), "WEIR_TEST_KAFKA_TLS is not set: run `cargo xtask kafka-tls`");
        assert_eq!(missing("WEIR_TEST_SPIN"), "WEIR_TEST_SPIN is not set: run `cargo xtask hosts spin --bin PATH`");
    }
}
