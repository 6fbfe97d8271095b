//! The plan of a run: its options, and the duration of each part.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::corpus::Mix;

/// The options of `weir-bench run`.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Options {
    /// A small subset that takes less than eight minutes.
    #[arg(long)]
    pub(crate) quick: bool,
    /// Rounds; every round measures every server, in alternating order (ABBA).
    #[arg(long)]
    pub(crate) rounds: Option<usize>,
    /// Approximate time of a full run, minutes: measurements are shortened, to a half at most, if it would take longer.
    #[arg(long, default_value_t = 35.0)]
    pub(crate) minutes: f64,
    /// Only these servers: weir-f32, weir-bf16, weir-int8, weir-onnxruntime, weir-tract, fastapi-onnxruntime,
    /// fastapi-onnxruntime-int8, mosec, pytriton, fastapi-transformers; by default all but weir-onnxruntime and weir-tract.
    #[arg(long, value_delimiter = ',')]
    pub(crate) only: Vec<String>,
    #[arg(long, default_value_t = 1)]
    pub(crate) seed: u64,
    /// The repository.
    #[arg(long, default_value = ".")]
    pub(crate) root: PathBuf,
    /// Folder of corpora, logs and results; by default target/bench.
    #[arg(long)]
    pub(crate) work: Option<PathBuf>,
    /// Folder of RESULTS.md and its plots; by default tests/bench.
    #[arg(long)]
    pub(crate) out: Option<PathBuf>,
    /// The Python environment of the peers, created if missing; by default target/bench-venv.
    #[arg(long)]
    pub(crate) venv: Option<PathBuf>,
    /// The `weir` program; by default target/release/weir.
    #[arg(long)]
    pub(crate) weir: Option<PathBuf>,
    /// One more argument of `weir serve`.
    #[arg(long, allow_hyphen_values = true)]
    pub(crate) weir_arg: Vec<String>,
    /// The path of Weir's requests, with a query where one is wanted.
    #[arg(long, default_value = "/v1/classify")]
    pub(crate) weir_path: String,
    /// One more header line of requests to Weir, `name: value`.
    #[arg(long)]
    pub(crate) weir_header: Vec<String>,
    /// The folder of Weir's models; by default host/nn/models.
    #[arg(long)]
    pub(crate) models: Option<PathBuf>,
    /// A folder of JSON lines with `text` or `tokens`, whose sentences are used; by default the texts of demo/.
    #[arg(long, env = "WEIR_DATA")]
    pub(crate) data: Option<PathBuf>,
    /// A shell command that measures tract alone, run once for each mix on the server's core, in the repository. It prints
    /// lines with `N us/token` (real tokens), of which the least counts, and one `alone_us: [N, …]`: the microseconds of calls
    /// with one text. `$BENCH_TEXTS` is a file with a text in each line.
    #[arg(long, env = "WEIR_BENCH_TRACT_CEILING")]
    pub(crate) tract_ceiling: Option<String>,
    /// The same for the built-in engine, in the precision `$BENCH_PRECISION`: `f32`, `bf16` or `int8`.
    #[arg(long, env = "WEIR_BENCH_BUILTIN_CEILING")]
    pub(crate) builtin_ceiling: Option<String>,
    /// The most texts that a peer batches.
    #[arg(long, default_value_t = 32)]
    pub(crate) peer_batch: usize,
    /// The core of the servers; by default the first that may be used.
    #[arg(long)]
    pub(crate) server_core: Option<usize>,
    /// The core of the load; by default one that shares nothing with the servers' core, if there is one.
    #[arg(long)]
    pub(crate) load_core: Option<usize>,
}

impl Options {
    pub(crate) fn at(&self, given: Option<&PathBuf>, default: &str) -> PathBuf {
        given.map_or_else(|| self.root.join(default), |path| absolute(path))
    }
}

/// The working directory of the program.
pub(crate) fn absolute(path: &Path) -> PathBuf {
    std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf())
}

/// Durations and counts, s.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) rounds: usize,
    pub(crate) mixes: Vec<Mix>,
    pub(crate) connections: Vec<usize>,
    pub(crate) warm_s: f64,
    pub(crate) closed_s: f64,
    pub(crate) open_s: f64,
    pub(crate) drain_s: f64,
    pub(crate) search_steps: usize,
    pub(crate) search_s: f64,
    pub(crate) stream_items: usize,
    /// Time limit of peers, which have no streams, for as many requests.
    pub(crate) stream_peer_s: f64,
    pub(crate) overload_s: f64,
    pub(crate) overload_times: Vec<f64>,
    pub(crate) ceiling_s: f64,
    /// Factor on all of the above, to stay within the given time.
    pub(crate) scale: f64,
    pub(crate) servers: Vec<String>,
}

impl Plan {
    pub(crate) fn new(options: &Options) -> Self {
        let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let mut plan = if options.quick {
            Self {
                rounds: 2,
                mixes: vec![Mix::Mixed],
                connections: vec![1, 64],
                warm_s: 0.3,
                closed_s: 0.8,
                open_s: 1.2,
                drain_s: 0.5,
                search_steps: 4,
                search_s: 0.8,
                stream_items: 1_000,
                stream_peer_s: 2.0,
                overload_s: 1.5,
                overload_times: vec![10.0],
                ceiling_s: 0.3,
                scale: 1.0,
                servers: names(&["weir-f32", "fastapi-onnxruntime", "weir-int8", "fastapi-onnxruntime-int8", "mosec"]),
            }
        } else {
            Self {
                rounds: 5,
                mixes: Mix::ALL.to_vec(),
                connections: vec![1, 8, 64, 512],
                warm_s: 0.3,
                closed_s: 1.0,
                open_s: 1.5,
                drain_s: 0.5,
                search_steps: 7,
                search_s: 1.0,
                stream_items: 10_000,
                stream_peer_s: 5.0,
                overload_s: 3.0,
                overload_times: vec![3.0, 10.0],
                ceiling_s: 0.5,
                scale: 1.0,
                servers: names(&[
                    "weir-f32",
                    "fastapi-onnxruntime",
                    "weir-int8",
                    "fastapi-onnxruntime-int8",
                    "mosec",
                    "weir-bf16",
                    "pytriton",
                    "fastapi-transformers",
                ]),
            }
        };
        plan.rounds = options.rounds.unwrap_or(plan.rounds).max(1);
        if !options.only.is_empty() {
            plan.servers.clone_from(&options.only);
        }
        plan
    }

    /// Seconds of a part, scaled.
    pub(crate) fn scaled(&self, seconds: f64) -> f64 {
        seconds * self.scale
    }
}
