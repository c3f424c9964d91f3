//! Gradient-boosted trees by forust: one against the rest, with the sigmoids of the margins normalised to
//! one. With two classes one ensemble serves both, its margin negated for the first.
//!
//! In ONNX the base scores stand in an `Add` behind the trees rather than in `base_values`: runtimes disagree
//! about base values of two-class ensembles.
use forust_ml::objective::ObjectiveType;
use forust_ml::tree::Tree;
use forust_ml::{GradientBooster, Matrix};

use crate::data::Table;
use crate::onnx::{Graph, INPUT, OUTPUT, floats, int, ints, text, texts};
use crate::{Family, LearnError};

use super::Fit;

#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) trees: usize,
    pub(super) depth: usize,
    pub(super) rate: f32,
    pub(super) l2: f32,
}

#[derive(Debug, Clone, Copy)]
enum Node {
    /// `x[feature] < threshold` goes left; a missing value goes left if `missing_left`.
    Branch {
        feature: usize,
        threshold: f32,
        left: usize,
        right: usize,
        missing_left: bool,
    },
    Leaf {
        weight: f32,
    },
}

/// The trees that add to one margin.
#[derive(Debug)]
struct Ensemble {
    base: f32,
    trees: Vec<Vec<Node>>,
}

#[derive(Debug)]
pub(super) struct Gbdt {
    width: usize,
    classes: usize,
    /// One per class, or a single one for the second of two classes.
    ensembles: Vec<Ensemble>,
}

pub(super) fn fit(table: &Table, plan: &Plan, seed: u64) -> Result<Gbdt, LearnError> {
    let columns: Vec<f64> =
        (0..table.width).flat_map(|feature| table.column(feature)).map(f64::from).collect();
    let classes = if table.classes == 2 { 1..2 } else { 0..table.classes as u32 };
    let ensembles = classes
        .map(|class| one_against_rest(table, &columns, class, plan, seed))
        .collect::<Result<_, _>>()?;
    Ok(Gbdt { width: table.width, classes: table.classes, ensembles })
}

fn one_against_rest(
    table: &Table,
    columns: &[f64],
    class: u32,
    plan: &Plan,
    seed: u64,
) -> Result<Ensemble, LearnError> {
    let failed = |detail: String| LearnError::Fit { family: Family::Gbdt, detail };
    let truth: Vec<f64> = table.y.iter().map(|&y| f64::from(u8::from(y == class))).collect();
    let mut booster = GradientBooster::default()
        .set_objective_type(ObjectiveType::LogLoss)
        .set_iterations(plan.trees)
        .set_max_depth(plan.depth)
        .set_learning_rate(plan.rate)
        .set_l2(plan.l2)
        .set_initialize_base_score(true)
        // One thread: sums keep their order, and several workers share the machine.
        .set_parallel(false)
        .set_seed(seed);
    booster
        .fit_unweighted(&Matrix::new(columns, table.rows(), table.width), &truth, None)
        .map_err(|error| failed(error.to_string()))?;
    let base = booster.base_score as f32;
    if !base.is_finite() {
        return Err(failed(format!("class {class} is all or nothing of the training rows")));
    }
    Ok(Ensemble { base, trees: booster.trees.iter().map(nodes).collect() })
}

/// The least f32 at or above `value`: for every f32 `x`, `x < value` exactly if `x < ceil_f32(value)`.
fn ceil_f32(value: f64) -> f32 {
    let near = value as f32;
    if f64::from(near) >= value { near } else { near.next_up() }
}

fn nodes(tree: &Tree) -> Vec<Node> {
    tree.nodes
        .iter()
        .map(|node| {
            if node.is_leaf {
                Node::Leaf { weight: node.weight_value }
            } else {
                Node::Branch {
                    feature: node.split_feature,
                    threshold: ceil_f32(node.split_value),
                    left: node.left_child,
                    right: node.right_child,
                    missing_left: node.missing_node == node.left_child,
                }
            }
        })
        .collect()
}

impl Ensemble {
    fn margin(&self, row: &[f32]) -> f32 {
        let leaf = |tree: &[Node]| {
            let mut at = 0;
            loop {
                match tree[at] {
                    Node::Leaf { weight } => return weight,
                    Node::Branch { feature, threshold, left, right, missing_left } => {
                        let value = row[feature];
                        at = if value < threshold || (value.is_nan() && missing_left) { left } else { right };
                    }
                }
            }
        };
        self.trees.iter().map(|tree| leaf(tree)).sum::<f32>() + self.base
    }
}

fn sigmoid(margin: f32) -> f32 {
    1.0 / (1.0 + (-margin).exp())
}

impl Fit for Gbdt {
    fn scores(&self, x: &[f32]) -> Result<Vec<f32>, LearnError> {
        let mut scores = Vec::with_capacity(x.len() / self.width * self.classes);
        for row in x.chunks_exact(self.width) {
            let from = scores.len();
            match self.ensembles.as_slice() {
                [one] => {
                    let margin = one.margin(row);
                    scores.extend([sigmoid(-margin), sigmoid(margin)]);
                }
                many => scores.extend(many.iter().map(|ensemble| sigmoid(ensemble.margin(row)))),
            }
            let sum: f32 = scores[from..].iter().sum();
            scores[from..].iter_mut().for_each(|score| *score /= sum);
        }
        Ok(scores)
    }

    fn onnx(&self) -> Vec<u8> {
        let mut flat = Flat::default();
        for (class, ensemble) in self.ensembles.iter().enumerate() {
            for tree in &ensemble.trees {
                match self.ensembles.len() {
                    1 => flat.push(tree, &[(0, -1.0), (1, 1.0)]),
                    _ => flat.push(tree, &[(class as i64, 1.0)]),
                }
            }
        }
        let base: Vec<f32> = match self.ensembles.as_slice() {
            [one] => vec![-one.base, one.base],
            many => many.iter().map(|ensemble| ensemble.base).collect(),
        };
        let mut graph = Graph::default();
        let sums = graph.trees(INPUT, "sums", flat.attributes(self.classes));
        let base = graph.floats("base", &[self.classes], &base);
        let margins = graph.node("Add", &[&sums, &base], "margins", vec![]);
        let odds = graph.node("Sigmoid", &[&margins], "sigmoids", vec![]);
        let axes = graph.ints("axes", &[1]);
        let total = graph.node("ReduceSum", &[&odds, &axes], "total", vec![int("keepdims", 1)]);
        graph.node("Div", &[&odds, &total], OUTPUT, vec![]);
        graph.finish("gbdt", self.width, self.classes)
    }
}

/// The trees as the parallel arrays that ONNX keeps them in.
#[derive(Default)]
struct Flat<'a> {
    tree: i64,
    tree_ids: Vec<i64>,
    node_ids: Vec<i64>,
    features: Vec<i64>,
    thresholds: Vec<f32>,
    modes: Vec<&'a str>,
    on_true: Vec<i64>,
    on_false: Vec<i64>,
    missing: Vec<i64>,
    leaf_trees: Vec<i64>,
    leaf_nodes: Vec<i64>,
    leaf_classes: Vec<i64>,
    leaf_weights: Vec<f32>,
}

impl Flat<'_> {
    fn push(&mut self, tree: &[Node], classes: &[(i64, f32)]) {
        for (id, node) in tree.iter().enumerate() {
            self.tree_ids.push(self.tree);
            self.node_ids.push(id as i64);
            let (mode, feature, threshold, left, right, missing_left) = match *node {
                Node::Branch { feature, threshold, left, right, missing_left } => {
                    ("BRANCH_LT", feature, threshold, left, right, missing_left)
                }
                Node::Leaf { weight } => {
                    for &(class, sign) in classes {
                        self.leaf_trees.push(self.tree);
                        self.leaf_nodes.push(id as i64);
                        self.leaf_classes.push(class);
                        self.leaf_weights.push(sign * weight);
                    }
                    ("LEAF", 0, 0.0, 0, 0, false)
                }
            };
            self.modes.push(mode);
            self.features.push(feature as i64);
            self.thresholds.push(threshold);
            self.on_true.push(left as i64);
            self.on_false.push(right as i64);
            self.missing.push(i64::from(missing_left));
        }
        self.tree += 1;
    }

    fn attributes(self, classes: usize) -> Vec<dunlin_engine::onnx_pb::AttributeProto> {
        vec![
            ints("class_ids", self.leaf_classes),
            ints("class_nodeids", self.leaf_nodes),
            ints("class_treeids", self.leaf_trees),
            floats("class_weights", self.leaf_weights),
            ints("classlabels_int64s", (0..classes as i64).collect()),
            ints("nodes_falsenodeids", self.on_false),
            ints("nodes_featureids", self.features),
            ints("nodes_missing_value_tracks_true", self.missing),
            texts("nodes_modes", self.modes),
            ints("nodes_nodeids", self.node_ids),
            ints("nodes_treeids", self.tree_ids),
            ints("nodes_truenodeids", self.on_true),
            floats("nodes_values", self.thresholds),
            text("post_transform", "NONE"),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn rounding_a_threshold_up_moves_no_row(value in -1e6f64..1e6, x in -1e6f32..1e6) {
            for x in [x, value as f32, (value as f32).next_up(), (value as f32).next_down()] {
                prop_assert_eq!(f64::from(x) < value, x < ceil_f32(value));
            }
        }
    }
}
