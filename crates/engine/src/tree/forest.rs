//! The nodes of an ensemble, as the walk wants them.

use dunlin_kernels::forest::{Aggregate, Leaves, MISSING_LOW, Node, Trees};

use crate::EngineError;
use crate::check::{malformed, too_large, unsupported};

/// Most nodes of one ensemble: 1,000 trees of 4,096 leaves, or half a GiB of attributes.
const NODES_MAX: usize = 1 << 23;
/// Most classes or targets: what a scores row may hold.
pub(super) const TARGETS_MAX: usize = 1 << 16;
/// A validated ensemble: every index is in range, every tree is a tree.
#[derive(Debug, Clone)]
pub(crate) struct Forest {
    pub(super) trees: Trees,
    /// All tests are `<=` or its opposite.
    only_up_to: bool,
    features: usize,
}

/// One node as the file has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawNode {
    pub(super) tree: i64,
    pub(super) id: i64,
    pub(super) mode: Mode,
    pub(super) feature: i64,
    pub(super) value: f32,
    pub(super) yes: i64,
    pub(super) no: i64,
    pub(super) missing_yes: bool,
}

/// Branch modes of the operator set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    Leq,
    Lt,
    Gte,
    Gt,
    Eq,
    Neq,
    Leaf,
}

/// One value of a leaf as the file has it.
#[derive(Debug, Clone, Copy)]
pub(super) struct RawValue {
    pub(super) tree: i64,
    pub(super) node: i64,
    pub(super) target: i64,
    pub(super) value: f32,
}

impl Forest {
    /// Builds and validates; `at` names the node in errors.
    pub(super) fn build(
        at: &str,
        raw: &[RawNode],
        raw_values: &[RawValue],
        targets: usize,
        aggregate: Aggregate,
    ) -> Result<Self, EngineError> {
        let bad = |what: String| malformed(&format!("tree ensemble {at:?}: {what}"));
        if raw.is_empty() {
            return Err(bad("it has no nodes".into()));
        }
        if raw.len() > NODES_MAX {
            return Err(too_large(
                &format!("nodes of tree ensemble {at:?}"),
                raw.len() as u64,
                NODES_MAX as u64,
            ));
        }
        if targets == 0 || targets > TARGETS_MAX {
            return Err(bad(format!("{targets} classes or targets")));
        }
        let mut order: Vec<usize> = (0..raw.len()).collect();
        order.sort_unstable_by_key(|&i| (raw[i].tree, raw[i].id));
        let place =
            |tree: i64, id: i64| order.binary_search_by_key(&(tree, id), |&i| (raw[i].tree, raw[i].id)).ok();
        if let Some(pair) =
            order.windows(2).find(|p| (raw[p[0]].tree, raw[p[0]].id) == (raw[p[1]].tree, raw[p[1]].id))
        {
            return Err(bad(format!("tree {} has node {} twice", raw[pair[0]].tree, raw[pair[0]].id)));
        }
        let mut nodes = Vec::with_capacity(raw.len());
        let mut features = 0;
        // The parents each node has; a root has none.
        let mut parents = vec![0_u8; raw.len()];
        for (at_place, &i) in order.iter().enumerate() {
            let node = raw[i];
            let here = at_place as u32;
            if node.mode == Mode::Leaf {
                nodes.push(Node { threshold: 0.0, feature: 0, low: here, high: here });
                continue;
            }
            let child = |id: i64| {
                place(node.tree, id).filter(|&p| p != at_place).ok_or_else(|| {
                    bad(format!(
                        "node {} of tree {} has the child {id}, which there is not",
                        node.id, node.tree
                    ))
                })
            };
            let (yes, no) = (child(node.yes)?, child(node.no)?);
            for child in [yes, no] {
                parents[child] = parents[child].saturating_add(1);
            }
            let feature = u32::try_from(node.feature).ok().filter(|&f| f < MISSING_LOW).ok_or_else(|| {
                bad(format!("node {} of tree {} looks at feature {}", node.id, node.tree, node.feature))
            })?;
            if node.value.is_nan() {
                return Err(bad(format!("node {} of tree {} compares with no number", node.id, node.tree)));
            }
            features = features.max(feature as usize + 1);
            nodes.push(Node { threshold: node.value, feature, low: yes as u32, high: no as u32 });
        }
        if let Some(shared) = parents.iter().position(|&p| p > 1) {
            let node = raw[order[shared]];
            return Err(bad(format!("node {} of tree {} has two parents", node.id, node.tree)));
        }
        let roots = roots(raw, &order, &parents).map_err(bad)?;
        reach(&nodes, &roots).map_err(bad)?;
        let (first, values) = values(raw, &order, raw_values, targets, place).map_err(bad)?;
        let leaves = Leaves::Any;
        let mut trees = Trees { nodes, roots, first, values, leaves, aggregate, targets, missing_low: false };
        normalise(&mut trees, raw, &order);
        lay_out(&mut trees);
        if features > MISSING_LOW as usize || trees.nodes.len() > u32::MAX as usize {
            return Err(unsupported("a tree ensemble of this size", at, "use fewer trees"));
        }
        let only_up_to = raw.iter().all(|n| matches!(n.mode, Mode::Leq | Mode::Gt | Mode::Leaf));
        Ok(Self { trees, only_up_to, features })
    }

    /// Least number of columns a row must have.
    pub(crate) fn features(&self) -> usize {
        self.features
    }

    /// Whether all tests compare with thresholds as the file has them, by `<=` or its opposite.
    pub(crate) fn only_up_to(&self) -> bool {
        self.only_up_to
    }

    /// Number of classes or targets.
    pub(crate) fn targets(&self) -> usize {
        self.trees.targets
    }

    pub(super) fn is_leaf(&self, at: u32) -> bool {
        self.trees.nodes[at as usize].low == at
    }

    /// Where a row goes on from a node.
    pub(super) fn next(&self, at: u32, row: &[f32]) -> u32 {
        let node = self.trees.nodes[at as usize];
        let x = row[(node.feature & !MISSING_LOW) as usize];
        let low = x <= node.threshold || (x.is_nan() && node.feature & MISSING_LOW != 0);
        if low { node.low } else { node.high }
    }

    /// Whether all targets of all leaves are the same one, and it; the one-score layout of two classes.
    pub(crate) fn only_target(&self) -> Option<u32> {
        let (first, _) = self.trees.values.first()?;
        self.trees.values.iter().all(|(t, _)| t == first).then_some(*first)
    }

    /// Whether any leaf speaks about `target`.
    pub(super) fn ever_speaks_of(&self, target: u32) -> bool {
        self.trees.values.iter().any(|(t, _)| *t == target)
    }

    /// Whether every row reaches a leaf that speaks about `target`.
    pub(super) fn always_speaks_of(&self, target: u32) -> bool {
        self.trees.roots.iter().any(|&root| {
            leaves(&self.trees, root).all(|leaf| self.trees.leaf(leaf).iter().any(|(t, _)| *t == target))
        })
    }

    /// Whether every row reaches a leaf that holds a value.
    pub(super) fn always_speaks(&self) -> bool {
        self.trees
            .roots
            .iter()
            .any(|&root| leaves(&self.trees, root).all(|leaf| !self.trees.leaf(leaf).is_empty()))
    }

    /// Whether any leaf holds no value.
    pub(super) fn is_silent_somewhere(&self) -> bool {
        self.trees
            .roots
            .iter()
            .any(|&root| leaves(&self.trees, root).any(|leaf| self.trees.leaf(leaf).is_empty()))
    }

    /// Whether any leaf has several values for one target.
    pub(super) fn says_twice(&self) -> bool {
        let twice = |leaf| self.trees.leaf(leaf).windows(2).any(|pair| pair[0].0 == pair[1].0);
        self.trees.roots.iter().any(|&root| leaves(&self.trees, root).any(twice))
    }

    /// Whether no leaf value is negative.
    pub(crate) fn is_non_negative(&self) -> bool {
        self.trees.values.iter().all(|(_, v)| *v >= 0.0)
    }
}

/// Turns each branch mode into `x <= t`. For any f32 `x` that is a number, `x < t` is `x <= pred(t)`; `>` and
/// `>=` are their opposites, so children and the way of a missing value swap; `==` is two nodes in a row.
fn normalise(trees: &mut Trees, raw: &[RawNode], order: &[usize]) {
    for (place, &i) in order.iter().enumerate() {
        let RawNode { mode, missing_yes, .. } = raw[i];
        let Node { threshold, low: yes, high: no, feature } = trees.nodes[place];
        let node = match mode {
            Mode::Leaf => continue,
            Mode::Leq => Node { threshold, feature: flag(feature, missing_yes), low: yes, high: no },
            Mode::Lt => {
                Node { threshold: pred(threshold), feature: flag(feature, missing_yes), low: yes, high: no }
            }
            // A missing value is not above anything: without the flag it takes `no`, here the low child.
            Mode::Gt => Node { threshold, feature: flag(feature, !missing_yes), low: no, high: yes },
            Mode::Gte => {
                Node { threshold: pred(threshold), feature: flag(feature, !missing_yes), low: no, high: yes }
            }
            // A missing value is not equal to anything: `==` sends it to `no`, `!=` to `yes`.
            Mode::Eq | Mode::Neq => {
                let (same, other) = if mode == Mode::Eq { (yes, no) } else { (no, yes) };
                let missing_same = mode == Mode::Eq && missing_yes;
                let second = trees.nodes.len() as u32;
                trees.nodes.push(Node { threshold: pred(threshold), feature, low: other, high: same });
                trees.first.push(u32::MAX);
                Node { threshold, feature: flag(feature, missing_same), low: second, high: other }
            }
        };
        trees.nodes[place] = node;
    }
    trees.missing_low = trees.nodes.iter().any(|n| n.feature & MISSING_LOW != 0);
    // The end of the last leaf's values.
    trees.first.push(trees.values.len() as u32);
    // Values lie in place order and nodes without any keep the start of the next.
    let mut next = trees.values.len() as u32;
    for start in trees.first.iter_mut().rev() {
        if *start == u32::MAX {
            *start = next;
        }
        next = *start;
    }
}

/// Finds the quickest layout of the leaves.
fn lay_out(trees: &mut Trees) {
    match trees.aggregate {
        Aggregate::Sum | Aggregate::Average => {}
        Aggregate::Min | Aggregate::Max => return,
    }
    let is_leaf = |at: usize| trees.nodes[at].low == at as u32;
    let whole = |at: usize| {
        let own = trees.leaf(at as u32);
        own.len() == trees.targets && own.iter().enumerate().all(|(k, (target, _))| *target as usize == k)
    };
    if let Some(of_tree) = sole_targets(trees) {
        for at in 0..trees.nodes.len() {
            if let &[(_, value)] = trees.leaf(at as u32) {
                trees.nodes[at].threshold = value;
            }
        }
        let mut reached = vec![false; trees.targets];
        of_tree.iter().for_each(|&target| reached[target as usize] = true);
        trees.leaves = Leaves::One { of_tree, reached };
    } else if (0..trees.nodes.len()).filter(|&at| is_leaf(at)).all(whole) {
        trees.leaves = Leaves::Row;
    }
}

/// By tree the target that each of its leaves holds one value for; `None` if a leaf holds others.
fn sole_targets(trees: &Trees) -> Option<Vec<u32>> {
    let mut of_tree = Vec::with_capacity(trees.roots.len());
    for &root in &trees.roots {
        let mut sole = None;
        for at in leaves(trees, root) {
            let &[(target, _)] = trees.leaf(at) else { return None };
            if *sole.get_or_insert(target) != target {
                return None;
            }
        }
        of_tree.push(sole?);
    }
    Some(of_tree)
}

/// The leaves below `root`, each once: both nodes of an equality test lead to where it does not hold.
fn leaves(trees: &Trees, root: u32) -> impl Iterator<Item = u32> {
    let mut open = vec![root];
    std::iter::from_fn(move || {
        loop {
            let at = open.pop()?;
            let node = trees.nodes[at as usize];
            if node.low == at {
                return Some(at);
            }
            open.push(node.low);
            let low = trees.nodes[node.low as usize];
            if low.low != node.high || node.low == low.low {
                open.push(node.high);
            }
        }
    })
}

fn flag(feature: u32, missing_low: bool) -> u32 {
    if missing_low { feature | MISSING_LOW } else { feature }
}

/// The largest f32 below `t`. Nothing lies below minus infinity: then the result is not a number, which no `<=`
/// holds for.
fn pred(t: f32) -> f32 {
    if t == f32::NEG_INFINITY { f32::NAN } else { t.next_down() }
}

/// The one parentless node of each tree.
fn roots(raw: &[RawNode], order: &[usize], parents: &[u8]) -> Result<Vec<u32>, String> {
    let mut roots = Vec::new();
    let mut start = 0;
    for tree in order.chunk_by(|&a, &b| raw[a].tree == raw[b].tree) {
        let mut free = (start..start + tree.len()).filter(|&place| parents[place] == 0);
        let number = raw[tree[0]].tree;
        match (free.next(), free.next()) {
            (Some(root), None) => roots.push(root as u32),
            (None, _) => return Err(format!("tree {number} goes round in a circle")),
            (Some(_), Some(_)) => return Err(format!("tree {number} has two roots")),
        }
        start += tree.len();
    }
    Ok(roots)
}

/// Checks that every node hangs below a root. With one parent a node at most, no walk can then go in a circle.
fn reach(nodes: &[Node], roots: &[u32]) -> Result<(), String> {
    let mut open = roots.to_vec();
    let mut seen = 0;
    while let Some(here) = open.pop() {
        seen += 1;
        let node = nodes[here as usize];
        if node.low != here {
            open.extend([node.low, node.high]);
        }
    }
    if seen == nodes.len() {
        Ok(())
    } else {
        Err(format!("{} nodes go round in a circle", nodes.len() - seen))
    }
}

/// By node the start of its values, `u32::MAX` where it has none, and the values in node order.
type Values = (Vec<u32>, Vec<(u32, f32)>);

fn values(
    raw: &[RawNode],
    order: &[usize],
    raw_values: &[RawValue],
    targets: usize,
    place: impl Fn(i64, i64) -> Option<usize>,
) -> Result<Values, String> {
    let mut placed = Vec::with_capacity(raw_values.len());
    for value in raw_values {
        let at = place(value.tree, value.node).ok_or_else(|| {
            format!("a leaf value belongs to node {} of tree {}, which there is not", value.node, value.tree)
        })?;
        if raw[order[at]].mode != Mode::Leaf {
            return Err(format!("node {} of tree {} branches and has a leaf value", value.node, value.tree));
        }
        let target = u32::try_from(value.target)
            .ok()
            .filter(|&t| (t as usize) < targets)
            .ok_or_else(|| format!("a leaf value is for class or target {} of {targets}", value.target))?;
        if !value.value.is_finite() {
            return Err(format!(
                "node {} of tree {} holds a value that is not finite",
                value.node, value.tree
            ));
        }
        placed.push((at, target, placed.len(), value.value));
    }
    // In the order of the file where a leaf has several for one target: sums of floats depend on it.
    placed.sort_unstable_by_key(|&(at, target, place, _)| (at, target, place));
    let mut first = vec![u32::MAX; raw.len()];
    for (i, &(at, ..)) in placed.iter().enumerate().rev() {
        first[at] = i as u32;
    }
    Ok((first, placed.into_iter().map(|(_, target, _, value)| (target, value)).collect()))
}
