//! ONNX Runtime behind `wasi:nn`. It computes the same ONNX graphs in about half of tract's time.
//!
//! The library is not part of this binary. It is found and loaded once per process, when a graph first needs it ([`library`]). A graph
//! is read by `crate::onnx`, so that bounds and errors are the same for every engine, and passed to the library in memory ([`load`]).
//! [`convert`] converts tensors, and [`value`] has all unsafe code.
//!
//! One session serves every context of a graph: it computes on the calling thread, and its `Run` may be called from many threads at
//! once.

mod convert;
mod library;
mod load;
mod value;

use std::sync::Arc;

use crate::engine::{Backend, BackendContext, BackendGraph, GraphSource, Precision, TensorInfo};
use crate::error::{LoadError, NnError};
use crate::registry::RegistryConfig;
use crate::tensor::Tensor;
use crate::wording::quoted;
use value::{Runner, Value};

pub(crate) use library::{best_in, probe};

pub use library::library_folders;

/// The engine `onnxruntime`.
pub(crate) struct OnnxRuntime;

impl Backend for OnnxRuntime {
    fn prepare(&self, config: &RegistryConfig) -> Result<(), LoadError> {
        library::environment(config.onnxruntime.as_deref()).map(drop)
    }

    fn load(
        &self,
        source: GraphSource<'_>,
        _precision: Precision,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError> {
        let environment = library::environment(config.onnxruntime.as_deref())?;
        let loaded = load::load(&environment, source, config)?;
        Ok(Arc::new(SharedGraph(Arc::new(loaded))))
    }
}

/// A loaded graph.
struct LoadedGraph {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    parameter_bytes: u64,
    tensor_bytes_max: usize,
    runner: Runner,
}

struct SharedGraph(Arc<LoadedGraph>);

impl BackendGraph for SharedGraph {
    fn inputs(&self) -> &[TensorInfo] {
        &self.0.inputs
    }

    fn outputs(&self) -> &[TensorInfo] {
        &self.0.outputs
    }

    fn parameter_bytes(&self) -> u64 {
        self.0.parameter_bytes
    }

    fn context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        Ok(Box::new(OnnxRuntimeContext(self.0.clone())))
    }
}

struct OnnxRuntimeContext(Arc<LoadedGraph>);

impl BackendContext for OnnxRuntimeContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let graph = &*self.0;
        let data = graph.inputs.iter().zip(inputs).map(|(info, tensor)| convert::to_native(info, tensor));
        let data = data.collect::<Result<Vec<_>, NnError>>()?;
        let values = graph.inputs.iter().zip(inputs).zip(&data).map(|((info, tensor), data)| {
            let value = Value::borrowing(convert::native(info.element), &tensor.dimensions, data);
            value.map_err(|e| NnError::runtime(format!("input {} cannot be passed on: {e}", quoted(&info.name))))
        });
        let values = values.collect::<Result<Vec<_>, NnError>>()?;
        let outputs = graph.runner.run(&values).map_err(NnError::runtime)?;
        let infos = graph.outputs.iter();
        infos.zip(&outputs).map(|(info, value)| convert::from_native(info, value, graph.tensor_bytes_max)).collect()
    }
}
