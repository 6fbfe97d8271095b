//! Reads ONNX protobufs for the engines that run any graph: within bounds, with external data loaded from the model's own directory, stored int8 weights
//! folded, and bf16, which the engines lack on the CPU, widened to f32 (lossless for stored values; computed values are more
//! precise).

mod dequantize;

use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use half::bf16;
use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto, ValueInfoProto, type_proto};

use crate::config::RegistryConfig;
use crate::engine::GraphSource;
use crate::error::LoadError;
use crate::structure::{External, read_file};
use crate::wording::quoted;

const BF16: i32 = DataType::Bfloat16 as i32;

/// A graph whose stored weights are folded.
pub(crate) struct FoldedGraph {
    pub(crate) model: ModelProto,
    pub(crate) output_names: Vec<String>,
    pub(crate) input_bf16: HashSet<String>,
    pub(crate) output_bf16: HashSet<String>,
    /// Every operator of the graph, subgraphs included.
    pub(crate) operators: BTreeSet<String>,
    /// Bytes of the weights as stored.
    pub(crate) parameter_bytes: u64,
}

/// A graph as its file stores it, in memory with its external data.
struct StoredGraph {
    model: ModelProto,
    /// Every operator of the graph, subgraphs included.
    operators: BTreeSet<String>,
    /// Bytes of the weights as stored.
    parameter_bytes: u64,
}

/// Reads a graph and folds its stored int8 weights.
pub(crate) fn read(source: GraphSource<'_>, config: &RegistryConfig) -> Result<FoldedGraph, LoadError> {
    let origin = source.origin();
    let broken = |reason: String| LoadError::Broken { origin: origin.clone(), reason };
    let StoredGraph { mut model, operators, parameter_bytes } = read_stored(source, config)?;
    let graph = model.graph.as_mut().ok_or_else(|| broken("there is no graph in it".to_owned()))?;
    dequantize::fold(graph);
    let input_bf16 = graph.input.iter_mut().filter_map(widen_declared).collect();
    let output_bf16 = graph.output.iter_mut().filter_map(widen_declared).collect();
    let output_names: Vec<String> = graph.output.iter().map(|output| output.name.clone()).collect();
    let mut names = HashSet::new();
    for name in graph.input.iter().map(|input| &input.name) {
        if !names.insert(name) {
            return Err(broken(format!("malformed graph: two inputs are named {name}", name = quoted(&name))));
        }
    }
    if output_names.is_empty() {
        return Err(broken("malformed graph: it has no output".to_owned()));
    }
    Ok(FoldedGraph { output_names, input_bf16, output_bf16, operators, parameter_bytes, model })
}

/// Reads a graph within bounds, loads its external data and widens bf16.
fn read_stored(source: GraphSource<'_>, config: &RegistryConfig) -> Result<StoredGraph, LoadError> {
    let origin = source.origin();
    let broken = |reason: String| LoadError::Broken { origin: origin.clone(), reason };
    let bytes;
    let (content, directory) = match source {
        GraphSource::File(path) => {
            bytes = read_file(path, config.graph_bytes_max)?;
            (bytes.as_slice(), Some(path.parent().unwrap_or(Path::new("."))))
        }
        GraphSource::Bytes(content) => (content, None),
    };
    if content.is_empty() {
        return Err(broken("is empty".to_owned()));
    }
    let mut model = ModelProto::decode(content).map_err(|e| broken(format!("truncated or not ONNX: {e}")))?;
    let bytes_left = config.graph_bytes_max.saturating_sub(content.len() as u64);
    if model.opset_import.is_empty() {
        return Err(broken("truncated or not ONNX: it names no operator set".to_owned()));
    }
    let Some(graph) = model.graph.as_mut() else {
        return Err(broken("truncated or not ONNX: there is no graph in it".to_owned()));
    };
    let mut walk = WeightWalk { directory, bytes_left, parameter_bytes: 0, operators: BTreeSet::new() };
    let functions = model.functions.iter_mut();
    let result =
        walk.graph(graph).and_then(|()| functions.map(|f| &mut f.node).try_for_each(|nodes| walk.nodes(nodes)));
    result.map_err(|fault| match fault {
        Fault::Missing(file) => LoadError::Missing { dir: directory.unwrap_or(Path::new(".")).to_owned(), file },
        Fault::Broken(reason) => broken(reason),
        Fault::TooLarge(reason) => LoadError::TooLarge { origin: origin.clone(), reason },
    })?;
    let (operators, parameter_bytes) = (walk.operators, walk.parameter_bytes);
    Ok(StoredGraph { model, operators, parameter_bytes })
}

enum Fault {
    Missing(String),
    Broken(String),
    TooLarge(String),
}

struct WeightWalk<'a> {
    directory: Option<&'a Path>,
    bytes_left: u64,
    parameter_bytes: u64,
    operators: BTreeSet<String>,
}

impl WeightWalk<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), Fault> {
        for tensor in &mut graph.initializer {
            self.tensor(tensor)?;
        }
        for tensor in &mut graph.sparse_initializer {
            self.sparse(tensor)?;
        }
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), Fault> {
        for node in nodes {
            if !self.operators.contains(&node.op_type) {
                self.operators.insert(node.op_type.clone());
            }
            for attribute in &mut node.attribute {
                if node.op_type == "Cast" && attribute.name == "to" && attribute.i == i64::from(BF16) {
                    attribute.i = i64::from(DataType::Float as i32);
                }
                if let Some(tensor) = &mut attribute.t {
                    self.tensor(tensor)?;
                }
                for tensor in &mut attribute.tensors {
                    self.tensor(tensor)?;
                }
                for tensor in attribute.sparse_tensor.iter_mut().chain(&mut attribute.sparse_tensors) {
                    self.sparse(tensor)?;
                }
                // prost bounds the nesting of messages, so this recursion is bounded too.
                for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
                    self.graph(graph)?;
                }
            }
        }
        Ok(())
    }

    fn sparse(&mut self, tensor: &mut SparseTensorProto) -> Result<(), Fault> {
        tensor.values.iter_mut().chain(&mut tensor.indices).try_for_each(|tensor| self.tensor(tensor))
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), Fault> {
        if tensor.data_location == Some(DataLocation::External as i32) {
            self.load_external(tensor)?;
        }
        let typed = 4 * (tensor.float_data.len() + tensor.int32_data.len())
            + 8 * (tensor.int64_data.len() + tensor.double_data.len() + tensor.uint64_data.len());
        self.parameter_bytes += (tensor.raw_data.len() + typed) as u64;
        if tensor.data_type == BF16 {
            widen(tensor);
        }
        Ok(())
    }

    /// Reads a tensor's external data.
    fn load_external(&mut self, tensor: &mut TensorProto) -> Result<(), Fault> {
        let name = tensor.name.clone();
        let entry = |key: &str| tensor.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
        let External { location, offset, length } = External::parse(&name, entry).map_err(Fault::Broken)?;
        let Some(directory) = self.directory else {
            let text = "a graph passed as bytes cannot have external data: load it by name or put the weights inside";
            return Err(Fault::Broken(format!(
                "tensor {name} lies in {location}; {text}",
                name = quoted(&name),
                location = quoted(&location)
            )));
        };
        let io = |e: std::io::Error| match e.kind() {
            std::io::ErrorKind::NotFound => Fault::Missing(location.clone()),
            _ => Fault::Broken(format!("external data {location} cannot be read: {e}", location = quoted(&location))),
        };
        let file = File::open(directory.join(&location)).map_err(io)?;
        let metadata = file.metadata().map_err(io)?;
        if !metadata.is_file() {
            return Err(Fault::Broken(format!("external data {location} is not a file", location = quoted(&location))));
        }
        let length = length.unwrap_or_else(|| metadata.len().saturating_sub(offset));
        if offset.checked_add(length).is_none_or(|end| end > metadata.len()) {
            return Err(Fault::Broken(format!(
                "external data {location} has {} bytes but tensor {name} takes {length} from byte {offset}",
                metadata.len(),
                location = quoted(&location),
                name = quoted(&name)
            )));
        }
        if length > self.bytes_left {
            return Err(Fault::TooLarge(format!(
                "external data {location} is past the bytes allowed for a graph",
                location = quoted(&location)
            )));
        }
        self.bytes_left -= length;
        let mut data = vec![0; length as usize];
        file.read_exact_at(&mut data, offset).map_err(io)?;
        tensor.raw_data = data;
        tensor.data_location = None;
        tensor.external_data.clear();
        Ok(())
    }
}

/// Changes the declared type of an input or output from bf16 to f32, and returns its name in that case.
fn widen_declared(info: &mut ValueInfoProto) -> Option<String> {
    let type_proto::Value::TensorType(tensor) = info.r#type.as_mut()?.value.as_mut()?;
    (tensor.elem_type == BF16).then(|| {
        tensor.elem_type = DataType::Float as i32;
        info.name.clone()
    })
}

fn widen(tensor: &mut TensorProto) {
    let raw = tensor.raw_data.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]));
    let ints = tensor.int32_data.iter().map(|bits| bf16::from_bits(*bits as u16));
    let values: Vec<u8> = raw.chain(ints).flat_map(|v| v.to_f32().to_le_bytes()).collect();
    tensor.raw_data = values;
    tensor.int32_data.clear();
    tensor.data_type = DataType::Float as i32;
}

/// The names of the files with the external data of an ONNX file.
pub(crate) fn external_files(path: &Path, bytes_max: u64) -> Result<BTreeSet<String>, LoadError> {
    let bytes = read_file(path, bytes_max)?;
    let origin = path.display().to_string();
    let model = ModelProto::decode(bytes.as_slice());
    let model = model.map_err(|e| LoadError::Broken { origin, reason: format!("truncated or not ONNX: {e}") })?;
    let mut files = BTreeSet::new();
    if let Some(graph) = &model.graph {
        collect_locations(graph, &mut files);
    }
    for function in &model.functions {
        collect_locations_of_nodes(&function.node, &mut files);
    }
    Ok(files)
}

/// Adds the locations of all tensors that [`WeightWalk`] reads.
fn collect_locations(graph: &GraphProto, files: &mut BTreeSet<String>) {
    let sparse = graph.sparse_initializer.iter().flat_map(tensors_of);
    graph.initializer.iter().chain(sparse).for_each(|tensor| collect_location(tensor, files));
    collect_locations_of_nodes(&graph.node, files);
}

fn collect_locations_of_nodes(nodes: &[NodeProto], files: &mut BTreeSet<String>) {
    for attribute in nodes.iter().flat_map(|node| &node.attribute) {
        let sparse = attribute.sparse_tensor.iter().chain(&attribute.sparse_tensors).flat_map(tensors_of);
        attribute.t.iter().chain(&attribute.tensors).chain(sparse).for_each(|tensor| collect_location(tensor, files));
        // prost bounds the nesting of messages, so this recursion is bounded too.
        attribute.g.iter().chain(&attribute.graphs).for_each(|graph| collect_locations(graph, files));
    }
}

fn tensors_of(sparse: &SparseTensorProto) -> impl Iterator<Item = &TensorProto> {
    sparse.values.iter().chain(&sparse.indices)
}

fn collect_location(tensor: &TensorProto, files: &mut BTreeSet<String>) {
    if tensor.data_location == Some(DataLocation::External as i32) {
        files.extend(
            tensor.external_data.iter().filter(|entry| entry.key == "location").map(|entry| entry.value.clone()),
        );
    }
}

#[cfg(test)]
mod tests {
    use tract_onnx::pb::{AttributeProto, FunctionProto, StringStringEntryProto};

    use super::*;

    fn external(file: &str) -> TensorProto {
        let location = StringStringEntryProto { key: "location".to_owned(), value: file.to_owned() };
        TensorProto {
            data_location: Some(DataLocation::External as i32),
            external_data: vec![location],
            ..TensorProto::default()
        }
    }

    fn sparse(file: &str) -> SparseTensorProto {
        SparseTensorProto { values: Some(external(file)), ..SparseTensorProto::default() }
    }

    fn node(attribute: AttributeProto) -> NodeProto {
        NodeProto { attribute: vec![attribute], ..NodeProto::default() }
    }

    #[test]
    fn external_files_of_every_part_of_a_model_are_found() {
        let inner = GraphProto { initializer: vec![external("d")], ..GraphProto::default() };
        let graph = GraphProto {
            initializer: vec![external("a")],
            sparse_initializer: vec![sparse("b")],
            node: vec![
                node(AttributeProto { sparse_tensors: vec![sparse("c")], ..AttributeProto::default() }),
                node(AttributeProto { g: Some(inner), ..AttributeProto::default() }),
            ],
            ..GraphProto::default()
        };
        let function = FunctionProto {
            node: vec![node(AttributeProto { t: Some(external("e")), ..AttributeProto::default() })],
            ..FunctionProto::default()
        };
        let model = ModelProto { graph: Some(graph), functions: vec![function], ..ModelProto::default() };
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), model.encode_to_vec()).unwrap();
        let files = external_files(file.path(), 1 << 20).unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(files.into_iter().collect::<Vec<_>>(), ["a", "b", "c", "d", "e"]);
        let long = read_file(file.path(), model.encoded_len() as u64 - 1);
        assert!(matches!(long, Err(LoadError::TooLarge { .. })));
    }
}
