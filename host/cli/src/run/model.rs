//! The model of a task.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::bail;
use weir_runtime::Runtime;
use weir_runtime::types::ModelKind;

use crate::arguments::Task;

/// A task of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ModelTask {
    Sentiment,
    Entities,
    Embed,
    Summary,
}

impl ModelTask {
    pub(super) fn of(task: Task) -> Option<Self> {
        match task {
            Task::Sentiment => Some(Self::Sentiment),
            Task::Entities => Some(Self::Entities),
            Task::Embed => Some(Self::Embed),
            Task::Summary => Some(Self::Summary),
            Task::Transcript | Task::Generate => None,
        }
    }

    /// The task of the HTTP interface whose lines have the same fields.
    pub(super) fn input_task(self) -> weir_codec::inference::task::Task {
        match self {
            Self::Sentiment => weir_codec::inference::task::Task::Classify,
            Self::Entities => weir_codec::inference::task::Task::Tokens,
            Self::Embed | Self::Summary => weir_codec::inference::task::Task::Embed,
        }
    }

    /// The bundled model of the task.
    pub(super) fn bundled_model(self) -> &'static str {
        match self {
            Self::Sentiment => "sentiment",
            Self::Entities => "entities",
            Self::Embed | Self::Summary => "embeddings",
        }
    }
}

/// Reduces the configuration to one model: a configured one, one in the models folder, or a folder.
pub(super) fn choose(config: &mut weir_config::Config, name: &str) -> anyhow::Result<String> {
    let beside = config.models.dir.join(name);
    let configured = config.model.remove(name);
    config.models.names.clear();
    let model = match configured {
        Some(model) => model,
        None if !config.models.dir.as_os_str().is_empty() && !name.contains('/') && beside.is_dir() => {
            weir_config::Model { path: beside, ..Default::default() }
        }
        None if PathBuf::from(name).is_dir() => weir_config::Model { path: name.into(), ..Default::default() },
        None => bail!("no model `{name}`: not a folder, and not in {}", folder_text(&config.models.dir, name)),
    };
    let name = PathBuf::from(name).file_name().and_then(|n| n.to_str()).unwrap_or("model").to_string();
    config.models.dir = PathBuf::new();
    config.model = BTreeMap::from([(name.clone(), model)]);
    Ok(name)
}

fn folder_text(dir: &std::path::Path, name: &str) -> String {
    if dir.as_os_str().is_empty() {
        return "any models folder (none was given or found): give one with --models-dir".into();
    }
    format!("{}, which has {}", dir.display(), crate::models::names_in(dir, name))
}

/// Checks that the model is of the kind that the task needs.
pub(super) fn check_kind(task: ModelTask, model: &str, runtime: &Runtime) -> anyhow::Result<()> {
    let kind = runtime.models().into_iter().find(|info| info.name == model).map(|info| info.kind);
    let (needed, description) = match task {
        ModelTask::Sentiment => (ModelKind::TextClassification, "text classification"),
        ModelTask::Entities => (ModelKind::TokenClassification, "token classification"),
        ModelTask::Embed | ModelTask::Summary => (ModelKind::FeatureExtraction, "sentence embeddings"),
    };
    if kind != Some(needed) {
        bail!("model {model} is not for this task, which needs one for {description}");
    }
    Ok(())
}
