//! Computations with zeros.

use std::sync::Arc;

use weir_nn::{Graph, Tensor, TensorInfo};

/// Computes a graph with zeros as inputs, each dimension 1. It may fail.
pub(crate) fn compute_zeros(graph: &Arc<Graph>) {
    let zeros = |info: &TensorInfo| {
        let dimensions: Vec<u32> = info.dimensions.iter().flatten().map(|_| 1).collect();
        let data = vec![0; info.element.wit().size_bytes()];
        (info.name.clone(), Tensor { dimensions, ty: info.element.wit(), data })
    };
    let inputs = graph.inputs().iter().map(zeros).collect();
    let _ = graph.context().map(|mut context| context.compute(inputs));
}
