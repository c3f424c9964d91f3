//! The walk of rows through a tree ensemble.

/// Walks that go on in step. Eight independent chains of loads hide the latency of one another on every core
/// this runs on.
const LANES: usize = 8;
/// Marks a node whose missing value takes the `low` child.
pub const MISSING_LOW: u32 = 1 << 31;

/// `x[feature] <= threshold` leads to `low`, all else to `high`; a leaf leads to itself.
#[derive(Debug, Clone, Copy)]
pub struct Node {
    /// What is compared with. Of a leaf under [`Leaves::One`] its value.
    pub threshold: f32,
    /// The feature, with [`MISSING_LOW`] in the top bit.
    pub feature: u32,
    /// Index of the next node where the comparison holds.
    pub low: u32,
    /// Index of the next node where it does not.
    pub high: u32,
}

/// How the values of the leaves that a row reaches are put together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Aggregate {
    /// Their sum.
    Sum,
    /// Their sum over the number of trees.
    Average,
    /// The smallest.
    Min,
    /// The largest.
    Max,
}

/// What the leaves hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Leaves {
    /// One value each, for the same target in all leaves of a tree. The value is in the node.
    One {
        /// By tree: its target.
        of_tree: Vec<u32>,
        /// By target: whether any tree speaks about it.
        reached: Vec<bool>,
    },
    /// A value for each target, in order: they can be added as a row.
    Row,
    /// Any values.
    Any,
}

/// An ensemble whose indices are all in range, and whose trees are trees: whoever builds it has seen to that, or a walk
/// panics or does not end.
#[derive(Debug, Clone)]
pub struct Trees {
    /// All nodes of all trees.
    pub nodes: Vec<Node>,
    /// By tree: its root.
    pub roots: Vec<u32>,
    /// By node, and one more: where its values begin in `values`; only a leaf has any.
    pub first: Vec<u32>,
    /// `(target, value)` of all leaves, leaf after leaf.
    pub values: Vec<(u32, f32)>,
    /// What the leaves hold. [`Leaves::One`] and [`Leaves::Row`] are for sums and averages alone.
    pub leaves: Leaves,
    /// How values are put together.
    pub aggregate: Aggregate,
    /// Number of classes or targets.
    pub targets: usize,
    /// Whether any node has [`MISSING_LOW`].
    pub missing_low: bool,
}

impl Trees {
    /// Adds up the leaves of `rows` (`columns` values each) into `out`, `targets` values a row, which starts
    /// out as zeros. `reached` says for each of them whether any leaf spoke about it. The result of a row does
    /// not depend on what rows it comes with.
    pub fn eval(&self, rows: &[f32], columns: usize, out: &mut [f32], reached: &mut [bool]) {
        match &self.leaves {
            Leaves::One { reached: by_any, .. } => {
                reached.chunks_exact_mut(self.targets).for_each(|row| row.copy_from_slice(by_any));
            }
            Leaves::Row => reached.fill(true),
            Leaves::Any => reached.fill(false),
        }
        if self.missing_low {
            self.walk::<true>(rows, columns, out, reached);
        } else {
            self.walk::<false>(rows, columns, out, reached);
        }
        if self.aggregate == Aggregate::Average {
            out.iter_mut().for_each(|x| *x /= self.roots.len() as f32);
        }
    }

    fn walk<const MISSING: bool>(&self, rows: &[f32], columns: usize, out: &mut [f32], reached: &mut [bool]) {
        let count = rows.len() / columns.max(1);
        // Row blocks outside, trees inside: a block's rows and scores stay in the first-level cache.
        let blocks = count / LANES * LANES;
        for block in (0..blocks).step_by(LANES) {
            let lanes: [&[f32]; LANES] =
                std::array::from_fn(|lane| &rows[(block + lane) * columns..][..columns]);
            for (tree, &root) in self.roots.iter().enumerate() {
                let leaves = descend::<MISSING, LANES>(&self.nodes, [root; LANES], lanes);
                for (lane, leaf) in leaves.into_iter().enumerate() {
                    self.collect(tree, leaf, block + lane, out, reached);
                }
            }
        }
        for row in blocks..count {
            self.walk_row::<MISSING>(&rows[row * columns..][..columns], row, out, reached);
        }
    }

    /// One row: the lanes are trees.
    fn walk_row<const MISSING: bool>(&self, x: &[f32], row: usize, out: &mut [f32], reached: &mut [bool]) {
        let (blocks, rest) = self.roots.as_chunks::<LANES>();
        let mut trees = 0..;
        for roots in blocks {
            let leaves = descend::<MISSING, LANES>(&self.nodes, *roots, [x; LANES]);
            for (leaf, tree) in leaves.into_iter().zip(&mut trees) {
                self.collect(tree, leaf, row, out, reached);
            }
        }
        for (root, tree) in rest.iter().zip(trees) {
            let [leaf] = descend::<MISSING, 1>(&self.nodes, [*root], [x]);
            self.collect(tree, leaf, row, out, reached);
        }
    }

    /// The values of a leaf, by target.
    #[inline]
    pub fn leaf(&self, at: u32) -> &[(u32, f32)] {
        &self.values[self.first[at as usize] as usize..self.first[at as usize + 1] as usize]
    }

    #[inline]
    fn collect(&self, tree: usize, leaf: u32, row: usize, out: &mut [f32], reached: &mut [bool]) {
        let from = row * self.targets;
        let out = &mut out[from..][..self.targets];
        match &self.leaves {
            Leaves::One { of_tree, .. } => out[of_tree[tree] as usize] += self.nodes[leaf as usize].threshold,
            Leaves::Row => {
                for (x, (_, value)) in out.iter_mut().zip(self.leaf(leaf)) {
                    *x += value;
                }
            }
            Leaves::Any => {
                for &(target, value) in self.leaf(leaf) {
                    let (x, seen) = (&mut out[target as usize], &mut reached[from + target as usize]);
                    match self.aggregate {
                        Aggregate::Sum | Aggregate::Average => *x += value,
                        Aggregate::Min if !*seen || value < *x => *x = value,
                        Aggregate::Max if !*seen || value > *x => *x = value,
                        Aggregate::Min | Aggregate::Max => {}
                    }
                    *seen = true;
                }
            }
        }
    }
}

/// Walks every lane down to its leaf. Lanes that have arrived stay where they are until the last one has.
#[inline]
fn descend<const MISSING: bool, const N: usize>(
    nodes: &[Node],
    mut at: [u32; N],
    rows: [&[f32]; N],
) -> [u32; N] {
    loop {
        let mut moved = 0;
        for (here, row) in at.iter_mut().zip(rows) {
            let node = nodes[*here as usize];
            let x = row[(node.feature & !MISSING_LOW) as usize];
            let mut low = x <= node.threshold;
            if MISSING {
                low |= x.is_nan() & (node.feature & MISSING_LOW != 0);
            }
            let next = if low { node.low } else { node.high };
            moved |= next ^ *here;
            *here = next;
        }
        if moved == 0 {
            return at;
        }
    }
}
