//! Selects the engine of a model, its device and the file that it loads.

use std::path::{Path, PathBuf};

use weir_kernels::Isa;

use crate::builtin::{self, SAFETENSORS, SAFETENSORS_INDEX};
use crate::config::RegistryConfig;
use crate::device::{Device, DeviceChoice};
use crate::engine::{Choices, Engine, EngineChoice, Precision, PrecisionChoice};
use crate::error::LoadError;
use crate::graph::backend;

/// The graph of texts end to end, beside `model.onnx`.
const PACKED: &str = "model_packed.onnx";

/// The engine of a model, and the file that it loads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Selection {
    /// The engine.
    pub engine: Engine,
    /// The device.
    pub device: Device,
    /// Why the device is not a GPU, where [`DeviceChoice::Auto`] was configured.
    pub fallback: Option<String>,
    /// The graph's file.
    pub file: PathBuf,
    /// The precision of the engine `builtin`, or the configured one of a GPU; `None` for other engines, which use the types of the
    /// graph.
    pub precision: Option<Precision>,
    /// The instruction set of the engine `builtin`; `None` for other engines.
    pub isa: Option<Isa>,
    /// Whether the graph takes texts end to end; else it takes them padded.
    pub packed: bool,
    /// Why this engine, in one clause.
    pub reason: String,
    /// Why this precision, in one clause; empty without a precision.
    pub precision_reason: String,
}

impl Selection {
    /// Selects the engine and the graph of a model directory. To check whether the built-in engine supports it, the structure of a
    /// graph is read, but no weights. A GPU is started, and computes a small graph.
    ///
    /// # Errors
    /// When there is no graph, the only choice is the built-in engine and it does not support the model, or the device cannot be used.
    pub fn of(path: &Path, choices: Choices, config: &RegistryConfig) -> Result<Self, LoadError> {
        match choices.device {
            DeviceChoice::Only(Device::Cpu) => Self::on_cpu(path, choices, config),
            DeviceChoice::Only(device) => Self::on_gpu(path, choices, device, config),
            DeviceChoice::Auto => Self::on_gpu(path, choices, Device::Cuda(0), config).or_else(|error| {
                let selection = Self::on_cpu(path, choices, config)?;
                Ok(Self { fallback: Some(error.to_string()), ..selection })
            }),
        }
    }

    fn on_cpu(path: &Path, choices: Choices, config: &RegistryConfig) -> Result<Self, LoadError> {
        let Choices { engine, precision, .. } = choices;
        match engine {
            EngineChoice::Auto => Self::builtin(path, precision, config).or_else(|reason| {
                match Self::general(path, Engine::Tract, Device::Cpu, format!("not builtin: {reason}")) {
                    // There is no graph for tract either, so the error has the reason of the built-in engine.
                    Err(LoadError::Missing { .. }) if builtin::safetensors_file(path).is_some() => {
                        let reason =
                            format!("the engine builtin does not take it ({reason}), and there is no ONNX graph");
                        Err(LoadError::Unsupported { origin: path.display().to_string(), reason })
                    }
                    selected => selected,
                }
            }),
            EngineChoice::Only(Engine::Builtin) => Self::builtin(path, precision, config).map_err(|reason| {
                let origin = path.display().to_string();
                LoadError::Unsupported { origin, reason: format!("the engine builtin does not take it: {reason}") }
            }),
            EngineChoice::Only(engine) => Self::general(path, engine, Device::Cpu, "as configured".to_owned()),
        }
    }

    fn on_gpu(path: &Path, choices: Choices, device: Device, config: &RegistryConfig) -> Result<Self, LoadError> {
        let (engine, reason) = match choices.engine {
            #[cfg(all(feature = "cuda", not(target_arch = "wasm32")))]
            EngineChoice::Auto if !crate::onnxruntime::is_present(config.onnxruntime.as_deref()) => {
                (Engine::Tract, "the engine for GPUs without ONNX Runtime")
            }
            EngineChoice::Auto => (Engine::OnnxRuntime, "the engine for GPUs"),
            EngineChoice::Only(engine) => (engine, "as configured"),
        };
        engine.check_device(device)?;
        let precision = match choices.precision {
            PrecisionChoice::Only(Precision::F32) => Some(Precision::F32),
            PrecisionChoice::Auto => None,
            PrecisionChoice::Only(precision) => {
                let reason = format!("models on GPUs have no {precision}: set models.precision to \"auto\" or \"f32\"");
                return Err(LoadError::NoDevice { device, reason });
            }
        };
        let selection = Self::general(path, engine, device, reason.to_owned()).map_err(|error| match error {
            LoadError::Missing { .. } if builtin::safetensors_file(path).is_some() => {
                let reason = format!("a model on {device} needs an ONNX graph, and there is none");
                LoadError::Unsupported { origin: path.display().to_string(), reason }
            }
            error => error,
        })?;
        backend(engine).prepare(device, config)?;
        let precision_reason = precision.map_or_else(String::new, |_| "as configured".to_owned());
        Ok(Self { precision, precision_reason, ..selection })
    }

    /// The built-in engine, or why it does not take the model.
    fn builtin(path: &Path, precision: PrecisionChoice, config: &RegistryConfig) -> Result<Self, String> {
        let mut refusals = Vec::new();
        for name in [PACKED, SAFETENSORS, SAFETENSORS_INDEX] {
            let file = path.join(name);
            if !file.is_file() {
                continue;
            }
            match builtin::recognize(&file, config) {
                Ok(recognized) => {
                    let (precision, precision_reason) = match precision {
                        PrecisionChoice::Auto => recognized.precision(config.isa),
                        PrecisionChoice::Only(precision) => (precision, "as configured".to_owned()),
                    };
                    return Ok(Self {
                        engine: Engine::Builtin,
                        device: Device::Cpu,
                        fallback: None,
                        file,
                        precision: Some(precision),
                        isa: Some(config.isa),
                        packed: true,
                        reason: format!("{name}: {}", recognized.description),
                        precision_reason,
                    });
                }
                Err(reason) => refusals.push(format!("{name}: {reason}")),
            }
        }
        match refusals.is_empty() {
            true => Err(format!("there is neither {SAFETENSORS} nor {PACKED}")),
            false => Err(refusals.join("; ")),
        }
    }

    /// An engine that runs any graph.
    fn general(path: &Path, engine: Engine, device: Device, reason: String) -> Result<Self, LoadError> {
        let packed = Some(path.join(PACKED)).filter(|file| engine.prefers_packed(device) && file.is_file());
        let is_packed = packed.is_some();
        let file = packed.map_or_else(|| onnx_file(path), Ok)?;
        Ok(Self {
            engine,
            device,
            fallback: None,
            file,
            precision: None,
            isa: None,
            packed: is_packed,
            reason,
            precision_reason: String::new(),
        })
    }
}

/// The ONNX file of a model directory, or the path itself when it is a file.
pub(crate) fn onnx_file(path: &Path) -> Result<PathBuf, LoadError> {
    if path.is_file() {
        return Ok(path.to_owned());
    }
    let candidates = [path.join("model.onnx"), path.join("onnx").join("model.onnx")];
    let found = candidates.into_iter().find(|candidate| candidate.is_file());
    found.ok_or_else(|| LoadError::Missing { dir: path.to_owned(), file: "model.onnx (or onnx/model.onnx)".to_owned() })
}
