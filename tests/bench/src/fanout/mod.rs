//! `weir-bench fanout`: the cost of subscribers. Weir compared with nginx and nchan: memory of idle subscribers, time from publishing
//! to receiving, and the overhead of streaming. Writes FANOUT.md.

mod decoder;
pub(crate) mod load;
pub(crate) mod overhead;
mod plan;
mod report;
mod servers;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use crate::corpus::Text;
use crate::machine::machine;
use crate::peers::stdout_of;
use crate::process;
use crate::server::{RunningServer, pinned};

use load::{Dialect, FanoutResult};
use plan::{Cell, FanoutResults, SHAPES, Shape, absolute};

pub(crate) use plan::Options;

/// Channels over which idle subscribers are spread.
const IDLE_CHANNELS: usize = 100;

pub(crate) fn run(mut options: Options) -> Result<()> {
    if options.quick {
        (options.rounds, options.idle, options.subscribers, options.seconds) = (1, 500, 50, 2.0);
    }
    ensure!(options.rounds > 0 && options.idle > 0 && options.subscribers >= 10, "too little to measure");
    let (began, busy_s, own_s) = (Instant::now(), process::busy_s(), process::cpu_with_ended_s(std::process::id()));
    let machine = machine(options.server_core, options.load_core)?;
    check_file_limit(options.idle)?;
    let servers = servers::all(&options)?;
    let mut results = FanoutResults {
        machine,
        versions: versions(&options)?,
        servers: servers.iter().map(|server| (server.spec.name.clone(), server.spec.title.clone())).collect(),
        commands: servers.iter().map(|server| (server.spec.title.clone(), server.shown.clone())).collect(),
        rounds: options.rounds,
        seconds: options.seconds,
        others_cores: 0.0,
        cells: Vec::new(),
        overhead: Vec::new(),
        took_s: 0.0,
    };
    for round in 0..options.rounds {
        let mut order: Vec<&servers::Server> = servers.iter().collect();
        // ABBA.
        if round % 4 == 1 || round % 4 == 2 {
            order.reverse();
        }
        for server in order {
            println!("round {} of {}: {}", round + 1, options.rounds, server.spec.title);
            visit(&options, server, round, &mut results).with_context(|| server.spec.title.clone())?;
        }
    }
    results.took_s = began.elapsed().as_secs_f64();
    let own_s = process::cpu_with_ended_s(std::process::id()) - own_s;
    results.others_cores = (process::busy_s() - busy_s - own_s).max(0.0) / results.took_s;
    std::fs::write(options.work.join("fanout.json"), serde_json::to_vec_pretty(&results)?)?;
    let text = report::text(&results);
    println!("{text}");
    if options.quick {
        return Ok(());
    }
    let path = options.to.join("FANOUT.md");
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// All measurements of one server in one round: idle subscribers and events each with a server of their own.
fn visit(options: &Options, server: &servers::Server, round: usize, results: &mut FanoutResults) -> Result<()> {
    let start = || {
        let probe = Text { text: "A good day.".to_owned(), tokens: 4 };
        RunningServer::start(&server.spec, results.machine.server_core, &options.work, &options.root, &probe)
    };
    let running = start()?;
    let core = results.machine.load_core;
    let fan = |running: &RunningServer, subscribers: usize, shape: Option<Shape>, name: &str| -> Result<FanoutResult> {
        let Shape { channels, rate } = shape.unwrap_or(Shape { channels: IDLE_CHANNELS.min(subscribers), rate: 0.0 });
        let numbers = [running.pid() as usize, subscribers, channels].map(|number| number.to_string());
        let dialect = if server.dialect == Dialect::Weir { "weir" } else { "nchan" };
        let (address, rate, seconds) = (running.address.to_string(), rate.to_string(), options.seconds.to_string());
        let words =
            ["--address", &address, "--dialect", dialect, "--name", name, "--rate", &rate, "--seconds", &seconds];
        let more = ["--pid", &numbers[0], "--subscribers", &numbers[1], "--channels", &numbers[2]];
        child(core, "fan", words.into_iter().chain(more))
    };
    // Memory that the server allocates for the first subscribers does not belong to a connection.
    fan(&running, 50, None, "warm")?;
    let fanned = fan(&running, options.idle, None, "idle")?;
    let cell = |shape, fanned| Cell { server: server.spec.name.clone(), round, shape, fanned };
    results.cells.push(cell(None, fanned));
    drop(running);
    let running = start()?;
    fan(&running, 50, None, "warm")?;
    for (index, shape) in SHAPES.into_iter().enumerate() {
        let fanned = fan(&running, options.subscribers, Some(shape), &format!("s{index}-"))?;
        results.cells.push(cell(Some(shape), fanned));
    }
    if server.dialect == Dialect::Weir {
        let (address, seconds) = (running.address.to_string(), options.seconds.to_string());
        results.overhead.push(child(core, "overhead", ["--address", &address, "--seconds", &seconds].into_iter())?);
    }
    let panics = running.panics();
    ensure!(panics.is_empty(), "its log has: {}", panics.join(" | "));
    Ok(())
}

/// Runs this program as the load, on a core of its own.
fn child<'a, T: serde::de::DeserializeOwned>(
    core: usize,
    command: &str,
    words: impl Iterator<Item = &'a str>,
) -> Result<T> {
    let own = std::env::current_exe().context("where is this program?")?;
    let mut line = vec![own.display().to_string(), command.to_owned()];
    line.extend(words.map(str::to_owned));
    let output = stdout_of(&mut pinned(core, &line)).with_context(|| command.to_owned())?;
    serde_json::from_str(&output).context("the load's output")
}

/// The system's limit must allow both sides a file for each connection.
fn check_file_limit(connections: usize) -> Result<()> {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap_or_default();
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files")).unwrap_or_default();
    let hard: usize = line.split_whitespace().nth(1).and_then(|hard| hard.parse().ok()).unwrap_or(usize::MAX);
    ensure!(hard >= connections + 500, "a process may open {hard} files here: too few for {connections} connections");
    Ok(())
}

fn versions(options: &Options) -> Result<Vec<String>> {
    let mut versions = vec![stdout_of(Command::new(absolute(&options.weir)?).arg("--version"))?.trim().to_owned()];
    if let Some(folder) = &options.nginx {
        let of_packages =
            std::fs::read_to_string(folder.join("versions")).context("the versions of nginx and nchan")?;
        versions.extend(of_packages.lines().map(str::to_owned));
    }
    Ok(versions)
}
