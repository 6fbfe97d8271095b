//! Folds `DequantizeLinear` over stored int8 weights while the graph is read.
//!
//! tract would fold it too, but element by element and more than once, which took half of the loading time of a model. Only weights
//! that are stored in the graph are folded: a table that is gathered first and then scaled stays int8.
//!
//! `y = (x - zero_point) * scale`, per tensor or per slice of `axis`, as the ONNX operator is defined; blocked
//! quantization is left to the engine.

use std::collections::{HashMap, HashSet};

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};

/// Replaces each foldable node by an f32 initializer with the name of its output.
pub(super) fn fold(graph: &mut GraphProto) {
    let outputs: HashSet<&str> = graph.output.iter().map(|output| output.name.as_str()).collect();
    let stored: HashMap<&str, &TensorProto> = graph.initializer.iter().map(|t| (t.name.as_str(), t)).collect();
    let mut folded = Vec::new();
    let mut keep = Vec::with_capacity(graph.node.len());
    for node in &graph.node {
        let weights = match node.op_type.as_str() {
            "DequantizeLinear" if !node.output.iter().any(|name| outputs.contains(name.as_str())) => {
                dequantize(node, &stored)
            }
            _ => None,
        };
        keep.push(weights.is_none());
        folded.extend(weights);
    }
    if folded.is_empty() {
        return;
    }
    let mut keep = keep.into_iter();
    graph.node.retain(|_| keep.next().unwrap_or(true));
    let mut used = HashSet::new();
    collect_used(graph, &mut used);
    let inputs: HashSet<&str> = graph.input.iter().map(|input| input.name.as_str()).collect();
    let is_used = |t: &TensorProto| used.contains(&t.name) || inputs.contains(t.name.as_str());
    let flags: Vec<bool> = graph.initializer.iter().map(is_used).collect();
    let mut flags = flags.into_iter();
    graph.initializer.retain(|_| flags.next().unwrap_or(true));
    graph.initializer.extend(folded);
}

/// Collects every name that a node or an output reads, in subgraphs too.
fn collect_used(graph: &GraphProto, used: &mut HashSet<String>) {
    used.extend(graph.output.iter().map(|output| output.name.clone()));
    for node in &graph.node {
        used.extend(node.input.iter().cloned());
        for attribute in &node.attribute {
            attribute.g.iter().chain(&attribute.graphs).for_each(|graph| collect_used(graph, used));
        }
    }
}

fn dequantize(node: &NodeProto, stored: &HashMap<&str, &TensorProto>) -> Option<TensorProto> {
    let input = |ix: usize| node.input.get(ix).filter(|name| !name.is_empty());
    let stored_input = |ix: usize| stored.get(input(ix)?.as_str()).copied();
    let attribute = |name: &str| node.attribute.iter().find(|attribute| attribute.name == name).map(|a| a.i);
    let (weights, scale) = (stored_input(0)?, stored_input(1)?);
    let zero_point = match input(2) {
        Some(_) => Some(stored_input(2)?),
        None => None,
    };
    let [output] = node.output.as_slice() else { return None };
    if attribute("block_size").is_some_and(|size| size != 0) || attribute("output_dtype").is_some_and(|ty| ty != 0) {
        return None;
    }
    let values = bytes_as_i16(weights)?;
    let scales = floats(scale)?;
    let zero_points = match zero_point {
        Some(tensor) if tensor.data_type == weights.data_type && tensor.dims == scale.dims => bytes_as_i16(tensor)?,
        Some(_) => return None,
        None => vec![0; scales.len()],
    };
    if zero_points.len() != scales.len() {
        return None;
    }
    // The weights are runs of `inner` values of one slice of the axis; the slices repeat cyclically.
    let inner = match (scales.len(), scale.dims.len()) {
        (1, 0 | 1) => values.len().max(1),
        (slices, 1) => {
            let rank = weights.dims.len() as i64;
            let axis = attribute("axis").unwrap_or(1);
            let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).ok()?;
            if usize::try_from(*weights.dims.get(axis)?).ok()? != slices {
                return None;
            }
            // The product of all dimensions was checked, and none is zero: neither scales nor data are empty.
            usize::try_from(weights.dims[axis + 1..].iter().product::<i64>()).ok().filter(|inner| *inner > 0)?
        }
        _ => return None,
    };
    // In place and in plain loops, so that the compiler vectorizes them: a model has ten million weights.
    let mut raw_data = vec![0; 4 * values.len()];
    let write = |out: &mut [u8], v: i16, zero_point: i16, scale: f32| {
        out.copy_from_slice(&(f32::from(v - zero_point) * scale).to_le_bytes());
    };
    if inner == 1 {
        for (run, out) in values.chunks(scales.len()).zip(raw_data.chunks_mut(4 * scales.len())) {
            for (((v, out), scale), zero_point) in
                run.iter().zip(out.chunks_exact_mut(4)).zip(&scales).zip(&zero_points)
            {
                write(out, *v, *zero_point, *scale);
            }
        }
    } else {
        let slices = scales.iter().zip(&zero_points).cycle();
        for ((run, out), (scale, zero_point)) in values.chunks(inner).zip(raw_data.chunks_mut(4 * inner)).zip(slices) {
            run.iter().zip(out.chunks_exact_mut(4)).for_each(|(v, out)| write(out, *v, *zero_point, *scale));
        }
    }
    let (name, dims, data_type) = (output.clone(), weights.dims.clone(), DataType::Float as i32);
    Some(TensorProto { name, dims, data_type, raw_data, ..Default::default() })
}

/// The number of elements; `None` when a dimension is negative or the product overflows.
fn count(tensor: &TensorProto) -> Option<usize> {
    tensor.dims.iter().try_fold(1usize, |n, d| n.checked_mul(usize::try_from(*d).ok()?))
}

/// The values of an 8-bit tensor; `None` when its data has not the length of its dimensions.
fn bytes_as_i16(tensor: &TensorProto) -> Option<Vec<i16>> {
    if tensor.raw_data.len() != count(tensor)? || tensor.raw_data.is_empty() {
        return None;
    }
    let bytes = tensor.raw_data.iter();
    match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int8 => Some(bytes.map(|byte| i16::from(*byte as i8)).collect()),
        DataType::Uint8 => Some(bytes.map(|byte| i16::from(*byte)).collect()),
        _ => None,
    }
}

fn floats(tensor: &TensorProto) -> Option<Vec<f32>> {
    if tensor.data_type != DataType::Float as i32 {
        return None;
    }
    let values: Vec<f32> = match tensor.raw_data.is_empty() {
        true => tensor.float_data.clone(),
        false => tensor.raw_data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
    };
    (Some(values.len()) == count(tensor) && !values.is_empty()).then_some(values)
}

#[cfg(test)]
mod tests {
    use prost::Message;
    use tract_onnx::pb::ModelProto;

    use super::*;
    use crate::graphs::{self, Dt};

    fn int8(name: &str, ty: Dt, dims: &[i64], values: &[i8]) -> TensorProto {
        let raw_data = values.iter().map(|v| *v as u8).collect();
        TensorProto { name: name.to_owned(), dims: dims.to_vec(), data_type: ty as i32, raw_data, ..Default::default() }
    }

    /// Folds `y = x + dequantize(w)`; returns the folded weights, or the number of nodes that remain.
    fn check(
        weights: TensorProto,
        scale: TensorProto,
        zero: Option<TensorProto>,
        axis: Option<i64>,
    ) -> Result<Vec<f32>, usize> {
        let names: Vec<&str> = ["w", "s"].into_iter().chain(zero.as_ref().map(|_| "z")).collect();
        let mut node = graphs::node("DequantizeLinear", &names, &["f"]);
        if let Some(axis) = axis {
            node = graphs::with_int(node, "axis", axis);
        }
        let dims: Vec<String> = weights.dims.iter().map(ToString::to_string).collect();
        let dims: Vec<&str> = dims.iter().map(String::as_str).collect();
        let stored = [Some(weights), Some(scale), zero].into_iter().flatten().collect();
        let (x, y) = (graphs::value("x", Dt::Float, &dims), graphs::value("y", Dt::Float, &dims));
        let bytes = graphs::graph(vec![x], vec![node, graphs::node("Add", &["x", "f"], &["y"])], vec![y], stored);
        let mut graph = ModelProto::decode(bytes.as_slice()).unwrap().graph.unwrap();
        fold(&mut graph);
        let [folded] = graph.initializer.as_slice() else { return Err(graph.node.len()) };
        assert_eq!((folded.name.as_str(), graph.node.len()), ("f", 1));
        Ok(floats(folded).unwrap())
    }

    #[test]
    fn scales_per_tensor_and_per_axis_are_folded() {
        let w = || int8("w", Dt::Int8, &[2, 3], &[-128, -1, 0, 1, 2, 127]);
        let s = |dims: &[i64], values: &[f32]| graphs::weights("s", dims, values);
        let half = check(w(), s(&[], &[0.5]), None, None);
        assert_eq!(half.unwrap(), [-64.0, -0.5, 0.0, 0.5, 1.0, 63.5]);
        let columns = check(w(), s(&[3], &[1.0, 10.0, 100.0]), None, None);
        assert_eq!(columns.unwrap(), [-128.0, -10.0, 0.0, 1.0, 20.0, 12700.0]);
        let rows = check(w(), s(&[2], &[1.0, 10.0]), Some(int8("z", Dt::Int8, &[2], &[1, 2])), Some(-2));
        assert_eq!(rows.unwrap(), [-129.0, -2.0, -1.0, -10.0, 0.0, 1250.0]);
        let unsigned = int8("w", Dt::Uint8, &[2], &[0, -1]);
        let unsigned = check(unsigned, s(&[1], &[2.0]), Some(int8("z", Dt::Uint8, &[1], &[-128])), None);
        assert_eq!(unsigned.unwrap(), [-256.0, 254.0]);
    }

    #[test]
    fn other_patterns_are_left_to_the_engine() {
        let w = || int8("w", Dt::Int8, &[2, 3], &[0; 6]);
        let s = |dims: &[i64], values: &[f32]| graphs::weights("s", dims, values);
        assert_eq!(check(w(), s(&[2], &[1.0; 2]), None, None), Err(2));
        assert_eq!(check(w(), s(&[3], &[1.0; 3]), None, Some(7)), Err(2));
        assert_eq!(check(w(), s(&[3], &[1.0; 2]), None, None), Err(2));
        assert_eq!(check(w(), s(&[3], &[1.0; 3]), Some(int8("z", Dt::Uint8, &[3], &[0; 3])), None), Err(2));
        assert_eq!(check(int8("w", Dt::Int8, &[2, 3], &[0; 5]), s(&[], &[1.0]), None, None), Err(2));
        assert_eq!(check(int8("w", Dt::Int8, &[i64::MAX, 3], &[0; 5]), s(&[], &[1.0]), None, None), Err(2));
        assert_eq!(check(int8("w", Dt::Int8, &[-1, 3], &[0; 5]), s(&[], &[1.0]), None, None), Err(2));
    }
}
