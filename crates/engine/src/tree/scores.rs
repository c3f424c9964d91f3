//! From sums over trees to scores, as ONNX Runtime does it where the specification is vague.

use super::Forest;
use super::choice::Choice;

/// What is done to a row of scores at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PostTransform {
    None,
    Softmax,
    Logistic,
    /// Softmax over the scores that are not zero.
    SoftmaxZero,
}

/// Values this near to zero count as zero in [`PostTransform::SoftmaxZero`].
const ZERO: f32 = 1e-7;

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

/// How a classifier's sums become columns and labels.
#[derive(Debug)]
pub(super) struct Classes {
    pub(super) layout: Layout,
    /// The base values that take part.
    pub(super) base: Vec<f32>,
    pub(super) choice: Choice,
}

impl Classes {
    /// What ONNX Runtime 1.32 answers, case by case; else why it is not followed, and what to do instead.
    pub(super) fn of(
        forest: &Forest,
        labels: &[i64],
        base: &[f32],
    ) -> Result<Self, (&'static str, &'static str)> {
        match labels.len() {
            2 => {}
            0 | 1 => return Err(("a classifier of one class", "train with two classes or more")),
            _ if base.is_empty() && !forest.always_speaks() => return Err(SILENT),
            _ => {
                let choice = if base.is_empty() { Choice::LargestReached } else { Choice::Largest };
                return Ok(Self { layout: Layout::Targets, base: base.to_vec(), choice });
            }
        }
        let non_negative = forest.is_non_negative();
        let sole = forest.only_target();
        let all: &[u32] = sole.as_ref().map_or(&[0, 1], std::slice::from_ref);
        let spoken = all.iter().all(|&target| forest.always_speaks_of(target));
        let (layout, base, choice) = match (sole, base) {
            (Some(1) | None, [_, _]) => {
                return Err((
                    "two base values where the second of two classes has scores",
                    "export one base value, or none",
                ));
            }
            _ if !spoken => return Err(SILENT),
            (Some(0), [first, _]) => {
                // The second class has no score, so its base value is left out.
                (Layout::Targets, vec![*first], Choice::of_one(0, non_negative))
            }
            (Some(0), base) => {
                let layout = if non_negative { Layout::OneProbability } else { Layout::OneMargin };
                (layout, base.to_vec(), Choice::of_one(0, non_negative))
            }
            // The first class has no score, so its base value is left out.
            (Some(_), _) => (Layout::Targets, Vec::new(), Choice::of_one(1, non_negative)),
            // The label does not look at the first class, and is no class of other labels.
            (None, base) if labels == [0, 1] => {
                (Layout::Targets, base.to_vec(), Choice::Above { column: 1, threshold: 0.0 })
            }
            (None, _) => {
                return Err((
                    "scores for both of two classes, where ONNX Runtime answers 0 or 1 whatever the labels are",
                    "export scores for one of the classes, or the labels 0 and 1",
                ));
            }
        };
        Ok(Self { layout, base, choice })
    }
}

/// Answers of ONNX Runtime that depend on whether a leaf said anything at all.
const SILENT: (&str, &str) =
    ("rows that may reach no score of a class", "give every leaf a value for each class that has scores");

/// An ensemble with what follows it.
#[derive(Debug, Clone)]
pub(crate) struct Scores {
    pub(super) forest: Forest,
    /// Empty, one value a target, or a single one for two classes.
    pub(super) base: Vec<f32>,
    pub(super) post: PostTransform,
    pub(super) layout: Layout,
    /// How a classifier chooses; a regressor does not.
    pub(super) choice: Option<Choice>,
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

    /// Classes of `rows`, of a classifier, and their scores, row after row.
    pub(crate) fn eval(&self, rows: &[f32], columns: usize) -> (Vec<usize>, Vec<f32>) {
        let width = self.width();
        let count = rows.len() / columns.max(1);
        let mut out = vec![0.0; count * width];
        let mut reached = vec![false; count * width];
        self.forest.trees.eval(rows, columns, &mut out, &mut reached);
        let mut classes = Vec::with_capacity(if self.choice.is_some() { count } else { 0 });
        for (row, reached) in out.chunks_exact_mut(width).zip(reached.chunks_exact(width)) {
            // A single base value of two classes belongs to the first.
            for (x, base) in row.iter_mut().zip(&self.base) {
                *x += base;
            }
            classes.extend(self.choice.map(|choice| choice.class(row, reached)));
            match self.layout {
                Layout::Targets => transform(self.post, row),
                Layout::OneProbability | Layout::OneMargin => self.spread_one(row),
            }
        }
        (classes, out)
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

    /// Only the first column holds a sum, and it speaks for the second class.
    fn spread_one(&self, row: &mut [f32]) {
        let s = row[0];
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
        PostTransform::Softmax => softmax(row, |x, most| libm::expf(x - most)),
        PostTransform::SoftmaxZero => {
            softmax(row, |x, most| if x.abs() > ZERO { libm::expf(x - most) } else { x * libm::expf(-most) })
        }
    }
}

/// Written so that neither branch overflows; libm, so that the bits are the same on every device.
fn logistic(x: f32) -> f32 {
    let v = 1.0 / (1.0 + libm::expf(-x.abs()));
    if x < 0.0 { 1.0 - v } else { v }
}

/// The shares of `part` of each value and the largest; no numbers where all parts are zero.
fn softmax(row: &mut [f32], part: impl Fn(f32, f32) -> f32) {
    let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = part(*x, most);
        sum += *x;
    }
    row.iter_mut().for_each(|x| *x /= sum);
}
