//! The attributes of `TreeEnsembleClassifier` and `TreeEnsembleRegressor`.

use dunlin_kernels::forest::Aggregate;
use tract_onnx::pb::NodeProto;

use super::forest::{Forest, Mode, RawNode, RawValue};
use super::scores::{Classes, Layout, PostTransform, Scores};
use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, unsupported};

/// A list of floats, which may not be in double precision: rounding thresholds would move rows to other leaves.
fn floats<'a>(all: &Attributes<'a>, name: &str) -> Result<&'a [f32], EngineError> {
    if all.find(&format!("{name}_as_tensor")).is_some() {
        return Err(unsupported(
            &format!("double-precision {name}_as_tensor"),
            node_name(all.node),
            "export with float32 attributes",
        ));
    }
    Ok(all.floats(name))
}

fn mode(name: &[u8]) -> Option<Mode> {
    Some(match name {
        b"BRANCH_LEQ" => Mode::Leq,
        b"BRANCH_LT" => Mode::Lt,
        b"BRANCH_GTE" => Mode::Gte,
        b"BRANCH_GT" => Mode::Gt,
        b"BRANCH_EQ" => Mode::Eq,
        b"BRANCH_NEQ" => Mode::Neq,
        b"LEAF" => Mode::Leaf,
        _ => return None,
    })
}

fn forest(
    node: &NodeProto,
    prefix: &str,
    targets: usize,
    aggregate: Aggregate,
) -> Result<Forest, EngineError> {
    let all = Attributes { node };
    let trees = all.ints("nodes_treeids");
    let n = trees.len();
    let ids = all.same("nodes_nodeids", all.ints("nodes_nodeids"), n)?;
    let features = all.same("nodes_featureids", all.ints("nodes_featureids"), n)?;
    let yes = all.same("nodes_truenodeids", all.ints("nodes_truenodeids"), n)?;
    let no = all.same("nodes_falsenodeids", all.ints("nodes_falsenodeids"), n)?;
    let values = all.same("nodes_values", floats(&all, "nodes_values")?, n)?;
    let modes = all.find("nodes_modes").map(|a| a.strings.as_slice()).unwrap_or_default();
    let modes = all.same("nodes_modes", modes, n)?;
    let missing = all.ints("nodes_missing_value_tracks_true");
    let missing =
        if missing.is_empty() { missing } else { all.same("nodes_missing_value_tracks_true", missing, n)? };
    let mut nodes = Vec::with_capacity(n);
    for i in 0..n {
        let mode = mode(&modes[i]).ok_or_else(|| {
            unsupported(
                &format!("the branch mode {:?}", String::from_utf8_lossy(&modes[i])),
                node_name(node),
                "use the modes of ai.onnx.ml 1 to 3",
            )
        })?;
        nodes.push(RawNode {
            tree: trees[i],
            id: ids[i],
            mode,
            feature: features[i],
            value: values[i],
            yes: yes[i],
            no: no[i],
            missing_yes: missing.get(i).is_some_and(|&m| m != 0),
        });
    }
    let name = |what: &str| format!("{prefix}_{what}");
    let of_target = all.ints(&name("ids"));
    let m = of_target.len();
    let of_tree = all.same(&name("treeids"), all.ints(&name("treeids")), m)?;
    let of_node = all.same(&name("nodeids"), all.ints(&name("nodeids")), m)?;
    let weights = all.same(&name("weights"), floats(&all, &name("weights"))?, m)?;
    let leaves: Vec<RawValue> = (0..m)
        .map(|i| RawValue { tree: of_tree[i], node: of_node[i], target: of_target[i], value: weights[i] })
        .collect();
    Forest::build(node_name(node), &nodes, &leaves, targets, aggregate)
}

fn base_values<'a>(all: &Attributes<'a>, targets: usize) -> Result<&'a [f32], EngineError> {
    let base = floats(all, "base_values")?;
    // One value for two classes is what boosted two-class models are exported with.
    if base.is_empty() || base.len() == targets || (base.len() == 1 && targets == 2) {
        return Ok(base);
    }
    Err(malformed(&format!(
        "{:?}: base_values has {} entries where {targets} belong",
        node_name(all.node),
        base.len()
    )))
}

fn post_transform(all: &Attributes<'_>) -> Result<PostTransform, EngineError> {
    Ok(match all.text("post_transform", "NONE").as_str() {
        "NONE" => PostTransform::None,
        "SOFTMAX" => PostTransform::Softmax,
        "LOGISTIC" => PostTransform::Logistic,
        "SOFTMAX_ZERO" => PostTransform::SoftmaxZero,
        other => {
            return Err(unsupported(
                &format!("the post transform {other:?}"),
                node_name(all.node),
                "use NONE, SOFTMAX or LOGISTIC",
            ));
        }
    })
}

/// Reads a `TreeEnsembleClassifier`: the scores and the class labels.
pub(super) fn classifier(node: &NodeProto) -> Result<(Scores, Vec<i64>), EngineError> {
    let all = Attributes { node };
    if all.find("classlabels_strings").is_some_and(|a| !a.strings.is_empty()) {
        return Err(unsupported(
            "classlabels_strings",
            node_name(node),
            "export with integer labels and keep the names in the manifest",
        ));
    }
    let labels = all.ints("classlabels_int64s").to_vec();
    let forest = forest(node, "class", labels.len(), Aggregate::Sum)?;
    let Classes { layout, base, choice } = Classes::of(&forest, &labels, base_values(&all, labels.len())?)
        .map_err(|(what, advice)| unsupported(what, node_name(node), advice))?;
    Ok((Scores { forest, base, post: post_transform(&all)?, layout, choice: Some(choice) }, labels))
}

/// Reads a `TreeEnsembleRegressor`.
pub(super) fn regressor(node: &NodeProto) -> Result<Scores, EngineError> {
    let all = Attributes { node };
    let aggregate = match all.text("aggregate_function", "SUM").as_str() {
        "SUM" => Aggregate::Sum,
        "AVERAGE" => Aggregate::Average,
        "MIN" => Aggregate::Min,
        "MAX" => Aggregate::Max,
        other => {
            return Err(unsupported(
                &format!("the aggregate function {other:?}"),
                node_name(node),
                "use SUM, AVERAGE, MIN or MAX",
            ));
        }
    };
    let targets = all.find("n_targets").map_or(1, |a| a.i);
    let targets = usize::try_from(targets).unwrap_or(0);
    let forest = forest(node, "target", targets, aggregate)?;
    let post = post_transform(&all)?;
    let refused = |(what, advice): (&str, &str)| Err(unsupported(what, node_name(node), advice));
    if targets == 1 {
        if post != PostTransform::None {
            return refused((
                "a post transform of one target, which ONNX Runtime passes over against its specification",
                "use NONE, with an operator behind the trees",
            ));
        }
        if forest.says_twice() {
            return refused(("a leaf with several values for one target", "add them up"));
        }
        if matches!(aggregate, Aggregate::Min | Aggregate::Max) && forest.is_silent_somewhere() {
            return refused(("MIN or MAX over leaves without a value", "give every leaf a value"));
        }
    }
    let mut base = base_values(&all, targets)?.to_vec();
    // The base value of a target counts where a leaf speaks about the target; one alone is always spoken about.
    for (target, base) in (0..).zip(&mut base).filter(|(_, base)| targets > 1 && **base != 0.0) {
        if !forest.ever_speaks_of(target) {
            *base = 0.0;
        } else if !forest.always_speaks_of(target) {
            return refused((
                "base values of targets that a row may reach no value of",
                "give every leaf a value for each target, or export without base_values",
            ));
        }
    }
    Ok(Scores { forest, base, post, layout: Layout::Targets, choice: None })
}
