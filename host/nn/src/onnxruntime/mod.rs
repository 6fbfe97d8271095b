//! ONNX Runtime behind `wasi:nn`. It computes the same ONNX graphs in about half of tract's time.
//!
//! The library is not part of this binary. It is found and loaded once per process, when a graph first needs it ([`library`]). A graph
//! is read by `crate::onnx`, so that bounds and errors are the same for every engine, and passed to the library in memory ([`load`]).
//! [`convert`] converts tensors, and [`value`] has all unsafe code.
//!
//! One session serves every context of a graph: it computes on the calling thread, and its `Run` may be called from many threads at
//! once.
//!
//! On a GPU ([`provider`]) the weights and the intermediate results stay there. Inputs and outputs are copied for each run: they come from
//! and go to components, and are small beside them (8 bytes for a token, a few numbers for a text).

mod convert;
mod element;
mod library;
mod load;
mod provider;
mod value;

use std::sync::Arc;

use crate::config::RegistryConfig;
use crate::device::Device;
use crate::driver::Driver;
use crate::engine::{Backend, BackendContext, BackendGraph, GraphInfo, GraphOptions, GraphSource};
use crate::error::{LoadError, NnError};
use crate::tensor::Tensor;
use crate::wording::quoted;
use element::native;
use load::LoadedGraph;
use value::Value;

#[cfg(feature = "cuda")]
pub(crate) use library::is_present;
pub(crate) use library::{best_in, probe};

pub use library::library_folders;

/// The engine `onnxruntime`.
pub(crate) struct OnnxRuntime;

impl Backend for OnnxRuntime {
    fn prepare(&self, device: Device, config: &RegistryConfig) -> Result<(), LoadError> {
        if let Device::Cuda(number) = device {
            let checked = Driver::open().and_then(|driver| driver.check(number));
            checked.map_err(|reason| LoadError::NoDevice { device, reason })?;
        }
        let environment = library::environment(config.onnxruntime.as_deref())?;
        provider::check(&environment, device, config)
    }

    fn load(
        &self,
        source: GraphSource<'_>,
        options: GraphOptions,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError> {
        let environment = library::environment(config.onnxruntime.as_deref())?;
        let loaded = load::load(&environment, source, options, config)?;
        Ok(Arc::new(SharedGraph(Arc::new(loaded))))
    }
}

struct SharedGraph(Arc<LoadedGraph>);

impl BackendGraph for SharedGraph {
    fn info(&self) -> &GraphInfo {
        &self.0.info
    }

    fn context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        Ok(Box::new(OnnxRuntimeContext(self.0.clone())))
    }
}

struct OnnxRuntimeContext(Arc<LoadedGraph>);

impl BackendContext for OnnxRuntimeContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let graph = &*self.0;
        let data = graph.info.inputs.iter().zip(inputs).map(|(info, tensor)| convert::to_native(info, tensor));
        let data = data.collect::<Result<Vec<_>, NnError>>()?;
        let values = graph.info.inputs.iter().zip(inputs).zip(&data).map(|((info, tensor), data)| {
            let value = Value::borrowing(native(info.element), &tensor.dimensions, data);
            value.map_err(|e| NnError::runtime(format!("input {} cannot be passed on: {e}", quoted(&info.name))))
        });
        let values = values.collect::<Result<Vec<_>, NnError>>()?;
        let outputs = graph.runner.run(&values).map_err(|error| graph.failure(error))?;
        let infos = graph.info.outputs.iter();
        infos.zip(&outputs).map(|(info, value)| convert::from_native(info, value, graph.tensor_bytes_max)).collect()
    }
}

impl LoadedGraph {
    /// The error of a run.
    fn failure(&self, error: String) -> NnError {
        if self.device == Device::Cpu || !provider::is_out_of_memory(&error) {
            return NnError::runtime(error);
        }
        let device = self.device;
        tracing::debug!(%device, error, "a batch exhausted the memory of the GPU");
        NnError::out_of_memory(device)
    }
}
