//! `TreeEnsemble` of operator set 5 as the `TreeEnsembleRegressor` of the sets before it.

use tract_onnx::pb::tensor_proto::DataType;
use tract_onnx::pb::{NodeProto, TensorProto};

use super::arithmetic::{input, output};
use super::graph::{Editor, floats, int, ints, text, texts};
use super::tensor;
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, too_large, unsupported};

/// Most nodes of the trees that come out. Nodes that several trees share come out once for each, so a small file
/// could ask for more than any memory holds.
const NODES_MAX: usize = 1 << 20;

/// A membership test: true if the value is one of a set.
const MEMBER: i64 = 6;
const MODES: [&str; 6] = ["BRANCH_LEQ", "BRANCH_LT", "BRANCH_GTE", "BRANCH_GT", "BRANCH_EQ", "BRANCH_NEQ"];

/// The attributes of the node, each list of the right length.
struct Source<'a> {
    at: &'a NodeProto,
    features: &'a [i64],
    splits: Vec<f32>,
    modes: Vec<i64>,
    /// By node: its set, empty unless it tests membership.
    sets: Vec<Vec<f32>>,
    yes: &'a [i64],
    yes_is_leaf: &'a [i64],
    no: &'a [i64],
    no_is_leaf: &'a [i64],
    missing: &'a [i64],
    targets: &'a [i64],
    weights: Vec<f32>,
}

/// What stands at a place of a tree.
#[derive(Clone, Copy)]
enum Place {
    Leaf(usize),
    /// A branch; of one that tests membership, the test against this member of its set.
    Branch(usize, usize),
}

#[derive(Default)]
struct Trees {
    tree: Vec<i64>,
    id: Vec<i64>,
    feature: Vec<i64>,
    value: Vec<f32>,
    mode: Vec<&'static str>,
    yes: Vec<i64>,
    no: Vec<i64>,
    missing: Vec<i64>,
    leaf_tree: Vec<i64>,
    leaf_node: Vec<i64>,
    leaf_target: Vec<i64>,
    leaf_weight: Vec<f32>,
}

fn single(node: &NodeProto, name: &str) -> Result<Vec<f32>, EngineError> {
    let Some(list) = Attributes { node }.tensor(name) else { return Ok(Vec::new()) };
    if list.data_type != DataType::Float as i32 {
        // Rounding thresholds would move rows to other leaves.
        return Err(unsupported(
            &format!("ai.onnx.ml/TreeEnsemble whose {name} is not float32"),
            node_name(node),
            "export with float32 attributes",
        ));
    }
    Ok(tensor::floats(list).unwrap_or_default().into_iter().map(|x| x as f32).collect())
}

impl<'a> Source<'a> {
    fn read(node: &'a NodeProto) -> Result<Self, EngineError> {
        let all = Attributes { node };
        let features = all.ints("nodes_featureids");
        let n = features.len();
        let splits = single(node, "nodes_splits")?;
        let modes = all.tensor("nodes_modes").and_then(|t: &TensorProto| tensor::ints(t)).unwrap_or_default();
        let weights = single(node, "leaf_weights")?;
        if splits.len() != n || modes.len() != n {
            return Err(malformed(&format!("{:?} has {n} nodes and not as many tests", node_name(node))));
        }
        let missing = all.ints("nodes_missing_value_tracks_true");
        let targets = all.same("leaf_targetids", all.ints("leaf_targetids"), weights.len())?;
        Ok(Self {
            at: node,
            features,
            splits,
            sets: sets(node, &modes)?,
            modes,
            yes: all.same("nodes_truenodeids", all.ints("nodes_truenodeids"), n)?,
            yes_is_leaf: all.same("nodes_trueleafs", all.ints("nodes_trueleafs"), n)?,
            no: all.same("nodes_falsenodeids", all.ints("nodes_falsenodeids"), n)?,
            no_is_leaf: all.same("nodes_falseleafs", all.ints("nodes_falseleafs"), n)?,
            missing: if missing.is_empty() {
                missing
            } else {
                all.same("nodes_missing_value_tracks_true", missing, n)?
            },
            targets,
            weights,
        })
    }

    fn place(&self, id: i64, leaf: bool) -> Result<Place, EngineError> {
        let count = if leaf { self.weights.len() } else { self.features.len() };
        let index = usize::try_from(id).ok().filter(|&i| i < count).ok_or_else(|| {
            malformed(&format!("tree ensemble {:?} leads to {id}, which there is not", node_name(self.at)))
        })?;
        Ok(if leaf { Place::Leaf(index) } else { Place::Branch(index, 0) })
    }
}

/// The sets of `membership_values`: one after the other for the nodes that test membership, each ended by a value
/// that is no number.
fn sets(node: &NodeProto, modes: &[i64]) -> Result<Vec<Vec<f32>>, EngineError> {
    let values = single(node, "membership_values")?;
    let mut left = values.split(|x| x.is_nan());
    let wrong = || malformed(&format!("tree ensemble {:?} has a test without a set", node_name(node)));
    modes
        .iter()
        .map(|&mode| {
            if mode != MEMBER {
                return Ok(Vec::new());
            }
            left.next().filter(|set| !set.is_empty()).map(<[f32]>::to_vec).ok_or_else(wrong)
        })
        .collect()
}

impl Trees {
    /// Room for one more node; returns its id in tree `tree`.
    fn node(&mut self, source: &Source<'_>, tree: i64, first: usize) -> Result<i64, EngineError> {
        if self.id.len() >= NODES_MAX {
            let what = format!(
                "nodes of tree ensemble {:?}, or its trees go round in a circle:",
                node_name(source.at)
            );
            return Err(too_large(&what, self.id.len() as u64 + 1, NODES_MAX as u64));
        }
        let id = (self.id.len() - first) as i64;
        self.tree.push(tree);
        self.id.push(id);
        self.feature.push(0);
        self.value.push(0.0);
        self.mode.push("LEAF");
        self.yes.push(0);
        self.no.push(0);
        self.missing.push(0);
        Ok(id)
    }

    fn grow(&mut self, source: &Source<'_>, tree: i64, root: Place) -> Result<(), EngineError> {
        let first = self.id.len();
        let mut open = vec![(root, self.node(source, tree, first)?)];
        while let Some((place, id)) = open.pop() {
            let (branch, member) = match place {
                Place::Leaf(leaf) => {
                    self.leaf_tree.push(tree);
                    self.leaf_node.push(id);
                    self.leaf_target.push(source.targets[leaf]);
                    self.leaf_weight.push(source.weights[leaf]);
                    continue;
                }
                Place::Branch(branch, member) => (branch, member),
            };
            let set = &source.sets[branch];
            let mode = usize::try_from(source.modes[branch]).unwrap_or(usize::MAX);
            let (name, value) = match (MODES.get(mode), set.get(member)) {
                (Some(name), None) => (*name, source.splits[branch]),
                (None, Some(value)) => ("BRANCH_EQ", *value),
                (None | Some(_), _) => {
                    return Err(unsupported(
                        &format!("the branch mode {}", source.modes[branch]),
                        node_name(source.at),
                        "use the modes of ai.onnx.ml 5",
                    ));
                }
            };
            let yes = source.place(source.yes[branch], source.yes_is_leaf[branch] != 0)?;
            let no = if member + 1 < set.len() {
                Place::Branch(branch, member + 1)
            } else {
                source.place(source.no[branch], source.no_is_leaf[branch] != 0)?
            };
            let (to_yes, to_no) = (self.node(source, tree, first)?, self.node(source, tree, first)?);
            let at = first + id as usize;
            self.feature[at] = source.features[branch];
            self.value[at] = value;
            self.mode[at] = name;
            (self.yes[at], self.no[at]) = (to_yes, to_no);
            self.missing[at] = source.missing.get(branch).copied().unwrap_or(0);
            open.extend([(yes, to_yes), (no, to_no)]);
        }
        Ok(())
    }
}

/// `TreeEnsemble`: written out tree by tree; a membership test becomes a row of equality tests.
pub(super) fn rewrite(editor: &mut Editor, node: &NodeProto) -> Result<(), EngineError> {
    let all = Attributes { node };
    let source = Source::read(node)?;
    let mut trees = Trees::default();
    for (tree, &root) in (0_i64..).zip(all.ints("tree_roots")) {
        trees.grow(&source, tree, source.place(root, false)?)?;
    }
    let name = |what: &str, names: &[&'static str], index: i64| {
        usize::try_from(index).ok().and_then(|i| names.get(i)).copied().ok_or_else(|| {
            unsupported(&format!("the {what} {index} of a tree ensemble"), node_name(node), "use another")
        })
    };
    let aggregate =
        name("aggregate function", &["AVERAGE", "SUM", "MIN", "MAX"], all.int("aggregate_function", 1))?;
    let post = match all.int("post_transform", 0) {
        0 => "NONE",
        1 | 2 => {
            return Err(unsupported(
                "SOFTMAX or LOGISTIC of ai.onnx.ml/TreeEnsemble, which ONNX Runtime exchanges against its specification,",
                node_name(node),
                "use no post transform, with Softmax or Sigmoid behind the trees",
            ));
        }
        3 => "SOFTMAX_ZERO",
        other => {
            return Err(unsupported(
                &format!("the post transform {other} of a tree ensemble"),
                node_name(node),
                "use none",
            ));
        }
    };
    let attributes = vec![
        ints("nodes_treeids", trees.tree),
        ints("nodes_nodeids", trees.id),
        ints("nodes_featureids", trees.feature),
        floats("nodes_values", trees.value),
        texts("nodes_modes", &trees.mode),
        ints("nodes_truenodeids", trees.yes),
        ints("nodes_falsenodeids", trees.no),
        ints("nodes_missing_value_tracks_true", trees.missing),
        ints("target_treeids", trees.leaf_tree),
        ints("target_nodeids", trees.leaf_node),
        ints("target_ids", trees.leaf_target),
        floats("target_weights", trees.leaf_weight),
        int("n_targets", all.int("n_targets", 1)),
        text("aggregate_function", aggregate),
        text("post_transform", post),
    ];
    editor.keep(NodeProto {
        op_type: "TreeEnsembleRegressor".to_owned(),
        domain: "ai.onnx.ml".to_owned(),
        name: node.name.clone(),
        input: vec![input(node, 0)?.to_owned()],
        output: vec![output(node)?.to_owned()],
        attribute: attributes,
        ..NodeProto::default()
    })?;
    editor.rewrites.add("ai.onnx.ml/TreeEnsemble", "TreeEnsembleRegressor", node_name(node));
    Ok(())
}
