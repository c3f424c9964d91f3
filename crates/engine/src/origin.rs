//! Which node of the file a node of the runtime comes from: one becomes several, named after it.

use tract_onnx::pb::GraphProto;
use tract_onnx::tract_hir::internal::*;
use tract_onnx::tract_hir::tract_core::ops::element_wise::ElementWiseOp;
use tract_onnx::tract_hir::tract_core::ops::nn::Reduce;

use crate::check::{full_name, node_name, unsupported};
use crate::{EngineError, places, tensor};

/// What to do about an answer that is not made row by row.
pub(crate) const FIX_THE_BATCH: &str = "fix the batch at export, as all other dimensions are";

/// The nodes of a file, with their operators (`domain/Name`).
#[derive(Debug)]
pub(crate) struct Origins(Vec<(String, String)>);

impl Origins {
    pub(crate) fn of(graph: Option<&GraphProto>) -> Self {
        let nodes = graph.map(|graph| graph.node.as_slice()).unwrap_or_default();
        let named =
            nodes.iter().map(|node| (node_name(node).to_owned(), full_name(&node.domain, &node.op_type)));
        Self(named.collect())
    }

    /// Name and operator of the node that `made` was made of. The runtime gives each of them the name of the node, and
    /// something behind it.
    fn node(&self, made: &str) -> Option<(&str, &str)> {
        let named = self.0.iter().filter(|(name, _)| !name.is_empty() && made.starts_with(name.as_str()));
        named.max_by_key(|(name, _)| name.len()).map(|(name, op)| (name.as_str(), op.as_str()))
    }

    /// Refuses a node of the runtime, as the one that it comes from.
    pub(crate) fn refuse(&self, node: &TypedNode, what: &str, advice: &str) -> EngineError {
        let own = node.op.name();
        let (name, op) = self.node(&node.name).unwrap_or((&node.name, &own));
        unsupported(&format!("{op} {what}"), name, advice)
    }

    /// Refuses the first node of single values, or of a reduction, that does not take the type of its input: those are
    /// typed by what comes in, and the runtime looks at the type only when it runs them.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] names operator and node.
    pub(crate) fn check_types(&self, model: &TypedModel) -> Result<(), EngineError> {
        for node in &model.nodes {
            if !node.op_is::<ElementWiseOp>() && !node.op_is::<Reduce>() {
                continue;
            }
            let Ok(facts) = model.node_input_facts(node.id) else { continue };
            let &[fact] = facts.as_slice() else { continue };
            // Dimensions are no type of a file.
            let Some(kind) = tensor::dtype(fact.datum_type).filter(|_| fact.datum_type != DatumType::TDim)
            else {
                continue;
            };
            let tried = Tensor::zero_dt(fact.datum_type, &vec![1; fact.rank()])
                .and_then(|one| node.op.eval_out_of_plan(tvec!(one.into_tvalue())));
            if tried.is_err() {
                let advice = "export the model in float32, or cast before this node";
                return Err(self.refuse(node, &format!("of {}", kind.as_str()), advice));
            }
        }
        Ok(())
    }

    /// The refusal of an output that is not made row by row, as the first node that does not do so.
    pub(crate) fn refuse_shape(&self, model: &TypedModel, output: &str, rows: &TDim) -> EngineError {
        let by_row = |fact: &TypedFact| {
            let dims = fact.shape.iter().enumerate();
            dims.into_iter().all(|(axis, dim)| dim.to_i64().is_ok() || (axis == 0 && dim == rows))
        };
        let odd = |node: &&TypedNode| node.outputs.iter().any(|output| !by_row(&output.fact));
        let order = model.eval_order().unwrap_or_default();
        let first = order.into_iter().map(|id| model.node(id)).find(odd);
        let what = format!("mixing the rows of output {output:?}");
        first.map_or_else(
            || unsupported(&what, "", FIX_THE_BATCH),
            |node| self.refuse(node, &what, FIX_THE_BATCH),
        )
    }

    /// The refusal of an output that has not as many rows as the inputs, as the node that makes it.
    pub(crate) fn refuse_rows(&self, made: &TypedNode, output: &str) -> EngineError {
        self.refuse(
            made,
            &format!("making output {output:?}, which is not one row for each row,"),
            FIX_THE_BATCH,
        )
    }

    /// Refuses the first node whose constants ask for what the runtime has not, or what is not there.
    ///
    /// # Errors
    /// [`EngineError::Unsupported`] names operator and node.
    pub(crate) fn check_places(&self, model: &TypedModel) -> Result<(), EngineError> {
        for node in &model.nodes {
            if let Some((what, advice)) = places::odd(model, node) {
                return Err(self.refuse(node, what, advice));
            }
        }
        Ok(())
    }
}
