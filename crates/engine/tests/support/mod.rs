//! ONNX files made by hand, and plain evaluations of them to compare with.
#![allow(dead_code, unreachable_pub, reason = "each test program uses a part")]

use prost::Message;
use tract_onnx::pb::attribute_proto::AttributeType;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::tensor_shape_proto::{Dimension, dimension};
use tract_onnx::pb::{
    AttributeProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, type_proto,
};

/// A free dimension without a name, as skl2onnx writes it.
pub const FREE: i64 = -1;

pub fn port(name: &str, kind: DataType, dims: &[i64]) -> ValueInfoProto {
    let dim = dims
        .iter()
        .map(|&d| Dimension {
            denotation: String::new(),
            value: (d >= 0).then_some(dimension::Value::DimValue(d)),
        })
        .collect();
    let tensor = type_proto::Tensor { elem_type: kind as i32, shape: Some(TensorShapeProto { dim }) };
    let kind = TypeProto { denotation: String::new(), value: Some(type_proto::Value::TensorType(tensor)) };
    ValueInfoProto { name: name.into(), r#type: Some(kind), doc_string: String::new() }
}

pub fn tensor(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DataType::Float as i32,
        float_data: values.to_vec(),
        ..Default::default()
    }
}

pub fn ints_tensor(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![values.len() as i64],
        data_type: DataType::Int64 as i32,
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
    NodeProto {
        op_type: op.into(),
        name: format!("{op}_{}", outputs.join("_")),
        input: own(inputs),
        output: own(outputs),
        attribute,
        ..Default::default()
    }
}

pub fn ml(op: &str, inputs: &[&str], outputs: &[&str], attribute: Vec<AttributeProto>) -> NodeProto {
    NodeProto { domain: "ai.onnx.ml".into(), ..node(op, inputs, outputs, attribute) }
}

fn attribute(name: &str, kind: AttributeType) -> AttributeProto {
    AttributeProto { name: name.into(), r#type: kind as i32, ..Default::default() }
}

pub fn ints(name: &str, ints: Vec<i64>) -> AttributeProto {
    AttributeProto { ints, ..attribute(name, AttributeType::Ints) }
}

pub fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { i, ..attribute(name, AttributeType::Int) }
}

pub fn floats(name: &str, floats: Vec<f32>) -> AttributeProto {
    AttributeProto { floats, ..attribute(name, AttributeType::Floats) }
}

pub fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto { s: s.into(), ..attribute(name, AttributeType::String) }
}

pub fn texts(name: &str, all: &[&str]) -> AttributeProto {
    AttributeProto {
        strings: all.iter().map(|s| s.as_bytes().to_vec()).collect(),
        ..attribute(name, AttributeType::Strings)
    }
}

pub fn model(
    node: Vec<NodeProto>,
    initializer: Vec<TensorProto>,
    input: Vec<ValueInfoProto>,
    output: Vec<ValueInfoProto>,
) -> ModelProto {
    let set = |domain: &str, version| OperatorSetIdProto { domain: domain.into(), version };
    ModelProto {
        ir_version: 8,
        opset_import: vec![set("", 17), set("ai.onnx.ml", 3)],
        graph: Some(GraphProto { name: "g".into(), node, initializer, input, output, ..Default::default() }),
        ..Default::default()
    }
}

pub fn bytes(model: &ModelProto) -> Vec<u8> {
    model.encode_to_vec()
}

/// `x[n, 4] -> Gemm -> Relu -> Gemm -> Softmax`, with weights that follow from their index.
pub struct Mlp {
    pub w1: Vec<f32>,
    pub b1: Vec<f32>,
    pub w2: Vec<f32>,
    pub b2: Vec<f32>,
}

impl Mlp {
    pub const IN: usize = 4;
    pub const HIDDEN: usize = 5;
    pub const OUT: usize = 3;

    pub fn new() -> Self {
        let weights =
            |n: usize, salt: usize| (0..n).map(|i| ((i * 37 + salt * 11) % 23) as f32 / 11.5 - 1.0).collect();
        Self {
            w1: weights(Self::IN * Self::HIDDEN, 1),
            b1: weights(Self::HIDDEN, 2),
            w2: weights(Self::HIDDEN * Self::OUT, 3),
            b2: weights(Self::OUT, 4),
        }
    }

    pub fn file(&self, batch: i64) -> ModelProto {
        let (i, h, o) = (Self::IN as i64, Self::HIDDEN as i64, Self::OUT as i64);
        model(
            vec![
                node("Gemm", &["x", "w1", "b1"], &["h"], vec![]),
                node("Relu", &["h"], &["r"], vec![]),
                node("Gemm", &["r", "w2", "b2"], &["l"], vec![]),
                node("Softmax", &["l"], &["scores"], vec![int("axis", 1)]),
            ],
            vec![
                tensor("w1", &[i, h], &self.w1),
                tensor("b1", &[h], &self.b1),
                tensor("w2", &[h, o], &self.w2),
                tensor("b2", &[o], &self.b2),
            ],
            vec![port("x", DataType::Float, &[batch, i])],
            vec![port("scores", DataType::Float, &[batch, o])],
        )
    }

    pub fn answer(&self, x: &[f32]) -> Vec<f32> {
        let layer = |x: &[f32], w: &[f32], b: &[f32]| -> Vec<f64> {
            (0..b.len())
                .map(|j| {
                    f64::from(b[j])
                        + x.iter()
                            .enumerate()
                            .map(|(i, x)| f64::from(*x) * f64::from(w[i * b.len() + j]))
                            .sum::<f64>()
                })
                .collect()
        };
        let hidden: Vec<f32> = layer(x, &self.w1, &self.b1).into_iter().map(|v| v.max(0.0) as f32).collect();
        let logits = layer(&hidden, &self.w2, &self.b2);
        let most = logits.iter().copied().fold(f64::MIN, f64::max);
        let sum: f64 = logits.iter().map(|l| (l - most).exp()).sum();
        logits.iter().map(|l| ((l - most).exp() / sum) as f32).collect()
    }
}

/// A node of a reference tree.
#[derive(Debug, Clone)]
pub enum Tree {
    Leaf(Vec<(usize, f32)>),
    Branch {
        mode: &'static str,
        feature: usize,
        value: f32,
        missing_yes: bool,
        yes: Box<Tree>,
        no: Box<Tree>,
    },
}

impl Tree {
    /// The specification, word for word.
    pub fn leaf(&self, x: &[f32]) -> &[(usize, f32)] {
        match self {
            Self::Leaf(values) => values,
            Self::Branch { mode, feature, value, missing_yes, yes, no } => {
                let v = x[*feature];
                let holds = match *mode {
                    "BRANCH_LEQ" => v <= *value,
                    "BRANCH_LT" => v < *value,
                    "BRANCH_GTE" => v >= *value,
                    "BRANCH_GT" => v > *value,
                    "BRANCH_EQ" => v == *value,
                    "BRANCH_NEQ" => v != *value,
                    other => panic!("{other}"),
                };
                if holds || (*missing_yes && v.is_nan()) { yes.leaf(x) } else { no.leaf(x) }
            }
        }
    }
}

/// The attributes of an ensemble in the making.
#[derive(Debug, Clone, Default)]
pub struct Ensemble {
    pub trees: Vec<i64>,
    pub nodes: Vec<i64>,
    pub features: Vec<i64>,
    pub modes: Vec<&'static str>,
    pub values: Vec<f32>,
    pub yes: Vec<i64>,
    pub no: Vec<i64>,
    pub missing: Vec<i64>,
    pub leaf_trees: Vec<i64>,
    pub leaf_nodes: Vec<i64>,
    pub leaf_ids: Vec<i64>,
    pub leaf_weights: Vec<f32>,
}

impl Ensemble {
    pub fn of(trees: &[Tree]) -> Self {
        let mut all = Self::default();
        for (t, tree) in trees.iter().enumerate() {
            let mut next = 0;
            all.add(t as i64, tree, &mut next);
        }
        all
    }

    fn add(&mut self, t: i64, tree: &Tree, next: &mut i64) -> i64 {
        let id = *next;
        *next += 1;
        let at = self.nodes.len();
        self.trees.push(t);
        self.nodes.push(id);
        let (feature, mode, value, missing) = match tree {
            Tree::Leaf(_) => (0, "LEAF", 0.0, false),
            Tree::Branch { mode, feature, value, missing_yes, .. } => {
                (*feature as i64, *mode, *value, *missing_yes)
            }
        };
        self.features.push(feature);
        self.modes.push(mode);
        self.values.push(value);
        self.missing.push(i64::from(missing));
        self.yes.push(0);
        self.no.push(0);
        match tree {
            Tree::Leaf(values) => {
                for (k, v) in values {
                    self.leaf_trees.push(t);
                    self.leaf_nodes.push(id);
                    self.leaf_ids.push(*k as i64);
                    self.leaf_weights.push(*v);
                }
            }
            Tree::Branch { yes, no, .. } => {
                self.yes[at] = self.add(t, yes, next);
                self.no[at] = self.add(t, no, next);
            }
        }
        id
    }

    fn attributes(&self, prefix: &str) -> Vec<AttributeProto> {
        let name = |what: &str| format!("{prefix}_{what}");
        vec![
            ints("nodes_treeids", self.trees.clone()),
            ints("nodes_nodeids", self.nodes.clone()),
            ints("nodes_featureids", self.features.clone()),
            texts("nodes_modes", &self.modes),
            floats("nodes_values", self.values.clone()),
            ints("nodes_truenodeids", self.yes.clone()),
            ints("nodes_falsenodeids", self.no.clone()),
            ints("nodes_missing_value_tracks_true", self.missing.clone()),
            ints(&name("treeids"), self.leaf_trees.clone()),
            ints(&name("nodeids"), self.leaf_nodes.clone()),
            ints(&name("ids"), self.leaf_ids.clone()),
            floats(&name("weights"), self.leaf_weights.clone()),
        ]
    }

    pub fn classifier(&self, features: i64, classes: i64, post: &str, base: &[f32]) -> ModelProto {
        let mut attributes = self.attributes("class");
        attributes.push(ints("classlabels_int64s", (0..classes).collect()));
        attributes.push(text("post_transform", post));
        if !base.is_empty() {
            attributes.push(floats("base_values", base.to_vec()));
        }
        model(
            vec![ml("TreeEnsembleClassifier", &["x"], &["label", "scores"], attributes)],
            vec![],
            vec![port("x", DataType::Float, &[FREE, features])],
            vec![port("label", DataType::Int64, &[FREE]), port("scores", DataType::Float, &[FREE, classes])],
        )
    }

    pub fn regressor(&self, features: i64, targets: i64, aggregate: &str, base: &[f32]) -> ModelProto {
        let mut attributes = self.attributes("target");
        attributes.push(int("n_targets", targets));
        attributes.push(text("aggregate_function", aggregate));
        if !base.is_empty() {
            attributes.push(floats("base_values", base.to_vec()));
        }
        model(
            vec![ml("TreeEnsembleRegressor", &["x"], &["y"], attributes)],
            vec![],
            vec![port("x", DataType::Float, &[FREE, features])],
            vec![port("y", DataType::Float, &[FREE, targets])],
        )
    }
}

pub fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len(), "{a:?} against {b:?}");
    for (x, y) in a.iter().zip(b) {
        assert!((x - y).abs() <= 1e-5 * y.abs().max(1.0), "{a:?} against {b:?}");
    }
}

/// A constant of text.
pub fn texts_tensor(name: &str, all: &[&str]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: vec![all.len() as i64],
        data_type: DataType::String as i32,
        string_data: all.iter().map(|t| t.as_bytes().to_vec()).collect(),
        ..Default::default()
    }
}

/// A constant of bytes: `INT8` or `UINT8`, or `FLOAT16` by its bits.
pub fn small_tensor(name: &str, kind: DataType, dims: &[i64], values: &[i32]) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: kind as i32,
        int32_data: values.to_vec(),
        ..Default::default()
    }
}

pub fn tensor_attribute(name: &str, t: TensorProto) -> AttributeProto {
    AttributeProto { t: Some(t), ..attribute(name, AttributeType::Tensor) }
}

pub fn float(name: &str, f: f32) -> AttributeProto {
    AttributeProto { f, ..attribute(name, AttributeType::Float) }
}

/// One operator of `ai.onnx.ml` from `x` to `y`.
pub fn single(op: &str, attribute: Vec<AttributeProto>, x: ValueInfoProto, y: ValueInfoProto) -> ModelProto {
    model(vec![ml(op, &["x"], &["y"], attribute)], vec![], vec![x], vec![y])
}

/// A `TreeEnsemble` of operator set 5: `x0 <= 0.5 ? leaf 0 : (x0 in {2, 3} ? leaf 1 : leaf 2)`, and a second tree that
/// is the inner node of the first.
pub fn tree_ensemble() -> Vec<AttributeProto> {
    let list =
        |name: &str, values: &[f32]| tensor_attribute(name, tensor("", &[values.len() as i64], values));
    vec![
        int("n_targets", 2),
        ints("tree_roots", vec![0, 1]),
        ints("nodes_featureids", vec![0, 0]),
        list("nodes_splits", &[0.5, 0.0]),
        tensor_attribute("nodes_modes", small_tensor("", DataType::Uint8, &[2], &[0, 6])),
        ints("nodes_truenodeids", vec![0, 1]),
        ints("nodes_trueleafs", vec![1, 1]),
        ints("nodes_falsenodeids", vec![1, 2]),
        ints("nodes_falseleafs", vec![0, 1]),
        list("membership_values", &[2.0, 3.0, f32::NAN]),
        ints("leaf_targetids", vec![0, 1, 0]),
        list("leaf_weights", &[1.0, 10.0, 100.0]),
    ]
}

/// `x[n, 5, 2]`, a sequence of five, into the last state `y[n, 3]`. A state that is given at the start is computed from x;
/// without one n is 1, as the runtime makes zeros for rows it knows.
pub fn recurrent(op: &str, gates: i64, attributes: Vec<AttributeProto>, given: bool) -> ModelProto {
    let weights = |name: &str, dims: &[i64]| {
        let count: i64 = dims.iter().product();
        let values: Vec<f32> = (0..count).map(|i| ((i * 37 + count) % 23) as f32 / 11.5 - 1.0).collect();
        tensor(name, dims, &values)
    };
    let begin: &[&str] = match (given, op) {
        (true, "LSTM") => &["", "h", "h"],
        (true, _) => &["", "h"],
        (false, _) => &[],
    };
    let (n, gates) = (if given { FREE } else { 1 }, 3 * gates);
    model(
        vec![
            node("Transpose", &["x"], &["t"], vec![ints("perm", vec![1, 0, 2])]),
            node("Gather", &["x", "zero"], &["x0"], vec![int("axis", 1)]),
            node("Squeeze", &["x0", "one"], &["x1"], vec![]),
            node("MatMul", &["x1", "v"], &["h0"], vec![]),
            node("Unsqueeze", &["h0", "zero"], &["h"], vec![]),
            node(op, &[&["t", "w", "r", "b"], begin].concat(), &["", "s"], attributes),
            node("Squeeze", &["s", "zero"], &["y"], vec![]),
        ],
        vec![
            weights("w", &[1, gates, 2]),
            weights("r", &[1, gates, 3]),
            weights("b", &[1, 2 * gates]),
            weights("v", &[2, 3]),
            ints_tensor("zero", &[0]),
            ints_tensor("one", &[1]),
        ],
        vec![port("x", DataType::Float, &[n, 5, 2])],
        vec![port("y", DataType::Float, &[n, 3])],
    )
}
