//! Graphs that compute one row from others: a mean, a softmax or a running sum over the batch.
//!
//! A request is cut into parts, and rows of other callers may come along, so that such a graph would answer a row by what it
//! happens to come with. It is run row by row.

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::array::CumSum;
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Softmax};
use tract_onnx::tract_hir::tract_core::ops::scan::{InputMapping, Scan};

use crate::amend::Extreme;

/// Whether a node of `model`, whose number of rows is open, takes rows together.
pub(crate) fn over_rows(model: &TypedModel) -> bool {
    model.nodes.iter().any(|node| {
        let is_open = |slot: usize, axis: usize| {
            let fact = node.inputs.get(slot).and_then(|&input| model.outlet_fact(input).ok());
            fact.and_then(|fact| fact.shape.get(axis)).is_some_and(|dim| dim.to_i64().is_err())
        };
        let any = |axes: &[usize]| axes.iter().any(|&axis| is_open(0, axis));
        node.op_as::<Reduce>().is_some_and(|op| any(&op.axes))
            || node.op_as::<Extreme>().is_some_and(|op| any(&op.axes))
            || node.op_as::<CumSum>().is_some_and(|op| any(&[op.axis]))
            || node.op_as::<Softmax>().is_some_and(|op| any(&op.axes))
            || node.op_as::<Scan>().is_some_and(|op| {
                op.input_mapping.iter().enumerate().any(|(slot, mapping)| match mapping {
                    InputMapping::Scan(info) => is_open(slot, info.axis),
                    InputMapping::Full | InputMapping::State => false,
                })
            })
    })
}
