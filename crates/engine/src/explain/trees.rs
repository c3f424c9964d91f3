//! Graphs whose answer is a tree ensemble's, with what may follow the trees: constants that are added to the sums, and a link
//! that makes probabilities of them.
//!
//! Features have exact shares in a sum. A link keeps no shares, so what is explained is what stands before it.

use std::sync::Arc;

use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::binary::{BinMiniOp, TypedBinOp};
use tract_onnx::tract_hir::tract_core::ops::element_wise::{ElementWiseMiniOp, ElementWiseOp};
use tract_onnx::tract_hir::tract_core::ops::math::{Add, Mul, Recip};
use tract_onnx::tract_hir::tract_core::ops::nn::{Reduce, Reducer, Sigmoid, Softmax};

use super::{Explains, Explanation, Method};
use crate::rows::{RowWork, work_at};
use crate::tree::Scores;

/// The axis of the columns.
const COLUMNS: usize = 1;

/// A sum over trees that decides an answer.
#[derive(Debug)]
pub(crate) struct TreeSum {
    work: Arc<dyn RowWork>,
    /// By column, what the graph adds to the scores of the trees.
    added: Vec<f64>,
    explains: Explains,
}

impl TreeSum {
    /// The ensemble whose scores are the last output of `graph`, but for what may follow.
    pub(crate) fn of(graph: &TypedModel) -> Option<Self> {
        let answer = before_casts(graph, *graph.output_outlets().ok()?.last()?)?;
        let linked = before_link(graph, answer);
        let margin = linked.unwrap_or(answer);
        let constant = before_constant(graph, margin);
        let work = work_at(graph, constant.as_ref().map_or(margin, |(sums, _)| *sums))?;
        let scores = work.trees().filter(|scores| scores.is_sum())?;
        let as_they_are = linked.is_none() && constant.is_none();
        if !scores.are_margins() && !as_they_are {
            // Behind a transform of their own the scores are no sums any more.
            return None;
        }
        let explains =
            if scores.are_margins() && linked.is_none() { Explains::Output } else { Explains::Margin };
        let added = match constant {
            Some((_, values)) => by_column(&values, scores.width())?,
            None => vec![0.0; scores.width()],
        };
        Some(Self { work, added, explains })
    }

    fn scores(&self) -> &Scores {
        self.work.trees().expect("work without trees is not kept")
    }

    fn margins(&self, row: &[f32]) -> Vec<f64> {
        self.scores().margins(row).iter().zip(&self.added).map(|(sum, added)| sum + added).collect()
    }

    /// The exact values, background row by background row.
    pub(super) fn explain(
        &self,
        x: &[f32],
        background: &[f32],
        go_on: &mut dyn FnMut() -> bool,
    ) -> Explanation {
        let scores = self.scores();
        let (columns, outputs) = (x.len(), scores.width());
        let mut contributions = vec![0.0; outputs * columns];
        let mut base = vec![0.0; outputs];
        let mut used = 0;
        let mut complete = true;
        for row in background.chunks_exact(columns) {
            if used > 0 && !go_on() {
                complete = false;
                break;
            }
            scores.contributions(x, row, &mut contributions);
            for (sum, margin) in base.iter_mut().zip(self.margins(row)) {
                *sum += margin;
            }
            used += 1;
        }
        base.iter_mut().chain(&mut contributions).for_each(|sum| *sum /= used as f64);
        scores.spread(&mut contributions, columns);
        Explanation {
            method: Method::Tree,
            explains: self.explains,
            base,
            value: self.margins(x),
            contributions,
            background: used,
            permutations: 0,
            complete,
        }
    }
}

/// What stands before changes from one floating-point type to another.
fn before_casts(graph: &TypedModel, mut outlet: OutletId) -> Option<OutletId> {
    loop {
        if !graph.outlet_fact(outlet).ok()?.datum_type.is_float() {
            return None;
        }
        let node = &graph.nodes[outlet.node];
        match node.inputs.as_slice() {
            &[before] if node.op.name() == "Cast" => outlet = before,
            _ => return Some(outlet),
        }
    }
}

/// What a softmax, a sigmoid, or sigmoids divided by their sum take.
fn before_link(graph: &TypedModel, outlet: OutletId) -> Option<OutletId> {
    let node = &graph.nodes[outlet.node];
    if node.op_as::<Softmax>().is_some_and(|op| op.axes.as_slice() == [COLUMNS]) {
        return node.inputs.first().copied();
    }
    if !is_binary::<Mul>(node) {
        return before::<Sigmoid>(graph, outlet);
    }
    // The runtime divides by a product with the reciprocal.
    let &[part, reciprocal] = node.inputs.as_slice() else { return None };
    let sum = &graph.nodes[before::<Recip>(graph, reciprocal)?.node];
    let op = sum.op_as::<Reduce>()?;
    let of_columns = op.reducer == Reducer::Sum && op.axes.as_slice() == [COLUMNS];
    if !of_columns || sum.inputs.as_slice() != [part] {
        return None;
    }
    before::<Sigmoid>(graph, part)
}

/// What the operator takes, value by value, that an outlet is made by, if it is this one.
fn before<Op: ElementWiseMiniOp>(graph: &TypedModel, outlet: OutletId) -> Option<OutletId> {
    let node = &graph.nodes[outlet.node];
    let is_this = node.op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<Op>());
    node.inputs.first().copied().filter(|_| is_this)
}

/// What a constant is added to, and the constant.
fn before_constant(graph: &TypedModel, outlet: OutletId) -> Option<(OutletId, Arc<Tensor>)> {
    let node = &graph.nodes[outlet.node];
    let &[a, b] = node.inputs.as_slice() else { return None };
    if !is_binary::<Add>(node) {
        return None;
    }
    let constant = |outlet| graph.outlet_fact(outlet).ok()?.konst.clone();
    constant(b).map(|values| (a, values)).or_else(|| Some((b, constant(a)?)))
}

fn is_binary<Op: BinMiniOp>(node: &TypedNode) -> bool {
    node.op_as::<TypedBinOp>().is_some_and(|op| op.0.is::<Op>())
}

/// A constant of one row as one value a column.
fn by_column(constant: &Tensor, columns: usize) -> Option<Vec<f64>> {
    let values = constant.cast_to::<f64>().ok()?;
    match *values.try_as_plain_ram().ok()?.as_slice::<f64>().ok()? {
        [value] => Some(vec![value; columns]),
        ref values if values.len() == columns && constant.shape().last() == Some(&columns) => {
            Some(values.to_vec())
        }
        _ => None,
    }
}
