//! Models in the layout of the Hugging Face hub: `config.json`, `model.safetensors` or several such files with an index, and the modules of sentence-transformers where
//! there are any. No graph is needed: `model_type` names the architecture, and this module implements it.
//!
//! A setting whose computation is not implemented is refused with an error that names its key, never ignored.

mod bert;
mod deberta;
mod family;
mod head;
mod modern;
mod sentence;
mod settings;
mod tensors;

use std::path::Path;

use serde_json::Value;
use weir_kernels::{Isa, Precision};

use super::model::EncoderModel;
use super::network::{Readout, RowSelection};
use crate::config::RegistryConfig;
use crate::engine::{Dimension, ElementType, GraphInfo, TensorInfo};
use crate::tensor::TensorType;
use family::Family;
use sentence::Modules;
use settings::Settings;
use tensors::Tensors;

/// The task of a model, by the name of its architecture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Task {
    /// Scores for each text.
    Sequence,
    /// Scores for each token.
    Tokens,
    /// States or embeddings.
    Features,
}

/// A model that has been recognized.
struct HubModel {
    family: Family,
    task: Task,
    settings: Settings,
    tensors: Tensors,
    modules: Option<Modules>,
}

impl HubModel {
    /// Reads the settings and the tensor headers of a model; `file` is its `model.safetensors` or the index of several files.
    fn read(file: &Path, config: &RegistryConfig) -> Result<Self, String> {
        let dir = file.parent().unwrap_or(Path::new("."));
        let settings = Settings::read(&dir.join("config.json"))?;
        let family = Family::of(&settings)?;
        let task = task(&settings);
        let name = file.file_name().unwrap_or_default().display();
        let tensors = Tensors::open(file, config.graph_bytes_max).map_err(|reason| format!("{name}: {reason}"))?;
        let modules = if task == Task::Features { Modules::read(dir, config.graph_bytes_max)? } else { None };
        Ok(Self { family, task, settings, tensors, modules })
    }
}

fn task(settings: &Settings) -> Task {
    let names = settings.value("architectures").and_then(Value::as_array);
    let named =
        |suffix| names.is_some_and(|names| names.iter().filter_map(Value::as_str).any(|name| name.ends_with(suffix)));
    if named("ForSequenceClassification") {
        Task::Sequence
    } else if named("ForTokenClassification") {
        Task::Tokens
    } else {
        Task::Features
    }
}

/// The folders of the modules of sentence-transformers, for a model in a supported configuration.
///
/// # Errors
/// Why the engine does not take the model.
pub(super) fn module_paths(dir: &Path) -> Result<Vec<String>, String> {
    let settings = Settings::read(&dir.join("config.json"))?;
    Family::of(&settings)?;
    if task(&settings) != Task::Features {
        return Ok(Vec::new());
    }
    let modules = sentence::list(dir)?.unwrap_or_default();
    Ok(modules.into_iter().map(|module| module.path).filter(|path| !path.is_empty()).collect())
}

/// Describes the model by its architecture and size.
///
/// # Errors
/// Why the engine does not take it.
pub(super) fn recognize(file: &Path, config: &RegistryConfig) -> Result<String, String> {
    let HubModel { family, settings, tensors, .. } = HubModel::read(file, config)?;
    let encoder = match family {
        Family::ModernBert => modern::shape(&settings, &tensors)?,
        family => bert::shape(family, &settings, &tensors)?,
    };
    Ok(format!("{family}, {encoder}"))
}

/// Loads a model by the path of its `model.safetensors` or of the index of several files.
///
/// # Errors
/// Why it cannot be computed.
pub(super) fn load(
    file: &Path,
    config: &RegistryConfig,
    isa: Isa,
    precision: Precision,
) -> Result<EncoderModel, String> {
    let HubModel { family, task, settings, tensors, modules } = HubModel::read(file, config)?;
    let (encoder, types) = match family {
        Family::ModernBert => (modern::load(&settings, &tensors, isa, precision)?, false),
        family => bert::load(family, &settings, &tensors, isa, precision)?,
    };
    let hidden = encoder.hidden();
    let readout = match task {
        Task::Sequence => head::sequence(family, &settings, &tensors, isa, hidden)?,
        Task::Tokens => head::tokens(family, &settings, &tensors, isa, hidden)?,
        Task::Features => match modules {
            Some(modules) => modules.readout(isa, hidden)?,
            None => Readout { from: RowSelection::Tokens, stages: Vec::new() },
        },
    };
    tensors.release();
    let line = |name: &str| TensorInfo {
        name: name.to_owned(),
        element: ElementType::Wit(TensorType::I64),
        dimensions: Some(vec![Dimension::Fixed(1), Dimension::Symbol("tokens".to_owned())]),
    };
    let mut inputs = vec![line("input_ids"), line("position_ids"), line("segment_ids")];
    if types {
        inputs.push(line("token_type_ids"));
    }
    let width = Dimension::Fixed(readout.width(hidden));
    let (name, dimensions) = match (task, readout.from) {
        (Task::Sequence, _) => ("logits", vec![Dimension::Symbol("texts".to_owned()), width]),
        (Task::Tokens, _) => ("logits", vec![Dimension::Fixed(1), Dimension::Symbol("tokens".to_owned()), width]),
        (Task::Features, RowSelection::Texts(_)) => {
            ("sentence_embedding", vec![Dimension::Symbol("texts".to_owned()), width])
        }
        (Task::Features, _) => {
            ("last_hidden_state", vec![Dimension::Fixed(1), Dimension::Symbol("tokens".to_owned()), width])
        }
    };
    let output =
        TensorInfo { name: name.to_owned(), element: ElementType::Wit(TensorType::Fp32), dimensions: Some(dimensions) };
    Ok(EncoderModel {
        info: GraphInfo { inputs, outputs: vec![output], parameter_bytes: tensors.bytes() },
        encoder,
        readout,
        types_input: types.then_some(3),
    })
}
