//! What classifiers answer: labels that are text, and `ZipMap`.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::type_proto::{Tensor, Value as TypeValue};
use tract_onnx::pb::{GraphProto, NodeProto, TensorShapeProto, TypeProto};

use super::arithmetic::{input, output};
use super::graph::{Editor, ints};
use super::words::Text;
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::node_name;

/// `ZipMap`: the scores come out as the table they are.
pub(super) fn zip_map(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    let classes = all.strings("classlabels_strings").len().max(all.ints("classlabels_int64s").len());
    let (scores, made) = (input(node, 0)?, output(node)?);
    editor.op_to("Identity", &[scores], vec![], made)?;
    editor.maps.insert(made.to_owned(), classes);
    editor.rewrites.add(
        "ai.onnx.ml/ZipMap",
        "the table of scores, one column for each class",
        node_name(node),
    );
    Ok(())
}

/// Declares outputs that were maps as tables.
pub(super) fn outputs(editor: &Editor, graph: &mut GraphProto) {
    for output in &mut graph.output {
        let Some(&classes) = editor.maps.get(&output.name) else { continue };
        let known = (classes > 0).then_some(dimension::Value::DimValue(classes as i64));
        let dim = [None, known].map(|value| Dimension { denotation: String::new(), value });
        let shape = Some(TensorShapeProto { dim: dim.into() });
        let table = Tensor { elem_type: DataType::Float as i32, shape };
        output.r#type =
            Some(TypeProto { denotation: String::new(), value: Some(TypeValue::TensorType(table)) });
    }
}

/// A classifier; labels that are text become codes.
pub(super) fn classifier(editor: &mut Editor, mut node: NodeProto) -> Result<(), EngineError> {
    let codes = editor.words.all(Attributes { node: &node }.strings("classlabels_strings"))?;
    if !codes.is_empty() {
        let name =
            if node.op_type == "TreeEnsembleClassifier" { "classlabels_int64s" } else { "classlabels_ints" };
        node.attribute.retain(|a| a.name != "classlabels_strings" && a.name != name);
        node.attribute.push(ints(name, codes));
        editor.words.mark(output(&node)?, Text::Known);
        editor.rewrites.add("labels that are text", "codes of words", node_name(&node));
    }
    editor.keep(node)
}
