//! Graphs that compute one row from others: a mean, a softmax or a running sum over the batch, a difference from its first row,
//! a share of their number.
//!
//! A request is cut into parts, and rows of other callers may come along, so that such a graph would answer a row by what it
//! happens to come with. It is run row by row.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::{
    CumSum, DynSlice, Gather, GatherNd, Pad, Range, ScatterNd, Slice, Topk, Trilu, TypedConcat,
};
use tract_onnx::tract_hir::tract_core::ops::cnn::{Conv, Deconv, MaxPool, PoolSpec, SumPool};
use tract_onnx::tract_hir::tract_core::ops::einsum::EinSum;
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, RmsNorm, Softmax};
use tract_onnx::tract_hir::tract_core::ops::scan::{InputMapping, Scan};

use crate::amend::{Extreme, Total};
use crate::places::{by_element, fact as input};

/// What tract calls its normalisation of each channel by those beside it.
const LRN: &str = "Lrn";
/// Two numbers of rows, to see by which a dimension grows.
const SOME_ROWS: [i64; 2] = [1, 7];

/// Whether a node of `model`, whose number of rows is open, and is `rows`, takes rows together or apart, or computes with their
/// number.
pub(crate) fn over_rows(model: &TypedModel, rows: &Symbol) -> bool {
    let is_open = |node: &TypedNode, (slot, axis)| {
        input(model, node, slot).and_then(|fact| fact.shape.get::<usize>(axis)).is_some_and(open)
    };
    model.nodes.iter().any(|node| {
        (node.op_is::<Range>() && node.outputs.iter().any(|out| !out.fact.shape.is_concrete()))
            || (0..node.inputs.len()).any(|slot| input(model, node, slot).is_some_and(counts))
            || node.outputs.iter().any(|out| out.fact.shape.iter().any(|dim| open(dim) && !whole(dim, rows)))
            || node.op_as::<AxisOp>().is_some_and(cuts)
            || joined(model, node).into_iter().any(|along| is_open(node, along))
    })
}

fn open(dim: &TDim) -> bool {
    dim.to_i64().is_err()
}

/// Whether a value is made of the number of rows: what only makes shapes of it is gone once the graph is prepared.
fn counts(fact: &TypedFact) -> bool {
    let known = |value: &Tensor| value.cast_to::<i64>().is_ok();
    fact.datum_type == DatumType::TDim && !fact.konst.as_deref().is_some_and(known)
}

/// Whether an open dimension holds as many places for each row.
fn whole(dim: &TDim, rows: &Symbol) -> bool {
    let [one, more] = SOME_ROWS.map(|n| dim.eval(&SymbolValues::default().with(rows, n)).to_i64().ok());
    one.is_some_and(|each| each > 0 && more == Some(each * SOME_ROWS[1]))
}

/// Whether a reshape lays places of several rows side by side: it does, unless rows are outermost before and after it.
fn cuts(op: &AxisOp) -> bool {
    let AxisOp::Reshape(_, from, to) = op else { return false };
    let inner = |dims: &TVec<TDim>| dims.iter().skip_while(|dim| dim.is_one()).skip(1).any(open);
    inner(from) || inner(to)
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
    named!(CumSum, Gather, Topk, Slice, DynSlice, RmsNorm => axis);
    named!(Reduce, Extreme, Total, Softmax => axes);

    let rank = input(model, node, 0).map_or(0, TypedFact::rank);
    // The axes of places within a row, and those of channels.
    let places = |spec: &PoolSpec| (spec.data_format.h_axis()..).take(spec.kernel_shape.len());
    let channel =
        |spec: &PoolSpec| if spec.data_format.c_is_last() { rank - 1 } else { spec.data_format.h_axis() - 1 };
    if let Some(spec) =
        node.op_as::<MaxPool>().map(|op| &op.pool_spec).or(node.op_as::<SumPool>().map(|op| &op.pool_spec))
    {
        return places(spec).map(|axis| (0, axis)).collect();
    }
    if let Some(spec) =
        node.op_as::<Conv>().map(|op| &op.pool_spec).or(node.op_as::<Deconv>().map(|op| &op.pool_spec))
    {
        return places(spec)
            .chain([channel(spec)])
            .map(|axis| (0, axis))
            .chain(weights(model, node))
            .collect();
    }
    if let Some(axis) = by_element(node) {
        return std::iter::once((0, axis)).chain(unlike(model, node)).collect();
    }
    if node.op.name() == LRN {
        return vec![(0, 1)];
    }
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

/// All axes of the weights of a convolution.
fn weights(model: &TypedModel, node: &TypedNode) -> Vec<(usize, usize)> {
    let rank = |slot| input(model, node, slot).map_or(0, TypedFact::rank);
    (1..node.inputs.len()).flat_map(|slot| (0..rank(slot)).map(move |axis| (slot, axis))).collect()
}

/// The axes along which the indices of a node do not go as far as its data: it takes the first places.
fn unlike(model: &TypedModel, node: &TypedNode) -> Vec<(usize, usize)> {
    let (Some(data), Some(indices)) = (input(model, node, 0), input(model, node, 1)) else {
        return Vec::new();
    };
    let pairs = data.shape.iter().zip(indices.shape.iter()).enumerate();
    pairs.filter(|(_, (data, indices))| data != indices).map(|(axis, _)| (0, axis)).collect()
}

fn of_inputs(axes: &[TVec<usize>]) -> Vec<(usize, usize)> {
    axes.iter().enumerate().flat_map(|(slot, axes)| axes.iter().map(move |&axis| (slot, axis))).collect()
}
