//! Models that take integers, with golden vectors that are drawn and with the publisher's own.

use std::fs;

use dunlin_engine::onnx_pb::tensor_proto::DataType;
use dunlin_engine::onnx_pb::tensor_shape_proto::Dimension;
use dunlin_engine::onnx_pb::tensor_shape_proto::dimension::Value as Dim;
use dunlin_engine::onnx_pb::type_proto::{Tensor, Value as TypeValue};
use dunlin_engine::onnx_pb::{
    GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TypeProto,
    ValueInfoProto,
};
use dunlin_protocol::{DType, GoldenSet, cbor};
use prost::Message;
use serde_json::{Value, json};

use super::Daemon;

fn port(name: &str, kind: DataType, columns: &[i64]) -> ValueInfoProto {
    let dims = std::iter::once(Dim::DimParam("N".into())).chain(columns.iter().map(|n| Dim::DimValue(*n)));
    let dim = dims.map(|value| Dimension { denotation: String::new(), value: Some(value) }).collect();
    let tensor = Tensor { elem_type: kind as i32, shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { denotation: String::new(), value: Some(TypeValue::TensorType(tensor)) };
    ValueInfoProto { name: name.into(), r#type: Some(r#type), ..Default::default() }
}

fn tensor(name: &str, kind: DataType, dims: &[i64], raw_data: Vec<u8>) -> TensorProto {
    TensorProto {
        name: name.into(),
        data_type: kind as i32,
        dims: dims.to_vec(),
        raw_data,
        ..Default::default()
    }
}

fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    tensor(name, DataType::Float, dims, values.iter().flat_map(|x| x.to_le_bytes()).collect())
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    NodeProto {
        name: format!("{output}-node"),
        op_type: op.into(),
        input: inputs.iter().map(|name| (*name).into()).collect(),
        output: vec![output.into()],
        ..Default::default()
    }
}

fn file(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: ValueInfoProto,
    output: ValueInfoProto,
) -> Vec<u8> {
    let graph = GraphProto {
        name: "g".into(),
        node,
        initializer,
        input: vec![input],
        output: vec![output],
        ..Default::default()
    };
    let set = OperatorSetIdProto { domain: String::new(), version: 17 };
    ModelProto { ir_version: 8, opset_import: vec![set], graph: Some(graph), ..Default::default() }
        .encode_to_vec()
}

/// Two scores of three quantised values.
fn quantised(weight: f32) -> Vec<u8> {
    let constants = vec![
        floats("scale", &[], &[0.5]),
        tensor("zero", DataType::Int8, &[], vec![3]),
        floats("w", &[3, 2], &[weight, 0.0, 1.0, -1.0, 0.25, 2.0]),
    ];
    let nodes = vec![
        node("DequantizeLinear", &["x", "scale", "zero"], "real"),
        node("MatMul", &["real", "w"], "scores"),
    ];
    file(nodes, constants, port("x", DataType::Int8, &[3]), port("scores", DataType::Float, &[2]))
}

/// Looks up two places, which begin at `first`, in a table of five rows.
fn lookup(first: i64) -> Vec<u8> {
    let constants = vec![
        floats("table", &[5, 2], &[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0]),
        tensor("first", DataType::Int64, &[1], first.to_le_bytes().to_vec()),
    ];
    let nodes = vec![node("Add", &["x", "first"], "place"), node("Gather", &["table", "place"], "rows")];
    file(nodes, constants, port("x", DataType::Int64, &[2]), port("rows", DataType::Float, &[2, 2]))
}

/// The golden vectors of a release.
async fn golden(daemon: &Daemon, pushed: &Value) -> GoldenSet {
    drop(rustls::crypto::ring::default_provider().install_default());
    let authority = reqwest::Certificate::from_pem(&fs::read(daemon.path("data/ca.pem")).unwrap()).unwrap();
    let client = reqwest::Client::builder().tls_certs_only([authority]).build().unwrap();
    let digest = pushed["bundle"]["golden"]["digest"].as_str().unwrap();
    let url = format!("{}/v1/blobs/{digest}", daemon.server);
    let bytes = client.get(&url).bearer_auth(&daemon.token).send().await.unwrap().bytes().await.unwrap();
    cbor::decode(&bytes, bytes.len()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn models_of_integers_go_in_with_drawn_vectors_and_with_the_publishers() {
    let daemon = Daemon::start().await;
    let write = |name: &str, content: &[u8]| {
        fs::write(daemon.path(name), content).unwrap();
        daemon.path(name).display().to_string()
    };
    let push = |file: &str, more: &[&str]| {
        let args = ["model", "push", file, "--task", "lamp", "--name", "lamp", "--regression"];
        daemon.run(&[&args[..], more].concat())
    };
    let pushed = |file: &str, more: &[&str]| -> Value {
        let output = push(file, more);
        assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    };

    let small = write("small.onnx", &quantised(1.0));
    daemon.json(&["model", "check", &small]);
    let drawn = golden(&daemon, &pushed(&small, &[])).await;
    let values = &drawn.inputs[0];
    assert_eq!((values.datatype, values.shape.as_slice()), (DType::Int8, &[32, 3][..]));
    let least = values.data.0.iter().map(|byte| *byte as i8).min();
    assert!(least < Some(-64) && !drawn.outputs.is_empty(), "{drawn:?}");

    // Places beyond the table end the run, the first ones do not.
    let places = write("places.onnx", &lookup(0));
    daemon.json(&["model", "check", &places]);
    let drawn = golden(&daemon, &pushed(&places, &[])).await;
    assert!(drawn.inputs[0].data.0.contains(&1), "{drawn:?}");

    // Whatever is drawn, the place is beyond the table; that shows only when it is run.
    let beyond = write("beyond.onnx", &lookup(7));
    let refused = daemon.run(&["model", "check", &beyond]);
    assert_eq!(refused.status.code(), Some(4));
    let told: Value = serde_json::from_slice(&refused.stdout).unwrap();
    assert_eq!(told["refused"], "model_failed", "{told}");
    assert!(told["error"].as_str().unwrap().contains("running the model"), "{told}");
    assert_eq!(push(&beyond, &[]).status.code(), Some(4));

    let other = write("other.onnx", &quantised(2.0));
    let line = |answer: Option<[f32; 2]>| {
        let x = json!({ "name": "x", "shape": [1, 3], "datatype": "INT8", "data": [5, 3, 3] });
        let outputs =
            answer.map(|data| json!({ "name": "scores", "shape": [1, 2], "datatype": "FP32", "data": data }));
        json!({ "inputs": [x], "outputs": outputs.into_iter().collect::<Vec<_>>() }).to_string() + "\n"
    };
    let wrong = write("wrong.ndjson", line(Some([1.0, 0.0])).as_bytes());
    assert_eq!(push(&other, &["--golden", &wrong]).status.code(), Some(4));
    let right = write("right.ndjson", line(Some([2.0, 0.0])).repeat(2).as_bytes());
    let given = golden(&daemon, &pushed(&other, &["--golden", &right])).await;
    assert_eq!(given.inputs[0].data.0, [5, 3, 3, 5, 3, 3]);
    let third = write("third.onnx", &quantised(3.0));
    let asked = write("asked.ndjson", line(None).as_bytes());
    let given = golden(&daemon, &pushed(&third, &["--golden", &asked])).await;
    assert_eq!(dunlin_engine::floats(&given.outputs[0]).unwrap(), [3.0, 0.0]);
}
