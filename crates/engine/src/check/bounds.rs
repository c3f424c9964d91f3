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
    let elements = product(&tensor.dims).ok_or_else(|| malformed(&format!("tensor {at:?} has absurd dimensions")))?;
    if tensor.dims.len() > RANK_MAX || elements > ELEMENTS_MAX {
        return Err(too_large(&format!("the element count of tensor {at:?}"), elements, ELEMENTS_MAX));
    }
    let kind = DataType::try_from(tensor.data_type).map_err(|_| malformed(&format!("tensor {at:?} has an unknown type")))?;
    let width = match kind {
        DataType::Bool | DataType::Uint8 | DataType::Int8 => 1,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 => 2,
        DataType::Uint32 | DataType::Int32 | DataType::Float => 4,
        DataType::Uint64 | DataType::Int64 | DataType::Double => 8,
        DataType::String => return Err(unsupported("a string tensor", at, "encode categories as numbers")),
        DataType::Undefined | DataType::Complex64 | DataType::Complex128 | DataType::Bfloat16 => {
            return Err(unsupported("the element type of a tensor", at, "use float32"));
        }
    };
    let held = if tensor.raw_data.is_empty() {
        let typed = [
            tensor.float_data.len(),
            tensor.int32_data.len(),
            tensor.int64_data.len(),
            tensor.double_data.len(),
            tensor.uint64_data.len(),
        ];
        typed.into_iter().sum::<usize>() as u64
    } else if tensor.raw_data.len() as u64 % width == 0 {
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

/// Refuses operators whose constant arguments ask for absurd amounts of memory or time. What depends on
/// computed values is left to the limits of the proving process.
pub(super) fn bombs(graph: &pb::GraphProto, initialisers: &BTreeMap<&str, &pb::TensorProto>) -> Result<(), EngineError> {
    let mut constants: BTreeMap<&str, &pb::TensorProto> = initialisers.clone();
    for node in graph.node.iter().filter(|n| n.op_type == "Constant") {
        let value = node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref());
        if let (Some(name), Some(value)) = (node.output.first(), value) {
            constants.insert(name, value);
        }
    }
    let ints = |node: &pb::NodeProto, index: usize| -> Option<Vec<i64>> {
        node.input.get(index).and_then(|name| constants.get(name.as_str())).and_then(|t| integers(t))
    };
    for node in &graph.node {
        let at = node_name(node);
        match node.op_type.as_str() {
            "ConstantOfShape" => extent(at, product(&ints(node, 0).unwrap_or_default()), ELEMENTS_MAX)?,
            "Expand" => {
                let known: Vec<i64> = ints(node, 1).unwrap_or_default().into_iter().map(|d| d.max(1)).collect();
                extent(at, product(&known), ELEMENTS_MAX)?;
            }
            "Reshape" => {
                let known: Vec<i64> = ints(node, 1).unwrap_or_default().into_iter().map(|d| d.max(1)).collect();
                extent(at, product(&known), ELEMENTS_MAX)?;
            }
            "Tile" => {
                let repeats = ints(node, 1).unwrap_or_default();
                let held = node.input.first().and_then(|n| constants.get(n.as_str())).and_then(|t| product(&t.dims)).unwrap_or(1);
                extent(at, product(&repeats).and_then(|r| r.checked_mul(held)), ELEMENTS_MAX)?;
            }
            "Range" => {
                if let (Some(start), Some(limit), Some(delta)) = (ints(node, 0), ints(node, 1), ints(node, 2))
                    && let (Some(&start), Some(&limit), Some(&delta)) = (start.first(), limit.first(), delta.first())
                {
                    if delta == 0 {
                        return Err(malformed(&format!("node {at:?} counts in steps of zero")));
                    }
                    let steps = (i128::from(limit) - i128::from(start)) / i128::from(delta);
                    extent(at, u64::try_from(steps.max(0)).ok(), EXTENT_MAX)?;
                }
            }
            "Pad" | "OneHot" => {
                for n in ints(node, 1).unwrap_or_default() {
                    extent(at, Some(n.unsigned_abs()), EXTENT_MAX)?;
                }
            }
            _ => {}
        }
        for attribute in &node.attribute {
            let max = match attribute.name.as_str() {
                "kernel_shape" | "strides" | "dilations" => KERNEL_MAX,
                "pads" | "output_shape" | "output_padding" | "hidden_size" | "num_outputs" => EXTENT_MAX,
                _ => continue,
            };
            for n in attribute.ints.iter().chain(Some(&attribute.i)) {
                extent(at, Some(n.unsigned_abs()), max)?;
            }
            if attribute.name == "kernel_shape" {
                extent(at, product(&attribute.ints), KERNEL_MAX * KERNEL_MAX)?;
            }
        }
    }
    Ok(())
}

fn extent(at: &str, got: Option<u64>, max: u64) -> Result<(), EngineError> {
    let got = got.unwrap_or(u64::MAX);
    if got > max { Err(too_large(&format!("what node {at:?} asks for"), got, max)) } else { Ok(()) }
}

/// The product of dimensions; `None` if one is negative or it does not fit.
fn product(dims: &[i64]) -> Option<u64> {
    dims.iter().try_fold(1_u64, |all, &d| all.checked_mul(u64::try_from(d).ok()?))
}

/// The values of an integer tensor of at most [`RANK_MAX`] squared elements; floats are rounded towards zero,
/// as `Range` may count in them.
fn integers(tensor: &pb::TensorProto) -> Option<Vec<i64>> {
    if product(&tensor.dims)? > (RANK_MAX * RANK_MAX) as u64 {
        return None;
    }
    let raw = &tensor.raw_data;
    Some(match DataType::try_from(tensor.data_type).ok()? {
        DataType::Int64 if raw.is_empty() => tensor.int64_data.clone(),
        DataType::Int64 => raw.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        DataType::Int32 if raw.is_empty() => tensor.int32_data.iter().map(|&n| i64::from(n)).collect(),
        DataType::Int32 => raw.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect(),
        DataType::Float if raw.is_empty() => tensor.float_data.iter().map(|&x| x as i64).collect(),
        DataType::Float => raw.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b) as i64).collect(),
        DataType::Undefined
        | DataType::Uint8
        | DataType::Int8
        | DataType::Uint16
        | DataType::Int16
        | DataType::String
        | DataType::Bool
        | DataType::Float16
        | DataType::Double
        | DataType::Uint32
        | DataType::Uint64
        | DataType::Complex64
        | DataType::Complex128
        | DataType::Bfloat16 => return None,
    })
}
