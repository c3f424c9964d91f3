//! Explanations against Shapley's formula, subset by subset.

use super::support::{Ensemble, FREE, Mlp, Tree, bytes, int, ints_tensor, model, node, port, tensor};
use dunlin_engine::{
    BACKGROUND_ROWS_MAX, Effort, Explains, Explanation, Method, Model, background, golden, of_floats,
};
use proptest::prelude::*;
use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{ModelProto, NodeProto};

const FEATURES: usize = 6;

/// Numbers that look random and are the same every time.
struct Draw(u64);

impl Draw {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }

    fn value(&mut self) -> f32 {
        self.below(41) as f32 / 10.0 - 2.0
    }

    fn row(&mut self) -> Vec<f32> {
        (0..FEATURES).map(|_| self.value()).collect()
    }

    fn tree(&mut self, depth: usize, targets: usize) -> Tree {
        if depth == 0 || self.below(8) == 0 {
            return Tree::Leaf((0..targets).map(|t| (t, self.value())).collect());
        }
        let modes =
            ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ", "BRANCH_LEQ"];
        Tree::Branch {
            mode: modes[self.below(modes.len())],
            feature: self.below(FEATURES),
            value: self.value(),
            missing_yes: self.below(2) == 0,
            yes: Box::new(self.tree(depth - 1, targets)),
            no: Box::new(self.tree(depth - 1, targets)),
        }
    }

    fn forest(&mut self, trees: usize, targets: usize) -> Ensemble {
        Ensemble::of(&(0..trees).map(|_| self.tree(5, targets)).collect::<Vec<_>>())
    }
}

fn regressor(ensemble: &Ensemble, targets: usize, aggregate: &str, base: &[f32]) -> Model {
    let file = ensemble.regressor(FEATURES as i64, targets as i64, aggregate, base);
    Model::load(&bytes(&file), None).unwrap()
}

/// Shapley's formula, with the mean answer over the background as the worth of a subset of features.
fn by_subsets(model: &Model, x: &[f32], background: &[f32], column: usize) -> Vec<f64> {
    let n = x.len();
    let outputs = model.run_f32(x, 1).unwrap().len();
    let worth: Vec<f64> = (0..1_usize << n)
        .map(|subset| {
            let rows: Vec<f32> = background
                .chunks(n)
                .flat_map(|b| (0..n).map(|f| if subset >> f & 1 == 1 { x[f] } else { b[f] }))
                .collect();
            let count = rows.len() / n;
            let answers = model.run_f32(&rows, count).unwrap();
            answers.iter().skip(column).step_by(outputs).map(|y| f64::from(*y)).sum::<f64>() / count as f64
        })
        .collect();
    let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
    (0..n)
        .map(|f| {
            let without = (0..1_usize << n).filter(|subset| subset >> f & 1 == 0);
            without
                .map(|subset| {
                    let size = subset.count_ones() as usize;
                    let share = factorial(size) * factorial(n - size - 1) / factorial(n);
                    share * (worth[subset | 1 << f] - worth[subset])
                })
                .sum()
        })
        .collect()
}

fn near(got: &[f64], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (a, b) in got.iter().zip(want) {
        assert!((a - b).abs() <= tolerance * b.abs().max(1.0), "{got:?} against {want:?}");
    }
}

fn adds_up(explanation: &Explanation) {
    for (column, (value, base)) in explanation.value.iter().zip(&explanation.base).enumerate() {
        let sum: f64 = explanation.of(column).iter().sum();
        assert!((sum - (value - base)).abs() < 1e-5, "{explanation:?}");
    }
}

fn effort(permutations: usize) -> Effort {
    Effort { sampled: false, permutations, seed: 7 }
}

fn rows(draw: &mut Draw, n: usize) -> Vec<f32> {
    (0..n).flat_map(|_| draw.row()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn values_from_the_nodes_are_those_of_the_formula(seed in any::<u64>(), average in any::<bool>()) {
        let mut draw = Draw(seed);
        let targets = 1 + draw.below(3);
        let base: Vec<f32> = (0..targets).map(|_| draw.value()).collect();
        let trees = 1 + draw.below(9);
        let ensemble = draw.forest(trees, targets);
        let model = regressor(&ensemble, targets, if average { "AVERAGE" } else { "SUM" }, &base);
        let (x, others) = (draw.row(), rows(&mut draw, 5));
        let made = model.explain(&x, &others, &effort(2), &mut || true).unwrap();
        prop_assert_eq!((made.method, made.background, made.complete), (Method::Tree, 5, true));
        adds_up(&made);
        let answer: Vec<f64> = model.run_f32(&x, 1).unwrap().into_iter().map(f64::from).collect();
        near(&made.value, &answer, 1e-5);
        for column in 0..targets {
            near(made.of(column), &by_subsets(&model, &x, &others, column), 1e-5);
        }
    }

    #[test]
    fn walks_add_up_and_come_near_the_formula(seed in any::<u64>()) {
        let mut draw = Draw(seed);
        let model = regressor(&draw.forest(4, 2), 2, "SUM", &[]);
        let (x, others) = (draw.row(), rows(&mut draw, 3));
        for permutations in [1, 2, 5] {
            let few = Effort { sampled: true, ..effort(permutations) };
            let made = model.explain(&x, &others, &few, &mut || true).unwrap();
            prop_assert_eq!((made.method, made.permutations), (Method::Permutation, permutations.div_ceil(2) * 2));
            adds_up(&made);
        }
        let many = Effort { sampled: true, ..effort(1000) };
        let made = model.explain(&x, &others, &many, &mut || true).unwrap();
        adds_up(&made);
        for column in 0..2 {
            near(made.of(column), &by_subsets(&model, &x, &others, column), 0.2);
        }
    }
}

/// What pairs of features do together, an order and its reverse share out exactly.
#[test]
fn walks_of_sums_of_pairs_are_exact() {
    let stump = |f: usize, g: usize, v: f32| Tree::Branch {
        mode: "BRANCH_LEQ",
        feature: f,
        value: 0.0,
        missing_yes: false,
        yes: Box::new(Tree::Branch {
            mode: "BRANCH_GT",
            feature: g,
            value: 0.5,
            missing_yes: false,
            yes: Box::new(Tree::Leaf(vec![(0, v)])),
            no: Box::new(Tree::Leaf(vec![(0, -1.0)])),
        }),
        no: Box::new(Tree::Leaf(vec![(0, 0.25)])),
    };
    let trees: Vec<Tree> = (0..FEATURES).map(|f| stump(f, (f + 1) % FEATURES, f as f32)).collect();
    let model = regressor(&Ensemble::of(&trees), 1, "SUM", &[]);
    let mut draw = Draw(3);
    let (x, others) = (draw.row(), rows(&mut draw, 4));
    let made = model.explain(&x, &others, &Effort { sampled: true, ..effort(2) }, &mut || true).unwrap();
    near(made.of(0), &by_subsets(&model, &x, &others, 0), 1e-6);
}

#[test]
fn a_perceptrons_scores_are_explained_by_walks() {
    let model = Model::load(&bytes(&Mlp::new().file(FREE)), None).unwrap();
    let others: Vec<f32> = (0..8 * Mlp::IN).map(|i| (i * 13 % 17) as f32 / 8.0 - 1.0).collect();
    let x = [0.5, -1.0, 2.0, 0.25];
    let made = model.explain(&x, &others, &effort(1000), &mut || true).unwrap();
    assert_eq!((made.method, made.background, made.complete), (Method::Permutation, 8, true));
    adds_up(&made);
    for column in 0..Mlp::OUT {
        near(made.of(column), &by_subsets(&model, &x, &others, column), 5e-3);
    }
    let again = model.explain(&x, &others, &effort(1000), &mut || true).unwrap();
    assert_eq!(again, made, "the same seed gives the same values");
    let other = model.explain(&x, &others, &Effort { seed: 8, ..effort(4) }, &mut || true).unwrap();
    assert_ne!(
        other.contributions,
        model.explain(&x, &others, &effort(4), &mut || true).unwrap().contributions
    );
}

/// The margin is what the trees add up to, whatever is made of it afterwards.
#[test]
fn classifiers_are_explained_by_their_margin() {
    let mut draw = Draw(11);
    let one_class = |negative: bool, draw: &mut Draw| {
        let mut ensemble = draw.forest(5, 1);
        if !negative {
            ensemble.leaf_weights.iter_mut().for_each(|w| *w = w.abs() / 20.0);
        }
        ensemble
    };
    for (ensemble, classes, base) in [
        (draw.forest(6, 3), 3, vec![0.1, 0.2, 0.3]),
        (draw.forest(6, 2), 2, vec![]),
        (one_class(true, &mut draw), 2, vec![0.3]),
        (one_class(false, &mut draw), 2, vec![0.3]),
    ] {
        let load = |post: &str| {
            Model::load(&bytes(&ensemble.classifier(FEATURES as i64, classes, post, &base)), None).unwrap()
        };
        let (plain, x, others) = (load("NONE"), draw.row(), rows(&mut draw, 4));
        let made = plain.explain(&x, &others, &effort(2), &mut || true).unwrap();
        assert_eq!((made.method, made.explains), (Method::Tree, Explains::Output));
        adds_up(&made);
        let answer: Vec<f64> = plain.run_f32(&x, 1).unwrap().into_iter().map(f64::from).collect();
        near(&made.value, &answer, 1e-5);
        for column in 0..classes as usize {
            near(made.of(column), &by_subsets(&plain, &x, &others, column), 1e-5);
        }
        for post in ["SOFTMAX", "LOGISTIC"] {
            let changed = load(post).explain(&x, &others, &effort(2), &mut || true).unwrap();
            assert_eq!(changed.method, Method::Tree);
            let changes = load(post).run_f32(&x, 1).unwrap() != plain.run_f32(&x, 1).unwrap();
            assert_eq!(changed.explains, if changes { Explains::Margin } else { Explains::Output });
            adds_up(&changed);
            let last = classes as usize - 1;
            near(changed.of(last), made.of(last), 1e-9);
        }
    }
}

/// A file that goes on behind its last output, which is then `end`; three constants of columns may be used.
fn followed(mut file: ModelProto, nodes: Vec<NodeProto>, columns: i64) -> Model {
    let graph = file.graph.as_mut().unwrap();
    graph.node.extend(nodes);
    graph.initializer.extend([
        tensor("added", &[columns], &vec![0.5; columns as usize]),
        tensor("one", &[1], &[0.25]),
        ints_tensor("axes", &[1]),
    ]);
    *graph.output.last_mut().unwrap() = port("end", DataType::Float, &[FREE, columns]);
    Model::load(&bytes(&file), None).unwrap()
}

/// Constants go to the sum, a link keeps the order of the margins, and behind anything else there are no shares.
#[test]
fn what_follows_the_trees_decides_what_is_explained() {
    let mut draw = Draw(21);
    let forest = draw.forest(6, 3);
    let (x, others) = (draw.row(), rows(&mut draw, 4));
    let plain = || forest.regressor(FEATURES as i64, 3, "SUM", &[0.1, 0.2, 0.3]);
    let then = |op: &str, inputs: &[&str], output: &str| node(op, inputs, &[output], vec![]);
    let add = || then("Add", &["y", "added"], "sums");
    let sum = |of: &str| node("ReduceSum", &[of, "axes"], &["total"], vec![int("keepdims", 1)]);
    let output = Some(Explains::Output);
    let margin = Some(Explains::Margin);
    let softmax = |from: &str| node("Softmax", &[from], &["end"], vec![int("axis", -1)]);
    for (what, nodes, explains) in [
        ("a constant a column", vec![then("Add", &["y", "added"], "end")], output),
        ("one constant, on the left", vec![then("Add", &["one", "y"], "end")], output),
        ("a sigmoid", vec![then("Sigmoid", &["y"], "end")], margin),
        ("constants and a sigmoid", vec![add(), then("Sigmoid", &["sums"], "end")], margin),
        ("constants and a softmax", vec![add(), softmax("sums")], margin),
        (
            "constants and sigmoids by their sum",
            vec![add(), then("Sigmoid", &["sums"], "s"), sum("s"), then("Div", &["s", "total"], "end")],
            margin,
        ),
        ("sums by their sum", vec![add(), sum("sums"), then("Div", &["sums", "total"], "end")], None),
        (
            "sigmoids by the sum of something else",
            vec![then("Sigmoid", &["y"], "s"), sum("y"), then("Div", &["s", "total"], "end")],
            None,
        ),
        ("a square", vec![then("Mul", &["y", "y"], "end")], None),
        ("a tanh", vec![then("Tanh", &["y"], "end")], None),
    ] {
        let model = followed(plain(), nodes, 3);
        let made = model.explain(&x, &others, &effort(64), &mut || true).unwrap();
        adds_up(&made);
        match explains {
            Some(explains) => assert_eq!((made.method, made.explains), (Method::Tree, explains), "{what}"),
            None => {
                assert_eq!((made.method, made.explains), (Method::Permutation, Explains::Output), "{what}");
            }
        }
        if explains == output {
            let answer: Vec<f64> = model.run_f32(&x, 1).unwrap().into_iter().map(f64::from).collect();
            near(&made.value, &answer, 1e-5);
        }
    }
    // One column that a constant makes three of.
    let one = draw.forest(4, 1).regressor(FEATURES as i64, 1, "SUM", &[]);
    let spread = followed(one, vec![then("Add", &["y", "added"], "end")], 3);
    assert_eq!(spread.explain(&x, &others, &effort(2), &mut || true).unwrap().method, Method::Permutation);
    // Probabilities are no sums that a constant could go to.
    let softened = forest.classifier(FEATURES as i64, 3, "SOFTMAX", &[]);
    let softened = followed(softened, vec![then("Add", &["scores", "added"], "end")], 3);
    assert_eq!(softened.explain(&x, &others, &effort(2), &mut || true).unwrap().method, Method::Permutation);
}

#[test]
fn least_and_greatest_are_no_sums_and_are_walked() {
    let mut draw = Draw(5);
    let model = regressor(&draw.forest(4, 1), 1, "MAX", &[]);
    let (x, others) = (draw.row(), rows(&mut draw, 3));
    let made = model.explain(&x, &others, &effort(1000), &mut || true).unwrap();
    assert_eq!(made.method, Method::Permutation);
    adds_up(&made);
}

#[test]
fn a_spent_budget_leaves_fewer_background_rows_and_the_sum_right() {
    let mut draw = Draw(9);
    let model = regressor(&draw.forest(4, 2), 2, "SUM", &[]);
    let (x, others) = (draw.row(), rows(&mut draw, 6));
    for sampled in [false, true] {
        for pieces in [0, 1, 3] {
            let mut left = pieces;
            let mut go_on = || {
                left -= 1;
                left >= 0
            };
            let made = model.explain(&x, &others, &Effort { sampled, ..effort(8) }, &mut go_on).unwrap();
            assert_eq!((made.background as i32, made.complete), (pieces + 1, false));
            adds_up(&made);
        }
        // In a later round, whole rounds count.
        let mut left = 6 * 2;
        let mut go_on = || {
            left -= 1;
            left >= 0
        };
        let made = model.explain(&x, &others, &Effort { sampled, ..effort(8) }, &mut go_on).unwrap();
        assert_eq!(
            (made.background, made.complete, made.permutations),
            (6, !sampled, if sampled { 4 } else { 0 })
        );
        adds_up(&made);
    }
}

#[test]
fn a_chain_of_nodes_is_walked_without_a_call_for_each() {
    const NODES: i64 = 20_000;
    let mut chain = Ensemble::default();
    for i in 0..2 * NODES + 1 {
        let branches = i % 2 == 0 && i < 2 * NODES;
        chain.trees.push(0);
        chain.nodes.push(i);
        chain.features.push(if branches { i / 2 % FEATURES as i64 } else { 0 });
        chain.modes.push(if branches { "BRANCH_LEQ" } else { "LEAF" });
        chain.values.push(if branches { -1.0 - (i as f32) / 1e5 } else { 0.0 });
        chain.missing.push(0);
        chain.yes.push(if branches { i + 1 } else { 0 });
        chain.no.push(if branches { i + 2 } else { 0 });
        if !branches {
            chain.leaf_trees.push(0);
            chain.leaf_nodes.push(i);
            chain.leaf_ids.push(0);
            chain.leaf_weights.push(i as f32 / NODES as f32);
        }
    }
    let model = regressor(&chain, 1, "SUM", &[]);
    let made = model.explain(&[0.0; FEATURES], &[-1.2; FEATURES], &effort(2), &mut || true).unwrap();
    adds_up(&made);
}

#[test]
fn what_is_no_table_of_numbers_is_refused() {
    let fixed = Model::load(&bytes(&Mlp::new().file(4)), None).unwrap();
    let identity = |kind: DataType, dims: &[i64]| {
        let file = model(
            vec![node("Identity", &["x"], &["y"], vec![])],
            vec![],
            vec![port("x", kind, dims)],
            vec![port("y", kind, dims)],
        );
        Model::load(&bytes(&file), None).unwrap()
    };
    let picture = identity(DataType::Float, &[FREE, 2, 2]);
    let whole = identity(DataType::Int64, &[FREE, 4]);
    let wide = identity(DataType::Float, &[FREE, 1025]);
    for model in [&fixed, &picture, &whole, &wide] {
        let error = model.explain(&[0.0; 4], &[0.0; 4], &effort(2), &mut || true).unwrap_err();
        assert!(error.is_input() && error.to_string().contains("only rows of FP32 features"), "{error}");
    }
    let model = Model::load(&bytes(&Mlp::new().file(FREE)), None).unwrap();
    for (x, others) in [
        (&[0.0; 3][..], &[0.0; 4][..]),
        (&[0.0; 4], &[]),
        (&[0.0; 4], &[0.0; 5]),
        (&[f32::NAN, 0.0, 0.0, 0.0], &[0.0; 4]),
        (&[0.0; 4], &[f32::INFINITY, 0.0, 0.0, 0.0]),
    ] {
        assert!(model.explain(x, others, &effort(2), &mut || true).unwrap_err().is_input());
    }
}

#[test]
fn the_background_is_spread_over_the_golden_rows() {
    let model = Model::load(&bytes(&Mlp::new().file(FREE)), None).unwrap();
    let rows = 4 * BACKGROUND_ROWS_MAX;
    let x: Vec<f32> = (0..rows).flat_map(|i| [i as f32; Mlp::IN]).collect();
    let set = golden(&model, vec![of_floats("x", &[rows as u64, Mlp::IN as u64], &x)], 0).unwrap();
    let taken = background(&model, &set);
    let first: Vec<f32> = taken.chunks(Mlp::IN).map(|row| row[0]).collect();
    let want: Vec<f32> = (0..BACKGROUND_ROWS_MAX).map(|i| 4.0 * i as f32).collect();
    assert_eq!(first, want);
}
