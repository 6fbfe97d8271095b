//! The execution providers of a GPU, which are the parts of ONNX Runtime that compute on it.
//!
//! Without a provider ONNX Runtime computes on the processor and returns no error. A provider that cannot be registered is therefore an
//! error here, and [`check`] computes a small graph on a GPU before the first model is loaded.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use ort::environment::Environment;
use ort::ep::{ArenaExtendStrategy, CUDA, ExecutionProviderDispatch, TensorRT};
use ort::session::Session;
use ort::value::TensorElementType;
use prost::Message;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TypeProto, ValueInfoProto, type_proto,
};

use super::value::{Runner, Value};
use crate::config::RegistryConfig;
use crate::device::Device;
use crate::engine::{GraphOptions, Precision};
use crate::error::{LoadError, one_line};

/// Texts and tokens of the smallest, the usual and the largest batch for which TensorRT builds an engine. Beyond them it builds another.
const TENSORRT_BATCHES: [[i64; 2]; 3] = [[1, 1], [32, 128], [128, 512]];

/// The execution providers for a graph with these inputs: the first that supports a node computes it, and the implicit provider of the
/// processor the rest.
pub(super) fn of(
    options: GraphOptions,
    config: &RegistryConfig,
    inputs: &[ValueInfoProto],
) -> Vec<ExecutionProviderDispatch> {
    let Device::Cuda(number) = options.device else { return Vec::new() };
    let number = i32::from(number);
    let tensorrt = config.tensorrt.as_ref().map(|folder| {
        let mut tensorrt = TensorRT::default()
            .with_device_id(number)
            .with_engine_cache(true)
            .with_engine_cache_path(folder.display())
            .with_timing_cache(true)
            .with_timing_cache_path(folder.display());
        let [min, usual, max] = TENSORRT_BATCHES.map(|batch| shapes(inputs, batch));
        if !min.is_empty() {
            tensorrt =
                tensorrt.with_profile_min_shapes(min).with_profile_opt_shapes(usual).with_profile_max_shapes(max);
        }
        tensorrt.build().error_on_failure()
    });
    // Batches have many sizes; the default strategy rounds the memory for them up to powers of two.
    let mut cuda =
        CUDA::default().with_device_id(number).with_arena_extend_strategy(ArenaExtendStrategy::SameAsRequested);
    if options.precision == Some(Precision::F32) {
        cuda = cuda.with_tf32(false);
    }
    tensorrt.into_iter().chain([cuda.build().error_on_failure()]).collect()
}

/// The shapes of the inputs that have open dimensions, in the form of TensorRT's options. The first dimension is that of the texts.
fn shapes(inputs: &[ValueInfoProto], [texts, tokens]: [i64; 2]) -> String {
    let shape = |input: &ValueInfoProto| {
        let type_proto::Value::TensorType(tensor) = input.r#type.as_ref()?.value.as_ref()?;
        let mut is_open = false;
        let size = |(axis, dimension): (usize, &Dimension)| match dimension.value {
            Some(dimension::Value::DimValue(size)) => size.to_string(),
            _ => {
                is_open = true;
                if axis == 0 { texts } else { tokens }.to_string()
            }
        };
        let sizes: Vec<String> = tensor.shape.as_ref()?.dim.iter().enumerate().map(size).collect();
        is_open.then(|| format!("{}:{}", input.name, sizes.join("x")))
    };
    inputs.iter().filter_map(shape).collect::<Vec<_>>().join(",")
}

/// Checks, once for each device, that ONNX Runtime computes on it.
///
/// # Errors
/// What is missing, and the remedy.
pub(super) fn check(environment: &Environment, device: Device, config: &RegistryConfig) -> Result<(), LoadError> {
    static CHECKED: Mutex<BTreeMap<Device, Result<(), String>>> = Mutex::new(BTreeMap::new());
    if device == Device::Cpu {
        return Ok(());
    }
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    let result = checked.entry(device).or_insert_with(|| compute(environment, device, config));
    result.clone().map_err(|reason| LoadError::NoDevice { device, reason })
}

fn compute(environment: &Environment, device: Device, config: &RegistryConfig) -> Result<(), String> {
    if let Some(folder) = &config.tensorrt {
        let failed = |error: std::io::Error| format!("models.tensorrt {}: {error}", folder.display());
        std::fs::create_dir_all(folder).map_err(failed)?;
    }
    let session = session(environment, device, config).map_err(|error| error.message().to_owned());
    let sum = session.and_then(|session| {
        let data = [1f32, 2.0].map(f32::to_le_bytes).concat();
        let value = Value::borrowing(TensorElementType::Float32, &[2], &data)?;
        let outputs = Runner::new(session)?.run(&[value])?;
        let sum = outputs.first().ok_or("it has no output")?;
        Ok(sum.values()?.data.to_vec())
    });
    match sum {
        Ok(sum) if sum == [2f32, 4.0].map(f32::to_le_bytes).concat() => Ok(()),
        Ok(_) => Err("1 + 1 is not 2 on it: check the GPU with `nvidia-smi`".to_owned()),
        Err(error) => Err(explain(&error)),
    }
}

/// A session that doubles two numbers.
fn session(environment: &Environment, device: Device, config: &RegistryConfig) -> ort::Result<Session> {
    let providers = of(GraphOptions { device, precision: None }, config, &[]);
    Session::builder(environment)?.with_execution_providers(providers)?.commit_from_memory(&doubling().encode_to_vec())
}

/// The graph `y = x + x`.
fn doubling() -> ModelProto {
    let value = |name: &str| {
        let two = Dimension { denotation: String::new(), value: Some(dimension::Value::DimValue(2)) };
        let shape = Some(TensorShapeProto { dim: vec![two] });
        let tensor = type_proto::Tensor { elem_type: DataType::Float as i32, shape };
        let r#type = TypeProto { denotation: String::new(), value: Some(type_proto::Value::TensorType(tensor)) };
        ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..Default::default() }
    };
    let node = NodeProto {
        op_type: "Add".to_owned(),
        input: vec!["x".to_owned(); 2],
        output: vec!["y".to_owned()],
        ..Default::default()
    };
    let graph = GraphProto {
        name: "doubling".to_owned(),
        node: vec![node],
        input: vec![value("x")],
        output: vec![value("y")],
        ..Default::default()
    };
    let operators = OperatorSetIdProto { domain: String::new(), version: 13 };
    ModelProto { ir_version: 8, opset_import: vec![operators], graph: Some(graph), ..Default::default() }
}

/// Whether an error of ONNX Runtime is that the memory of a GPU is exhausted. The four texts are those of its allocator, of CUDA, of the
/// status codes of cuBLAS and of cuDNN 8, and of that of cuDNN 9.
pub(super) fn is_out_of_memory(text: &str) -> bool {
    ["Failed to allocate memory", "out of memory", "_STATUS_ALLOC_FAILED", "DEVICE_ALLOCATION_FAILED"]
        .iter()
        .any(|part| text.contains(part))
}

/// What is missing, and the remedy, by the error of ONNX Runtime.
fn explain(error: &str) -> String {
    let library = || Some(one_line(error.split_once("Failed to load library ")?.1.split_once("with error: ")?.1));
    let says = |text: &str| error.contains(text);
    match library() {
        Some(missing) => format!(
            "ONNX Runtime cannot load its part for GPUs ({missing}): install CUDA and cuDNN in the versions that it needs (for \
             models.tensorrt TensorRT too), and name their folders in LD_LIBRARY_PATH"
        ),
        None if says("not enabled in this build") => {
            "this ONNX Runtime was built without support for GPUs: name the library of the package onnxruntime-gpu in WEIR_ONNXRUNTIME".to_owned()
        }
        None if says("driver version is insufficient") => {
            "the NVIDIA driver is older than the CUDA of this ONNX Runtime: update the driver, or use an earlier onnxruntime-gpu"
                .to_owned()
        }
        None if says("no kernel image") => {
            "this ONNX Runtime has no code for this GPU: use a version of onnxruntime-gpu that supports it".to_owned()
        }
        None if is_out_of_memory(error) => {
            "its memory is exhausted: stop other programs that use it, or serve fewer models".to_owned()
        }
        None => one_line(error),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;
    use crate::graphs::value;

    #[test]
    fn providers_are_those_of_the_device() {
        let names = |device: Device, config: &RegistryConfig| {
            let providers = of(GraphOptions { device, precision: Some(Precision::F32) }, config, &[]);
            providers.iter().map(ExecutionProviderDispatch::name).collect::<Vec<_>>()
        };
        let config = RegistryConfig::default();
        assert!(names(Device::Cpu, &config).is_empty());
        assert_eq!(names(Device::Cuda(1), &config), ["CUDAExecutionProvider"]);
        let config = RegistryConfig { tensorrt: Some("engines".into()), ..config };
        assert_eq!(names(Device::Cuda(1), &config), ["TensorrtExecutionProvider", "CUDAExecutionProvider"]);
    }

    #[test]
    fn profile_has_the_inputs_with_open_dimensions() {
        let inputs = [
            value("input_ids", DataType::Int64, &["batch", "sequence"]),
            value("scale", DataType::Float, &["1"]),
            value("features", DataType::Float, &["batch", "sequence", "8"]),
        ];
        assert_eq!(shapes(&inputs, [32, 128]), "input_ids:32x128,features:32x128x8");
        assert_eq!(shapes(&inputs[1..2], [1, 1]), "");
    }

    #[test]
    fn errors_name_what_is_missing_and_the_remedy() {
        let check = |error: &str, expected: Expect| expected.assert_eq(&explain(error));
        check(
            "/onnxruntime_src/onnxruntime/core/session/provider_bridge_ort.cc:2043 onnxruntime::Provider& \
                 onnxruntime::ProviderLibrary::Get() [ONNXRuntimeError] : 1 : FAIL : Failed to load library \
                 /lib/libonnxruntime_providers_cuda.so with error: libcublasLt.so.13: cannot open shared object file: No such file or directory\n",
            expect![
                "ONNX Runtime cannot load its part for GPUs (libcublasLt.so.13: cannot open shared object file: No such file or directory): install CUDA and cuDNN in the versions that it needs (for models.tensorrt TensorRT too), and name their folders in LD_LIBRARY_PATH"
            ],
        );
        check(
            "CUDA execution provider is not enabled in this build.",
            expect![
                "this ONNX Runtime was built without support for GPUs: name the library of the package onnxruntime-gpu in WEIR_ONNXRUNTIME"
            ],
        );
        check(
            "CUDA failure 35: CUDA driver version is insufficient for CUDA runtime version ; GPU=0 ; hostname=h",
            expect![
                "the NVIDIA driver is older than the CUDA of this ONNX Runtime: update the driver, or use an earlier onnxruntime-gpu"
            ],
        );
        for error in [
            "CUDA failure 2: out of memory ; GPU=0 ; hostname=h",
            "CUBLAS failure 3: CUBLAS_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h",
            "CUDNN failure 2: CUDNN_STATUS_ALLOC_FAILED ; GPU=0 ; hostname=h",
            "CUDNN failure 4004: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED ; GPU=0 ; hostname=h",
        ] {
            assert_eq!(
                explain(error),
                "its memory is exhausted: stop other programs that use it, or serve fewer models",
                "{error}"
            );
        }
        check(
            "CUDA error cudaErrorNoKernelImageForDevice:no kernel image is available for execution on the device",
            expect!["this ONNX Runtime has no code for this GPU: use a version of onnxruntime-gpu that supports it"],
        );
        check("something\nelse", expect!["something else"]);
    }
}
