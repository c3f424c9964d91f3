//! Foreign operators against their specification, and what the import refuses.

use super::support::{
    FREE, bytes, close, float, int, ints, ints_tensor, ml, model, node, port, single, small_tensor, tensor,
    tensor_attribute, text, texts, texts_tensor, tree_ensemble,
};
use dunlin_engine::{EngineError, Imported, Model, floats, import, of_floats};
use dunlin_protocol::{Bytes, DType, TensorData};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto};

pub(super) fn imported(file: &ModelProto) -> Model {
    let Imported { onnx, rewritten } = import(&bytes(file)).unwrap();
    assert!(!rewritten.is_empty());
    // What comes out needs no second pass.
    assert_eq!(import(&onnx).unwrap(), Imported { onnx: onnx.clone(), rewritten: vec![] });
    Model::load(&onnx, None).unwrap()
}

pub(super) fn refusal(file: &ModelProto) -> String {
    import(&bytes(file)).map(|i| i.rewritten).unwrap_err().to_string()
}

pub(super) fn words(name: &str, shape: &[u64], all: &[&str]) -> TensorData {
    let data =
        all.iter().flat_map(|t| [&(t.len() as u32).to_le_bytes()[..], t.as_bytes()].concat()).collect();
    TensorData { name: name.into(), datatype: DType::Bytes, shape: shape.to_vec(), data: Bytes(data) }
}

pub(super) fn integers(name: &str, shape: &[u64], all: &[i64]) -> TensorData {
    let data = all.iter().flat_map(|n| n.to_le_bytes()).collect();
    TensorData { name: name.into(), datatype: DType::Int64, shape: shape.to_vec(), data: Bytes(data) }
}

/// What one operator makes of `x`; the first output.
pub(super) fn answer(
    op: &str,
    attributes: Vec<AttributeProto>,
    x: &TensorData,
    made: DataType,
) -> TensorData {
    answer_of(3, op, attributes, x, made)
}

/// The same of a version of `ai.onnx.ml`.
pub(super) fn answer_of(
    version: i64,
    op: &str,
    attributes: Vec<AttributeProto>,
    x: &TensorData,
    made: DataType,
) -> TensorData {
    imported(&file_of(version, op, attributes, x, made)).run(std::slice::from_ref(x)).unwrap().remove(0)
}

/// One operator of a version of `ai.onnx.ml`, for tables like `x`.
pub(super) fn file_of(
    version: i64,
    op: &str,
    attributes: Vec<AttributeProto>,
    x: &TensorData,
    made: DataType,
) -> ModelProto {
    let kinds =
        [(DType::Bytes, DataType::String), (DType::Int64, DataType::Int64), (DType::Fp64, DataType::Double)];
    let kind =
        kinds.iter().find(|(ours, _)| *ours == x.datatype).map_or(DataType::Float, |(_, theirs)| *theirs);
    let dims: Vec<i64> =
        x.shape.iter().enumerate().map(|(i, &d)| if i == 0 { FREE } else { d as i64 }).collect();
    let mut file = single(op, attributes, port("x", kind, &dims), port("y", made, &[FREE]));
    file.opset_import[1].version = version;
    file
}

#[test]
fn a_label_encoder_looks_up_text_numbers_and_what_is_no_number() {
    let to_ints = vec![
        texts("keys_strings", &["a", "b", "a"]),
        ints("values_int64s", vec![1 << 40, 7, 3]),
        int("default_int64", 99),
    ];
    // The first of equal keys counts.
    let got = answer("LabelEncoder", to_ints, &words("x", &[4], &["b", "a", "?", ""]), DataType::Int64);
    assert_eq!(got, integers("y", &[4], &[7, 1 << 40, 99, 99]));
    let to_words = vec![ints("keys_int64s", vec![5, 6]), texts("values_strings", &["five", "six"])];
    let got = answer("LabelEncoder", to_words, &integers("x", &[3], &[6, 5, 0]), DataType::String);
    assert_eq!(got, words("y", &[3], &["six", "five", "_Unused"]));
    let keys = super::support::floats("keys_floats", vec![1.5, f32::NAN]);
    let of_floats_ =
        vec![keys, super::support::floats("values_floats", vec![10.0, 20.0]), float("default_float", -1.0)];
    let x = of_floats("x", &[3], &[f32::NAN, 1.5, 2.0]);
    let got = answer_of(4, "LabelEncoder", of_floats_, &x, DataType::Float);
    close(&floats(&got).unwrap(), &[20.0, 10.0, -1.0]);
    let of_tensors = vec![
        tensor_attribute("keys_tensor", texts_tensor("", &["p", "q"])),
        tensor_attribute("values_tensor", small_tensor("", DataType::Int16, &[2], &[-3, 300])),
        tensor_attribute("default_tensor", small_tensor("", DataType::Int16, &[1], &[42])),
    ];
    let got = answer("LabelEncoder", of_tensors, &words("x", &[3], &["q", "r", "p"]), DataType::Int16);
    assert_eq!(got.data.0, [300_i16, 42, -3].map(i16::to_le_bytes).concat());
}

#[test]
fn the_first_label_encoder_works_in_both_directions() {
    let classes = || vec![texts("classes_strings", &["no", "yes"])];
    let got = answer("LabelEncoder", classes(), &words("x", &[3], &["yes", "no", "?"]), DataType::Int64);
    assert_eq!(got, integers("y", &[3], &[1, 0, -1]));
    let got = answer("LabelEncoder", classes(), &integers("x", &[2], &[1, 7]), DataType::String);
    assert_eq!(got, words("y", &[2], &["yes", "_Unused"]));
}

#[test]
fn one_column_for_each_category_and_an_unknown_one_is_the_callers_fault() {
    let x = words("x", &[2, 1], &["blue", "red"]);
    let categories = || texts("cats_strings", &["red", "blue"]);
    let got = answer("OneHotEncoder", vec![categories(), int("zeros", 0)], &x, DataType::Float);
    assert_eq!(
        (got.shape.as_slice(), floats(&got).unwrap().as_slice()),
        (&[2, 1, 2][..], &[0.0, 1.0, 1.0, 0.0][..])
    );
    let numbers = vec![ints("cats_int64s", vec![3, -1])];
    let got = answer("OneHotEncoder", numbers, &of_floats("x", &[3], &[-1.0, 3.0, 4.0]), DataType::Float);
    close(&floats(&got).unwrap(), &[0.0, 1.0, 1.0, 0.0, 0.0, 0.0]);
    let file = |zeros| {
        let attributes = vec![categories(), int("zeros", zeros)];
        single(
            "OneHotEncoder",
            attributes,
            port("x", DataType::String, &[FREE]),
            port("y", DataType::Float, &[FREE, 2]),
        )
    };
    let unknown = words("x", &[2], &["red", "green"]);
    let lenient = imported(&file(1)).run(std::slice::from_ref(&unknown)).unwrap();
    close(&floats(&lenient[0]).unwrap(), &[1.0, 0.0, 0.0, 0.0]);
    let error = imported(&file(0)).run(&[unknown]).unwrap_err();
    assert!(error.is_input() && error.to_string().contains("none of its 2 categories"), "{error}");
}

#[test]
fn text_ports_take_and_make_text_alone() {
    let attributes = vec![texts("keys_strings", &["a"]), texts("values_strings", &["b"])];
    let file = single(
        "LabelEncoder",
        attributes,
        port("x", DataType::String, &[FREE]),
        port("y", DataType::String, &[FREE]),
    );
    let model = imported(&file);
    assert_eq!((model.inputs()[0].datatype, model.outputs()[0].datatype), (DType::Bytes, DType::Bytes));
    // A code is no text, even where it would be a valid one.
    assert!(model.run(&[integers("x", &[1], &[1])]).unwrap_err().is_input());
    assert!(model.run(&[words("x", &[2], &["a"])]).unwrap_err().is_input());
    let inspection = dunlin_engine::inspect(&import(&bytes(&file)).unwrap().onnx).unwrap();
    assert_eq!(inspection.words, ["a", "b", "_Unused"]);
    assert_eq!(inspection.inputs[0].datatype, DType::Bytes);
}

#[test]
fn text_may_be_moved_about_and_compared_with_words() {
    let file = model(
        vec![
            node("Concat", &["a", "b"], &["ab"], vec![int("axis", 1)]),
            node("Reshape", &["ab", "flat"], &["r"], vec![]),
            node("Equal", &["r", "word"], &["y"], vec![]),
        ],
        vec![ints_tensor("flat", &[-1, 2]), texts_tensor("word", &["on"])],
        vec![port("a", DataType::String, &[FREE, 1]), port("b", DataType::String, &[FREE, 1])],
        vec![port("y", DataType::Bool, &[FREE, 2])],
    );
    let asked = [words("a", &[2, 1], &["on", "off"]), words("b", &[2, 1], &["?", "on"])];
    assert_eq!(imported(&file).run(&asked).unwrap()[0].data.0, [1, 0, 0, 1]);
}

#[test]
fn imputer_binarizer_vectorizer_and_normalizer_follow_the_specification() {
    let x = of_floats("x", &[2, 2], &[f32::NAN, 3.0, -4.0, 0.0]);
    let table = |op: &str, attributes| floats(&answer(op, attributes, &x, DataType::Float)).unwrap();
    let imputed = |replaced| {
        vec![
            super::support::floats("imputed_value_floats", vec![1.0, 2.0]),
            float("replaced_value_float", replaced),
        ]
    };
    close(&table("Imputer", imputed(f32::NAN)), &[1.0, 3.0, -4.0, 0.0]);
    assert_eq!(table("Imputer", imputed(0.0))[2..], [-4.0, 2.0]);
    assert_eq!(table("Binarizer", vec![float("threshold", 0.0)]), [0.0, 1.0, 0.0, 0.0]);
    let whole = vec![ints("imputed_value_int64s", vec![8]), int("replaced_value_int64", -1)];
    let got = answer("Imputer", whole, &integers("x", &[2, 1], &[-1, 5]), DataType::Int64);
    assert_eq!(got, integers("y", &[2, 1], &[8, 5]));
    let x = of_floats("x", &[3, 2], &[1.0, -4.0, -1.0, -2.0, 0.0, -3.0]);
    let got = answer("Normalizer", vec![text("norm", "MAX")], &x, DataType::Float);
    // Divided by the largest value, not the largest magnitude; a row whose largest value is zero stays.
    close(&floats(&got).unwrap(), &[1.0, -4.0, 1.0, 2.0, 0.0, -3.0]);
    let vectorizer = |width: i64| {
        model(
            vec![ml("FeatureVectorizer", &["x", "k"], &["y"], vec![ints("inputdimensions", vec![2, width])])],
            vec![],
            vec![port("x", DataType::Float, &[FREE, 2]), port("k", DataType::Int64, &[FREE, 1])],
            vec![port("y", DataType::Float, &[FREE, 3])],
        )
    };
    let asked = [of_floats("x", &[1, 2], &[0.5, 1.5]), integers("k", &[1, 1], &[7])];
    close(&floats(&imported(&vectorizer(1)).run(&asked).unwrap()[0]).unwrap(), &[0.5, 1.5, 7.0]);
    assert!(refusal(&vectorizer(2)).contains("FeatureVectorizer"));
}

#[test]
fn a_map_of_scores_comes_out_as_the_table_and_labels_as_text() {
    let mut file = model(
        vec![
            ml(
                "LinearClassifier",
                &["x"],
                &["label", "scores"],
                vec![
                    super::support::floats("coefficients", vec![1.0, 0.0, 0.0, 1.0, -1.0, -1.0]),
                    super::support::floats("intercepts", vec![0.0, 0.5, 0.0]),
                    texts("classlabels_strings", &["u", "v", "w"]),
                ],
            ),
            ml("ZipMap", &["scores"], &["map"], vec![texts("classlabels_strings", &["u", "v", "w"])]),
        ],
        vec![],
        vec![port("x", DataType::Float, &[FREE, 2])],
        vec![port("label", DataType::String, &[FREE]), port("map", DataType::Float, &[])],
    );
    // A sequence of maps is no tensor.
    file.graph.as_mut().unwrap().output[1].r#type.as_mut().unwrap().value = None;
    let out = imported(&file).run(&[of_floats("x", &[2, 2], &[2.0, 1.0, -3.0, 0.0])]).unwrap();
    assert_eq!(out[0], words("label", &[2], &["u", "w"]));
    assert_eq!(out[1].shape, [2, 3]);
    close(&floats(&out[1]).unwrap(), &[2.0, 1.5, -3.0, -3.0, 0.5, 3.0]);
}

#[test]
fn a_tree_ensemble_of_set_five_with_sets_and_shared_nodes() {
    let x = of_floats("x", &[4, 1], &[0.0, 2.0, 3.0, 4.0]);
    let got = answer("TreeEnsemble", tree_ensemble(), &x, DataType::Float);
    assert_eq!(got.shape, [4, 2]);
    close(&floats(&got).unwrap(), &[101.0, 0.0, 0.0, 20.0, 0.0, 20.0, 200.0, 0.0]);
}

/// `y = DequantizeLinear(QuantizeLinear(x))`.
fn round_trip(scale: f32, zero: i32, kind: DataType) -> Model {
    imported(&model(
        vec![
            node("QuantizeLinear", &["x", "s", "z"], &["q"], vec![]),
            node("DequantizeLinear", &["q", "s", "z"], &["y"], vec![]),
        ],
        vec![tensor("s", &[], &[scale]), small_tensor("z", kind, &[], &[zero])],
        vec![port("x", DataType::Float, &[FREE, 6])],
        vec![port("y", DataType::Float, &[FREE, 6]), port("q", kind, &[FREE, 6])],
    ))
}

#[test]
fn quantised_values_are_rounded_to_even_and_stay_in_range() {
    let x = of_floats("x", &[1, 6], &[0.25, 0.75, -0.25, 1e9, -1e9, 0.3]);
    let out = round_trip(0.5, 3, DataType::Int8).run(std::slice::from_ref(&x)).unwrap();
    assert_eq!(out[1].data.0, [3_i8, 5, 3, 127, -128, 4].map(|n| n as u8));
    close(&floats(&out[0]).unwrap(), &[0.0, 1.0, 0.0, 62.0, -65.5, 0.5]);
    let out = round_trip(0.5, 128, DataType::Uint8).run(&[x]).unwrap();
    assert_eq!(out[1].data.0, [128, 130, 128, 255, 0, 129]);
}

#[test]
fn softmax_before_the_last_rounding_keeps_its_scores() {
    // In the runtime's own quantised operators every answer of such a graph is the largest integer.
    let file = model(
        vec![
            node("DequantizeLinear", &["x", "s", "z"], &["f"], vec![]),
            node("Softmax", &["f"], &["p"], vec![int("axis", 1)]),
            node("QuantizeLinear", &["p", "t", "u"], &["y"], vec![]),
        ],
        vec![
            tensor("s", &[], &[0.1]),
            small_tensor("z", DataType::Int8, &[], &[0]),
            tensor("t", &[], &[1.0 / 256.0]),
            small_tensor("u", DataType::Int8, &[], &[-128]),
        ],
        vec![port("x", DataType::Int8, &[FREE, 3])],
        vec![port("y", DataType::Int8, &[FREE, 3])],
    );
    let x = TensorData {
        name: "x".into(),
        datatype: DType::Int8,
        shape: vec![1, 3],
        data: Bytes(vec![10, 0, 0]),
    };
    let out = imported(&file).run(&[x]).unwrap();
    let e = 1.0_f64.exp();
    let want = [e / (e + 2.0), 1.0 / (e + 2.0), 1.0 / (e + 2.0)].map(|p| ((p * 256.0).round() - 128.0) as i8);
    assert_eq!(out[0].data.0, want.map(|n| n as u8));
    assert_eq!(out[0].datatype, DType::Int8);
}

#[test]
fn an_integer_convolution_has_steps_by_channel() {
    let file = model(
        vec![node("QLinearConv", &["x", "s", "z", "w", "ws", "wz", "s", "z", "b"], &["y"], vec![])],
        vec![
            tensor("s", &[], &[1.0]),
            small_tensor("z", DataType::Int8, &[], &[0]),
            small_tensor("w", DataType::Int8, &[2, 1, 1, 1], &[2, 3]),
            tensor("ws", &[2], &[0.5, 2.0]),
            small_tensor("wz", DataType::Int8, &[2], &[0, 1]),
            small_tensor("b", DataType::Int32, &[2], &[4, -3]),
        ],
        vec![port("x", DataType::Int8, &[1, 1, 1, 2])],
        vec![port("y", DataType::Int8, &[1, 2, 1, 2])],
    );
    let x = TensorData {
        name: "x".into(),
        datatype: DType::Int8,
        shape: vec![1, 1, 1, 2],
        data: Bytes(vec![1, 5]),
    };
    // Channel 0: x * 1 + 2; channel 1: x * 4 - 6.
    assert_eq!(imported(&file).run(&[x]).unwrap()[0].data.0, [3_i8, 7, -2, 14].map(|n| n as u8));
}

#[test]
fn half_precision_weights_stay_small_and_are_computed_wide() {
    let file = model(
        vec![node("Gemm", &["x", "w", "b"], &["y"], vec![])],
        vec![
            // 1.5, -2 and 0.5 in half precision.
            small_tensor("w", DataType::Float16, &[2, 1], &[0x3e00, 0xc000]),
            small_tensor("b", DataType::Float16, &[1], &[0x3800]),
        ],
        vec![port("x", DataType::Float16, &[FREE, 2])],
        vec![port("y", DataType::Float16, &[FREE, 1])],
    );
    let model = imported(&file);
    assert_eq!(model.inputs()[0].datatype, DType::Fp32);
    close(&model.run_f32(&[2.0, 1.0], 1).unwrap(), &[1.5]);
}

#[test]
fn sums_of_tiny_probabilities_do_not_vanish() {
    for keep in [0, 1] {
        let file = model(
            vec![node("ReduceLogSumExp", &["x"], &["y"], vec![ints("axes", vec![1]), int("keepdims", keep)])],
            vec![],
            vec![port("x", DataType::Float, &[FREE, 2])],
            vec![port("y", DataType::Float, if keep == 1 { &[FREE, 1] } else { &[FREE] })],
        );
        let got = imported(&file).run_f32(&[-1000.0, -1000.0, 1000.0, 0.0], 2).unwrap();
        close(&got, &[-1000.0 + 2.0_f32.ln(), 1000.0]);
    }
}

#[test]
fn distances_of_all_pairs() {
    let cdist = |metric: &str| {
        let mut cdist = node("CDist", &["x", "b"], &["y"], vec![text("metric", metric)]);
        cdist.domain = "com.microsoft".into();
        let x = port("x", DataType::Float, &[FREE, 2]);
        let b = vec![tensor("b", &[2, 2], &[0.0, 0.0, 3.0, 4.0])];
        model(vec![cdist], b, vec![x], vec![port("y", DataType::Float, &[FREE, 2])])
    };
    close(&imported(&cdist("euclidean")).run_f32(&[0.0, 0.0], 1).unwrap(), &[0.0, 5.0]);
    close(&imported(&cdist("sqeuclidean")).run_f32(&[3.0, 0.0], 1).unwrap(), &[9.0, 16.0]);
    assert!(refusal(&cdist("cosine")).contains("cosine"));
}

#[test]
fn columns_are_taken_by_place_and_of_a_list_come_out_as_a_table() {
    let file = model(
        vec![
            ml("ArrayFeatureExtractor", &["x", "columns"], &["y"], vec![]),
            ml("ArrayFeatureExtractor", &["list", "places"], &["row"], vec![]),
            node("Reshape", &["row", "column"], &["z"], vec![]),
        ],
        vec![
            ints_tensor("columns", &[2, 0]),
            tensor("list", &[3], &[10.0, 20.0, 30.0]),
            ints_tensor("column", &[-1, 1]),
        ],
        vec![port("x", DataType::Float, &[FREE, 3]), port("places", DataType::Int64, &[FREE, 1])],
        vec![port("y", DataType::Float, &[FREE, 2]), port("z", DataType::Float, &[FREE, 1])],
    );
    let asked =
        [of_floats("x", &[2, 3], &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), integers("places", &[2, 1], &[2, 1])];
    let out = imported(&file).run(&asked).unwrap();
    close(&floats(&out[0]).unwrap(), &[3.0, 1.0, 6.0, 4.0]);
    assert_eq!((out[1].shape.as_slice(), floats(&out[1]).unwrap()), (&[2, 1][..], vec![30.0, 20.0]));
}

#[test]
fn a_file_that_runs_as_it_is_stays_as_it_is() {
    let file = bytes(&super::support::Mlp::new().file(FREE));
    assert_eq!(import(&file).unwrap(), Imported { onnx: file.clone(), rewritten: vec![] });
}

#[test]
fn a_refusal_says_where_and_what_to_do() {
    let file = model(
        vec![node("Cast", &["x"], &["y"], vec![int("to", DataType::Float as i64)])],
        vec![],
        vec![port("x", DataType::String, &[FREE])],
        vec![port("y", DataType::Float, &[FREE])],
    );
    let text = refusal(&file);
    assert!(
        text.contains("ai.onnx/Cast of text") && text.contains("Cast_y") && text.contains("LabelEncoder"),
        "{text}"
    );
    let echo = model(
        vec![node("Identity", &["x"], &["y"], vec![])],
        vec![],
        vec![port("x", DataType::String, &[FREE])],
        vec![port("y", DataType::String, &[FREE])],
    );
    assert!(matches!(import(&bytes(&echo)).unwrap_err(), EngineError::Unsupported { .. }));
    let unknown = single(
        "TfIdfVectorizer",
        vec![],
        port("x", DataType::Float, &[FREE]),
        port("y", DataType::Float, &[FREE]),
    );
    assert!(refusal(&unknown).contains("ai.onnx.ml/TfIdfVectorizer"));
}
