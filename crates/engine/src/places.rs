//! Places that constants of a graph name: rows and columns to take or to write, widths to pad by.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{
    Gather, GatherElements, GatherNd, Pad, ScatterElements, ScatterNd,
};
use tract_onnx::tract_hir::tract_core::ops::binary::TypedBinOp;
use tract_onnx::tract_hir::tract_core::ops::math::{Div, Rem};

/// What is odd about the constants of a node, and what to do instead.
pub(crate) fn odd(model: &TypedModel, node: &TypedNode) -> Option<(&'static str, &'static str)> {
    if let Some(op) = node.op_as::<Pad>() {
        // The runtime keeps widths without their sign.
        let is_negative = |&width: &usize| i64::try_from(width).is_err();
        let any = op.pads.iter().any(|(before, after)| is_negative(before) || is_negative(after));
        return any.then_some(("with negative pads", "use Slice to take values away"));
    }
    if let Some(TypedBinOp(op, _)) = node.op_as() {
        let zero = (op.is::<Div>() || op.is::<Rem>()) && integers(model, node, 1)?.contains(&0);
        return zero.then_some(("of integers by a constant zero", "divide by what is not zero"));
    }
    let signed = !node.op_is::<GatherNd>() && !node.op_is::<ScatterNd>();
    let (dims, indices) = indexed(model, node)?;
    let known = indices.iter().zip(dims.iter().cycle());
    let mut known = known.filter_map(|(&at, dim)| Some((at, (*dim)?)));
    if !signed && indices.iter().any(|&at| at < 0) {
        Some(("with negative indices", "count them from the beginning"))
    } else if known.any(|(at, dim)| at >= dim || at < -dim) || longer(model, node) {
        let advice = "take places that the data has; where those are rows, fix the batch at export";
        Some(("at a place beyond its data", advice))
    } else {
        None
    }
}

/// What is known of an input of a node.
pub(crate) fn fact<'a>(model: &'a TypedModel, node: &TypedNode, slot: usize) -> Option<&'a TypedFact> {
    model.outlet_fact(*node.inputs.get(slot)?).ok()
}

/// The axis of a node whose indices are as its data, but along that.
pub(crate) fn by_element(node: &TypedNode) -> Option<usize> {
    node.op_as::<GatherElements>().map(|op| op.axis).or(node.op_as::<ScatterElements>().map(|op| op.axis))
}

/// The values of an input, if they are constant integers.
fn integers(model: &TypedModel, node: &TypedNode, slot: usize) -> Option<Vec<i64>> {
    let value = fact(model, node, slot)?.konst.as_ref().filter(|value| value.datum_type().is_integer())?;
    let value = value.cast_to::<i64>().ok()?;
    Some(value.try_as_plain_ram().ok()?.as_slice::<i64>().ok()?.to_vec())
}

/// The dimensions that the constant indices of a node count in, one after the other and again, as far as they are known, and
/// those indices.
fn indexed(model: &TypedModel, node: &TypedNode) -> Option<(Vec<Option<i64>>, Vec<i64>)> {
    let along = node.op_as::<Gather>().map(|op| op.axis).or_else(|| by_element(node));
    let indices = fact(model, node, 1)?;
    let axes = match along {
        Some(axis) => axis..axis + 1,
        // Those of several axes lie together in the last axis of the indices.
        None => {
            let first = node.op_as::<GatherNd>().map(|op| op.batch_dims);
            let first = first.or(node.op_is::<ScatterNd>().then_some(0))?;
            first..first + indices.shape.last()?.to_usize().ok()?
        }
    };
    let data = fact(model, node, 0)?;
    let dim = |axis| data.shape.get::<usize>(axis).and_then(|dim| dim.to_i64().ok());
    Some((axes.map(dim).collect(), integers(model, node, 1).unwrap_or_default()))
}

/// Whether the indices of a node go further than its data, along axes that they do not choose from.
fn longer(model: &TypedModel, node: &TypedNode) -> bool {
    let (Some(along), Some(data), Some(indices)) =
        (by_element(node), fact(model, node, 0), fact(model, node, 1))
    else {
        return false;
    };
    let mut others =
        data.shape.iter().zip(indices.shape.iter()).enumerate().filter(|(axis, _)| *axis != along);
    others.any(|(_, (data, indices))| matches!((data.to_i64(), indices.to_i64()), (Ok(data), Ok(places)) if places > data))
}
