//! Half precision. Weights stay float16 in the file, where they save half of it; everything is computed in float32.

use std::collections::BTreeSet;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{GraphProto, NodeProto, TensorProto};
use tract_onnx::tract_hir::internal::f16;

use super::graph::{Editor, int};
use crate::EngineError;

const HALF: i32 = DataType::Float16 as i32;
const SINGLE: i32 = DataType::Float as i32;

/// Makes every float16 value of the graph a float32 one.
pub(super) fn widen(editor: &mut Editor, graph: &mut GraphProto) -> Result<(), EngineError> {
    let cast = cast_already(graph);
    let halves: Vec<usize> = (0_usize..)
        .zip(editor.initialisers().iter())
        .filter_map(|(i, tensor)| (tensor.data_type == HALF && !cast.contains(&tensor.name)).then_some(i))
        .collect();
    for index in halves {
        let (was, stored) = editor.rename(index);
        // Files of old form list constants as inputs, too.
        graph.input.retain(|port| port.name != was);
        editor.op_to("Cast", &[&stored], vec![int("to", i64::from(SINGLE))], &was)?;
        editor.rewrites.add("float16 weights", "cast to float32 at load", &was);
    }
    for port in graph.input.iter_mut().chain(&mut graph.output) {
        if let Some(TypeValue::TensorType(tensor)) = port.r#type.as_mut().and_then(|t| t.value.as_mut())
            && tensor.elem_type == HALF
        {
            tensor.elem_type = SINGLE;
            editor.rewrites.add("float16 inputs and outputs", "float32", &port.name);
        }
    }
    let rounded = rounded(graph);
    for node in &mut graph.node {
        for attribute in &mut node.attribute {
            if node.output.first().is_some_and(|name| rounded.contains(name)) {
                continue;
            }
            if matches!(attribute.name.as_str(), "to" | "dtype" | "output_dtype")
                && attribute.i == i64::from(HALF)
            {
                attribute.i = i64::from(SINGLE);
                editor.rewrites.add("casts to float16", "casts to float32", &node.name);
            }
            for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
                single(tensor);
            }
        }
    }
    Ok(())
}

/// Names that nothing uses but casts to float32: what this pass leaves behind.
fn cast_already(graph: &GraphProto) -> BTreeSet<String> {
    let casts = |node: &NodeProto| {
        node.op_type == "Cast" && node.attribute.iter().any(|a| a.name == "to" && a.i == i64::from(SINGLE))
    };
    let (cast, other): (Vec<_>, Vec<_>) = graph.node.iter().partition(|node| casts(node));
    let names =
        |nodes: Vec<&NodeProto>| nodes.into_iter().flat_map(|n| n.input.clone()).collect::<BTreeSet<_>>();
    names(cast).difference(&names(other)).cloned().collect()
}

/// What is cast to float16 and then at once to another type: numbers that are rounded, of a graph of float32.
fn rounded(graph: &GraphProto) -> BTreeSet<String> {
    let (cast, other): (Vec<_>, Vec<_>) = graph.node.iter().partition(|node| node.op_type == "Cast");
    let halves =
        cast.iter().filter(|node| node.attribute.iter().any(|a| a.name == "to" && a.i == i64::from(HALF)));
    let mut made: BTreeSet<String> = halves.flat_map(|node| node.output.clone()).collect();
    let taken = other.iter().flat_map(|node| &node.input).chain(graph.output.iter().map(|port| &port.name));
    taken.for_each(|name| {
        made.remove(name);
    });
    made
}

/// A small constant in float32.
fn single(tensor: &mut TensorProto) {
    if tensor.data_type != HALF {
        return;
    }
    let bits: Vec<u16> = if tensor.raw_data.is_empty() {
        tensor.int32_data.iter().map(|&n| n as u16).collect()
    } else {
        tensor.raw_data.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
    };
    tensor.float_data = bits.into_iter().map(|b| f16::from_bits(b).to_f32()).collect();
    tensor.data_type = SINGLE;
    tensor.raw_data = Default::default();
    tensor.int32_data.clear();
}
