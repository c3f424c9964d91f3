//! ONNX files for tests, written as protobuf by hand: the agent itself only ever reads them.
#![allow(clippy::cast_possible_truncation, reason = "test data is small")]

use std::sync::Arc;

use dunlin_engine::{Model, of_floats};
use dunlin_protocol::{
    Blob, Bundle, Conduct, Digest, Hard, Lineage, Member, ModelSignature, Role, Rule, TaskId, TaskPolicy,
    TaskType,
};

use super::{Crew, Resident};

fn varint(mut n: u64, out: &mut Vec<u8>) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn number(field: u64, n: i64, out: &mut Vec<u8>) {
    varint(field << 3, out);
    varint(n as u64, out);
}

fn bytes(field: u64, data: &[u8], out: &mut Vec<u8>) {
    varint(field << 3 | 2, out);
    varint(data.len() as u64, out);
    out.extend_from_slice(data);
}

fn message(field: u64, out: &mut Vec<u8>, fill: impl FnOnce(&mut Vec<u8>)) {
    let mut inner = Vec::new();
    fill(&mut inner);
    bytes(field, &inner, out);
}

/// An input or output of `columns` columns; `kind` is ONNX's number of its element type.
fn port(field: u64, name: &str, kind: i64, columns: i64, out: &mut Vec<u8>) {
    port_of(field, name, kind, None, columns, out);
}

/// The same with a fixed number of rows, if there is one.
fn port_of(field: u64, name: &str, kind: i64, rows: Option<i64>, columns: i64, out: &mut Vec<u8>) {
    message(field, out, |info| {
        bytes(1, name.as_bytes(), info);
        message(2, info, |of| {
            message(1, of, |tensor| {
                number(1, kind, tensor);
                message(2, tensor, |shape| {
                    message(1, shape, |dim| rows.into_iter().for_each(|rows| number(1, rows, dim)));
                    message(1, shape, |dim| number(1, columns, dim));
                });
            });
        });
    });
}

fn tensor(name: &str, dims: &[usize], values: &[f32], graph: &mut Vec<u8>) {
    message(5, graph, |t| {
        dims.iter().for_each(|&d| number(1, d as i64, t));
        number(2, 1, t);
        bytes(8, name.as_bytes(), t);
        bytes(9, &values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>(), t);
    });
}

fn node(op: &str, inputs: &[&str], output: &str, graph: &mut Vec<u8>) {
    message(1, graph, |n| {
        inputs.iter().for_each(|i| bytes(1, i.as_bytes(), n));
        bytes(2, output.as_bytes(), n);
        bytes(4, op.as_bytes(), n);
    });
}

/// A file of operator set 17 around a graph.
fn file(graph: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
    let mut file = Vec::new();
    number(1, 8, &mut file);
    message(7, &mut file, graph);
    message(8, &mut file, |set| {
        bytes(1, b"", set);
        number(2, 17, set);
    });
    file
}

/// `y = x`, of ONNX's element type `kind`.
pub(crate) fn identity(kind: i64, columns: usize) -> Vec<u8> {
    file(|graph| {
        node("Identity", &["x"], "y", graph);
        bytes(2, b"g", graph);
        port(11, "x", kind, columns as i64, graph);
        port(12, "y", kind, columns as i64, graph);
    })
}

/// `y = x` of text, which may be these words.
pub(crate) fn texts(columns: usize, words: &[&str]) -> Vec<u8> {
    let mut file = identity(7, columns);
    let words = serde_json::json!({ "words": words, "inputs": ["x"], "outputs": ["y"] });
    message(14, &mut file, |entry| {
        bytes(1, b"dunlin.words", entry);
        bytes(2, words.to_string().as_bytes(), entry);
    });
    file
}

/// `y = x` of floats, for exactly so many rows.
pub(crate) fn fixed(rows: i64, columns: i64) -> Vec<u8> {
    file(|graph| {
        node("Identity", &["x"], "y", graph);
        bytes(2, b"g", graph);
        port_of(11, "x", 1, Some(rows), columns, graph);
        port_of(12, "y", 1, Some(rows), columns, graph);
    })
}

/// A chain of `steps` products with a square matrix of zeros, `side` to a side, and a softmax: slow on purpose.
pub(crate) fn chain(side: usize, steps: usize) -> Vec<u8> {
    file(|graph| {
        let names: Vec<String> = (0..steps).map(|i| format!("h{i}")).collect();
        let mut before = "x";
        for name in &names {
            node("MatMul", &[before, "w"], name, graph);
            before = name;
        }
        node("Softmax", &[before], "scores", graph);
        bytes(2, b"g", graph);
        tensor("w", &[side, side], &vec![0.0; side * side], graph);
        port(11, "x", 1, side as i64, graph);
        port(12, "scores", 1, side as i64, graph);
    })
}

/// `scores = softmax(x · w)` with `w` of `features` rows and `classes` columns; with `log` the logarithm of the
/// logits instead, which is not finite below zero.
pub(crate) fn linear(features: usize, classes: usize, w: &[f32], log: bool) -> Vec<u8> {
    file(|graph| {
        node("MatMul", &["x", "w"], "logits", graph);
        node(if log { "Log" } else { "Softmax" }, &["logits"], "scores", graph);
        bytes(2, b"g", graph);
        tensor("w", &[features, classes], w, graph);
        port(11, "x", 1, features as i64, graph);
        port(12, "scores", 1, classes as i64, graph);
    })
}

/// `x` as whole numbers, divided by themselves: ones, but for a zero the runtime panics.
pub(crate) fn panicky(columns: usize) -> Vec<u8> {
    let cast = |input: &str, kind: i64, output: &str, graph: &mut Vec<u8>| {
        message(1, graph, |n| {
            bytes(1, input.as_bytes(), n);
            bytes(2, output.as_bytes(), n);
            bytes(4, b"Cast", n);
            message(5, n, |attribute| {
                bytes(1, b"to", attribute);
                number(3, kind, attribute);
                number(20, 2, attribute);
            });
        });
    };
    file(|graph| {
        cast("x", 6, "whole", graph);
        node("Div", &["whole", "whole"], "ones", graph);
        cast("ones", 1, "scores", graph);
        bytes(2, b"g", graph);
        port(11, "x", 1, columns as i64, graph);
        port(12, "scores", 1, columns as i64, graph);
    })
}

/// A release of `task` around a model file, with classes `c0`, `c1`, ...
pub(crate) fn resident(release: &str, task: &TaskId, onnx: &[u8], classes: usize) -> Resident {
    let model = Model::load(onnx, None).unwrap();
    let blob = Blob { digest: Digest([0; 32]), length: 1 };
    let bundle = Bundle {
        format: 1,
        release: release.parse().unwrap(),
        task: task.clone(),
        task_type: TaskType::Classification,
        family: "linear".into(),
        model: blob,
        golden: blob,
        profile: None,
        signature: ModelSignature {
            inputs: model.inputs().to_vec(),
            outputs: model.outputs().to_vec(),
            features: vec![],
            labels: (0..classes).map(|c| format!("c{c}")).collect(),
        },
        hard: Hard {
            arch: Default::default(),
            classes: Default::default(),
            ops: model.ops(),
            bundle_bytes: 1,
            ram_bytes: 1,
            min_agent: String::new(),
        },
        latency_us: 10,
        metrics: Default::default(),
        lineage: Lineage { run: "import".into(), dataset: None, code: String::new(), seed: 0 },
        licence: String::new(),
    };
    Resident {
        release: release.parse().unwrap(),
        bundle: Arc::new(bundle),
        manifest: Digest([0; 32]),
        background: (0..2 * model.columns().unwrap_or(0)).map(|i| (i % 5) as f32 / 4.0).collect(),
        model: Arc::new(model),
        known: Arc::default(),
        profile: None,
    }
}

/// The same model, broken: it fails on what it was proved with, which is this row.
pub(crate) fn broken(resident: Resident, row: &[f32]) -> Resident {
    let known = [of_floats("x", &[1, row.len() as u64], row)];
    Resident { known: known.into(), ..resident }
}

/// A policy whose baseline is class 1 of three.
pub(crate) fn policy(task: &TaskId) -> TaskPolicy {
    TaskPolicy {
        format: 1,
        task: task.clone(),
        task_type: TaskType::Classification,
        metric: "accuracy".into(),
        baseline_class: 1,
        baseline_rules: vec![],
        labels: vec!["c0".into(), "c1".into(), "c2".into()],
        retrained: None,
        samples: None,
    }
}

/// The identity: three features, three classes, the largest feature wins.
pub(crate) const IDENTITY: [f32; 9] = [1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0];

/// A champion `m@3` and two voters, of which the second fails on numbers below zero.
pub(crate) fn voters(task: &TaskId) -> Crew {
    let model = |release, log| resident(release, task, &linear(3, 3, &IDENTITY, log), 3);
    let voter = |(release, log)| {
        let (role, model) = (Role::Voter { weight_ppm: 1_000_000 }, model(release, log));
        (Member { release: model.release.clone(), role, limit_us: None }, model)
    };
    let members = [("v@1", false), ("v@2", true)].map(voter).into();
    let conduct = Conduct { rule: Rule::SoftVote, context: vec![] };
    Crew { members, conduct, ..Crew::new(model("m@3", false), None) }
}
