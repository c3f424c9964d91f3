//! Encoders and preparation of features at their edges, against numbers of ONNX Runtime 1.32.

use super::import::{answer, answer_of, file_of, integers, refusal, words};
use super::support::{close, float, floats as list, ints, small_tensor, tensor_attribute, text, texts};
use dunlin_engine::{floats, of_floats};
use dunlin_protocol::{Bytes, DType, TensorData};
use tract_onnx::pb::TensorProto;
use tract_onnx::pb::tensor_proto::DataType;

fn doubles(name: &str, shape: &[u64], all: &[f64]) -> TensorData {
    let data = all.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorData { name: name.into(), datatype: DType::Fp64, shape: shape.to_vec(), data: Bytes(data) }
}

#[track_caller]
fn same(got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{got:?} against {want:?}");
    for (x, y) in got.iter().zip(want) {
        let near = (x - y).abs() <= 1e-6 * y.abs();
        assert!(near || x == y || (x.is_nan() && y.is_nan()), "{got:?} against {want:?}");
    }
}

#[test]
fn what_is_no_number_is_no_category() {
    let x = [0.0, 1.0, f32::NAN, 0.5, -0.7, f32::INFINITY];
    let want = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0];
    let categories = || vec![ints("cats_int64s", vec![0, 1])];
    let got = answer("OneHotEncoder", categories(), &of_floats("x", &[6, 1], &x), DataType::Float);
    close(&floats(&got).unwrap(), &want);
    let wide = doubles("x", &[4, 1], &[0.0, 1.0, f64::NAN, 0.5]);
    let got = answer("OneHotEncoder", categories(), &wide, DataType::Float);
    close(&floats(&got).unwrap(), &want[..8]);
}

#[test]
fn a_category_that_is_there_twice_is_refused() {
    let numbers = vec![ints("cats_int64s", vec![0, 1, 0])];
    let x = integers("x", &[1, 1], &[0]);
    assert!(refusal(&file_of(3, "OneHotEncoder", numbers, &x, DataType::Float)).contains("twice"));
    let x = words("x", &[1, 1], &["a"]);
    let named = vec![texts("cats_strings", &["a", "b", "a"])];
    assert!(refusal(&file_of(3, "OneHotEncoder", named, &x, DataType::Float)).contains("twice"));
}

#[test]
fn a_key_that_is_no_number_is_one_from_set_four_on() {
    let attributes = || vec![list("keys_floats", vec![1.0, f32::NAN]), ints("values_int64s", vec![1, 2])];
    let x = of_floats("x", &[3], &[1.0, f32::NAN, 2.0]);
    for (version, want) in [(2, [1, -1, -1]), (3, [1, -1, -1]), (4, [1, 2, -1])] {
        let got = answer_of(version, "LabelEncoder", attributes(), &x, DataType::Int64);
        assert_eq!(got, integers("y", &[3], &want), "{version}");
    }
}

#[test]
fn keys_in_double_precision_are_looked_up() {
    let double = |values: &[f64]| TensorProto {
        dims: vec![values.len() as i64],
        data_type: DataType::Double as i32,
        double_data: values.to_vec(),
        ..TensorProto::default()
    };
    let x = doubles("x", &[4], &[1.0, f64::NAN, 2.0, 0.1]);
    let attributes = vec![
        tensor_attribute("keys_tensor", double(&[1.0, f64::NAN, 0.1])),
        tensor_attribute("values_tensor", double(&[1.0, 2.0, 3.0])),
        tensor_attribute("default_tensor", double(&[-1.0])),
    ];
    let got = answer_of(4, "LabelEncoder", attributes, &x, DataType::Double);
    assert_eq!(got, doubles("y", &[4], &[1.0, 2.0, -1.0, 3.0]));
    let attributes = vec![
        tensor_attribute("keys_tensor", double(&[1.0, 0.1])),
        tensor_attribute("values_tensor", small_tensor("", DataType::Int16, &[2], &[1, 2])),
        tensor_attribute("default_tensor", small_tensor("", DataType::Int16, &[1], &[-1])),
    ];
    let got = answer_of(4, "LabelEncoder", attributes, &x, DataType::Int16);
    assert_eq!(got.data.0, [1_i16, -1, -1, 2].map(i16::to_le_bytes).concat());
}

#[test]
fn the_last_of_equal_words_counts_in_the_first_label_encoder() {
    let classes = || vec![texts("classes_strings", &["a", "b", "a"])];
    let x = words("x", &[3], &["a", "b", "c"]);
    let got = answer_of(1, "LabelEncoder", classes(), &x, DataType::Int64);
    assert_eq!(got, integers("y", &[3], &[2, 1, -1]));
    let x = integers("x", &[3], &[0, 1, 2]);
    let got = answer_of(1, "LabelEncoder", classes(), &x, DataType::String);
    assert_eq!(got, words("y", &[3], &["a", "b", "a"]));
}

#[test]
fn an_imputer_works_in_double_precision() {
    // ONNX Runtime has none of this type: by the specification.
    let x = doubles("x", &[2, 2], &[1.0, f64::NAN, f64::NAN, 0.0]);
    let filling = || list("imputed_value_floats", vec![5.0, 0.5]);
    let attributes = vec![filling(), float("replaced_value_float", f32::NAN)];
    let got = answer("Imputer", attributes, &x, DataType::Double);
    assert_eq!(got, doubles("y", &[2, 2], &[1.0, 0.5, 5.0, 0.0]));
    let x = doubles("x", &[1, 2], &[1.0, 0.0]);
    let got = answer("Imputer", vec![filling(), float("replaced_value_float", 0.0)], &x, DataType::Double);
    assert_eq!(got, doubles("y", &[1, 2], &[1.0, 0.5]));
}

#[test]
fn rows_of_any_size_are_normalised() {
    const NAN: f32 = f32::NAN;
    let rows = [
        [1e-13, 1e-13],
        [0.0, 0.0],
        [1e-7, 1e-7],
        [1e-25, -1e-25],
        [3e19, 4e19],
        [f32::INFINITY, 1.0],
        [-4.0, -2.0],
        [NAN, 1.0],
        [1.0, NAN],
        [f32::NEG_INFINITY, -1.0],
    ];
    let run = |norm: &str| {
        let x = of_floats("x", &[10, 2], rows.as_flattened());
        floats(&answer("Normalizer", vec![text("norm", norm)], &x, DataType::Float)).unwrap()
    };
    let half = 0.5_f32.sqrt();
    let l1 = [
        [0.5, 0.5],
        [0.0, 0.0],
        [0.5, 0.5],
        [0.5, -0.5],
        [0.428_571_43, 0.571_428_54],
        [NAN, 0.0],
        [-0.666_666_7, -0.333_333_34],
        [NAN, NAN],
        [NAN, NAN],
        [NAN, 0.0],
    ];
    same(&run("L1"), l1.as_flattened());
    let l2 = [
        [half, half],
        [0.0, 0.0],
        [half, half],
        [1e-25, -1e-25],
        [NAN, NAN],
        [NAN, 0.0],
        [-0.894_427_2, -0.447_213_6],
        [NAN, NAN],
        [NAN, NAN],
        [NAN, 0.0],
    ];
    same(&run("L2"), l2.as_flattened());
    let max = [
        [1.0, 1.0],
        [0.0, 0.0],
        [1.0, 1.0],
        [1.0, -1.0],
        [0.75, 1.0],
        [NAN, 0.0],
        [2.0, 1.0],
        [NAN, 1.0],
        [1.0, NAN],
        [f32::INFINITY, 1.0],
    ];
    same(&run("MAX"), max.as_flattened());
    let whole = integers("x", &[2, 2], &[0, 0, 3, -4]);
    let got = answer("Normalizer", vec![text("norm", "L2")], &whole, DataType::Float);
    same(&floats(&got).unwrap(), &[0.0, 0.0, 0.6, -0.8]);
}
