//! `weir models`: lists, checks and fetches models; fetches an engine.

mod failure;
mod language;
mod precision;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use weir_core::wording::counted;
use weir_nn::model::{self, Progress, Report};
use weir_nn::{Choices, Isa, RegistryConfig, Selection};

use crate::arguments::{FetchedEngine, Models, ModelsCommand};
use crate::setup::beside_program;
use failure::failed;

pub(crate) fn main(arguments: &Models) -> anyhow::Result<ExitCode> {
    let root = arguments.models_dir.clone().or_else(beside_program);
    match &arguments.command {
        ModelsCommand::List { json } => list(&root.context(NO_FOLDER)?, *json),
        ModelsCommand::Check { models, engine, device, precision, json } => {
            let choices = Choices { engine: *engine, device: *device, ..Choices::default() };
            check(root.as_deref(), models, choices, precision.as_deref(), *json)
        }
        ModelsCommand::Pull { source, json } => {
            // Fetching the first model creates the folder.
            let beside = || Some(std::env::current_exe().ok()?.parent()?.join("models"));
            pull(&root.or_else(beside).context(NO_FOLDER)?, source, *json)
        }
        ModelsCommand::Engine { engine: FetchedEngine::Onnxruntime, from, json } => {
            fetch_onnxruntime(from.as_deref(), *json)
        }
    }
}

/// The configuration for loading graphs, with the instruction set of `models.isa` in the environment.
fn registry_config() -> anyhow::Result<RegistryConfig> {
    let isa = match std::env::var("WEIR_MODELS_ISA") {
        Ok(name) if name != "auto" => name.parse::<Isa>().context("WEIR_MODELS_ISA")?,
        _ => Isa::best(),
    };
    Ok(RegistryConfig { isa, ..RegistryConfig::default() })
}

const NO_FOLDER: &str = "there is no folder `models` beside the program: give one with --models-dir";

fn list(root: &Path, json: bool) -> anyhow::Result<ExitCode> {
    let mut out = std::io::stdout().lock();
    let entries = model::list(root, &registry_config()?)?;
    let width = entries.iter().map(|entry| entry.name.len()).max().unwrap_or(0);
    let mut code = ExitCode::SUCCESS;
    for entry in entries {
        if json {
            writeln!(out, "{}", listed(&entry))?;
            code = if entry.model.is_ok() { code } else { ExitCode::FAILURE };
            continue;
        }
        match entry.model {
            Ok(model) => {
                writeln!(
                    out,
                    "{:width$}  {}, {}, {}, {}",
                    entry.name,
                    model.task,
                    counted(model.labels.len(), "label"),
                    counted(model.tokens_max, "token"),
                    HumanBytes(entry.bytes),
                )?;
                if let Some(selection) = entry.selection {
                    writeln!(out, "{:width$}  {}", "", engine_of(&selection))?;
                }
            }
            Err(error) => {
                writeln!(out, "{:width$}  {error}", entry.name)?;
                code = ExitCode::FAILURE;
            }
        }
    }
    language::list(&mut out, root, json)?;
    Ok(code)
}

/// A model of the list as JSON.
fn listed(entry: &model::ModelListing) -> Value {
    match &entry.model {
        Ok(model) => json!({
            "name": entry.name, "task": model.task.to_string(), "labels": model.labels, "tokens_max": model.tokens_max,
            "bytes": entry.bytes, "engine": entry.selection.as_ref().map(engine_of),
            "device": entry.selection.as_ref().map(|selection| selection.device.to_string()),
        }),
        Err(error) => json!({ "name": entry.name, "error": error.to_string() }),
    }
}

/// The engine and the precision with the reasons of their selection, and the instruction set or else the device.
fn engine_of(selection: &Selection) -> String {
    let Selection { engine, device, reason, precision_reason, .. } = selection;
    let precision = selection.precision.map(|precision| format!(" in {precision} ({precision_reason})"));
    let place = selection.isa.map_or_else(|| device.to_string(), |isa| isa.to_string());
    format!("{engine} ({reason}){} on {place}", precision.unwrap_or_default())
}

fn check(
    root: Option<&Path>,
    names: &[String],
    choices: Choices,
    texts: Option<&Path>,
    json: bool,
) -> anyhow::Result<ExitCode> {
    let config = registry_config()?;
    let mut dirs: Vec<PathBuf> = names.iter().map(|name| find(root, name)).collect::<Result<_, _>>()?;
    if names.is_empty() {
        let root = root.context(NO_FOLDER)?;
        dirs = model::list(root, &config)?.into_iter().map(|entry| root.join(entry.name)).collect();
        dirs.extend(language::folders(root));
        if dirs.is_empty() {
            bail!("{} has no models", root.display());
        }
    }
    let mut out = std::io::stdout().lock();
    if let Some(texts) = texts {
        precision::check(&mut out, &dirs, texts, &config, json)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut code = ExitCode::SUCCESS;
    for dir in dirs {
        if language::is_folder(&dir) {
            if !language::check(&mut out, &dir, json)? {
                code = ExitCode::FAILURE;
            }
            continue;
        }
        match model::check(&dir, choices, &config) {
            Ok(report) if json => writeln!(out, "{}", checked(&dir, &report))?,
            Ok(report) => describe(&mut out, &dir, &report)?,
            Err(model::ModelError::NoDirectory(_)) if root.is_some_and(|root| root.is_dir()) => {
                let root = root.unwrap_or(Path::new("."));
                let names = names_in(root, &dir.file_name().unwrap_or_default().to_string_lossy());
                let reason = format!("there is no such directory, and {} has {names}", root.display());
                failed(&mut out, &dir, &reason, json)?;
                code = ExitCode::FAILURE;
            }
            Err(error) => {
                failed(&mut out, &dir, &error.to_string(), json)?;
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// A model that works as JSON.
fn checked(dir: &Path, report: &Report) -> Value {
    json!({
        "folder": dir.display().to_string(), "works": true, "task": report.model.task.to_string(),
        "tokens_max": report.model.tokens_max, "labels": report.model.labels, "engine": engine_of(&report.selection),
        "device": report.selection.device.to_string(), "fallback": report.selection.fallback,
        "parameter_bytes": report.parameter_bytes, "load_ms": report.load_ms, "first_run_ms": report.trial_ms,
    })
}

/// The names of the models in a folder and a suggestion, for an error about a name that is not among them.
pub(crate) fn names_in(root: &Path, name: &str) -> String {
    let listed_names = model::list(root, &RegistryConfig::default()).into_iter().flatten().map(|entry| entry.name);
    let names: Vec<String> = listed_names.chain(language::names(root)).collect();
    let suggestion = weir_config::suggest(name, names.iter().map(String::as_str));
    let suggestion = suggestion.map(|suggestion| format!("; did you mean `{suggestion}`?")).unwrap_or_default();
    if names.is_empty() { "no models".to_owned() } else { format!("{}{suggestion}", names.join(", ")) }
}

fn find(root: Option<&Path>, name: &str) -> anyhow::Result<PathBuf> {
    let beside = root.map(|root| root.join(name)).filter(|path| !name.contains('/') && path.is_dir());
    match beside {
        Some(path) => Ok(path),
        // The check itself reports a folder that does not exist.
        None => Ok(PathBuf::from(name)),
    }
}

fn describe(out: &mut impl Write, dir: &Path, report: &Report) -> std::io::Result<()> {
    let model = &report.model;
    writeln!(out, "{}: works", dir.display())?;
    writeln!(out, "  {}, at most {} tokens, with {}", model.task, model.tokens_max, engine_of(&report.selection))?;
    if let Some(reason) = &report.selection.fallback {
        writeln!(out, "  not on a GPU: {reason}")?;
    }
    if !model.labels.is_empty() {
        writeln!(out, "  labels: {}", model.labels.join(", "))?;
    }
    for input in &report.inputs {
        writeln!(out, "  input  {input}")?;
    }
    for output in &report.outputs {
        writeln!(out, "  output {output}")?;
    }
    let (weights, load, trial) = (HumanBytes(report.parameter_bytes), report.load_ms, report.trial_ms);
    writeln!(out, "  weights {weights}, loaded in {load} ms, first run {trial} ms")
}

fn pull(root: &Path, source: &str, json: bool) -> anyhow::Result<ExitCode> {
    let mut view = ProgressView::new(json);
    let pulled = model::pull(source, root, &mut |progress| view.update(progress));
    view.clear();
    print_path(&pulled?, json)?;
    Ok(ExitCode::SUCCESS)
}

fn fetch_onnxruntime(from: Option<&Path>, json: bool) -> anyhow::Result<ExitCode> {
    let folder = weir_nn::library_folders().into_iter().next().context("this user has no folder for data: set HOME")?;
    let mut view = ProgressView::new(json);
    let fetched = model::pull_onnxruntime(from, &folder, &mut |progress| view.update(progress));
    view.clear();
    print_path(&fetched?, json)?;
    Ok(ExitCode::SUCCESS)
}

fn print_path(path: &Path, json: bool) -> std::io::Result<()> {
    let path = path.display().to_string();
    let mut out = std::io::stdout();
    match json {
        true => writeln!(out, "{}", json!({ "path": path })),
        false => writeln!(out, "{path}"),
    }
}

/// Shows progress: on a terminal a bar for the current file, elsewhere a line for each step and file, as text or as JSON.
struct ProgressView {
    bar: Option<(String, ProgressBar)>,
    terminal: bool,
    json: bool,
}

impl ProgressView {
    fn new(json: bool) -> Self {
        Self { bar: None, terminal: !json && std::io::stderr().is_terminal(), json }
    }

    fn update(&mut self, progress: Progress) {
        match progress {
            Progress::Step(text) => {
                self.clear();
                match self.json {
                    true => eprintln!("{}", json!({ "step": text })),
                    false => eprintln!("{text}"),
                }
            }
            Progress::File { name, bytes, bytes_total } => {
                if self.bar.as_ref().is_none_or(|(current, _)| *current != name) {
                    self.clear();
                    let bar = match bytes_total {
                        _ if self.json => {
                            eprintln!("{}", json!({ "file": name, "bytes_total": bytes_total }));
                            ProgressBar::hidden()
                        }
                        _ if !self.terminal => {
                            eprintln!("{name}");
                            ProgressBar::hidden()
                        }
                        Some(total) => ProgressBar::new(total)
                            .with_style(style("{msg} {bar:30} {bytes}/{total_bytes}, {eta} left")),
                        None => ProgressBar::new_spinner().with_style(style("{msg} {bytes}")),
                    };
                    self.bar = Some((name.clone(), bar.with_message(name)));
                }
                if let Some((_, bar)) = &self.bar {
                    bar.set_position(bytes);
                }
            }
        }
    }

    fn clear(&mut self) {
        if let Some((_, bar)) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).expect("the template is a constant and valid")
}
