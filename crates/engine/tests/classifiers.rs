//! Labels and scores of tree ensembles and linear models, against numbers of ONNX Runtime 1.32.

use super::support::{
    Ensemble, FREE, Tree, bytes, close, floats as list, int, ints, ml, model, port, single, text,
    tree_ensemble,
};
use dunlin_engine::{Model, floats, import, of_floats};
use tract_onnx::pb::ModelProto;
use tract_onnx::pb::tensor_proto::DataType;

/// Leaves of a test `x <= 0`: where it holds, and where not.
type Stump<'a> = [&'a [(usize, f32)]; 2];

fn ensemble(stumps: &[Stump<'_>]) -> Ensemble {
    let tree = |[yes, no]: &Stump<'_>| Tree::Branch {
        mode: "BRANCH_LEQ",
        feature: 0,
        value: 0.0,
        missing_yes: false,
        yes: Box::new(Tree::Leaf(yes.to_vec())),
        no: Box::new(Tree::Leaf(no.to_vec())),
    };
    Ensemble::of(&stumps.iter().map(tree).collect::<Vec<_>>())
}

fn classifier(stumps: &[Stump<'_>], labels: &[i64], post: &str, base: &[f32]) -> ModelProto {
    let mut file = ensemble(stumps).classifier(1, labels.len() as i64, post, base);
    for attribute in &mut file.graph.as_mut().unwrap().node[0].attribute {
        if attribute.name == "classlabels_int64s" {
            attribute.ints = labels.to_vec();
        }
    }
    file
}

fn regressor(stumps: &[Stump<'_>], targets: i64, aggregate: &str, post: &str, base: &[f32]) -> ModelProto {
    let mut file = ensemble(stumps).regressor(1, targets, aggregate, base);
    file.graph.as_mut().unwrap().node[0].attribute.push(text("post_transform", post));
    file
}

/// Labels and scores of rows of `columns` features.
fn answer(file: &ModelProto, columns: usize, x: &[f32]) -> (Vec<i64>, Vec<f32>) {
    let x = of_floats("x", &[(x.len() / columns) as u64, columns as u64], x);
    let out = Model::load(&bytes(file), None).unwrap().run(&[x]).unwrap();
    let labels = out[0].data.0.chunks(8).map(|b| i64::from_le_bytes(b.try_into().unwrap())).collect();
    (labels, floats(&out[1]).unwrap())
}

#[track_caller]
fn answers(file: &ModelProto, want: (&[i64], &[f32])) {
    let (labels, scores) = answer(file, 1, &[-1.0, 1.0]);
    assert_eq!(labels, want.0);
    close(&scores, want.1);
}

#[track_caller]
fn refused(file: &ModelProto, why: &str) {
    let text = Model::load(&bytes(file), None).unwrap_err().to_string();
    assert!(text.contains("is not supported: ") && text.contains(why), "{text}");
}

#[test]
fn labels_are_chosen_before_the_transform() {
    let saturated: &[Stump<'_>] = &[[&[(0, 20.0), (1, 30.0), (2, -1.0)], &[(0, 40.0), (1, 30.0), (2, 50.0)]]];
    let scores = [1.0, 1.0, 0.268_941_4, 1.0, 1.0, 1.0];
    answers(&classifier(saturated, &[0, 1, 2], "LOGISTIC", &[]), (&[1, 2], &scores));
    let zeros: &[Stump<'_>] = &[[&[(0, 0.0), (1, -1.0), (2, 0.0)], &[(0, 1.0), (1, 0.0), (2, 0.0)]]];
    let scores = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0];
    answers(&classifier(zeros, &[0, 1, 2], "SOFTMAX_ZERO", &[]), (&[0, 0], &scores));
}

#[test]
fn a_class_no_leaf_spoke_about_is_not_chosen_unless_it_has_a_base_value() {
    let stumps: &[Stump<'_>] = &[[&[(0, -2.0)], &[(1, -1.0)]], [&[(1, -1.0)], &[(0, -3.0)]]];
    let scores = [-2.0, -1.0, 0.0, -3.0, -1.0, 0.0];
    answers(&classifier(stumps, &[0, 1, 2], "NONE", &[]), (&[1, 1], &scores));
    let by_tree: &[Stump<'_>] = &[[&[(0, -2.0)], &[(0, -3.0)]], [&[(1, -1.0)], &[(1, -4.0)]]];
    let scores = [0.119_202_97, 0.268_941_4, 0.5, 0.047_425_87, 0.017_986_24, 0.5];
    answers(&classifier(by_tree, &[0, 1, 2], "LOGISTIC", &[]), (&[1, 0], &scores));
    let scores = [-1.9, -0.8, 0.3, -2.9, -3.8, 0.3];
    answers(&classifier(by_tree, &[0, 1, 2], "NONE", &[0.1, 0.2, 0.3]), (&[2, 2], &scores));
    // Where nothing is said ONNX Runtime fails at run time.
    let silent: &[Stump<'_>] = &[[&[(0, -2.0)], &[]]];
    refused(&classifier(silent, &[0, 1, 2], "NONE", &[]), "reach no score");
    let scores = [-1.0, 2.0, 3.0, 1.0, 2.0, 3.0];
    answers(&classifier(silent, &[0, 1, 2], "NONE", &[1.0, 2.0, 3.0]), (&[2, 2], &scores));
}

#[test]
fn one_score_of_two_classes_is_a_probability_or_a_margin() {
    let of = |class, yes, no| [(class, yes), (class, no)];
    let load = |[yes, no]: [(usize, f32); 2], labels: &[i64], post: &str, base: &[f32]| {
        classifier(&[[&[yes], &[no]]], labels, post, base)
    };
    // A probability has to be above a half.
    answers(&load(of(0, 0.2, 0.6), &[0, 1], "NONE", &[]), (&[0, 1], &[0.8, 0.2, 0.4, 0.6]));
    answers(&load(of(1, 0.2, 0.6), &[7, 3], "NONE", &[]), (&[7, 3], &[0.0, 0.2, 0.0, 0.6]));
    let scores = [0.401_312_35, 0.598_687_65, 0.354_343_7, 0.645_656_3];
    answers(&load(of(0, 0.4, 0.6), &[7, 3], "LOGISTIC", &[]), (&[7, 3], &scores));
    answers(&load(of(0, 0.9, 0.2), &[7, 3], "NONE", &[0.1, 0.2]), (&[3, 7], &[1.0, 0.0, 0.3, 0.0]));
    // A margin above zero.
    answers(&load(of(0, -0.2, 0.4), &[7, 3], "NONE", &[0.25]), (&[3, 3], &[-0.05, 0.05, -0.65, 0.65]));
    let scores = [0.5, 0.450_166, 0.5, 0.598_687_65];
    answers(&load(of(1, -0.2, 0.4), &[7, 3], "LOGISTIC", &[]), (&[7, 3], &scores));
    refused(&classifier(&[[&[(1, 2.0)], &[]]], &[0, 1], "NONE", &[]), "reach no score");
}

#[test]
fn two_scores_of_two_classes_are_labelled_by_the_second() {
    let both: &[Stump<'_>] = &[[&[(0, 0.9), (1, 0.1)], &[(0, -0.2), (1, -0.8)]]];
    answers(&classifier(both, &[0, 1], "NONE", &[]), (&[1, 0], &[0.9, 0.1, -0.2, -0.8]));
    // ONNX Runtime answers 0 and 1 here too.
    refused(&classifier(both, &[10, 20], "NONE", &[]), "whatever the labels are");
    let partly: &[Stump<'_>] = &[[&[(0, 3.0)], &[(1, 5.0)]]];
    refused(&classifier(partly, &[0, 1], "NONE", &[]), "reach no score");
    let once: &[Stump<'_>] = &[[&[(0, 0.9)], &[(1, 0.8)]], [&[(0, 1.0), (1, 0.5)], &[(0, 0.25), (1, -2.0)]]];
    let scores = [0.869_891_6, 0.130_108_46, 0.875_446_7, 0.124_553_36];
    answers(&classifier(once, &[0, 1], "SOFTMAX", &[0.5]), (&[1, 0], &scores));
    refused(&classifier(&[[&[(0, 0.9)], &[(0, 0.8)]]], &[5], "NONE", &[]), "one class");
}

#[test]
fn a_target_no_leaf_spoke_about_is_zero_whatever_its_base_value() {
    let first: &[Stump<'_>] = &[[&[(0, 1.0)], &[(0, 2.0)]], [&[(0, 3.0)], &[(0, 5.0)]]];
    let run = |file: ModelProto| Model::load(&bytes(&file), None).unwrap().run_f32(&[-1.0, 1.0], 2).unwrap();
    close(&run(regressor(first, 2, "SUM", "NONE", &[0.5, 0.25])), &[4.5, 0.0, 7.5, 0.0]);
    let scores = [0.924_141_8, 0.075_858_18, 0.982_013_76, 0.017_986_21];
    close(&run(regressor(first, 2, "AVERAGE", "SOFTMAX", &[0.5, 0.25])), &scores);
    close(&run(regressor(first, 2, "MIN", "LOGISTIC", &[])), &[0.731_058_6, 0.5, 0.880_797, 0.5]);
    let partly: &[Stump<'_>] = &[[&[(0, 1.0)], &[(1, 2.0)]], [&[(0, 3.0)], &[(0, 5.0)]]];
    refused(&regressor(partly, 2, "SUM", "NONE", &[0.5, 0.25]), "base values");
    close(&run(regressor(partly, 2, "SUM", "NONE", &[0.5, 0.0])), &[4.5, 0.0, 5.5, 2.0]);
    // Nothing is shared out where all is zero; what is nearly zero keeps nearly nothing.
    let zeros: &[Stump<'_>] = &[[&[(0, 0.0), (1, 0.0)], &[(0, 1.1e-7), (1, 5e-8)]]];
    let got = run(regressor(zeros, 2, "SUM", "SOFTMAX_ZERO", &[]));
    assert!(got[0].is_nan() && got[1].is_nan(), "{got:?}");
    close(&got[2..], &[1.0, 5e-8]);
    assert!(got[3] > 0.0);
}

#[test]
fn what_onnx_runtime_answers_against_the_specification_is_refused() {
    let stump: &[Stump<'_>] = &[[&[(0, 1.0)], &[(0, 2.0)]]];
    for post in ["LOGISTIC", "SOFTMAX", "SOFTMAX_ZERO"] {
        refused(&regressor(stump, 1, "SUM", post, &[]), "post transform of one target");
    }
    refused(&regressor(&[[&[(0, 1.0), (0, 5.0)], &[(0, 2.0)]]], 1, "SUM", "NONE", &[]), "several values");
    let silent: &[Stump<'_>] = &[[&[(0, 1.0)], &[]]];
    refused(&regressor(silent, 1, "MAX", "NONE", &[]), "leaves without a value");
    let sum = regressor(silent, 1, "SUM", "NONE", &[0.5]);
    close(&Model::load(&bytes(&sum), None).unwrap().run_f32(&[-1.0, 1.0], 2).unwrap(), &[1.5, 0.5]);
    for post in [1, 2] {
        let mut attributes = tree_ensemble();
        attributes.push(int("post_transform", post));
        let port = |name: &str, columns| port(name, DataType::Float, &[FREE, columns]);
        let error =
            import(&bytes(&single("TreeEnsemble", attributes, port("x", 1), port("y", 2)))).unwrap_err();
        assert!(error.to_string().contains("exchanges"), "{error}");
    }
}

#[test]
fn a_long_chain_of_equality_tests_is_read_in_no_time() {
    let mut tree = Tree::Leaf(vec![(0, -1.0)]);
    for member in 0..1000_u16 {
        let value = f32::from(member);
        let (yes, no) = (Box::new(Tree::Leaf(vec![(0, value)])), Box::new(tree));
        tree = Tree::Branch { mode: "BRANCH_EQ", feature: 0, value, missing_yes: false, yes, no };
    }
    let file = Ensemble::of(&[tree]).regressor(1, 1, "SUM", &[]);
    let model = Model::load(&bytes(&file), None).unwrap();
    close(&model.run_f32(&[7.0, 999.0, 0.5], 3).unwrap(), &[7.0, 999.0, -1.0]);
}

/// Three features; each class has its own, or the first decides between two.
fn linear(labels: &[i64], rows: usize, post: &str) -> ModelProto {
    let one = |row: usize| (0..3).map(move |column| f32::from(u8::from(row == column)));
    let attributes = vec![
        list("coefficients", (0..rows).flat_map(one).collect()),
        list("intercepts", vec![0.0; rows]),
        ints("classlabels_ints", labels.to_vec()),
        text("post_transform", post),
    ];
    model(
        vec![ml("LinearClassifier", &["x"], &["label", "scores"], attributes)],
        vec![],
        vec![port("x", DataType::Float, &[FREE, 3])],
        vec![
            port("label", DataType::Int64, &[FREE]),
            port("scores", DataType::Float, &[FREE, labels.len() as i64]),
        ],
    )
}

#[test]
fn a_linear_classifier_labels_by_its_sums() {
    let x = [30.0, 40.0, -5.0, -200.0, -150.0, -120.0, 1e-9, 0.0, 0.0];
    let (labels, scores) = answer(&linear(&[0, 1, 2], 3, "LOGISTIC"), 3, &x);
    assert_eq!(labels, [1, 2, 0]);
    close(&scores, &[1.0, 1.0, 0.006_692_916, 0.0, 0.0, 0.0, 0.5, 0.5, 0.5]);
    let (labels, scores) = answer(&linear(&[4, 9], 2, "SOFTMAX"), 3, &x[..3]);
    assert_eq!(labels, [9]);
    close(&scores, &[4.539_787e-5, 0.999_954_6]);
}

#[test]
fn one_sum_of_two_classes_comes_with_its_complement() {
    let x = [2.0, 0.0, 0.0, -200.0, 0.0, 0.0, 1e-9, 0.0, 0.0, 0.0, 0.0, 0.0];
    for post in ["NONE", "SOFTMAX"] {
        let (labels, scores) = answer(&linear(&[4, 9], 1, post), 3, &x);
        assert_eq!(labels, [9, 4, 9, 4], "{post}");
        close(&scores, &[-1.0, 2.0, 201.0, -200.0, 1.0, 1e-9, 1.0, 0.0]);
    }
    let (labels, scores) = answer(&linear(&[4, 9], 1, "LOGISTIC"), 3, &x);
    assert_eq!(labels, [9, 4, 9, 4]);
    close(&scores, &[0.119_202_97, 0.880_797_1, 1.0, 0.0, 0.5, 0.5, 0.5, 0.5]);
    let (labels, scores) = answer(&linear(&[4, 9], 1, "LOGISTIC"), 3, &[f32::NAN, 0.0, 0.0]);
    assert_eq!(labels, [4]);
    assert!(scores.iter().all(|score| score.is_nan()), "{scores:?}");
}

#[test]
fn linear_models_say_what_they_refuse() {
    for post in ["PROBIT", "SOFTMAX_ZERO"] {
        refused(&linear(&[0, 1, 2], 3, post), "use NONE, SOFTMAX or LOGISTIC");
    }
    let mut silent = linear(&[0, 1, 2], 3, "NONE");
    silent.graph.as_mut().unwrap().node[0].attribute.retain(|a| a.name != "intercepts");
    refused(&silent, "without intercepts");
    let of = |targets: i64, post: &str| {
        let coefficients = list("coefficients", vec![1.0, -1.0]);
        let attributes = vec![coefficients, int("targets", targets), text("post_transform", post)];
        let port = |name: &str, columns| port(name, DataType::Float, &[FREE, columns]);
        single("LinearRegressor", attributes, port("x", 2 / targets), port("y", targets))
    };
    refused(&of(1, "LOGISTIC"), "passes over");
    refused(&of(2, "PROBIT"), "use NONE, SOFTMAX or LOGISTIC");
    let run = |file: ModelProto, x: &[f32]| Model::load(&bytes(&file), None).unwrap().run_f32(x, 1).unwrap();
    close(&run(of(1, "NONE"), &[3.0, 1.0]), &[2.0]);
    close(&run(of(2, "LOGISTIC"), &[1.0]), &[0.731_058_6, 0.268_941_43]);
}
