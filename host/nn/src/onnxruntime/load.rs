//! Loads an ONNX file into a session.
//!
//! The file is read by [`onnx`]: external data is checked and loaded, links are followed (ONNX Runtime refuses those that lead out of
//! the directory), and stored int8 weights become f32. The weights are then passed separately from the graph, as a file in memory,
//! because a protobuf is limited to 2 GiB.

use std::sync::Arc;

use ort::environment::Environment;
use ort::ep::ExecutionProviderDispatch;
use ort::session::Session;
use ort::session::builder::GraphOptimizationLevel;
use ort::value::{Outlet, ValueType};
use prost::Message;
use tract_onnx::pb::tensor_proto::DataLocation;
use tract_onnx::pb::{GraphProto, StringStringEntryProto, ValueInfoProto, type_proto};

use super::element::element;
use super::provider::{self, is_out_of_memory};
use super::value::Runner;
use crate::config::RegistryConfig;
use crate::device::Device;
use crate::engine::{Dimension, ElementType, GraphInfo, GraphOptions, GraphSource, TensorInfo};
use crate::error::{LoadError, one_line};
use crate::onnx;
use crate::tensor::TensorType;
use crate::wording::quoted;

/// A loaded graph.
pub(super) struct LoadedGraph {
    pub(super) info: GraphInfo,
    pub(super) device: Device,
    pub(super) tensor_bytes_max: usize,
    pub(super) runner: Runner,
}

/// The name of the file in memory with the weights.
const WEIGHTS: &str = "weights";

/// Smaller weights stay in the graph: ONNX Runtime computes shapes from them.
const WEIGHTS_APART_BYTES: usize = 1024;

/// The alignment of each tensor in the file, for vector instructions.
const WEIGHTS_ALIGNMENT_BYTES: usize = 64;

/// Loads a graph.
pub(super) fn load(
    environment: &Environment,
    source: GraphSource<'_>,
    options: GraphOptions,
    config: &RegistryConfig,
) -> Result<LoadedGraph, LoadError> {
    let device = options.device;
    let origin = source.origin();
    let mut parsed = onnx::read(source, config)?;
    let graph = parsed.model.graph.as_mut();
    let graph = graph.ok_or_else(|| LoadError::Broken { origin: origin.clone(), reason: "no graph".to_owned() })?;
    let unranked: Vec<String> =
        graph.input.iter().chain(&graph.output).filter(|info| !is_ranked(info)).map(|info| info.name.clone()).collect();
    let providers = provider::of(options, config, &graph.input);
    let weights: Arc<[u8]> = take_weights(graph).into();
    let bytes = parsed.model.encode_to_vec();
    drop(parsed.model);
    let session = session(environment, &bytes, weights, providers);
    let session = session.map_err(|error| refusal(&origin, device, &error))?;
    let describe = |outlet: &Outlet, what: &str, is_bf16: bool| {
        let name = outlet.name().to_owned();
        let unsupported = |reason: String| LoadError::Unsupported { origin: origin.clone(), reason };
        let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
            return Err(unsupported(format!("{what} {name} is no tensor", name = quoted(&name))));
        };
        let element = match element(*ty) {
            Some(ElementType::Wit(TensorType::Fp32)) if is_bf16 => ElementType::Wit(TensorType::Bf16),
            Some(element) => element,
            None => {
                return Err(unsupported(format!(
                    "{what} {name} is {ty}, which no guest can pass or get",
                    name = quoted(&name)
                )));
            }
        };
        let dimension = |(size, symbol): (&i64, &String)| match usize::try_from(*size) {
            Ok(size) => Dimension::Fixed(size),
            Err(_) if symbol.is_empty() => Dimension::Unknown,
            Err(_) => Dimension::Symbol(symbol.clone()),
        };
        let dimensions =
            (!unranked.contains(&name)).then(|| shape.iter().zip(dimension_symbols.iter()).map(dimension).collect());
        Ok(TensorInfo { name, element, dimensions })
    };
    let inputs = session.inputs().iter().map(|o| describe(o, "input", parsed.input_bf16.contains(o.name())));
    let inputs = inputs.collect::<Result<_, _>>()?;
    let outputs = session.outputs().iter().map(|o| describe(o, "output", parsed.output_bf16.contains(o.name())));
    let outputs = outputs.collect::<Result<_, _>>()?;
    Ok(LoadedGraph {
        info: GraphInfo { inputs, outputs, parameter_bytes: parsed.parameter_bytes },
        device,
        tensor_bytes_max: config.tensor_bytes_max,
        runner: Runner::new(session).map_err(|reason| LoadError::Broken { origin, reason })?,
    })
}

/// Whether the graph declares the rank of a value. ONNX Runtime's interface reports no dimensions both for a scalar and for an unknown
/// rank.
fn is_ranked(info: &ValueInfoProto) -> bool {
    match info.r#type.as_ref().and_then(|ty| ty.value.as_ref()) {
        Some(type_proto::Value::TensorType(tensor)) => tensor.shape.is_some(),
        _ => false,
    }
}

/// Moves the weights out of the graph into the content of the file [`WEIGHTS`], to which the graph then refers.
fn take_weights(graph: &mut GraphProto) -> Vec<u8> {
    let mut weights = Vec::new();
    for tensor in graph.initializer.iter_mut().filter(|tensor| tensor.raw_data.len() >= WEIGHTS_APART_BYTES) {
        let data = std::mem::take(&mut tensor.raw_data);
        weights.resize(weights.len().next_multiple_of(WEIGHTS_ALIGNMENT_BYTES), 0);
        let entry = |key: &str, value: String| StringStringEntryProto { key: key.to_owned(), value };
        tensor.data_location = Some(DataLocation::External as i32);
        tensor.external_data = vec![
            entry("location", WEIGHTS.to_owned()),
            entry("offset", weights.len().to_string()),
            entry("length", data.len().to_string()),
        ];
        weights.extend_from_slice(&data);
    }
    weights
}

/// Creates a session that computes on the calling thread only: each replica of a model is a thread already.
fn session(
    environment: &Environment,
    graph: &[u8],
    weights: Arc<[u8]>,
    providers: Vec<ExecutionProviderDispatch>,
) -> ort::Result<Session> {
    let mut builder = Session::builder(environment)?
        .with_optimization_level(GraphOptimizationLevel::All)?
        .with_intra_threads(1)?
        .with_inter_threads(1)?
        // Otherwise DequantizeLinear and MatMul are fused into an operator that rounds activations to int8 as well.
        .with_quant_qdq(false)?
        // A memory pattern is stored for every shape of an input, without a bound.
        .with_memory_pattern(false)?
        .with_execution_providers(providers)?;
    if !weights.is_empty() {
        builder = builder.with_external_initializer_file_in_memory(WEIGHTS, weights)?;
    }
    builder.commit_from_memory(graph)
}

/// Converts ONNX Runtime's error to a load error.
fn refusal(origin: &str, device: Device, error: &ort::Error) -> LoadError {
    if device != Device::Cpu && is_out_of_memory(error.message()) {
        return LoadError::no_memory_for(device, origin);
    }
    let (origin, reason) = (origin.to_owned(), one_line(error.message()));
    match error.code() {
        ort::ErrorCode::NotImplemented => LoadError::Unsupported { origin, reason },
        _ => LoadError::Broken { origin, reason },
    }
}
