//! Stores to test, and a Redis server of the test's own.
#![allow(dead_code, unused_macros, unused_imports, reason = "each test program uses its part")]

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use weir_core::channels::{ChannelName, Cursor, Delivery, Draft, Gap};
use weir_events::{EventsConfig, RedisConfig, Store, StoreKind, Subscription};

/// How long to wait for an expected condition.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A redis-server, stopped when this is dropped.
pub(crate) struct RedisServer {
    child: Option<Child>,
    pub(crate) port: u16,
    folder: TempDir,
    arguments: Vec<String>,
}

impl RedisServer {
    /// A server without persistence.
    pub(crate) fn start() -> Self {
        Self::with(&["--save", "", "--appendonly", "no"])
    }

    /// A server that persists every write.
    pub(crate) fn durable() -> Self {
        Self::with(&["--save", "", "--appendonly", "yes", "--appendfsync", "always"])
    }

    fn with(arguments: &[&str]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let arguments = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let mut server = Self { child: None, port, folder: TempDir::new().unwrap(), arguments };
        server.start_again();
        server
    }

    /// Starts the server on its port and in its folder, and waits until it answers.
    pub(crate) fn start_again(&mut self) {
        let mut command = Command::new(program());
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(self.folder.path());
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null());
        self.child = Some(command.spawn().expect("redis-server starts"));
        let start = Instant::now();
        while !self.responds() {
            assert!(start.elapsed() < PATIENCE, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    fn responds(&self) -> bool {
        let Ok(mut socket) = TcpStream::connect(("127.0.0.1", self.port)) else { return false };
        let mut reply = [0; 5];
        socket.write_all(b"PING\r\n").is_ok() && socket.read_exact(&mut reply).is_ok() && &reply == b"+PONG"
    }

    /// `kill -9`.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends it a signal by name.
    pub(crate) fn signal(&self, name: &str) {
        let pid = self.child.as_ref().unwrap().id();
        assert!(Command::new("sh").args(["-c", &format!("kill -s {name} {pid}")]).status().unwrap().success());
    }

    pub(crate) fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    pub(crate) fn config(&self) -> EventsConfig {
        let redis = RedisConfig { url: self.url(), retry_ms: 20, ..RedisConfig::default() };
        EventsConfig { store: StoreKind::Redis, redis, sweep_ms: 20, ..EventsConfig::default() }
    }

    /// A connection of the test's own.
    pub(crate) async fn connection(&self) -> redis::aio::MultiplexedConnection {
        redis::Client::open(self.url()).unwrap().get_multiplexed_async_connection().await.unwrap()
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        self.kill();
    }
}

fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("WEIR_TEST_REDIS") {
        return path.into();
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let program_path =
        std::env::split_paths(&path).map(|folder| folder.join("redis-server")).find(|file| file.is_file());
    program_path.expect("no redis-server on the PATH: set WEIR_TEST_REDIS to what `cargo xtask redis` prints")
}

pub(crate) fn disk(folder: &Path) -> EventsConfig {
    let path = folder.join("events.redb");
    EventsConfig { store: StoreKind::Disk, path, durable: true, sweep_ms: 20, ..EventsConfig::default() }
}

pub(crate) fn memory() -> EventsConfig {
    EventsConfig { sweep_ms: 20, ..EventsConfig::default() }
}

pub(crate) async fn open(config: EventsConfig) -> Store {
    Store::open(config).await.unwrap()
}

pub(crate) fn name(text: &str) -> ChannelName {
    text.parse().unwrap()
}

/// Events whose data are these numbers.
pub(crate) fn numbered(numbers: impl IntoIterator<Item = u64>) -> Vec<Draft> {
    numbers.into_iter().map(|number| Draft::new("e", number.to_string())).collect()
}

/// The next delivery of a subscription; panics if none comes in time.
pub(crate) async fn next(subscription: &mut Subscription) -> Option<Delivery> {
    tokio::time::timeout(PATIENCE, subscription.next()).await.expect("nothing comes")
}

/// The data of the next event as a number; panics if the next delivery is not an event.
pub(crate) async fn number(subscription: &mut Subscription) -> u64 {
    match next(subscription).await {
        Some(Delivery::Event { entry, .. }) => entry.data.parse().unwrap(),
        other => panic!("{other:?} is no event"),
    }
}

pub(crate) async fn gap(subscription: &mut Subscription) -> Gap {
    match next(subscription).await {
        Some(Delivery::Gap(gap)) => gap,
        other => panic!("{other:?} is no gap"),
    }
}

/// Waits for a condition.
pub(crate) async fn until<F: Future<Output = bool>>(description: &str, condition: impl Fn() -> F) {
    let start = Instant::now();
    while !condition().await {
        assert!(start.elapsed() < PATIENCE, "{description}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The state of a reader: its cursor, and the numbers and gaps that it received.
#[derive(Debug, Default)]
pub(crate) struct ReaderState {
    pub(crate) cursor: Cursor,
    pub(crate) numbers: Vec<u64>,
    pub(crate) gaps: Vec<Gap>,
}

impl ReaderState {
    /// Records a delivery, and checks that it continues the sequence.
    pub(crate) fn record(&mut self, delivery: &Delivery) {
        match delivery {
            Delivery::Event { entry, coalesced } => {
                if self.cursor != Cursor::START {
                    let expected = Cursor::new(self.cursor.epoch, self.cursor.seq + 1 + u64::from(*coalesced));
                    assert_eq!(entry.cursor, expected, "a silent hole");
                }
                let number = entry.data.parse().unwrap();
                assert!(self.numbers.last().is_none_or(|last| *last < number), "a duplicate");
                self.cursor = entry.cursor;
                self.numbers.push(number);
            }
            Delivery::Gap(gap) => {
                assert_eq!(gap.missing_from, self.cursor.next());
                self.cursor = gap.missing_to;
                self.gaps.push(*gap);
            }
            Delivery::Closed(reason) => panic!("closed: {reason}"),
        }
    }
}

/// Runs each test with each kind of store. A test can open several stores, which share their content if the kind allows
/// it.
macro_rules! conformance {
    ($($test:ident),+ $(,)?) => {
        mod in_memory {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                super::$test($crate::common::memory()).await;
            })+
        }
        mod on_disk {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let folder = tempfile::TempDir::new().unwrap();
                super::$test($crate::common::disk(folder.path())).await;
            })+
        }
        mod on_disk_without_fsync {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let folder = tempfile::TempDir::new().unwrap();
                super::$test(weir_events::EventsConfig { durable: false, ..$crate::common::disk(folder.path()) }).await;
            })+
        }
        mod in_redis {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let server = $crate::common::RedisServer::start();
                super::$test(server.config()).await;
            })+
        }
    };
}
pub(crate) use conformance;
