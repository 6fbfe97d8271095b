//! tract behind `wasi:nn`: ONNX graphs on the CPU, in pure Rust.
//!
//! A graph is parsed once, converted to a decluttered model with symbolic axes ([`load`]), and run by plans ([`plans`]): one symbolic
//! plan for any shape, and fixed-shape plans, faster by a third, for frequent shapes. [`convert`] converts tensors.

mod convert;
mod load;
mod plans;
mod share;

use std::sync::Arc;

use tract_onnx::prelude::*;

use crate::engine::{Backend, BackendContext, BackendGraph, ElementType, GraphSource, Precision, TensorInfo};
use crate::error::{LoadError, NnError, one_line};
use crate::registry::RegistryConfig;
use crate::tensor::Tensor;
use plans::{Plans, States};

/// The engine `tract`.
pub(crate) struct Tract;

impl Backend for Tract {
    fn load(
        &self,
        source: GraphSource<'_>,
        _precision: Precision,
        config: &RegistryConfig,
    ) -> Result<Arc<dyn BackendGraph>, LoadError> {
        let loaded = load::load(source, config)?;
        let plans = Plans::new(loaded.typed, loaded.symbolic, loaded.weights, config);
        Ok(Arc::new(TractGraph(Arc::new(LoadedGraph {
            inputs: loaded.inputs,
            outputs: loaded.outputs,
            parameter_bytes: loaded.parameter_bytes,
            tensor_bytes_max: config.tensor_bytes_max,
            plans,
        }))))
    }
}

struct LoadedGraph {
    inputs: Vec<TensorInfo>,
    outputs: Vec<TensorInfo>,
    parameter_bytes: u64,
    tensor_bytes_max: usize,
    plans: Arc<Plans>,
}

struct TractGraph(Arc<LoadedGraph>);

impl BackendGraph for TractGraph {
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
        let infos = &self.graph.inputs;
        let values = infos.iter().zip(inputs).map(|(info, tensor)| convert::to_tract(info, tensor));
        let values = values.collect::<Result<TVec<TValue>, NnError>>()?;
        let state = self.states.for_inputs(&self.graph.plans, &values).map_err(|e| NnError::runtime(chain(&e)))?;
        let outputs = state.run(values).map_err(|e| NnError::runtime(chain(&e)))?;
        let infos = &self.graph.outputs;
        let bytes_max = self.graph.tensor_bytes_max;
        infos.iter().zip(outputs).map(|(info, value)| convert::from_tract(info, &value, bytes_max)).collect()
    }
}

/// The element type of a tract type; `None` when a guest can neither pass nor get it.
fn element_type(datum: DatumType) -> Option<ElementType> {
    use crate::tensor::TensorType as T;
    Some(match datum {
        DatumType::F16 => ElementType::Wit(T::Fp16),
        DatumType::F32 => ElementType::Wit(T::Fp32),
        DatumType::F64 => ElementType::Wit(T::Fp64),
        DatumType::U8 => ElementType::Wit(T::U8),
        DatumType::I32 => ElementType::Wit(T::I32),
        DatumType::I64 | DatumType::TDim => ElementType::Wit(T::I64),
        DatumType::Bool => ElementType::Bool,
        DatumType::I8 => ElementType::I8,
        DatumType::I16 => ElementType::I16,
        DatumType::U16 => ElementType::U16,
        DatumType::U32 => ElementType::U32,
        DatumType::U64 => ElementType::U64,
        _ => return None,
    })
}

/// An error with its causes on one line of bounded length: tract prints whole nodes.
fn chain(error: &TractError) -> String {
    one_line(&error.chain().map(ToString::to_string).collect::<Vec<_>>().join(": "))
}
