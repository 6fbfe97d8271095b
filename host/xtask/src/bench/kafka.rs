//! `cargo xtask bench kafka`: Kafka to Kafka by `weir stream kafka`, by a consumer in Python and by a flow of Bytewax, into
//! `tests/bench/KAFKA.md`.

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::engine::machine;
use super::programs;
use crate::args::Args;
use crate::demo::DOCUMENT;
use crate::house::{House, SHIPPED_MODELS};
use crate::sh::Process;
use crate::ui::Step;
use crate::{python, sh};

const REQUIREMENTS: &str = "tests/bench/requirements-kafka.txt";
const REPORT: &str = "tests/bench/KAFKA.md";
/// The records of a round.
const RECORDS: usize = 5_000;
const RECORDS_QUICK: usize = 500;
/// Rounds, in which all are measured in turn; the median counts.
const ROUNDS: usize = 3;
/// The words of the texts, in turn.
const WORDS: [usize; 6] = [3, 80, 12, 30, 6, 50];
/// How long a server may take to listen.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// The goals: the rate of Weir as a multiple of that of another, and its memory as a share.
const GOAL_RATE: f64 = 2.0;
const GOAL_MEMORY: f64 = 0.5;

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Subject {
    Weir,
    Consumer,
    Flow,
}

impl Subject {
    const ALL: [Self; 3] = [Self::Weir, Self::Consumer, Self::Flow];

    fn name(self) -> &'static str {
        match self {
            Self::Weir => "`weir stream kafka`",
            Self::Consumer => "confluent-kafka and ONNX Runtime in Python",
            Self::Flow => "Bytewax and ONNX Runtime",
        }
    }
}

/// A measurement: the time from the first result to the last, and the largest memory of the process.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Measurement {
    seconds: f64,
    resident_mb: f64,
}

pub(super) fn task(house: &House, mut args: Args) -> Result<()> {
    let (quick, as_built) = (args.flag("--quick"), args.flag("--as-built"));
    args.finish()?;
    programs::build_weir(house, as_built)?;
    let (records, rounds) = if quick { (RECORDS_QUICK, 1) } else { (RECORDS, ROUNDS) };
    let bench = Bench::new(house, records)?;
    let mut measured = vec![Vec::new(); Subject::ALL.len()];
    let mut step = Step::begin("measure", &format!("{rounds} rounds with {records} records"));
    for round in 0..rounds {
        for (at, subject) in Subject::ALL.into_iter().enumerate() {
            step.show_progress(&format!("round {} of {rounds}: {}", round + 1, subject.name()));
            measured[at].push(bench.measure(subject).with_context(|| subject.name())?);
        }
    }
    step.done(&format!("{rounds} rounds"));
    let report = report(records, rounds, &mut measured);
    println!("{report}");
    if !quick {
        std::fs::write(house.root.join(REPORT), report)?;
    }
    Ok(())
}

fn report(records: usize, rounds: usize, measured: &mut [Vec<Measurement>]) -> String {
    let median = |all: &mut Vec<Measurement>| {
        all.sort_by(|one, other| one.seconds.total_cmp(&other.seconds));
        all[all.len() / 2]
    };
    let medians: Vec<Measurement> = measured.iter_mut().map(median).collect();
    let weir = medians[0];
    let mut report = format!(
        "# Kafka to Kafka\n\nWritten by `cargo xtask bench kafka` on {}: {records} records with 3 to 80 words, in 4 partitions, through the bundled \
         sentiment model, {rounds} rounds, the median of each. Times are from the first result to the last, since a broker delays the start of a group; \
         each process may use all cores. Goals of Weir: {GOAL_RATE} times the rate of the others, with {GOAL_MEMORY} of their memory.\n\n\
         | | records/s | MB | Weir's rate | Weir's memory | goals |\n|---|---|---|---|---|---|\n",
        machine()
    );
    for (subject, Measurement { seconds, resident_mb }) in Subject::ALL.into_iter().zip(&medians) {
        let rate = records as f64 / seconds;
        let _ = write!(report, "| {} | {rate:.0} | {resident_mb:.0} ", subject.name());
        if subject == Subject::Weir {
            report.push_str("| | | |\n");
            continue;
        }
        let (times, share) = (seconds / weir.seconds, weir.resident_mb / resident_mb);
        let verdict = |is_hit: bool| if is_hit { "hit" } else { "missed" };
        let (speed, memory) = (verdict(times >= GOAL_RATE), verdict(share <= GOAL_MEMORY));
        let _ = writeln!(report, "| {times:.1}x | {share:.2} | rate {speed}, memory {memory} |");
    }
    report
}

struct Bench<'a> {
    house: &'a House,
    /// The interpreter with the peers' packages.
    python: PathBuf,
    /// The program of the broker.
    broker: PathBuf,
    /// A copy of the model: ONNX Runtime refuses external data behind a link.
    model: PathBuf,
    records: PathBuf,
    count: usize,
}

impl<'a> Bench<'a> {
    fn new(house: &'a House, count: usize) -> Result<Self> {
        let broker = python::broker(house)?;
        let python = programs::environment(house, "bench-kafka-venv", REQUIREMENTS)?;
        let (model, records) = (house.keep().join("bench-kafka-model"), house.keep().join("bench-kafka.ndjson"));
        let prepare = house.root.join("tests/bench/peers/prepare.py");
        let source = house.root.join(SHIPPED_MODELS).join("sentiment");
        sh::stdout_of(sh::program(house, &python).arg(prepare).arg("model").args([&source, &model]))?;
        let document = std::fs::read_to_string(house.root.join(DOCUMENT))?;
        let words: Vec<&str> = document.split_whitespace().collect();
        let line = |number: usize| {
            let length = WORDS[number % WORDS.len()];
            let text: Vec<&str> = (0..length).map(|word| words[(number * 7 + word) % words.len()]).collect();
            format!("{}\n", json!({"text": format!("{} ({number})", text.join(" "))}))
        };
        std::fs::write(&records, (0..count).map(line).collect::<String>())?;
        Ok(Self { house, python, broker, model, records, count })
    }

    /// A command with a script of the peers.
    fn script(&self, name: &str) -> Command {
        let mut command = sh::program(self.house, &self.python);
        command.arg(self.house.root.join("tests/bench/peers").join(name)).stdin(Stdio::null());
        command
    }

    fn measure(&self, subject: Subject) -> Result<Measurement> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let (url, brokers) = (format!("tcp://{address}"), address.to_string());
        let mut broker = Command::new(&self.broker);
        broker.args(["broker", "--silent", "--storage-engine", "memory://tansu/", "--listener-url", &url]);
        broker.args(["--advertised-listener-url", &url]);
        let _broker = Process(broker.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        let began = Instant::now();
        while TcpStream::connect(address).is_err() {
            ensure!(began.elapsed() < START_TIMEOUT, "the broker does not listen");
            std::thread::sleep(Duration::from_millis(10));
        }
        let filled = self.script("kafka_topics.py").args([&brokers, "fill"]).arg(&self.records).status()?;
        ensure!(filled.success(), "the records cannot be written: {filled}");
        let mut wait = self.script("kafka_topics.py");
        let mut wait = Process(wait.args([&brokers, "wait", &self.count.to_string()]).stdout(Stdio::piped()).spawn()?);
        let mut lines = BufReader::new(wait.0.stdout.take().context("stdout")?).lines();
        ensure!(lines.next().transpose()?.as_deref() == Some("waiting"), "the results cannot be counted");
        let mut command = self.command(subject, &brokers);
        let process = Process(command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?);
        ensure!(lines.next().transpose()?.as_deref() == Some("first"), "it has written no result");
        let first = Instant::now();
        let is_done = lines.next().transpose()?.as_deref() == Some("done");
        let seconds = first.elapsed().as_secs_f64();
        ensure!(is_done, "it has not written {} results", self.count);
        let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id()))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let peak: f64 = peak.context("no VmHWM")?.trim().parse()?;
        Ok(Measurement { seconds, resident_mb: peak / 1000.0 })
    }

    fn command(&self, subject: Subject, brokers: &str) -> Command {
        let threads = std::thread::available_parallelism().map_or(1, usize::from).to_string();
        let mut command = match subject {
            Subject::Weir => {
                let mut command = sh::program(self.house, self.house.weir());
                command.args(["stream", "kafka", "--brokers", brokers, "--quiet", "--session-timeout", "6"]);
                command
            }
            Subject::Consumer => {
                let mut command = self.script("kafka_consumer.py");
                command.arg(brokers).arg(&self.model);
                command
            }
            Subject::Flow => {
                let mut command = sh::program(self.house, &self.python);
                command.args(["-m", "bytewax.run", "kafka_flow:flow"]);
                command.current_dir(self.house.root.join("tests/bench/peers"));
                command.env("BENCH_BROKERS", brokers).env("BENCH_MODEL", &self.model);
                command
            }
        };
        command.env("BENCH_THREADS", threads);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_package_of_the_peers_has_hashes() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/bench/requirements-kafka.txt");
        let text = std::fs::read_to_string(file).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).collect();
        let hashed = lines.windows(2).filter(|pair| pair[0].contains("==") && pair[1].contains("--hash=sha256:"));
        let packages = lines.iter().filter(|line| line.contains("==")).count();
        assert!(packages > 3 && hashed.count() == packages, "{text}");
    }

    #[test]
    fn weir_is_compared_with_the_median_of_each_peer() {
        let of = |seconds, resident_mb| Measurement { seconds, resident_mb };
        let mut measured = vec![
            vec![of(1.0, 100.0), of(9.0, 100.0), of(0.5, 100.0)],
            vec![of(2.0, 200.0); 3],
            vec![of(1.5, 100.0); 3],
        ];
        let report = report(100, 3, &mut measured);
        assert!(report.contains("| `weir stream kafka` | 100 | 100 | | | |"), "{report}");
        assert!(report.contains("in Python | 50 | 200 | 2.0x | 0.50 | rate hit, memory hit |"), "{report}");
        assert!(report.contains("| 67 | 100 | 1.5x | 1.00 | rate missed, memory missed |"), "{report}");
    }
}
