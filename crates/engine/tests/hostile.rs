//! Files made to do harm: each is a clean error, in this process or in the child that proves models.

use std::path::{Path, PathBuf};

use super::support::{
    Ensemble, FREE, Mlp, Tree, bytes, floats, int, ints, ints_tensor, ml, model, node, port, single,
    small_tensor, tensor, tensor_attribute, text, texts, texts_tensor, tree_ensemble,
};
use dunlin_engine::prove::{Examination, Job, Limits, ProveError, examine, run};
use dunlin_engine::{EngineError, Model, golden, import, of_floats};
use dunlin_protocol::{GoldenSet, ReasonCode, cbor};
use proptest::prelude::*;
use tract_onnx::pb::tensor_proto::{DataLocation, DataType};
use tract_onnx::pb::{AttributeProto, ModelProto, StringStringEntryProto};

fn stump() -> Ensemble {
    let leaf = |k, v| Box::new(Tree::Leaf(vec![(k, v)]));
    let tree = Tree::Branch {
        mode: "BRANCH_LEQ",
        feature: 0,
        value: 0.5,
        missing_yes: false,
        yes: leaf(0, 1.0),
        no: leaf(2, 1.0),
    };
    Ensemble::of(&[tree])
}

fn trees(change: impl FnOnce(&mut Ensemble)) -> ModelProto {
    let mut ensemble = stump();
    change(&mut ensemble);
    ensemble.classifier(1, 3, "NONE", &[])
}

fn graph(change: impl FnOnce(&mut tract_onnx::pb::GraphProto)) -> ModelProto {
    let mut file = Mlp::new().file(FREE);
    change(file.graph.as_mut().unwrap());
    file
}

/// A graph of one operator on constants, added to the input's first column so that it is not dead.
fn bomb(op: &str, constants: Vec<tract_onnx::pb::TensorProto>) -> ModelProto {
    let inputs: Vec<&str> = constants.iter().map(|c| c.name.as_str()).collect();
    model(
        vec![node(op, &inputs, &["big"], vec![]), node("Add", &["x", "big"], &["y"], vec![])],
        constants.clone(),
        vec![port("x", DataType::Float, &[1, 1])],
        vec![port("y", DataType::Float, &[1, 1])],
    )
}

fn scalar(name: &str, value: i64) -> tract_onnx::pb::TensorProto {
    tract_onnx::pb::TensorProto { dims: vec![], ..ints_tensor(name, &[value]) }
}

fn words(value: &str) -> Vec<StringStringEntryProto> {
    vec![StringStringEntryProto { key: "dunlin.words".into(), value: value.into() }]
}

/// A support vector machine of three classes with a vector each, bent.
fn svm(change: impl FnOnce(&mut Vec<AttributeProto>)) -> ModelProto {
    let mut attributes = vec![
        text("kernel_type", "RBF"),
        floats("kernel_params", vec![1.0, 0.0, 3.0]),
        floats("support_vectors", vec![0.0, 1.0, 2.0]),
        floats("coefficients", vec![1.0; 6]),
        floats("rho", vec![0.0; 3]),
        ints("vectors_per_class", vec![1, 1, 1]),
        ints("classlabels_ints", vec![0, 1, 2]),
    ];
    change(&mut attributes);
    model(
        vec![ml("SVMClassifier", &["x"], &["label", "scores"], attributes)],
        vec![],
        vec![port("x", DataType::Float, &[FREE, 1])],
        vec![port("label", DataType::Int64, &[FREE]), port("scores", DataType::Float, &[FREE, 3])],
    )
}

/// Replaces an attribute.
fn set(attributes: &mut Vec<AttributeProto>, new: AttributeProto) {
    attributes.retain(|a| a.name != new.name);
    attributes.push(new);
}

/// One foreign operator with its attributes bent.
fn foreign(op: &str, attributes: Vec<AttributeProto>, kind: DataType) -> ModelProto {
    single(op, attributes, port("x", kind, &[FREE, 1]), port("y", DataType::Float, &[FREE, 1]))
}

fn bent_ensemble(new: AttributeProto) -> ModelProto {
    let mut attributes = tree_ensemble();
    set(&mut attributes, new);
    foreign("TreeEnsemble", attributes, DataType::Float)
}

/// Files for the import: what it takes apart before the runtime sees it.
fn foreign_table() -> Vec<(&'static str, ModelProto)> {
    use DataType::{Float, Int8, String as Text, Uint8};
    let splits =
        |values: &[f32]| tensor_attribute("nodes_splits", tensor("", &[values.len() as i64], values));
    let quantise = |scale: tract_onnx::pb::TensorProto, zero: tract_onnx::pb::TensorProto| {
        model(
            vec![node("QuantizeLinear", &["x", "s", "z"], &["y"], vec![])],
            vec![scale, zero],
            vec![port("x", Float, &[FREE, 1])],
            vec![port("y", Int8, &[FREE, 1])],
        )
    };
    let zero = || small_tensor("z", Int8, &[], &[0]);
    vec![
        ("svm with too few coefficients", svm(|a| set(a, floats("coefficients", vec![1.0])))),
        ("svm with too few vectors", svm(|a| set(a, floats("support_vectors", vec![1.0])))),
        ("svm with no vectors", svm(|a| set(a, floats("support_vectors", vec![])))),
        ("svm with counts below zero", svm(|a| set(a, ints("vectors_per_class", vec![-1, 3, 1])))),
        ("svm with absurd counts", svm(|a| set(a, ints("vectors_per_class", vec![i64::MAX, i64::MAX, 3])))),
        ("svm with too few offsets", svm(|a| set(a, floats("rho", vec![0.0])))),
        ("svm with half a curve", svm(|a| set(a, floats("prob_a", vec![0.0; 3])))),
        ("svm of one class", svm(|a| set(a, ints("classlabels_ints", vec![1])))),
        ("svm with an unknown kernel", svm(|a| set(a, text("kernel_type", "WAVE")))),
        ("svm with one kernel parameter", svm(|a| set(a, floats("kernel_params", vec![1.0])))),
        ("ensemble leading out of its nodes", bent_ensemble(ints("nodes_falsenodeids", vec![9, 2]))),
        ("ensemble leading out of its leaves", bent_ensemble(ints("nodes_truenodeids", vec![0, 1 << 40]))),
        ("ensemble leading below zero", bent_ensemble(ints("nodes_truenodeids", vec![-1, 1]))),
        ("ensemble that goes round in a circle", bent_ensemble(ints("nodes_falsenodeids", vec![0, 2]))),
        ("ensemble whose root is not there", bent_ensemble(ints("tree_roots", vec![2]))),
        ("ensemble without a root", bent_ensemble(ints("tree_roots", vec![]))),
        ("ensemble with a target out of range", bent_ensemble(ints("leaf_targetids", vec![0, 2, 0]))),
        ("ensemble with too few targets", bent_ensemble(ints("leaf_targetids", vec![0]))),
        ("ensemble with too few splits", bent_ensemble(splits(&[0.5]))),
        ("ensemble with a split that is no number", bent_ensemble(splits(&[f32::NAN, 0.0]))),
        ("ensemble with billions of targets", bent_ensemble(int("n_targets", 1 << 40))),
        ("ensemble with an unknown mode", {
            bent_ensemble(tensor_attribute("nodes_modes", small_tensor("", Uint8, &[2], &[0, 77])))
        }),
        ("ensemble with too few sets", {
            bent_ensemble(tensor_attribute("nodes_modes", small_tensor("", Uint8, &[2], &[6, 6])))
        }),
        ("encoder without keys", foreign("LabelEncoder", vec![ints("values_int64s", vec![1])], Float)),
        ("encoder with too few values", {
            let lists = vec![texts("keys_strings", &["a", "b"]), ints("values_int64s", vec![1])];
            foreign("LabelEncoder", lists, Text)
        }),
        ("encoder of text given numbers", {
            let lists = vec![texts("keys_strings", &["a"]), ints("values_int64s", vec![1])];
            foreign("LabelEncoder", lists, Float)
        }),
        ("encoder whose default is of another type", {
            let other = tensor_attribute("default_tensor", tensor("", &[1], &[1.0]));
            foreign(
                "LabelEncoder",
                vec![texts("keys_strings", &["a"]), ints("values_int64s", vec![1]), other],
                Text,
            )
        }),
        ("one-hot encoder without categories", foreign("OneHotEncoder", vec![], Float)),
        ("imputer without values", foreign("Imputer", vec![], Float)),
        ("imputer of text", foreign("Imputer", vec![floats("imputed_value_floats", vec![1.0])], Text)),
        ("vectorizer without widths", foreign("FeatureVectorizer", vec![], Float)),
        ("text that is not UTF-8", {
            let mut keys = texts("keys_strings", &["a"]);
            keys.strings[0] = vec![0xff];
            foreign("LabelEncoder", vec![keys, ints("values_int64s", vec![1])], Text)
        }),
        ("steps of zero", quantise(tensor("s", &[], &[0.0]), zero())),
        ("steps that are no number", quantise(tensor("s", &[], &[f32::NAN]), zero())),
        ("no steps", quantise(tensor("s", &[0], &[]), zero())),
        ("steps of text", quantise(tensor("s", &[], &[1.0]), texts_tensor("z", &["a"]))),
        ("steps by column of what is computed", {
            quantise(tensor("s", &[2], &[1.0, 2.0]), small_tensor("z", Int8, &[2], &[0, 0]))
        }),
        ("too little text", {
            let mut short = texts_tensor("t", &["a"]);
            short.dims = vec![1 << 40];
            model(
                vec![node("Equal", &["x", "t"], &["y"], vec![])],
                vec![short],
                vec![port("x", Text, &[FREE])],
                vec![port("y", DataType::Bool, &[FREE])],
            )
        }),
    ]
}

#[test]
fn every_hostile_foreign_file_is_refused() {
    for (what, file) in foreign_table() {
        let loaded = import(&bytes(&file)).and_then(|imported| Model::load(&imported.onnx, None));
        let error = loaded.err().unwrap_or_else(|| panic!("{what} was loaded"));
        assert!(!matches!(error, EngineError::Panicked { .. }), "{what}: {error}");
        assert!(!error.is_input(), "{what}: {error}");
    }
}

fn table() -> Vec<(&'static str, ModelProto)> {
    vec![
        ("class id far out of range", trees(|e| e.leaf_ids[0] = 100_000_000)),
        ("class id just out of range", trees(|e| e.leaf_ids[0] = 3)),
        ("class id below zero", trees(|e| e.leaf_ids[0] = -1)),
        ("child that is its parent", trees(|e| e.yes[0] = 0)),
        ("children in a circle", {
            let leaf = || Box::new(Tree::Leaf(vec![(0, 1.0)]));
            let branch = |yes, no| Tree::Branch {
                mode: "BRANCH_LEQ",
                feature: 0,
                value: 0.5,
                missing_yes: false,
                yes,
                no,
            };
            let mut e = Ensemble::of(&[branch(Box::new(branch(leaf(), leaf())), leaf())]);
            e.yes[1] = 0;
            e.classifier(1, 3, "NONE", &[])
        }),
        ("child id out of range", trees(|e| e.no[0] = 1 << 40)),
        ("child below zero", trees(|e| e.no[0] = -7)),
        ("one child twice", trees(|e| e.no[0] = e.yes[0])),
        ("node id twice", trees(|e| e.nodes[2] = 1)),
        ("feature below zero", trees(|e| e.features[0] = -1)),
        ("feature outside the row", trees(|e| e.features[0] = 1_000_000)),
        ("threshold that is no number", trees(|e| e.values[0] = f32::NAN)),
        ("leaf value of a node there is not", trees(|e| e.leaf_nodes[0] = 99)),
        ("leaf value of a branch", trees(|e| e.leaf_nodes[0] = 0)),
        ("leaf value that is not finite", trees(|e| e.leaf_weights[0] = f32::INFINITY)),
        ("lists of unequal length", trees(|e| e.yes.truncate(1))),
        ("unknown branch mode", trees(|e| e.modes[0] = "BRANCH_MAYBE")),
        ("probit", stump().classifier(1, 3, "PROBIT", &[])),
        ("no classes", stump().classifier(1, 0, "NONE", &[])),
        ("billions of targets", stump().regressor(1, 1 << 40, "SUM", &[])),
        ("base values of another length", stump().regressor(1, 3, "SUM", &[1.0, 2.0])),
        ("output nobody makes", graph(|g| g.output[0].name = "nobody".into())),
        ("input nobody makes", graph(|g| g.node[1].input[0] = "nobody".into())),
        ("value made twice", graph(|g| g.node[1].output[0] = "h".into())),
        ("cycle", graph(|g| g.node[0].input[0] = "l".into())),
        ("unknown operator", graph(|g| g.node[1].op_type = "Zap".into())),
        ("unknown domain", graph(|g| g.node[1].domain = "com.example".into())),
        ("control flow", graph(|g| g.node[1].op_type = "Loop".into())),
        ("quantised graph", graph(|g| g.node[1].op_type = "QuantizeLinear".into())),
        ("loop without end", graph(|g| g.node[1].op_type = "Loop".into())),
        ("words that are no list", ModelProto { metadata_props: words("{\"words\":7}"), ..graph(|_| {}) }),
        (
            "words of a port there is not",
            ModelProto {
                metadata_props: words("{\"words\":[\"a\"],\"inputs\":[\"z\"],\"outputs\":[]}"),
                ..graph(|_| {})
            },
        ),
        (
            "a word twice",
            ModelProto {
                metadata_props: words("{\"words\":[\"a\",\"a\"],\"inputs\":[],\"outputs\":[]}"),
                ..graph(|_| {})
            },
        ),
        ("no outputs", graph(|g| g.output.clear())),
        ("free inner dimension", graph(|g| g.input[0] = port("x", DataType::Float, &[FREE, FREE]))),
        ("initialiser of absurd size", graph(|g| g.initializer[0].dims = vec![1 << 40, 1 << 40])),
        ("initialiser of negative size", graph(|g| g.initializer[0].dims = vec![-4, -5])),
        ("initialiser too short", graph(|g| g.initializer[0].float_data.truncate(3))),
        ("initialiser of strings", graph(|g| g.initializer[0].data_type = DataType::String as i32)),
        (
            "external data",
            graph(|g| {
                g.initializer[0].data_location = Some(DataLocation::External as i32);
                g.initializer[0].float_data.clear();
                g.initializer[0].external_data =
                    vec![StringStringEntryProto { key: "location".into(), value: "/etc/passwd".into() }];
            }),
        ),
        ("constant of 2^40 elements", bomb("ConstantOfShape", vec![ints_tensor("s", &[1 << 20, 1 << 20])])),
        ("range of 2^40", bomb("Range", vec![scalar("a", 0), scalar("b", 1 << 40), scalar("c", 1)])),
        ("range in steps of zero", bomb("Range", vec![scalar("a", 0), scalar("b", 10), scalar("c", 0)])),
        (
            "tile by 2^32",
            bomb("Tile", vec![tensor("t", &[1, 1], &[1.0]), ints_tensor("r", &[1 << 16, 1 << 16])]),
        ),
        (
            "expand to 2^40",
            bomb("Expand", vec![tensor("t", &[1], &[1.0]), ints_tensor("r", &[1 << 20, 1 << 20])]),
        ),
        ("pad by 2^40", bomb("Pad", vec![tensor("t", &[1], &[1.0]), ints_tensor("p", &[1 << 40, 0])])),
        ("pooling kernel of 2^30", {
            let pool = node(
                "MaxPool",
                &["x"],
                &["y"],
                vec![ints("kernel_shape", vec![1 << 30, 1]), ints("pads", vec![1 << 20; 4])],
            );
            model(
                vec![pool],
                vec![],
                vec![port("x", DataType::Float, &[1, 1, 4, 4])],
                vec![port("y", DataType::Float, &[1, 1, 1, 1])],
            )
        }),
        ("shapes that do not fit", graph(|g| g.initializer[0] = tensor("w1", &[3, 5], &[0.0; 15]))),
    ]
}

#[test]
fn every_hostile_file_is_refused() {
    for (what, file) in table() {
        let error = Model::load(&bytes(&file), None).err().unwrap_or_else(|| panic!("{what} was loaded"));
        assert!(!matches!(error, EngineError::Panicked { .. }), "{what}: {error}");
        assert!(!error.is_input(), "{what}: {error}");
    }
}

#[test]
fn a_refusal_names_operator_node_and_remedy() {
    let error = Model::load(&bytes(&graph(|g| g.node[1].op_type = "ZipMap".into())), None).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("ai.onnx/ZipMap") && text.contains("Relu_r") && text.contains("dunlin model push"),
        "{text}"
    );
    assert_eq!(error.reason(), ReasonCode::ModelUnsupported);
}

#[test]
fn every_truncated_file_is_refused() {
    let file = Mlp::new().file(FREE);
    let whole = bytes(&file);
    // The operator sets come last; without the second one the file is still a whole model.
    let graph = bytes(&ModelProto { opset_import: vec![], ..file }).len();
    for len in 0..=graph {
        assert!(Model::load(&whole[..len], None).is_err(), "{len} of {}", whole.len());
    }
    assert!(Model::load(&whole, None).is_ok());
}

fn write(folder: &Path, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.join(name);
    std::fs::write(&path, bytes).unwrap();
    path
}

fn limits() -> Limits {
    Limits { address_space_bytes: 1 << 30, cpu_s: 20, wall_ms: 60_000 }
}

/// The example program beside this test's own: `target/debug/examples/engine_child`.
fn child() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let target = own.parent().and_then(Path::parent).unwrap();
    target.join("examples").join("engine_child")
}

fn job(folder: &Path, model: &[u8], golden: &GoldenSet) -> Job {
    Job {
        model: write(folder, "model.onnx", model),
        golden: write(folder, "golden.cbor", &cbor::encode(golden)),
        limits: limits(),
        repeat: 20,
        anchor: None,
    }
}

fn golden_of(file: &[u8]) -> GoldenSet {
    let x: Vec<f32> = (0..20).map(|i| i as f32 / 10.0 - 1.0).collect();
    golden(&Model::load(file, None).unwrap(), vec![of_floats("x", &[5, 4], &x)], 50).unwrap()
}

#[test]
fn a_good_model_is_proved_with_its_anchor_score() {
    let folder = tempfile::tempdir().unwrap();
    let file = bytes(&Mlp::new().file(FREE));
    let set = golden_of(&file);
    let mut job = job(folder.path(), &file, &set);
    let scores = dunlin_engine::floats(&set.outputs[0]).unwrap();
    let mut labels: Vec<u32> = scores.chunks(3).map(|row| dunlin_engine::argmax(row).unwrap()).collect();
    labels[0] = (labels[0] + 1) % 3;
    let anchor = GoldenSet { outputs: vec![], labels, ..set };
    job.anchor = Some(write(folder.path(), "anchor.cbor", &cbor::encode(&anchor)));
    let proof = run(&child(), "engine-child", &job).unwrap();
    assert_eq!(proof.anchor_score_ppm, Some(800_000));
    assert!(proof.max_error_ppm <= 50 && proof.latency_us_p50 > 0, "{proof:?}");
    // A model of some kilobytes: what is counted is its own and not the program's.
    assert!(proof.peak_bytes > 0 && proof.peak_bytes < 4 << 20, "{proof:?}");
}

#[test]
fn wrong_golden_answers_and_hostile_files_fail_with_their_reason() {
    let folder = tempfile::tempdir().unwrap();
    let file = bytes(&Mlp::new().file(FREE));
    let mut set = golden_of(&file);
    let reason = |model: &[u8], set: &GoldenSet| {
        run(&child(), "engine-child", &job(folder.path(), model, set)).unwrap_err().reason()
    };
    assert_eq!(reason(&bytes(&trees(|e| e.leaf_ids[0] = 9)), &set), ReasonCode::ModelUnsupported);
    assert_eq!(reason(b"junk", &set), ReasonCode::ModelMalformed);
    set.outputs[0].data.0[..4].copy_from_slice(&0.9_f32.to_le_bytes());
    assert_eq!(reason(&file, &set), ReasonCode::GoldenMismatch);
}

#[test]
fn a_file_is_rewritten_and_inspected_in_the_child() {
    let folder = tempfile::tempdir().unwrap();
    let look = |file: &[u8]| {
        let rewritten = folder.path().join("rewritten.onnx");
        let model = write(folder.path(), "brought.onnx", file);
        let examination = Examination { model, rewritten: rewritten.clone(), load: true, limits: limits() };
        examine(&child(), "engine-child", &examination).map(|found| (found, std::fs::read(rewritten).ok()))
    };
    let (found, rewritten) = look(&bytes(&Mlp::new().file(FREE))).unwrap();
    assert_eq!((found.rewritten.len(), rewritten), (0, None));
    assert_eq!(found.inspection.inputs[0].name, "x");

    let foreign = bytes(&foreign("TreeEnsemble", tree_ensemble(), DataType::Float));
    let (found, rewritten) = look(&foreign).unwrap();
    let here = import(&foreign).unwrap();
    assert_eq!((found.rewritten, rewritten), (here.rewritten, Some(here.onnx)));

    let ProveError::Failed { reason, detail } = look(b"junk").unwrap_err() else { panic!("not refused") };
    assert_eq!((reason, detail), (ReasonCode::ModelMalformed, import(b"junk").unwrap_err().to_string()));
    // What a file calls its nodes does not fill the answer.
    let long = graph(|graph| {
        graph.node[0].op_type = "Nonsense".into();
        graph.node[0].name = "n".repeat(1 << 20);
    });
    let ProveError::Failed { reason, detail } = look(&bytes(&long)).unwrap_err() else {
        panic!("not refused")
    };
    assert_eq!((reason, detail.len()), (ReasonCode::ModelUnsupported, 4096));
}

#[test]
fn memory_taken_at_run_time_kills_the_child_alone() {
    // The size follows from the input, so no look at the file can tell.
    let folder = tempfile::tempdir().unwrap();
    let file = model(
        vec![
            node("Cast", &["x"], &["n"], vec![int("to", DataType::Int64 as i64)]),
            node("ConstantOfShape", &["n"], &["big"], vec![]),
            node("ReduceSum", &["big"], &["sum"], vec![int("keepdims", 0)]),
            node("Add", &["x", "sum"], &["y"], vec![]),
        ],
        vec![],
        vec![port("x", DataType::Float, &[2])],
        vec![port("y", DataType::Float, &[2])],
    );
    let x = of_floats("x", &[2], &[60_000.0, 60_000.0]);
    let set =
        GoldenSet { format: 1, inputs: vec![x.clone()], outputs: vec![x], tolerance_ppm: 1, labels: vec![] };
    let failure = run(&child(), "engine-child", &job(folder.path(), &bytes(&file), &set)).unwrap_err();
    assert!(matches!(failure, ProveError::Crashed { .. } | ProveError::Failed { .. }), "{failure}");
}

#[test]
fn a_child_that_never_answers_is_killed() {
    let folder = tempfile::tempdir().unwrap();
    let file = bytes(&Mlp::new().file(FREE));
    let mut job = job(folder.path(), &file, &golden_of(&file));
    job.limits.wall_ms = 50;
    let sleeper = write(folder.path(), "sleeper", b"#!/bin/sh\nexec sleep 60\n");
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(&sleeper, mode).unwrap();
    assert_eq!(run(&sleeper, "engine-child", &job).unwrap_err().reason(), ReasonCode::ProofTimeout);
    job.limits.wall_ms = 60_000;
    let died = run(Path::new("/bin/true"), "engine-child", &job).unwrap_err();
    assert!(matches!(died, ProveError::Crashed { .. }), "{died}");
    let missing = run(Path::new("/nowhere"), "engine-child", &job).unwrap_err();
    assert!(matches!(missing, ProveError::Start { .. }), "{missing}");
    assert_eq!((died.reason(), missing.reason()), (ReasonCode::ProofCrashed, ReasonCode::ProofCrashed));
}

#[test]
fn a_child_that_computes_for_too_long_runs_out_of_processor_time() {
    // A millisecond or so of work a run, and ten thousand timed runs.
    const SIDE: i64 = 256;
    const STEPS: usize = 100;
    let names: Vec<String> = (0..STEPS).map(|i| format!("h{i}")).collect();
    let mut nodes = Vec::new();
    let mut before = "x";
    for name in &names {
        nodes.push(node("MatMul", &[before, "w"], &[name.as_str()], vec![]));
        before = name;
    }
    let file = bytes(&model(
        nodes,
        vec![tensor("w", &[SIDE, SIDE], &vec![0.0; (SIDE * SIDE) as usize])],
        vec![port("x", DataType::Float, &[FREE, SIDE])],
        vec![port(before, DataType::Float, &[FREE, SIDE])],
    ));
    let x = of_floats("x", &[1, SIDE as u64], &[0.0; SIDE as usize]);
    let y = of_floats(before, &[1, SIDE as u64], &[0.0; SIDE as usize]);
    let set = GoldenSet { format: 1, inputs: vec![x], outputs: vec![y], tolerance_ppm: 50, labels: vec![] };
    let folder = tempfile::tempdir().unwrap();
    let mut job = job(folder.path(), &file, &set);
    job.repeat = 10_000;
    job.limits = Limits { cpu_s: 1, wall_ms: 300_000, ..limits() };
    let failure = run(&child(), "engine-child", &job).unwrap_err();
    assert!(matches!(failure, ProveError::Timeout { what: "processor time" }), "{failure}");
    assert_eq!(failure.reason(), ReasonCode::ProofTimeout);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn mutated_files_never_bring_the_process_down(
        which in 0..4_usize,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut file = match which {
            0 => bytes(&Mlp::new().file(FREE)),
            1 => bytes(&foreign("TreeEnsemble", tree_ensemble(), DataType::Float)),
            2 => bytes(&svm(|_| {})),
            _ => bytes(&stump().classifier(1, 3, "SOFTMAX", &[])),
        };
        for (at, value) in edits {
            let at = at.index(file.len());
            file[at] = value;
        }
        let imported = import(&file).map(|imported| imported.onnx).unwrap_or(file);
        if let Ok(model) = Model::load(&imported, None) {
            let n = model.row_len();
            prop_assume!(n < 1 << 16);
            // Whatever it answers, it answers.
            let _either = model.run_f32(&vec![0.25; n], 1);
        }
    }
}
