//! A whole run: preparation, comparison of outputs, search of the highest rates, then rounds over all servers in alternating order.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::corpus::{Mix, Text};
use crate::http::Form;
use crate::load::Measured;
use crate::load::compare::{Scores, difference};
use crate::machine::machine;
use crate::peers::{Paths, stdout_of};
use crate::plan::{Options, Plan};
use crate::report;
use crate::results::{Cell, Corpus, Machine, Results, Search, Server, Step};
use crate::server::{RunningServer, Spec, pinned};

/// The share of the requests of an open loop that must be answered within 100 ms: the 99th percentile.
const GOOD_SHARE: f64 = 0.99;
/// Texts whose scores are compared.
const COMPARED: usize = 64;
/// Texts of the loop with one connection, with which the bare engine is timed too.
const FIRST: usize = 128;
/// How long a server may take to finish the requests of a load; then it is restarted.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// The items of a stream after the first round.
const STREAM_ITEMS_AGAIN: usize = 2_500;
/// The most connections of an open loop.
const CONNECTIONS_MAX: usize = 4096;
/// Factors of the found rate that a round tries: upwards while the goal is met, or downwards until it is.
const UP: [f64; 3] = [1.06, 1.13, 1.2];
const DOWN: [f64; 4] = [0.95, 0.9, 0.8, 0.65];

pub(crate) fn run(options: Options) -> Result<()> {
    let began = Instant::now();
    let machine = machine(options.server_core, options.load_core)?;
    let paths = Paths::prepare(&options)?;
    let texts = paths.corpora(options.data.as_deref(), options.seed)?;
    let plan = Plan::new(&options);
    let results = Results {
        quick: options.quick,
        seed: options.seed,
        took_s: 0.0,
        machine: Machine { versions: paths.versions(), ..machine },
        commands: vec![format!("weir-bench {}", command_line(std::env::args().skip(1), &paths.root))],
        corpora: texts.iter().map(|(mix, texts)| describe(*mix, texts)).collect(),
        servers: Vec::new(),
        searches: Vec::new(),
        ceilings: Vec::new(),
        cells: Vec::new(),
        notes: Vec::new(),
        plan,
    };
    let mut run = Run { options, paths, texts, results, began };
    let specs = run.prepare_servers()?;
    run.rounds(&specs)?;
    run.results.took_s = run.began.elapsed().as_secs_f64();
    run.save()?;
    let out = run.options.at(run.options.out.as_ref(), "tests/bench");
    report::write(&run.results, &out)?;
    eprintln!("{} after {:.1} min", out.join("RESULTS.md").display(), run.results.took_s / 60.0);
    Ok(())
}

struct Run {
    options: Options,
    paths: Paths,
    texts: BTreeMap<Mix, Vec<Text>>,
    results: Results,
    began: Instant,
}

impl Run {
    fn say(&self, text: &str) {
        let s = self.began.elapsed().as_secs();
        eprintln!("{:3}:{:02}  {text}", s / 60, s % 60);
    }

    fn note(&mut self, text: String) {
        self.say(&format!("! {text}"));
        self.results.notes.push(text);
    }

    fn save(&self) -> Result<()> {
        self.results.write(&self.paths.work.join("results.json"))
    }

    fn plan(&self) -> &Plan {
        &self.results.plan
    }

    /// Each server once: its start, its scores compared with the others, its highest rate.
    fn prepare_servers(&mut self) -> Result<Vec<Spec>> {
        let mut reference: Option<(String, Vec<Scores>)> = None;
        let (mut specs, all) = (Vec::new(), self.paths.specs(&self.options));
        for name in &self.plan().servers {
            ensure!(all.iter().any(|(spec, _)| spec.name == *name), "there is no server `{name}`");
        }
        for (spec, missing) in all {
            if !self.plan().servers.contains(&spec.name) {
                continue;
            }
            let mut server = Server { name: spec.name.clone(), title: spec.title.clone(), ..Server::default() };
            let result = match missing {
                Some(why) => Err(anyhow::anyhow!(why)),
                None => self.try_out(&spec, &mut server, &mut reference),
            };
            if let Err(error) = result {
                let root = format!("{}/", self.paths.root.display());
                let why = format!("{error:#}").replace(&root, "").replace(['\n', '|'], " ");
                self.note(format!("{} is skipped: {why}", spec.name));
                server.skipped = Some(why);
            } else {
                let environment: Vec<String> =
                    spec.environment.iter().map(|(name, value)| format!("{name}={value}")).collect();
                let words = environment.into_iter().chain(spec.command.iter().cloned());
                let line = command_line(words, &self.paths.root);
                self.results.commands.push(line);
                specs.push(spec);
            }
            self.results.servers.push(server);
        }
        ensure!(!specs.is_empty(), "no server runs");
        for engine in specs.iter().filter_map(|spec| spec.engine) {
            let command = match engine {
                // Measured in every round, in Python.
                "onnxruntime" => None,
                "tract" => self.options.tract_ceiling.clone(),
                _ => self.options.builtin_ceiling.clone(),
            };
            let Some(command) = command else { continue };
            self.say(&format!("ceiling of {engine}"));
            for mix in self.plan().mixes.clone() {
                match self.paths.ceiling(&command, engine, self.results.machine.server_core, mix) {
                    Ok(ceiling) => self.results.ceilings.push(ceiling),
                    Err(error) => self.note(format!("the ceiling of {engine}, {}: {error:#}", mix.name())),
                }
            }
        }
        self.save()?;
        Ok(specs)
    }

    fn try_out(
        &mut self,
        spec: &Spec,
        server: &mut Server,
        reference: &mut Option<(String, Vec<Scores>)>,
    ) -> Result<()> {
        self.say(&format!("{}: start, compare, search", spec.name));
        let running = self.start(spec)?;
        server.start_s = running.start_s;
        let output = self.generate(&running, Mix::Mixed, &["compare", "--count", &COMPARED.to_string()])?;
        let scores: Vec<Scores> = serde_json::from_value(output["scores"].clone()).context("no scores")?;
        server.together = output["together"].as_f64().unwrap_or(f64::INFINITY);
        ensure!(server.together <= spec.together_max, "in a batch its scores are off by {:.1e}", server.together);
        if let Some((name, theirs)) = reference {
            server.difference = difference(&scores, theirs);
            let difference = server.difference;
            ensure!(difference <= spec.difference_max, "its scores are up to {difference:.1e} from those of {name}");
        } else {
            *reference = Some((spec.name.clone(), scores));
        }
        let mut running = running;
        for mix in self.plan().mixes.clone() {
            let search = self.search(&mut running, mix)?;
            self.say(&format!("{}, {}: {:.0} requests/s within 100 ms", spec.name, mix.name(), search.rate));
            self.results.searches.push(search);
        }
        server.panics.extend(running.panics());
        Ok(())
    }

    fn start(&self, spec: &Spec) -> Result<RunningServer> {
        let core = self.results.machine.server_core;
        RunningServer::start(spec, core, &self.paths.work.join("logs"), &self.paths.root, &self.texts[&Mix::Short][0])
    }

    /// Bisects the rate at which 99 of 100 requests are answered in time.
    fn search(&self, running: &mut RunningServer, mix: Mix) -> Result<Search> {
        let plan = self.plan().clone();
        let closed = self.closed(running, mix, 64, plan.search_s)?;
        self.wait_until_settled(running)?;
        // An open loop may exceed a closed one: with fewer requests at once a server pads less.
        let (mut low, mut high) = (0.0, f64::INFINITY);
        let mut candidate = 0.9 * closed.texts_per_s.max(1.0);
        let mut steps = Vec::new();
        for _ in 0..plan.search_steps {
            let measured = self.open(running, mix, candidate, plan.search_s, steps.len() as u64)?;
            let good = measured.good_share >= GOOD_SHARE;
            steps.push(step(&measured));
            self.wait_until_settled(running)?;
            *(if good { &mut low } else { &mut high }) = candidate;
            candidate = match (low, high) {
                (0.0, high) => high * 0.7,
                (low, f64::INFINITY) => low * 1.4,
                (low, high) => (low + high) / 2.0,
            };
        }
        let rate = if low > 0.0 { low } else { high * 0.7 };
        Ok(Search { server: running.spec.name.clone(), mix, rate, steps })
    }

    fn rounds(&mut self, specs: &[Spec]) -> Result<()> {
        let mut shapes = BTreeMap::new();
        if self.options.quick {
            let few = ["padded:1", "padded:4", "packed:128"].map(str::to_owned).to_vec();
            shapes.extend(self.plan().mixes.iter().map(|mix| (*mix, few.clone())));
        }
        let (rounds, limit) = (self.plan().rounds, self.options.minutes * 60.0);
        for round in 1..=rounds {
            let started = self.began.elapsed().as_secs_f64();
            self.say(&format!("round {round} of {rounds}"));
            // A B, then B A, so that slow drift affects both.
            let mut order: Vec<Option<&Spec>> = std::iter::once(None).chain(specs.iter().map(Some)).collect();
            if round % 2 == 0 {
                order.reverse();
            }
            for spec in order {
                let Some(spec) = spec else {
                    let (core, mixes) = (self.results.machine.server_core, self.plan().mixes.clone());
                    let seconds = self.plan().scaled(self.plan().ceiling_s);
                    match self.paths.onnxruntime_ceiling(round, core, &mixes, seconds, &mut shapes) {
                        Ok(ceilings) => self.results.ceilings.extend(ceilings),
                        Err(error) => self.note(format!("round {round}, ceiling: {error:#}")),
                    }
                    continue;
                };
                self.say(&format!("round {round} of {rounds}: {}", spec.name));
                if let Err(error) = self.visit(spec, round) {
                    self.note(format!("round {round}, {}: {error:#}", spec.name));
                }
            }
            self.save()?;
            let now = self.began.elapsed().as_secs_f64();
            let left = (limit - now) / ((rounds - round) as f64 * (now - started)).max(1.0);
            if round < rounds && left < 1.0 && !self.options.quick {
                self.results.plan.scale = (self.results.plan.scale * left).clamp(0.5, 1.0);
                self.say(&format!("the rest is measured {:.2} times as long", self.results.plan.scale));
            }
        }
        Ok(())
    }

    /// All measurements of one server in one round.
    fn visit(&mut self, spec: &Spec, round: usize) -> Result<()> {
        let mut running = self.start(spec)?;
        let plan = self.plan().clone();
        // Warm-up: every mix, many at once.
        for mix in &plan.mixes {
            self.closed(&running, *mix, 32, plan.scaled(0.5))?;
        }
        let (few, many): (Vec<usize>, Vec<usize>) =
            plan.connections.iter().partition(|connections| **connections < 500);
        for mix in &plan.mixes {
            for connections in &few {
                self.closed_cell(&mut running, round, *mix, *connections)?;
            }
            self.open_cell(&mut running, round, *mix)?;
        }
        self.stream_cell(&mut running, round)?;
        // Loads that leave a long queue come last.
        for mix in &plan.mixes {
            for connections in &many {
                self.closed_cell(&mut running, round, *mix, *connections)?;
            }
        }
        if spec.is_weir() {
            self.overload_cells(&mut running, round)?;
        }
        ensure!(running.is_alive(), "the server is gone");
        let panics = running.panics();
        if let Some(server) = self.results.servers.iter_mut().find(|server| server.name == spec.name) {
            server.panics.extend(panics);
        }
        Ok(())
    }

    fn closed_cell(&mut self, running: &mut RunningServer, round: usize, mix: Mix, connections: usize) -> Result<()> {
        let seconds = self.plan().scaled(self.plan().closed_s);
        let measured = self.closed(running, mix, connections, seconds)?;
        self.push(running, round, mix, &format!("closed-{connections}"), measured.tokens_per_s, measured);
        self.wait_until_settled(running)
    }

    /// The highest of some rates around the found one that keeps the goal in this round.
    fn open_cell(&mut self, running: &mut RunningServer, round: usize, mix: Mix) -> Result<()> {
        let searches = &self.results.searches;
        let search = searches.iter().find(|search| search.server == running.spec.name && search.mix == mix);
        let rate = search.context("no rate was found")?.rate;
        let seconds = self.plan().scaled(self.plan().open_s);
        let first = self.open(running, mix, rate, seconds, round as u64)?;
        self.wait_until_settled(running)?;
        let up = first.good_share >= GOOD_SHARE;
        let (mut best, mut holds) = (first, up);
        for factor in if up { UP.as_slice() } else { DOWN.as_slice() } {
            let next = self.open(running, mix, rate * factor, seconds, round as u64)?;
            self.wait_until_settled(running)?;
            let good = next.good_share >= GOOD_SHARE;
            if good || !up {
                best = next;
                holds = good;
            }
            if good != up {
                break;
            }
        }
        let value = if holds { best.tokens_per_s } else { 0.0 };
        self.push(running, round, mix, "open", value, best);
        Ok(())
    }

    fn stream_cell(&mut self, running: &mut RunningServer, round: usize) -> Result<()> {
        let plan = self.plan().clone();
        let mix = Mix::Mixed;
        let measured = if running.spec.streams {
            // The whole length once; a shorter one shows the rate as well.
            let items =
                if round == 1 { plan.stream_items } else { plan.stream_items.min(STREAM_ITEMS_AGAIN) }.to_string();
            serde_json::from_value(self.generate(running, mix, &["stream", "--items", &items, "--limit", "180"])?)?
        } else {
            // The same number of requests, 64 at a time; a slow server is stopped earlier, since only the rate counts.
            self.closed(running, mix, 64, plan.scaled(plan.stream_peer_s))?
        };
        let measured: Measured = measured;
        if let (Some(why), true) = (&measured.first_failure, running.spec.streams) {
            let why = format!("round {round}, {}, stream: {why}", running.spec.name);
            self.note(why);
        }
        self.push(running, round, mix, "stream", measured.tokens_per_s, measured);
        self.wait_until_settled(running)
    }

    fn overload_cells(&mut self, running: &mut RunningServer, round: usize) -> Result<()> {
        let plan = self.plan().clone();
        let peak = self.results.cells(&running.spec.name, Mix::Mixed, "open").find(|cell| cell.round == round);
        let peak = peak.context("no peak")?.measured.load;
        for times in &plan.overload_times {
            let (rate, seconds) = (peak * times, plan.scaled(plan.overload_s));
            // A long warm-up, so that the server's memory reaches its maximum.
            let rate = ["--rate".to_owned(), rate.to_string(), "--warm".to_owned(), "1.5".to_owned()];
            let measured = self.timed(running, Mix::Mixed, "open", &rate, seconds, 1.5, round as u64)?;
            let value = measured.good_per_s;
            self.push(running, round, Mix::Mixed, &format!("overload-{times}"), value, measured);
            self.wait_until_settled(running)?;
        }
        Ok(())
    }

    fn push(&mut self, running: &RunningServer, round: usize, mix: Mix, shape: &str, value: f64, measured: Measured) {
        let (server, shape) = (running.spec.name.clone(), shape.to_owned());
        self.results.cells.push(Cell { round, server, mix, shape, value, measured });
    }

    /// Waits for the queue to empty; a server that does not is restarted.
    fn wait_until_settled(&self, running: &mut RunningServer) -> Result<()> {
        let text = &self.texts[&Mix::Short][0];
        if running.settle(text, SETTLE_MAX).is_ok() {
            return Ok(());
        }
        if running.spec.is_weir() && !running.is_alive() {
            bail!("{} is gone", running.spec.name);
        }
        self.say(&format!("{} is started again: its queue does not empty", running.spec.name));
        let spec = running.spec.clone();
        *running = self.start(&spec)?;
        Ok(())
    }

    fn closed(&self, running: &RunningServer, mix: Mix, connections: usize, seconds: f64) -> Result<Measured> {
        let mut more = vec!["--connections".to_owned(), connections.to_string()];
        if connections == 1 {
            more.extend(["--first".to_owned(), FIRST.to_string()]);
        }
        let drain = self.plan().drain_s;
        self.timed(running, mix, "closed", &more, seconds, drain, 1)
    }

    fn open(&self, running: &RunningServer, mix: Mix, rate: f64, seconds: f64, seed: u64) -> Result<Measured> {
        let drain = self.plan().drain_s;
        self.timed(running, mix, "open", &["--rate".to_owned(), rate.to_string()], seconds, drain, seed)
    }

    #[allow(clippy::too_many_arguments, reason = "they are the generator's command line")]
    fn timed(
        &self,
        running: &RunningServer,
        mix: Mix,
        shape: &str,
        more: &[String],
        seconds: f64,
        drain: f64,
        seed: u64,
    ) -> Result<Measured> {
        let seed = (self.options.seed * 1_000 + seed).to_string();
        let (seconds, drain, warm) = (seconds.to_string(), drain.to_string(), self.plan().warm_s.to_string());
        let connections = CONNECTIONS_MAX.to_string();
        let mut arguments = vec![shape, "--seconds", &seconds, "--drain", &drain, "--seed", &seed];
        if shape == "open" {
            arguments.extend(["--connections-max", &connections]);
        }
        if !more.iter().any(|argument| argument == "--warm") {
            arguments.extend(["--warm", &warm]);
        }
        arguments.extend(more.iter().map(String::as_str));
        Ok(serde_json::from_value(self.generate(running, mix, &arguments)?)?)
    }

    /// Runs this program as the load generator, on the core of the load.
    fn generate(&self, running: &RunningServer, mix: Mix, arguments: &[&str]) -> Result<Value> {
        let own = std::env::current_exe().context("where is this program?")?;
        let mut command = vec![own.display().to_string(), arguments[0].to_owned()];
        let form = match running.spec.form {
            // A client that can set a timeout does so if the result depends on it.
            Form::Inputs if arguments[0] == "open" => "inputs-in-time",
            Form::Inputs => "inputs",
            Form::InputsInTime => "inputs-in-time",
            Form::Text => "text",
        };
        command.extend(["--url".to_owned(), running.url(), "--form".to_owned(), form.to_owned()]);
        command.extend(["--corpus".to_owned(), self.paths.corpus(mix).display().to_string()]);
        command.extend(["--pid".to_owned(), running.pid().to_string()]);
        for header in &running.spec.headers {
            command.extend(["--header".to_owned(), header.clone()]);
        }
        command.extend(arguments[1..].iter().map(|argument| (*argument).to_owned()));
        let output = stdout_of(&mut pinned(self.results.machine.load_core, &command))
            .with_context(|| format!("{} of {}", arguments[0], running.spec.name))?;
        serde_json::from_str(&output).context("the generator's output")
    }
}

fn step(measured: &Measured) -> Step {
    Step {
        rate: measured.load,
        good_per_s: measured.good_per_s,
        good_share: measured.good_share,
        p99_ms: measured.latency_ms.p99,
    }
}

fn describe(mix: Mix, texts: &[Text]) -> Corpus {
    let mut tokens: Vec<u32> = texts.iter().map(|text| text.tokens).collect();
    tokens.sort_unstable();
    let mean_tokens = tokens.iter().map(|tokens| f64::from(*tokens)).sum::<f64>() / tokens.len() as f64;
    let (p50_tokens, max_tokens) = (tokens[tokens.len() / 2], tokens[tokens.len() - 1]);
    Corpus { mix, texts: texts.len(), mean_tokens, p50_tokens, max_tokens }
}

/// A command line as typed in the repository; paths elsewhere are shortened to their last name.
fn command_line(words: impl Iterator<Item = String>, root: &Path) -> String {
    let root = format!("{}/", root.display());
    let word = |word: String| {
        let word = word.replace(&root, "");
        let (before, path) = word.split_at(word.find('=').map_or(0, |at| at + 1));
        let name = path.rsplit('/').next().unwrap_or(path);
        let short = if path.starts_with('/') { format!("{before}…/{name}") } else { word.clone() };
        if short.contains(' ') { format!("'{short}'") } else { short }
    };
    words.map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_shown_without_local_paths() {
        let words = ["A=/home/me/weir/lib.so", "/home/me/weir/target/weir", "--data", "/mnt/x/data", "a b"];
        let line = command_line(words.into_iter().map(str::to_owned), Path::new("/home/me/weir"));
        assert_eq!(line, "A=lib.so target/weir --data …/data 'a b'");
    }
}
