//! Sizes that a file claims, checked before anything of that size is made.

use std::collections::BTreeMap;

use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};

use super::{malformed, node_name, too_large, unsupported};
use crate::EngineError;

/// Most elements of one tensor, declared or computed: 256 Mi elements are a GiB of f32, above anything these
/// devices hold.
const ELEMENTS_MAX: u64 = 1 << 28;
/// Largest single dimension, pad, repeat or kernel size a node may ask for; images and sequences stay far below.
const EXTENT_MAX: u64 = 1 << 24;
/// Largest pooling or convolution kernel, stride and dilation: a window larger than any image, small enough
/// that walking it ends.
const KERNEL_MAX: u64 = 1 << 12;
/// Most dimensions of a tensor; real models use up to six.
const RANK_MAX: usize = 16;

/// Initialisers by name, each checked.
pub(super) fn initialisers(graph: &pb::GraphProto) -> Result<BTreeMap<&str, &pb::TensorProto>, EngineError> {
    let mut all = BTreeMap::new();
    for initialiser in &graph.initializer {
        tensor(initialiser, &initialiser.name)?;
        if all.insert(initialiser.name.as_str(), initialiser).is_some() {
            return Err(malformed(&format!("the initialiser {:?} is there twice", initialiser.name)));
        }
    }
    Ok(all)
}

/// Checks that a tensor lies in the file and that its dimensions agree with its data.
pub(super) fn tensor(tensor: &pb::TensorProto, at: &str) -> Result<(), EngineError> {
    if tensor.data_location == Some(DataLocation::External as i32) || !tensor.external_data.is_empty() {
        return Err(unsupported("external tensor data", at, "save the model as one file"));
    }
    if tensor.segment.is_some() {
        return Err(unsupported("a segmented tensor", at, "save tensors whole"));
    }
    let elements =
        product(&tensor.dims).ok_or_else(|| malformed(&format!("tensor {at:?} has absurd dimensions")))?;
    if tensor.dims.len() > RANK_MAX || elements > ELEMENTS_MAX {
        return Err(too_large(&format!("the element count of tensor {at:?}"), elements, ELEMENTS_MAX));
    }
    let kind = DataType::try_from(tensor.data_type)
        .map_err(|_| malformed(&format!("tensor {at:?} has an unknown type")))?;
    let width = width(kind).ok_or_else(|| {
        unsupported(
            &format!("the element type {} of a tensor", kind.as_str_name()),
            at,
            "use float32; encode categories as numbers",
        )
    })?;
    let held = if tensor.raw_data.is_empty() {
        let typed = [
            tensor.float_data.len(),
            tensor.int32_data.len(),
            tensor.int64_data.len(),
            tensor.double_data.len(),
            tensor.uint64_data.len(),
        ];
        typed.into_iter().sum::<usize>() as u64
    } else if (tensor.raw_data.len() as u64).is_multiple_of(width) {
        tensor.raw_data.len() as u64 / width
    } else {
        return Err(malformed(&format!("the data of tensor {at:?} ends within an element")));
    };
    if held != elements {
        return Err(malformed(&format!("tensor {at:?} declares {elements} elements and holds {held}")));
    }
    Ok(())
}

/// Checks the declared shape of an input or output; -1 counts as 1.
pub(super) fn declared(name: &str, shape: &[i64]) -> Result<(), EngineError> {
    let known: Vec<i64> = shape.iter().map(|&d| d.max(1)).collect();
    let elements = product(&known).unwrap_or(u64::MAX);
    if shape.len() > RANK_MAX || elements > ELEMENTS_MAX {
        return Err(too_large(&format!("the element count of {name:?}"), elements, ELEMENTS_MAX));
    }
    Ok(())
}

/// All constants by name: initialisers, and what `Constant` nodes hold.
pub(super) fn constants<'a>(
    graph: &'a pb::GraphProto,
    initialisers: &BTreeMap<&'a str, &'a pb::TensorProto>,
) -> BTreeMap<&'a str, &'a pb::TensorProto> {
    let mut constants = initialisers.clone();
    for node in graph.node.iter().filter(|n| n.op_type == "Constant") {
        let value = node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref());
        if let (Some(name), Some(value)) = (node.output.first(), value) {
            constants.insert(name, value);
        }
    }
    constants
}

/// Refuses operators whose constant arguments ask for absurd amounts of memory or time. What depends on
/// computed values is left to the limits of the proving process.
pub(super) fn bombs(
    graph: &pb::GraphProto,
    constants: &BTreeMap<&str, &pb::TensorProto>,
) -> Result<(), EngineError> {
    for node in &graph.node {
        arguments(node, constants)?;
        attributes(node)?;
    }
    Ok(())
}

fn arguments(node: &pb::NodeProto, constants: &BTreeMap<&str, &pb::TensorProto>) -> Result<(), EngineError> {
    let at = node_name(node);
    let constant =
        |index: usize| node.input.get(index).and_then(|name| constants.get(name.as_str())).copied();
    let given = |index: usize| constant(index).and_then(numbers).unwrap_or_default();
    match node.op_type.as_str() {
        "ConstantOfShape" => extent(at, given(0).iter().product(), ELEMENTS_MAX),
        // 0 and -1 stand for dimensions of the data.
        "Expand" | "Reshape" => extent(at, given(1).iter().map(|d| d.max(1.0)).product(), ELEMENTS_MAX),
        "Tile" => {
            let held = constant(0).and_then(|t| product(&t.dims)).unwrap_or(1);
            extent(at, given(1).iter().product::<f64>() * held as f64, ELEMENTS_MAX)
        }
        "Range" => match (given(0).first(), given(1).first(), given(2).first()) {
            (Some(start), Some(limit), Some(delta)) => {
                extent(at, ((limit - start) / delta).max(0.0), EXTENT_MAX)
            }
            _ => Ok(()),
        },
        "Pad" | "OneHot" => given(1).iter().try_for_each(|n| extent(at, n.abs(), EXTENT_MAX)),
        _ => Ok(()),
    }
}

fn attributes(node: &pb::NodeProto) -> Result<(), EngineError> {
    let at = node_name(node);
    for attribute in &node.attribute {
        let max = match attribute.name.as_str() {
            "kernel_shape" | "strides" | "dilations" => KERNEL_MAX,
            "pads" | "output_shape" | "output_padding" | "hidden_size" | "num_outputs" => EXTENT_MAX,
            _ => continue,
        };
        for n in attribute.ints.iter().chain(Some(&attribute.i)) {
            extent(at, n.unsigned_abs() as f64, max)?;
        }
        if attribute.name == "kernel_shape" {
            extent(at, attribute.ints.iter().map(|&n| n as f64).product(), KERNEL_MAX * KERNEL_MAX)?;
        }
    }
    Ok(())
}

/// Sizes are compared as f64: exact up to 2^53, far above every limit, and nothing overflows.
fn extent(at: &str, got: f64, max: u64) -> Result<(), EngineError> {
    if got.is_nan() {
        return Err(malformed(&format!("node {at:?} asks for a size that is no number")));
    }
    if got > max as f64 {
        Err(too_large(&format!("what node {at:?} asks for"), got as u64, max))
    } else {
        Ok(())
    }
}

/// The product of dimensions; `None` if one is negative or it does not fit.
fn product(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1_u64, |all, &d| all.checked_mul(u64::try_from(d).ok()?))
}

/// Bytes of one element, if this engine takes the type.
#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is ONNX's and grows; what is not named is refused"
)]
fn width(kind: DataType) -> Option<u64> {
    Some(match kind {
        DataType::Bool | DataType::Uint8 | DataType::Int8 => 1,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 => 2,
        DataType::Uint32 | DataType::Int32 | DataType::Float => 4,
        DataType::Uint64 | DataType::Int64 | DataType::Double => 8,
        _ => return None,
    })
}

/// The values of a small numeric tensor, such as a shape.
#[allow(clippy::wildcard_enum_match_arm, reason = "the enum is ONNX's; sizes come in no other type")]
fn numbers(tensor: &pb::TensorProto) -> Option<Vec<f64>> {
    if product(&tensor.dims)? > (RANK_MAX * RANK_MAX) as u64 {
        return None;
    }
    let raw = &tensor.raw_data;
    Some(match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 if raw.is_empty() => tensor.int64_data.iter().map(|&n| n as f64).collect(),
        DataType::Int64 => raw.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b) as f64).collect(),
        DataType::Int32 if raw.is_empty() => tensor.int32_data.iter().map(|&n| f64::from(n)).collect(),
        DataType::Int32 => raw.as_chunks::<4>().0.iter().map(|b| f64::from(i32::from_le_bytes(*b))).collect(),
        DataType::Float if raw.is_empty() => tensor.float_data.iter().map(|&x| f64::from(x)).collect(),
        DataType::Float => raw.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        _ => return None,
    })
}
