//! Models on disk, in the Hugging Face layout: `config.json`, `tokenizer.json` and one of `model.safetensors` (or its index), `model.onnx` and
//! `onnx/model.onnx` in one directory. The task of a model, its labels, bounds and padding are read from these files.

mod config;
mod inspect;
mod pull;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use config::{FunctionToApply, ProblemType, Task};
pub use inspect::{ModelListing, Report, check, list};
pub use pull::{ONNXRUNTIME_VERSION, Progress, PullError, pull, pull_onnxruntime};

use crate::builtin::safetensors_file;
use crate::error::LoadError;
use crate::selection::onnx_file;
use crate::wording::json_types;

/// The file that marks a folder as that of a language model, for `weir-lm`.
pub const LANGUAGE_MODEL: &str = "model.gguf";

/// The largest JSON file that is read, in bytes.
const JSON_BYTES_MAX: u64 = 256 << 20;

/// Why a model directory is invalid, in one sentence that names the file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ModelError {
    /// The directory does not exist.
    #[error("{}: there is no such directory", .0.display())]
    NoDirectory(PathBuf),
    /// A file that a model needs does not exist.
    #[error("{}: {file} is missing", dir.display())]
    Missing {
        /// The model directory.
        dir: PathBuf,
        /// The file, relative to it.
        file: String,
    },
    /// A file cannot be read.
    #[error("{}: {file} cannot be read: {reason}", dir.display())]
    Unreadable {
        /// The model directory.
        dir: PathBuf,
        /// The file, relative to it.
        file: String,
        /// The system's error.
        reason: String,
    },
    /// A file is not valid JSON.
    #[error("{}: {file} is not valid JSON: {reason}", dir.display())]
    Json {
        /// The model directory.
        dir: PathBuf,
        /// The file, relative to it.
        file: String,
        /// The parser's error, with line and column.
        reason: String,
    },
    /// A file has an invalid value, or contradicts the graph.
    #[error("{}: {file}: {reason}", dir.display())]
    Contradiction {
        /// The model directory.
        dir: PathBuf,
        /// The file, relative to it.
        file: String,
        /// The key, and the reason.
        reason: String,
    },
    /// The graph cannot be loaded.
    #[error(transparent)]
    Graph(#[from] LoadError),
}

/// A model directory that has been read: everything but the graph's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelDir {
    /// The directory.
    pub path: PathBuf,
    /// The task of the model.
    pub task: Task,
    /// The `model_type` of `config.json` (`bert`, `roberta`, …); empty when it is absent.
    pub model_type: String,
    /// The labels in the order of their ids; empty for feature extraction.
    pub labels: Vec<String>,
    /// How the scores of a text classification are interpreted, when `config.json` declares it.
    pub problem_type: Option<ProblemType>,
    /// The function from logits to scores, when `config.json` declares it.
    pub function_to_apply: Option<FunctionToApply>,
    /// The longest input, in tokens, special tokens included.
    pub tokens_max: u32,
    /// The padding token.
    pub pad_token_id: u32,
    /// The tokenizer's file.
    pub tokenizer: PathBuf,
    /// The graph's file, or that of the weights where there is no graph.
    pub graph: PathBuf,
}

impl ModelDir {
    /// Reads a model directory. The graph is located but not loaded.
    ///
    /// # Errors
    /// When a file is missing, unreadable, malformed, or has an invalid value.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.is_dir() {
            return Err(ModelError::NoDirectory(path.to_owned()));
        }
        let config: config::Config = required_json(path, "config.json")?;
        let tokenizer = path.join("tokenizer.json");
        // Only its syntax is checked here: the infer component interprets it.
        let _: serde::de::IgnoredAny = required_json(path, "tokenizer.json")?;
        let tokenizer_config: config::TokenizerConfig =
            optional_json(path, "tokenizer_config.json")?.unwrap_or_default();
        let sentences: config::SentenceConfig = optional_json(path, "sentence_bert_config.json")?.unwrap_or_default();
        let graph = onnx_file(path).ok().or_else(|| safetensors_file(path));
        let graph = graph.ok_or_else(|| ModelError::Missing { dir: path.to_owned(), file: GRAPHS.to_owned() })?;
        let contradiction =
            |reason: String| ModelError::Contradiction { dir: path.to_owned(), file: "config.json".to_owned(), reason };
        let task = config.task();
        let opened = Self {
            path: path.to_owned(),
            task,
            labels: config.labels(task).map_err(contradiction)?,
            problem_type: config.problem_type(task).map_err(contradiction)?,
            function_to_apply: config.function_to_apply().map_err(contradiction)?,
            tokens_max: config::tokens_max(&config, &tokenizer_config, &sentences).map_err(contradiction)?,
            pad_token_id: config::pad_token_id(&config, &tokenizer_config).map_err(contradiction)?,
            model_type: config.model_type.clone().unwrap_or_default(),
            tokenizer,
            graph,
        };
        config.has_architecture().map_err(contradiction)?;
        Ok(opened)
    }
}

/// The files of weights, of which a model must have one.
const GRAPHS: &str = "model.safetensors, model.onnx or onnx/model.onnx";

fn required_json<T: serde::de::DeserializeOwned>(dir: &Path, file: &str) -> Result<T, ModelError> {
    optional_json(dir, file)?.ok_or_else(|| ModelError::Missing { dir: dir.to_owned(), file: file.to_owned() })
}

fn optional_json<T: serde::de::DeserializeOwned>(dir: &Path, file: &str) -> Result<Option<T>, ModelError> {
    let unreadable = |e: std::io::Error| ModelError::Unreadable {
        dir: dir.to_owned(),
        file: file.to_owned(),
        reason: e.to_string(),
    };
    let opened = match File::open(dir.join(file)) {
        Ok(opened) => opened,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(unreadable(e)),
    };
    let mut bytes = Vec::new();
    opened.take(JSON_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > JSON_BYTES_MAX {
        return Err(unreadable(std::io::Error::other(format!("it has more than {JSON_BYTES_MAX} bytes"))));
    }
    let text = bytes.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&bytes);
    let invalid = |error: serde_json::Error| ModelError::Json {
        dir: dir.to_owned(),
        file: file.to_owned(),
        reason: json_types(&error.to_string()),
    };
    // Deriving `Deserialize` accepts a list in place of an object, and `[]` would be a file that sets nothing.
    if let Some(other) = not_an_object(text) {
        let _: serde::de::IgnoredAny = serde_json::from_slice(text).map_err(invalid)?;
        let reason = format!("{other}, where a JSON object is required");
        return Err(ModelError::Contradiction { dir: dir.to_owned(), file: file.to_owned(), reason });
    }
    serde_json::from_slice(text).map(Some).map_err(invalid)
}

/// The byte order mark that some editors write before UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xEF\xBB\xBF";

/// The kind of JSON value that a text begins with, unless it is an object.
fn not_an_object(text: &[u8]) -> Option<&'static str> {
    match text.iter().find(|byte| !byte.is_ascii_whitespace())? {
        b'{' => None,
        b'[' => Some("a list"),
        b'"' => Some("a string"),
        b'n' => Some("null"),
        b't' | b'f' => Some("a boolean"),
        _ => Some("a number"),
    }
}
