//! Rows: an answer belongs to its row alone, and there is one for each.

use super::support::{
    FREE, bytes, float, floats as floats_of, int, ints, ints_tensor, model, node, port, tensor,
};
use dunlin_engine::{EngineError, Model, floats, of_floats};
use dunlin_protocol::DType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{AttributeProto, ModelProto, NodeProto, TensorProto};

/// A graph from `x`, free rows of shape `row`, to `y`.
fn file(nodes: Vec<NodeProto>, row: &[i64], constants: Vec<TensorProto>) -> ModelProto {
    let x = port("x", DataType::Float, &[&[FREE], row].concat());
    model(nodes, constants, vec![x], vec![port("y", DataType::Float, &[])])
}

fn load(nodes: Vec<NodeProto>, row: &[i64], constants: Vec<TensorProto>) -> Result<Model, EngineError> {
    Model::load(&bytes(&file(nodes, row, constants)), None)
}

/// The answer to nine rows, eight of which are run together, and the answers to each by itself.
fn together_and_alone(model: &Model, row: &[u64]) -> (Vec<f32>, Vec<f32>) {
    let run = |rows: u64, x: &[f32]| {
        floats(&model.run(&[of_floats("x", &[&[rows], row].concat(), x)]).unwrap()[0]).unwrap()
    };
    let values = row.iter().product::<u64>() as usize;
    let x: Vec<f32> = (0..9 * values).map(|i| (i * 7 % 5) as f32 + i as f32 / 4.0).collect();
    (run(9, &x), x.chunks(values).flat_map(|row| run(1, row)).collect())
}

fn scalar(name: &str, value: i64) -> TensorProto {
    TensorProto { dims: vec![], ..ints_tensor(name, &[value]) }
}

fn to(kind: DataType) -> Vec<AttributeProto> {
    vec![int("to", kind as i64)]
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

/// `op` along rows that were made the last axis, and back.
fn along_rows(op: &str, attributes: Vec<AttributeProto>) -> Vec<NodeProto> {
    let inputs: &[&str] = if op.starts_with("Conv") { &["b", "w"] } else { &["b"] };
    vec![
        node("Transpose", &["x"], &["a"], vec![]),
        node("Unsqueeze", &["a", "first"], &["b"], vec![]),
        node(op, inputs, &["c"], attributes),
        node("Squeeze", &["c", "first"], &["d"], vec![]),
        node("Transpose", &["d"], &["y"], vec![]),
    ]
}

#[test]
fn windows_reshapes_and_places_do_not_reach_other_rows() {
    let window = |op| (op, along_rows(op, vec![ints("kernel_shape", vec![3]), ints("pads", vec![1, 1])]));
    let graphs = vec![
        window("MaxPool"),
        window("AveragePool"),
        window("Conv"),
        window("ConvTranspose"),
        (
            "LRN",
            vec![
                node("Unsqueeze", &["x", "first"], &["b"], vec![]),
                node("LRN", &["b"], &["c"], vec![int("size", 3), float("alpha", 0.5)]),
                node("Squeeze", &["c", "first"], &["y"], vec![]),
            ],
        ),
        (
            "Reshape",
            vec![
                node("Reshape", &["x", "halves"], &["a"], vec![]),
                node("Transpose", &["a"], &["b"], vec![]),
                node("Reshape", &["b", "back"], &["y"], vec![]),
            ],
        ),
        (
            "Reshape to rows of rows",
            vec![
                node("Reshape", &["x", "fours"], &["a"], vec![]),
                node("Softmax", &["a"], &["b"], vec![int("axis", 1)]),
                node("Reshape", &["b", "back"], &["y"], vec![]),
            ],
        ),
        (
            "ScatterElements",
            vec![node("ScatterElements", &["x", "place", "nine"], &["y"], vec![int("axis", 1)])],
        ),
    ];
    for (name, nodes) in graphs {
        let constants = vec![
            ints_tensor("first", &[0]),
            ints_tensor("halves", &[2, -1]),
            ints_tensor("fours", &[-1, 4]),
            ints_tensor("back", &[-1, 2]),
            TensorProto { dims: vec![1, 1], ..ints_tensor("place", &[1]) },
            tensor("nine", &[1, 1], &[9.0]),
            tensor("w", &[2, 2, 3], &(0..12).map(|i| i as f32 / 4.0).collect::<Vec<_>>()),
        ];
        match load(nodes, &[2], constants) {
            Ok(model) => {
                let (together, alone) = together_and_alone(&model, &[2]);
                assert_eq!(together, alone, "{name}");
            }
            // One row alone can not be laid out so.
            Err(refused) => assert!(name.starts_with("Reshape to"), "{name}: {refused}"),
        }
    }
}

#[test]
fn the_number_of_rows_is_no_value() {
    let count = |more: Vec<NodeProto>| {
        [
            vec![node("Shape", &["x"], &["s"], vec![int("end", 1)])],
            more,
            vec![node("Add", &["x", "f"], &["y"], vec![])],
        ]
        .concat()
    };
    let size = vec![
        node("Size", &["x"], &["s"], vec![]),
        node("Cast", &["s"], &["f"], to(DataType::Float)),
        node("Div", &["x", "f"], &["y"], vec![]),
    ];
    for nodes in [count(vec![node("Cast", &["s"], &["f"], to(DataType::Float))]), size] {
        let model = load(nodes, &[2], vec![]).unwrap();
        let (together, alone) = together_and_alone(&model, &[2]);
        assert_eq!(together, alone);
    }
}

#[test]
fn shapes_made_of_the_number_of_rows_leave_it_free() {
    let zeros = vec![
        node("Shape", &["x"], &["s"], vec![]),
        node("ConstantOfShape", &["s"], &["z"], vec![]),
        node("Add", &["x", "z"], &["y"], vec![]),
    ];
    let expanded = vec![
        node("Shape", &["x"], &["s"], vec![]),
        node("Gather", &["s", "zero"], &["n"], vec![]),
        node("Unsqueeze", &["n", "first"], &["u"], vec![]),
        node("Concat", &["u", "two"], &["e"], vec![int("axis", 0)]),
        node("Expand", &["w", "e"], &["z"], vec![]),
        node("Concat", &["x", "z"], &["c"], vec![int("axis", 1)]),
        node("Concat", &["u", "minus"], &["r"], vec![int("axis", 0)]),
        node("Reshape", &["c", "r"], &["y"], vec![]),
    ];
    // As PyTorch writes an expansion: -1 keeps a dimension.
    let kept = vec![
        node("Shape", &["x"], &["s"], vec![]),
        node("Cast", &["s"], &["i"], to(DataType::Int64)),
        node("Equal", &["i", "minus"], &["q"], vec![]),
        node("Where", &["q", "ones", "i"], &["e"], vec![]),
        node("Expand", &["w", "e"], &["z"], vec![]),
        node("Add", &["x", "z"], &["y"], vec![]),
    ];
    for nodes in [zeros, expanded, kept] {
        let constants = vec![
            scalar("zero", 0),
            ints_tensor("first", &[0]),
            ints_tensor("two", &[2]),
            ints_tensor("minus", &[-1]),
            ints_tensor("ones", &[1, 1]),
            tensor("w", &[1, 2], &[0.5, 1.5]),
        ];
        let model = load(nodes, &[2], constants).unwrap();
        assert_eq!(model.inputs()[0].shape, [-1, 2]);
        let (together, alone) = together_and_alone(&model, &[2]);
        assert_eq!(together, alone);
    }
}

#[test]
fn an_output_of_a_free_batch_is_one_row_for_each() {
    let mean = |more: Vec<AttributeProto>| vec![node("ReduceMean", &["x"], &["y"], more)];
    let axis = || ints("axes", vec![0]);
    let graphs = [
        ("ReduceMean", mean(vec![int("keepdims", 0)])),
        ("ReduceMean", mean(vec![axis(), int("keepdims", 0)])),
        ("ReduceMean", mean(vec![axis()])),
        (
            "Constant",
            vec![
                node("Constant", &[], &["y"], vec![floats_of("value_floats", vec![1.0, 2.0])]),
                node("Relu", &["x"], &["z"], vec![]),
            ],
        ),
        ("Shape", vec![node("Shape", &["x"], &["y"], vec![])]),
        ("Slice", vec![node("Slice", &["x", "one", "three"], &["y"], vec![])]),
        ("Add", vec![node("Add", &["x", "two rows"], &["y"], vec![])]),
    ];
    for (op, nodes) in graphs {
        let constants = vec![
            ints_tensor("one", &[1]),
            ints_tensor("three", &[3]),
            tensor("two rows", &[2, 2], &[0.0; 4]),
        ];
        let refused = load(nodes, &[2], constants).unwrap_err().to_string();
        assert!(refused.starts_with(&format!("ai.onnx/{op} ")), "{refused}");
        assert!(refused.contains("output \"y\""), "{refused}");
        assert!(refused.ends_with("fix the batch at export, as all other dimensions are"), "{refused}");
    }
}

#[test]
fn a_graph_of_one_row_that_makes_no_rows_takes_one() {
    let nodes = vec![node("ReduceMean", &["x"], &["y"], vec![int("keepdims", 0)])];
    let (x, y) = (port("x", DataType::Float, &[1, 2]), port("y", DataType::Float, &[]));
    let model = Model::load(&bytes(&model(nodes, vec![], vec![x], vec![y])), None).unwrap();
    let run = |rows: u64, x: &[f32]| model.run(&[of_floats("x", &[rows, 2], x)]);
    let one = run(1, &[1.0, 2.0]).unwrap();
    assert!(one[0].shape.is_empty());
    assert_eq!(floats(&one[0]).unwrap(), [1.5]);
    let refused = run(2, &[1.0, 2.0, 3.0, 4.0]).unwrap_err();
    assert!(matches!(refused, EngineError::Input { .. }), "{refused}");
}

#[test]
fn places_of_a_free_batch_are_refused() {
    let row = || TensorProto { dims: vec![1, 2], ..ints_tensor("i", &[1, 1]) };
    let tuple = || TensorProto { dims: vec![1, 1], ..ints_tensor("i", &[2]) };
    let graphs = [
        ("Gather", node("Gather", &["x", "i"], &["m"], vec![]), ints_tensor("i", &[1])),
        ("GatherElements", node("GatherElements", &["x", "i"], &["m"], vec![]), row()),
        ("ScatterElements", node("ScatterElements", &["x", "i", "u"], &["m"], vec![]), row()),
        ("ScatterND", node("ScatterND", &["x", "i", "u"], &["m"], vec![]), tuple()),
        ("GatherND", node("GatherND", &["x", "i"], &["m"], vec![]), tuple()),
    ];
    for (op, first, indices) in graphs {
        let nodes = vec![first, node("Add", &["x", "m"], &["y"], vec![])];
        let refused = load(nodes, &[2], vec![indices, tensor("u", &[1, 2], &[1.0, 2.0])]).unwrap_err();
        assert!(
            refused.to_string().starts_with(&format!("ai.onnx/{op} at a place beyond its data")),
            "{refused}"
        );
    }
    let nodes = vec![node("MaxPool", &["x"], &["v", "y"], vec![ints("kernel_shape", vec![2])])];
    let refused = load(nodes, &[1, 2], vec![]).unwrap_err().to_string();
    assert!(refused.starts_with("ai.onnx/MaxPool with the places of the largest values"), "{refused}");
}

#[test]
fn dimensions_are_computed_with_as_integers() {
    let large = 1 << 33;
    let of_shape = |start: i64, more: Vec<NodeProto>| {
        let before = vec![node("Shape", &["x"], &["all"], vec![int("start", start)])];
        // The width, whether or not rows are among the dimensions.
        let width = vec![node("Slice", &["all", "last", "end"], &["s"], vec![])];
        let after =
            vec![node("Cast", &["q"], &["f"], to(DataType::Float)), node("Add", &["x", "f"], &["y"], vec![])];
        [before, width, more, after].concat()
    };
    let negative = || vec![node("Neg", &["s"], &["n"], vec![]), node("Mod", &["n", "three"], &["q"], vec![])];
    let times = || vec![node("Mul", &["s", "large"], &["q"], vec![])];
    let joined = || {
        vec![
            node("Unsqueeze", &["number", "first"], &["l"], vec![]),
            node("Concat", &["s", "l"], &["c"], vec![int("axis", 0)]),
            node("ReduceMax", &["c"], &["q"], vec![int("keepdims", 1)]),
        ]
    };
    let with_data = || {
        vec![
            node("Cast", &["x"], &["i"], to(DataType::Int64)),
            node("Add", &["i", "large"], &["j"], vec![]),
            node("Mul", &["j", "s"], &["q"], vec![]),
        ]
    };
    let table = [
        (negative(), 1.0),
        (times(), 5.0 * large as f32),
        (joined(), large as f32),
        (with_data(), 5.0 * large as f32),
    ];
    for (more, belongs) in table {
        for (rows, start) in [(FREE, 0), (FREE, 1), (1, 0)] {
            let constants = vec![
                ints_tensor("last", &[-1]),
                ints_tensor("end", &[i64::from(i32::MAX)]),
                ints_tensor("three", &[3]),
                ints_tensor("first", &[0]),
                ints_tensor("large", &[large]),
                scalar("number", large),
            ];
            let mut file = file(of_shape(start, more.clone()), &[5], constants);
            file.graph.as_mut().unwrap().input[0] = port("x", DataType::Float, &[rows, 5]);
            let model = Model::load(&bytes(&file), None).unwrap();
            let got = model.run(&[of_floats("x", &[1, 5], &[0.0; 5])]).unwrap();
            assert_eq!(floats(&got[0]).unwrap(), [belongs; 5], "{} of {rows} rows", more[0].op_type);
        }
    }
}

#[test]
fn zeros_are_floats_where_the_file_does_not_say() {
    let nodes = vec![
        node("Shape", &["x"], &["s"], vec![]),
        node("ConstantOfShape", &["s"], &["z"], vec![]),
        node("Add", &["x", "z"], &["y"], vec![]),
    ];
    let model = load(nodes, &[2], vec![]).unwrap();
    assert_eq!(model.outputs()[0].datatype, DType::Fp32);
}
