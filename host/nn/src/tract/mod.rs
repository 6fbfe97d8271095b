//! tract behind `wasi:nn`: ONNX graphs on the CPU, in pure Rust, and by the feature `cuda` on a GPU of NVIDIA.
//!
//! A graph is parsed once, converted to a decluttered model with symbolic axes ([`load`]), and run by plans ([`plans`]): one symbolic
//! plan for any shape, and fixed-shape plans, faster by a third, for frequent shapes. [`convert`] converts tensors. On a GPU there is one plan for
//! all shapes, so that it has the weights once.

mod convert;
#[cfg(feature = "cuda")]
mod cuda;
mod error;
mod load;
mod plans;
mod share;

use std::sync::Arc;

use tract_onnx::prelude::*;

use crate::config::RegistryConfig;
use crate::device::Device;
use crate::engine::{Backend, BackendContext, BackendGraph, GraphInfo, GraphOptions, GraphSource};
use crate::error::{LoadError, NnError};
use crate::tensor::Tensor;
use error::chain;
use plans::{Plans, States};

/// The engine `tract`.
pub(crate) struct Tract;

impl Backend for Tract {
    #[cfg(feature = "cuda")]
    fn prepare(&self, device: Device, _config: &RegistryConfig) -> Result<(), LoadError> {
        match device {
            Device::Cpu => Ok(()),
            Device::Cuda(_) => cuda::check(device),
        }
    }

    fn load(
        &self,
        source: GraphSource<'_>,
        options: GraphOptions,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError> {
        match options.device {
            Device::Cpu => {}
            #[cfg(feature = "cuda")]
            device @ Device::Cuda(_) => return cuda::load(source, device, config),
            // `Engine::check_device` refuses it before.
            #[cfg(not(feature = "cuda"))]
            device @ Device::Cuda(_) => return Err(LoadError::without_cuda(device)),
        }
        let loaded = load::load(source, config)?;
        let plans = Plans::new(loaded.typed, loaded.symbolic, loaded.weights, config);
        Ok(Arc::new(TractGraph(Arc::new(LoadedGraph {
            info: loaded.info,
            tensor_bytes_max: config.tensor_bytes_max,
            plans,
        }))))
    }
}

struct LoadedGraph {
    info: GraphInfo,
    tensor_bytes_max: usize,
    plans: Arc<Plans>,
}

struct TractGraph(Arc<LoadedGraph>);

impl BackendGraph for TractGraph {
    fn info(&self) -> &GraphInfo {
        &self.0.info
    }

    fn context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        Ok(Box::new(TractContext { graph: self.0.clone(), states: States::default() }))
    }

    fn settle(&self) {
        self.0.plans.settle();
    }

    fn fixed_plans(&self) -> usize {
        self.0.plans.count().0
    }

    fn plans_made(&self) -> u64 {
        self.0.plans.count().1
    }
}

struct TractContext {
    graph: Arc<LoadedGraph>,
    states: States,
}

impl BackendContext for TractContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let infos = &self.graph.info.inputs;
        let values = infos.iter().zip(inputs).map(|(info, tensor)| convert::to_tract(info, tensor));
        let values = values.collect::<Result<TVec<TValue>, NnError>>()?;
        let state = self.states.for_inputs(&self.graph.plans, &values).map_err(|e| NnError::runtime(chain(&e)))?;
        let outputs = state.run(values).map_err(|e| NnError::runtime(chain(&e)))?;
        let infos = &self.graph.info.outputs;
        let bytes_max = self.graph.tensor_bytes_max;
        infos.iter().zip(outputs).map(|(info, value)| convert::from_tract(info, &value, bytes_max)).collect()
    }
}
