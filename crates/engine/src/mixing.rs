//! Graphs that compute one row from others: a mean, a softmax or a running sum over the batch, a difference from its first row.
//!
//! A request is cut into parts, and rows of other callers may come along, so that such a graph would answer a row by what it
//! happens to come with. It is run row by row.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{
    CumSum, DynSlice, Gather, GatherElements, GatherNd, Pad, Range, ScatterElements, ScatterNd, Slice, Topk,
    Trilu, TypedConcat,
};
use tract_onnx::tract_hir::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Softmax};
use tract_onnx::tract_hir::tract_core::ops::scan::{InputMapping, Scan};

use crate::amend::Extreme;

/// Whether a node of `model`, whose number of rows is open, takes rows together or apart.
pub(crate) fn over_rows(model: &TypedModel) -> bool {
    let is_open = |node: &TypedNode, (slot, axis)| {
        input(model, node, slot)
            .and_then(|fact| fact.shape.get::<usize>(axis))
            .is_some_and(|dim| dim.to_i64().is_err())
    };
    model.nodes.iter().any(|node| {
        (node.op_is::<Range>() && node.outputs.iter().any(|out| !out.fact.shape.is_concrete()))
            || joined(model, node).into_iter().any(|along| is_open(node, along))
    })
}

fn input<'a>(model: &'a TypedModel, node: &TypedNode, slot: usize) -> Option<&'a TypedFact> {
    node.inputs.get(slot).and_then(|&input| model.outlet_fact(input).ok())
}

/// The axes of its inputs along which a node computes one value from several, or chooses by place: pairs of input and axis.
fn joined(model: &TypedModel, node: &TypedNode) -> Vec<(usize, usize)> {
    // Those that name their axis, or axes, of their first input.
    macro_rules! named {
        ($($op:ty),* => axis) => { $(if let Some(op) = node.op_as::<$op>() { return vec![(0, op.axis)]; })* };
        ($($op:ty),* => axes) => {
            $(if let Some(op) = node.op_as::<$op>() { return op.axes.iter().map(|&axis| (0, axis)).collect(); })*
        };
    }
    named!(CumSum, Gather, GatherElements, ScatterElements, Topk, Slice, DynSlice => axis);
    named!(Reduce, Extreme, Softmax => axes);

    let rank = input(model, node, 0).map_or(0, TypedFact::rank);
    // How many axes an index names, in the last axis of the indices.
    let indexed = || input(model, node, 1).and_then(|of| of.shape.last()?.to_usize().ok()).unwrap_or(rank);
    if let Some(op) = node.op_as::<GatherNd>() {
        (op.batch_dims..op.batch_dims + indexed()).map(|axis| (0, axis)).collect()
    } else if node.op_is::<ScatterNd>() {
        (0..indexed()).map(|axis| (0, axis)).collect()
    } else if node.op_is::<Trilu>() {
        (rank.saturating_sub(2)..rank).map(|axis| (0, axis)).collect()
    } else if let Some(op) = node.op_as::<Pad>() {
        let padded = op.pads.iter().enumerate().filter(|(_, pads)| **pads != (0, 0));
        padded.map(|(axis, _)| (0, axis)).collect()
    } else if let Some(op) = node.op_as::<TypedConcat>() {
        (0..node.inputs.len()).map(|slot| (slot, op.axis)).collect()
    } else if let Some(op) = node.op_as::<EinSum>() {
        let summed = op.axes.iter_all_axes().filter(|axis| axis.outputs.iter().all(|of| of.is_empty()));
        summed.flat_map(|axis| of_inputs(&axis.inputs)).collect()
    } else if let Some(op) = node.op_as::<Scan>() {
        let along = op.input_mapping.iter().enumerate().filter_map(|(slot, mapping)| match mapping {
            InputMapping::Scan(info) => Some((slot, info.axis)),
            InputMapping::Full | InputMapping::State => None,
        });
        along.collect()
    } else {
        Vec::new()
    }
}

fn of_inputs(axes: &[TVec<usize>]) -> Vec<(usize, usize)> {
    axes.iter().enumerate().flat_map(|(slot, axes)| axes.iter().map(move |&axis| (slot, axis))).collect()
}
