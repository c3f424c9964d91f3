//! Small files that ask for far more than a device has, with the input and the scores of the digits' models.
use dunlin_engine::onnx_pb::attribute_proto::AttributeType;
use dunlin_engine::onnx_pb::tensor_proto::DataType;
use dunlin_engine::onnx_pb::{AttributeProto, TensorProto};

use crate::digits::{CLASSES, PIXELS};
use crate::networks::{Graph, file, ints, port, port_of};

/// The class that a leaf of [`class_out_of_range`] names: room for as many scores a row is 400 MB.
const CLASS: i64 = 100_000_000;
/// Square root of the side of [`computed_giant`]'s square, which is 14 GB of floats.
const ROOT: i64 = 245;

fn texts(name: &str, texts: &[&str]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Strings as i32,
        strings: texts.iter().map(|text| text.as_bytes().to_vec()).collect(),
        ..Default::default()
    }
}

fn floats(name: &str, floats: &[f32]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Floats as i32,
        floats: floats.to_vec(),
        ..Default::default()
    }
}

/// A tree of one branch, a leaf of which votes for a class that is far out of range.
pub fn class_out_of_range() -> Vec<u8> {
    let mut graph = Graph::new("tree", 1);
    let labels: Vec<i64> = (0..).take(CLASSES).collect();
    let attributes = vec![
        ints("nodes_treeids", &[0, 0, 0]),
        ints("nodes_nodeids", &[0, 1, 2]),
        ints("nodes_featureids", &[0, 0, 0]),
        texts("nodes_modes", &["BRANCH_LEQ", "LEAF", "LEAF"]),
        floats("nodes_values", &[0.5, 0.0, 0.0]),
        ints("nodes_truenodeids", &[1, 0, 0]),
        ints("nodes_falsenodeids", &[2, 0, 0]),
        ints("class_treeids", &[0, 0]),
        ints("class_nodeids", &[1, 2]),
        ints("class_ids", &[CLASS, 1]),
        floats("class_weights", &[1.0, 1.0]),
        ints("classlabels_int64s", &labels),
    ];
    graph.node("TreeEnsembleClassifier", &["x"], "label", attributes);
    if let Some(tree) = graph.graph.node.last_mut() {
        tree.domain = "ai.onnx.ml".into();
        tree.output.push("scores".into());
    }
    graph.graph.input = vec![port("x", &[PIXELS])];
    graph.graph.output = vec![port_of("label", DataType::Int64, &[]), port("scores", &[CLASSES])];
    file(graph.graph)
}

/// A sum over a constant of 60,025 by 60,025. Its size is a product of two constants, which no look at the file tells.
pub fn computed_giant() -> Vec<u8> {
    let mut graph = Graph::new("giant", 1);
    graph.graph.initializer = vec![
        TensorProto {
            name: "root".into(),
            dims: vec![2],
            data_type: DataType::Int64 as i32,
            int64_data: vec![ROOT, ROOT],
            ..Default::default()
        },
        TensorProto {
            name: "weights".into(),
            dims: vec![PIXELS as i64, CLASSES as i64],
            data_type: DataType::Float as i32,
            float_data: vec![0.0; PIXELS * CLASSES],
            ..Default::default()
        },
    ];
    graph.node("Mul", &["root", "root"], "sides", vec![]);
    graph.node("ConstantOfShape", &["sides"], "giant", vec![]);
    graph.node("ReduceSum", &["giant"], "sum", vec![]);
    graph.node("MatMul", &["x", "weights"], "plain", vec![]);
    graph.node("Add", &["plain", "sum"], "scores", vec![]);
    graph.graph.input = vec![port("x", &[PIXELS])];
    graph.graph.output = vec![port("scores", &[CLASSES])];
    file(graph.graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_whole_but_for_its_class() {
        let error = dunlin_engine::Model::load(&class_out_of_range(), None).unwrap_err();
        assert!(error.to_string().contains("class or target 100000000"), "{error}");
        assert!(computed_giant().len() < 8192);
    }
}
