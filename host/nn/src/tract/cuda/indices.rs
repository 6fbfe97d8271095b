//! Checks in each run that indices of `Gather` are in their table, as tract does on the CPU and not on a GPU.

use tract_onnx::tract_core::internal::*;
use tract_onnx::tract_core::ops::array::Gather;

/// Inserts the checks into a model. A model has few tables, and their indices are small beside what is computed: 8 bytes for a token.
pub(super) fn check_in_runs(model: &mut TypedModel) -> TractResult<()> {
    for node in model.eval_order()? {
        let Some(gather) = model.node(node).op_as::<Gather>() else { continue };
        let axis = gather.axis;
        let [table, indices] = model.node(node).inputs[..] else { continue };
        // On a GPU tract computes no `Gather` with indices of another type.
        if model.outlet_fact(indices)?.datum_type != i64::datum_type() {
            continue;
        }
        let size = model.outlet_fact(table)?.shape[axis].clone();
        let mut patch = TypedModelPatch::default();
        let inputs = patch.taps(model, &[table, indices])?;
        let name = model.node(node).name.clone();
        let checked = patch.wire_node(format!("{name}.indices"), IndexCheck { size }, &inputs[1..])?[0];
        let gathered = patch.wire_node(&name, model.node(node).op.clone(), &[inputs[0], checked])?[0];
        patch.shunt_outside(model, node.into(), gathered)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// Passes indices that are at least `-size` and less than `size`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct IndexCheck {
    size: TDim,
}

impl Op for IndexCheck {
    fn name(&self) -> StaticName {
        "IndexCheck".into()
    }

    op_as_typed_op!();
}

impl EvalOp for IndexCheck {
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        let size = self.size.eval(context.symbols).to_i64()?;
        for indices in &inputs {
            let indices = indices.try_as_plain_ram()?;
            if let Some(index) = indices.as_slice::<i64>()?.iter().find(|index| !(-size..size).contains(*index)) {
                bail!("there is no entry {index} in a table of {size} entries");
            }
        }
        Ok(inputs)
    }
}

impl TypedOp for IndexCheck {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        inputs.iter().map(|fact| Ok(fact.datum_type.fact(fact.shape.clone()))).collect()
    }

    as_op!();
}

#[cfg(test)]
mod tests {
    use tract_onnx::tract_core::ops::konst::Const;

    use super::*;

    #[test]
    fn index_past_the_table_is_an_error() -> TractResult<()> {
        let mut model = TypedModel::default();
        let table = tensor2(&[[1f32, 10.0], [2.0, 20.0], [3.0, 30.0]]);
        let table = model.wire_node("table", Const::new(table.into_arc_tensor())?, &[])?[0];
        let tokens: TDim = model.symbols.new_with_prefix("tokens").into();
        let ids = model.add_source("ids", i64::datum_type().fact(&[tokens]))?;
        let rows = model.wire_node("rows", Gather::new(0), &[table, ids])?;
        model.select_output_outlets(&rows)?;
        check_in_runs(&mut model)?;
        model.check_consistency()?;
        assert_eq!(model.nodes().iter().filter(|node| node.op_is::<IndexCheck>()).count(), 1);
        let plan = model.into_optimized()?.into_runnable()?;
        let run = |ids: &[i64]| plan.run(tvec![tensor1(ids).into()]);
        assert_eq!(run(&[2, 0, -3])?[0].as_bytes(), tensor2(&[[3f32, 30.0], [1.0, 10.0], [1.0, 10.0]]).as_bytes());
        for index in [3, -4, i64::MAX, i64::MIN] {
            let error = format!("{:#}", run(&[0, index]).unwrap_err());
            assert!(error.contains(&format!("there is no entry {index} in a table of 3 entries")), "{error}");
        }
        Ok(())
    }
}
