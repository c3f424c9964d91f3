//! What can be said about an ONNX file before the runtime sees it. Everything here is linear in the file's
//! size, allocates no more than the file's size, and never follows what the file says without a bound.

mod bounds;
mod dims;
mod forms;
mod ops;

use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::{DType, TensorSpec};
use prost::Message;
use serde::{Deserialize, Serialize};
use tract_onnx::pb;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::dimension::Value as Dim;
use tract_onnx::pb::type_proto::Value as TypeValue;

use crate::EngineError;
use crate::words::Words;
pub(crate) use dims::inexact;
pub(crate) use ops::full_name;
pub use ops::supported_ops;

/// Largest ONNX file that is looked at. Models for these devices are some MiB; this leaves room for the largest
/// image models and keeps a hostile length from exhausting memory.
pub const MODEL_BYTES_MAX: usize = 512 * 1024 * 1024;
/// Most nodes of a graph: several times those of the largest vision models; analysis is more than linear.
pub const NODES_MAX: usize = 20_000;
/// Most inputs or outputs of a graph; more is no model a device is given.
const PORTS_MAX: usize = 64;

/// What an ONNX file declares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inspection {
    /// Inputs, batch first; -1 where the request chooses.
    pub inputs: Vec<TensorSpec>,
    /// Outputs, in order; for classification the last one holds the scores.
    pub outputs: Vec<TensorSpec>,
    /// Operators it needs, as `domain/Name`.
    pub ops: BTreeSet<String>,
    /// The texts that inputs and outputs of type `BYTES` are made of; an input may hold others, too.
    pub words: Vec<String>,
}

/// Checks an ONNX file and lists what it declares; nothing is run.
///
/// # Errors
/// [`EngineError::Malformed`], [`EngineError::Unsupported`] and [`EngineError::TooLarge`], naming operator and node.
pub fn inspect(onnx: &[u8]) -> Result<Inspection, EngineError> {
    let file = decode(onnx)?;
    let mut found = check(&file)?;
    if let Some(words) = Words::of(&file)? {
        words.declare(&mut found.inputs, &mut found.outputs)?;
        found.words = words.words;
    }
    Ok(found)
}

pub(crate) fn decode(onnx: &[u8]) -> Result<pb::ModelProto, EngineError> {
    if onnx.len() > MODEL_BYTES_MAX {
        return Err(too_large("the model file", onnx.len() as u64, MODEL_BYTES_MAX as u64));
    }
    pb::ModelProto::decode(onnx).map_err(|e| EngineError::Malformed(format!("no ONNX protobuf: {e}")))
}

pub(crate) fn check(model: &pb::ModelProto) -> Result<Inspection, EngineError> {
    let graph = model.graph.as_ref().ok_or_else(|| malformed("the file holds no graph"))?;
    if !model.functions.is_empty() {
        return Err(unsupported("model-local functions", "", "inline them before export"));
    }
    if model.opset_import.is_empty() {
        return Err(malformed("the file names no operator set"));
    }
    limit("nodes of the graph", graph.node.len(), NODES_MAX)?;
    limit("inputs of the graph", graph.input.len().saturating_sub(graph.initializer.len()), PORTS_MAX)?;
    limit("outputs of the graph", graph.output.len(), PORTS_MAX)?;
    if graph.output.is_empty() {
        return Err(malformed("the graph has no output"));
    }
    if !graph.sparse_initializer.is_empty() {
        return Err(unsupported("sparse initialisers", "", "export dense ones"));
    }
    let initialisers = bounds::initialisers(graph)?;
    let ops = operators(graph)?;
    let made = order(graph)?;
    let constants = bounds::constants(graph, &initialisers);
    graph.node.iter().try_for_each(|node| forms::check(node, &constants))?;
    bounds::bombs(graph, &constants)?;
    let inputs = graph
        .input
        .iter()
        .filter(|input| !initialisers.contains_key(input.name.as_str()))
        .map(|input| spec(input, "input"))
        .collect::<Result<Vec<_>, _>>()?;
    if inputs.is_empty() {
        return Err(malformed("the graph has no input"));
    }
    for output in &graph.output {
        if !made.contains(output.name.as_str()) {
            return Err(malformed(&format!("no node makes the output {:?}", output.name)));
        }
    }
    let outputs = graph.output.iter().map(|output| spec(output, "output")).collect::<Result<_, _>>()?;
    Ok(Inspection { inputs, outputs, ops, words: Vec::new() })
}

/// Lists the operators and refuses unknown ones, what the runtime passes over of known ones, subgraphs, and tensors that
/// lie outside the file.
fn operators(graph: &pb::GraphProto) -> Result<BTreeSet<String>, EngineError> {
    let mut ops = BTreeSet::new();
    for node in &graph.node {
        let name = ops::full_name(&node.domain, &node.op_type);
        if !ops::is_supported(&node.domain, &node.op_type) {
            return Err(unsupported(&name, node_name(node), ops::advice(&node.domain, &node.op_type)));
        }
        ops::recurrent(node)?;
        for attribute in &node.attribute {
            if attribute.g.is_some() || !attribute.graphs.is_empty() {
                return Err(unsupported("a subgraph", node_name(node), "export without control flow"));
            }
            if attribute.sparse_tensor.is_some() || !attribute.sparse_tensors.is_empty() {
                return Err(unsupported("a sparse tensor", node_name(node), "export dense ones"));
            }
            for tensor in attribute.t.iter().chain(&attribute.tensors) {
                bounds::tensor(tensor, node_name(node))?;
            }
        }
        ops.insert(name);
    }
    Ok(ops)
}

/// Checks that every name is made once and before all its uses can be ordered: no cycles, nothing from nowhere.
/// Returns all names that exist.
fn order(graph: &pb::GraphProto) -> Result<BTreeSet<&str>, EngineError> {
    let mut known: BTreeSet<&str> = BTreeSet::new();
    known.extend(graph.initializer.iter().map(|t| t.name.as_str()));
    known.extend(graph.input.iter().map(|i| i.name.as_str()));
    let mut maker: BTreeMap<&str, usize> = BTreeMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for output in node.output.iter().filter(|o| !o.is_empty()) {
            if known.contains(output.as_str()) || maker.insert(output, index).is_some() {
                return Err(malformed(&format!("the value {output:?} is made twice")));
            }
        }
    }
    // Kahn's algorithm over nodes.
    let mut waits = vec![0_usize; graph.node.len()];
    let mut feeds: Vec<Vec<usize>> = vec![Vec::new(); graph.node.len()];
    for (index, node) in graph.node.iter().enumerate() {
        for input in node.input.iter().filter(|i| !i.is_empty()) {
            if let Some(&from) = maker.get(input.as_str()) {
                waits[index] += 1;
                feeds[from].push(index);
            } else if !known.contains(input.as_str()) {
                return Err(malformed(&format!(
                    "node {:?} uses {input:?}, which nothing makes",
                    node_name(node)
                )));
            }
        }
    }
    let mut ready: Vec<usize> = (0..waits.len()).filter(|&i| waits[i] == 0).collect();
    let mut done = 0;
    while let Some(index) = ready.pop() {
        done += 1;
        for &next in &feeds[index] {
            waits[next] -= 1;
            if waits[next] == 0 {
                ready.push(next);
            }
        }
    }
    if done != graph.node.len() {
        let stuck = waits.iter().position(|&w| w > 0).map_or("", |i| node_name(&graph.node[i]));
        return Err(malformed(&format!("the graph has a cycle through node {stuck:?}")));
    }
    known.extend(maker.keys());
    Ok(known)
}

fn spec(info: &pb::ValueInfoProto, what: &str) -> Result<TensorSpec, EngineError> {
    let tensor = match info.r#type.as_ref().and_then(|t| t.value.as_ref()) {
        Some(TypeValue::TensorType(tensor)) => tensor,
        None => return Err(malformed(&format!("the {what} {:?} is no tensor", info.name))),
    };
    let datatype = dtype(tensor.elem_type).ok_or_else(|| {
        unsupported(
            &format!("the element type {} of {what} {:?}", tensor.elem_type, info.name),
            "",
            "use numbers, float32 at best",
        )
    })?;
    let dims = tensor.shape.as_ref().map(|s| s.dim.as_slice()).unwrap_or_default();
    let shape = dims
        .iter()
        .map(|dim| match &dim.value {
            Some(Dim::DimValue(n)) if *n > 0 => *n,
            Some(Dim::DimValue(_) | Dim::DimParam(_)) | None => -1,
        })
        .collect::<Vec<_>>();
    bounds::declared(&info.name, &shape)?;
    Ok(TensorSpec { name: info.name.clone(), datatype, shape })
}

#[allow(
    clippy::wildcard_enum_match_arm,
    reason = "the enum is ONNX's and grows; what is not named is refused"
)]
fn dtype(elem: i32) -> Option<DType> {
    Some(match DataType::try_from(elem).ok()? {
        DataType::Bool => DType::Bool,
        DataType::Uint8 => DType::Uint8,
        DataType::Uint16 => DType::Uint16,
        DataType::Uint32 => DType::Uint32,
        DataType::Uint64 => DType::Uint64,
        DataType::Int8 => DType::Int8,
        DataType::Int16 => DType::Int16,
        DataType::Int32 => DType::Int32,
        DataType::Int64 => DType::Int64,
        DataType::Float16 => DType::Fp16,
        DataType::Float => DType::Fp32,
        DataType::Double => DType::Fp64,
        _ => return None,
    })
}

/// A node's own name, else the name of what it makes.
pub(crate) fn node_name(node: &pb::NodeProto) -> &str {
    if node.name.is_empty() { node.output.first().map_or("", String::as_str) } else { &node.name }
}

pub(crate) fn malformed(what: &str) -> EngineError {
    EngineError::Malformed(what.to_owned())
}

pub(crate) fn unsupported(what: &str, node: &str, advice: &str) -> EngineError {
    EngineError::Unsupported { what: what.to_owned(), node: node.to_owned(), advice: advice.to_owned() }
}

pub(crate) fn too_large(what: &str, got: u64, limit: u64) -> EngineError {
    EngineError::TooLarge { what: what.to_owned(), got, limit }
}

fn limit(what: &str, got: usize, max: usize) -> Result<(), EngineError> {
    if got > max { Err(too_large(what, got as u64, max as u64)) } else { Ok(()) }
}
