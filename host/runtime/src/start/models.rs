//! The models of the configuration: those of `models.dir`, and `[model.NAME]`, which adds or replaces one.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::str::FromStr;

use weir_config::Config;
use weir_nn::model::LANGUAGE_MODEL;
use weir_nn::{Choices, Isa, RegistryConfig, UnknownIsa};

use crate::start::StartError;

/// The settings of one model.
pub(super) struct ModelSettings {
    pub(super) path: PathBuf,
    pub(super) choices: Choices,
    /// 0: as many as the device of the model has by default.
    pub(super) replicas: usize,
}

/// The instruction set of the engine `builtin`.
pub(super) fn isa(config: &Config) -> Result<Isa, StartError> {
    match config.models.isa.as_str() {
        "auto" => Ok(Isa::best()),
        name => name.parse().map_err(|error: UnknownIsa| StartError::Config(format!("models.isa: {error}"))),
    }
}

/// The files of the language models, by name.
pub(super) fn language_models(config: &Config) -> Result<BTreeMap<String, PathBuf>, StartError> {
    let models = named_folders(config)?.into_iter();
    let files = models.map(|(name, model)| (name, model.path.join(LANGUAGE_MODEL)));
    Ok(files.filter(|(_, file)| file.is_file()).collect())
}

/// The settings of every model except language models, by name.
pub(super) fn settings(config: &Config) -> Result<BTreeMap<String, ModelSettings>, StartError> {
    let models = named_folders(config)?.into_iter().filter(|(_, model)| !model.path.join(LANGUAGE_MODEL).is_file());
    let settings = models.map(|(name, model)| {
        let choices = Choices {
            engine: parse(&name, model.engine.as_deref().unwrap_or(&config.models.engine))?,
            precision: parse(&name, model.precision.as_deref().unwrap_or(&config.models.precision))?,
            device: parse(&name, model.device.as_deref().unwrap_or(&config.models.device))?,
        };
        let replicas = model.replicas.unwrap_or(config.models.replicas) as usize;
        Ok((name, ModelSettings { path: model.path, choices, replicas }))
    });
    settings.collect()
}

/// Parses the engine, the precision or the device of a model.
fn parse<T: FromStr<Err: ToString>>(model: &str, name: &str) -> Result<T, StartError> {
    T::from_str(name).map_err(|error| StartError::Choice { name: model.to_owned(), message: error.to_string() })
}

/// The models with their folders, by name.
fn named_folders(config: &Config) -> Result<BTreeMap<String, weir_config::Model>, StartError> {
    let mut models: BTreeMap<String, weir_config::Model> = BTreeMap::new();
    for (name, path) in folders(config)? {
        models.insert(name, weir_config::Model { path, ..Default::default() });
    }
    for (name, model) in &config.model {
        models.insert(name.clone(), model.clone());
    }
    Ok(models)
}

/// The models of `models.dir`, with their folders.
fn folders(config: &Config) -> Result<Vec<(String, PathBuf)>, StartError> {
    let dir = &config.models.dir;
    if !config.models.names.is_empty() {
        let named = config.models.names.iter().map(|name| {
            let path = dir.join(name);
            if path.is_dir() {
                Ok((name.clone(), path))
            } else {
                let listed = weir_nn::model::list(dir, &RegistryConfig::default()).unwrap_or_default();
                let names = listed.into_iter().map(|listed| listed.name).collect();
                Err(StartError::NoSuchModel { name: name.clone(), names, dir: dir.clone() })
            }
        });
        return named.collect();
    }
    if dir.as_os_str().is_empty() {
        return Ok(Vec::new());
    }
    let unreadable = |source| StartError::ModelsDir { dir: dir.clone(), source };
    let mut folders = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let Some(name) = name.filter(|name| !name.starts_with('.')) else { continue };
        if path.join("config.json").is_file() || path.join(LANGUAGE_MODEL).is_file() {
            folders.push((name, path));
        } else if path.join("model.onnx").is_file() {
            tracing::warn!(folder = %path.display(), "this folder has model.onnx and no config.json, and is not served");
        }
    }
    Ok(folders)
}
