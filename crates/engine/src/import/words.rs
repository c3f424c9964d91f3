//! Text in a foreign graph: every text becomes its code, and the graph computes with codes.

use std::collections::BTreeMap;

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::type_proto::Value as TypeValue;
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, StringStringEntryProto, TensorProto,
};

use super::graph::Editor;
use crate::EngineError;
use crate::check::{malformed, node_name, unsupported};
use crate::words::{KEY, UNKNOWN, WORDS_MAX, Words};

/// What is known about a value that is text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Text {
    /// Always one of the words.
    Known,
    /// Whatever the caller sends.
    Open,
}

/// The words of a graph, and which of its values are text.
#[derive(Debug, Default)]
pub(super) struct Dictionary {
    codes: BTreeMap<String, i64>,
    list: Vec<String>,
    values: BTreeMap<String, Text>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Dictionary {
    /// The code of a word, a new one if it has none yet.
    pub(super) fn code(&mut self, word: &[u8]) -> Result<i64, EngineError> {
        let word = std::str::from_utf8(word).map_err(|_| malformed("a text of the graph is not UTF-8"))?;
        if let Some(code) = self.codes.get(word) {
            return Ok(*code);
        }
        if self.list.len() >= WORDS_MAX {
            return Err(crate::check::too_large(
                "words of the graph",
                WORDS_MAX as u64 + 1,
                WORDS_MAX as u64,
            ));
        }
        self.list.push(word.to_owned());
        let code = UNKNOWN + self.list.len() as i64;
        self.codes.insert(word.to_owned(), code);
        Ok(code)
    }

    pub(super) fn all(&mut self, words: &[Vec<u8>]) -> Result<Vec<i64>, EngineError> {
        words.iter().map(|word| self.code(word)).collect()
    }

    /// How many words there are by now.
    pub(super) fn len(&self) -> usize {
        self.list.len()
    }

    pub(super) fn text(&self, value: &str) -> Option<Text> {
        self.values.get(value).copied()
    }

    /// Says that a value is text.
    pub(super) fn mark(&mut self, value: &str, text: Text) {
        self.values.insert(value.to_owned(), text);
    }

    /// Writes the words into the file, if it has any text at its edge.
    pub(super) fn store(self, file: &mut ModelProto) {
        file.metadata_props.retain(|entry| entry.key != KEY);
        if self.inputs.is_empty() && self.outputs.is_empty() {
            return;
        }
        let words = Words::new(self.list, self.inputs, self.outputs);
        let value = serde_json::to_string(&words).expect("lists of texts are plain data");
        file.metadata_props.push(StringStringEntryProto { key: KEY.to_owned(), value });
    }
}

/// Turns inputs and constants that are text into codes.
pub(super) fn begin(editor: &mut Editor, graph: &mut GraphProto) -> Result<(), EngineError> {
    let mut words = std::mem::take(&mut editor.words);
    for tensor in editor.initialisers().iter_mut().filter(|t| is_text(t.data_type)) {
        encode(&mut words, tensor)?;
        words.mark(&tensor.name, Text::Known);
    }
    for input in &mut graph.input {
        let Some(TypeValue::TensorType(tensor)) = input.r#type.as_mut().and_then(|t| t.value.as_mut()) else {
            continue;
        };
        if is_text(tensor.elem_type) {
            tensor.elem_type = DataType::Int64 as i32;
            if words.text(&input.name).is_none() {
                words.mark(&input.name, Text::Open);
                words.inputs.push(input.name.clone());
                editor.rewrites.add("an input of text", "codes of words; it still takes text", &input.name);
            }
        }
    }
    editor.words = words;
    Ok(())
}

/// Declares outputs that are text as codes.
pub(super) fn end(editor: &mut Editor, graph: &mut GraphProto) -> Result<(), EngineError> {
    for output in &mut graph.output {
        let text = editor.words.text(&output.name);
        let Some(TypeValue::TensorType(tensor)) = output.r#type.as_mut().and_then(|t| t.value.as_mut())
        else {
            continue;
        };
        match (is_text(tensor.elem_type), text) {
            (true, Some(Text::Known)) => {
                tensor.elem_type = DataType::Int64 as i32;
                editor.words.outputs.push(output.name.clone());
                editor.rewrites.add(
                    "an output of text",
                    "codes of words; it still answers text",
                    &output.name,
                );
            }
            (true, Some(Text::Open)) => {
                return Err(unsupported(
                    "an answer that repeats text it was asked with",
                    &output.name,
                    "leave that output out",
                ));
            }
            (true, None) => return Err(malformed(&format!("the output {:?} is no text", output.name))),
            (false, Some(_)) => return Err(malformed(&format!("the output {:?} is text", output.name))),
            (false, None) => {}
        }
    }
    Ok(())
}

/// Handles a node that moves text about, and refuses one that looks into it.
pub(super) fn node(editor: &mut Editor, mut node: NodeProto) -> Result<NodeProto, EngineError> {
    if node.op_type == "Constant" {
        return constant(editor, node);
    }
    let texts: Vec<Option<Text>> = node.input.iter().map(|name| editor.words.text(name)).collect();
    if texts.iter().all(Option::is_none) {
        return Ok(node);
    }
    let carried: &[Option<Text>] = match node.op_type.as_str() {
        "Identity"
        | "Reshape"
        | "Squeeze"
        | "Unsqueeze"
        | "Flatten"
        | "Transpose"
        | "Slice"
        | "Gather"
        | "ArrayFeatureExtractor"
        | "Split"
        | "Expand"
        | "Tile" => texts.get(..1).unwrap_or_default(),
        "Concat" => &texts,
        "Where" => texts.get(1..).unwrap_or_default(),
        "Equal" => {
            if texts.contains(&None) || texts.iter().all(|t| *t == Some(Text::Open)) {
                return Err(refused(&node));
            }
            return Ok(node);
        }
        "Cast" => {
            let to = node.attribute.iter().find(|a| a.name == "to").map_or(0, |a| a.i);
            if to != DataType::String as i64 {
                return Err(refused(&node));
            }
            node.op_type = "Identity".to_owned();
            node.attribute.clear();
            &texts
        }
        _ => return Err(refused(&node)),
    };
    if texts.iter().flatten().count() != carried.len() || carried.contains(&None) {
        return Err(refused(&node));
    }
    let text = carried.iter().flatten().max().copied().unwrap_or(Text::Open);
    for output in &node.output {
        editor.words.mark(output, text);
    }
    Ok(node)
}

fn refused(node: &NodeProto) -> EngineError {
    unsupported(
        &format!("{} of text", crate::check::full_name(&node.domain, &node.op_type)),
        node_name(node),
        "compute with numbers; text can be compared and looked up, with LabelEncoder or OneHotEncoder",
    )
}

/// A `Constant` node; one of text becomes one of codes.
fn constant(editor: &mut Editor, mut node: NodeProto) -> Result<NodeProto, EngineError> {
    let mut tensor = None;
    for attribute in &node.attribute {
        match attribute.name.as_str() {
            "value_string" => tensor = Some(texts_tensor(vec![], vec![attribute.s.clone()])),
            "value_strings" => {
                let count = attribute.strings.len() as i64;
                tensor = Some(texts_tensor(vec![count], attribute.strings.clone()));
            }
            "value" => tensor = attribute.t.clone().filter(|t| is_text(t.data_type)),
            _ => {}
        }
    }
    let (Some(mut tensor), Some(output)) = (tensor, node.output.first()) else { return Ok(node) };
    encode(&mut editor.words, &mut tensor)?;
    editor.words.mark(output, Text::Known);
    let kind = tract_onnx::pb::attribute_proto::AttributeType::Tensor as i32;
    node.attribute =
        vec![AttributeProto { name: "value".into(), r#type: kind, t: Some(tensor), ..Default::default() }];
    Ok(node)
}

fn texts_tensor(dims: Vec<i64>, string_data: Vec<Vec<u8>>) -> TensorProto {
    TensorProto { dims, data_type: DataType::String as i32, string_data, ..TensorProto::default() }
}

fn is_text(kind: i32) -> bool {
    kind == DataType::String as i32
}

fn encode(words: &mut Dictionary, tensor: &mut TensorProto) -> Result<(), EngineError> {
    tensor.int64_data = words.all(&std::mem::take(&mut tensor.string_data))?;
    tensor.data_type = DataType::Int64 as i32;
    Ok(())
}
