//! The parts that need Python: the environment of the peers, corpora counted by the model's tokenizer, the ceiling of ONNX Runtime;
//! and the table of all servers.

use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use crate::corpus::{self, Mix, Text};
use crate::http::Form;
use crate::plan::Options;
use crate::results::Ceiling;
use crate::server::{Spec, pinned};

/// The requirements of the peers, and the modules that show that they are installed. Those of single peers
/// are separate: if they cannot be installed, these peers are skipped with the reason.
const REQUIREMENTS: [(&str, &[&str]); 4] = [
    (
        "requirements.txt",
        &["onnxruntime", "tokenizers", "fastapi", "uvicorn", "uvloop", "httptools", "orjson", "mosec"],
    ),
    ("requirements-int8.txt", &["onnx"]),
    ("requirements-pytriton.txt", &["pytriton"]),
    ("requirements-transformers.txt", &["torch", "transformers", "onnx"]),
];
/// The largest difference of scores: of the same weights, and of products in bf16 and int8.
const SAME_MAX: f64 = 1e-3;
const BF16_MAX: f64 = 0.03;
const INT8_MAX: f64 = 0.15;
const PEER_INT8_MAX: f64 = 0.5;
/// Texts of the loop without a server.
const CEILING_TEXTS: usize = 128;

/// The paths of a run.
pub(crate) struct Paths {
    pub(crate) root: PathBuf,
    pub(crate) work: PathBuf,
    venv: PathBuf,
    peers: PathBuf,
    models: PathBuf,
    /// A copy of the model without links.
    model: PathBuf,
    /// Why the peers of a requirements file are missing.
    missing: BTreeMap<&'static str, String>,
}

impl Paths {
    /// Creates the environment and the copy of the model, unless they exist.
    pub(crate) fn prepare(options: &Options) -> Result<Self> {
        let root = crate::plan::absolute(&options.root);
        let mut paths = Self {
            work: options.at(options.work.as_ref(), "target/bench"),
            venv: options.at(options.venv.as_ref(), "target/bench-venv"),
            peers: root.join("tests/bench/peers"),
            models: options.at(options.models.as_ref(), "host/nn/models"),
            model: PathBuf::new(),
            missing: BTreeMap::new(),
            root,
        };
        for path in [&mut paths.work, &mut paths.venv, &mut paths.models] {
            *path = crate::plan::absolute(path);
        }
        paths.model = paths.work.join("model");
        std::fs::create_dir_all(paths.work.join("logs"))?;
        if !paths.python().is_file() {
            eprintln!("creates {}", paths.venv.display());
            stdout_of(Command::new("python3").args(["-m", "venv"]).arg(&paths.venv))?;
        }
        for (file, modules) in REQUIREMENTS {
            let import_modules =
                || stdout_of(Command::new(paths.python()).args(["-c", &format!("import {}", modules.join(", "))]));
            let pins = std::fs::read_to_string(paths.peers.with_file_name(file))?;
            let stamp = paths.venv.join(file);
            if std::fs::read_to_string(&stamp).is_ok_and(|before| before == pins) && import_modules().is_ok() {
                continue;
            }
            eprintln!("installs tests/bench/{file}");
            let mut pip = Command::new(paths.python());
            pip.args(["-m", "pip", "install", "--progress-bar", "off", "--only-binary", ":all:", "--requirement"]);
            let installed = stdout_of(pip.arg(paths.peers.with_file_name(file))).and_then(|_| import_modules());
            match installed {
                Ok(_) => std::fs::write(&stamp, pins)?,
                Err(error) if file == "requirements.txt" => return Err(error.context(file)),
                Err(error) => {
                    let why = last_line(&format!("{error:#}"));
                    paths.missing.insert(file, format!("its packages do not install here: {why}"));
                }
            }
        }
        let source = paths.models.join("sentiment");
        stdout_of(paths.script("prepare.py").arg("model").arg(source).arg(&paths.model))?;
        if !paths.missing.contains_key("requirements-int8.txt") {
            stdout_of(paths.script("prepare.py").arg("int8").arg(&paths.model))
                .context("the int8 graph of the peer")?;
        }
        Ok(paths)
    }

    fn python(&self) -> PathBuf {
        self.venv.join("bin/python")
    }

    fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.python());
        command.arg("-B").arg(self.peers.join(name));
        command
    }

    pub(crate) fn corpus(&self, mix: Mix) -> PathBuf {
        self.work.join("corpora").join(format!("{}.jsonl", mix.name()))
    }

    /// Creates and verifies the corpora.
    pub(crate) fn corpora(&self, data: Option<&Path>, seed: u64) -> Result<BTreeMap<Mix, Vec<Text>>> {
        let sentences = corpus::gather(data, &self.root)?;
        let mut words: Vec<&str> = sentences.iter().flat_map(|sentence| sentence.split_whitespace()).collect();
        words.sort_unstable();
        words.dedup();
        let tokenizer = self.model.join("tokenizer.json");
        let mut child = self
            .script("prepare.py")
            .arg("count")
            .arg(&tokenizer)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start Python")?;
        let request = serde_json::to_vec(&words)?;
        let mut stdin = child.stdin.take().context("no standard input")?;
        stdin.write_all(&request).context("cannot ask the tokenizer")?;
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "the tokenizer did not count: {}", output.status);
        let counts: Vec<u32> = serde_json::from_slice(&output.stdout).context("not a list of counts")?;
        ensure!(counts.len() == words.len(), "{} counts for {} words", counts.len(), words.len());
        let counts: HashMap<String, u32> = words.iter().map(|word| (*word).to_owned()).zip(counts).collect();
        std::fs::create_dir_all(self.work.join("corpora"))?;
        let mut corpora = BTreeMap::new();
        let mut verify = self.script("prepare.py");
        verify.arg("verify").arg(&tokenizer);
        for mix in Mix::ALL {
            let texts = corpus::make(mix, &sentences, &counts, seed)?;
            corpus::write(&self.corpus(mix), &texts)?;
            let plain: String = texts.iter().take(CEILING_TEXTS).map(|text| format!("{}\n", text.text)).collect();
            std::fs::write(self.corpus(mix).with_extension("txt"), plain)?;
            verify.arg(self.corpus(mix));
            corpora.insert(mix, texts);
        }
        stdout_of(&mut verify).context("the corpora are not as long as they should be")?;
        Ok(corpora)
    }

    /// ONNX Runtime alone, with the `shapes` of each mix, or with all shapes if there are none yet.
    pub(crate) fn onnxruntime_ceiling(
        &self,
        round: usize,
        core: usize,
        mixes: &[Mix],
        seconds: f64,
        shapes: &mut BTreeMap<Mix, Vec<String>>,
    ) -> Result<Vec<Ceiling>> {
        #[derive(Deserialize)]
        struct CeilingOutput {
            us_per_token: BTreeMap<String, f64>,
            calls_us: Vec<f64>,
        }
        let mut ceilings = Vec::new();
        for mix in mixes {
            let mut command =
                vec![path(&self.python()), "-B".to_owned(), path(&self.peers.join("ceiling.py")), path(&self.model)];
            command.extend(["--corpus".to_owned(), format!("{}={}", mix.name(), path(&self.corpus(*mix)))]);
            command.extend(["--seconds".to_owned(), seconds.to_string()]);
            if let Some(shapes) = shapes.get(mix) {
                command.extend(["--shapes".to_owned(), shapes.join(",")]);
            }
            let text = stdout_of(&mut pinned(core, &command)).context("the ceiling of ONNX Runtime")?;
            let mut outputs: BTreeMap<String, CeilingOutput> =
                serde_json::from_str(&text).context("the ceiling's output")?;
            let output = outputs.remove(mix.name()).context("the ceiling has no such mix")?;
            let mut sorted: Vec<(&String, f64)> = output.us_per_token.iter().map(|(shape, us)| (shape, *us)).collect();
            sorted.sort_by(|a, b| a.1.total_cmp(&b.1));
            let (shape, us) = sorted.first().context("the ceiling has no shape")?;
            ceilings.push(Ceiling {
                round,
                engine: "onnxruntime".to_owned(),
                mix: *mix,
                tokens_per_s: 1e6 / us,
                shape: (*shape).clone(),
                calls_us: output.calls_us,
            });
            // Later rounds run only the two best.
            shapes.entry(*mix).or_insert_with(|| sorted.iter().take(2).map(|(shape, _)| (*shape).clone()).collect());
        }
        Ok(ceilings)
    }

    /// An engine of Weir alone, by the given command.
    pub(crate) fn ceiling(&self, command: &str, engine: &str, core: usize, mix: Mix) -> Result<Ceiling> {
        let shell = ["sh", "-c", command].map(str::to_owned);
        let texts = self.corpus(mix).with_extension("txt");
        let output = stdout_of(
            pinned(core, &shell).current_dir(&self.root).env("BENCH_TEXTS", texts).env("BENCH_PRECISION", engine),
        )?;
        let us = least_us(&output).with_context(|| format!("no `N us/token` in: {}", last_line(&output)))?;
        let (engine, shape) = (engine.to_owned(), "the command's best".to_owned());
        Ok(Ceiling { round: 0, engine, mix, tokens_per_s: 1e6 / us, shape, calls_us: alone_us(&output) })
    }

    /// All servers, or why one is skipped.
    pub(crate) fn specs(&self, options: &Options) -> Vec<(Spec, Option<String>)> {
        let weir = options.at(options.weir.as_ref(), "target/release/weir");
        let mut specs = Vec::new();
        for (engine, title, difference_max) in [
            ("f32", "Weir in f32", SAME_MAX),
            ("bf16", "Weir in bf16", BF16_MAX),
            ("int8", "Weir in int8", INT8_MAX),
            ("onnxruntime", "Weir, ONNX Runtime", SAME_MAX),
            ("tract", "Weir, tract", SAME_MAX),
        ] {
            let mut command = vec![path(&crate::plan::absolute(&weir)), "serve".to_owned()];
            command.extend(["--listen".to_owned(), "127.0.0.1:{port}".to_owned()]);
            command.extend(["--models-dir".to_owned(), path(&self.models)]);
            command.extend(options.weir_arg.iter().cloned());
            let mut environment = vec![("WEIR_MODELS_REPLICAS".to_owned(), "1".to_owned())];
            environment.extend(match engine {
                "onnxruntime" | "tract" => vec![("WEIR_MODELS_ENGINE".to_owned(), engine.to_owned())],
                precision => vec![
                    ("WEIR_MODELS_ENGINE".to_owned(), "builtin".to_owned()),
                    ("WEIR_MODELS_PRECISION".to_owned(), precision.to_owned()),
                ],
            });
            let mut missing = (!weir.is_file()).then(|| format!("{} is not built", weir.display()));
            if engine == "onnxruntime" {
                match self.onnxruntime() {
                    Ok(library) => environment.push(("WEIR_ONNXRUNTIME".to_owned(), path(&library))),
                    Err(error) => missing = missing.or(Some(format!("{error:#}"))),
                }
            }
            let spec = Spec {
                name: format!("weir-{engine}"),
                title: title.to_owned(),
                command,
                environment,
                path: options.weir_path.clone(),
                form: Form::Inputs,
                headers: options.weir_header.clone(),
                streams: true,
                engine: Some(engine),
                difference_max,
                // In a batch of Weir nothing may change.
                together_max: SAME_MAX,
            };
            specs.push((spec, missing));
        }
        for (name, title, script, url, ports, requirements) in [
            (
                "fastapi-onnxruntime",
                "FastAPI, ONNX Runtime",
                "fastapi_onnxruntime.py",
                "/classify",
                1,
                REQUIREMENTS[0].0,
            ),
            (
                "fastapi-onnxruntime-int8",
                "FastAPI, ONNX Runtime int8",
                "fastapi_onnxruntime.py",
                "/classify",
                1,
                REQUIREMENTS[1].0,
            ),
            ("mosec", "mosec, ONNX Runtime", "mosec_onnxruntime.py", "/classify", 1, REQUIREMENTS[0].0),
            (
                "pytriton",
                "PyTriton, ONNX Runtime",
                "pytriton_onnxruntime.py",
                "/v2/models/classify/generate",
                3,
                REQUIREMENTS[2].0,
            ),
            (
                "fastapi-transformers",
                "FastAPI, transformers",
                "fastapi_transformers.py",
                "/classify",
                1,
                REQUIREMENTS[3].0,
            ),
        ] {
            let mut command =
                vec![path(&self.python()), "-B".to_owned(), path(&self.peers.join(script)), path(&self.model)];
            command.extend(["{port}", "{port2}", "{port3}"].into_iter().take(ports).map(str::to_owned));
            let mut environment = vec![("BENCH_BATCH_MAX".to_owned(), options.peer_batch.to_string())];
            let is_int8 = name.ends_with("int8");
            if is_int8 {
                environment.push(("BENCH_GRAPH".to_owned(), "model_int8.onnx".to_owned()));
            }
            // Its activations have one scale for the whole batch, so that a batch changes scores.
            let (difference_max, together_max) =
                if is_int8 { (PEER_INT8_MAX, PEER_INT8_MAX) } else { (SAME_MAX, SAME_MAX) };
            let spec = Spec {
                name: name.to_owned(),
                title: title.to_owned(),
                command,
                environment,
                path: url.to_owned(),
                form: Form::Text,
                headers: Vec::new(),
                streams: false,
                engine: None,
                difference_max,
                together_max,
            };
            specs.push((spec, self.missing.get(requirements).cloned()));
        }
        specs
    }

    /// The library of the peers' wheel: the same engine for all.
    fn onnxruntime(&self) -> Result<PathBuf> {
        let script = "import onnxruntime, pathlib; print(pathlib.Path(onnxruntime.__file__).parent / 'capi')";
        let capi = stdout_of(Command::new(self.python()).args(["-c", script]))?;
        let entries = std::fs::read_dir(&capi).with_context(|| capi.clone())?;
        let mut libraries: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        libraries.retain(|path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("libonnxruntime.so"))
        });
        libraries.sort();
        libraries.pop().with_context(|| format!("{capi} has no libonnxruntime.so"))
    }

    /// Versions of the peers' packages.
    pub(crate) fn versions(&self) -> BTreeMap<String, String> {
        let script = "import json, platform, importlib.metadata as m\n\
                      names = 'onnxruntime onnx fastapi uvicorn uvloop mosec nvidia-pytriton torch transformers tokenizers'\n\
                      found = {d.name.lower(): d.version for d in m.distributions()}\n\
                      print(json.dumps({'python': platform.python_version()} | {n: found[n] for n in names.split() if n in found}))";
        let output = stdout_of(Command::new(self.python()).args(["-c", script])).unwrap_or_default();
        serde_json::from_str(&output).unwrap_or_default()
    }
}

/// The least number before `us/token`.
fn least_us(text: &str) -> Option<f64> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let numbers = words.windows(2).filter(|pair| pair[1].starts_with("us/token"));
    numbers.filter_map(|pair| pair[0].parse().ok()).filter(|us| *us > 0.0).min_by(f64::total_cmp)
}

/// The numbers after `alone_us:`, the times of single calls; none without such a line.
fn alone_us(text: &str) -> Vec<f64> {
    let line = text.lines().find_map(|line| line.trim().strip_prefix("alone_us:"));
    line.and_then(|line| serde_json::from_str(line).ok()).unwrap_or_default()
}

/// The output of a program; an error with its last lines if it fails.
pub(crate) fn stdout_of(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("cannot start {command:?}"))?;
    if !output.status.success() {
        let text = String::from_utf8_lossy(&output.stderr);
        let lines: Vec<&str> = text.lines().collect();
        bail!("{}: {}", output.status, lines[lines.len().saturating_sub(8)..].join("\n"));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn last_line(text: &str) -> String {
    text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("").trim().chars().take(300).collect()
}

fn path(path: &Path) -> String {
    path.display().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lowest_value_of_a_table_counts() {
        let table = "8 x 16  symbolic  91.5 us/token\n at most 64 in a batch: 55.1 us/token, 1.02 computed\n best: 60 us/token,";
        assert_eq!(least_us(table), Some(55.1));
        assert_eq!(least_us("0.0 us/token or none"), None);
        assert_eq!(alone_us("best: 60 us/token\n  alone_us: [1200, 850]\n9 MiB"), [1200.0, 850.0]);
        assert!(alone_us("best: 60 us/token").is_empty());
    }
}
