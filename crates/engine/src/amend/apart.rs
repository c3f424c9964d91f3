//! Inputs of an operator that are the same value. States of a recurrent operator that begin as one constant tract takes for
//! one, and then finds the first where the second belongs; an integer times itself it makes a square, which it has of floats
//! alone. A copy that it does not see through keeps them apart.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::math::Mul;
use tract_onnx::tract_hir::tract_core::ops::scan::Scan;

/// The inputs of `node` that come a second time, if it is a recurrent operator or a product of integers.
pub(super) fn twice(model: &TypedModel, node: &TypedNode) -> Vec<usize> {
    let is_product = node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Mul>());
    let is_integer = || {
        node.inputs.first().is_some_and(|&of| model.outlet_fact(of).is_ok_and(|x| !x.datum_type.is_float()))
    };
    if !(node.op_is::<Scan>() || is_product && is_integer()) {
        return Vec::new();
    }
    (1..node.inputs.len()).filter(|&i| node.inputs[..i].contains(&node.inputs[i])).collect()
}

/// Puts a copy before an inlet.
pub(super) fn copy(model: &mut TypedModel, inlet: InletId) -> TractResult<()> {
    let node = model.node(inlet.node);
    let from = node.inputs[inlet.slot];
    let name = format!("{}.copy-{}", node.name, inlet.slot);
    let copy = model.add_node(name, Copy, tvec!(model.outlet_fact(from)?.without_value()))?;
    model.add_edge(from, InletId::new(copy, 0))?;
    model.add_edge(OutletId::new(copy, 0), inlet)
}

/// Passes its input on, and tells nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Copy;

impl Op for Copy {
    fn name(&self) -> StaticName {
        "Copy".into()
    }

    op_as_typed_op!();
}

impl EvalOp for Copy {
    op_out_of_plan!();

    fn eval(&self, _: &EvalContext<'_>, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        Ok(inputs)
    }
}

impl TypedOp for Copy {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }

    as_op!();
}
