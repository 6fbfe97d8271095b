//! What an engine must do to stand behind `wasi:nn`. An engine loads graphs, a graph makes execution contexts, a context
//! computes; what the guest sends is checked before it gets here (see [`Graph`](crate::Graph)), so engines stay small.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use weir_core::nearest::suggestion;

use crate::error::{LoadError, NnError};
use crate::registry::RegistryConfig;
use crate::tensor::Tensor;
use crate::wording::quoted;

/// The engines that can run a graph; chosen per named graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Engine {
    /// tract: pure Rust, on the CPU, part of this binary.
    #[default]
    Tract,
    /// ONNX Runtime, on the CPU: a shared library that is loaded when a graph first asks for it, see
    /// [`library_folders`](crate::library_folders).
    OnnxRuntime,
    /// The kernels of this project: encoders of the BERT family that were exported with several texts end to end, on the CPU, part of
    /// this binary. It refuses every other graph.
    Builtin,
}

/// The engine that a configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum EngineChoice {
    /// [`Engine::Builtin`] for the models that it takes, [`Engine::Tract`] for all others.
    #[default]
    Auto,
    /// This engine; a model that it does not take is an error.
    Only(Engine),
}

/// The names that an [`EngineChoice`] has.
const ENGINES: [&str; 4] = ["auto", "builtin", "tract", "onnxruntime"];

/// The name of no engine.
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
    /// Whether texts laid end to end are cheaper for it than padded ones, where a model has a graph for that.
    pub fn prefers_packed(self) -> bool {
        match self {
            Self::Tract | Self::Builtin => true,
            Self::OnnxRuntime => false,
        }
    }

    /// Whether it makes a plan for each shape that comes often, so that few shapes are better than many.
    pub fn plans_shapes(self) -> bool {
        match self {
            Self::Tract => true,
            Self::OnnxRuntime | Self::Builtin => false,
        }
    }

    /// How many tokens a run should have at most on a processor core: more gain nothing, and what comes meanwhile waits for
    /// the run to end.
    pub fn batch_tokens(self) -> u32 {
        match self {
            Self::Tract | Self::OnnxRuntime | Self::Builtin => 128,
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

/// What the built-in engine multiplies weights in. Other engines compute as the graph says.
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

/// The precision that a configuration asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum PrecisionChoice {
    /// int8 for classifiers whose weights are stored so, bf16 for all other models where the processor has an instruction for it,
    /// else f32.
    #[default]
    Auto,
    /// This precision.
    Only(Precision),
}

/// The names that a [`PrecisionChoice`] has.
const PRECISIONS: [&str; 4] = ["auto", "int8", "bf16", "f32"];

/// The name of no precision.
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

/// Where an engine reads a graph from.
#[derive(Clone, Copy, Debug)]
pub(crate) enum GraphSource<'a> {
    /// An ONNX file; its external data lies in the same directory.
    File(&'a Path),
    /// An ONNX model in memory, without external data.
    Bytes(&'a [u8]),
}

impl GraphSource<'_> {
    /// How error texts name it.
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
    /// Always this size.
    Fixed(usize),
    /// Any size, the same wherever the symbol stands.
    Symbol(String),
    /// Anything else: known only when the graph runs.
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

/// The element type of a graph's input or output: what the graph itself declares, which may be none of the WIT's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ElementType {
    /// One of the WIT's.
    Wit(crate::tensor::TensorType),
    /// A truth value; a guest passes and gets `u8` (0 or 1).
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
    /// What a guest passes and gets for it.
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
    /// The name by which guests pass and find it.
    pub name: String,
    /// What the graph declares; guests see [`ElementType::wit`] of it.
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

/// An engine that can load graphs.
pub(crate) trait Backend: Send + Sync {
    /// Makes sure that the engine can be had, before there is a graph for it.
    ///
    /// # Errors
    /// When its library is missing or unfit.
    fn prepare(&self, _config: &RegistryConfig) -> Result<(), LoadError> {
        Ok(())
    }

    /// Loads a graph, within the bounds of `config`. An engine that computes as the graph says takes no notice of `precision`.
    ///
    /// # Errors
    /// When the graph is malformed, past a bound, or uses what the engine lacks. It may also panic on a hostile graph: the
    /// caller catches that.
    fn load(
        &self,
        source: GraphSource<'_>,
        precision: Precision,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError>;
}

/// A graph that an engine loaded: immutable, shared by every context.
pub(crate) trait BackendGraph: Send + Sync {
    /// The inputs, in the graph's order.
    fn inputs(&self) -> &[TensorInfo];

    /// The outputs, in the graph's order.
    fn outputs(&self) -> &[TensorInfo];

    /// The weights, in bytes as the graph stores them.
    fn parameter_bytes(&self) -> u64;

    /// A context of its own for one caller.
    ///
    /// # Errors
    /// When the engine cannot make one.
    fn context(&self) -> Result<Box<dyn BackendContext>, NnError>;

    /// Waits until work that the engine does beside its callers (building plans, say) is done.
    fn settle(&self) {}

    /// How many plans for one shape it keeps now.
    fn fixed_plans(&self) -> usize {
        0
    }

    /// How many plans for one shape it has made since it was loaded.
    fn plans_made(&self) -> u64 {
        0
    }
}

/// What one caller computes with. It may be left in any state after an error or a panic: the caller then drops it.
pub(crate) trait BackendContext: Send {
    /// Computes the outputs, in the graph's order, from the inputs in the graph's order. The inputs have been checked:
    /// types, ranks, lengths and symbols agree with [`BackendGraph::inputs`].
    ///
    /// # Errors
    /// When the engine fails.
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError>;
}
