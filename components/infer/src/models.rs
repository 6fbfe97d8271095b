//! The models of this instance: the directories in `/models`, loaded on first use and never unloaded. A component whose memory was stored
//! after they were read (`wizer-initialize`) has their files in memory and reads no directory.

use crate::config::ModelConfig;
use crate::graph::Graph;
use crate::job::ModelFiles;
use crate::settings::Settings;
use crate::tokenize::{ModelTokenizer, TruncationSide};
use crate::types::{Failure, ModelInfo, ModelKind};
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use weir_core::text_file::without_bom;

/// The folder of the model directories, read-only.
const MODELS_DIR: &str = "/models";
/// Maximum length of a model name, in bytes.
const NAME_BYTES_MAX: usize = 128;
/// Maximum size of a file, in bytes; `tokenizer.json` of a vocabulary of 250,000 tokens has 17 MB.
const FILE_BYTES_MAX: u64 = 64 << 20;
/// The delay before a model that failed to load is loaded again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// The text that a model computes before it is ready.
const SAMPLE_TEXT: &str = "Hello, world.";

/// A loaded model that has computed the sample.
pub(crate) struct Model {
    /// Its configuration and tokenizer.
    pub(crate) files: Rc<ModelFiles>,
    /// Its graph.
    pub(crate) graph: Graph,
}

enum Slot {
    Ready(Rc<Model>),
    Failed { failure: Failure, at: Instant },
}

/// The models that were requested so far. Only existing directories get a slot, so their number is bounded.
#[derive(Default)]
pub(crate) struct Models {
    slots: RefCell<BTreeMap<String, Slot>>,
    /// The files of the models of a component whose memory was stored. Handles of directories are not a part of that memory.
    stored: OnceCell<BTreeMap<String, Rc<ModelFiles>>>,
}

impl Models {
    /// The model of a name, loaded on first use.
    pub(crate) fn open(&self, name: &str) -> Result<Rc<Model>, Failure> {
        match self.slots.borrow().get(name) {
            Some(Slot::Ready(model)) => return Ok(model.clone()),
            Some(Slot::Failed { failure, at }) if at.elapsed() < RETRY_AFTER => return Err(failure.clone()),
            Some(Slot::Failed { .. }) | None => {}
        }
        let Some(files) = self.files(name) else {
            return Err(Failure::UnknownModel(shorten(name).to_string()));
        };
        let loaded = files
            .and_then(|files| load(name, files))
            .map_err(|reason| Failure::Unavailable(format!("model {name}: {reason}")));
        let slot = match &loaded {
            Ok(model) => Slot::Ready(model.clone()),
            Err(failure) => Slot::Failed { failure: failure.clone(), at: Instant::now() },
        };
        self.slots.borrow_mut().insert(name.to_owned(), slot);
        loaded
    }

    /// The files of a model, if there is one with this name.
    fn files(&self, name: &str) -> Option<Result<Rc<ModelFiles>, String>> {
        match self.stored.get() {
            Some(stored) => stored.get(name).cloned().map(Ok),
            None => directory_of(name).map(|directory| read_files(&directory).map(Rc::new)),
        }
    }

    /// Reads the files of every model in `/models`, and none later.
    pub(crate) fn read_all(&self) -> Result<(), String> {
        let read = |name: String| match self.files(&name) {
            Some(Ok(files)) => Ok((name, files)),
            Some(Err(reason)) => Err(format!("model {name}: {reason}")),
            None => Err(format!("model {name}: its name is invalid")),
        };
        let stored = listed().map(read).collect::<Result<BTreeMap<_, _>, _>>()?;
        if stored.is_empty() {
            return Err(format!("{MODELS_DIR} has no models"));
        }
        self.stored.set(stored).map_err(|_| "they were read before".to_owned())
    }

    /// The served models in the order of their names: the directories in `/models` and, if the host gives access to
    /// each of them but not to the folder that contains them, those that were requested so far.
    pub(crate) fn list(&self) -> Vec<ModelInfo> {
        let mut names: BTreeSet<String> = match self.stored.get() {
            Some(stored) => stored.keys().cloned().collect(),
            None => listed().collect(),
        };
        names.extend(self.slots.borrow().keys().cloned());
        names.into_iter().map(|name| self.describe(name)).collect()
    }

    fn describe(&self, name: String) -> ModelInfo {
        let opened = self.open(&name);
        let config = match (&opened, self.stored.get()) {
            (Ok(model), _) => Some(model.files.config.clone()),
            (Err(_), Some(stored)) => stored.get(&name).map(|files| files.config.clone()),
            (Err(_), None) => read_config(&Path::new(MODELS_DIR).join(&name)).ok(),
        };
        // If the configuration cannot be read, only the name is known.
        let (kind, labels, tokens_max) = config.map_or((ModelKind::FeatureExtraction, Vec::new(), 0), |config| {
            (config.kind, config.labels, config.tokens_max as u32)
        });
        let reason = match &opened {
            Err(Failure::Unavailable(reason)) => {
                Some(reason.strip_prefix(&format!("model {name}: ")).unwrap_or(reason).to_owned())
            }
            _ => None,
        };
        ModelInfo { name, kind, labels, tokens_max, ready: opened.is_ok(), reason }
    }
}

/// The names of the directories of models.
fn listed() -> impl Iterator<Item = String> {
    let entries = std::fs::read_dir(MODELS_DIR).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| directory_of(name).is_some())
}

/// The directory of a model, if the name is valid and the directory exists.
fn directory_of(name: &str) -> Option<PathBuf> {
    let plain = !name.is_empty() && !name.starts_with('.') && !name.contains(['/', '\\', '\0']);
    let directory = Path::new(MODELS_DIR).join(name);
    (plain && name.len() <= NAME_BYTES_MAX && directory.is_dir()).then_some(directory)
}

/// A name, shortened for an error message.
fn shorten(name: &str) -> &str {
    &name[..name.floor_char_boundary(NAME_BYTES_MAX)]
}

/// Loads the graph of a model and computes the sample with it.
fn load(name: &str, files: Rc<ModelFiles>) -> Result<Rc<Model>, String> {
    let sample = files
        .tokenizer
        .tokenize(SAMPLE_TEXT, None, TruncationSide::Beginning)
        .map_err(|error| error.to_string())?
        .sequence;
    let graph = Graph::load(name, &files, &sample, Settings::read().shapes).map_err(|error| error.to_string())?;
    Ok(Rc::new(Model { files, graph }))
}

fn read_files(directory: &Path) -> Result<ModelFiles, String> {
    let config = read_config(directory)?;
    let bytes = read_file(directory, "tokenizer.json")?.ok_or("no tokenizer.json")?;
    let tokenizer = ModelTokenizer::parse(&bytes, &config).map_err(|error| error.to_string())?;
    Ok(ModelFiles { config, tokenizer })
}

fn read_config(directory: &Path) -> Result<ModelConfig, String> {
    let read = |file| read_file(directory, file);
    let config = read("config.json")?.ok_or("no config.json")?;
    let tokenizer = read("tokenizer_config.json")?;
    let sentences = read("sentence_bert_config.json")?;
    let pooling = read("1_Pooling/config.json")?;
    ModelConfig::parse(&config, tokenizer.as_deref(), sentences.as_deref(), pooling.as_deref())
        .map_err(|error| chain(&error))
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// The contents of a file, or none when it does not exist.
fn read_file(directory: &Path, file: &str) -> Result<Option<Vec<u8>>, String> {
    let path = directory.join(file);
    let unreadable = |error: std::io::Error| format!("{file} cannot be read: {error}");
    match std::fs::metadata(&path) {
        Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
            Err(format!("{file} has {} bytes, more than {FILE_BYTES_MAX}", metadata.len()))
        }
        // Editors write a byte order mark, which JSON does not have.
        Ok(_) => std::fs::read(&path).map(|bytes| Some(without_bom(&bytes).to_vec())).map_err(unreadable),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unreadable(error)),
    }
}
