//! Operators that tract has and answers otherwise than ONNX Runtime does, computed as that does it.
//!
//! Some are read from the file in place of tract's, the others are put in the place of what tract made of them.

mod apart;
mod broad;
mod cast;
mod double;
mod extreme;
mod function;
mod one_hot;
mod shape;
mod total;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::{GraphProto, NodeProto};
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::tract_core::ops::math::Ln;
use tract_onnx::tract_hir::tract_core::ops::nn::{Softmax, SoftmaxKind};

use crate::check::malformed;

pub(crate) use extreme::Extreme;
pub(crate) use total::Total;

/// Registers those that are read, over tract's own.
pub(crate) fn register(ops: &mut OnnxOpRegister) {
    cast::register(ops);
    extreme::register(ops);
    function::register(ops);
    shape::register(ops);
}

/// What the reader of a node makes of it.
type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// The operator as tract reads it, for forms that it answers rightly.
fn theirs(context: &ParsingContext<'_>, node: &NodeProto) -> Built {
    let read = tract_onnx::onnx().op_register.0.get(node.op_type.as_str()).copied();
    read.ok_or_else(|| malformed(&format!("the runtime knows no {}", node.op_type)))?(context, node)
}

/// Takes away the optional inputs at the end of a node that are there and empty: tract takes some of them for given.
pub(crate) fn leave_out(graph: &mut GraphProto) {
    for node in &mut graph.node {
        while node.input.last().is_some_and(String::is_empty) {
            node.input.pop();
        }
    }
}

/// Puts the others in place.
pub(crate) fn put(model: &mut TypedModel) -> TractResult<()> {
    for id in 0..model.nodes.len() {
        let twice = apart::twice(model, model.node(id));
        for inlet in
            twice.into_iter().map(|slot| InletId::new(id, slot)).chain(broad::takers(model, model.node(id)))
        {
            apart::copy(model, inlet)?;
        }
        let node = model.node(id);
        let (inputs, op): (_, Box<dyn TypedOp>) = if let Some(op) = one_hot::of(node)? {
            (node.inputs.clone(), Box::new(op))
        } else if let Some(op) = double::of(model, node)? {
            (node.inputs.clone(), Box::new(op))
        } else if let Some(op) = total::of(model, node)? {
            (node.inputs.clone(), Box::new(op))
        } else if let Some((input, op)) = log_softmax(model, node)? {
            (vec![input], Box::new(op))
        } else {
            continue;
        };
        let mut patch = TypedModelPatch::default();
        let taps = inputs.iter().map(|&i| patch.tap_model(model, i)).collect::<TractResult<TVec<_>>>()?;
        let wire = patch.wire_node(&node.name, op, &taps)?[0];
        patch.shunt_outside(model, id.into(), wire)?;
        patch.apply(model)?;
    }
    Ok(())
}

/// The logarithm of a softmax in one: by themselves small probabilities become zero, and their logarithm infinite.
fn log_softmax(model: &TypedModel, node: &TypedNode) -> TractResult<Option<(OutletId, Softmax)>> {
    let logarithm = node.op_as::<ElementWiseOp>().is_some_and(|op| op.0.is::<Ln>());
    let before = model.node(node.inputs.first().map_or(node.id, |input| input.node));
    let Some(softmax) = before.op_as::<Softmax>().filter(|_| logarithm) else { return Ok(None) };
    let plain = softmax.kind == SoftmaxKind::Softmax && softmax.quant_output_dt.is_none();
    Ok(plain.then(|| (before.inputs[0], Softmax { kind: SoftmaxKind::LogSoftmax, ..softmax.clone() })))
}
