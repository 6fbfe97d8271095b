//! `cargo xtask bench gpu`: the bundled models on a GPU beside the processor, and `weir serve` beside ONNX Runtime alone, into
//! `tests/bench/GPU.md`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::engine::machine;
use super::programs;
use crate::args::Args;
use crate::demo::DOCUMENT;
use crate::house::{House, SHIPPED_MODELS};
use crate::server::{START_MAX, Server};
use crate::sh;
use crate::ui::Step;

const REQUIREMENTS: &str = "tests/bench/requirements-gpu.txt";
const REPORT: &str = "tests/bench/GPU.md";
const PEER: &str = "tests/bench/peers/onnxruntime_gpu.py";
/// The tasks of the bundled models.
const TASKS: [&str; 3] = ["sentiment", "entities", "embed"];
/// Texts, and their words in turn.
const TEXTS: usize = 2_000;
const WORDS: [usize; 6] = [6, 60, 12, 30, 8, 45];
/// The largest difference of scores and of the numbers of embeddings in f32.
const DIFFERENCE_MAX: f64 = 1e-3;
/// The share of the rate of ONNX Runtime alone that the server reaches within 100 ms at p99.
const GOAL: f64 = 0.90;
/// The share of the requests of an open loop that must be answered within 100 ms.
const GOOD_SHARE: f64 = 0.99;
/// Open loops of the search for the highest rate.
const STEPS: usize = 8;

/// The results of a task on a GPU beside those of the processor.
struct Agreement {
    task: &'static str,
    same: usize,
    texts: usize,
    difference: f64,
}

/// The rates of the server, in real tokens per second.
struct Rates {
    /// Within 100 ms at p99, and its requests per second.
    good: f64,
    requests: f64,
    stream: f64,
}

pub(super) fn task(house: &House, mut args: Args) -> Result<()> {
    let (quick, as_built) = (args.flag("--quick"), args.flag("--as-built"));
    args.finish()?;
    // Before anything is built.
    let gpu = gpu_name(sh::program(house, "nvidia-smi"))?;
    let generator = programs::build_programs(house, as_built)?;
    let bench = Bench::new(house, generator, if quick { 1.0 } else { 3.0 })?;
    let mut step = Step::begin("measure", "the results, ONNX Runtime alone, and the server");
    step.show_progress("ONNX Runtime alone");
    let alone = bench.alone()?;
    let mut agreements = Vec::new();
    for task in TASKS {
        step.show_progress(&format!("the results of {task}"));
        agreements.push(bench.agreement(task)?);
    }
    step.show_progress("the server");
    let rates = bench.rates()?;
    step.done("measured");
    let report = report(&gpu, &agreements, &alone, &rates);
    println!("{report}");
    if !quick {
        std::fs::write(house.root.join(REPORT), &report).with_context(|| format!("cannot write {REPORT}"))?;
    }
    match agreements.iter().find(|agreement| !agreement.is_close()) {
        None => Ok(()),
        Some(other) => bail!("{}: the results on the GPU differ from those of the processor", other.task),
    }
}

/// The name of the first GPU, and the version of its driver, by NVIDIA's program.
fn gpu_name(mut program: Command) -> Result<String> {
    let query = ["--query-gpu=name,driver_version", "--format=csv,noheader"];
    let output = program.args(query).output();
    let names = output.ok().filter(|output| output.status.success());
    let names = names.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    match names.lines().next() {
        Some(name) => Ok(name.to_owned()),
        None => bail!("there is no GPU to measure: `nvidia-smi` finds none on this machine"),
    }
}

struct Bench<'a> {
    house: &'a House,
    generator: PathBuf,
    python: PathBuf,
    /// The library of ONNX Runtime and the folders of the libraries of CUDA.
    environment: Vec<(&'static str, String)>,
    /// A copy of the model: ONNX Runtime refuses external data behind a link.
    model: PathBuf,
    texts: PathBuf,
    corpus: PathBuf,
    seconds: f64,
}

impl<'a> Bench<'a> {
    fn new(house: &'a House, generator: PathBuf, seconds: f64) -> Result<Self> {
        let python = programs::environment(house, "bench-gpu-venv", REQUIREMENTS)?;
        let libraries = sh::stdout_of(sh::program(house, &python).args([PEER, "libraries"]))?;
        let capi = "import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent / 'capi')";
        let capi = sh::stdout_of(sh::program(house, &python).args(["-c", capi]))?;
        let environment =
            vec![("WEIR_ONNXRUNTIME", capi.trim().to_owned()), ("LD_LIBRARY_PATH", libraries.trim().to_owned())];
        let folder = house.keep();
        let (model, texts) = (folder.join("bench-gpu-model"), folder.join("bench-gpu.txt"));
        let source = house.root.join(SHIPPED_MODELS).join("sentiment");
        let mut prepare = sh::program(house, &python);
        sh::stdout_of(prepare.args(["tests/bench/peers/prepare.py", "model"]).args([&source, &model]))?;
        let document = std::fs::read_to_string(house.root.join(DOCUMENT))?;
        let words: Vec<&str> = document.split_whitespace().collect();
        let line = |number: usize| {
            let text = (0..WORDS[number % WORDS.len()]).map(|word| words[(number * 7 + word) % words.len()]);
            text.collect::<Vec<_>>().join(" ") + "\n"
        };
        std::fs::write(&texts, (0..TEXTS).map(line).collect::<String>())?;
        let corpus = folder.join("bench-gpu.jsonl");
        Ok(Self { house, generator, python, environment, model, texts, corpus, seconds })
    }

    /// ONNX Runtime alone: tokens per second by the number of texts in a batch.
    fn alone(&self) -> Result<BTreeMap<usize, f64>> {
        let mut command = sh::program(self.house, &self.python);
        command.args([PEER, "measure"]).args([&self.model, &self.texts, &self.corpus]).arg(self.seconds.to_string());
        let measured: Value = serde_json::from_str(&sh::stdout_of(&mut command)?).context("not JSON")?;
        let rates = measured.as_object().context("no batches")?.iter().map(|(texts, measured)| {
            let rate = measured["tokens_per_s"].as_f64().context("no rate")?;
            Ok((texts.parse()?, rate))
        });
        rates.collect()
    }

    /// The results of `weir run` on a device, by index.
    fn results(&self, task: &str, device: &str) -> Result<BTreeMap<u64, Value>> {
        let mut command = sh::program(self.house, self.house.weir());
        command.args(["run", "--quiet", "--task", task]).arg(&self.texts).envs(self.environment.iter().cloned());
        let device = format!("models.device={device}");
        for set in ["models.engine=onnxruntime", "models.precision=f32", &device] {
            command.args(["--set", set]);
        }
        let lines = sh::stdout_of(&mut command).with_context(|| format!("{task} on {device}"))?;
        let results = lines.lines().map(|line| {
            let value: Value = serde_json::from_str(line).with_context(|| format!("not JSON: {line}"))?;
            Ok((value["index"].as_u64().context("no index")?, value))
        });
        let results: BTreeMap<u64, Value> = results.collect::<Result<_>>()?;
        ensure!(results.len() == TEXTS, "{task}: {} results", results.len());
        Ok(results)
    }

    fn agreement(&self, task: &'static str) -> Result<Agreement> {
        let (on_cpu, on_gpu) = (self.results(task, "cpu")?, self.results(task, "cuda")?);
        let mut agreement = Agreement { task, same: 0, texts: on_cpu.len(), difference: 0.0 };
        for (index, one) in &on_cpu {
            if let Some(difference) = difference(one, on_gpu.get(index).context("no result")?) {
                agreement.same += 1;
                agreement.difference = agreement.difference.max(difference);
            }
        }
        Ok(agreement)
    }

    fn rates(&self) -> Result<Rates> {
        let args =
            ["--set", "models.device=cuda", "--set", "models.names=[sentiment]", "--set", "infer.max_batch_size=512"];
        let steps = ["--set", "steps.entities=", "--set", "steps.summary=", "--set", "http.client_share_percent=100"];
        let mut serve = sh::program(self.house, self.house.weir());
        serve.arg("serve").args(args).args(steps).envs(self.environment.iter().cloned());
        let server = Server::spawn(&mut serve, START_MAX)?;
        let url = format!("http://{}/v1/classify", server.address);
        let closed = self.load(&["closed", "--connections", "256"], &url)?;
        let stream = self.load(&["stream"], &url)?["tokens_per_s"].as_f64().context("no rate of the stream")?;
        let (mut low, mut high) = ((0.0, 0.0), f64::INFINITY);
        let mut rate = 0.9 * closed["texts_per_s"].as_f64().context("no rate")?.max(1.0);
        for _ in 0..STEPS {
            let open = self.load(&["open", "--rate", &format!("{rate:.0}")], &url)?;
            if open["good_share"].as_f64().unwrap_or(0.0) >= GOOD_SHARE {
                low = (rate, open["tokens_per_s"].as_f64().context("no rate")?);
            } else {
                high = rate;
            }
            rate = match (low.0, high) {
                (0.0, high) => 0.7 * high,
                (low, f64::INFINITY) => 1.4 * low,
                (low, high) => (low + high) / 2.0,
            };
        }
        server.stop()?;
        Ok(Rates { good: low.1, requests: low.0, stream })
    }

    fn load(&self, words: &[&str], url: &str) -> Result<Value> {
        let mut command: Command = sh::program(self.house, &self.generator);
        command.args(words).args(["--url", url, "--seconds", &self.seconds.to_string(), "--corpus"]).arg(&self.corpus);
        serde_json::from_str(&sh::stdout_of(&mut command)?).context("not JSON")
    }
}

impl Agreement {
    fn is_close(&self) -> bool {
        self.same == self.texts && self.difference <= DIFFERENCE_MAX
    }
}

/// The largest difference of two results whose labels, entities and lengths are equal; none if they are not.
fn difference(one: &Value, other: &Value) -> Option<f64> {
    match (one, other) {
        (Value::Number(one), Value::Number(other)) => Some((one.as_f64()? - other.as_f64()?).abs()),
        (Value::Array(one), Value::Array(other)) if one.len() == other.len() => {
            one.iter().zip(other).try_fold(0.0, |most: f64, (one, other)| Some(most.max(difference(one, other)?)))
        }
        (Value::Object(one), Value::Object(other)) if one.len() == other.len() => {
            one.iter().try_fold(0.0, |most: f64, (key, one)| Some(most.max(difference(one, other.get(key)?)?)))
        }
        _ => (one == other).then_some(0.0),
    }
}

fn report(gpu: &str, agreements: &[Agreement], alone: &BTreeMap<usize, f64>, rates: &Rates) -> String {
    let mut report = format!(
        "# Models on a GPU\n\nWritten by `cargo xtask bench gpu` on {}, with {gpu}: {TEXTS} texts of 6 to 60 words.\n\n## Results\n\nThe bundled models by \
         ONNX Runtime in f32 on the GPU, compared with the processor. Goal: the same labels and entities, and numbers that differ by at \
         most {DIFFERENCE_MAX}.\n\n| | the same | largest difference | |\n|---|---|---|---|\n",
        machine()
    );
    let verdict = |is_hit: bool| if is_hit { "hit" } else { "**miss**" };
    for agreement in agreements {
        let Agreement { task, same, texts, difference } = agreement;
        let is_hit = verdict(agreement.is_close());
        let _ = writeln!(report, "| {task} | {same} of {texts} | {difference:.1e} | {is_hit} |");
    }
    report += "\n## Rates\n\nThousands of real tokens per second with the model for sentiment. ONNX Runtime alone has its texts tokenized, in batches of \
               similar lengths.\n\n| | k tokens/s |\n|---|---|\n";
    for (texts, rate) in alone {
        let _ = writeln!(report, "| ONNX Runtime alone, {texts} texts in a batch | {:.0} |", rate / 1e3);
    }
    let best = alone.values().copied().fold(0.0, f64::max);
    let share = rates.good / best.max(1.0);
    let _ = writeln!(report, "| `weir serve`, one stream | {:.0} |", rates.stream / 1e3);
    let _ = writeln!(
        report,
        "| `weir serve`, {:.0} requests/s, p99 <= 100 ms | {:.0} |\n\nGoal: {:.0} % of the best of ONNX Runtime alone at p99 <= 100 ms; {:.0} %, {}.",
        rates.requests,
        rates.good / 1e3,
        100.0 * GOAL,
        100.0 * share,
        verdict(share >= GOAL)
    );
    report
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn results_are_compared_by_labels_and_numbers() {
        let one = json!({"index": 0, "label": "positive", "score": 0.9});
        assert_eq!(difference(&one, &json!({"index": 0, "label": "positive", "score": 0.875})), Some(0.9 - 0.875));
        assert_eq!(difference(&one, &json!({"index": 0, "label": "neutral", "score": 0.9})), None);
        assert_eq!(difference(&json!([[1.0, 2.0]]), &json!([[1.0, 2.5]])), Some(0.5));
        assert_eq!(difference(&json!([1.0]), &json!([1.0, 1.0])), None);
    }

    #[test]
    fn machine_without_a_gpu_ends_with_one_sentence() {
        let sentence = "there is no GPU to measure: `nvidia-smi` finds none on this machine";
        // Without the program, with one that fails as it does without a GPU, and with one that lists nothing.
        for program in ["nvidia-smi-is-not-installed", "false", "true"] {
            assert_eq!(gpu_name(Command::new(program)).unwrap_err().to_string(), sentence, "{program}");
        }
        let mut lists = Command::new("sh");
        lists.args(["-c", "echo 'NVIDIA H200, 570.1'; echo 'NVIDIA H200, 570.1'"]);
        assert_eq!(gpu_name(lists).unwrap(), "NVIDIA H200, 570.1");
    }

    #[test]
    fn report_compares_the_server_with_the_best_batch() {
        let agreements = [
            Agreement { task: "sentiment", same: 2000, texts: 2000, difference: 1e-6 },
            Agreement { task: "entities", same: 1999, texts: 2000, difference: 0.0 },
        ];
        let alone = BTreeMap::from([(1, 10_000.0), (32, 200_000.0)]);
        let rates = Rates { good: 190_000.0, requests: 9_000.0, stream: 150_000.0 };
        let report = report("a GPU", &agreements, &alone, &rates);
        assert!(report.contains("| sentiment | 2000 of 2000 | 1.0e-6 | hit |"), "{report}");
        assert!(report.contains("| entities | 1999 of 2000 | 0.0e0 | **miss** |"), "{report}");
        assert!(report.contains("| ONNX Runtime alone, 32 texts in a batch | 200 |"), "{report}");
        assert!(report.contains("| `weir serve`, 9000 requests/s, p99 <= 100 ms | 190 |"), "{report}");
        assert!(report.contains("at p99 <= 100 ms; 95 %, hit."), "{report}");
    }
}
