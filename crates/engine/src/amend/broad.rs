//! Values that are repeated by `Expand` or `Tile`, or by `Where` of constant conditions. tract lets a product of matrices take
//! them unrepeated, even where it sums over the repetitions; a copy that it does not see through keeps them.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{DynTile, MultiBroadcastTo, Slice, Tile};
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::logic::Iff;
use tract_onnx::tract_hir::tract_core::ops::scan::Scan;

/// The inlets that take what `node` repeats. Operators of two values repeat by themselves, and are left alone, and so are loops,
/// whose products are within: of their first states tract has to see that they are constant.
pub(super) fn takers(model: &TypedModel, node: &TypedNode) -> Vec<InletId> {
    let is_known =
        || model.outlet_fact(node.inputs[0]).is_ok_and(|fact| fact.konst.is_some() || fact.uniform.is_some());
    let is_repeat = node.op_is::<MultiBroadcastTo>() || node.op_is::<Tile>() || node.op_is::<DynTile>();
    if !(is_repeat || node.op_is::<Iff>() && is_known()) {
        return Vec::new();
    }
    let takers = node.outputs.iter().flat_map(|output| output.successors.iter().copied());
    takers.filter(|&inlet| !keeps(model, inlet)).collect()
}

/// Whether repeated values are taken as such at `inlet`.
fn keeps(model: &TypedModel, inlet: InletId) -> bool {
    let taker = model.node(inlet.node);
    taker.op_is::<TypedBinOp>() || leads_to_loops(model, taker)
}

/// Whether a node is a loop, or only hands a part of its value to loops: that of one direction, without its axis.
fn leads_to_loops(model: &TypedModel, node: &TypedNode) -> bool {
    let mut behind = node.outputs.iter().flat_map(|output| output.successors.iter());
    let hands_on = node.op_is::<AxisOp>() || node.op_is::<Slice>();
    node.op_is::<Scan>() || hands_on && behind.all(|inlet| leads_to_loops(model, model.node(inlet.node)))
}
