//! Recognizes graphs of encoders that the built-in engine computes.
//!
//! For the number of layers and the outputs of a graph, the nodes that `host/nn/models/export.py` writes for texts end to end are
//! generated and compared one by one with those of the graph: operator, inputs, output, attributes. Constants are compared too. A
//! graph that differs anywhere may compute something else and is refused.

use std::collections::HashMap;
use std::fmt::Write as _;

use crate::engine::{Dimension, ElementType, TensorInfo};
use crate::structure::proto::tensor_proto::DataType;
use crate::structure::proto::{GraphProto, NodeProto, TensorProto, ValueInfoProto, tensor_shape_proto, type_proto};
use crate::tensor::TensorType;
use crate::wording::listed;

/// The numbers of a recognized encoder.
pub(super) struct Shape {
    pub(super) layers: usize,
    pub(super) hidden: usize,
    pub(super) heads: usize,
    pub(super) epsilon: f32,
    /// One result for each row of the input `pool`, or one for each token.
    pub(super) pooled: bool,
    /// Scores of a linear layer, or the states themselves.
    pub(super) has_head: bool,
    pub(super) inputs: Vec<TensorInfo>,
    pub(super) output: TensorInfo,
}

/// The shape of a graph.
///
/// # Errors
/// The first difference from a known encoder.
pub(super) fn shape(graph: &GraphProto) -> Result<Shape, String> {
    let constants: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let positions = constants.get("embeddings.positions").ok_or("it has no initializer embeddings.positions")?;
    let [_, hidden] = positions.dims[..] else { return Err("embeddings.positions is not of rank 2".to_owned()) };
    let hidden = usize::try_from(hidden).map_err(|_| "a dimension is negative".to_owned())?;
    let heads = match integers(&constants, "heads_shape")?[..] {
        [0, 0, heads, size] if heads > 0 && size > 0 && (heads * size) as usize == hidden => heads as usize,
        _ => return Err("heads_shape does not split the hidden size".to_owned()),
    };
    let layers = (0..).take_while(|layer| constants.contains_key(query(*layer).as_str())).count();
    let inputs = graph.input.iter().map(info).collect::<Result<Vec<_>, _>>()?;
    let pooled = match inputs.iter().map(|input| input.name.as_str()).collect::<Vec<_>>()[..] {
        ["input_ids", "position_ids", "segment_ids"] => false,
        ["input_ids", "position_ids", "segment_ids", "pool"] => true,
        _ => return Err("its inputs are not input_ids, position_ids and segment_ids, and perhaps pool".to_owned()),
    };
    for (index, input) in inputs.iter().enumerate() {
        let element = if index == 3 { TensorType::Fp32 } else { TensorType::I64 };
        let rank = input.dimensions.as_ref().map(Vec::len);
        if input.element != ElementType::Wit(element) || rank != Some(2) {
            return Err(format!("the input {} is not {element} of rank 2", input.name));
        }
    }
    let [output] = &graph.output[..] else { return Err("it has not one output".to_owned()) };
    let output = info(output)?;
    let has_head = match (output.name.as_str(), pooled) {
        ("logits", _) => true,
        ("sentence_embedding", true) => false,
        _ => return Err(format!("its output is {}", output.name)),
    };
    let epsilon = epsilon(graph)?;
    let expected = nodes(layers, pooled, has_head, epsilon);
    let actual: Vec<String> = graph.node.iter().map(describe).collect();
    if let Some((expected, actual)) = expected.iter().zip(&actual).find(|(expected, actual)| expected != actual) {
        return Err(format!("it has {actual} where {expected} is expected"));
    }
    if expected.len() != actual.len() || layers == 0 {
        return Err(format!("it has {} nodes where {} are expected", actual.len(), expected.len()));
    }
    check_constants(&constants, hidden, pooled)?;
    Ok(Shape { layers, hidden, heads, epsilon, pooled, has_head, inputs, output })
}

fn query(layer: usize) -> String {
    format!("encoder.layer.{layer}.attention.self.query.weight")
}

/// The epsilon of the first layer normalization; the comparison with [`nodes`] requires it of all.
fn epsilon(graph: &GraphProto) -> Result<f32, String> {
    let node = graph.node.iter().find(|node| node.op_type == "LayerNormalization");
    let attribute = node.and_then(|node| node.attribute.iter().find(|attribute| attribute.name == "epsilon"));
    attribute.map(|attribute| attribute.f).ok_or_else(|| "it has no layer normalization".to_owned())
}

fn check_constants(constants: &HashMap<&str, &TensorProto>, hidden: usize, pooled: bool) -> Result<(), String> {
    let numbers: [(&str, f32); 4] =
        [("one", 1.0), ("masked", -10_000.0), ("sqrt_two", std::f32::consts::SQRT_2), ("half", 0.5)];
    for (name, expected) in numbers {
        let tensor = constants.get(name).ok_or_else(|| format!("it has no constant {name}"))?;
        let value = tensor.raw_data.as_slice().try_into().map(f32::from_le_bytes).ok();
        if tensor.data_type != DataType::Float as i32 || value != Some(expected) {
            return Err(format!("its constant {name} is not {expected}"));
        }
    }
    let mut lists: Vec<(&str, Vec<i64>)> =
        vec![("column_axes", vec![1, 3]), ("row_axes", vec![1, 2]), ("hidden_shape", vec![0, 0, hidden as i64])];
    if pooled {
        lists.push(("zero", vec![0]));
    }
    for (name, expected) in lists {
        if integers(constants, name)? != expected {
            return Err(format!("its constant {name} is not {expected}", expected = listed(&expected)));
        }
    }
    Ok(())
}

fn integers(constants: &HashMap<&str, &TensorProto>, name: &str) -> Result<Vec<i64>, String> {
    let tensor = constants.get(name).filter(|tensor| tensor.data_type == DataType::Int64 as i32);
    let tensor = tensor.ok_or_else(|| format!("it has no constant {name} of i64"))?;
    let (words, rest) = tensor.raw_data.as_chunks();
    if !rest.is_empty() {
        return Err(format!("its constant {name} is cut short"));
    }
    Ok(words.iter().map(|word| i64::from_le_bytes(*word)).collect())
}

/// An input or output as the graph declares it.
fn info(value: &ValueInfoProto) -> Result<TensorInfo, String> {
    let name = value.name.clone();
    let Some(type_proto::Value::TensorType(tensor)) = value.r#type.as_ref().and_then(|ty| ty.value.as_ref()) else {
        return Err(format!("{name} is no tensor"));
    };
    let element = if tensor.elem_type == DataType::Float as i32 {
        TensorType::Fp32
    } else if tensor.elem_type == DataType::Int64 as i32 {
        TensorType::I64
    } else {
        return Err(format!("{name} is neither f32 nor i64"));
    };
    let shape = tensor.shape.as_ref().ok_or_else(|| format!("{name} has no shape"))?;
    let dimension = |dimension: &tensor_shape_proto::Dimension| match &dimension.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(size)) => {
            usize::try_from(*size).map_or(Dimension::Unknown, Dimension::Fixed)
        }
        Some(tensor_shape_proto::dimension::Value::DimParam(symbol)) => Dimension::Symbol(symbol.clone()),
        None => Dimension::Unknown,
    };
    let dimensions = Some(shape.dim.iter().map(dimension).collect());
    Ok(TensorInfo { name, element: ElementType::Wit(element), dimensions })
}

/// A node on one line.
fn describe(node: &NodeProto) -> String {
    let mut line = format!("{} {} -> {}", node.op_type, node.input.join(" "), node.output.join(" "));
    for attribute in &node.attribute {
        // Writing to a String cannot fail.
        let _ = match (attribute.name.as_str(), attribute.ints.as_slice()) {
            (name @ "epsilon", _) => write!(line, " {name}={}", attribute.f),
            (name, []) => write!(line, " {name}={}", attribute.i),
            (name, list) => write!(line, " {name}={list}", list = listed(list)),
        };
    }
    if !node.domain.is_empty() {
        let _ = write!(line, " of {}", node.domain);
    }
    line
}

/// The nodes of an encoder, in the form of [`describe`].
fn nodes(layers: usize, pooled: bool, has_head: bool, epsilon: f32) -> Vec<String> {
    let mut nodes: Vec<String> = [
        "Gather embeddings.positions position_ids -> embeddings.position_rows axis=0",
        "Unsqueeze segment_ids column_axes -> segment_column",
        "Unsqueeze segment_ids row_axes -> segment_row",
        "Equal segment_column segment_row -> same_segment",
        "Cast same_segment -> same_segment_f32 to=1",
        "Sub one same_segment_f32 -> hidden",
        "Mul hidden masked -> score_bias",
        "Gather embeddings.words input_ids -> embeddings.rows axis=0",
        "Cast embeddings.rows -> embeddings.rows_f32 to=1",
        "Gather embeddings.scales input_ids -> embeddings.row_scales axis=0",
        "Mul embeddings.rows_f32 embeddings.row_scales -> embeddings.scaled",
        "Add embeddings.scaled embeddings.position_rows -> embeddings.sum",
    ]
    .map(str::to_owned)
    .into();
    let normalized = |x: &str, name: &str| {
        format!("LayerNormalization {x} {name}.weight {name}.bias -> {name}.output axis=-1 epsilon={epsilon}")
    };
    let linear = |x: &str, name: &str| {
        [
            format!("DequantizeLinear {name}.weight {name}.scale -> {name}.dequantized axis=1"),
            format!("MatMul {x} {name}.dequantized -> {name}.product"),
            format!("Add {name}.product {name}.bias -> {name}.output"),
        ]
    };
    nodes.push(normalized("embeddings.sum", "embeddings.LayerNorm"));
    let mut x = "embeddings.LayerNorm.output".to_owned();
    for layer in 0..layers {
        let name = format!("encoder.layer.{layer}");
        let own = format!("{name}.attention.self");
        for (part, order) in [("query", "[0, 2, 1, 3]"), ("key", "[0, 2, 3, 1]"), ("value", "[0, 2, 1, 3]")] {
            let part = format!("{own}.{part}");
            nodes.extend(linear(&x, &part));
            nodes.push(format!("Reshape {part}.output heads_shape -> {part}.split"));
            nodes.push(format!("Transpose {part}.split -> {part}.heads perm={order}"));
        }
        nodes.push(format!("MatMul {own}.query.heads {own}.key.heads -> {own}.scores"));
        nodes.push(format!("Add {own}.scores score_bias -> {own}.biased"));
        nodes.push(format!("Softmax {own}.biased -> {own}.shares axis=-1"));
        nodes.push(format!("MatMul {own}.shares {own}.value.heads -> {own}.context"));
        nodes.push(format!("Transpose {own}.context -> {own}.context_rows perm=[0, 2, 1, 3]"));
        nodes.push(format!("Reshape {own}.context_rows hidden_shape -> {own}.joined"));
        nodes.extend(linear(&format!("{own}.joined"), &format!("{name}.attention.output.dense")));
        nodes.push(format!("Add {name}.attention.output.dense.output {x} -> {name}.attention.residual"));
        let norm = format!("{name}.attention.output.LayerNorm");
        nodes.push(normalized(&format!("{name}.attention.residual"), &norm));
        let wide = format!("{name}.intermediate.dense");
        nodes.extend(linear(&format!("{norm}.output"), &wide));
        nodes.push(format!("Div {wide}.output sqrt_two -> {name}.gelu.scaled"));
        nodes.push(format!("Erf {name}.gelu.scaled -> {name}.gelu.erf"));
        nodes.push(format!("Add {name}.gelu.erf one -> {name}.gelu.shifted"));
        nodes.push(format!("Mul {wide}.output {name}.gelu.shifted -> {name}.gelu.product"));
        nodes.push(format!("Mul {name}.gelu.product half -> {name}.gelu.output"));
        nodes.extend(linear(&format!("{name}.gelu.output"), &format!("{name}.output.dense")));
        nodes.push(format!("Add {name}.output.dense.output {norm}.output -> {name}.residual"));
        nodes.push(normalized(&format!("{name}.residual"), &format!("{name}.output.LayerNorm")));
        x = format!("{name}.output.LayerNorm.output");
    }
    if pooled {
        let pooled = if has_head { "pool.mean" } else { "sentence_embedding" };
        nodes.push(format!("Squeeze {x} zero -> pool.states"));
        nodes.push(format!("MatMul pool pool.states -> {pooled}"));
        x = pooled.to_owned();
    }
    if has_head {
        nodes.push(format!("MatMul {x} head.weight -> head.product"));
        nodes.push("Add head.product head.bias -> logits".to_owned());
    }
    nodes
}
