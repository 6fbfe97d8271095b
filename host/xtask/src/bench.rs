//! `cargo xtask bench`: the time to start, to the first event and for a long text, then a comparison with other servers
//! ([`compare`]); `cargo xtask bench engine`: the kernels ([`engine`]); `cargo xtask bench fanout`: thousands of subscribers
//! ([`fanout`]); `cargo xtask bench generate`: the engine of language models ([`generate`]); `cargo xtask bench path`: the stages of a request ([`path`]);
//! `cargo xtask bench adapters`: adapters beside `weir run` ([`adapters`]); `cargo xtask bench kafka`: Kafka to Kafka beside Python ([`kafka`]);
//! `cargo xtask bench sessions`: transcripts ([`sessions`]); `cargo xtask bench gpu`: models on a GPU ([`gpu`]).

mod adapters;
mod compare;
mod engine;
mod fanout;
mod generate;
mod gpu;
mod jetstream;
mod kafka;
mod path;
mod programs;
mod sessions;

use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::args::Args;
use crate::demo::{DOCUMENT, ms};
use crate::house::House;
use crate::http;
use crate::server::Server;
use crate::ui::Step;
use programs::{build_weir, run_time};

pub(crate) const USAGE: &str = "\
Measures on this machine: the time from exec until `/readyz` is 200, from a request to its first and to its last event, and the
lines per second of `weir run`. Prints medians. Then compares Weir with other servers (tests/bench) and writes
tests/bench/RESULTS.md with its plots: about 35 minutes, and longer the first time, for their Python packages.

`cargo xtask bench fanout` measures channels: the memory of 10,000 idle subscribers, and the time from publishing to receiving
for 1,000, compared with nginx and nchan (from Debian, fetched and unpacked under target), and writes tests/bench/FANOUT.md:
about 8 minutes. It takes --quick, --as-built (measures target/release/weir as it is) and -- OPTIONS of `weir-bench fanout`.

`cargo xtask bench engine` measures the kernels of the built-in engine, by instruction set and model size, beside ONNX Runtime and
the peak of the processor, and writes tests/bench/ENGINE.md: about six minutes. It takes --quick (one round).

`cargo xtask bench generate` measures the engine of language models beside llama-server on the same file, and writes
tests/bench/GENERATE.md: about ten minutes. It takes --quick (one round with one thread, fewer sequences).

`cargo xtask bench adapters` measures the texts per second of adapters (files, Redis Streams, NATS JetStream, server-sent events, a WebSocket)
beside `weir run` on the same texts, and writes tests/bench/ADAPTERS.md: about six minutes. It takes --quick and --as-built.

`cargo xtask bench kafka` measures `weir stream kafka` from topic to topic beside a consumer in Python (confluent-kafka and ONNX Runtime) and a flow of
Bytewax, and writes tests/bench/KAFKA.md: about five minutes. It takes --quick and --as-built.

`cargo xtask bench sessions` measures transcripts: 10,000 stored sessions at once, their memory and a minute of chunks for them,
then the chunks per second of one request to `/v1/transcript` and of one to a session: about two minutes. It takes --quick and
--as-built.

`cargo xtask bench gpu` needs a GPU of NVIDIA. It compares the results of the bundled models on it with those of the processor, and the most
requests that `weir serve` answers within 100 ms at p99 with ONNX Runtime alone in Python (its packages are 3 GB), and writes
tests/bench/GPU.md: about five minutes. It takes --quick and --as-built.

`cargo xtask bench path` prints the time of each stage of a request, and the processor time outside of the engine for
each request and each item of a stream, on one core and on all: about a minute. It takes --quick, --as-built and -- OPTIONS of the
example `path` of host/edge (--texts FILE, --set KEY=VALUE).

Options:
  --rounds N     number of measurements (default 5)
  --quick        a small subset of the comparison: less than eight minutes
  --no-compare   no comparison
  -- OPTIONS     options of `weir-bench run`; `-- --help` lists them

Environment:
  WEIR_DATA   a folder of JSON lines with the sentences to send; by default the texts of demo/";

/// Most rounds.
const ROUNDS_MAX: usize = 1_000;
/// The lines of one `weir run`.
const RUN_LINES: usize = 1_000;

pub(crate) fn task(house: &House, mut args: Args) -> Result<()> {
    if args.word("adapters") {
        return adapters::task(house, args);
    }
    if args.word("engine") {
        return engine::task(house, args);
    }
    if args.word("fanout") {
        return fanout::task(house, args);
    }
    if args.word("generate") {
        return generate::task(house, args);
    }
    if args.word("gpu") {
        return gpu::task(house, args);
    }
    if args.word("kafka") {
        return kafka::task(house, args);
    }
    if args.word("path") {
        return path::task(house, args);
    }
    if args.word("sessions") {
        return sessions::task(house, args);
    }
    let (mut args, more) = args.split();
    let (is_quick, skips_comparison) = (args.flag("--quick"), args.flag("--no-compare"));
    let rounds = match args.value("--rounds")? {
        None => 5,
        Some(text) => match text.parse() {
            Ok(rounds @ 1..=ROUNDS_MAX) => rounds,
            _ => bail!("`--rounds` is `{text}`, and takes 1 to {ROUNDS_MAX}"),
        },
    };
    args.finish()?;
    build_weir(house, false)?;

    let path = house.root.join(DOCUMENT);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {DOCUMENT}"))?;
    let (mut listening, mut ready) = (Vec::new(), Vec::new());
    let (mut first, mut last) = (Vec::new(), Vec::new());
    let mut rates = Vec::new();
    let mut step = Step::begin("measure", &format!("{rounds} rounds"));
    for round in 1..=rounds {
        step.show_progress(&format!("round {round} of {rounds}: start and stream"));
        let server = Server::start(house, &[])?;
        listening.push(server.listening_after);
        ready.push(server.ready_after);
        let (to_first, to_last) = stream(&server, text.trim())?;
        first.push(to_first);
        last.push(to_last);
        server.stop()?;
        step.show_progress(&format!("round {round} of {rounds}: weir run"));
        rates.push(run_time(house, run_input(&text))?);
    }
    step.done(&format!("{rounds} rounds"));

    let rate = |time: Duration| RUN_LINES as f64 / time.as_secs_f64();
    println!("\n{:<52}{:>12}{:>12}{:>12}", "", "median", "best", "worst");
    for (name, mut times) in [
        ("exec to listening", listening),
        ("exec to readyz", ready),
        ("/process-stream, all steps: first event", first),
        ("/process-stream, all steps: last event", last),
    ] {
        times.sort();
        println!("{name:<52}{:>12}{:>12}{:>12}", ms(median(&times)), ms(times[0]), ms(times[times.len() - 1]));
    }
    rates.sort();
    println!(
        "{:<52}{:>12.0}{:>12.0}{:>12.0}",
        format!("weir run --task sentiment: lines/s ({RUN_LINES} sentences)"),
        rate(median(&rates)),
        rate(rates[0]),
        rate(rates[rates.len() - 1])
    );
    if skips_comparison { Ok(()) } else { compare::run(house, is_quick, &more) }
}

/// The times from the request to the first and to the last event.
fn stream(server: &Server, text: &str) -> Result<(Duration, Duration)> {
    let body = json!({"text": text, "include_entities": true}).to_string();
    let started = Instant::now();
    let response = http::request(server.address, "POST", "/process-stream", Some(&body))?;
    let mut first = None;
    let mut line = String::new();
    for next in BufReader::new(response.body).lines() {
        line = next.context("the stream was cut off")?;
        first.get_or_insert_with(|| started.elapsed());
    }
    let last = started.elapsed();
    let event: Value = serde_json::from_str(&line).with_context(|| format!("not an event: {line}"))?;
    if response.status != 200 || event["status"] != "completed" {
        bail!("the stream ended with: {line}");
    }
    Ok((first.unwrap_or(last), last))
}

/// [`RUN_LINES`] sentences of a text, each on a line.
fn run_input(text: &str) -> String {
    let sentences: Vec<&str> = text.split(". ").map(str::trim).filter(|sentence| !sentence.is_empty()).collect();
    // Each line differs, so that no cache can answer it.
    (0..RUN_LINES)
        .map(|number| format!("{} ({number}).\n", sentences[number % sentences.len()].replace('\n', " ")))
        .collect()
}

/// The median of sorted times.
fn median(sorted: &[Duration]) -> Duration {
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn median_of_an_even_count_is_the_mean_of_the_middle_two() {
        let times = |ms: &[u64]| -> Vec<Duration> { ms.iter().copied().map(Duration::from_millis).collect() };
        assert_eq!(median(&times(&[1, 2, 9])), Duration::from_millis(2));
        assert_eq!(median(&times(&[1, 2, 4, 9])), Duration::from_millis(3));
    }
}
