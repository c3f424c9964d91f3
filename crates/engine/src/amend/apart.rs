//! States of a recurrent operator that begin as the same constant. tract takes both for one, and then finds the first where
//! the second belongs; a copy that it does not see through keeps them apart.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::scan::Scan;

/// The inputs of `node` that come a second time, if it is a recurrent operator.
pub(super) fn twice(node: &TypedNode) -> Vec<usize> {
    if !node.op_is::<Scan>() {
        return Vec::new();
    }
    (1..node.inputs.len()).filter(|&i| node.inputs[..i].contains(&node.inputs[i])).collect()
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
