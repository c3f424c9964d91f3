//! Functions that tract has for single values of 32 bits alone, for those of 64.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_hir::tract_core::ops::math::RoundHalfToEven;
use tract_onnx::tract_hir::tract_core::ops::nn::Sigmoid;

/// The operator, if `node` is such a function of doubles.
pub(super) fn of(model: &TypedModel, node: &TypedNode) -> TractResult<Option<ElementWiseOp>> {
    let Some(ElementWiseOp(theirs, _)) = node.op_as() else { return Ok(None) };
    let ours = if theirs.is::<Sigmoid>() {
        Double::Sigmoid
    } else if theirs.is::<RoundHalfToEven>() {
        Double::Round
    } else {
        return Ok(None);
    };
    let is_double = model.outlet_fact(node.inputs[0])?.datum_type == DatumType::F64;
    Ok(is_double.then(|| ElementWiseOp(Box::new(ours), None)))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Double {
    Sigmoid,
    /// Halves to the even one.
    Round,
}

impl ElementWiseMiniOp for Double {
    fn name(&self) -> String {
        format!("{self:?}64")
    }

    fn eval_in_place(&self, tensor: &mut Tensor, _: Option<DatumType>) -> TractResult<()> {
        for x in tensor.try_as_plain_ram_mut()?.as_slice_mut::<f64>()? {
            *x = match self {
                Self::Sigmoid => 1.0 / (1.0 + (-*x).exp()),
                Self::Round => x.round_ties_even(),
            };
        }
        Ok(())
    }
}
