//! The interface of the engines behind `wasi:nn`. An engine loads graphs, a graph creates execution contexts, a context computes.
//! [`Graph`](crate::Graph) checks a guest's input before it calls an engine.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use weir_core::nearest::suggestion;

use crate::config::RegistryConfig;
use crate::device::{Device, DeviceChoice};
use crate::error::{LoadError, NnError};
use crate::tensor::Tensor;
use crate::wording::quoted;

/// The engines that can run a graph; chosen per named graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Engine {
    /// tract: pure Rust, on the CPU, part of this binary; by the feature `cuda` also on a GPU.
    #[default]
    Tract,
    /// ONNX Runtime, on the CPU or a GPU: a shared library that is loaded at the first graph that uses it, see
    /// [`library_folders`](crate::library_folders).
    OnnxRuntime,
    /// The kernels of this project, on the CPU, part of this binary: encoders of the BERT and ModernBERT families, from
    /// `model.safetensors` or from a graph that was exported for several texts end to end. It refuses every other model.
    Builtin,
}

/// The configured engine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EngineChoice {
    /// On the CPU [`Engine::Builtin`] for the models that it takes and [`Engine::Tract`] for all others; on a GPU
    /// [`Engine::OnnxRuntime`], or [`Engine::Tract`] where there is no library of ONNX Runtime and the program has the feature `cuda`.
    #[default]
    Auto,
    /// This engine; a model that it does not support is an error.
    Only(Engine),
}

/// The names of an [`EngineChoice`].
const ENGINES: [&str; 4] = ["auto", "builtin", "tract", "onnxruntime"];

/// A name that is not that of an engine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no engine named {}{}; the engines are: {}", quoted(.0), suggestion(.0, &ENGINES), ENGINES.join(", "))]
pub struct UnknownEngine(String);

impl FromStr for EngineChoice {
    type Err = UnknownEngine;

    fn from_str(name: &str) -> Result<Self, UnknownEngine> {
        match name {
            "auto" => Ok(Self::Auto),
            "builtin" => Ok(Self::Only(Engine::Builtin)),
            "tract" => Ok(Self::Only(Engine::Tract)),
            "onnxruntime" => Ok(Self::Only(Engine::OnnxRuntime)),
            _ => Err(UnknownEngine(name.to_owned())),
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(engine) => engine.fmt(f),
        }
    }
}

impl Engine {
    /// Whether it computes texts end to end faster than padded ones, where a model has a graph for that. On a GPU, the attention between
    /// all tokens of thousands costs more than padding.
    pub fn prefers_packed(self, device: Device) -> bool {
        match self {
            Self::Tract | Self::Builtin => device == Device::Cpu,
            Self::OnnxRuntime => false,
        }
    }

    /// Whether it makes a plan for each frequent shape, so that few distinct shapes are faster than many.
    pub fn plans_shapes(self, device: Device) -> bool {
        match self {
            Self::Tract => device == Device::Cpu,
            Self::OnnxRuntime | Self::Builtin => false,
        }
    }

    /// Checks that it has code for a device.
    ///
    /// # Errors
    /// The devices that it has, and the remedy, in one clause.
    pub(crate) fn check_device(self, device: Device) -> Result<(), LoadError> {
        match (self, device) {
            (_, Device::Cpu) | (Self::OnnxRuntime, Device::Cuda(_)) => Ok(()),
            #[cfg(all(feature = "cuda", not(target_arch = "wasm32")))]
            (Self::Tract, Device::Cuda(0)) => Ok(()),
            #[cfg(all(feature = "cuda", not(target_arch = "wasm32")))]
            (Self::Tract, Device::Cuda(_)) => {
                let reason = "the engine tract computes on the first GPU alone: set models.engine to \"onnxruntime\", or select the GPU in \
                              CUDA_VISIBLE_DEVICES and set models.device to \"cuda\"";
                Err(LoadError::NoDevice { device, reason: reason.to_owned() })
            }
            #[cfg(not(feature = "cuda"))]
            (Self::Tract, Device::Cuda(_)) => Err(LoadError::without_cuda(device)),
            (_, Device::Cuda(_)) => {
                let reason = format!(
                    "the engine {self} computes on the CPU alone: set models.engine to \"onnxruntime\" or \"auto\""
                );
                Err(LoadError::NoDevice { device, reason })
            }
        }
    }
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tract => "tract",
            Self::OnnxRuntime => "onnxruntime",
            Self::Builtin => "builtin",
        })
    }
}

/// The number format in which the built-in engine multiplies weights. Other engines use the types of the graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Precision {
    /// f32 by f32.
    #[default]
    F32,
    /// bf16 by bf16, summed in f32.
    Bf16,
    /// Activations in u8 with a factor for each token, weights in i8 with a factor for each column, summed in i32.
    Int8,
}

impl Precision {
    /// All of them, the most exact first.
    pub const ALL: [Self; 3] = [Self::F32, Self::Bf16, Self::Int8];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        })
    }
}

/// The configured precision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PrecisionChoice {
    /// int8 for classifiers whose weights are stored in int8, bf16 for all other models where the processor has an instruction for
    /// it, else f32.
    #[default]
    Auto,
    /// This precision.
    Only(Precision),
}

/// The names of a [`PrecisionChoice`].
const PRECISIONS: [&str; 4] = ["auto", "int8", "bf16", "f32"];

/// A name that is not that of a precision.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no precision named {}{}; there are: {}", quoted(.0), suggestion(.0, &PRECISIONS), PRECISIONS.join(", "))]
pub struct UnknownPrecision(String);

impl FromStr for PrecisionChoice {
    type Err = UnknownPrecision;

    fn from_str(name: &str) -> Result<Self, UnknownPrecision> {
        match name {
            "auto" => Ok(Self::Auto),
            "int8" => Ok(Self::Only(Precision::Int8)),
            "bf16" => Ok(Self::Only(Precision::Bf16)),
            "f32" => Ok(Self::Only(Precision::F32)),
            _ => Err(UnknownPrecision(name.to_owned())),
        }
    }
}

impl fmt::Display for PrecisionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Only(precision) => precision.fmt(f),
        }
    }
}

/// What is configured for a model.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The engine.
    pub engine: EngineChoice,
    /// The precision.
    pub precision: PrecisionChoice,
    /// The device.
    pub device: DeviceChoice,
}

/// How a graph is loaded.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct GraphOptions {
    /// The precision of the engine `builtin`. On a GPU, `f32` excludes the products of tensor cores that round to fewer bits.
    pub(crate) precision: Option<Precision>,
    pub(crate) device: Device,
}

/// The source of a graph.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GraphSource<'a> {
    /// An ONNX file; its external data lies in the same directory.
    File(&'a Path),
    /// An ONNX model in memory, without external data.
    Bytes(&'a [u8]),
}

impl GraphSource<'_> {
    /// Its name in error texts.
    pub(crate) fn origin(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Bytes(_) => "graph".to_owned(),
        }
    }
}

/// One dimension of a graph's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// A constant size.
    Fixed(usize),
    /// Any size, equal wherever the symbol occurs.
    Symbol(String),
    /// A size that is known only when the graph runs.
    Unknown,
}

impl fmt::Display for Dimension {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed(size) => write!(f, "{size}"),
            Self::Symbol(name) => f.write_str(name),
            Self::Unknown => f.write_str("?"),
        }
    }
}

/// The element type of a graph's input or output as the graph declares it, which may be a type that the WIT lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// A type of the WIT.
    Wit(crate::tensor::TensorType),
    /// A boolean; a guest passes and gets `u8` (0 or 1).
    Bool,
    /// A guest passes and gets `i32`.
    I8,
    /// A guest passes and gets `i32`.
    I16,
    /// A guest passes and gets `i32`.
    U16,
    /// A guest passes and gets `i64`.
    U32,
    /// A guest passes and gets `i64`.
    U64,
}

impl ElementType {
    /// The type that a guest passes and gets for it.
    pub fn wit(self) -> crate::tensor::TensorType {
        use crate::tensor::TensorType;
        match self {
            Self::Wit(ty) => ty,
            Self::Bool => TensorType::U8,
            Self::I8 | Self::I16 | Self::U16 => TensorType::I32,
            Self::U32 | Self::U64 => TensorType::I64,
        }
    }
}

impl ElementType {
    /// Bytes per element as an engine holds it.
    pub(crate) fn size_bytes(self) -> usize {
        match self {
            Self::Wit(ty) => ty.size_bytes(),
            Self::Bool | Self::I8 => 1,
            Self::I16 | Self::U16 => 2,
            Self::U32 => 4,
            Self::U64 => 8,
        }
    }
}

impl fmt::Display for ElementType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wit(ty) => ty.fmt(f),
            Self::Bool => f.write_str("bool"),
            Self::I8 => f.write_str("i8"),
            Self::I16 => f.write_str("i16"),
            Self::U16 => f.write_str("u16"),
            Self::U32 => f.write_str("u32"),
            Self::U64 => f.write_str("u64"),
        }
    }
}

/// The name, element type and shape of a graph's input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorInfo {
    /// The name that guests use.
    pub name: String,
    /// The type that the graph declares; guests see its [`ElementType::wit`].
    pub element: ElementType,
    /// One per dimension; `None` when the rank is known only when the graph runs.
    pub dimensions: Option<Vec<Dimension>>,
}

impl fmt::Display for TensorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.name, self.element)?;
        match &self.dimensions {
            Some(dimensions) => {
                let dimensions: Vec<String> = dimensions.iter().map(Dimension::to_string).collect();
                write!(f, "[{}]", dimensions.join(", "))
            }
            None => f.write_str("[…]"),
        }
    }
}

/// The inputs and outputs of a loaded graph, in its order, and its size.
#[derive(Debug)]
pub(crate) struct GraphInfo {
    pub(crate) inputs: Vec<TensorInfo>,
    pub(crate) outputs: Vec<TensorInfo>,
    /// The weights, in bytes as the graph stores them.
    pub(crate) parameter_bytes: u64,
}

/// An engine that can load graphs.
pub(crate) trait Backend: Send + Sync {
    /// Checks that the engine is available for a device for which it has code, before it loads a graph.
    ///
    /// # Errors
    /// When its library or the device is missing or unfit.
    fn prepare(&self, _device: Device, _config: &RegistryConfig) -> Result<(), LoadError> {
        Ok(())
    }

    /// Loads a graph, within the bounds of `config`.
    ///
    /// # Errors
    /// When the graph is malformed, past a bound, or uses a feature that the engine lacks. It may also panic on a hostile graph:
    /// the caller catches the panic.
    fn load(
        &self,
        source: GraphSource<'_>,
        options: GraphOptions,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError>;
}

/// A graph that an engine loaded: immutable, shared by every context.
pub(crate) trait BackendGraph: Send + Sync {
    /// Its inputs, outputs and size.
    fn info(&self) -> &GraphInfo;

    /// Creates an execution context for one caller.
    ///
    /// # Errors
    /// When the engine cannot create one.
    fn context(&self) -> Result<Box<dyn BackendContext>, NnError>;

    /// Waits for the engine's background work, such as building plans.
    fn settle(&self) {}

    /// The number of fixed-shape plans it holds now.
    fn fixed_plans(&self) -> usize {
        0
    }

    /// The number of fixed-shape plans it has made since it was loaded.
    fn plans_made(&self) -> u64 {
        0
    }
}

/// The execution context of one caller. After an error or a panic its state is unspecified, and the caller drops it.
pub(crate) trait BackendContext: Send {
    /// Computes the outputs, in the graph's order, from the inputs in the graph's order. The inputs have been checked:
    /// types, ranks, lengths and symbols agree with the inputs of [`BackendGraph::info`].
    ///
    /// # Errors
    /// When the engine fails.
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError>;
}
