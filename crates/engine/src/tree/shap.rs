//! Shapley values of a tree ensemble, from its nodes (interventional TreeSHAP).
//!
//! For one background row a leaf is reached by a mixture of both rows if and only if certain features come from the
//! explained row and certain others from the background row. Such an indicator has Shapley values in closed form, so a
//! walk over the leaves that any mixture can reach adds them up exactly.

use dunlin_kernels::forest::{Aggregate, MISSING_LOW};

use super::forest::Forest;

/// The row a feature comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Explained,
    Background,
}

/// What is still to be done on a walk; a list instead of the call stack, as trees of a file may be chains of millions.
#[derive(Debug)]
enum Step {
    At(u32),
    Fix(u32, Side),
    Free(u32),
}

impl Forest {
    /// Whether the answer is a sum over the trees.
    pub(super) fn is_sum(&self) -> bool {
        match self.trees.aggregate {
            Aggregate::Sum | Aggregate::Average => true,
            Aggregate::Min | Aggregate::Max => false,
        }
    }

    /// The part of each tree in the answer.
    fn share(&self) -> f64 {
        match self.trees.aggregate {
            Aggregate::Average => 1.0 / self.trees.roots.len() as f64,
            Aggregate::Sum | Aggregate::Min | Aggregate::Max => 1.0,
        }
    }

    /// The sums over the trees by target, in double precision.
    pub(super) fn sums(&self, x: &[f32]) -> Vec<f64> {
        let mut sums = vec![0.0; self.trees.targets];
        for &root in &self.trees.roots {
            let mut at = root;
            while !self.is_leaf(at) {
                at = self.next(at, x);
            }
            for &(target, value) in self.trees.leaf(at) {
                sums[target as usize] += f64::from(value) * self.share();
            }
        }
        sums
    }

    /// Adds the values of the features of `x` against `background`, target by target.
    pub(super) fn contributions(&self, x: &[f32], background: &[f32], out: &mut [f64]) {
        let mut walk = Walk { side: vec![None; x.len()], fixed: Vec::new(), explained: 0 };
        let mut open = Vec::new();
        for &root in &self.trees.roots {
            open.push(Step::At(root));
            while let Some(step) = open.pop() {
                match step {
                    Step::Fix(feature, side) => walk.fix(feature, side),
                    Step::Free(feature) => walk.free(feature),
                    Step::At(at) if self.is_leaf(at) => self.credit(at, &walk, x.len(), out),
                    Step::At(at) => {
                        let feature = self.trees.nodes[at as usize].feature & !MISSING_LOW;
                        let (of_x, of_background) = (self.next(at, x), self.next(at, background));
                        if of_x == of_background {
                            open.push(Step::At(of_x));
                            continue;
                        }
                        match walk.side[feature as usize] {
                            Some(Side::Explained) => open.push(Step::At(of_x)),
                            Some(Side::Background) => open.push(Step::At(of_background)),
                            None => {
                                for (side, to) in [(Side::Background, of_background), (Side::Explained, of_x)]
                                {
                                    open.extend([
                                        Step::Free(feature),
                                        Step::At(to),
                                        Step::Fix(feature, side),
                                    ]);
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Credits a leaf's values to the features that decide whether it is reached.
    fn credit(&self, leaf: u32, walk: &Walk, columns: usize, out: &mut [f64]) {
        let (explained, background) = (walk.explained, walk.fixed.len() - walk.explained);
        let gain = if explained > 0 { weight(explained - 1, background) } else { 0.0 };
        let loss = if background > 0 { weight(explained, background - 1) } else { 0.0 };
        for &(target, value) in self.trees.leaf(leaf) {
            let value = f64::from(value) * self.share();
            for &(feature, side) in &walk.fixed {
                let part = match side {
                    Side::Explained => gain,
                    Side::Background => -loss,
                };
                out[target as usize * columns + feature as usize] += value * part;
            }
        }
    }
}

/// The features whose row is settled on the way to a node.
struct Walk {
    side: Vec<Option<Side>>,
    fixed: Vec<(u32, Side)>,
    explained: usize,
}

impl Walk {
    fn fix(&mut self, feature: u32, side: Side) {
        self.side[feature as usize] = Some(side);
        self.fixed.push((feature, side));
        self.explained += usize::from(side == Side::Explained);
    }

    fn free(&mut self, feature: u32) {
        self.side[feature as usize] = None;
        if let Some((_, side)) = self.fixed.pop() {
            self.explained -= usize::from(side == Side::Explained);
        }
    }
}

/// `a! b! / (a + b + 1)!`: the share of orders in which one feature comes after `a` and before `b` certain others.
fn weight(a: usize, b: usize) -> f64 {
    let (few, many) = (a.min(b), a.max(b));
    let choices = (1..=few).fold(1.0, |product, i| product * (many + i) as f64 / i as f64);
    1.0 / (choices * (a + b + 1) as f64)
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn weights_are_the_shares_of_orders() {
        let factorial = |n: usize| (1..=n).map(|i| i as f64).product::<f64>();
        for a in 0..8 {
            for b in 0..8 {
                let want = factorial(a) * factorial(b) / factorial(a + b + 1);
                assert!((weight(a, b) - want).abs() < 1e-15, "{a} {b}");
            }
        }
    }
}
