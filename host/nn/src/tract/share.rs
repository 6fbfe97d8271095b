//! Shares the weights of the plans of one graph.
//!
//! tract lowers a matrix product with constant weights by packing them for one kernel and storing the packed copy in the operator, so
//! every plan would hold its own copy of nearly all weights (21 MB for three layers of 384, 43 MB for six). Plans for different shapes
//! mostly choose the same packing: a packed matrix that equals one of another plan is replaced by that one, and the copy is freed.

use std::sync::{Arc, Weak};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::matmul::optimized::{MatMulOperand, OptMatMul, ProtoFusedSpec};
use tract_onnx::tract_core::prelude::tract_linalg::mmm::{EagerPackedInput, PackedExoticFact};
use tract_onnx::tract_core::prelude::tract_linalg::pack::PackedFormat;

/// The packed weights of the plans that are in use.
#[derive(Default)]
pub(super) struct PackedWeights(Vec<PackedEntry>);

struct PackedEntry {
    packed: Weak<Blob>,
    fact: PackedExoticFact,
    panel_bytes: usize,
}

impl PackedWeights {
    /// Replaces a new plan's packed weights by equal ones of other plans, and records the others for later plans.
    pub(super) fn share(&mut self, model: &mut TypedModel) {
        self.0.retain(|entry| entry.packed.strong_count() > 0);
        for node in &mut model.nodes {
            let Some(product) = node.op_as_mut::<OptMatMul>() else { continue };
            for step in &mut product.micro_ops {
                let ProtoFusedSpec::AddMatMul { a, b, .. } = step else { continue };
                for operand in [a, b] {
                    let MatMulOperand::Const(value) = operand else { continue };
                    if let Some(weights) = value.downcast_mut::<EagerPackedInput>() {
                        self.share_one(weights);
                    }
                }
            }
        }
    }

    fn share_one(&mut self, weights: &mut EagerPackedInput) {
        let Some(format) = weights.fact.format.downcast_ref::<PackedFormat>() else { return };
        let used_bytes = weights.fact.k * format.r * format.dt.size_of();
        let candidates =
            self.0.iter().filter(|entry| entry.panel_bytes == weights.panel_bytes && entry.fact == weights.fact);
        let mut candidates = candidates.filter_map(|entry| entry.packed.upgrade());
        match candidates.find(|packed| same_panels(packed, &weights.packed, weights.panel_bytes, used_bytes)) {
            Some(packed) => weights.packed = packed,
            None => self.0.push(PackedEntry {
                packed: Arc::downgrade(&weights.packed),
                fact: weights.fact.clone(),
                panel_bytes: weights.panel_bytes,
            }),
        }
    }

    /// The number of distinct matrices, and the number of their uses by plans.
    #[cfg(test)]
    pub(super) fn count(&self) -> (usize, usize) {
        let users = |entry: &PackedEntry| entry.packed.strong_count();
        (self.0.iter().filter(|entry| users(entry) > 0).count(), self.0.iter().map(users).sum())
    }
}

/// Whether the weights are equal. The end of each panel is padding that the packer does not initialize and kernels only prefetch; it
/// is not compared.
fn same_panels(a: &Blob, b: &Blob, panel_bytes: usize, used_bytes: usize) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() || panel_bytes == 0 || used_bytes > panel_bytes {
        return false;
    }
    a.chunks(panel_bytes).zip(b.chunks(panel_bytes)).all(|(a, b)| a.get(..used_bytes) == b.get(..used_bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rows: usize) -> TypedModel {
        let mut model = TypedModel::default();
        let x = model.add_source("x", f32::fact([rows, 64])).unwrap();
        let w = Tensor::from_shape(&[64, 64], &(0..64 * 64).map(|i| i as f32).collect::<Vec<_>>()).unwrap();
        let w = model.add_const("w", w).unwrap();
        let product = tract_onnx::tract_core::ops::einsum::EinSum::new("mk,kn->mn".parse().unwrap(), f32::datum_type());
        let y = model.wire_node("y", product, &[x, w]).unwrap();
        model.select_output_outlets(&y).unwrap();
        model.into_optimized().unwrap()
    }

    #[test]
    fn equal_weights_are_stored_once_and_freed_with_their_last_plan() {
        let mut weights = PackedWeights::default();
        let mut plans: Vec<TypedModel> = [16; 3].into_iter().map(plan).collect();
        plans.iter_mut().for_each(|plan| weights.share(plan));
        assert_eq!(weights.count(), (1, 3));
        let x = Tensor::from_shape(&[16, 64], &vec![1f32; 16 * 64]).unwrap();
        let out = plans.remove(1).into_runnable().unwrap().run(tvec![x.into_tvalue()]).unwrap();
        // The first column of the weights is 0, 64, 128, …
        assert_eq!(out[0].to_plain_array_view::<f32>().unwrap()[[0, 0]], (0..64).map(|k| (k * 64) as f32).sum::<f32>());
        drop(plans);
        assert_eq!(weights.count(), (0, 0));
    }
}
