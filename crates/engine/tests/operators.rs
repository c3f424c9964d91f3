//! Operators at the edge of what they are defined for, against what ONNX Runtime answers, and forms that are refused.

use super::support::{FREE, bytes, close, float, int, ints, ints_tensor, model, node, port, tensor, text};
use dunlin_engine::{EngineError, Model, floats, import, inspect, of_floats};
use dunlin_protocol::{Bytes, DType, TensorData};
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto, NodeProto, TensorProto};

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
fn an_empty_optional_input_at_the_end_is_none() {
    let nodes = vec![node("Conv", &["x", "w", ""], &["y"], vec![])];
    let weights = vec![tensor("w", &[1, 1, 1, 2], &[2.0, 3.0])];
    let (x, y) = (port("x", DataType::Float, &[1, 1, 1, 2]), port("y", DataType::Float, &[]));
    let model = Model::load(&bytes(&model(nodes, weights, vec![x], vec![y])), None).unwrap();
    let got = model.run(&[of_floats("x", &[1, 1, 1, 2], &[1.0, 10.0])]).unwrap();
    assert_eq!(floats(&got[0]).unwrap(), [32.0]);
}

/// The answer of a graph from `x`, a row of floats, to `y`.
fn of_row(nodes: Vec<NodeProto>, x: &[f32], constants: Vec<TensorProto>) -> Vec<f32> {
    let ports = vec![port("x", DataType::Float, &[1, x.len() as i64])];
    let file = model(nodes, constants, ports, vec![port("y", DataType::Float, &[])]);
    let model = Model::load(&bytes(&file), None).unwrap();
    floats(&model.run(&[of_floats("x", &[1, x.len() as u64], x)]).unwrap()[0]).unwrap()
}

#[test]
fn what_is_repeated_is_summed_over_as_often() {
    let constants = || {
        vec![
            ints_tensor("wide", &[1, 3]),
            ints_tensor("high", &[3, 1]),
            ints_tensor("image", &[1, 1, 1, 2]),
            ints_tensor("three", &[1, 3, 1, 2]),
            tensor("w", &[3, 1], &[1.0, 10.0, 100.0]),
            tensor("v", &[1, 3], &[1.0, 10.0, 100.0]),
            tensor("k", &[1, 3, 1, 1], &[1.0, 10.0, 100.0]),
        ]
    };
    for repeat in ["Expand", "Tile"] {
        for product in ["MatMul", "Gemm"] {
            let right = node(product, &["e", "w"], &["y"], vec![]);
            let nodes = vec![node(repeat, &["x", "wide"], &["e"], vec![]), right.clone()];
            assert_eq!(of_row(nodes, &[2.0], constants()), [222.0], "{repeat} {product}");
            let turned = node("Transpose", &["f"], &["e"], vec![]);
            let nodes = vec![node(repeat, &["x", "high"], &["f"], vec![]), turned, right];
            assert_eq!(of_row(nodes, &[2.0], constants()), [222.0], "{repeat} {product}");
            let left = node(product, &["v", "e"], &["y"], vec![]);
            let nodes = vec![node(repeat, &["x", "high"], &["e"], vec![]), left];
            assert_eq!(of_row(nodes, &[2.0, 1.0], constants()), [222.0, 111.0], "{repeat} {product}");
        }
        let sum = node("Einsum", &["e", "w"], &["y"], vec![text("equation", "ni,ij->n")]);
        let nodes = vec![node(repeat, &["x", "wide"], &["e"], vec![]), sum];
        assert_eq!(of_row(nodes, &[2.0], constants()), [222.0], "{repeat}");
        // A grey image as one of three colours.
        let nodes = vec![
            node("Reshape", &["x", "image"], &["i"], vec![]),
            node(repeat, &["i", if repeat == "Tile" { "channels" } else { "three" }], &["e"], vec![]),
            node("Conv", &["e", "k"], &["y"], vec![]),
        ];
        let all = [constants(), vec![ints_tensor("channels", &[1, 3, 1, 1])]].concat();
        assert_eq!(of_row(nodes, &[2.0, 1.0], all), [222.0, 111.0], "{repeat}");
    }
    // What is chosen everywhere is as wide as the choice.
    let chosen = [
        node("Greater", &["v", "zero"], &["c"], vec![]),
        node("Where", &["c", "x", "v"], &["e"], vec![]),
        node("MatMul", &["e", "w"], &["y"], vec![]),
    ];
    let all = [constants(), vec![tensor("zero", &[1], &[0.0])]].concat();
    assert_eq!(of_row(chosen.to_vec(), &[2.0], all), [222.0]);
}

#[test]
fn sums_and_products_of_integers_keep_all_bits() {
    let large = 1_i64 << 40;
    let axes = || vec![ints("axes", vec![1]), int("keepdims", 0)];
    let table = [
        ("ReduceSum", vec![int("keepdims", 0)], vec![ints_tensor("a", &[1])], [large, 3], large + 3),
        ("ReduceMean", axes(), vec![], [large, large + 4], large + 2),
        ("ReduceL1", axes(), vec![], [large, -3], large + 3),
        ("ReduceProd", axes(), vec![], [large, -3], large * -3),
        ("ReduceMax", axes(), vec![], [large, 3], large),
    ];
    let kinds = (DataType::Int64, DataType::Int64);
    for (op, attributes, constants, x, belongs) in table {
        let file = file(op, attributes, kinds, &[1, 2], constants);
        let got = Model::load(&bytes(&file), None).unwrap().run(&[integers(&[1, 2], &x)]).unwrap();
        assert_eq!(got[0].data, integers(&[1], &[belongs]).data, "{op}");
    }
    // An integer times itself.
    let square = vec![node("Mul", &["x", "x"], &["y"], vec![])];
    let ports = (port("x", DataType::Int64, &[1, 2]), port("y", DataType::Int64, &[]));
    let file = model(square, vec![], vec![ports.0], vec![ports.1]);
    let got = Model::load(&bytes(&file), None).unwrap().run(&[integers(&[1, 2], &[-3, 1 << 20])]).unwrap();
    assert_eq!(got[0].data, integers(&[1, 2], &[9, large]).data);
}

#[test]
fn constants_are_looked_at_wherever_they_come_from() {
    let same = |from: &str| node("Identity", &[from], &["q"], vec![]);
    let column = || TensorProto { dims: vec![2, 1], ..ints_tensor("p", &[0, -1]) };
    let pair = || TensorProto { dims: vec![1, 2], ..ints_tensor("p", &[0, -1]) };
    let pad = || node("Pad", &["x", "q"], &["y"], vec![]);
    let table = [
        ("Pad with negative pads", vec![same("p"), pad()], ints_tensor("p", &[0, 0, 0, -1])),
        (
            "Pad with negative pads",
            vec![node("Cast", &["p"], &["q"], vec![int("to", DataType::Int64 as i64)]), pad()],
            ints_tensor("p", &[0, 0, 0, -1]),
        ),
        (
            "Pad with negative pads",
            vec![node("Neg", &["p"], &["q"], vec![]), pad()],
            ints_tensor("p", &[0, 0, 0, 1]),
        ),
        (
            "Pad with negative pads",
            vec![node("Constant", &[], &["q"], vec![ints("value_ints", vec![0, 0, 0, -1])]), pad()],
            ints_tensor("p", &[]),
        ),
        (
            "ScatterND with negative indices",
            vec![same("p"), node("ScatterND", &["x", "q", "u"], &["y"], vec![])],
            pair(),
        ),
        (
            "GatherND with negative indices",
            vec![same("p"), node("GatherND", &["x", "q"], &["y"], vec![])],
            pair(),
        ),
        (
            "ScatterElements at a place beyond its data",
            vec![node("ScatterElements", &["x", "p", "v"], &["y"], vec![int("axis", 1)])],
            column(),
        ),
        (
            "Div of integers by a constant zero",
            vec![
                same("p"),
                node("Cast", &["x"], &["i"], vec![int("to", DataType::Int64 as i64)]),
                node("Div", &["i", "q"], &["y"], vec![]),
            ],
            ints_tensor("p", &[0]),
        ),
    ];
    for (belongs, nodes, constant) in table {
        let constants = vec![constant, tensor("u", &[1], &[9.0]), tensor("v", &[2, 1], &[9.0, 8.0])];
        let ports = vec![port("x", DataType::Float, &[1, 3])];
        let file = model(nodes, constants, ports, vec![port("y", DataType::Float, &[])]);
        let refused = Model::load(&bytes(&file), None).unwrap_err().to_string();
        // Where a width has 32 bits, the runtime finds before that the shape does not fit.
        let too_wide = cfg!(target_pointer_width = "32") && refused.contains("Pad_y");
        assert!(refused.starts_with(&format!("ai.onnx/{belongs} at node")) || too_wide, "{refused}");
    }
}

#[test]
fn a_number_that_is_rounded_to_half_precision_stays_rounded() {
    let to = |kind: DataType| vec![int("to", kind as i64)];
    let nodes = vec![
        node("Cast", &["x"], &["h"], to(DataType::Float16)),
        node("Cast", &["h"], &["f"], to(DataType::Float)),
        node("Sub", &["x", "f"], &["y"], vec![]),
    ];
    let ports = (port("x", DataType::Float, &[FREE, 2]), port("y", DataType::Float, &[FREE, 2]));
    let file = bytes(&model(nodes, vec![], vec![ports.0], vec![ports.1]));
    let model = Model::load(&import(&file).unwrap().onnx, None).unwrap();
    let got = model.run(&[of_floats("x", &[2, 2], &[2049.0, 1.5, 0.0, 4099.0])]).unwrap();
    assert_eq!(floats(&got[0]).unwrap(), [1.0, 0.0, 0.0, -1.0]);
}
