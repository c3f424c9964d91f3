//! What a run takes from the heap once a model is warm: what its rows need, however large the model is.
#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod support;

use std::sync::mpsc::sync_channel;

use dunlin_engine::{Model, of_floats};
use peak_alloc::PeakAlloc;
use support::{Ensemble, FREE, Tree, bytes, int, model, node, port, recurrent, tensor};
use tract_onnx::pb::tensor_proto::DataType;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// Most that a run of one row may take, bytes. The network here has 1,000 and 2,000 floats between its layers, some of them
/// twice; it and the larger ensemble hold megabytes of their own.
const RUN_BYTES_MAX: usize = 64 * 1024;
/// Most that a run through a hundred times as many trees may take beyond what the fewer take, bytes.
const APART_BYTES_MAX: usize = 1024;
/// Models that come and go, and bytes that each may leave behind: names of dimensions are kept for good.
const LOADS: usize = 12;
const LEFT_BYTES_MAX: usize = 64;
const FEATURES: usize = 8;

fn network(width: usize, hidden: usize) -> Vec<u8> {
    let (w, h) = (width as i64, hidden as i64);
    let weights = |n: usize| (0..n).map(|i| (i % 13) as f32 / 1000.0 - 0.006).collect::<Vec<f32>>();
    bytes(&model(
        vec![
            node("MatMul", &["x", "w1"], &["h"], vec![]),
            node("Relu", &["h"], &["r"], vec![]),
            node("MatMul", &["r", "w2"], &["l"], vec![]),
            node("Softmax", &["l"], &["scores"], vec![int("axis", 1)]),
        ],
        vec![tensor("w1", &[w, h], &weights(width * hidden)), tensor("w2", &[h, 3], &weights(hidden * 3))],
        vec![port("x", DataType::Float, &[FREE, w])],
        vec![port("scores", DataType::Float, &[FREE, 3])],
    ))
}

/// A tree of so many levels.
fn tree(levels: usize, salt: usize) -> Tree {
    if levels == 0 {
        return Tree::Leaf(vec![(salt % 3, 1.0)]);
    }
    Tree::Branch {
        mode: "BRANCH_LEQ",
        feature: salt % FEATURES,
        value: (salt % 17) as f32 / 17.0,
        missing_yes: false,
        yes: Box::new(tree(levels - 1, salt * 3 + 1)),
        no: Box::new(tree(levels - 1, salt * 5 + 2)),
    }
}

fn trees(count: usize) -> Vec<u8> {
    let trees: Vec<Tree> = (0..count).map(|salt| tree(6, salt)).collect();
    bytes(&Ensemble::of(&trees).classifier(FEATURES as i64, 3, "SOFTMAX", &[]))
}

/// The most that `run` held at one time beside what was there before it, bytes; afterwards it holds nothing.
fn taken(run: impl Fn()) -> usize {
    HEAP.reset_peak_usage();
    let before = HEAP.current_usage();
    run();
    assert_eq!(HEAP.current_usage(), before, "something is kept");
    HEAP.peak_usage() - before
}

/// What single rows take through both ways into the engine, after some that made things ready.
fn of_row(file: &[u8]) -> [usize; 2] {
    let model = Model::load(file, None).unwrap();
    let row = vec![0.25; model.row_len()];
    let inputs = [of_floats("x", &[1, row.len() as u64], &row)];
    let plain = || drop(model.run_f32(&row, 1).unwrap());
    let named = || drop(model.run(&inputs).unwrap());
    for _ in 1..10 {
        plain();
        named();
    }
    let tenth = [taken(plain), taken(named)];
    for _ in 10..1000 {
        plain();
        named();
    }
    assert_eq!([taken(plain), taken(named)], tenth, "the thousandth request takes what the tenth did");
    tenth
}

/// What each of many models has left behind that another thread ran and this one freed, bytes.
fn left_behind(file: &[u8]) -> usize {
    let (ask, asked) = sync_channel::<Model>(0);
    let (answer, answered) = sync_channel::<Model>(0);
    let mut held = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            for model in asked {
                let row = vec![0.25; model.row_len()];
                drop(model.run_f32(&row, 1).unwrap());
                answer.send(model).unwrap();
            }
        });
        for _ in 0..2 {
            for _ in 0..LOADS {
                ask.send(Model::load(file, None).unwrap()).unwrap();
                drop(answered.recv().unwrap());
            }
            held.push(HEAP.current_usage());
        }
        drop(ask);
    });
    held[1].saturating_sub(held[0]) / LOADS
}

// One test, so that nothing else allocates meanwhile.
#[test]
fn a_run_takes_what_its_row_needs_and_gives_it_back_however_large_the_model_is() {
    let [few, many] = [trees(10), trees(1000)];
    let network = network(1000, 2000);
    assert!(many.len() > 1 << 20 && network.len() > 1 << 22, "{} and {} bytes", many.len(), network.len());
    let [few, many, network] = [few, many, network].map(|file| of_row(&file));
    for taken in [many, network].as_flattened() {
        assert!(*taken <= RUN_BYTES_MAX, "{many:?} bytes through the trees, {network:?} through the network");
    }
    for (few, many) in few.into_iter().zip(many) {
        assert!(many <= few + APART_BYTES_MAX, "{few} bytes through 10 trees, {many} through 1000");
    }
    for file in [
        self::network(10, 20),
        self::trees(10),
        bytes(&recurrent("LSTM", 4, vec![], true)),
        bytes(&recurrent("GRU", 3, vec![], false)),
    ] {
        let left = left_behind(&file);
        assert!(left <= LEFT_BYTES_MAX, "each model leaves {left} bytes with the thread that ran it");
    }
}
