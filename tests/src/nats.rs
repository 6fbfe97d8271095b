//! A NATS server that a test controls, and a client of its protocol.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{PATIENCE, free_port, root, tool};

/// The streams of the defaults of `weir stream nats`, each for the subject of its name.
pub const STREAMS: [&str; 3] = ["text-input", "sentiment-output", "sentiment-errors"];

/// A server with its streams on the disk; killed when dropped.
pub struct Nats {
    child: Child,
    port: u16,
    program: PathBuf,
    dir: tempfile::TempDir,
}

/// A message.
#[derive(Debug, Clone)]
pub struct NatsMessage {
    /// Its subject.
    pub subject: String,
    /// The subject of a reply; empty if none is expected.
    pub reply: String,
    /// Its headers as text, with the status of a message of the server.
    pub headers: String,
    /// Its content.
    pub payload: Vec<u8>,
}

impl NatsMessage {
    /// The value of a header.
    pub fn header(&self, name: &str) -> Option<&str> {
        let lines = self.headers.lines().filter_map(|line| line.split_once(": "));
        lines.filter(|(other, _)| *other == name).map(|(_, value)| value).next()
    }
}

impl Nats {
    /// Starts a server with the default streams.
    pub fn start() -> Result<Self> {
        let nats = Self::start_with("jetstream { store_dir: data }")?;
        STREAMS.iter().try_for_each(|stream| nats.add_stream(stream, &[stream]))?;
        Ok(nats)
    }

    /// Starts a server with a configuration, in which `DATA` is the folder of test data.
    pub fn start_with(configuration: &str) -> Result<Self> {
        let program = tool("WEIR_TEST_NATS")?;
        let (port, dir) = (free_port()?, tempfile::tempdir()?);
        let data = root().join("tests/data/nats");
        std::fs::write(dir.path().join("nats.conf"), configuration.replace("DATA", &data.display().to_string()))?;
        let mut nats = Self { child: spawn(&program, port, dir.path())?, port, program, dir };
        nats.wait_until_listening()?;
        Ok(nats)
    }

    /// Waits until the server accepts connections, which it does after it has recovered its streams.
    fn wait_until_listening(&mut self) -> Result<()> {
        let began = Instant::now();
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(began.elapsed() < PATIENCE, "nats-server does not listen after {PATIENCE:?}");
            ensure!(self.child.try_wait()?.is_none(), "nats-server has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    /// Kills the server with SIGKILL.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Starts it again, on the same port and folder.
    pub fn restart(&mut self) -> Result<()> {
        self.child = spawn(&self.program, self.port, self.dir.path())?;
        self.wait_until_listening()
    }

    /// The URL of the server.
    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Connects.
    pub fn client(&self) -> Result<NatsClient> {
        NatsClient::connect(self.port, "\"name\":\"test\"")
    }

    /// Connects with options of `CONNECT`, such as `"user":"name","pass":"word"`.
    pub fn client_of(&self, options: &str) -> Result<NatsClient> {
        NatsClient::connect(self.port, options)
    }

    /// Adds a stream for subjects.
    pub fn add_stream(&self, name: &str, subjects: &[&str]) -> Result<()> {
        let config = json!({ "name": name, "subjects": subjects, "storage": "file", "allow_direct": true });
        self.client()?.api(&format!("STREAM.CREATE.{name}"), &config).map(drop)
    }

    /// Stores messages with a header `traceparent` in `text-input`.
    pub fn publish<P: AsRef<[u8]>>(&self, payloads: impl IntoIterator<Item = P>) -> Result<()> {
        let mut client = self.client()?;
        for payload in payloads {
            let stored = client.request("text-input", "traceparent: 00-1\r\n", payload.as_ref())?;
            ensure!(stored.payload.starts_with(b"{\"stream\""), "not stored: {stored:?}");
        }
        Ok(())
    }

    /// The number of messages of a stream.
    pub fn count(&self, stream: &str) -> Result<u64> {
        let info = self.client()?.api(&format!("STREAM.INFO.{stream}"), &Value::Null)?;
        info["state"]["messages"].as_u64().context("no count")
    }

    /// The messages of a stream.
    pub fn read(&self, stream: &str) -> Result<Vec<NatsMessage>> {
        let (mut client, count) = (self.client()?, self.count(stream)?);
        let get = |sequence: u64| {
            let request = json!({ "seq": sequence }).to_string();
            client.request(&format!("$JS.API.DIRECT.GET.{stream}"), "", request.as_bytes())
        };
        (1..=count).map(get).collect()
    }

    /// The state of the consumer `weir` of `text-input`; `None` before it exists.
    pub fn consumer(&self) -> Result<Option<Value>> {
        let reply = self.client()?.request("$JS.API.CONSUMER.INFO.text-input.weir", "", b"")?;
        let info: Value = serde_json::from_slice(&reply.payload)?;
        Ok(info["error"].is_null().then_some(info))
    }

    /// Whether all messages of `text-input` are acknowledged.
    pub fn is_acknowledged(&self) -> Result<bool> {
        let consumer = self.consumer()?.unwrap_or_default();
        Ok(consumer["num_pending"] == 0 && consumer["num_ack_pending"] == 0)
    }
}

impl Drop for Nats {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.kill();
    }
}

fn spawn(program: &Path, port: u16, dir: &Path) -> Result<Child> {
    let mut command = Command::new(program);
    command.current_dir(dir).args(["-c", "nats.conf", "-a", "127.0.0.1", "-p", &port.to_string()]);
    Ok(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?)
}

/// A connection.
pub struct NatsClient {
    stream: BufReader<TcpStream>,
    /// The subject of replies to this connection.
    inbox: String,
}

impl NatsClient {
    fn connect(port: u16, options: &str) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let inbox = format!("inbox.{}", stream.local_addr()?.port());
        let mut client = Self { stream: BufReader::new(stream), inbox };
        client.line()?;
        let connect = format!("CONNECT {{\"verbose\":false,\"headers\":true,\"no_responders\":true,{options}}}\r\n");
        client.write(format!("{connect}SUB {} 1\r\n", client.inbox).as_bytes())?;
        Ok(client)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        Ok(self.stream.get_mut().write_all(bytes)?)
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        ensure!(line.ends_with("\r\n"), "NATS has ended the connection");
        Ok(line.trim_end().to_owned())
    }

    /// Subscribes to a subject; returns when the server has added the subscription.
    pub fn subscribe(&mut self, subject: &str) -> Result<()> {
        self.write(format!("SUB {subject} 2\r\nPING\r\n").as_bytes())?;
        while self.line()? != "PONG" {}
        Ok(())
    }

    /// Publishes a message.
    pub fn publish(&mut self, subject: &str, reply: &str, headers: &str, payload: &[u8]) -> Result<()> {
        let mut frame = String::new();
        match headers.is_empty() {
            true => write!(frame, "PUB {subject} {reply} {}\r\n", payload.len())?,
            false => {
                let block = format!("NATS/1.0\r\n{headers}\r\n");
                write!(frame, "HPUB {subject} {reply} {} {}\r\n{block}", block.len(), block.len() + payload.len())?;
            }
        }
        self.write(&[frame.as_bytes(), payload, b"\r\n"].concat())
    }

    /// Publishes a message and waits for its reply.
    pub fn request(&mut self, subject: &str, headers: &str, payload: &[u8]) -> Result<NatsMessage> {
        let inbox = self.inbox.clone();
        self.publish(subject, &inbox, headers, payload)?;
        self.next_message()
    }

    /// Sends a request to JetStream.
    pub fn api(&mut self, request: &str, options: &Value) -> Result<Value> {
        let payload = if options.is_null() { String::new() } else { options.to_string() };
        let reply = self.request(&format!("$JS.API.{request}"), "", payload.as_bytes())?;
        let reply: Value = serde_json::from_slice(&reply.payload).with_context(|| format!("{reply:?}"))?;
        ensure!(reply["error"].is_null(), "{request}: {reply}");
        Ok(reply)
    }

    /// The next message.
    pub fn next_message(&mut self) -> Result<NatsMessage> {
        loop {
            let line = self.line()?;
            let fields: Vec<&str> = line.split(' ').collect();
            let (subject, reply, headers_bytes, bytes) = match fields[..] {
                ["MSG", subject, _, bytes] => (subject, "", "0", bytes),
                ["MSG", subject, _, reply, bytes] => (subject, reply, "0", bytes),
                ["HMSG", subject, _, headers, bytes] => (subject, "", headers, bytes),
                ["HMSG", subject, _, reply, headers, bytes] => (subject, reply, headers, bytes),
                ["PING"] => {
                    self.write(b"PONG\r\n")?;
                    continue;
                }
                ["PONG"] => continue,
                _ => bail!("{line}"),
            };
            let mut content = vec![0; bytes.parse::<usize>()? + 2];
            let (subject, reply, headers_bytes) = (subject.to_owned(), reply.to_owned(), headers_bytes.parse()?);
            self.stream.read_exact(&mut content)?;
            content.truncate(content.len() - 2);
            let payload = content.split_off(headers_bytes);
            return Ok(NatsMessage { subject, reply, headers: String::from_utf8(content)?, payload });
        }
    }
}
