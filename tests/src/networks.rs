//! Networks with weights from a generator: what they answer means nothing, what they cost is what networks of their
//! size cost.
use crate::digits::Rng;
use dunlin_engine::onnx_pb::attribute_proto::AttributeType;
use dunlin_engine::onnx_pb::tensor_proto::DataType;
use dunlin_engine::onnx_pb::tensor_shape_proto::Dimension;
use dunlin_engine::onnx_pb::tensor_shape_proto::dimension::Value as Dim;
use dunlin_engine::onnx_pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};
use prost::Message;

/// Side of the square image.
pub const SIDE: usize = 64;
/// Its colours.
pub const CHANNELS: usize = 3;
/// Classes.
pub const CLASSES: usize = 10;
/// Filters of each convolution, every one of which halves the image.
const FILTERS: [usize; 5] = [32, 64, 128, 256, 512];
/// Width of the layer before the scores; it brings the file to 14 MB.
const HIDDEN: usize = 3700;

pub(crate) struct Graph {
    pub(crate) graph: GraphProto,
    rng: Rng,
}

impl Graph {
    /// An empty graph.
    pub(crate) fn new(name: &str, seed: u64) -> Self {
        Self { graph: GraphProto { name: name.into(), ..Default::default() }, rng: Rng(seed) }
    }

    /// Uniform weights whose sums keep their size from layer to layer (He et al. 2015).
    fn weights(&mut self, name: &str, dims: &[usize], fan_in: usize) -> String {
        let limit = (6.0 / fan_in as f32).sqrt();
        let n: usize = dims.iter().product();
        let raw_data =
            (0..n).flat_map(|_| ((self.rng.uniform() * 2.0 - 1.0) * limit).to_le_bytes()).collect();
        let dims = dims.iter().map(|&dim| dim as i64).collect();
        let data_type = DataType::Float as i32;
        self.graph.initializer.push(TensorProto {
            name: name.into(),
            dims,
            data_type,
            raw_data,
            ..Default::default()
        });
        name.into()
    }

    /// A layer that weighs all of `from` inputs for each of `to` outputs.
    fn dense(&mut self, input: &str, from: usize, to: usize, i: usize) -> String {
        let weights = self.weights(&format!("gemm_{i}_weights"), &[from, to], from);
        let bias = self.weights(&format!("gemm_{i}_bias"), &[to], from);
        self.node("Gemm", &[input, &weights, &bias], &format!("gemm_{i}"), vec![])
    }

    pub(crate) fn node(
        &mut self,
        op: &str,
        inputs: &[&str],
        output: &str,
        attribute: Vec<AttributeProto>,
    ) -> String {
        self.graph.node.push(NodeProto {
            name: format!("{}_{}", op.to_lowercase(), self.graph.node.len()),
            op_type: op.into(),
            input: inputs.iter().map(|&name| name.into()).collect(),
            output: vec![output.into()],
            attribute,
            ..Default::default()
        });
        output.into()
    }
}

pub(crate) fn ints(name: &str, ints: &[i64]) -> AttributeProto {
    AttributeProto {
        name: name.into(),
        r#type: AttributeType::Ints as i32,
        ints: ints.to_vec(),
        ..Default::default()
    }
}

/// A float input or output of any number of rows, each of this shape.
pub(crate) fn port(name: &str, shape: &[usize]) -> ValueInfoProto {
    port_of(name, DataType::Float, shape)
}

/// The same of another type.
pub(crate) fn port_of(name: &str, kind: DataType, shape: &[usize]) -> ValueInfoProto {
    let free = Dim::DimParam("N".into());
    let dims = std::iter::once(free).chain(shape.iter().map(|&dim| Dim::DimValue(dim as i64)));
    let dim = dims.map(|value| Dimension { denotation: String::new(), value: Some(value) }).collect();
    let tensor = type_proto::Tensor { elem_type: kind as i32, shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { denotation: String::new(), value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}

pub(crate) fn file(graph: GraphProto) -> Vec<u8> {
    let set = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    let opset_import = vec![set("", 17), set("ai.onnx.ml", 3)];
    ModelProto {
        ir_version: 8,
        opset_import,
        producer_name: "dunlin-bench".into(),
        graph: Some(graph),
        ..Default::default()
    }
    .encode_to_vec()
}

/// A convolutional network of about 14 MB: `x` `[N, 3, 64, 64]` to `scores` `[N, 10]`.
pub fn cnn() -> Vec<u8> {
    let mut graph = Graph::new("cnn", 1);
    let (mut at, mut channels) = (String::from("x"), CHANNELS);
    for (i, filters) in FILTERS.into_iter().enumerate() {
        let fan_in = channels * 9;
        let weights = graph.weights(&format!("conv_{i}_weights"), &[filters, channels, 3, 3], fan_in);
        let bias = graph.weights(&format!("conv_{i}_bias"), &[filters], fan_in);
        let shape =
            vec![ints("kernel_shape", &[3, 3]), ints("strides", &[2, 2]), ints("pads", &[1, 1, 1, 1])];
        let conv = graph.node("Conv", &[&at, &weights, &bias], &format!("conv_{i}"), shape);
        at = graph.node("Relu", &[&conv], &format!("relu_{i}"), vec![]);
        channels = filters;
    }
    let pooled = graph.node("GlobalAveragePool", &[&at], "pooled", vec![]);
    let mut at = graph.node("Flatten", &[&pooled], "flat", vec![]);
    for (i, (from, to)) in [(channels, HIDDEN), (HIDDEN, CLASSES)].into_iter().enumerate() {
        let gemm = graph.dense(&at, from, to, i);
        at = if i == 0 { graph.node("Relu", &[&gemm], "hidden", vec![]) } else { gemm };
    }
    graph.node("Softmax", &[&at], "scores", vec![]);
    graph.graph.input = vec![port("x", &[CHANNELS, SIDE, SIDE])];
    graph.graph.output = vec![port("scores", &[CLASSES])];
    file(graph.graph)
}

/// A perceptron with one hidden layer: `x` `[N, width]` to `scores` `[N, classes]`.
pub fn perceptron(width: usize, hidden: usize, classes: usize, seed: u64) -> Vec<u8> {
    let mut graph = Graph::new("mlp", seed);
    let hidden_layer = graph.dense("x", width, hidden, 0);
    let relu = graph.node("Relu", &[&hidden_layer], "hidden", vec![]);
    let logits = graph.dense(&relu, hidden, classes, 1);
    graph.node("Softmax", &[&logits], "scores", vec![]);
    graph.graph.input = vec![port("x", &[width])];
    graph.graph.output = vec![port("scores", &[classes])];
    file(graph.graph)
}

/// A graph that does nothing to rows of `width`: what a call costs before any work.
pub fn nothing(width: usize) -> Vec<u8> {
    let mut graph = Graph::new("nothing", 1);
    graph.node("Identity", &["x"], "scores", vec![]);
    graph.graph.input = vec![port("x", &[width])];
    graph.graph.output = vec![port("scores", &[width])];
    file(graph.graph)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_network_has_its_size_and_runs() {
        let onnx = cnn();
        assert!((13.5e6..14.5e6).contains(&(onnx.len() as f64)), "{} bytes", onnx.len());
        let model = dunlin_engine::Model::load(&onnx, None).unwrap();
        let scores = model.run_f32(&vec![0.5; CHANNELS * SIDE * SIDE], 1).unwrap();
        assert!(scores.len() == CLASSES && (scores.iter().sum::<f32>() - 1.0).abs() < 1e-4);
    }
}
