//! tract on a GPU of NVIDIA, by `tract-cuda`.
//!
//! The libraries of CUDA are loaded when a model on a GPU is loaded. `tract-cuda` panics where one of them or one of their functions fails, so
//! [`requirements`] checks first what can be missing, and [`guarded`] catches the panics of everything else. A graph has one plan for all
//! shapes, whose weights are copied to the GPU when it is made. Inputs and outputs are in the memory of the host.
//!
//! Kernels do not check what they read: a program that passes an index past a table, or dimensions that the graph does not expect, would read
//! the memory of other models. [`indices`] checks the former in each run, [`check_dimensions`] the latter.

mod indices;
mod requirements;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::math;

use super::convert;
use super::error::chain;
use super::load::{self, AnalysedGraph};
use crate::config::RegistryConfig;
use crate::device::Device;
use crate::engine::{BackendContext, BackendGraph, GraphInfo, GraphSource};
use crate::error::{LoadError, NnError, one_line, panic_text};
use crate::tensor::Tensor;
use crate::wording::{listed, quoted};
use requirements::Machine;

/// Checks, once, that tract computes on the first GPU. At its first start on a machine it compiles its kernels.
///
/// # Errors
/// What is missing, and the remedy.
pub(super) fn check(device: Device) -> Result<(), LoadError> {
    static CHECKED: Mutex<Option<Result<(), String>>> = Mutex::new(None);
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    let result = checked.get_or_insert_with(|| {
        Machine::current().check()?;
        tracing::info!(%device, "tract starts on the GPU; its first start compiles its kernels");
        compute().map_err(|error| explain(&error))
    });
    result.clone().map_err(|reason| LoadError::NoDevice { device, reason })
}

/// Doubles two numbers on the GPU.
fn compute() -> Result<(), String> {
    let doubled = guarded(|| {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([2]))?;
        let y = model.wire_node("y", math::add(), &[x, x])?;
        model.select_output_outlets(&y)?;
        let mut state = prepare(model)?.spawn()?;
        let outputs = state.run(tvec![tensor1(&[1f32, 2.0]).into()])?;
        let output = outputs.first().ok_or_else(|| TractError::msg("it has no output"))?;
        Ok(output.try_as_plain_ram()?.as_slice::<f32>()?.to_vec())
    })?;
    match doubled == [2.0, 4.0] {
        true => Ok(()),
        false => Err("1 + 1 is not 2 on it".to_owned()),
    }
}

/// Lowers a model to kernels, and copies its weights to the GPU.
fn prepare(model: TypedModel) -> TractResult<Box<dyn Runnable>> {
    let runtime = runtime_for_name("cuda")?.ok_or_else(|| TractError::msg("tract has no runtime named cuda"))?;
    runtime.prepare(model)
}

/// Runs code of `tract-cuda`, which panics where a function of CUDA fails.
fn guarded<T>(code: impl FnOnce() -> TractResult<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(code)) {
        Ok(result) => result.map_err(|error| chain(&error)),
        Err(panic) => Err(one_line(panic_text(panic.as_ref()))),
    }
}

/// Loads a graph onto the GPU.
pub(super) fn load(
    source: GraphSource<'_>,
    device: Device,
    config: &RegistryConfig,
) -> Result<Arc<dyn BackendGraph>, LoadError> {
    let origin = source.origin();
    let AnalysedGraph { mut typed, info, .. } = load::analyse(source, config)?;
    let prepared = guarded(|| {
        indices::check_in_runs(&mut typed)?;
        prepare(typed)
    });
    match prepared {
        Ok(runnable) => {
            let tensor_bytes_max = config.tensor_bytes_max;
            Ok(Arc::new(CudaGraph(Arc::new(LoadedGraph { info, device, tensor_bytes_max, runnable }))))
        }
        Err(error) if is_out_of_memory(&error) => Err(LoadError::no_memory_for(device, &origin)),
        Err(error) => Err(LoadError::Broken { origin, reason: format!("cannot be planned for {device}: {error}") }),
    }
}

struct LoadedGraph {
    info: GraphInfo,
    device: Device,
    tensor_bytes_max: usize,
    runnable: Box<dyn Runnable>,
}

impl LoadedGraph {
    /// The error of a run.
    fn failure(&self, error: String) -> NnError {
        if !is_out_of_memory(&error) {
            return NnError::runtime(error);
        }
        let device = self.device;
        tracing::debug!(%device, error, "a batch exhausted the memory of the GPU");
        NnError::out_of_memory(device)
    }
}

struct CudaGraph(Arc<LoadedGraph>);

impl BackendGraph for CudaGraph {
    fn info(&self) -> &GraphInfo {
        &self.0.info
    }

    fn context(&self) -> Result<Box<dyn BackendContext>, NnError> {
        let state = guarded(|| self.0.runnable.spawn()).map_err(NnError::runtime)?;
        Ok(Box::new(CudaContext { graph: self.0.clone(), state }))
    }
}

struct CudaContext {
    graph: Arc<LoadedGraph>,
    state: Box<dyn State>,
}

impl BackendContext for CudaContext {
    fn compute(&mut self, inputs: &[Tensor]) -> Result<Vec<Tensor>, NnError> {
        let Self { graph, state } = self;
        let infos = &graph.info.inputs;
        check_dimensions(infos.iter().map(|info| info.name.as_str()).zip(inputs))?;
        let values = infos.iter().zip(inputs).map(|(info, tensor)| convert::to_tract(info, tensor));
        let values = values.collect::<Result<TVec<TValue>, NnError>>()?;
        let outputs = guarded(|| {
            let outputs = state.run(values)?;
            // Copies an output from the GPU.
            outputs.iter().try_for_each(|output| output.try_as_plain_ram().map(drop))?;
            Ok(outputs)
        });
        let outputs = outputs.map_err(|error| graph.failure(error))?;
        let infos = graph.info.outputs.iter();
        infos.zip(outputs).map(|(info, value)| convert::from_tract(info, &value, graph.tensor_bytes_max)).collect()
    }
}

/// Checks that inputs with the same number of dimensions have the same dimensions, as those of texts have. A graph may declare names of its own
/// for each input; kernels would then combine tensors of different sizes.
fn check_dimensions<'a>(inputs: impl Iterator<Item = (&'a str, &'a Tensor)>) -> Result<(), NnError> {
    let mut seen: Vec<(&str, &Tensor)> = Vec::new();
    for (name, tensor) in inputs {
        let same_rank = seen.iter().find(|(_, other)| other.dimensions.len() == tensor.dimensions.len());
        match same_rank {
            Some((other_name, other)) if other.dimensions != tensor.dimensions => {
                return Err(NnError::invalid(format!(
                    "inputs {} and {} have dimensions {} and {}, which tract takes on a GPU only if they are equal",
                    quoted(other_name),
                    quoted(&name),
                    listed(&other.dimensions),
                    listed(&tensor.dimensions)
                )));
            }
            Some(_) => {}
            None => seen.push((name, tensor)),
        }
    }
    Ok(())
}

/// Whether the memory of the GPU is exhausted. The three texts are those of the driver, of cuBLAS and of cuDNN.
fn is_out_of_memory(error: &str) -> bool {
    ["OUT_OF_MEMORY", "_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"].iter().any(|part| error.contains(part))
}

/// What is missing, and the remedy, by the error of the start.
fn explain(error: &str) -> String {
    if is_out_of_memory(error) {
        return "its memory is exhausted: stop other programs that use it, or serve fewer models".to_owned();
    }
    format!("the engine tract cannot start on it ({error}): set models.engine to \"onnxruntime\"")
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[test]
    fn panics_and_errors_become_one_line() {
        let panic = guarded(|| -> TractResult<()> { panic!("Missing symbol\n  cuFunction") });
        assert_eq!(panic, Err("Missing symbol cuFunction".to_owned()));
        let error = guarded(|| -> TractResult<()> { Err(TractError::msg("inner").context("outer")) });
        assert_eq!(error, Err("outer: inner".to_owned()));
        assert_eq!(guarded(|| Ok(1)), Ok(1));
    }

    #[test]
    fn errors_of_the_start_have_a_remedy() {
        let driver =
            r#"called `Result::unwrap()` on an `Err` value: DriverError(CUDA_ERROR_OUT_OF_MEMORY, "out of memory")"#;
        assert!(is_out_of_memory(driver) && is_out_of_memory("CublasError(CUBLAS_STATUS_ALLOC_FAILED)"));
        assert!(is_out_of_memory("CudnnError(CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED)"));
        assert_eq!(explain(driver), "its memory is exhausted: stop other programs that use it, or serve fewer models");
        expect![[
            r#"the engine tract cannot start on it (Missing symbol cuFunction): set models.engine to "onnxruntime""#
        ]]
        .assert_eq(&explain("Missing symbol cuFunction"));
    }

    #[test]
    fn inputs_of_different_dimensions_are_refused() {
        let tensor = |dimensions: &[u32]| Tensor {
            dimensions: dimensions.to_vec(),
            ty: crate::tensor::TensorType::U8,
            data: vec![0; dimensions.iter().product::<u32>() as usize],
        };
        let check = |first: &[u32], second: &[u32]| {
            let tensors = [tensor(first), tensor(second)];
            check_dimensions(["ids", "mask"].into_iter().zip(&tensors)).map_err(|error| error.text)
        };
        assert_eq!(check(&[2, 8], &[2, 8]), Ok(()));
        assert_eq!(check(&[2, 8], &[2]), Ok(()));
        expect![[r#"inputs "ids" and "mask" have dimensions [2, 8] and [2, 4], which tract takes on a GPU only if they are equal"#]]
            .assert_eq(&check(&[2, 8], &[2, 4]).unwrap_err());
    }
}
