//! The supervisor with files and a Redis server, and a stand-in for the adapter component.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use tokio::sync::{mpsc, watch};
use weir_adapters::build::Plan;
use weir_adapters::driver::BoxFuture;
use weir_adapters::status::{State, Status};
use weir_adapters::supervisor::{Component, ComponentCall, ComponentError, Supervisor};
use weir_config::{Adapter, AdapterSink, AdapterSource, FileSink, FileSource, RedisSink, RedisSource};
use weir_core::adapter::{Destination, ErrorCategory, ResultRecord, SourceRecord};
use weir_core::random::{SplitMix64, between};

/// The time after which a test fails.
const PATIENCE: Duration = Duration::from_secs(60);

/// A component that returns the payload of every record, in order or in any order.
#[derive(Default)]
struct Echo {
    /// Whether results come in any order.
    shuffles: bool,
    /// Ends at a record with this payload, without completing it.
    poison: Option<&'static str>,
    calls: AtomicUsize,
    /// The number of records that it has received.
    received: Arc<AtomicU64>,
}

impl Component for Echo {
    fn open(&self) -> BoxFuture<'_, Result<ComponentCall, ComponentError>> {
        let (records, lists) = mpsc::channel(16);
        let (outgoing, results) = mpsc::channel(16);
        let mut incoming = one_by_one(lists);
        let (shuffles, poison, received) = (self.shuffles, self.poison, self.received.clone());
        let mut random = SplitMix64::new(self.calls.fetch_add(1, Ordering::Relaxed) as u64);
        let task = tokio::spawn(async move {
            let mut waiting: Vec<SourceRecord> = Vec::new();
            loop {
                let record = match !waiting.is_empty() {
                    true => incoming.try_recv().ok(),
                    false => match incoming.recv().await {
                        Some(record) => Some(record),
                        None => return None,
                    },
                };
                if let Some(record) = record {
                    received.fetch_add(1, Ordering::Relaxed);
                    if poison.is_some_and(|poison| record.payload == poison.as_bytes()) {
                        return Some("it has trapped".to_owned());
                    }
                    waiting.push(record);
                }
                if shuffles && waiting.len() < 4 && !incoming.is_empty() && random.next_u64().is_multiple_of(2) {
                    continue;
                }
                let index = if shuffles { between(random.next_u64(), 0, waiting.len() as u64 - 1) as usize } else { 0 };
                let record = waiting.remove(index);
                if outgoing.send(vec![result(record)]).await.is_err() {
                    return None;
                }
            }
        });
        let end = Box::pin(async move { task.await.unwrap_or_else(|error| Some(error.to_string())) });
        Box::pin(async move { Ok(ComponentCall { records, results, end }) })
    }
}

/// The records of lists.
fn one_by_one(mut lists: mpsc::Receiver<Vec<SourceRecord>>) -> mpsc::Receiver<SourceRecord> {
    let (sender, records) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(list) = lists.recv().await {
            for record in list {
                if sender.send(record).await.is_err() {
                    return;
                }
            }
        }
    });
    records
}

fn result(record: SourceRecord) -> ResultRecord {
    if record.payload.starts_with(b"bad") {
        return ResultRecord::error(record, ErrorCategory::Client, "bad", "it is bad");
    }
    let SourceRecord { payload, key, headers, origin, position } = record;
    ResultRecord { payload, key, headers, destination: Destination::Output, origin, completes: vec![position] }
}

/// A running adapter.
struct Running {
    stop: watch::Sender<bool>,
    status: Status,
    task: tokio::task::JoinHandle<Result<(), weir_adapters::supervisor::AdapterFailure>>,
}

fn start(adapter: &Adapter, echo: Echo) -> Result<Running> {
    let plan = Plan::new(adapter, 1).map_err(anyhow::Error::msg)?;
    let status = Status::new(&plan.name, plan.source, plan.sink);
    let supervisor = Supervisor::new(plan.driver, Arc::new(echo), plan.bounds, status.clone());
    let (stop, stopped) = watch::channel(false);
    Ok(Running { stop, status, task: tokio::spawn(supervisor.run(stopped)) })
}

impl Running {
    /// Waits for the end of the source.
    async fn ended(self) -> Result<Status> {
        tokio::time::timeout(PATIENCE, self.task).await.context("it does not end")???;
        drop(self.stop);
        Ok(self.status)
    }

    async fn stop(self) -> Result<Status> {
        self.stop.send(true)?;
        self.ended().await
    }

    /// Aborts the adapter like a killed process: nothing is written or committed any more.
    async fn kill(self) {
        self.task.abort();
        // It was aborted.
        let _ = self.task.await;
    }
}

async fn until(what: &str, is_true: impl AsyncFn() -> Result<bool>) -> Result<()> {
    let start = Instant::now();
    while !is_true().await? {
        ensure!(start.elapsed() < PATIENCE, "not {what} after {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

fn file_adapter(dir: &Path, inputs: &[&str], checkpoint: bool) -> Adapter {
    Adapter {
        name: "files".into(),
        format: "ndjson".into(),
        in_flight_max: 8,
        reconnect_delay_ms: 1,
        source: AdapterSource::File(FileSource {
            paths: inputs.iter().map(|name| dir.join(name).display().to_string()).collect(),
            follow: false,
            checkpoint: if checkpoint { dir.join("checkpoint") } else { PathBuf::new() },
        }),
        sink: AdapterSink::File(FileSink { path: dir.join("out"), ..FileSink::default() }),
        ..Adapter::default()
    }
}

fn lines(count: usize) -> String {
    (0..count).map(|number| format!("{{\"text\":\"{number}\"}}\n")).collect()
}

#[tokio::test]
async fn files_are_read_in_order_with_errors_beside_the_results() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("a.ndjson"), "1\nbad\n2")?;
    std::fs::write(dir.path().join("b.ndjson"), "3\n")?;
    let mut adapter = file_adapter(dir.path(), &["*.ndjson"], false);
    adapter.errors = Some(AdapterSink::File(FileSink { path: dir.path().join("errors"), ..FileSink::default() }));
    let status = start(&adapter, Echo::default())?.ended().await?;
    assert_eq!(std::fs::read_to_string(dir.path().join("out"))?, "1\n2\n3\n");
    let errors = std::fs::read_to_string(dir.path().join("errors"))?;
    assert!(
        errors.contains(r#""category":"client","code":"bad""#) && errors.contains(r#""payload":"bad""#),
        "{errors}"
    );
    let report = status.report();
    assert_eq!((report.records, report.results, report.errors, report.state), (4, 3, 1, "stopped"));
    Ok(())
}

#[tokio::test]
async fn compressed_files_are_decompressed() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    packed.write_all(lines(1000).as_bytes())?;
    std::fs::write(dir.path().join("a.ndjson.gz"), packed.finish()?)?;
    let packed = ruzstd::encoding::compress_to_vec(lines(500).as_bytes(), ruzstd::encoding::CompressionLevel::Fastest);
    std::fs::write(dir.path().join("b.ndjson.zst"), packed)?;
    let adapter = file_adapter(dir.path(), &["a.ndjson.gz", "b.ndjson.zst"], false);
    start(&adapter, Echo::default())?.ended().await?;
    assert_eq!(std::fs::read_to_string(dir.path().join("out"))?, lines(1000) + &lines(500));
    Ok(())
}

#[test]
fn adapter_killed_at_random_loses_and_doubles_no_line() -> Result<()> {
    /// The run after this number of kills is not killed, so that the test ends on a slow machine.
    const KILLS_MAX: u32 = 200;
    let dir = tempfile::tempdir()?;
    let input = lines(20_000);
    std::fs::write(dir.path().join("a.ndjson"), &input)?;
    let adapter = file_adapter(dir.path(), &["a.ndjson"], true);
    let mut random = SplitMix64::new(7);
    let mut kills = 0;
    loop {
        // Dropping a runtime waits for its threads for blocking work, so that no write of one run ends in the next.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let has_ended = runtime.block_on(async {
            let running = start(&adapter, Echo::default())?;
            if kills == KILLS_MAX {
                return running.ended().await.map(|_| true);
            }
            tokio::time::sleep(Duration::from_micros(between(random.next_u64(), 0, 40_000))).await;
            match running.task.is_finished() {
                true => running.ended().await.map(|_| true),
                false => {
                    running.kill().await;
                    Ok(false)
                }
            }
        })?;
        if has_ended {
            break;
        }
        kills += 1;
    }
    ensure!(kills > 3, "it was killed {kills} times only");
    let output = std::fs::read_to_string(dir.path().join("out"))?;
    ensure!(output == input, "{} lines of {}", output.lines().count(), input.lines().count());
    Ok(())
}

#[tokio::test]
async fn record_that_ends_the_component_goes_to_the_errors_and_others_pass() -> Result<()> {
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("a.ndjson"), "1\n2\npoison\n3\n4\n")?;
    let adapter = file_adapter(dir.path(), &["a.ndjson"], true);
    let echo = Echo { poison: Some("poison"), ..Echo::default() };
    let status = start(&adapter, echo)?.ended().await?;
    let output = std::fs::read_to_string(dir.path().join("out"))?;
    let shown: Vec<&str> =
        output.lines().map(|line| if line.contains("component_trapped") { "error" } else { line }).collect();
    assert_eq!(shown, ["1", "2", "error", "3", "4"]);
    assert!(status.report().reconnects >= 3, "{:?}", status.report());
    Ok(())
}

#[tokio::test]
async fn wrong_settings_stop_the_adapter_with_a_reason() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let adapter = file_adapter(dir.path(), &["missing"], false);
    let running = start(&adapter, Echo::default())?;
    let failure = tokio::time::timeout(PATIENCE, running.task).await??.unwrap_err();
    assert!(failure.to_string().contains("missing: No such file"), "{failure}");
    assert_eq!(running.status.state().0, State::Failed);
    for (key, adapter) in [
        ("task", Adapter { task: "guess".into(), ..adapter.clone() }),
        ("format", Adapter { format: "xml".into(), ..adapter.clone() }),
        ("avro", Adapter { format: "avro".into(), ..adapter.clone() }),
        ("ordering", Adapter { ordering: "loose".into(), ..adapter.clone() }),
    ] {
        let error = Plan::new(&adapter, 1).err().context("it is accepted")?;
        ensure!(error.contains(key) && error.contains("adapter `files`"), "{error}");
    }
    Ok(())
}

#[tokio::test]
async fn followed_file_is_read_as_it_grows_and_resumed_after_a_rotation() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("log.ndjson");
    let append = |text: &str| -> Result<()> {
        let mut file = std::fs::OpenOptions::new().append(true).create(true).open(&path)?;
        Ok(file.write_all(text.as_bytes())?)
    };
    let output = || std::fs::read_to_string(dir.path().join("out")).unwrap_or_default();
    let mut adapter = file_adapter(dir.path(), &["log.ndjson"], true);
    if let AdapterSource::File(source) = &mut adapter.source {
        source.follow = true;
    }
    append("1\n2\n")?;
    let running = start(&adapter, Echo::default())?;
    until("read", async || Ok(output() == "1\n2\n")).await?;
    append("3\n")?;
    until("read", async || Ok(output() == "1\n2\n3\n")).await?;
    running.stop().await?;
    // Rotated while no adapter follows it: the rest of the old file is read first.
    append("4\n")?;
    std::fs::rename(&path, dir.path().join("log.ndjson.1"))?;
    append("5\n")?;
    let running = start(&adapter, Echo::default())?;
    until("read", async || Ok(output() == "1\n2\n3\n4\n5\n")).await?;
    running.kill().await;
    Ok(())
}

/// A Redis server that the test starts and stops.
struct Redis {
    child: std::process::Child,
    port: u16,
    dir: tempfile::TempDir,
}

impl Redis {
    fn start() -> Result<Self> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let dir = tempfile::tempdir()?;
        Ok(Self { child: Self::spawn(port, dir.path())?, port, dir })
    }

    fn spawn(port: u16, dir: &Path) -> Result<std::process::Child> {
        let program =
            std::env::var_os("WEIR_TEST_REDIS").context("WEIR_TEST_REDIS is not set: run `cargo xtask test`")?;
        let mut command = std::process::Command::new(program);
        command.args([
            "--port",
            &port.to_string(),
            "--save",
            "",
            "--appendonly",
            "yes",
            "--appendfsync",
            "always",
            "--dir",
        ]);
        command.arg(dir).stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        Ok(command.spawn()?)
    }

    fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        self.child = Self::spawn(self.port, self.dir.path())?;
        Ok(())
    }

    fn url(&self) -> String {
        format!("redis://127.0.0.1:{}/0", self.port)
    }

    async fn connection(&self) -> Result<redis::aio::MultiplexedConnection> {
        let client = redis::Client::open(self.url())?;
        let start = Instant::now();
        loop {
            // On a busy machine an answer takes longer than the half second of the default.
            let config = redis::AsyncConnectionConfig::new().set_response_timeout(Some(PATIENCE));
            match client.get_multiplexed_async_connection_with_config(&config).await {
                Ok(connection) => return Ok(connection),
                Err(error) => ensure!(start.elapsed() < PATIENCE, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn adapter(&self, consumer: &str) -> Adapter {
        Adapter {
            name: consumer.into(),
            in_flight_max: 32,
            reconnect_delay_ms: 10,
            source: AdapterSource::Redis(RedisSource {
                url: self.url(),
                consumer: consumer.into(),
                claim_idle_ms: 300,
                block_ms: 50,
                timeout_ms: 2000,
                deliveries_max: 3,
                ..RedisSource::default()
            }),
            sink: AdapterSink::Redis(RedisSink { url: self.url(), timeout_ms: 2000, ..RedisSink::default() }),
            errors: Some(AdapterSink::Redis(RedisSink {
                url: self.url(),
                stream: "sentiment-errors".into(),
                timeout_ms: 2000,
                ..RedisSink::default()
            })),
            ..Adapter::default()
        }
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.kill();
    }
}

async fn add(connection: &mut redis::aio::MultiplexedConnection, numbers: std::ops::Range<usize>) -> Result<()> {
    let mut pipeline = redis::pipe();
    for number in numbers {
        pipeline
            .cmd("XADD")
            .arg("text-input")
            .arg("*")
            .arg("payload")
            .arg(number.to_string())
            .arg("trace")
            .arg("t1")
            .ignore();
    }
    Ok(pipeline.query_async(connection).await?)
}

/// The number of entries of a stream with each payload.
async fn counts(connection: &mut redis::aio::MultiplexedConnection, stream: &str) -> Result<BTreeMap<String, usize>> {
    let reply: redis::streams::StreamRangeReply =
        redis::cmd("XRANGE").arg(stream).arg("-").arg("+").query_async(connection).await?;
    let mut counts = BTreeMap::new();
    for entry in reply.ids {
        *counts.entry(entry.get::<String>("payload").context("no payload")?).or_default() += 1;
    }
    Ok(counts)
}

async fn pending(connection: &mut redis::aio::MultiplexedConnection) -> Result<usize> {
    let reply: redis::streams::StreamPendingReply =
        redis::cmd("XPENDING").arg("text-input").arg("weir").query_async(connection).await?;
    Ok(reply.count())
}

#[tokio::test]
async fn entries_are_acknowledged_after_their_results_are_written() -> Result<()> {
    let redis = Redis::start()?;
    let mut connection = redis.connection().await?;
    add(&mut connection, 0..500).await?;
    let running = start(&redis.adapter("one"), Echo { shuffles: true, ..Echo::default() })?;
    let status = running.status.clone();
    until("written", async || Ok(status.report().results == 500))
        .await
        .with_context(|| format!("{:?}", status.report()))?;
    add(&mut connection, 500..600).await?;
    until("written", async || Ok(status.report().results == 600))
        .await
        .with_context(|| format!("{:?}", status.report()))?;
    running.stop().await?;
    let written = counts(&mut connection, "sentiment-output").await?;
    assert_eq!((written.len(), written.values().max(), pending(&mut connection).await?), (600, Some(&1), 0));
    let first: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
        .arg("sentiment-output")
        .arg("-")
        .arg("+")
        .arg("COUNT")
        .arg(1)
        .query_async(&mut connection)
        .await?;
    assert_eq!(first.ids[0].get::<String>("trace").as_deref(), Some("t1"));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_consumers_and_a_killed_server_lose_no_entry() -> Result<()> {
    let mut redis = Redis::start()?;
    let mut connection = redis.connection().await?;
    let count = 3000;
    add(&mut connection, 0..count).await?;
    let mut random = SplitMix64::new(3);
    for round in 0..12 {
        // Two consumers alternate: each claims the pending entries of the other, or reads its own again.
        let running = start(
            &redis.adapter(if round % 2 == 0 { "one" } else { "two" }),
            Echo { shuffles: true, ..Echo::default() },
        )?;
        tokio::time::sleep(Duration::from_micros(between(random.next_u64(), 1000, 30_000))).await;
        if round == 5 {
            redis.kill()?;
            redis.restart()?;
        }
        running.kill().await;
    }
    let running = start(&redis.adapter("three"), Echo::default())?;
    let mut connection = redis.connection().await?;
    until("acknowledged", async || {
        let mut connection = connection.clone();
        let groups: Vec<BTreeMap<String, redis::Value>> =
            redis::cmd("XINFO").arg("GROUPS").arg("text-input").query_async(&mut connection).await?;
        let lag =
            groups.first().and_then(|group| redis::from_redis_value::<Option<u64>>(group.get("lag")?.clone()).ok()?);
        Ok(lag == Some(0) && pending(&mut connection).await? == 0)
    })
    .await?;
    running.stop().await?;
    let mut written = counts(&mut connection, "sentiment-output").await?;
    for (payload, times) in counts(&mut connection, "sentiment-errors").await? {
        *written.entry(payload).or_default() += times;
    }
    ensure!(written.len() == count, "{} of {count} entries have a result", written.len());
    Ok(())
}

#[tokio::test]
async fn entry_that_is_delivered_too_often_goes_to_the_error_stream() -> Result<()> {
    let redis = Redis::start()?;
    let mut connection = redis.connection().await?;
    add(&mut connection, 0..1).await?;
    // Each run reads the entry and is killed before it is acknowledged.
    for _ in 0..4 {
        let echo = Echo { poison: Some("0"), ..Echo::default() };
        let received = echo.received.clone();
        let running = start(&redis.adapter("one"), echo)?;
        let status = running.status.clone();
        until("delivered", async || Ok(received.load(Ordering::Relaxed) > 0 || status.report().errors > 0)).await?;
        running.kill().await;
    }
    let running = start(&redis.adapter("one"), Echo::default())?;
    until("dead", async || Ok(!counts(&mut connection.clone(), "sentiment-errors").await?.is_empty())).await?;
    running.stop().await?;
    let errors: redis::streams::StreamRangeReply =
        redis::cmd("XRANGE").arg("sentiment-errors").arg("-").arg("+").query_async(&mut connection).await?;
    assert_eq!(errors.ids[0].get::<String>("weir-error-code").as_deref(), Some("deliveries_exhausted"));
    assert_eq!((errors.ids[0].get::<String>("payload").as_deref(), pending(&mut connection).await?), (Some("0"), 0));
    Ok(())
}

#[tokio::test]
async fn control_headers_of_a_writer_are_removed() -> Result<()> {
    let redis = Redis::start()?;
    let mut connection = redis.connection().await?;
    let mut add = redis::cmd("XADD");
    add.arg("text-input").arg("*").arg("payload").arg("a").arg("trace").arg("t1");
    add.arg("weir-refusal").arg("forged").arg("weir-csv-columns").arg("forged");
    add.query_async::<redis::Value>(&mut connection).await?;
    let running = start(&redis.adapter("one"), Echo::default())?;
    until("written", async || Ok(!counts(&mut connection.clone(), "sentiment-output").await?.is_empty())).await?;
    running.stop().await?;
    let written: redis::streams::StreamRangeReply =
        redis::cmd("XRANGE").arg("sentiment-output").arg("-").arg("+").query_async(&mut connection).await?;
    let fields: Vec<&String> = written.ids[0].map.keys().collect();
    assert!(!fields.iter().any(|field| ["weir-refusal", "weir-csv-columns"].contains(&field.as_str())), "{fields:?}");
    assert_eq!(written.ids[0].get::<String>("trace").as_deref(), Some("t1"));
    Ok(())
}

#[tokio::test]
async fn wrong_password_stops_the_adapter() -> Result<()> {
    let redis = Redis::start()?;
    let mut connection = redis.connection().await?;
    redis::cmd("CONFIG").arg("SET").arg("requirepass").arg("right").query_async::<()>(&mut connection).await?;
    let dir = tempfile::tempdir()?;
    std::fs::write(dir.path().join("wrong"), "wrong\n")?;
    std::fs::write(dir.path().join("right"), "right\n")?;
    let with = |name: &str| {
        let mut adapter = redis.adapter("one");
        for sink in [Some(&mut adapter.sink), adapter.errors.as_mut()].into_iter().flatten() {
            if let AdapterSink::Redis(sink) = sink {
                sink.password_file = dir.path().join(name);
            }
        }
        if let AdapterSource::Redis(source) = &mut adapter.source {
            source.password_file = dir.path().join(name);
        }
        adapter
    };
    let failed = start(&with("wrong"), Echo::default())?;
    let failure = tokio::time::timeout(PATIENCE, failed.task).await??.unwrap_err().to_string();
    assert!(failure.contains("refuses") && !failure.contains("wrong\n"), "{failure}");
    let running = start(&with("right"), Echo::default())?;
    until("running", async || Ok(running.status.state().0 == State::Running)).await?;
    running.stop().await?;
    Ok(())
}
