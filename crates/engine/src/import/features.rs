//! Preparation of numeric features: `Imputer`, `Binarizer`, `FeatureVectorizer` and one case of `Normalizer`.

use tract_onnx::pb::NodeProto;
use tract_onnx::pb::tensor_proto::DataType;

use super::arithmetic::{input, output};
use super::graph::{Editor, int};
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, unsupported};

/// `Imputer`: `Where(x is the replaced value, imputed, x)`.
pub(super) fn imputer(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    let (x, made) = (input(node, 0)?, output(node)?);
    let (floats, ints) = (all.floats("imputed_value_floats"), all.ints("imputed_value_int64s"));
    let (missing, filling) = match (floats, ints) {
        ([], []) => {
            return Err(malformed(&format!("imputer {:?} has no imputed values", node_name(node))));
        }
        ([], ints) => {
            let replaced = editor.ints(&[], &[all.int("replaced_value_int64", 0)]);
            (editor.op("Equal", &[x, &replaced], vec![])?, editor.ints(&[ints.len()], ints))
        }
        (floats, _) => {
            let replaced = all.float("replaced_value_float", 0.0);
            let missing = if replaced.is_nan() {
                editor.op("IsNaN", &[x], vec![])?
            } else {
                let replaced = editor.floats(&[], &[replaced]);
                editor.op("Equal", &[x, &replaced], vec![])?
            };
            (missing, editor.floats(&[floats.len()], floats))
        }
    };
    editor.op_to("Where", &[&missing, &filling, x], vec![], made)?;
    editor.rewrites.add("ai.onnx.ml/Imputer", "Where", node_name(node));
    Ok(())
}

/// `Binarizer`: one above the threshold, else zero.
pub(super) fn binarizer(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let (x, made) = (input(node, 0)?, output(node)?);
    let x = editor.cast(x, DataType::Float)?;
    let threshold = editor.floats(&[], &[Attributes { node }.float("threshold", 0.0)]);
    let above = editor.op("Greater", &[&x, &threshold], vec![])?;
    editor.op_to("Cast", &[&above], vec![int("to", DataType::Float as i64)], made)?;
    editor.rewrites.add("ai.onnx.ml/Binarizer", "Greater and Cast", node_name(node));
    Ok(())
}

/// `FeatureVectorizer`: tables side by side. It cuts and fills tables of other widths than it declares; only those
/// whose widths agree are taken.
pub(super) fn vectorizer(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let widths = Attributes { node }.ints("inputdimensions");
    if widths.len() != node.input.len() || widths.is_empty() {
        return Err(malformed(&format!("{:?} declares not one width for each input", node_name(node))));
    }
    let mut parts = Vec::with_capacity(widths.len());
    for (name, &width) in node.input.iter().zip(widths) {
        if editor.width(name).map(|w| w as i64) != Some(width) {
            return Err(unsupported(
                &format!("ai.onnx.ml/FeatureVectorizer with {name:?} of unknown or another width"),
                node_name(node),
                "use Concat",
            ));
        }
        parts.push(editor.cast(name, DataType::Float)?);
    }
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    editor.op_to("Concat", &parts, vec![int("axis", 1)], output(node)?)?;
    editor.rewrites.add("ai.onnx.ml/FeatureVectorizer", "Cast and Concat", node_name(node));
    Ok(())
}

/// `Normalizer`: the runtime's own, but for `MAX`, where ONNX Runtime divides by the largest value rather than by the
/// largest magnitude, and leaves a row alone whose largest value is zero.
pub(super) fn normalizer(editor: &mut Editor, node: NodeProto) -> Result<(), EngineError> {
    let x = input(&node, 0)?;
    let norm = Attributes { node: &node }.text("norm", "MAX");
    if norm != "MAX" {
        return editor.keep(node);
    }
    let x = editor.cast(x, DataType::Float)?;
    let most = editor.reduce("ReduceMax", &x, Some(&[-1]), 1)?;
    let (zero, one) = (editor.floats(&[], &[0.0]), editor.floats(&[], &[1.0]));
    let flat = editor.op("Equal", &[&most, &zero], vec![])?;
    let most = editor.op("Where", &[&flat, &one, &most], vec![])?;
    editor.op_to("Div", &[&x, &most], vec![], output(&node)?)?;
    editor.rewrites.add("ai.onnx.ml/Normalizer", "Div by the largest value", node_name(&node));
    Ok(())
}
