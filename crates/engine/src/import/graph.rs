//! The graph while it is rewritten: nodes go in one by one, and others come out.

use std::collections::{BTreeMap, BTreeSet};

use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, GraphProto, NodeProto, TensorProto};

use super::Rewrites;
use super::words::Dictionary;
use crate::EngineError;
use crate::check::{NODES_MAX, node_name, too_large};

/// Nodes, constants and what is known about values, while a file is rewritten.
pub(super) struct Editor {
    /// Version of the default operator set.
    pub(super) opset: i64,
    /// Version of `ai.onnx.ml`.
    pub(super) ml: i64,
    pub(super) nodes: Vec<NodeProto>,
    initialisers: Vec<TensorProto>,
    /// Where constants lie by name: initialisers, and what `Constant` nodes hold.
    constants: BTreeMap<String, Constant>,
    taken: BTreeSet<String>,
    next: usize,
    /// Name of the node that is being rewritten; new nodes are named after it.
    at: String,
    pub(super) words: Dictionary,
    pub(super) rewrites: Rewrites,
    /// Columns of the graph's inputs, where they are of rank 2 and declared.
    widths: BTreeMap<String, usize>,
    /// What `ZipMap` made, with the number of its columns.
    pub(super) maps: BTreeMap<String, usize>,
}

#[derive(Clone, Copy)]
enum Constant {
    Initialiser(usize),
    Node(usize),
}

impl Editor {
    /// Takes the constants out of `graph`, and what names there are.
    pub(super) fn new(graph: &mut GraphProto, opset: i64, ml: i64) -> Self {
        let mut taken: BTreeSet<String> = graph.input.iter().map(|i| i.name.clone()).collect();
        taken.extend(graph.output.iter().map(|o| o.name.clone()));
        taken.extend(graph.initializer.iter().map(|t| t.name.clone()));
        taken.extend(graph.node.iter().flat_map(|n| n.output.iter().chain(&n.input).cloned()));
        let initialisers = std::mem::take(&mut graph.initializer);
        let constants = initialisers
            .iter()
            .enumerate()
            .map(|(i, tensor)| (tensor.name.clone(), Constant::Initialiser(i)))
            .collect();
        let widths = graph.input.iter().filter_map(|input| Some((input.name.clone(), columns(input)?)));
        Self {
            opset,
            ml,
            nodes: Vec::new(),
            widths: widths.collect(),
            maps: BTreeMap::new(),
            initialisers,
            constants,
            taken,
            next: 0,
            at: String::new(),
            words: Dictionary::default(),
            rewrites: Rewrites::default(),
        }
    }

    /// Puts everything back.
    pub(super) fn finish(self, graph: &mut GraphProto) -> (Dictionary, Rewrites) {
        graph.node = self.nodes;
        graph.initializer = self.initialisers;
        (self.words, self.rewrites)
    }

    /// Says whose rewriting begins.
    pub(super) fn begin(&mut self, node: &NodeProto) {
        node_name(node).clone_into(&mut self.at);
    }

    /// Leaves a node as it is.
    pub(super) fn keep(&mut self, node: NodeProto) -> Result<(), EngineError> {
        if self.nodes.len() >= NODES_MAX {
            return Err(too_large("nodes of the rewritten graph", self.nodes.len() as u64, NODES_MAX as u64));
        }
        if let ("Constant", Some(name)) = (node.op_type.as_str(), node.output.first()) {
            self.constants.insert(name.clone(), Constant::Node(self.nodes.len()));
        }
        self.nodes.push(node);
        Ok(())
    }

    /// A constant by name, if it is one.
    pub(super) fn constant(&self, name: &str) -> Option<&TensorProto> {
        match *self.constants.get(name)? {
            Constant::Initialiser(i) => self.initialisers.get(i),
            Constant::Node(i) => {
                let node = self.nodes.get(i)?;
                node.attribute.iter().find(|a| a.name == "value").and_then(|a| a.t.as_ref())
            }
        }
    }

    /// Gives an initialiser another name; returns it with the old one.
    pub(super) fn rename(&mut self, index: usize) -> (String, String) {
        let new = self.fresh();
        let old = std::mem::replace(&mut self.initialisers[index].name, new.clone());
        self.constants.remove(&old);
        self.constants.insert(new.clone(), Constant::Initialiser(index));
        (old, new)
    }

    /// All initialisers.
    pub(super) fn initialisers(&mut self) -> &mut [TensorProto] {
        &mut self.initialisers
    }

    /// Columns of an input of the graph.
    pub(super) fn width(&self, name: &str) -> Option<usize> {
        self.widths.get(name).copied()
    }

    /// A name nothing has yet.
    pub(super) fn fresh(&mut self) -> String {
        loop {
            let name = format!("{}/{}", self.at, self.next);
            self.next += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    /// A new constant; returns its name.
    pub(super) fn add(&mut self, tensor: TensorProto) -> String {
        let name = self.fresh();
        self.constants.insert(name.clone(), Constant::Initialiser(self.initialisers.len()));
        self.initialisers.push(TensorProto { name: name.clone(), ..tensor });
        name
    }

    /// A new constant of f32.
    pub(super) fn floats(&mut self, dims: &[usize], values: &[f32]) -> String {
        self.add(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: DataType::Float as i32,
            float_data: values.to_vec(),
            ..TensorProto::default()
        })
    }

    /// A new constant of i64.
    pub(super) fn ints(&mut self, dims: &[usize], values: &[i64]) -> String {
        self.add(TensorProto {
            dims: dims.iter().map(|&d| d as i64).collect(),
            data_type: DataType::Int64 as i32,
            int64_data: values.to_vec(),
            ..TensorProto::default()
        })
    }

    /// A new node; returns the name of what it makes.
    pub(super) fn op(
        &mut self,
        op: &str,
        inputs: &[&str],
        attributes: Vec<AttributeProto>,
    ) -> Result<String, EngineError> {
        let output = self.fresh();
        self.op_to(op, inputs, attributes, &output)?;
        Ok(output)
    }

    /// A new node that makes `output`.
    pub(super) fn op_to(
        &mut self,
        op: &str,
        inputs: &[&str],
        attribute: Vec<AttributeProto>,
        output: &str,
    ) -> Result<(), EngineError> {
        self.keep(NodeProto {
            op_type: op.to_owned(),
            // The runtime wants every name once.
            name: format!("{}/{op}{}", self.at, self.nodes.len()),
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            attribute,
            ..NodeProto::default()
        })
    }

    /// A new node of another domain.
    pub(super) fn op_of(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        output: &str,
    ) -> Result<(), EngineError> {
        let name = std::mem::take(&mut self.at);
        let kept = self.keep(NodeProto {
            domain: domain.to_owned(),
            op_type: op.to_owned(),
            name: name.clone(),
            input: inputs.iter().map(|&i| i.to_owned()).collect(),
            output: vec![output.to_owned()],
            ..NodeProto::default()
        });
        self.at = name;
        kept
    }

    /// A cast to `kind`.
    pub(super) fn cast(&mut self, input: &str, kind: DataType) -> Result<String, EngineError> {
        self.op("Cast", &[input], vec![int("to", kind as i64)])
    }

    /// Whether each value is no number; of any type, which `IsNaN` of the runtime is not for.
    pub(super) fn is_nan(&mut self, input: &str) -> Result<String, EngineError> {
        let same = self.op("Equal", &[input, input], vec![])?;
        self.op("Not", &[&same], vec![])
    }

    /// The input with one more dimension at `axis`.
    pub(super) fn unsqueeze(&mut self, input: &str, axis: i64) -> Result<String, EngineError> {
        if self.opset < 13 {
            return self.op("Unsqueeze", &[input], vec![ints("axes", vec![axis])]);
        }
        let axes = self.ints(&[1], &[axis]);
        self.op("Unsqueeze", &[input, &axes], vec![])
    }
}

/// Columns of a table that is fed in.
fn columns(input: &tract_onnx::pb::ValueInfoProto) -> Option<usize> {
    use tract_onnx::pb::{tensor_shape_proto::dimension::Value, type_proto};
    let Some(type_proto::Value::TensorType(tensor)) = input.r#type.as_ref()?.value.as_ref() else {
        return None;
    };
    let [_, columns] = tensor.shape.as_ref()?.dim.as_slice() else { return None };
    match columns.value.as_ref()? {
        Value::DimValue(n) => usize::try_from(*n).ok().filter(|&n| n > 0),
        Value::DimParam(_) => None,
    }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.to_owned(), r#type: kind as i32, ..AttributeProto::default() }
}

/// An integer attribute.
pub(super) fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, AttributeType::Int) }
}

/// A list of integers.
pub(super) fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

/// A list of floats.
pub(super) fn floats(name: &str, floats: Vec<f32>) -> AttributeProto {
    AttributeProto { floats, ..attribute(name, AttributeType::Floats) }
}

/// A text.
pub(super) fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: s.into(), ..attribute(name, AttributeType::String) }
}

/// A list of texts.
pub(super) fn texts(name: &str, all: &[&str]) -> AttributeProto {
    AttributeProto {
        strings: all.iter().map(|s| s.as_bytes().to_vec()).collect(),
        ..attribute(name, AttributeType::Strings)
    }
}
