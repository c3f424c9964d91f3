//! From sums over trees to scores, as ONNX Runtime does it where the specification is vague.

use super::Forest;

/// What is done to a row of scores at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostTransform {
    None,
    Softmax,
    Logistic,
    /// Softmax over the scores that are not zero.
    SoftmaxZero,
}

/// How sums become columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// One column a target or class.
    Targets,
    /// Two classes, scores for one of them only, none negative: they are probabilities, and the first column is
    /// the complement.
    OneProbability,
    /// Two classes, scores for one of them only: a margin, and the first column is its negative.
    OneMargin,
}

impl Layout {
    /// The layout of a classifier, and the base values that take part in it: what ONNX Runtime 1.31 answers,
    /// case by case. `None` where it leaves the trees out of the answer.
    pub(super) fn of_classifier(forest: &Forest, base: &[f32]) -> Option<(Self, Vec<f32>)> {
        if forest.targets() != 2 {
            return Some((Self::Targets, base.to_vec()));
        }
        Some(match (forest.only_target(), base) {
            (Some(0), [] | [_]) if forest.is_non_negative() => (Self::OneProbability, base.to_vec()),
            (Some(0), [] | [_]) => (Self::OneMargin, base.to_vec()),
            // The second class has no score, so its base value is left out.
            (Some(0), [first, ..]) => (Self::Targets, vec![*first]),
            // The first class has no score.
            (Some(_), [] | [_]) => (Self::Targets, Vec::new()),
            (None, [] | [_]) => (Self::Targets, base.to_vec()),
            (Some(_) | None, _) => return None,
        })
    }
}

/// An ensemble with what follows it.
#[derive(Debug, Clone)]
pub(crate) struct Scores {
    pub(super) forest: Forest,
    /// Empty, one value a target, or a single one for two classes.
    pub(super) base: Vec<f32>,
    pub(super) post: PostTransform,
    pub(super) layout: Layout,
}

impl Scores {
    /// Least number of columns a row must have.
    pub(crate) fn features(&self) -> usize {
        self.forest.features()
    }

    /// Whether all tests compare with thresholds as the file has them, by `<=` or its opposite.
    pub(crate) fn only_up_to(&self) -> bool {
        self.forest.only_up_to()
    }

    /// Columns of the scores.
    pub(crate) fn width(&self) -> usize {
        self.forest.targets()
    }

    /// Scores of `rows`, row after row.
    pub(crate) fn eval(&self, rows: &[f32], columns: usize) -> Vec<f32> {
        let width = self.width();
        let count = rows.len() / columns.max(1);
        let mut out = vec![0.0; count * width];
        let mut reached = vec![false; count * width];
        self.forest.trees.eval(rows, columns, &mut out, &mut reached);
        for row in out.chunks_exact_mut(width) {
            match self.layout {
                Layout::Targets => self.finish(row),
                Layout::OneProbability | Layout::OneMargin => self.finish_one(row),
            }
        }
        out
    }

    /// Whether the scores are made from a sum over the trees, so that features have shares in it.
    pub(crate) fn is_sum(&self) -> bool {
        self.forest.is_sum()
    }

    /// Whether the scores are the margins, with no transform behind them.
    pub(crate) fn are_margins(&self) -> bool {
        match self.layout {
            Layout::Targets => self.post == PostTransform::None,
            Layout::OneProbability | Layout::OneMargin => self.post != PostTransform::Logistic,
        }
    }

    /// The sums over the trees as columns, with the base values and before the transform.
    pub(crate) fn margins(&self, row: &[f32]) -> Vec<f64> {
        let mut sums = self.forest.sums(row);
        match self.layout {
            Layout::Targets => {
                for (x, base) in sums.iter_mut().zip(&self.base) {
                    *x += f64::from(*base);
                }
            }
            Layout::OneProbability | Layout::OneMargin => {
                let s = sums[0] + f64::from(self.base.first().copied().unwrap_or(0.0));
                let other = if self.is_complement() { 1.0 - s } else { -s };
                sums.copy_from_slice(&[other, s]);
            }
        }
        sums
    }

    /// Adds the Shapley values of the features of `x` against `background`, target by target; see [`Scores::spread`].
    pub(crate) fn contributions(&self, x: &[f32], background: &[f32], out: &mut [f64]) {
        self.forest.contributions(x, background, out);
    }

    /// Contributions by target as contributions by column.
    pub(crate) fn spread(&self, contributions: &mut [f64], columns: usize) {
        match self.layout {
            Layout::Targets => {}
            Layout::OneProbability | Layout::OneMargin => {
                let (first, second) = contributions.split_at_mut(columns);
                for (of_first, of_second) in first.iter_mut().zip(second) {
                    (*of_first, *of_second) = (-*of_first, *of_first);
                }
            }
        }
    }

    /// Whether the first of two columns is one minus the second.
    fn is_complement(&self) -> bool {
        self.layout == Layout::OneProbability && self.post != PostTransform::Logistic
    }

    fn finish(&self, row: &mut [f32]) {
        // A single base value of two classes belongs to the first.
        for (x, base) in row.iter_mut().zip(&self.base) {
            *x += base;
        }
        transform(self.post, row);
    }

    /// Only the first column holds a sum, and it speaks for the second class.
    fn finish_one(&self, row: &mut [f32]) {
        let s = row[0] + self.base.first().copied().unwrap_or(0.0);
        (row[0], row[1]) = match (self.layout, self.post) {
            (_, PostTransform::Logistic) => (logistic(-s), logistic(s)),
            (Layout::OneProbability | Layout::Targets, _) => (1.0 - s, s),
            (
                Layout::OneMargin,
                PostTransform::None | PostTransform::Softmax | PostTransform::SoftmaxZero,
            ) => (-s, s),
        };
    }
}

fn transform(post: PostTransform, row: &mut [f32]) {
    match post {
        PostTransform::None => {}
        PostTransform::Logistic => row.iter_mut().for_each(|x| *x = logistic(*x)),
        PostTransform::Softmax => softmax(row, |_| true),
        PostTransform::SoftmaxZero => softmax(row, |x| x.abs() > f32::EPSILON),
    }
}

/// Written so that neither branch overflows; libm, so that the bits are the same on every device.
fn logistic(x: f32) -> f32 {
    let v = 1.0 / (1.0 + libm::expf(-x.abs()));
    if x < 0.0 { 1.0 - v } else { v }
}

fn softmax(row: &mut [f32], counts: impl Fn(f32) -> bool) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = if counts(*x) { libm::expf(*x - most) } else { 0.0 };
        sum += *x;
    }
    if sum > 0.0 {
        row.iter_mut().for_each(|x| *x /= sum);
    }
}
