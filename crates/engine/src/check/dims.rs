//! What a graph computes of dimensions. While the number of rows is open they are symbols, which are counted with otherwise
//! than integers are: numbers beyond 32 bits lose the rest, and remainders of negative ones are negative.

use std::collections::BTreeMap;

use tract_onnx::pb::{GraphProto, NodeProto};

use super::bounds;
use crate::import::tensor::ints;

/// What may be in a value.
const DIMENSIONS: u8 = 1;
const LARGE: u8 = 2;
const NEGATIVE: u8 = 4;
/// How often nodes that stand before what they use are looked at again.
const PASSES_MAX: usize = 8;

/// Whether integers that are computed of dimensions may be others than those of symbols.
pub(crate) fn inexact(graph: &GraphProto) -> bool {
    let is_shape = |node: &NodeProto| matches!(node.op_type.as_str(), "Shape" | "Size");
    if !graph.node.iter().any(is_shape) {
        return false;
    }
    let initialisers = graph.initializer.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let constants = bounds::constants(graph, &initialisers);
    let mut holds: BTreeMap<&str, u8> = constants
        .iter()
        .map(|(name, tensor)| (*name, of_constant(&ints(tensor).unwrap_or_default())))
        .collect();
    for _ in 0..PASSES_MAX {
        let mut changed = false;
        for node in &graph.node {
            let mut all = if is_shape(node) { DIMENSIONS } else { 0 };
            for name in values(node) {
                all |= holds.get(name.as_str()).copied().unwrap_or(0);
            }
            all |= attributes(node);
            let dimensions = all & DIMENSIONS != 0;
            if dimensions && (all & LARGE != 0 || (node.op_type == "Mod" && all & NEGATIVE != 0)) {
                return true;
            }
            if dimensions && matches!(node.op_type.as_str(), "Neg" | "Sub") {
                all |= NEGATIVE;
            }
            for name in &node.output {
                let held = holds.entry(name).or_insert(0);
                changed |= *held | all != *held;
                *held |= all;
            }
        }
        if !changed {
            return false;
        }
    }
    true
}

/// The inputs whose numbers go into the outputs, for the operators that compute with dimensions.
fn values(node: &NodeProto) -> &[String] {
    let first = node.input.get(..1).unwrap_or_default();
    match node.op_type.as_str() {
        "Add" | "Clip" | "Concat" | "Div" | "Max" | "Min" | "Mod" | "Mul" | "Pow" | "Sub" | "Sum" => {
            &node.input
        }
        "Where" => node.input.get(1..).unwrap_or_default(),
        "Abs" | "Cast" | "Expand" | "Flatten" | "Gather" | "GatherElements" | "GatherND" | "Identity"
        | "Neg" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceSum" | "Reshape" | "Slice" | "Split"
        | "Squeeze" | "Tile" | "Transpose" | "Unsqueeze" => first,
        _ => &[],
    }
}

/// What the integers in the attributes of a constant hold.
fn attributes(node: &NodeProto) -> u8 {
    if node.op_type != "Constant" {
        return 0;
    }
    let all = node.attribute.iter().flat_map(|a| a.ints.iter().chain([&a.i])).copied();
    of_constant(&all.collect::<Vec<_>>())
}

fn of_constant(numbers: &[i64]) -> u8 {
    let large = if numbers.iter().any(|&n| i32::try_from(n).is_err()) { LARGE } else { 0 };
    large | if numbers.iter().any(|&n| n < 0) { NEGATIVE } else { 0 }
}
