//! The modules of sentence-transformers, which compute a text's vector from its states.

use std::path::{Component, Path};

use serde_json::Value;
use weir_kernels::Isa;

use super::settings::{Settings, read_json};
use super::tensors::Tensors;
use crate::builtin::network::{HeadActivation, Pooling, Readout, RowSelection, Stage};
use crate::wording::quoted;

/// The most modules of a model.
const MODULES_MAX: usize = 16;

/// The modules after the encoder.
pub(super) struct Modules {
    pooling: Pooling,
    stages: Vec<Module>,
}

enum Module {
    Dense { tensors: Tensors, inner: usize, columns: usize, activation: HeadActivation },
    Normalize,
}

impl Modules {
    /// Reads `modules.json`; `None` without that file, or without a pooling module.
    ///
    /// # Errors
    /// When a module is not supported; the text has its name.
    pub(super) fn read(dir: &Path, bytes_max: u64) -> Result<Option<Self>, String> {
        let Some(list) = list(dir)? else { return Ok(None) };
        let (mut pooling, mut stages) = (None, Vec::new());
        for ModuleEntry { kind, path } in list {
            let path = dir.join(path);
            match kind {
                Kind::Transformer => {}
                Kind::Pooling => pooling = Some(read_pooling(&path)?),
                Kind::Dense => stages.push(read_dense(&path, bytes_max)?),
                Kind::Normalize => stages.push(Module::Normalize),
            }
        }
        // Without pooling, the states themselves are the result.
        Ok(pooling.map(|pooling| Self { pooling, stages }))
    }

    /// The readout for states of a width.
    pub(super) fn readout(self, isa: Isa, hidden: usize) -> Result<Readout, String> {
        let mut width = hidden;
        let mut stages = Vec::new();
        for module in self.stages {
            stages.push(match module {
                Module::Normalize => Stage::Unit,
                Module::Dense { tensors, inner, columns, activation } => {
                    if inner != width {
                        return Err(format!("modules.json: a dense module takes {inner} numbers of {width}"));
                    }
                    width = columns;
                    let linear = tensors.linear("linear", inner, columns)?;
                    Stage::linear(isa, inner, &linear.weight, &linear.bias, activation)
                }
            });
        }
        Ok(Readout { from: RowSelection::Texts(self.pooling), stages })
    }
}

/// A supported module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Transformer,
    Pooling,
    Dense,
    Normalize,
}

/// An entry of `modules.json`.
pub(super) struct ModuleEntry {
    kind: Kind,
    /// Its folder, within the model's; empty for the model's own.
    pub(super) path: String,
}

/// The entries of `modules.json`, checked for a supported order; `None` without that file.
pub(super) fn list(dir: &Path) -> Result<Option<Vec<ModuleEntry>>, String> {
    let Some(list) = read_json(&dir.join("modules.json"))? else { return Ok(None) };
    let list = list.as_array().ok_or("modules.json is not a list")?;
    if list.len() > MODULES_MAX {
        return Err(format!("modules.json has {} modules, more than {MODULES_MAX}", list.len()));
    }
    let module = |(index, module): (usize, &Value)| {
        let text = |key: &str| {
            let value = module.get(key).and_then(Value::as_str);
            value.ok_or_else(|| format!("modules.json: module {index} has no {key}"))
        };
        let name = text("type")?.rsplit('.').next().unwrap_or_default();
        let path = text("path")?;
        if !Path::new(path).components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(format!(
                "modules.json: the path {path} is not within the model's directory",
                path = quoted(&path)
            ));
        }
        let kind = match (name, index) {
            ("Transformer", 0) if path.is_empty() => Kind::Transformer,
            ("Pooling", 1) => Kind::Pooling,
            ("Dense", 2..) => Kind::Dense,
            ("Normalize", 2..) => Kind::Normalize,
            _ => return Err(format!("modules.json: {name} at place {index} is not supported")),
        };
        Ok(ModuleEntry { kind, path: path.to_owned() })
    };
    list.iter().enumerate().map(module).collect::<Result<_, _>>().map(Some)
}

fn read_pooling(path: &Path) -> Result<Pooling, String> {
    let settings = Settings::read(&path.join("config.json")).map_err(|reason| format!("pooling: {reason}"))?;
    const MODES: [(&str, &str, Option<Pooling>); 6] = [
        ("pooling_mode_mean_tokens", "mean", Some(Pooling::Mean)),
        ("pooling_mode_cls_token", "cls", Some(Pooling::First)),
        ("pooling_mode_max_tokens", "max", Some(Pooling::Max)),
        ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", None),
        ("pooling_mode_weightedmean_tokens", "weightedmean", None),
        ("pooling_mode_lasttoken", "lasttoken", None),
    ];
    let mut modes = Vec::new();
    for (flag, name, pooling) in MODES {
        if settings.flag(flag)?.unwrap_or(false) || settings.value("pooling_mode").is_some_and(|mode| mode == name) {
            modes.push(pooling.ok_or_else(|| format!("pooling: {flag} is not supported"))?);
        }
    }
    match modes[..] {
        [pooling] => Ok(pooling),
        _ => Err(format!("pooling: {} modes at once are not supported", modes.len())),
    }
}

fn read_dense(path: &Path, bytes_max: u64) -> Result<Module, String> {
    let error = |reason: String| format!("dense module: {reason}");
    let settings = Settings::read(&path.join("config.json")).map_err(error)?;
    let tensors = Tensors::open(&path.join("model.safetensors"), bytes_max).map_err(error)?;
    let (inner, columns) =
        (settings.required("in_features").map_err(error)?, settings.required("out_features").map_err(error)?);
    let name = settings.text("activation_function").map_err(error)?.unwrap_or("Tanh");
    let activation = match name.rsplit('.').next() {
        Some("Tanh") => HeadActivation::Tanh,
        Some("Identity") => HeadActivation::None,
        Some("ReLU") => HeadActivation::Kernel(weir_kernels::Activation::Relu),
        Some("GELU") => HeadActivation::Kernel(weir_kernels::Activation::Gelu),
        _ => return Err(format!("dense module: activation_function = {name} is not supported", name = quoted(&name))),
    };
    Ok(Module::Dense { tensors, inner, columns, activation })
}
