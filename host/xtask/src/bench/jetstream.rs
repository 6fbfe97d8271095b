//! A nats-server with the streams of `weir stream nats`, for `cargo xtask bench adapters`.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::house::House;
use crate::nats;
use crate::sh::Process;

/// The streams of the defaults of `weir stream nats`, each for the subject of its name.
const STREAMS: [&str; 3] = ["text-input", "sentiment-output", "sentiment-errors"];
/// The subject of answers to the connection.
const ANSWERS: &str = "answers";
/// How long the server may take to listen or to answer.
const TIMEOUT: Duration = Duration::from_secs(60);

/// A server whose streams are in memory, and a connection to it.
pub(super) struct JetStream {
    pub(super) address: SocketAddr,
    connection: BufReader<TcpStream>,
    server: Process,
}

impl JetStream {
    /// Starts a server, with its files in `dir`.
    pub(super) fn start(house: &House, dir: &Path) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let mut command = Command::new(nats::server(house)?);
        command.args(["-js", "-a", "127.0.0.1", "-p", &address.port().to_string(), "-sd"]).arg(dir.join("nats"));
        let server = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let began = Instant::now();
        let stream = loop {
            match TcpStream::connect(address) {
                Ok(stream) => break stream,
                Err(error) => ensure!(began.elapsed() < TIMEOUT, "nats-server does not listen: {error}"),
            }
            std::thread::sleep(Duration::from_millis(5));
        };
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut nats = Self { address, connection: BufReader::new(stream), server };
        let options = json!({"verbose": false, "headers": false});
        nats.write(format!("CONNECT {options}\r\nSUB {ANSWERS} 1\r\n").as_bytes())?;
        Ok(nats)
    }

    /// The process id of the server.
    pub(super) fn id(&self) -> u32 {
        self.server.0.id()
    }

    /// Replaces the streams by new ones with these messages in `text-input`.
    pub(super) fn fill(&mut self, payloads: &[String]) -> Result<()> {
        for stream in STREAMS {
            // There is none in the first round.
            self.request(&format!("$JS.API.STREAM.DELETE.{stream}"), "")?;
            let config = json!({"name": stream, "subjects": [stream], "storage": "memory"}).to_string();
            let created = self.request(&format!("$JS.API.STREAM.CREATE.{stream}"), &config)?;
            ensure!(created["error"].is_null(), "`{stream}` cannot be created: {created}");
        }
        let mut frames = String::new();
        for payload in payloads {
            let _ = write!(frames, "PUB text-input {}\r\n{payload}\r\n", payload.len());
        }
        self.write(frames.as_bytes())?;
        let began = Instant::now();
        while self.count("text-input")? < payloads.len() {
            ensure!(began.elapsed() < TIMEOUT, "nats-server has not stored the messages");
        }
        Ok(())
    }

    /// The number of messages of a stream.
    pub(super) fn count(&mut self, stream: &str) -> Result<usize> {
        let info = self.request(&format!("$JS.API.STREAM.INFO.{stream}"), "")?;
        let count = info["state"]["messages"].as_u64().with_context(|| info.to_string())?;
        Ok(usize::try_from(count)?)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.connection.get_mut().write_all(bytes)?)
    }

    fn request(&mut self, subject: &str, payload: &str) -> Result<Value> {
        self.write(format!("PUB {subject} {ANSWERS} {}\r\n{payload}\r\n", payload.len()).as_bytes())?;
        loop {
            let mut line = String::new();
            self.connection.read_line(&mut line)?;
            ensure!(line.ends_with("\r\n") && !line.starts_with("-ERR"), "nats-server answers `{line}`");
            if line.starts_with("PING") {
                self.write(b"PONG\r\n")?;
            } else if line.starts_with("MSG") {
                let length: usize = line.split_whitespace().next_back().unwrap_or_default().parse()?;
                let mut content = vec![0; length + 2];
                self.connection.read_exact(&mut content)?;
                return Ok(serde_json::from_slice(&content[..length])?);
            }
        }
    }
}
