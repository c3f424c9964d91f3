//! Values that are repeated by `Expand` or `Tile`, or by `Where` of constant conditions. tract lets a product of matrices take them unrepeated, even where it sums
//! over the repetitions; a copy that it does not see through keeps them.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{DynTile, MultiBroadcastTo, Tile};
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::logic::Iff;

/// The inlets that take what `node` repeats. Operators of two values repeat by themselves, and are left alone.
pub(super) fn takers(model: &TypedModel, node: &TypedNode) -> Vec<InletId> {
    let is_known =
        || model.outlet_fact(node.inputs[0]).is_ok_and(|fact| fact.konst.is_some() || fact.uniform.is_some());
    let is_repeat = node.op_is::<MultiBroadcastTo>() || node.op_is::<Tile>() || node.op_is::<DynTile>();
    if !(is_repeat || node.op_is::<Iff>() && is_known()) {
        return Vec::new();
    }
    let takers = node.outputs.iter().flat_map(|output| output.successors.iter().copied());
    takers.filter(|inlet| !model.node(inlet.node).op_is::<TypedBinOp>()).collect()
}
