//! Quantised graphs, computed in float32: each value is rounded to the same steps, and what lies between two
//! roundings is computed with the numbers the steps stand for.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{NodeProto, TensorProto};

use super::arithmetic::{input, output};
use super::graph::{Editor, int};
use super::tensor;
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{full_name, malformed, node_name, unsupported};
use crate::steps;

/// How integers stand for numbers: `(q - zero) * scale`.
struct Steps {
    kind: DataType,
    scale: Vec<f32>,
    zero: Vec<f32>,
}

impl Steps {
    /// The constants at two inputs of a node; without a zero point they are `uint8` around zero.
    fn of(editor: &Editor, node: &NodeProto, scale: usize) -> Result<Self, EngineError> {
        let refused = |what: &str| {
            unsupported(
                &format!("{} with {what}", full_name(&node.domain, &node.op_type)),
                node_name(node),
                "quantise statically, to int8 or uint8, or ship the float32 model",
            )
        };
        let scales = editor.constant(input(node, scale)?).and_then(tensor::floats);
        let scales = scales.ok_or_else(|| refused("a computed scale"))?;
        let (kind, zero) = match node.input.get(scale + 1).filter(|name| !name.is_empty()) {
            None => (DataType::Uint8, vec![0.0]),
            Some(name) => {
                let zero = editor.constant(name).ok_or_else(|| refused("a computed zero point"))?;
                let kind = DataType::try_from(zero.data_type).map_err(|_| refused("an unknown type"))?;
                let zero = tensor::ints(zero).ok_or_else(|| refused("steps of this type"))?;
                (kind, zero.into_iter().map(|n| n as f32).collect())
            }
        };
        if scales.is_empty() || (zero.len() != scales.len() && zero.len() != 1) {
            return Err(malformed(&format!(
                "{:?} has scales and zero points that do not fit",
                node_name(node)
            )));
        }
        if scales.iter().any(|s| !s.is_finite() || *s <= 0.0) {
            return Err(malformed(&format!("{:?} has a scale that is no step", node_name(node))));
        }
        Ok(Self { kind, scale: scales.into_iter().map(|s| s as f32).collect(), zero })
    }

    /// Least and largest integer.
    fn range(&self, node: &NodeProto) -> Result<(f32, f32), EngineError> {
        steps::range(self.kind).ok_or_else(|| {
            unsupported(
                &format!("rounding to {}", self.kind.as_str_name()),
                node_name(node),
                "quantise to int8 or uint8",
            )
        })
    }

    /// Shape of one value, or of one for each index of `axis` of a constant of these dimensions.
    fn shape(&self, node: &NodeProto, dims: Option<&[i64]>, axis: i64) -> Result<Vec<usize>, EngineError> {
        let count = self.scale.len().max(self.zero.len());
        if count == 1 {
            return Ok(vec![]);
        }
        let refused = || {
            unsupported(
                "steps that differ by column of a computed value",
                node_name(node),
                "quantise activations with one scale",
            )
        };
        let dims = dims.ok_or_else(refused)?;
        let rank = dims.len() as i64;
        let axis = usize::try_from(if axis < 0 { axis + rank } else { axis }).unwrap_or(usize::MAX);
        if dims.get(axis) != Some(&(count as i64)) {
            return Err(malformed(&format!(
                "{:?} has {count} scales for dimensions {dims:?}",
                node_name(node)
            )));
        }
        let mut shape = vec![1; dims.len()];
        shape[axis] = count;
        Ok(shape)
    }
}

fn dims(editor: &Editor, name: &str) -> Option<Vec<i64>> {
    editor.constant(name).map(|tensor: &TensorProto| tensor.dims.clone())
}

/// A value of `shape` or, if there is only one of it, a scalar.
fn spread(editor: &mut Editor, shape: &[usize], values: &[f32]) -> String {
    if values.len() == 1 { editor.floats(&[], values) } else { editor.floats(shape, values) }
}

/// The numbers that integers stand for.
fn numbers(
    editor: &mut Editor,
    node: &NodeProto,
    x: &str,
    steps: &Steps,
    axis: i64,
    made: Option<&str>,
) -> Result<String, EngineError> {
    let shape = steps.shape(node, dims(editor, x).as_deref(), axis)?;
    let mut x = editor.cast(x, DataType::Float)?;
    if steps.zero.iter().any(|z| *z != 0.0) {
        let zero = spread(editor, &shape, &steps.zero);
        x = editor.op("Sub", &[&x, &zero], vec![])?;
    }
    let scale = spread(editor, &shape, &steps.scale);
    let made = made.map_or_else(|| editor.fresh(), str::to_owned);
    editor.op_to("Mul", &[&x, &scale], vec![], &made)?;
    Ok(made)
}

/// The nearest integers, ties to even, within the range of their type.
fn integers(
    editor: &mut Editor,
    node: &NodeProto,
    x: &str,
    steps: &Steps,
    made: &str,
) -> Result<(), EngineError> {
    let (least, most) = steps.range(node)?;
    steps.shape(node, None, 0)?;
    let scale = editor.floats(&[], &steps.scale);
    let mut x = editor.op("Div", &[x, &scale], vec![])?;
    x = editor.op("Round", &[&x], vec![])?;
    if steps.zero != [0.0] {
        let zero = editor.floats(&[], &steps.zero);
        x = editor.op("Add", &[&x, &zero], vec![])?;
    }
    let (least, most) = (editor.floats(&[], &[least]), editor.floats(&[], &[most]));
    x = editor.op("Max", &[&x, &least], vec![])?;
    x = editor.op("Min", &[&x, &most], vec![])?;
    editor.op_to("Cast", &[&x], vec![int("to", steps.kind as i64)], made)
}

/// Block-wise steps and types chosen by attribute are younger than what is exported.
fn plain(node: &NodeProto) -> Result<i64, EngineError> {
    let all = Attributes { node };
    if all.int("block_size", 0) != 0 || all.int("output_dtype", 0) != 0 || all.int("precision", 0) != 0 {
        return Err(unsupported(
            "quantising in blocks, or to a type named by an attribute",
            node_name(node),
            "quantise to int8 or uint8 with one scale for each tensor or channel",
        ));
    }
    Ok(all.int("axis", 1))
}

/// `QuantizeLinear`.
pub(super) fn quantize(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    plain(node)?;
    let steps = Steps::of(editor, node, 1)?;
    integers(editor, node, input(node, 0)?, &steps, output(node)?)?;
    editor.rewrites.add("ai.onnx/QuantizeLinear", "Div, Round and a clip, in float32", node_name(node));
    Ok(())
}

/// `DequantizeLinear`.
pub(super) fn dequantize(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let axis = plain(node)?;
    let steps = Steps::of(editor, node, 1)?;
    numbers(editor, node, input(node, 0)?, &steps, axis, Some(output(node)?))?;
    editor.rewrites.add("ai.onnx/DequantizeLinear", "Cast, Sub and Mul, in float32", node_name(node));
    Ok(())
}

/// `QLinearConv`: x, its steps, w, its steps (by output channel), the steps of y, and a bias in steps of x times w.
pub(super) fn convolution(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let (of_x, of_w, of_y) =
        (Steps::of(editor, node, 1)?, Steps::of(editor, node, 4)?, Steps::of(editor, node, 6)?);
    let x = numbers(editor, node, input(node, 0)?, &of_x, 1, None)?;
    let w = numbers(editor, node, input(node, 3)?, &of_w, 0, None)?;
    let mut inputs = vec![x, w];
    if let Some(bias) = node.input.get(8).filter(|name| !name.is_empty()) {
        let scale: Vec<f32> = of_w.scale.iter().map(|s| s * of_x.scale[0]).collect();
        let scale = spread(editor, &[scale.len()], &scale);
        let bias = editor.cast(bias, DataType::Float)?;
        inputs.push(editor.op("Mul", &[&bias, &scale], vec![])?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let y = editor.op("Conv", &inputs, node.attribute.clone())?;
    integers(editor, node, &y, &of_y, output(node)?)?;
    editor.rewrites.add("ai.onnx/QLinearConv", "Conv between roundings, in float32", node_name(node));
    Ok(())
}

/// `QLinearMatMul`: a, its steps, b, its steps (by column), and the steps of y.
pub(super) fn product(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let (of_a, of_b, of_y) =
        (Steps::of(editor, node, 1)?, Steps::of(editor, node, 4)?, Steps::of(editor, node, 6)?);
    let a = numbers(editor, node, input(node, 0)?, &of_a, 0, None)?;
    let b = numbers(editor, node, input(node, 3)?, &of_b, -1, None)?;
    let y = editor.op("MatMul", &[&a, &b], vec![])?;
    integers(editor, node, &y, &of_y, output(node)?)?;
    editor.rewrites.add("ai.onnx/QLinearMatMul", "MatMul between roundings, in float32", node_name(node));
    Ok(())
}

/// `QLinearAdd` and `QLinearMul`: a, its steps, b, its steps, and the steps of what comes out.
pub(super) fn binary(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let (of_a, of_b, of_y) =
        (Steps::of(editor, node, 1)?, Steps::of(editor, node, 4)?, Steps::of(editor, node, 6)?);
    let a = numbers(editor, node, input(node, 0)?, &of_a, 0, None)?;
    let b = numbers(editor, node, input(node, 3)?, &of_b, 0, None)?;
    let op = node.op_type.trim_start_matches("QLinear");
    let y = editor.op(op, &[&a, &b], vec![])?;
    integers(editor, node, &y, &of_y, output(node)?)?;
    rewritten(editor, node);
    Ok(())
}

/// Operators of one value: x, its steps, and the steps of y.
pub(super) fn unary(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    if all.int("channels_last", 0) != 0 {
        return Err(unsupported("channels_last", node_name(node), "export with channels first"));
    }
    // Another name for the operator set the softmax follows; before 13 it flattens.
    if node.op_type == "QLinearSoftmax" && (all.int("opset", 13) < 13) != (editor.opset < 13) {
        return Err(unsupported("a softmax of another operator set", node_name(node), "use one set"));
    }
    let (of_x, of_y) = (Steps::of(editor, node, 1)?, Steps::of(editor, node, 3)?);
    let x = numbers(editor, node, input(node, 0)?, &of_x, 0, None)?;
    let kept = node.attribute.iter().filter(|a| matches!(a.name.as_str(), "axis" | "alpha")).cloned();
    let y = editor.op(node.op_type.trim_start_matches("QLinear"), &[&x], kept.collect())?;
    integers(editor, node, &y, &of_y, output(node)?)?;
    rewritten(editor, node);
    Ok(())
}

/// `QGemm`: a, its steps, b, its steps (by column), a bias in steps of a times b, and the steps of y, without which
/// it stays a float.
pub(super) fn affine(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    let (of_a, of_b) = (Steps::of(editor, node, 1)?, Steps::of(editor, node, 4)?);
    let a = numbers(editor, node, input(node, 0)?, &of_a, 0, None)?;
    let axis = if all.int("transB", 0) != 0 { 0 } else { -1 };
    let b = numbers(editor, node, input(node, 3)?, &of_b, axis, None)?;
    let mut inputs = vec![a, b];
    if let Some(bias) = node.input.get(6).filter(|name| !name.is_empty()) {
        let alpha = all.float("alpha", 1.0);
        let scale: Vec<f32> = of_b.scale.iter().map(|s| s * of_a.scale[0] * alpha).collect();
        let scale = spread(editor, &[scale.len()], &scale);
        let bias = editor.cast(bias, DataType::Float)?;
        inputs.push(editor.op("Mul", &[&bias, &scale], vec![])?);
    }
    let inputs: Vec<&str> = inputs.iter().map(String::as_str).collect();
    let kept = node.attribute.clone();
    if node.input.get(7).is_none_or(String::is_empty) {
        editor.op_to("Gemm", &inputs, kept, output(node)?)?;
    } else {
        let of_y = Steps::of(editor, node, 7)?;
        let y = editor.op("Gemm", &inputs, kept)?;
        integers(editor, node, &y, &of_y, output(node)?)?;
    }
    rewritten(editor, node);
    Ok(())
}

fn rewritten(editor: &mut Editor, node: &NodeProto) {
    let name = full_name(&node.domain, &node.op_type);
    editor.rewrites.add(&name, "the same between roundings, in float32", node_name(node));
}
