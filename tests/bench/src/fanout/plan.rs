//! The options, the shapes and the results of the measurement.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::load::FanoutResult;
use super::overhead::Overhead;
use crate::results::Machine;

/// The options of the measurement.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// The program to measure.
    #[arg(long, default_value = "target/release/weir")]
    pub(super) weir: PathBuf,
    /// A folder with `nginx`, `module.so` (nchan) and `versions`; without it Weir is measured alone.
    #[arg(long)]
    pub(super) nginx: Option<PathBuf>,
    #[arg(long, default_value = ".")]
    pub(super) root: PathBuf,
    #[arg(long, default_value = "target/bench")]
    pub(super) work: PathBuf,
    /// The folder of FANOUT.md.
    #[arg(long, default_value = "tests/bench")]
    pub(super) to: PathBuf,
    /// Rounds; the order of the servers changes from one to the next (ABBA).
    #[arg(long, default_value_t = 4)]
    pub(super) rounds: usize,
    /// Idle subscribers.
    #[arg(long, default_value_t = 10_000)]
    pub(super) idle: usize,
    /// Subscribers that receive events.
    #[arg(long, default_value_t = 1_000)]
    pub(super) subscribers: usize,
    /// Duration of publishing in each shape, s.
    #[arg(long, default_value_t = 8.0)]
    pub(super) seconds: f64,
    /// One more argument of `weir serve`.
    #[arg(long, allow_hyphen_values = true)]
    pub(super) weir_arg: Vec<String>,
    /// One round with fewer subscribers: a minute. It writes no FANOUT.md.
    #[arg(long)]
    pub(super) quick: bool,
    #[arg(long)]
    pub(super) server_core: Option<usize>,
    #[arg(long)]
    pub(super) load_core: Option<usize>,
}

/// The shape of a fan-out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(super) struct Shape {
    pub(super) channels: usize,
    /// Events per second on each channel.
    pub(super) rate: f64,
}

pub(super) const SHAPES: [Shape; 4] = [
    Shape { channels: 1, rate: 10.0 },
    Shape { channels: 1, rate: 100.0 },
    Shape { channels: 10, rate: 10.0 },
    Shape { channels: 10, rate: 100.0 },
];
/// One measurement of one server.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Cell {
    pub(super) server: String,
    pub(super) round: usize,
    /// None: idle.
    pub(super) shape: Option<Shape>,
    pub(super) fanned: FanoutResult,
}

/// The results of a run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct FanoutResults {
    pub(super) machine: Machine,
    pub(super) versions: Vec<String>,
    /// Names and titles, in the order of the report.
    pub(super) servers: Vec<(String, String)>,
    pub(super) commands: Vec<(String, String)>,
    pub(super) rounds: usize,
    pub(super) seconds: f64,
    /// Cores used by other processes meanwhile.
    pub(super) others_cores: f64,
    pub(super) cells: Vec<Cell>,
    pub(super) overhead: Vec<Overhead>,
    pub(super) took_s: f64,
}

pub(super) fn absolute(path: &Path) -> Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no path", path.display()))
}
