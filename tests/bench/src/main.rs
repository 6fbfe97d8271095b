//! `weir-bench`: compares Weir with alternative servers, on one machine, in one run.
//!
//! - [`rng`], [`schedule`], [`corpus`], [`histogram`]: texts, due times and latencies; pure and seeded
//! - [`http`], [`load`]: the load generator: closed and open loops, streams, comparison of scores
//! - [`transcript`], [`sessions`]: chunks per second through one stream, and many stored sessions at once
//! - [`process`], [`server`]: memory and processor time of a server; starting servers on one core and ending them
//! - [`peers`]: the Python environment, the ceiling
//! - [`plan`], [`results`], [`orchestrate`]: the plan, the results and the steps of a whole run
//! - [`goals`], [`report`], [`svg`]: RESULTS.md
//! - [`fanout`]: thousands of subscribers, and FANOUT.md
#![allow(clippy::print_stdout, reason = "a command line program prints its result to standard output")]

mod corpus;
mod fanout;
mod goals;
mod histogram;
mod http;
mod load;
mod machine;
mod orchestrate;
mod peers;
mod plan;
mod process;
mod report;
mod results;
mod rng;
mod schedule;
mod server;
mod sessions;
mod svg;
mod transcript;

use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::http::{Form, Target};
use crate::load::{Load, Times};

#[derive(Parser)]
#[command(about = "Measures Weir beside other servers.", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Closed loop: each connection sends its next request after the previous response.
    Closed {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 1)]
        connections: usize,
    },
    /// Open loop: Poisson arrivals, latency from the due time of a request.
    Open {
        #[command(flatten)]
        common: Common,
        /// Arrivals per second.
        #[arg(long)]
        rate: f64,
        #[arg(long, default_value_t = 4096)]
        connections_max: usize,
    },
    /// One NDJSON request with many items.
    Stream {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 10_000)]
        items: usize,
        /// Time limit of the whole request, s.
        #[arg(long, default_value_t = 120.0)]
        limit: f64,
    },
    /// Open loops at multiples of the server's capacity.
    Overload {
        #[command(flatten)]
        common: Common,
        /// Capacity of the server, arrivals per second.
        #[arg(long)]
        peak: f64,
        #[arg(long, value_delimiter = ',', default_value = "3,10")]
        times: Vec<f64>,
        #[arg(long, default_value_t = 4096)]
        connections_max: usize,
    },
    /// The scores of the same texts, one at a time and all at once.
    Compare {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value_t = 64)]
        count: usize,
        /// The labels, in the order in which a peer lists its scores.
        #[arg(long, value_delimiter = ',', default_value = "negative,neutral,positive")]
        labels: Vec<String>,
        /// Another server to compare with: URL, and its form after `#` when it is not `text`.
        #[arg(long)]
        with: Vec<String>,
    },
    /// Chunks of a transcript through one request in both directions.
    Transcript(transcript::Options),
    /// Many stored sessions at once: their memory, and a soak test.
    Sessions(sessions::Options),
    /// The whole comparison: servers, rounds, RESULTS.md.
    Run(Box<plan::Options>),
    /// Thousands of subscribers, compared with nginx and nchan: FANOUT.md.
    Fanout(Box<fanout::Options>),
    /// The load of `fanout`: subscribers and publishers of one server.
    Fan(fanout::load::FanoutLoad),
    /// The load of `fanout`: the same work as a stream and as one response.
    Overhead(fanout::overhead::OverheadLoad),
    /// Writes RESULTS.md again, from the results of a run.
    Report {
        #[arg(long, default_value = "target/bench/results.json")]
        results: PathBuf,
        #[arg(long, default_value = "tests/bench")]
        to: PathBuf,
    },
}

/// The options of every shape of load.
#[derive(Args)]
struct Common {
    /// `http://127.0.0.1:8080/v1/classify`
    #[arg(long)]
    url: String,
    #[arg(long, value_enum, default_value = "inputs")]
    form: Form,
    /// JSON lines with `text` and `tokens`.
    #[arg(long)]
    corpus: PathBuf,
    /// Use only the first N texts.
    #[arg(long)]
    first: Option<usize>,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Warm-up, s.
    #[arg(long, default_value_t = 0.5)]
    warm: f64,
    /// The measured window, s.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Time for open requests at the end, s.
    #[arg(long, default_value_t = 2.0)]
    drain: f64,
    /// A response within this time is good, ms.
    #[arg(long, default_value_t = http::SLO_MS)]
    slo_ms: f64,
    /// The server's process, whose memory and processor time are reported.
    #[arg(long)]
    pid: Option<u32>,
    /// A header line, `name: value`.
    #[arg(long)]
    header: Vec<String>,
}

impl Common {
    fn load(self) -> Result<Rc<Load>> {
        let seconds = [self.warm, self.seconds, self.drain];
        ensure!(seconds.iter().all(|s| (0.0..=3600.0).contains(s)), "times are 0 to 3600 s");
        let [warm, window, drain] = seconds.map(Duration::from_secs_f64);
        let target = Target::parse(&self.url, self.form, self.header)?;
        let mut texts = corpus::read(&self.corpus)?;
        texts.truncate(self.first.unwrap_or(usize::MAX).max(1));
        let mut load = Load::new(target, texts, self.seed, Times { warm, window, drain });
        load.slo = Duration::from_secs_f64(self.slo_ms / 1e3);
        load.pid = self.pid;
        Ok(Rc::new(load))
    }
}

fn main() -> Result<()> {
    let command = Cli::parse().command;
    match command {
        Command::Run(options) => return orchestrate::run(*options),
        Command::Fanout(options) => return fanout::run(*options),
        Command::Transcript(options) => {
            println!("{}", transcript::run(&options)?);
            return Ok(());
        }
        Command::Report { results, to } => {
            let results = results::Results::read(&results)?;
            return report::write(&results, &to);
        }
        _ => {}
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("no runtime")?;
    let value = runtime.block_on(generate(command))?;
    println!("{value}");
    Ok(())
}

async fn generate(command: Command) -> Result<serde_json::Value> {
    Ok(match command {
        Command::Closed { common, connections } => {
            json!(load::closed::run(common.load()?, connections.max(1)).await)
        }
        Command::Open { common, rate, connections_max } => {
            ensure!(rate > 0.0 && connections_max > 0, "a rate and a number of connections are more than 0");
            json!(load::open::run(common.load()?, rate, connections_max).await)
        }
        Command::Stream { common, items, limit } => {
            json!(load::stream::run(common.load()?, items, Duration::from_secs_f64(limit)).await)
        }
        Command::Overload { common, peak, times, connections_max } => {
            let load = common.load()?;
            let mut runs = Vec::new();
            for times in times {
                ensure!(peak * times > 0.0, "a rate is more than 0");
                let measured = load::open::run(load.clone(), peak * times, connections_max).await;
                runs.push(json!({"times": times, "measured": measured}));
            }
            json!({"peak": peak, "runs": runs})
        }
        Command::Compare { common, count, labels, with } => {
            let (seed, times) =
                (common.seed, Times { warm: Duration::ZERO, window: Duration::ZERO, drain: Duration::ZERO });
            let load = common.load()?;
            let [alone, together] = load::compare::run(load.clone(), count, &labels).await?;
            let mut others = Vec::new();
            for other in with {
                let (url, form) = other.split_once('#').unwrap_or((&other, "text"));
                let form = if form == "inputs" { Form::Inputs } else { Form::Text };
                let target = Target::parse(url, form, Vec::new())?;
                let theirs = Rc::new(Load::new(target, load.texts.clone(), seed, times));
                let [theirs, _] = load::compare::run(theirs, count, &labels).await?;
                let difference = load::compare::difference(&alone, &theirs);
                others.push(json!({"url": url, "difference": finite(difference)}));
            }
            let within = load::compare::difference(&alone, &together);
            json!({"scores": alone, "together": finite(within), "with": others})
        }
        Command::Fan(fan) => json!(fanout::load::run(fan).await?),
        Command::Overhead(work) => json!(fanout::overhead::run(work).await?),
        Command::Sessions(options) => sessions::run(options).await?,
        Command::Run(_) | Command::Fanout(_) | Command::Report { .. } | Command::Transcript(_) => {
            unreachable!("answered before")
        }
    })
}

/// JSON has no infinity.
fn finite(value: f64) -> f64 {
    value.min(1e9)
}
