//! Preparation of numeric features: `Imputer`, `Binarizer`, `FeatureVectorizer` and `Normalizer`.

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
            let filling = editor.floats(&[floats.len()], floats);
            let missing = if replaced.is_nan() {
                editor.is_nan(x)?
            } else {
                let replaced = editor.floats(&[], &[replaced]);
                let replaced = like(editor, &replaced, x)?;
                editor.op("Equal", &[x, &replaced], vec![])?
            };
            (missing, like(editor, &filling, x)?)
        }
    };
    editor.op_to("Where", &[&missing, &filling, x], vec![], made)?;
    editor.rewrites.add("ai.onnx.ml/Imputer", "Where", node_name(node));
    Ok(())
}

/// Numbers of single precision as numbers of the type of `x`, where the operator set can say so.
fn like(editor: &mut Editor, numbers: &str, x: &str) -> Result<String, EngineError> {
    if editor.opset < 15 { Ok(numbers.to_owned()) } else { editor.op("CastLike", &[numbers, x], vec![]) }
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

/// `Normalizer`: each row over its largest value, the sum of its magnitudes, or the root of the sum of its squares. A row
/// that this is zero for stays as it is.
pub(super) fn normalizer(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let (x, made) = (editor.cast(input(node, 0)?, DataType::Float)?, output(node)?);
    let norm = Attributes { node }.text("norm", "MAX");
    let became = match norm.as_str() {
        "MAX" => {
            // What is no number is passed over.
            let lowest = editor.floats(&[], &[f32::MIN]);
            let missing = editor.is_nan(&x)?;
            let numbers = editor.op("Where", &[&missing, &lowest, &x], vec![])?;
            let most = editor.reduce("ReduceMax", &numbers, Some(&[-1]), 1)?;
            let most = editor.op("Max", &[&most, &lowest], vec![])?;
            let (_, most) = or_one(editor, &most)?;
            editor.op_to("Div", &[&x, &most], vec![], made)?;
            "Div by the largest value"
        }
        "L1" => {
            let sum = editor.reduce("ReduceL1", &x, Some(&[-1]), 1)?;
            let (_, sum) = or_one(editor, &sum)?;
            editor.op_to("Div", &[&x, &sum], vec![], made)?;
            "Div by the sum of magnitudes"
        }
        "L2" => {
            let squares = editor.op("Mul", &[&x, &x], vec![])?;
            let sum = editor.reduce("ReduceSum", &squares, Some(&[-1]), 1)?;
            let (flat, sum) = or_one(editor, &sum)?;
            // Of the quotient, as ONNX Runtime has it: squares that overflow are seen.
            let parts = editor.op("Div", &[&squares, &sum], vec![])?;
            let parts = editor.op("Sqrt", &[&parts], vec![])?;
            let opposite = editor.op("Neg", &[&parts], vec![])?;
            let zero = editor.floats(&[], &[0.0]);
            let below = editor.op("Less", &[&x, &zero], vec![])?;
            let parts = editor.op("Where", &[&below, &opposite, &parts], vec![])?;
            editor.op_to("Where", &[&flat, &x, &parts], vec![], made)?;
            "the root of shares in the sum of squares"
        }
        other => {
            return Err(unsupported(
                &format!("ai.onnx.ml/Normalizer with the norm {other:?}"),
                node_name(node),
                "use MAX, L1 or L2",
            ));
        }
    };
    editor.rewrites.add("ai.onnx.ml/Normalizer", became, node_name(node));
    Ok(())
}

/// Where `x` is zero, and `x` with one in those places.
fn or_one(editor: &mut Editor, x: &str) -> Result<(String, String), EngineError> {
    let (zero, one) = (editor.floats(&[], &[0.0]), editor.floats(&[], &[1.0]));
    let flat = editor.op("Equal", &[x, &zero], vec![])?;
    let safe = editor.op("Where", &[&flat, &one, x], vec![])?;
    Ok((flat, safe))
}
