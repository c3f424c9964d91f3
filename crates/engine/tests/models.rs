//! Answers of models made by hand against plain evaluations of them.

use super::support::{
    Ensemble, FREE, Mlp, Tree, bytes, close, int, ints_tensor, ml, model, node, port, recurrent, text, texts,
};
use dunlin_engine::{Model, argmax, floats, golden, inspect, max_error_ppm, of_floats};
use dunlin_protocol::DType;
use proptest::prelude::*;
use tract_onnx::pb::tensor_proto::DataType;

fn rows(n: usize, columns: usize) -> Vec<f32> {
    (0..n * columns).map(|i| ((i * 7919) % 101) as f32 / 25.0 - 2.0).collect()
}

fn branch(mode: &'static str, feature: usize, value: f32, yes: Tree, no: Tree) -> Tree {
    Tree::Branch { mode, feature, value, missing_yes: false, yes: Box::new(yes), no: Box::new(no) }
}

fn leaf(values: &[(usize, f32)]) -> Tree {
    Tree::Leaf(values.to_vec())
}

#[test]
fn a_perceptron_answers_as_its_formula_for_every_batch() {
    let mlp = Mlp::new();
    let model = Model::load(&bytes(&mlp.file(FREE)), Some(32)).unwrap();
    assert_eq!(model.inputs()[0].shape, [-1, 4]);
    assert_eq!(model.outputs()[0].shape, [-1, 3]);
    for n in [1, 2, 7, 8, 9, 31, 32, 33, 100] {
        let x = rows(n, Mlp::IN);
        let want: Vec<f32> = x.chunks(Mlp::IN).flat_map(|row| mlp.answer(row)).collect();
        close(&model.run_f32(&x, n).unwrap(), &want);
        let slow = model.run(&[of_floats("x", &[n as u64, 4], &x)]).unwrap();
        assert_eq!(slow[0].shape, [n as u64, 3]);
        close(&floats(&slow[0]).unwrap(), &want);
    }
}

#[test]
fn a_fixed_batch_of_one_answers_many_rows_one_by_one() {
    let mlp = Mlp::new();
    let model = Model::load(&bytes(&mlp.file(1)), None).unwrap();
    let x = rows(5, Mlp::IN);
    let want: Vec<f32> = x.chunks(Mlp::IN).flat_map(|row| mlp.answer(row)).collect();
    close(&model.run_f32(&x, 5).unwrap(), &want);
}

#[test]
fn a_fixed_batch_takes_exactly_that_many() {
    let model = Model::load(&bytes(&Mlp::new().file(4)), None).unwrap();
    assert_eq!(model.inputs()[0].shape, [4, 4]);
    assert!(model.run_f32(&rows(4, 4), 4).is_ok());
    assert!(model.run_f32(&rows(1, 4), 1).unwrap_err().is_input());
}

#[test]
fn a_recurrent_network_begins_every_row_and_every_request_anew() {
    let kinds = [
        ("LSTM", 4, vec![]),
        ("GRU", 3, vec![]),
        ("GRU", 3, vec![int("linear_before_reset", 1)]),
        ("RNN", 1, vec![]),
    ];
    // Run as 32, 8, 1 and 1 rows, or as single ones.
    let (times, three) = (14, rows(3, 10));
    let x = three.repeat(times);
    for (op, gates, attributes) in kinds {
        for given in [false, true] {
            let file = bytes(&recurrent(op, gates, attributes.clone(), given));
            let alone = |row: &[f32]| Model::load(&file, None).unwrap().run_f32(row, 1).unwrap();
            let want: Vec<f32> = three.chunks(10).flat_map(alone).collect();
            let model = Model::load(&file, None).unwrap();
            for _ in 0..2 {
                close(&model.run_f32(&x, 3 * times).unwrap(), &want.repeat(times));
            }
        }
    }
}

/// As PyTorch writes it: zeros for as many rows as there are.
#[test]
fn a_recurrent_network_may_begin_with_zeros_for_each_row() {
    for (op, gates) in [("LSTM", 4), ("GRU", 3), ("RNN", 1)] {
        let mut file = recurrent(op, gates, vec![], true);
        let graph = file.graph.as_mut().unwrap();
        let zeros = [
            node("Shape", &["x"], &["shape"], vec![]),
            node("Gather", &["shape", "zero"], &["n"], vec![int("axis", 0)]),
            node("Concat", &["one", "n", "three"], &["zeros"], vec![int("axis", 0)]),
            node("ConstantOfShape", &["zeros"], &["h"], vec![]),
        ];
        graph.node.splice(1..5, zeros);
        // Of all states the last one, not what is handed out as that.
        let (y, network) = (graph.node.pop().unwrap(), graph.node.last_mut().unwrap());
        network.output = vec!["all".into()];
        graph.node.push(node("Gather", &["all", "last"], &["of"], vec![int("axis", 0)]));
        graph.node.push(node("Squeeze", &["of", "zero"], &["s"], vec![]));
        graph.node.push(y);
        graph.initializer.extend([ints_tensor("three", &[3]), ints_tensor("last", &[4])]);
        let model = Model::load(&bytes(&file), None).unwrap();
        assert_eq!(model.inputs()[0].shape[0], -1);
        let alone = Model::load(&bytes(&recurrent(op, gates, vec![], false)), None).unwrap();
        for n in [1, 9, 41] {
            let x = rows(n, 10);
            let want: Vec<f32> = x.chunks(10).flat_map(|row| alone.run_f32(row, 1).unwrap()).collect();
            close(&model.run_f32(&x, n).unwrap(), &want);
        }
    }
}

#[test]
fn what_the_runtime_passes_over_of_a_recurrent_network_is_refused() {
    let load =
        |op, gates, attribute| Model::load(&bytes(&recurrent(op, gates, vec![attribute], false)), None);
    for (op, gates, attribute, what) in [
        ("LSTM", 4, texts("activations", &["Sigmoid", "Relu", "Relu"]), "activations"),
        ("GRU", 3, texts("activations", &["HardSigmoid", "Tanh"]), "activations"),
        ("RNN", 1, texts("activations", &["Relu"]), "activations"),
        ("LSTM", 4, text("direction", "reverse"), "backwards"),
        ("GRU", 3, super::support::floats("clip", vec![3.0]), "clip"),
        ("LSTM", 4, int("input_forget", 1), "input_forget"),
        ("RNN", 1, int("layout", 1), "layout"),
    ] {
        let refused = load(op, gates, attribute).unwrap_err().to_string();
        assert!(refused.contains(what) && refused.contains(op), "{refused}");
    }
    assert!(load("LSTM", 4, texts("activations", &["Sigmoid", "Tanh", "tanh"])).is_ok());
}

#[test]
fn wrong_inputs_name_the_input() {
    let model = Model::load(&bytes(&Mlp::new().file(FREE)), None).unwrap();
    let good = of_floats("x", &[1, 4], &[0.0; 4]);
    let wrong = [
        vec![],
        vec![of_floats("y", &[1, 4], &[0.0; 4])],
        vec![good.clone(), good.clone()],
        vec![of_floats("x", &[1, 3], &[0.0; 3])],
        vec![of_floats("x", &[4], &[0.0; 4])],
        vec![of_floats("x", &[1, 4], &[0.0; 3])],
        vec![of_floats("x", &[0, 4], &[])],
        vec![of_floats("x", &[u64::MAX, 4], &[])],
        vec![dunlin_protocol::TensorData { datatype: DType::Int32, ..good.clone() }],
    ];
    for inputs in wrong {
        assert!(model.run(&inputs).unwrap_err().is_input(), "{inputs:?}");
    }
    assert!(model.run(&[good]).is_ok());
}

#[test]
fn labels_of_an_arg_max_come_out_as_int64() {
    let mut file = Mlp::new().file(FREE);
    let graph = file.graph.as_mut().unwrap();
    graph.node.push(node(
        "ArgMax",
        &["l"],
        &["label"],
        vec![super::support::int("axis", 1), super::support::int("keepdims", 0)],
    ));
    graph.output.insert(0, port("label", DataType::Int64, &[FREE]));
    let model = Model::load(&bytes(&file), None).unwrap();
    assert_eq!(model.outputs()[0].datatype, DType::Int64);
    for n in [1, 9] {
        let x = rows(n, 4);
        let out = model.run(&[of_floats("x", &[n as u64, 4], &x)]).unwrap();
        let labels: Vec<i64> =
            out[0].data.0.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
        let scores = floats(&out[1]).unwrap();
        let best: Vec<i64> = scores.chunks(3).map(|row| i64::from(argmax(row).unwrap())).collect();
        assert_eq!(labels, best);
    }
}

#[test]
fn a_scaler_subtracts_and_multiplies() {
    let attributes = vec![
        super::support::floats("offset", vec![1.0, 2.0]),
        super::support::floats("scale", vec![10.0, 0.5]),
    ];
    let file = model(
        vec![ml("Scaler", &["x"], &["y"], attributes)],
        vec![],
        vec![port("x", DataType::Float, &[FREE, 2])],
        vec![port("y", DataType::Float, &[FREE, 2])],
    );
    let model = Model::load(&bytes(&file), None).unwrap();
    close(&model.run_f32(&[1.5, 4.0, 0.0, 0.0], 2).unwrap(), &[5.0, 1.0, -10.0, -1.0]);
}

#[test]
fn every_branch_mode_follows_the_specification_at_the_edges() {
    let edge = [
        f32::NEG_INFINITY,
        -1.0,
        -f32::MIN_POSITIVE,
        -0.0,
        0.0,
        f32::from_bits(1),
        0.5,
        1.0,
        f32::MAX,
        f32::INFINITY,
        f32::NAN,
    ];
    for mode in ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"] {
        for value in edge.into_iter().filter(|v| !v.is_nan()) {
            for missing_yes in [false, true] {
                let tree = Tree::Branch {
                    mode,
                    feature: 0,
                    value,
                    missing_yes,
                    yes: Box::new(leaf(&[(0, 1.0)])),
                    no: Box::new(leaf(&[(0, 2.0)])),
                };
                let file = Ensemble::of(std::slice::from_ref(&tree)).regressor(1, 1, "SUM", &[]);
                let model = Model::load(&bytes(&file), None).unwrap();
                let want: Vec<f32> = edge.iter().map(|x| tree.leaf(&[*x])[0].1).collect();
                let got = model.run_f32(&edge, edge.len()).unwrap();
                assert_eq!(got, want, "{mode} {value} missing {missing_yes}");
                let single: Vec<f32> = edge.iter().map(|x| model.run_f32(&[*x], 1).unwrap()[0]).collect();
                assert_eq!(single, want);
            }
        }
    }
}

#[test]
fn doubles_go_down_the_tree_as_doubles() {
    let load = |mode| {
        let tree = branch(mode, 0, 0.1, leaf(&[(0, 1.0)]), leaf(&[(0, 2.0)]));
        let mut file = Ensemble::of(&[tree]).regressor(1, 1, "SUM", &[]);
        file.graph.as_mut().unwrap().input[0] = port("x", DataType::Double, &[FREE, 1]);
        Model::load(&bytes(&file), None)
    };
    // The first double above the threshold has the threshold as its nearest f32.
    let edge = f64::from(0.1_f32);
    let data = [edge, edge.next_up()].map(f64::to_le_bytes).concat().into();
    let x = dunlin_protocol::TensorData { name: "x".into(), datatype: DType::Fp64, shape: vec![2, 1], data };
    let out = load("BRANCH_LEQ").unwrap().run(&[x]).unwrap();
    assert_eq!(floats(&out[0]).unwrap(), [1.0, 2.0]);
    assert!(load("BRANCH_LT").unwrap_err().to_string().contains("double precision"));
}

#[test]
fn a_support_vector_regressor_adds_up_its_kernels() {
    let answer = |kernel: &str, one_class: i64| {
        let attributes = vec![
            super::support::text("kernel_type", kernel),
            super::support::floats("kernel_params", vec![0.5, 1.0, 2.0]),
            super::support::floats("support_vectors", vec![1.0, 0.0, 0.0, 2.0]),
            super::support::floats("coefficients", vec![2.0, -1.0]),
            super::support::floats("rho", vec![0.25]),
            super::support::int("n_supports", 2),
            super::support::int("one_class", one_class),
        ];
        let file = super::support::single(
            "SVMRegressor",
            attributes,
            port("x", DataType::Float, &[FREE, 2]),
            port("y", DataType::Float, &[FREE, 1]),
        );
        Model::load(&bytes(&file), None).unwrap().run_f32(&[1.0, 1.0], 1).unwrap()
    };
    // Dot products 1 and 2; squared distances 1 and 2.
    close(&answer("LINEAR", 0), &[0.25]);
    close(&answer("POLY", 0), &[2.0 * 1.5 * 1.5 - 4.0 + 0.25]);
    close(&answer("RBF", 0), &[2.0 * (-0.5_f32).exp() - (-1.0_f32).exp() + 0.25]);
    close(&answer("SIGMOID", 0), &[2.0 * 1.5_f32.tanh() - 2.0_f32.tanh() + 0.25]);
    close(&answer("POLY", 1), &[1.0]);
}

#[test]
fn support_vector_classes_are_voted_for_pair_by_pair() {
    let load = |curve: &[f32]| {
        let mut attributes = vec![
            super::support::text("kernel_type", "LINEAR"),
            super::support::floats("support_vectors", vec![1.0, 0.0, -1.0]),
            // The machines of (0, 1), (0, 2) and (1, 2) decide by x - 1, x and x + 1.
            super::support::floats("coefficients", vec![1.0, 0.0, 0.0, 1.0, 0.0, -1.0]),
            super::support::floats("rho", vec![-1.0, 0.0, 1.0]),
            super::support::ints("vectors_per_class", vec![1, 1, 1]),
            super::support::ints("classlabels_ints", vec![10, 20, 30]),
        ];
        if !curve.is_empty() {
            attributes.push(super::support::floats("prob_a", curve.to_vec()));
            attributes.push(super::support::floats("prob_b", vec![0.0; 3]));
        }
        let file = model(
            vec![ml("SVMClassifier", &["x"], &["label", "scores"], attributes)],
            vec![],
            vec![port("x", DataType::Float, &[FREE, 1])],
            vec![port("label", DataType::Int64, &[FREE]), port("scores", DataType::Float, &[FREE, 3])],
        );
        Model::load(&bytes(&file), None).unwrap()
    };
    let x = of_floats("x", &[3, 1], &[2.0, 0.5, -2.0]);
    let out = load(&[]).run(std::slice::from_ref(&x)).unwrap();
    let labels: Vec<i64> =
        out[0].data.0.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(labels, [10, 20, 30]);
    close(&floats(&out[1]).unwrap(), &[1.0, 2.0, 3.0, -0.5, 0.5, 1.5, -3.0, -2.0, -1.0]);
    let out = load(&[-2.0, -2.0, -2.0]).run(&[x]).unwrap();
    for (row, best) in floats(&out[1]).unwrap().chunks(3).zip(0_u32..) {
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{row:?}");
        assert_eq!(argmax(row), Some(best), "{row:?}");
    }
}

/// Values of ONNX Runtime 1.31 for two stumps `x <= 0` with the given leaf values.
#[test]
fn two_class_ensembles_with_one_score_answer_as_onnx_runtime() {
    /// Class, leaf values, post transform, base values, answers for -1 and 1.
    type Case<'a> = (usize, [f32; 4], &'a str, &'a [f32], [f32; 4]);
    let cases: &[Case<'_>] = include!("data/two_class.in");
    for (class, [a, b, c, d], post, base, want) in cases {
        let trees = [
            branch("BRANCH_LEQ", 0, 0.0, leaf(&[(*class, *a)]), leaf(&[(*class, *b)])),
            branch("BRANCH_LEQ", 0, 0.0, leaf(&[(*class, *c)]), leaf(&[(*class, *d)])),
        ];
        let model = Model::load(&bytes(&Ensemble::of(&trees).classifier(1, 2, post, base)), None).unwrap();
        let got = model.run_f32(&[-1.0, 1.0], 2).unwrap();
        for (x, y) in got.iter().zip(want) {
            assert!(
                (x - y).abs() < 1e-6,
                "class {class} {post} base {base:?} leaves {:?}: {got:?} against {want:?}",
                [a, b, c, d]
            );
        }
    }
}

#[test]
fn two_class_forests_with_both_scores_answer_as_onnx_runtime() {
    let trees = [
        branch("BRANCH_LEQ", 0, 0.0, leaf(&[(0, 0.1), (1, 0.9)]), leaf(&[(0, 0.3), (1, 0.7)])),
        branch("BRANCH_LEQ", 0, 0.0, leaf(&[(0, 0.2), (1, 0.8)]), leaf(&[(0, 0.6), (1, 0.4)])),
    ];
    let cases: [(&str, &[f32], [f32; 4]); 4] = [
        ("NONE", &[0.25], [0.55, 1.7, 1.15, 1.1]),
        ("LOGISTIC", &[], [0.574_442_5, 0.845_534_8, 0.710_949_5, 0.750_260_1]),
        ("SOFTMAX", &[], [0.197_816_1, 0.802_183_9, 0.450_166, 0.549_834]),
        ("SOFTMAX_ZERO", &[0.25], [0.240_489_05, 0.759_510_9, 0.512_497_4, 0.487_502_6]),
    ];
    for (post, base, want) in cases {
        let model = Model::load(&bytes(&Ensemble::of(&trees).classifier(1, 2, post, base)), None).unwrap();
        close(&model.run_f32(&[-1.0, 1.0], 2).unwrap(), &want);
    }
    let refused = Model::load(&bytes(&Ensemble::of(&trees).classifier(1, 2, "NONE", &[0.1, 0.2])), None);
    assert!(refused.unwrap_err().to_string().contains("two base values"));
}

#[test]
fn aggregates_and_targets_of_a_regressor() {
    let trees = [
        branch("BRANCH_LT", 0, 0.0, leaf(&[(0, 1.0), (1, 5.0)]), leaf(&[(0, 2.0)])),
        branch("BRANCH_GTE", 1, 1.0, leaf(&[(0, -4.0), (1, 3.0)]), leaf(&[(1, 7.0)])),
    ];
    let x = [-1.0, 2.0, 1.0, 0.0];
    for (aggregate, want) in [
        ("SUM", [-3.0 + 0.5, 8.0, 2.0 + 0.5, 7.0]),
        ("AVERAGE", [-1.5 + 0.5, 4.0, 1.0 + 0.5, 3.5]),
        ("MIN", [-4.0 + 0.5, 3.0, 2.0 + 0.5, 7.0]),
        ("MAX", [1.0 + 0.5, 5.0, 2.0 + 0.5, 7.0]),
    ] {
        let file = Ensemble::of(&trees).regressor(2, 2, aggregate, &[0.5, 0.0]);
        let model = Model::load(&bytes(&file), None).unwrap();
        close(&model.run_f32(&x, 2).unwrap(), &want);
    }
}

#[test]
fn golden_vectors_hold_for_their_model_and_not_for_another() {
    let mlp = Mlp::new();
    let model = Model::load(&bytes(&mlp.file(FREE)), None).unwrap();
    let inputs = vec![of_floats("x", &[6, 4], &rows(6, 4))];
    let set = golden(&model, inputs.clone(), 100).unwrap();
    assert_eq!(max_error_ppm(&model.run(&inputs).unwrap(), &set.outputs), 0);
    let other = Mlp { b2: vec![0.5, -0.5, 0.0], ..Mlp::new() };
    let other = Model::load(&bytes(&other.file(FREE)), None).unwrap();
    assert!(max_error_ppm(&other.run(&inputs).unwrap(), &set.outputs) > 100);
    let mut nan = set.outputs.clone();
    nan[0].data.0[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    assert_eq!(max_error_ppm(&nan, &set.outputs), u32::MAX);
}

#[test]
fn inspection_lists_ops_and_ports() {
    let found = inspect(&bytes(&Mlp::new().file(FREE))).unwrap();
    let ops: Vec<&str> = found.ops.iter().map(String::as_str).collect();
    assert_eq!(ops, ["ai.onnx/Gemm", "ai.onnx/Relu", "ai.onnx/Softmax"]);
    assert_eq!((found.inputs.len(), found.outputs.len()), (1, 1));
}

#[test]
fn a_reshape_that_names_the_batch_keeps_its_rows() {
    // A graph whose Reshape names the batch with -1 stays free in it.
    let file = model(
        vec![node("Reshape", &["x", "s"], &["y"], vec![])],
        vec![super::support::ints_tensor("s", &[-1, 2, 2])],
        vec![port("x", DataType::Float, &[FREE, 4])],
        vec![port("y", DataType::Float, &[FREE, 2, 2])],
    );
    let model = Model::load(&bytes(&file), None).unwrap();
    let out = model.run(&[of_floats("x", &[9, 4], &rows(9, 4))]).unwrap();
    assert_eq!(out[0].shape, [9, 2, 2]);
    assert_eq!(floats(&out[0]).unwrap(), rows(9, 4));
}

fn random_tree(classes: usize) -> impl Strategy<Value = Tree> {
    let value = prop::num::f32::NORMAL.prop_map(|v| v % 8.0);
    let leaf = prop::collection::btree_map(0..classes, value.clone(), 0..=classes)
        .prop_map(|m| Tree::Leaf(m.into_iter().collect()));
    let modes = prop::sample::select(vec![
        "BRANCH_LEQ",
        "BRANCH_LT",
        "BRANCH_GTE",
        "BRANCH_GT",
        "BRANCH_EQ",
        "BRANCH_NEQ",
    ]);
    let threshold = prop_oneof![Just(0.0_f32), Just(1.0), value];
    leaf.prop_recursive(6, 64, 2, move |inner| {
        (modes.clone(), 0..3_usize, threshold.clone(), any::<bool>(), inner.clone(), inner).prop_map(
            |(mode, feature, value, missing_yes, yes, no)| Tree::Branch {
                mode,
                feature,
                value,
                missing_yes,
                yes: Box::new(yes),
                no: Box::new(no),
            },
        )
    })
}

fn feature() -> impl Strategy<Value = f32> {
    prop_oneof![
        Just(0.0_f32),
        Just(1.0),
        Just(f32::NAN),
        Just(f32::INFINITY),
        prop::num::f32::NORMAL.prop_map(|v| v % 8.0)
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn random_forests_add_up_as_the_specification_says(
        trees in prop::collection::vec(random_tree(3), 1..12),
        x in prop::collection::vec(feature(), 3 * 21),
    ) {
        let model = Model::load(&bytes(&Ensemble::of(&trees).regressor(3, 3, "SUM", &[])), None).unwrap();
        let mut want = Vec::new();
        for row in x.chunks(3) {
            let mut sums = [0.0_f32; 3];
            for (k, v) in trees.iter().flat_map(|t| t.leaf(row)) {
                sums[*k] += v;
            }
            want.extend(sums);
        }
        let batch = model.run_f32(&x, 21).unwrap();
        prop_assert_eq!(&batch, &want);
        // A row's answer does not depend on the rows it comes with.
        let single: Vec<f32> = x.chunks(3).flat_map(|row| model.run_f32(row, 1).unwrap()).collect();
        prop_assert_eq!(&single, &want);
    }
}
