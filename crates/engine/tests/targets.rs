//! Answers that were found on x86-64 and must come out on every target within what rounding makes: which kernels run, and in
//! what order they add, depends on the processor.

use super::support::{Ensemble, FREE, Tree, bytes, close, int, ints, model, node, port, recurrent, tensor};
use dunlin_engine::Model;
use tract_onnx::pb::ModelProto;
use tract_onnx::pb::tensor_proto::DataType;

/// A line for each model: its name, and its answers to [`ROWS`] rows. A test that fails prints the lines that it found.
const FOUND: &str = include_str!("data/x86_64.txt");
/// More than the largest plan runs at once, so that a rest is left.
const ROWS: usize = 33;

/// Values that follow from their index, between -1 and 1.
fn values(n: usize, salt: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919 + salt * 31) % 101) as f32 / 50.0 - 1.0).collect()
}

fn weights(name: &str, dims: &[i64]) -> tract_onnx::pb::TensorProto {
    let count = dims.iter().product::<i64>() as usize;
    tensor(name, dims, &values(count, name.len()))
}

/// Layers wider than any kernel's tile, and the functions that kernels approximate.
fn perceptron() -> ModelProto {
    model(
        vec![
            node("Gemm", &["x", "w", "b"], &["h"], vec![]),
            node("Tanh", &["h"], &["t"], vec![]),
            node("Gemm", &["t", "ww", "bb"], &["k"], vec![]),
            node("Erf", &["k"], &["e"], vec![]),
            node("Sigmoid", &["e"], &["s"], vec![]),
            node("Gemm", &["s", "www", "bbb"], &["l"], vec![]),
            node("Softmax", &["l"], &["y"], vec![int("axis", 1)]),
        ],
        vec![
            weights("w", &[24, 70]),
            weights("b", &[70]),
            weights("ww", &[70, 37]),
            weights("bb", &[37]),
            weights("www", &[37, 5]),
            weights("bbb", &[5]),
        ],
        vec![port("x", DataType::Float, &[FREE, 24])],
        vec![port("y", DataType::Float, &[FREE, 5])],
    )
}

/// An ordinary convolution, one for each channel, and pooling.
fn convolutions() -> ModelProto {
    let pads = || ints("pads", vec![1, 1, 1, 1]);
    model(
        vec![
            node("Conv", &["x", "c", "a"], &["h"], vec![pads()]),
            node("Relu", &["h"], &["r"], vec![]),
            node("Conv", &["r", "cc"], &["d"], vec![pads(), int("group", 9)]),
            node(
                "MaxPool",
                &["d"],
                &["p"],
                vec![ints("kernel_shape", vec![2, 2]), ints("strides", vec![2, 2])],
            ),
            node("GlobalAveragePool", &["p"], &["g"], vec![]),
            node("Flatten", &["g"], &["f"], vec![]),
            node("Gemm", &["f", "w", "b"], &["l"], vec![]),
            node("Softmax", &["l"], &["y"], vec![int("axis", 1)]),
        ],
        vec![
            weights("c", &[9, 2, 3, 3]),
            weights("a", &[9]),
            weights("cc", &[9, 1, 3, 3]),
            weights("w", &[9, 4]),
            weights("b", &[4]),
        ],
        vec![port("x", DataType::Float, &[FREE, 2, 8, 8])],
        vec![port("y", DataType::Float, &[FREE, 4])],
    )
}

fn trees() -> ModelProto {
    let leaf = |k: usize, v: f32| Box::new(Tree::Leaf(vec![(k, v)]));
    let trees: Vec<Tree> = (0..12)
        .map(|t| Tree::Branch {
            mode: "BRANCH_LEQ",
            feature: t % 4,
            value: t as f32 / 6.0 - 1.0,
            missing_yes: t % 2 == 0,
            yes: leaf(t % 3, 0.3 + t as f32 / 7.0),
            no: leaf((t + 1) % 3, -0.2 * t as f32),
        })
        .collect();
    Ensemble::of(&trees).classifier(4, 3, "SOFTMAX", &[0.1, -0.2, 0.3])
}

#[test]
fn answers_are_those_of_x86_64() {
    let models = [
        ("perceptron", perceptron(), 24),
        ("convolutions", convolutions(), 2 * 8 * 8),
        ("lstm", recurrent("LSTM", 4, vec![], true), 10),
        ("gru", recurrent("GRU", 3, vec![], false), 10),
        ("trees", trees(), 4),
    ];
    let found = models.map(|(name, file, columns)| {
        let model = Model::load(&bytes(&file), Some(32)).unwrap();
        (name, model.run_f32(&values(ROWS * columns, 0), ROWS).unwrap())
    });
    for (name, answers) in &found {
        println!("{}", answers.iter().fold((*name).to_owned(), |line, answer| format!("{line} {answer}")));
    }
    let there = FOUND.lines().map(|line| {
        let mut words = line.split(' ');
        (words.next().unwrap(), words.map(|word| word.parse().unwrap()).collect::<Vec<f32>>())
    });
    let there: Vec<_> = there.collect();
    assert_eq!(there.len(), found.len());
    for ((name, answers), (known, expected)) in found.iter().zip(&there) {
        assert_eq!(name, known);
        close(answers, expected);
    }
}
