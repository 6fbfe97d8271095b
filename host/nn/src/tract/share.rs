//! Lets the plans of one graph share their weights.
//!
//! tract lowers a matrix product by packing its constant side for one kernel, so every plan would hold its own copy of
//! nearly all weights (21 MB for three layers of 384, 43 MB for six). Plans for different shapes mostly choose the same
//! packing: a constant that equals one of an earlier plan is replaced by it, and the copy is freed.

use std::sync::{Arc, Weak};

use tract_onnx::prelude::*;
use tract_onnx::tract_core::ops::konst::Const;

/// Constants smaller than this are not worth comparing, in elements.
const ELEMENTS_MIN: usize = 1024;

/// The large constants of the plans that live.
#[derive(Default)]
pub(super) struct Constants(Vec<Weak<Tensor>>);

impl Constants {
    /// Replaces constants by equal ones of other plans, and remembers the new ones.
    pub(super) fn share(&mut self, model: &mut TypedModel) -> TractResult<()> {
        self.0.retain(|constant| constant.strong_count() > 0);
        for node in &mut model.nodes {
            let Some(constant) = node.op_as::<Const>() else { continue };
            let value = constant.val();
            // A packed constant's shape tells nothing of its size, so those are always compared.
            if value.is_plain_ram() && value.len() < ELEMENTS_MIN {
                continue;
            }
            let equal = self.0.iter().filter_map(Weak::upgrade).find(|kept| Arc::ptr_eq(kept, value) || kept == value);
            let Some(kept) = equal else {
                self.0.push(Arc::downgrade(value));
                continue;
            };
            if Arc::ptr_eq(&kept, value) {
                continue;
            }
            let fact = constant.exotic_fact().map(tract_onnx::tract_core::dyn_clone::clone_box);
            let shared = Const::new_with_opt_exotic_fact(kept.clone(), fact)?;
            node.op = Box::new(shared);
            if let Some(output) = node.outputs.first_mut() {
                output.fact.konst = Some(kept);
            }
        }
        Ok(())
    }
}
