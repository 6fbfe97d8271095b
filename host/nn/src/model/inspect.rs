//! Lists the models of a directory, and checks that one works.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::{ModelDir, ModelError, Task};
use crate::builtin::safetensors_file;
use crate::config::RegistryConfig;
use crate::engine::{Choices, Dimension, TensorInfo};
use crate::graph::Graph;
use crate::registry::Registry;
use crate::selection::Selection;
use crate::tensor::{Tensor, TensorType};
use crate::wording::{listed, quoted};

/// The tokens of the trial run of [`check`].
const TRIAL_TOKENS: u32 = 8;

/// A directory that looks like a model's.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelListing {
    /// The directory's name.
    pub name: String,
    /// The model, or why it cannot be read.
    pub model: Result<ModelDir, ModelError>,
    /// The engine that `models.engine = "auto"` selects on the CPU; `None` when no engine can serve it.
    pub selection: Option<Selection>,
    /// The size of its files in bytes, targets of symbolic links included.
    pub bytes: u64,
}

/// The result of [`check`].
#[derive(Clone, Debug, PartialEq)]
pub struct Report {
    /// The directory.
    pub model: ModelDir,
    /// The engine that ran it, and the reason of the selection.
    pub selection: Selection,
    /// The graph's inputs.
    pub inputs: Vec<TensorInfo>,
    /// The graph's outputs.
    pub outputs: Vec<TensorInfo>,
    /// The dimensions of the outputs in the trial run, one text of a few tokens.
    pub trial_dimensions: Vec<Vec<u32>>,
    /// The weights, in bytes as the files store them.
    pub parameter_bytes: u64,
    /// The time of loading, in milliseconds.
    pub load_ms: u64,
    /// The time of the trial run, in milliseconds.
    pub trial_ms: u64,
}

/// The models in a directory, by name: each subdirectory with a `config.json`, a `model.safetensors` (or its index) or an ONNX file. None is loaded.
///
/// # Errors
/// When the directory cannot be read. A broken model is listed with its error.
pub fn list(root: &Path, config: &RegistryConfig) -> Result<Vec<ModelListing>, ModelError> {
    let unreadable = |e: std::io::Error| match e.kind() {
        std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory => ModelError::NoDirectory(root.to_owned()),
        _ => ModelError::Unreadable { dir: root.to_owned(), file: ".".to_owned(), reason: e.to_string() },
    };
    let mut listings = BTreeMap::new();
    for entry in std::fs::read_dir(root).map_err(unreadable)? {
        let entry = entry.map_err(unreadable)?;
        let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
        let has_model_file = ["config.json", "model.onnx", "onnx/model.onnx"].iter().any(|f| path.join(f).is_file())
            || safetensors_file(&path).is_some();
        let is_language_model = path.join(super::LANGUAGE_MODEL).is_file();
        if has_model_file && !is_language_model && !name.starts_with('.') {
            let model = ModelDir::open(&path);
            let selection = Selection::of(&path, Choices::default(), config);
            let selection = selection.ok().filter(|_| model.is_ok());
            let listing = ModelListing { name: name.clone(), model, selection, bytes: directory_bytes(&path, 0) };
            listings.insert(name, listing);
        }
    }
    Ok(listings.into_values().collect())
}

fn directory_bytes(path: &Path, depth: u32) -> u64 {
    /// Deeper than any model; a bound is needed because links may form a cycle.
    const DEPTH_MAX: u32 = 4;
    let entries = std::fs::read_dir(path).into_iter().flatten().flatten();
    let size = |path: PathBuf| match std::fs::metadata(&path) {
        Ok(metadata) if metadata.is_file() => metadata.len(),
        Ok(metadata) if metadata.is_dir() && depth < DEPTH_MAX => directory_bytes(&path, depth + 1),
        _ => 0,
    };
    entries.map(|entry| size(entry.path())).sum()
}

/// Opens a model, loads its graph and runs it once on a synthetic text.
///
/// # Errors
/// When the directory is invalid, the graph cannot be loaded or run, or its outputs are not finite or do not agree with the labels of
/// `config.json`.
pub fn check(path: &Path, choices: Choices, config: &RegistryConfig) -> Result<Report, ModelError> {
    let model = ModelDir::open(path)?;
    let registry = Registry::new(RegistryConfig { plan_after_uses: 0, ..config.clone() });
    let selection = Selection::of(path, choices, registry.config())?;
    let started = Instant::now();
    registry.insert_selection("model", &selection)?;
    let graph = registry.graph("model")?;
    let load_ms = started.elapsed().as_millis() as u64;
    let started = Instant::now();
    let outputs = trial(&graph).map_err(|reason| contradiction(&model, reason))?;
    let trial_ms = started.elapsed().as_millis() as u64;
    check_outputs(&model, &outputs).map_err(|reason| contradiction(&model, reason))?;
    Ok(Report {
        selection,
        inputs: graph.inputs().to_vec(),
        outputs: graph.outputs().to_vec(),
        trial_dimensions: outputs.into_iter().map(|(_, output)| output.dimensions).collect(),
        parameter_bytes: graph.parameter_bytes(),
        load_ms,
        trial_ms,
        model,
    })
}

fn contradiction(model: &ModelDir, reason: String) -> ModelError {
    let file = model.graph.strip_prefix(&model.path).unwrap_or(&model.graph).display().to_string();
    ModelError::Contradiction { dir: model.path.clone(), file, reason }
}

fn trial(graph: &Arc<Graph>) -> Result<Vec<(String, Tensor)>, String> {
    let mut sizes: BTreeMap<&str, u32> = BTreeMap::new();
    let mut inputs = Vec::new();
    for info in graph.inputs() {
        let mut dimensions = Vec::new();
        for (axis, dimension) in info.dimensions.iter().flatten().enumerate() {
            // The first axis is the batch (or the texts of a packed sequence), any other the tokens.
            let free = if axis == 0 { 1 } else { TRIAL_TOKENS };
            dimensions.push(match dimension {
                Dimension::Fixed(size) => u32::try_from(*size).map_err(|_| format!("input {info} is too large"))?,
                Dimension::Symbol(name) => *sizes.entry(name).or_insert(free),
                Dimension::Unknown => free,
            });
        }
        let count = dimensions.iter().try_fold(1usize, |n, d| n.checked_mul(*d as usize));
        let bytes = count.and_then(|n| n.checked_mul(info.element.wit().size_bytes()));
        let bytes = bytes.filter(|bytes| *bytes <= RegistryConfig::default().tensor_bytes_max);
        let bytes = bytes.ok_or_else(|| format!("input {info} is too large"))?;
        let is_ones = info.name.contains("mask") || info.element.wit() == TensorType::Fp32;
        let tensor = match (is_ones, info.element.wit()) {
            (true, TensorType::I64) => Tensor::from_i64(&dimensions, &vec![1; bytes / 8]),
            (true, TensorType::Fp32) => Tensor::from_f32(&dimensions, &vec![1.0; bytes / 4]),
            // The tokens of one text, end to end.
            (_, TensorType::I64) if info.name == "position_ids" => {
                Tensor::from_i64(&dimensions, &(0..bytes as i64 / 8).collect::<Vec<_>>())
            }
            (_, ty) => Tensor { dimensions, ty, data: vec![0; bytes] },
        };
        inputs.push((info.name.clone(), tensor));
    }
    let run = graph.context().and_then(|mut context| context.compute(inputs));
    run.map_err(|e| format!("the trial run failed: {e}"))
}

/// The output names from which a text's vector is read.
const VECTOR_OUTPUTS: [&str; 2] = ["sentence_embedding", "last_hidden_state"];

/// Refuses a classifier's graph whose `config.json` names no classifier.
fn check_features(outputs: &[(String, Tensor)]) -> Result<(), String> {
    let has = |name: &str| outputs.iter().any(|(output, _)| output == name);
    if !has("logits") || VECTOR_OUTPUTS.iter().any(|name| has(name)) {
        return Ok(());
    }
    Err("output \"logits\" is a classifier's, and architectures in config.json names no …ForSequenceClassification or \
         …ForTokenClassification"
        .to_owned())
}

/// Checks that the outputs of the graph agree with the configuration.
fn check_outputs(model: &ModelDir, outputs: &[(String, Tensor)]) -> Result<(), String> {
    for (name, output) in outputs {
        let is_broken = output.to_f32().is_some_and(|values| values.iter().any(|v| !v.is_finite()));
        if is_broken {
            return Err(format!("output {name} is not a finite number in the trial run", name = quoted(&name)));
        }
    }
    let labels = model.labels.len() as u32;
    let rank = match model.task {
        Task::TextClassification => 2,
        Task::TokenClassification => 3,
        Task::FeatureExtraction => return check_features(outputs),
    };
    let logits = outputs.iter().find(|(name, _)| name == "logits").or(outputs.first());
    match logits {
        Some((_, output)) if output.dimensions.len() == rank && output.dimensions.last() == Some(&labels) => Ok(()),
        Some((name, output)) => Err(format!(
            "output {name} has dimensions {}, but a {} model with {labels} labels ends in {labels}",
            listed(&output.dimensions),
            model.task,
            name = quoted(&name)
        )),
        None => Err("the graph has no output".to_owned()),
    }
}
