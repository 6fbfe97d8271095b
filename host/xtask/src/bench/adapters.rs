//! `cargo xtask bench adapters`: the texts of each adapter per second, beside `weir run` with the same texts, into `tests/bench/ADAPTERS.md`.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use super::engine::machine;
use super::jetstream::JetStream;
use super::programs;
use crate::args::Args;
use crate::demo::DOCUMENT;
use crate::house::House;
use crate::server::Server;
use crate::sh::Process;
use crate::ui::Step;
use crate::{http, redis, sh};

/// The number of texts in a round. The start of the process takes about 0.1 s, which is less than 2 % of a round.
const TEXTS: usize = 20_000;
const TEXTS_QUICK: usize = 500;
/// Rounds, in which all are measured in turn; the median counts.
const ROUNDS: usize = 5;
/// How long one measurement may take.
const TIMEOUT: Duration = Duration::from_secs(300);
/// The interval between counts of results, which take processor time of the same machine.
const POLL: Duration = Duration::from_millis(10);
/// The goal: the rate of an adapter in percent of that of `weir run`.
const GOAL_PERCENT: f64 = 95.0;
const REPORT: &str = "tests/bench/ADAPTERS.md";

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Run,
    File,
    Checkpoint,
    Redis,
    Nats,
    Http,
    WebSocket,
}

impl Subject {
    const ALL: [Self; 7] =
        [Self::Run, Self::File, Self::Checkpoint, Self::Redis, Self::Nats, Self::Http, Self::WebSocket];

    fn name(self) -> &'static str {
        match self {
            Self::Run => "`weir run`, lines of text",
            Self::File => "file to file",
            Self::Checkpoint => "file to file, with a checkpoint",
            Self::Redis => "Redis Streams to Redis Streams",
            Self::Nats => "NATS JetStream to NATS JetStream",
            Self::Http => "server-sent events to a file",
            Self::WebSocket => "WebSocket to a file",
        }
    }
}

/// What is measured of a run.
#[derive(Debug, Clone, Copy)]
struct Sample {
    elapsed: Duration,
    /// The processor time of `weir`, and of the server that gives the texts.
    processor: Duration,
    server: Option<Duration>,
}

pub(super) fn task(house: &House, mut args: Args) -> Result<()> {
    let (quick, as_built) = (args.flag("--quick"), args.flag("--as-built"));
    args.finish()?;
    programs::build_weir(house, as_built)?;
    let (texts, rounds) = if quick { (TEXTS_QUICK, 1) } else { (TEXTS, ROUNDS) };
    let bench = Bench::new(house, texts)?;
    let mut samples = vec![Vec::new(); Subject::ALL.len()];
    let mut step = Step::begin("measure", &format!("{rounds} rounds with {texts} texts"));
    for round in 0..rounds {
        for (at, subject) in Subject::ALL.into_iter().enumerate() {
            step.show_progress(&format!("round {} of {rounds}: {}", round + 1, subject.name()));
            samples[at].push(bench.measure(subject).with_context(|| subject.name())?);
        }
    }
    step.done(&format!("{rounds} rounds"));
    let report = report(texts, rounds, &samples);
    println!("{report}");
    if !quick {
        std::fs::write(house.root.join(REPORT), report)?;
    }
    Ok(())
}

fn median(samples: &[Sample], value: impl Fn(&Sample) -> f64) -> f64 {
    let mut values: Vec<f64> = samples.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The table, with rates that include the start of the process.
fn report(texts: usize, rounds: usize, samples: &[Vec<Sample>]) -> String {
    let seconds = |samples: &[Sample]| median(samples, |sample| sample.elapsed.as_secs_f64());
    let per_text_us = |time: Duration| time.as_secs_f64() * 1e6 / texts as f64;
    let run = seconds(&samples[0]);
    let mut report = format!(
        "# Adapters: texts per second beside `weir run`\n\nWritten by `cargo xtask bench adapters` on {}: {texts} sentences through the \
         bundled sentiment model, {rounds} rounds, the median of each. Times are from the start of the process to its last result. `weir run` \
         reads lines of text from a pipe, and adapters read JSON. The servers that give the texts, and store the results of Redis Streams and NATS \
         JetStream, run on the same processor, which also has the two columns of its time: of `weir`, and of the server.\n\n\
         | | texts/s | of `weir run` | goal: {GOAL_PERCENT} % | `weir`, µs/text | server, µs/text |\n|---|---|---|---|---|---|\n",
        machine()
    );
    for (subject, samples) in Subject::ALL.into_iter().zip(samples) {
        let time = seconds(samples);
        let percent = 100.0 * run / time;
        let verdict = match subject {
            Subject::Run => "",
            _ if percent >= GOAL_PERCENT => "hit",
            _ => "missed",
        };
        let processor = median(samples, |sample| per_text_us(sample.processor));
        let server = match samples[0].server {
            None => String::new(),
            Some(_) => format!("{:.0}", median(samples, |sample| per_text_us(sample.server.unwrap_or_default()))),
        };
        let rate = texts as f64 / time;
        let _ = writeln!(
            report,
            "| {} | {rate:.0} | {percent:.0} % | {verdict} | {processor:.0} | {server} |",
            subject.name()
        );
    }
    report
}

/// The inputs, and the servers that give them.
struct Bench<'a> {
    house: &'a House,
    dir: PathBuf,
    texts: Vec<String>,
    redis: Process,
    redis_address: SocketAddr,
    nats: RefCell<JetStream>,
    /// Its channel `workflow:bench` has the texts.
    feed: Server,
}

impl<'a> Bench<'a> {
    fn new(house: &'a House, count: usize) -> Result<Self> {
        let document = std::fs::read_to_string(house.root.join(DOCUMENT))?;
        let sentences: Vec<String> =
            document.split(". ").map(|sentence| sentence.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        // Each differs, so that no cache can answer it.
        let texts: Vec<String> = (0..count).map(|n| format!("{} ({n}).", sentences[n % sentences.len()])).collect();
        let dir = house.keep().join("bench-adapters");
        // It may not exist.
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let lines: String = texts.iter().map(|text| format!("{}\n", json!({"text": text}))).collect();
        std::fs::write(dir.join("in.ndjson"), lines)?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new(redis::server(house)?);
        command.args(["--port", &port.to_string(), "--save", "", "--appendonly", "no", "--dir"]).arg(&dir);
        let redis = Process(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let redis_address = SocketAddr::from(([127, 0, 0, 1], port));
        let began = Instant::now();
        while TcpStream::connect(redis_address).is_err() {
            ensure!(began.elapsed() < TIMEOUT, "the Redis server does not listen");
            std::thread::sleep(POLL);
        }
        let nats = RefCell::new(JetStream::start(house, &dir)?);
        let events = (count + 1).to_string();
        let feed = Server::start(
            house,
            &["--set", &format!("events.events_max={events}"), "--set", "events.bytes_max=100000000"],
        )?;
        for (number, text) in texts.iter().enumerate() {
            let body = json!({"step": "s", "progress": number % 100, "message": text}).to_string();
            let mut response = http::request(feed.address, "POST", "/stream/publish/workflow/bench", Some(&body))?;
            let mut answer = String::new();
            response.body.read_to_string(&mut answer)?;
            ensure!(response.status == 200, "{answer}");
        }
        Ok(Self { house, dir, texts, redis, redis_address, nats, feed })
    }

    /// The times from the start of the process to the last result.
    fn measure(&self, subject: Subject) -> Result<Sample> {
        let (input, output) = (self.path("in.ndjson"), self.path("out"));
        for file in ["out", "checkpoint"] {
            // It may not exist.
            let _ = std::fs::remove_file(self.dir.join(file));
        }
        let to_file = ["--output-file", output.as_str(), "--quiet"];
        let feed = self.feed.address;
        match subject {
            Subject::Run => {
                let lines = self.texts.iter().map(|text| format!("{text}\n")).collect();
                let (elapsed, processor) = programs::run_times(self.house, lines)?;
                Ok(Sample { elapsed, processor, server: None })
            }
            Subject::File => {
                self.stream(&[&["file", &input, "--format", "ndjson"], &to_file[..]].concat(), None, &output)
            }
            Subject::Checkpoint => {
                let checkpoint = self.path("checkpoint");
                let arguments = ["file", &input, "--format", "ndjson", "--checkpoint", &checkpoint];
                self.stream(&[&arguments, &to_file[..]].concat(), None, &output)
            }
            Subject::Redis => self.redis(),
            Subject::Nats => self.nats(),
            Subject::Http => {
                let url = format!("http://{feed}/stream/workflow/bench");
                let arguments = ["http", "--url", &url, "--event", "workflow_progress", "--text", "/message"];
                self.stream(&[&arguments[..], &to_file[..]].concat(), Some(self.feed.id()), &output)
            }
            Subject::WebSocket => {
                let url = format!("ws://{feed}/ws");
                let subscribe = r#"{"type":"subscribe","channel":"workflow:bench"}"#;
                let errors = self.path("errors");
                let arguments = [
                    "websocket",
                    "--url",
                    &url,
                    "--subscribe",
                    subscribe,
                    "--text",
                    "/data/message",
                    "--errors-file",
                    &errors,
                ];
                self.stream(&[&arguments[..], &to_file[..]].concat(), Some(self.feed.id()), &output)
            }
        }
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    fn start(&self, arguments: &[&str]) -> Result<(Instant, Process)> {
        let mut command = sh::program(self.house, self.house.weir());
        command.arg("stream").args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let started = Instant::now();
        Ok((started, Process(command.spawn()?)))
    }

    /// `weir stream` until the output has every result.
    fn stream(&self, arguments: &[&str], server: Option<u32>, output: &str) -> Result<Sample> {
        let mut lines = Lines { path: PathBuf::from(output), file: None, count: 0 };
        self.until_written(arguments, server, || lines.count())
    }

    fn redis(&self) -> Result<Sample> {
        self.command(&[vec!["FLUSHALL"]])?;
        let records = self.records();
        let adds: Vec<Vec<&str>> =
            records.iter().map(|record| vec!["XADD", "text-input", "*", "payload", record]).collect();
        self.command(&adds)?;
        let url = format!("redis://{}/0", self.redis_address);
        let mut connection = BufReader::new(TcpStream::connect(self.redis_address)?);
        self.until_written(&["redis", "--url", &url, "--quiet"], Some(self.redis.0.id()), || {
            connection.get_mut().write_all(b"XLEN sentiment-output\r\n")?;
            let mut reply = String::new();
            connection.read_line(&mut reply)?;
            reply.trim().trim_start_matches(':').parse().with_context(|| format!("Redis answers `{reply}`"))
        })
    }

    fn nats(&self) -> Result<Sample> {
        let mut nats = self.nats.borrow_mut();
        nats.fill(&self.records())?;
        let (url, server) = (format!("nats://{}", nats.address), nats.id());
        self.until_written(&["nats", "--url", &url, "--quiet"], Some(server), || nats.count("sentiment-output"))
    }

    /// The texts as JSON.
    fn records(&self) -> Vec<String> {
        self.texts.iter().map(|text| json!({"text": text}).to_string()).collect()
    }

    /// The times of `weir stream` and of a server until `count` has reached the number of texts.
    fn until_written(
        &self,
        arguments: &[&str],
        server: Option<u32>,
        mut count: impl FnMut() -> Result<usize>,
    ) -> Result<Sample> {
        let server_time = || server.map(sh::processor_time).transpose();
        let before = server_time()?;
        let (started, mut child) = self.start(arguments)?;
        loop {
            // Read before its end is waited for, after which its times are gone.
            let processor = sh::processor_time(child.0.id())?;
            let ended = child.0.try_wait()?;
            let results = count()?;
            let elapsed = started.elapsed();
            if results >= self.texts.len() {
                let server = server_time()?.zip(before).map(|(after, before)| after.saturating_sub(before));
                return Ok(Sample { elapsed, processor, server });
            }
            if let Some(status) = ended {
                bail!("{results} results, {status}");
            }
            ensure!(elapsed < TIMEOUT, "{results} results after {elapsed:?}");
            std::thread::sleep(POLL);
        }
    }

    /// Sends commands to Redis in one go. Returns the first line of each reply.
    fn command(&self, commands: &[Vec<&str>]) -> Result<Vec<String>> {
        let mut stream = TcpStream::connect(self.redis_address)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        let mut request = String::new();
        for words in commands {
            let _ = write!(request, "*{}\r\n", words.len());
            words.iter().for_each(|word| request.push_str(&format!("${}\r\n{word}\r\n", word.len())));
        }
        let mut writer = stream.try_clone()?;
        let writing = std::thread::spawn(move || writer.write_all(request.as_bytes()));
        let mut reader = BufReader::new(&mut stream);
        let mut replies = Vec::new();
        for _ in commands {
            let mut line = String::new();
            reader.read_line(&mut line)?;
            ensure!(!line.is_empty() && !line.starts_with('-'), "Redis answers `{line}`");
            if let Some(length) = line.strip_prefix('$') {
                let mut rest = vec![0; length.trim().parse::<usize>()? + 2];
                reader.read_exact(&mut rest)?;
            }
            replies.push(line.trim().to_owned());
        }
        writing.join().map_err(|_| anyhow::anyhow!("the writer has panicked"))??;
        Ok(replies)
    }
}

impl Drop for Bench<'_> {
    fn drop(&mut self) {
        // It writes to the folder.
        let _ = self.redis.0.kill();
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

/// Counts the lines of a file that grows.
struct Lines {
    path: PathBuf,
    /// None while it does not exist.
    file: Option<File>,
    count: usize,
}

impl Lines {
    fn count(&mut self) -> Result<usize> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
                Err(error) => return Err(error.into()),
            };
        }
        let mut added = Vec::new();
        self.file.as_mut().map(|file| file.read_to_end(&mut added)).transpose()?;
        self.count += added.iter().filter(|byte| **byte == b'\n').count();
        Ok(self.count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_compared_with_the_median_of_weir_run() {
        let samples = |seconds: &[f64], server: Option<u64>| -> Vec<Sample> {
            let sample = |seconds: &f64| Sample {
                elapsed: Duration::from_secs_f64(*seconds),
                processor: Duration::from_secs_f64(seconds * 1.5),
                server: server.map(Duration::from_millis),
            };
            seconds.iter().map(sample).collect()
        };
        let all = [
            samples(&[1.0, 3.0, 2.0], None),
            samples(&[2.0; 3], None),
            samples(&[2.2; 3], None),
            samples(&[2.0; 3], Some(5)),
            samples(&[4.0; 3], Some(50)),
            samples(&[2.0; 3], Some(1)),
            samples(&[1.0; 3], Some(1)),
        ];
        let report = report(100, 3, &all);
        assert!(report.contains("| `weir run`, lines of text | 50 | 100 % |  | 30000 |  |"), "{report}");
        assert!(report.contains("| file to file, with a checkpoint | 45 | 91 % | missed | 33000 |  |"), "{report}");
        assert!(report.contains("| NATS JetStream to NATS JetStream | 25 | 50 % | missed | 60000 | 500 |"), "{report}");
        assert!(report.contains("| WebSocket to a file | 100 | 200 % | hit | 15000 | 10 |"), "{report}");
    }

    #[test]
    fn lines_of_a_file_that_grows_are_counted_once() {
        let path = std::env::temp_dir().join(format!("weir-bench-lines-{}", std::process::id()));
        // It may not exist.
        let _ = std::fs::remove_file(&path);
        let mut lines = Lines { path: path.clone(), file: None, count: 0 };
        assert_eq!(lines.count().unwrap(), 0);
        let mut file = File::create(&path).unwrap();
        file.write_all(b"a\nb").unwrap();
        assert_eq!((lines.count().unwrap(), lines.count().unwrap()), (1, 1));
        file.write_all(b"\nc\n").unwrap();
        assert_eq!(lines.count().unwrap(), 3);
        std::fs::remove_file(&path).unwrap();
    }
}
