//! Distances between the rows of two tables, which standard operators have no name for.

use std::collections::BTreeMap;

use tract_onnx::pb::{GraphProto, NodeProto};

use super::arithmetic::{input, output};
use super::graph::Editor;
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{node_name, unsupported};

/// `CDist` of ONNX Runtime: distances of each row of one table to each row of another.
pub(super) fn pairs(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let metric = Attributes { node }.text("metric", "sqeuclidean");
    if !matches!(metric.as_str(), "sqeuclidean" | "euclidean") {
        return Err(unsupported(
            &format!("com.microsoft/CDist with the metric {metric:?}"),
            node_name(node),
            "use the euclidean metric",
        ));
    }
    squared(editor, input(node, 0)?, input(node, 1)?, metric == "euclidean", output(node)?)?;
    editor.rewrites.add("com.microsoft/CDist", "Sub and ReduceSumSquare", node_name(node));
    Ok(())
}

/// `Scan`, where it does what neighbours and Gaussian processes are exported with: for each row of one table, the
/// squared distances to the rows of another. Other loops stay what they are, and are refused.
pub(super) fn scan(editor: &mut Editor, node: NodeProto) -> Result<(), EngineError> {
    if !is_distance(&node) {
        return editor.keep(node);
    }
    let (table, rows) = (input(&node, 0)?, input(&node, 1)?);
    if let Some(same) = node.output.first().filter(|name| !name.is_empty()) {
        editor.op_to("Identity", &[table], vec![], same)?;
    }
    if let Some(distances) = node.output.get(1).filter(|name| !name.is_empty()) {
        squared(editor, rows, table, false, distances)?;
    }
    editor.rewrites.add("ai.onnx/Scan over distances", "Sub and ReduceSumSquare", node_name(&node));
    Ok(())
}

fn is_distance(node: &NodeProto) -> bool {
    let plain = node.attribute.iter().all(|a| match a.name.as_str() {
        "body" => true,
        "num_scan_inputs" => a.i == 1,
        // Directions and axes, which have to be the first ones.
        _ => a.ints.iter().all(|&n| n == 0),
    });
    let body = Attributes { node }.find("body").and_then(|a| a.g.as_ref());
    plain && node.input.len() == 2 && node.output.len() == 2 && body.is_some_and(is_distance_body)
}

/// The table goes through, and `ReduceSumSquare(table - row)` comes out.
fn is_distance_body(body: &GraphProto) -> bool {
    let ([table, row], [table_out, distances]) = (body.input.as_slice(), body.output.as_slice()) else {
        return false;
    };
    let makers: BTreeMap<&str, &NodeProto> =
        body.node.iter().filter_map(|n| Some((n.output.first()?.as_str(), n))).collect();
    // Each step goes to another node or ends, unless names go round in a circle.
    let source = |name: &str| -> Option<String> {
        let mut name = name.to_owned();
        for _ in 0..=body.node.len() {
            match makers.get(name.as_str()) {
                Some(node) if node.op_type == "Identity" => name.clone_from(node.input.first()?),
                Some(_) | None => return Some(name),
            }
        }
        None
    };
    let made = |name: &str, op: &str| {
        let name = source(name)?;
        makers.get(name.as_str()).copied().filter(|node| node.op_type == op)
    };
    let Some(sum) = made(&distances.name, "ReduceSumSquare") else { return false };
    let all = Attributes { node: sum };
    let Some(sub) = sum.input.first().and_then(|name| made(name, "Sub")) else { return false };
    let parts: Vec<Option<String>> = sub.input.iter().map(|name| source(name)).collect();
    let (table_in, row_in) = (Some(table.name.clone()), Some(row.name.clone()));
    sum.input.len() == 1
        && all.ints("axes") == [1]
        && all.int("keepdims", 1) == 0
        && (parts == [table_in.clone(), row_in.clone()] || parts == [row_in, table_in.clone()])
        && source(&table_out.name) == table_in
}

/// Squared distances of the rows of `a` to the rows of `b`, or their roots.
fn squared(editor: &mut Editor, a: &str, b: &str, root: bool, output: &str) -> Result<(), EngineError> {
    let a = editor.unsqueeze(a, 1)?;
    let b = editor.unsqueeze(b, 0)?;
    let difference = editor.op("Sub", &[&a, &b], vec![])?;
    if root {
        let sum = editor.reduce("ReduceSumSquare", &difference, Some(&[2]), 0)?;
        return editor.op_to("Sqrt", &[&sum], vec![], output);
    }
    editor.reduce_to("ReduceSumSquare", &difference, Some(&[2]), 0, output)
}
