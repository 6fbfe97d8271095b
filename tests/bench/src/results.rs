//! The results of a run: stored as JSON, read by the report.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::corpus::Mix;
use crate::load::Measured;
use crate::plan::Plan;

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Results {
    pub(crate) quick: bool,
    pub(crate) seed: u64,
    pub(crate) took_s: f64,
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    /// The command line, and those of the servers.
    pub(crate) commands: Vec<String>,
    pub(crate) corpora: Vec<Corpus>,
    pub(crate) servers: Vec<Server>,
    pub(crate) searches: Vec<Search>,
    pub(crate) ceilings: Vec<Ceiling>,
    pub(crate) cells: Vec<Cell>,
    /// Errors during the run, one per line.
    pub(crate) notes: Vec<String>,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Machine {
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_bytes: u64,
    pub(crate) system: String,
    pub(crate) server_core: usize,
    pub(crate) load_core: usize,
    /// Whether the two are threads of one core.
    pub(crate) siblings: bool,
    pub(crate) versions: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Corpus {
    pub(crate) mix: Mix,
    pub(crate) texts: usize,
    pub(crate) mean_tokens: f64,
    pub(crate) p50_tokens: u32,
    pub(crate) max_tokens: u32,
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Server {
    pub(crate) name: String,
    pub(crate) title: String,
    pub(crate) skipped: Option<String>,
    /// From its start to its first response.
    pub(crate) start_s: f64,
    /// Largest difference of a score from the first server's; and of the same text alone and in a batch.
    pub(crate) difference: f64,
    pub(crate) together: f64,
    /// Panics and tracebacks in its log.
    pub(crate) panics: Vec<String>,
}

/// How the highest rate was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Search {
    pub(crate) server: String,
    pub(crate) mix: Mix,
    pub(crate) rate: f64,
    pub(crate) steps: Vec<Step>,
}

#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Step {
    pub(crate) rate: f64,
    pub(crate) good_per_s: f64,
    pub(crate) good_share: f64,
    pub(crate) p99_ms: f64,
}

/// The bare engine in one round.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Ceiling {
    pub(crate) round: usize,
    /// `onnxruntime`, `tract`, or a precision of the built-in engine.
    pub(crate) engine: String,
    pub(crate) mix: Mix,
    /// Real tokens per second in the best shape.
    pub(crate) tokens_per_s: f64,
    pub(crate) shape: String,
    /// Calls with the first texts of the corpus, one text each, µs.
    pub(crate) calls_us: Vec<f64>,
}

/// One measurement.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Cell {
    pub(crate) round: usize,
    pub(crate) server: String,
    pub(crate) mix: Mix,
    /// `closed-8`, `open`, `stream`, `overload-10`.
    pub(crate) shape: String,
    /// The compared value: real tokens per second; for `open` the highest rate that met the goal, 0 if none did.
    pub(crate) value: f64,
    pub(crate) measured: Measured,
}

/// How far a server may seem to exceed the engine alone, by the noise of both.
const POSSIBLE: f64 = 1.1;

impl Results {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("{} is not of this version", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, serde_json::to_string(self)?).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Removes the closed loops in which a server with the ceiling's engine seems faster than the engine alone: their window
    /// ended before a second batch, and counted work from before the window. Names them in a note.
    pub(crate) fn without_impossible(mut self) -> Self {
        let all = self.cells.len();
        let ceilings = std::mem::take(&mut self.ceilings);
        self.cells.retain(|cell| {
            let engine = cell.server.strip_prefix("weir-").unwrap_or(match cell.server.ends_with("int8") {
                // Not measured alone.
                true => return true,
                false => "onnxruntime",
            });
            let same = |one: &&Ceiling| one.engine == engine && one.mix == cell.mix;
            let of_round = ceilings.iter().filter(same).find(|one| one.round == cell.round);
            let most = of_round.or_else(|| ceilings.iter().find(same)).map_or(f64::INFINITY, |one| one.tokens_per_s);
            cell.server.ends_with("transformers") || !cell.shape.starts_with("closed") || cell.value <= POSSIBLE * most
        });
        self.ceilings = ceilings;
        let left_out = all - self.cells.len();
        if left_out > 0 {
            self.notes.push(format!(
                "{left_out} of {all} measurements are left out: closed loops that gave more than {POSSIBLE} times what the engine \
                 can do alone, because their window was shorter than one of the server's batches"
            ));
        }
        self
    }

    pub(crate) fn cells<'a>(&'a self, server: &'a str, mix: Mix, shape: &'a str) -> impl Iterator<Item = &'a Cell> {
        self.cells.iter().filter(move |cell| cell.server == server && cell.mix == mix && cell.shape == shape)
    }

    /// The ratios of two servers in the rounds that have both.
    pub(crate) fn ratios(&self, ours: &str, theirs: &str, mix: Mix, shape: &str) -> Vec<f64> {
        let other = |cell: &Cell| self.cells(theirs, mix, shape).find(|other| other.round == cell.round);
        let paired = self.cells(ours, mix, shape).filter_map(|cell| Some((cell.value, other(cell)?.value)));
        paired.filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs).collect()
    }

    /// The servers that ran.
    pub(crate) fn ran(&self) -> impl Iterator<Item = &Server> {
        self.servers.iter().filter(|server| server.skipped.is_none())
    }

    pub(crate) fn shapes(&self) -> Vec<String> {
        let closed = self.plan.connections.iter().map(|connections| format!("closed-{connections}"));
        closed.chain(["open".to_owned(), "stream".to_owned()]).collect()
    }
}

/// The median; none of an empty list.
pub(crate) fn median(values: impl IntoIterator<Item = f64>) -> Option<f64> {
    let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => None,
        odd if odd % 2 == 1 => Some(sorted[middle]),
        _ => Some((sorted[middle - 1] + sorted[middle]) / 2.0),
    }
}
