//! Operators at the edge of what they are defined for, against what ONNX Runtime answers, and forms that are refused.

use super::support::{FREE, bytes, close, float, int, ints, ints_tensor, model, node, port, tensor, text};
use dunlin_engine::{EngineError, Model, floats, import, inspect, of_floats};
use dunlin_protocol::{Bytes, DType, TensorData};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto, TensorProto};

/// `op` of `x` and constants; `rows` rows of `columns`.
fn file(
    op: &str,
    attributes: Vec<AttributeProto>,
    (from, to): (DataType, DataType),
    dims: &[i64],
    constants: Vec<TensorProto>,
) -> ModelProto {
    let names: Vec<&str> = constants.iter().map(|c| c.name.as_str()).collect();
    let only = node(op, &[&["x"], names.as_slice()].concat(), &["y"], attributes);
    model(vec![only], constants, vec![port("x", from, dims)], vec![port("y", to, &[])])
}

/// The answer to one row of floats.
fn answer(op: &str, attributes: Vec<AttributeProto>, x: &[f32], constants: Vec<TensorProto>) -> Vec<f32> {
    let kinds = (DataType::Float, DataType::Float);
    let file = file(op, attributes, kinds, &[1, x.len() as i64], constants);
    let model = Model::load(&import(&bytes(&file)).unwrap().onnx, None).unwrap();
    let x = of_floats("x", &[1, x.len() as u64], x);
    floats(&model.run(&[x]).unwrap()[0]).unwrap()
}

fn refusal(op: &str, attributes: Vec<AttributeProto>, constants: Vec<TensorProto>) -> String {
    let kinds = (DataType::Float, DataType::Float);
    let file = file(op, attributes, kinds, &[1, 2, 4, 4], constants);
    assert_eq!(inspect(&bytes(&file)), import(&bytes(&file)).map(|_| unreachable!()), "both say the same");
    inspect(&bytes(&file)).unwrap_err().to_string()
}

fn integers(shape: &[u64], all: &[i64]) -> TensorData {
    let data = all.iter().flat_map(|n| n.to_le_bytes()).collect();
    TensorData { name: "x".into(), datatype: DType::Int64, shape: shape.to_vec(), data: Bytes(data) }
}

#[test]
fn functions_neither_overflow_nor_cancel() {
    let (large, none) = (3e38, vec![]);
    close(
        &answer("Softplus", none.clone(), &[-1e3, -20.0, 0.0, 90.0, large], vec![]),
        &[0.0, 2.0611537e-9, std::f32::consts::LN_2, 90.0, large],
    );
    close(&answer("Asinh", none.clone(), &[-large, 0.5], vec![]), &[-89.289_99, 0.481_211_8]);
    close(&answer("Acosh", none, &[large, 2.0], vec![]), &[89.289_99, 1.316_958]);
    let tanh = vec![text("approximate", "tanh")];
    let got = gelu(&[-1e5, -1e3, -1.0, 0.5, 1e3], tanh);
    close(&got, &[0.0, 0.0, -0.158_808, 0.345_714, 1e3]);
    // With another alpha than one.
    let celu = answer("Celu", vec![float("alpha", 2.0)], &[-3.0, -0.5, 1.0], vec![]);
    close(&celu, &[-1.553_739_7, -0.442_398_43, 1.0]);
}

/// `Gelu` is of a newer operator set than the other tests' files.
fn gelu(x: &[f32], attributes: Vec<AttributeProto>) -> Vec<f32> {
    let kinds = (DataType::Float, DataType::Float);
    let mut file = file("Gelu", attributes, kinds, &[1, x.len() as i64], vec![]);
    file.opset_import[0].version = 20;
    let model = Model::load(&bytes(&file), None).unwrap();
    floats(&model.run(&[of_floats("x", &[1, x.len() as u64], x)]).unwrap()[0]).unwrap()
}

#[test]
fn the_logarithm_of_a_softmax_stays_finite() {
    for axis in [1, -1] {
        let got = answer("LogSoftmax", vec![int("axis", axis)], &[1e4, 1e4 - 1.0, 0.0], vec![]);
        close(&got, &[-0.313_261_7, -1.313_261_7, -10_000.313]);
    }
}

#[test]
fn infinities_are_the_largest_and_the_smallest() {
    let (inf, axes) = (f32::INFINITY, || vec![ints("axes", vec![1]), int("keepdims", 1)]);
    assert_eq!(answer("ReduceMax", axes(), &[-inf, -inf], vec![]), [-inf]);
    assert_eq!(answer("ReduceMin", axes(), &[inf, inf], vec![]), [inf]);
    assert_eq!(answer("ReduceMax", axes(), &[1.0, -inf, 3.0], vec![]), [3.0]);
    assert!(answer("ReduceMax", axes(), &[1.0, f32::NAN], vec![])[0].is_nan());
    assert_eq!(answer("ReduceLogSumExp", axes(), &[inf, 1.0], vec![]), [inf]);
    // Over what is a constant of the file, too.
    let names = [tensor("c", &[1, 2], &[-inf, -inf])];
    let nodes = vec![node("ReduceMax", &["c"], &["m"], vec![]), node("Add", &["x", "m"], &["y"], vec![])];
    let x = port("x", DataType::Float, &[1, 1]);
    let file = model(nodes, names.to_vec(), vec![x], vec![port("y", DataType::Float, &[])]);
    let got = Model::load(&bytes(&file), None).unwrap().run(&[of_floats("x", &[1, 1], &[0.0])]).unwrap();
    assert_eq!(floats(&got[0]).unwrap(), [-inf]);
}

#[test]
fn a_cast_to_int64_keeps_all_bits() {
    let large = [(1_i64 << 40) + 3, -(1 << 33), 7];
    let to = || vec![int("to", DataType::Int64 as i64)];
    let same = file("Cast", to(), (DataType::Int64, DataType::Int64), &[1, 3], vec![]);
    let got = Model::load(&bytes(&same), None).unwrap().run(&[integers(&[1, 3], &large)]).unwrap();
    assert_eq!(got[0].data, integers(&[1, 3], &large).data);
    let of_float = file("Cast", to(), (DataType::Float, DataType::Int64), &[1, 2], vec![]);
    let x = of_floats("x", &[1, 2], &[3e9, -3e9]);
    let got = Model::load(&bytes(&of_float), None).unwrap().run(&[x]).unwrap();
    assert_eq!(got[0].data, integers(&[1, 2], &[3_000_000_000, -3_000_000_000]).data);
}

#[test]
fn a_place_beyond_the_depth_has_nothing_on() {
    let places = [0, 2, -1, -3, 3, -4, 100];
    let constants = || vec![ints_tensor("depth", &[3]), tensor("values", &[2], &[2.0, 5.0])];
    let kinds = (DataType::Int64, DataType::Float);
    let rows = [[5., 2., 2.], [2., 2., 5.], [2., 2., 5.], [5., 2., 2.], [2.; 3], [2.; 3], [2.; 3]];
    let last = file("OneHot", vec![], kinds, &[1, 7], constants());
    let got = Model::load(&bytes(&last), None).unwrap().run(&[integers(&[1, 7], &places)]).unwrap();
    assert_eq!(floats(&got[0]).unwrap(), rows.concat());
    let before = file("OneHot", vec![int("axis", 1)], kinds, &[1, 7], constants());
    let got = Model::load(&bytes(&before), None).unwrap().run(&[integers(&[1, 7], &places)]).unwrap();
    let columns: Vec<f32> = (0..3).flat_map(|at| rows.iter().map(move |row| row[at])).collect();
    assert_eq!(floats(&got[0]).unwrap(), columns);
}

#[test]
fn sigmoids_and_roundings_of_doubles_run_and_what_does_not_is_refused_when_it_is_loaded() {
    let kinds = (DataType::Double, DataType::Double);
    let doubles = |all: &[f64]| all.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>();
    for (op, belongs) in [("Sigmoid", [1.0 / (1.0 + (-2.5_f64).exp()), 0.5]), ("Round", [2.0, 0.0])] {
        let model = Model::load(&bytes(&file(op, vec![], kinds, &[1, 2], vec![])), None).unwrap();
        let data = Bytes(doubles(&[2.5, 0.0]));
        let x = TensorData { name: "x".into(), datatype: DType::Fp64, shape: vec![1, 2], data };
        assert_eq!(model.run(&[x]).unwrap()[0].data.0, doubles(&belongs), "{op}");
    }
    let refused = Model::load(
        &bytes(&file("IsNaN", vec![], (DataType::Double, DataType::Bool), &[1, 2], vec![])),
        None,
    );
    let refused = refused.unwrap_err();
    assert!(matches!(refused, EngineError::Unsupported { .. }), "{refused}");
    assert!(refused.to_string().starts_with("ai.onnx/IsNaN of FP64 at node \"IsNaN_y\""), "{refused}");
}

#[test]
fn a_recurrent_network_without_a_state_takes_several_sequences() {
    let weights = |name: &str, dims: &[i64]| {
        let count: i64 = dims.iter().product();
        tensor(name, dims, &(0..count).map(|i| (i % 5) as f32 / 5.0 - 0.4).collect::<Vec<_>>())
    };
    let constants = || vec![weights("w", &[1, 8, 2]), weights("r", &[1, 8, 2])];
    let lstm = |sequences: i64| {
        let op = node("LSTM", &["x", "w", "r"], &["y", "h", "c"], vec![int("hidden_size", 2)]);
        let outputs = ["y", "h", "c"].map(|name| port(name, DataType::Float, &[])).to_vec();
        bytes(&model(vec![op], constants(), vec![port("x", DataType::Float, &[3, sequences, 2])], outputs))
    };
    let x: Vec<f32> = (0..18).map(|i| i as f32 / 9.0 - 1.0).collect();
    let together = Model::load(&lstm(3), None).unwrap().run(&[of_floats("x", &[3, 3, 2], &x)]).unwrap();
    let together = floats(&together[0]).unwrap();
    let alone = Model::load(&lstm(1), None).unwrap();
    for sequence in 0..3 {
        // Steps, then sequences.
        let own: Vec<f32> = x.chunks(2).skip(sequence).step_by(3).flatten().copied().collect();
        let own = floats(&alone.run(&[of_floats("x", &[3, 1, 2], &own)]).unwrap()[0]).unwrap();
        let same: Vec<f32> = together.chunks(2).skip(sequence).step_by(3).flatten().copied().collect();
        close(&same, &own);
    }
}

#[test]
fn forms_that_would_be_answered_otherwise_are_refused() {
    let negative = || ints_tensor("i", &[0, -1]);
    let pool = |more: AttributeProto, how: &str| {
        vec![ints("kernel_shape", vec![2, 2]), text("auto_pad", how), ints("strides", vec![2, 2]), more]
    };
    let table: Vec<(&str, Vec<AttributeProto>, Vec<TensorProto>, &str)> = vec![
        (
            "SpaceToDepth",
            vec![int("blocksize", 2), text("mode", "CRD")],
            vec![],
            "with the attribute \"mode\"",
        ),
        (
            "Add",
            vec![int("broadcast", 1)],
            vec![tensor("c", &[1], &[1.0])],
            "with the attribute \"broadcast\"",
        ),
        ("BatchNormalization", vec![int("training_mode", 1)], vec![], "in training mode"),
        ("MaxPool", pool(int("ceil_mode", 1), "VALID"), vec![], "with auto_pad VALID and ceil_mode"),
        ("MaxPool", pool(ints("dilations", vec![2, 2]), "SAME_UPPER"), vec![], "with auto_pad and dilations"),
        ("ConvTranspose", vec![ints("output_shape", vec![7, 7])], vec![], "with output_shape"),
        ("Pad", vec![], vec![ints_tensor("p", &[0, 0, 0, 0, 0, 0, -1, 0])], "with negative pads"),
        ("GatherND", vec![], vec![negative()], "with negative indices"),
        ("ScatterND", vec![], vec![negative(), tensor("u", &[4], &[0.0; 4])], "with negative indices"),
        ("Div", vec![], vec![ints_tensor("z", &[2, 0])], "of integers by a constant zero"),
        ("Mod", vec![], vec![ints_tensor("z", &[0])], "of integers by a constant zero"),
        ("Einsum", vec![text("equation", "abcd -> ")], vec![], "over all axes"),
    ];
    for (op, attributes, constants, belongs) in table {
        let got = refusal(op, attributes, constants);
        let at = format!("at node \"{op}_y\"");
        assert!(got.starts_with(&format!("ai.onnx/{op} {belongs} {at}")), "{got}");
    }
    let training = TensorProto {
        name: "t".into(),
        data_type: DataType::Bool as i32,
        int32_data: vec![1],
        ..TensorProto::default()
    };
    let ratio = |ratio| vec![tensor("ratio", &[], &[ratio]), training.clone()];
    assert!(refusal("Dropout", vec![], ratio(0.5)).contains("in training mode"));
    assert_eq!(answer("Dropout", vec![], &[1.0, 2.0], ratio(0.0)), [1.0, 2.0]);
}

#[test]
fn a_computed_zero_to_divide_by_is_an_error_and_the_next_request_is_answered() {
    for op in ["Div", "Mod"] {
        let port = |name: &str| port(name, DataType::Int64, &[FREE]);
        let ports = vec![port("x"), port("z")];
        let file = model(vec![node(op, &["x", "z"], &["y"], vec![])], vec![], ports, vec![port("y")]);
        let model = Model::load(&bytes(&file), None).unwrap();
        let run = |by: i64| {
            let z = TensorData { name: "z".into(), ..integers(&[2], &[2, by]) };
            model.run(&[integers(&[2], &[7, 9]), z])
        };
        assert!(run(0).is_err(), "{op}");
        let belongs = if op == "Div" { [3, 3] } else { [1, 0] };
        assert_eq!(run(3).unwrap()[0].data, integers(&[2], &belongs).data, "{op}");
    }
}

#[test]
fn inputs_of_different_rows_are_refused() {
    let ports =
        |a: i64, b: i64| vec![port("a", DataType::Float, &[a, 2]), port("b", DataType::Float, &[b, 2])];
    let nodes = || vec![node("Concat", &["a", "b"], &["y"], vec![int("axis", 1)])];
    let output = || vec![port("y", DataType::Float, &[])];
    let load = |a, b| Model::load(&bytes(&model(nodes(), vec![], ports(a, b), output())), None);
    assert!(load(3, 3).is_ok() && load(FREE, 3).is_ok());
    let refused = load(3, 2).unwrap_err().to_string();
    assert!(refused.starts_with("inputs of 3 and of 2 rows"), "{refused}");
}

#[test]
fn an_output_that_is_no_row_for_each_names_its_operator() {
    let nodes = vec![node("Concat", &["x", "x"], &["y"], vec![int("axis", 0)])];
    let (x, y) = (port("x", DataType::Float, &[FREE, 2]), port("y", DataType::Float, &[]));
    let refused = Model::load(&bytes(&model(nodes, vec![], vec![x], vec![y])), None).unwrap_err().to_string();
    assert!(refused.starts_with("ai.onnx/Concat mixing the rows of output \"y\""), "{refused}");
    assert!(refused.contains("at node \"Concat_y\""), "{refused}");
}

#[test]
fn an_input_without_dimensions_stands_beside_free_rows() {
    let nodes = vec![node("Add", &["x", "k"], &["y"], vec![])];
    let ports = vec![port("x", DataType::Float, &[FREE, 2]), port("k", DataType::Float, &[])];
    let file = model(nodes, vec![], ports, vec![port("y", DataType::Float, &[FREE, 2])]);
    let model = Model::load(&bytes(&file), None).unwrap();
    let inputs = [of_floats("x", &[2, 2], &[1.0, 2.0, 3.0, 4.0]), of_floats("k", &[], &[0.5])];
    assert_eq!(floats(&model.run(&inputs).unwrap()[0]).unwrap(), [1.5, 2.5, 3.5, 4.5]);
}

#[test]
fn an_empty_optional_input_at_the_end_is_none() {
    let nodes = vec![node("Conv", &["x", "w", ""], &["y"], vec![])];
    let weights = vec![tensor("w", &[1, 1, 1, 2], &[2.0, 3.0])];
    let (x, y) = (port("x", DataType::Float, &[1, 1, 1, 2]), port("y", DataType::Float, &[]));
    let model = Model::load(&bytes(&model(nodes, weights, vec![x], vec![y])), None).unwrap();
    let got = model.run(&[of_floats("x", &[1, 1, 1, 2], &[1.0, 10.0])]).unwrap();
    assert_eq!(floats(&got[0]).unwrap(), [32.0]);
}

#[test]
fn a_row_is_answered_the_same_whatever_comes_with_it() {
    let axis = || vec![ints("axes", vec![0])];
    let graphs = [
        vec![node("ReduceMean", &["x"], &["m"], axis()), node("Sub", &["x", "m"], &["y"], vec![])],
        vec![node("ReduceMax", &["x"], &["m"], axis()), node("Sub", &["x", "m"], &["y"], vec![])],
        vec![node("Softmax", &["x"], &["y"], vec![int("axis", 0)])],
        vec![node("CumSum", &["x", "zero"], &["y"], vec![])],
        vec![node("Gather", &["x", "zero"], &["m"], vec![]), node("Sub", &["x", "m"], &["y"], vec![])],
        vec![
            node("Slice", &["x", "first", "second"], &["m"], vec![]),
            node("Sub", &["x", "m"], &["y"], vec![]),
        ],
        vec![
            node("Transpose", &["x"], &["t"], vec![]),
            node("MatMul", &["t", "x"], &["m"], vec![]),
            node("MatMul", &["x", "m"], &["y"], vec![]),
        ],
        vec![
            node("TopK", &["x", "second"], &["m", "i"], vec![int("axis", 0)]),
            node("Sub", &["x", "m"], &["y"], vec![]),
        ],
        vec![
            node("Pad", &["x", "before"], &["p"], vec![]),
            node("Slice", &["p", "first", "last"], &["y"], vec![]),
        ],
        vec![
            node("Concat", &["x", "x"], &["c"], vec![int("axis", 0)]),
            node("Slice", &["c", "second", "far"], &["d"], vec![]),
            node("ReduceMax", &["d"], &["m"], axis()),
            node("Sub", &["x", "m"], &["y"], vec![]),
        ],
    ];
    let zero = || TensorProto { dims: vec![], ..ints_tensor("zero", &[0]) };
    let numbers = || {
        let of = |name: &str, values: &[i64]| ints_tensor(name, values);
        vec![
            zero(),
            of("first", &[0]),
            of("second", &[1]),
            of("last", &[-1]),
            of("far", &[i64::from(i32::MAX)]),
            of("before", &[1, 0, 0, 0]),
        ]
    };
    for nodes in graphs {
        let name = nodes[0].name.clone();
        let port = |name: &str| port(name, DataType::Float, &[FREE, 2]);
        let file = model(nodes, numbers(), vec![port("x")], vec![port("y")]);
        let model = Model::load(&bytes(&file), None).unwrap_or_else(|error| panic!("{name}: {error}"));
        let run =
            |rows: u64, x: &[f32]| floats(&model.run(&[of_floats("x", &[rows, 2], x)]).unwrap()[0]).unwrap();
        let x: Vec<f32> = (0..18).map(|i| (i * 7 % 5) as f32).collect();
        let alone: Vec<f32> = x.chunks(2).flat_map(|row| run(1, row)).collect();
        assert_eq!(run(9, &x), alone, "{name}");
    }
}
