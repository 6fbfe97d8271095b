//! Tiny ONNX graphs, written field by field, for tests.
#![allow(dead_code, unused_imports, reason = "each test that includes this uses a part of it")]

use prost::Message;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto,
    TensorShapeProto, TypeProto, ValueInfoProto, attribute_proto, type_proto,
};

pub(crate) use tract_onnx::pb::TensorProto as Weights;
pub(crate) use tract_onnx::pb::tensor_proto::DataType as Dt;

/// A declared input or output: dimensions are numbers, or symbols.
pub(crate) fn value(name: &str, ty: DataType, dims: &[&str]) -> ValueInfoProto {
    let dim = |text: &&str| {
        let value = match text.parse() {
            Ok(size) => dimension::Value::DimValue(size),
            Err(_) => dimension::Value::DimParam((*text).to_owned()),
        };
        Dimension { denotation: String::new(), value: Some(value) }
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = type_proto::Tensor { elem_type: ty as i32, shape: Some(shape) };
    let r#type = TypeProto { denotation: String::new(), value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: name.to_owned(), r#type: Some(r#type), ..Default::default() }
}

pub(crate) fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let all = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    NodeProto {
        op_type: op.to_owned(),
        name: format!("{op}_{}", outputs.join("_")),
        input: all(inputs),
        output: all(outputs),
        ..Default::default()
    }
}

pub(crate) fn with_int(mut node: NodeProto, name: &str, i: i64) -> NodeProto {
    let r#type = attribute_proto::AttributeType::Int as i32;
    node.attribute.push(AttributeProto { name: name.to_owned(), i, r#type, ..Default::default() });
    node
}

pub(crate) fn weights(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        raw_data: values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        ..Default::default()
    }
}

/// Weights that are stored in another file.
pub(crate) fn external(name: &str, dims: &[i64], entries: &[(&str, &str)]) -> TensorProto {
    let entry =
        |(key, value): &(&str, &str)| StringStringEntryProto { key: (*key).to_owned(), value: (*value).to_owned() };
    TensorProto {
        name: name.to_owned(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        data_location: Some(DataLocation::External as i32),
        external_data: entries.iter().map(entry).collect(),
        ..Default::default()
    }
}

pub(crate) fn graph(
    inputs: Vec<ValueInfoProto>,
    node: Vec<NodeProto>,
    output: Vec<ValueInfoProto>,
    initializer: Vec<TensorProto>,
) -> Vec<u8> {
    let graph = GraphProto { name: "test".to_owned(), input: inputs, node, output, initializer, ..Default::default() };
    let model = ModelProto {
        ir_version: 8,
        opset_import: vec![OperatorSetIdProto { domain: String::new(), version: 17 }],
        graph: Some(graph),
        ..Default::default()
    };
    model.encode_to_vec()
}

/// `y = x`, of any type and shape.
pub(crate) fn identity(ty: DataType, dims: &[&str]) -> Vec<u8> {
    graph(vec![value("x", ty, dims)], vec![node("Identity", &["x"], &["y"])], vec![value("y", ty, dims)], vec![])
}

/// `y = cast(x)`.
pub(crate) fn cast(from: DataType, to: DataType, dims: &[&str]) -> Vec<u8> {
    let node = with_int(node("Cast", &["x"], &["y"]), "to", to as i64);
    graph(vec![value("x", from, dims)], vec![node], vec![value("y", to, dims)], vec![])
}

/// `z = x + y`, both `[batch, width]`.
pub(crate) fn add(ty: DataType) -> Vec<u8> {
    let dims = ["batch", "width"];
    let inputs = vec![value("x", ty, &dims), value("y", ty, &dims)];
    graph(inputs, vec![node("Add", &["x", "y"], &["z"])], vec![value("z", ty, &dims)], vec![])
}

/// `y = table[x]`, a table of four: it fails for an index out of range.
pub(crate) fn gather() -> Vec<u8> {
    let table = weights("table", &[4], &[10.0, 11.0, 12.0, 13.0]);
    let inputs = vec![value("x", DataType::Int64, &["n"])];
    graph(inputs, vec![node("Gather", &["table", "x"], &["y"])], vec![value("y", DataType::Float, &["n"])], vec![table])
}

/// `y = x · w`, `x` `[batch, tokens, 4]`, `w` `[4, 2]`.
pub(crate) fn matmul() -> Vec<u8> {
    let w = weights("w", &[4, 2], &[1.0, -1.0, 2.0, -2.0, 3.0, -3.0, 4.0, -4.0]);
    matmul_by(w)
}

/// [`matmul`] with other weights.
pub(crate) fn matmul_by(w: TensorProto) -> Vec<u8> {
    let x = value("x", DataType::Float, &["batch", "tokens", "4"]);
    let y = value("y", DataType::Float, &["batch", "tokens", "2"]);
    let name = w.name.clone();
    graph(vec![x], vec![node("MatMul", &["x", &name], &["y"])], vec![y], vec![w])
}

/// One of four graphs with changed bytes, truncated to `cut` bytes.
pub(crate) fn damaged(which: usize, cut: usize, flips: Vec<(usize, u8)>) -> Vec<u8> {
    let originals = [matmul(), gather(), add(Dt::Bfloat16), cast(Dt::Float, Dt::Bool, &["n"])];
    let mut bytes = originals[which].clone();
    for (offset, byte) in flips {
        let offset = offset % bytes.len();
        bytes[offset] ^= byte;
    }
    bytes.truncate(cut.max(1));
    bytes
}
