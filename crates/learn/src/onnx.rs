//! Writing ONNX: opset 17, ai.onnx.ml 3, a symbolic batch, input `x` and output `scores`.
use dunlin_engine::onnx_pb::attribute_proto::AttributeType;
use dunlin_engine::onnx_pb::tensor_proto::DataType;
use dunlin_engine::onnx_pb::tensor_shape_proto::Dimension;
use dunlin_engine::onnx_pb::tensor_shape_proto::dimension::Value as Dim;
use dunlin_engine::onnx_pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use prost::Message;

use crate::scaling::Scaling;

/// Name of the input, FP32 `[N, features]`.
pub(crate) const INPUT: &str = "x";
/// Name of the output, FP32 `[N, classes]`.
pub(crate) const OUTPUT: &str = "scores";
const ML: &str = "ai.onnx.ml";
/// ONNX 1.12, which fixed opset 17.
const IR_VERSION: i64 = 8;

#[derive(Default)]
pub(crate) struct Graph {
    graph: GraphProto,
    ml: bool,
}

pub(crate) fn int(name: &str, value: i64) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: AttributeType::Int as i32, i: value, ..Default::default() }
}

pub(crate) fn text(name: &str, value: &str) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::String as i32,
        s: value.into(),
        ..Default::default()
    }
}

pub(crate) fn ints(name: &str, values: Vec<i64>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: values,
        ..Default::default()
    }
}

pub(crate) fn floats(name: &str, values: Vec<f32>) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Floats as i32,
        floats: values,
        ..Default::default()
    }
}

pub(crate) fn texts(name: &str, values: Vec<&str>) -> AttributeProto {
    let strings = values.into_iter().map(|value| value.as_bytes().to_vec()).collect();
    AttributeProto { name: name.into(), r#type: AttributeType::Strings as i32, strings, ..Default::default() }
}

impl Graph {
    /// Adds a constant of floats and returns its name.
    pub(crate) fn floats(&mut self, name: &str, dims: &[usize], values: &[f32]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, dims, DataType::Float, raw)
    }

    /// Adds a constant of integers and returns its name.
    pub(crate) fn ints(&mut self, name: &str, values: &[i64]) -> String {
        let raw = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        self.constant(name, &[values.len()], DataType::Int64, raw)
    }

    fn constant(&mut self, name: &str, dims: &[usize], kind: DataType, raw_data: Vec<u8>) -> String {
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: kind as i32,
            raw_data,
            ..Default::default()
        });
        name.into()
    }

    /// Adds a node with one output and returns the output's name.
    pub(crate) fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attributes: Vec<AttributeProto>,
    ) -> String {
        self.push("", op, inputs, &[output], attributes);
        output.into()
    }

    /// Adds a tree ensemble with one score per class; the label output ends here, unused.
    pub(crate) fn trees(&mut self, input: &str, output: &str, attributes: Vec<AttributeProto>) -> String {
        self.ml = true;
        self.push(ML, "TreeEnsembleClassifier", &[input], &["unused_label", output], attributes);
        output.into()
    }

    /// Adds the standardisation of the input.
    pub(crate) fn scaled(&mut self, scaling: &Scaling) -> String {
        let width = scaling.mean.len();
        let mean = self.floats("mean", &[width], &scaling.mean);
        let inverse = self.floats("inverse_sd", &[width], &scaling.inverse);
        let centred = self.node("Sub", &[INPUT, &mean], "centred", vec![]);
        self.node("Mul", &[&centred, &inverse], "standard", vec![])
    }

    fn push(
        &mut self,
        domain: &str,
        op: &str,
        inputs: &[&str],
        outputs: &[&str],
        attribute: Vec<AttributeProto>,
    ) {
        self.graph.node.push(NodeProto {
            name: format!("{}_{}", op.to_lowercase(), self.graph.node.len()),
            op_type: op.into(),
            domain: domain.into(),
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: outputs.iter().map(|&name| name.into()).collect(),
            attribute,
            ..Default::default()
        });
    }

    /// Writes the file.
    pub(crate) fn finish(mut self, name: &str, features: usize, classes: usize) -> Vec<u8> {
        self.graph.name = name.into();
        self.graph.input = vec![value(INPUT, features)];
        self.graph.output = vec![value(OUTPUT, classes)];
        let mut opset_import = vec![OperatorSetIdProto { domain: String::new(), version: 17 }];
        if self.ml {
            opset_import.push(OperatorSetIdProto { domain: ML.into(), version: 3 });
        }
        let model = ModelProto {
            ir_version: IR_VERSION,
            opset_import,
            producer_name: "dunlin".into(),
            producer_version: crate::VERSION.into(),
            graph: Some(self.graph),
            ..Default::default()
        };
        model.encode_to_vec()
    }
}

fn value(name: &str, width: usize) -> ValueInfoProto {
    let dims = [Dim::DimParam("N".into()), Dim::DimValue(width as i64)];
    let dim =
        dims.into_iter().map(|value| Dimension { denotation: String::new(), value: Some(value) }).collect();
    let tensor =
        type_proto::Tensor { elem_type: DataType::Float as i32, shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { denotation: String::new(), value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}
