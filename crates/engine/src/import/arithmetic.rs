//! Operators that the runtime has and answers otherwise.

use tract_onnx::pb::{AttributeProto, NodeProto};

use super::graph::{Editor, int, ints};
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, unsupported};

/// Stands in for a maximum that is infinite, so that nothing is subtracted from itself.
const FINITE: f32 = f32::MAX;

/// `ReduceLogSumExp`, which the runtime computes as it is written: sums of small probabilities become zero. Here the
/// largest term is taken out first.
pub(super) fn log_sum_exp(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    let x = input(node, 0)?;
    let axes = match node.input.get(1).filter(|name| !name.is_empty()) {
        Some(name) => {
            let axes = editor.constant(name).and_then(super::tensor::ints);
            Some(axes.ok_or_else(|| {
                unsupported("ReduceLogSumExp over computed axes", node_name(node), "name them")
            })?)
        }
        None => all.find("axes").map(|a| a.ints.clone()),
    };
    let axes = axes.filter(|axes| !axes.is_empty());
    if axes.is_none() && all.int("noop_with_empty_axes", 0) == 1 {
        editor.op_to("Identity", &[x], vec![], output(node)?)?;
        editor.rewrites.add("ai.onnx/ReduceLogSumExp", "nothing, since it has no axes", node_name(node));
        return Ok(());
    }
    let keep = all.int("keepdims", 1);
    let lowest = editor.floats(&[], &[-FINITE]);
    let highest = editor.floats(&[], &[FINITE]);
    let most = editor.reduce("ReduceMax", x, axes.as_deref(), 1)?;
    let most = editor.op("Max", &[&most, &lowest], vec![])?;
    let most = editor.op("Min", &[&most, &highest], vec![])?;
    let less = editor.op("Sub", &[x, &most], vec![])?;
    let terms = editor.op("Exp", &[&less], vec![])?;
    let sum = editor.reduce("ReduceSum", &terms, axes.as_deref(), keep)?;
    let log = editor.op("Log", &[&sum], vec![])?;
    let most = if keep == 1 {
        most
    } else {
        // Of one value: squeezes the axes out again.
        editor.reduce("ReduceMax", &most, axes.as_deref(), keep)?
    };
    editor.op_to("Add", &[&log, &most], vec![], output(node)?)?;
    editor.rewrites.add(
        "ai.onnx/ReduceLogSumExp",
        "the same with the largest term taken out",
        node_name(node),
    );
    Ok(())
}

/// `ArrayFeatureExtractor`: columns by their places. Of a list it makes a table of one row, which the runtime does
/// not.
pub(super) fn extract(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let list = editor.ints(&[1], &[-1]);
    let places = editor.op("Reshape", &[input(node, 1)?, &list], vec![])?;
    let columns = editor.op("Gather", &[input(node, 0)?, &places], vec![int("axis", -1)])?;
    let table = editor.ints(&[2], &[1, 1]);
    editor.op_to("Expand", &[&columns, &table], vec![], output(node)?)?;
    editor.rewrites.add("ai.onnx.ml/ArrayFeatureExtractor", "Gather", node_name(node));
    Ok(())
}

/// An input that has to be there.
pub(super) fn input(node: &NodeProto, index: usize) -> Result<&str, EngineError> {
    node.input
        .get(index)
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| malformed(&format!("node {:?} lacks input {index}", node_name(node))))
}

/// The first output, which has to be there.
pub(super) fn output(node: &NodeProto) -> Result<&str, EngineError> {
    node.output
        .first()
        .map(String::as_str)
        .filter(|name| !name.is_empty())
        .ok_or_else(|| malformed(&format!("node {:?} makes nothing", node_name(node))))
}

impl Editor {
    /// A reduction; returns the name of what it makes.
    pub(super) fn reduce(
        &mut self,
        op: &str,
        input: &str,
        axes: Option<&[i64]>,
        keep: i64,
    ) -> Result<String, EngineError> {
        let output = self.fresh();
        self.reduce_to(op, input, axes, keep, &output)?;
        Ok(output)
    }

    /// A reduction that makes `output`. The axes are an input from operator set 13 (`ReduceSum`) or 18 on.
    pub(super) fn reduce_to(
        &mut self,
        op: &str,
        input: &str,
        axes: Option<&[i64]>,
        keep: i64,
        output: &str,
    ) -> Result<(), EngineError> {
        let mut attributes: Vec<AttributeProto> = vec![int("keepdims", keep)];
        let as_input = self.opset >= if op == "ReduceSum" { 13 } else { 18 };
        match axes {
            Some(axes) if as_input => {
                let axes = self.ints(&[axes.len()], axes);
                self.op_to(op, &[input, &axes], attributes, output)
            }
            Some(axes) => {
                attributes.push(ints("axes", axes.to_vec()));
                self.op_to(op, &[input], attributes, output)
            }
            None => self.op_to(op, &[input], attributes, output),
        }
    }
}
