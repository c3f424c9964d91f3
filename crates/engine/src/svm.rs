//! `ai.onnx.ml` `SVMClassifier` and `SVMRegressor`, as LIBSVM makes them and ONNX Runtime answers them.

use std::sync::Arc;

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use crate::EngineError;
use crate::attributes::Attributes;
use crate::check::{malformed, node_name, unsupported};
use crate::rows::{self, RowWork, best};

/// Most classes: a machine for each pair of them is evaluated for every row.
const CLASSES_MAX: usize = 1 << 10;
/// Rounds in which the probabilities of pairs are brought together (LIBSVM: the same).
const ROUNDS_MAX: usize = 100;
/// Probabilities of a pair keep away from 0 and 1 by this (LIBSVM: the same).
const PAIR_MIN: f32 = 1e-7;

/// Registers both operators.
pub(crate) fn register(ops: &mut OnnxOpRegister) {
    ops.insert("SVMClassifier", classifier);
    ops.insert("SVMRegressor", regressor);
}

type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

fn classifier(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    Ok((rows::op("SVM", Arc::new(Classifier::read(node)?)), vec![]))
}

fn regressor(_: &ParsingContext<'_>, node: &NodeProto) -> Built {
    Ok((rows::op("SVM", Arc::new(Regressor::read(node)?)), vec![]))
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kernel {
    Linear,
    Polynomial { gamma: f32, add: f32, degree: f32 },
    Radial { gamma: f32 },
    Sigmoid { gamma: f32, add: f32 },
}

/// Support vectors and what they are compared with.
#[derive(Debug)]
struct Vectors {
    kernel: Kernel,
    columns: usize,
    all: Vec<f32>,
}

impl Vectors {
    /// Reads `count` vectors.
    fn read(node: &NodeProto, count: usize) -> Result<Self, EngineError> {
        let all = Attributes { node };
        let bad = |what: String| malformed(&format!("{:?}: {what}", node_name(node)));
        let vectors = all.floats("support_vectors");
        if count == 0 || vectors.is_empty() || !vectors.len().is_multiple_of(count) {
            return Err(bad(format!("{} values are not {count} support vectors", vectors.len())));
        }
        let [gamma, add, degree] = match all.floats("kernel_params") {
            [] => [0.0, 0.0, 0.0],
            [gamma, add, degree] => [*gamma, *add, *degree],
            other => return Err(bad(format!("{} kernel parameters", other.len()))),
        };
        let kernel = match all.text("kernel_type", "LINEAR").as_str() {
            "LINEAR" => Kernel::Linear,
            "POLY" => Kernel::Polynomial { gamma, add, degree },
            "RBF" => Kernel::Radial { gamma },
            "SIGMOID" => Kernel::Sigmoid { gamma, add },
            other => {
                return Err(unsupported(
                    &format!("the kernel {other:?}"),
                    node_name(node),
                    "use LINEAR, POLY, RBF or SIGMOID",
                ));
            }
        };
        if all.text("post_transform", "NONE") != "NONE" {
            return Err(unsupported("a post transform of an SVM", node_name(node), "use NONE"));
        }
        Ok(Self { kernel, columns: vectors.len() / count, all: vectors.to_vec() })
    }

    /// The kernel of `x` and each vector.
    fn compare(&self, x: &[f32]) -> Vec<f32> {
        let each = |v: &[f32]| {
            let dot = || x.iter().zip(v).map(|(a, b)| a * b).sum::<f32>();
            match self.kernel {
                Kernel::Linear => dot(),
                Kernel::Polynomial { gamma, add, degree } => power(gamma * dot() + add, degree),
                Kernel::Radial { gamma } => {
                    libm::expf(-gamma * x.iter().zip(v).map(|(a, b)| (a - b) * (a - b)).sum::<f32>())
                }
                Kernel::Sigmoid { gamma, add } => libm::tanhf(gamma * dot() + add),
            }
        };
        self.all.chunks_exact(self.columns).map(each).collect()
    }
}

/// Largest degree that is multiplied out.
const PRODUCTS_MAX: f32 = 16.0;

/// `base` to the power of `degree`. Whole degrees, which are what is trained, are a few products, which in double precision
/// are as exact.
fn power(base: f32, degree: f32) -> f32 {
    if degree.fract() == 0.0 && (0.0..=PRODUCTS_MAX).contains(&degree) {
        return (0..degree as u32).fold(1.0, |power, _| power * f64::from(base)) as f32;
    }
    libm::powf(base, degree)
}

/// `sum(a * b)`, in double precision, as ONNX Runtime sums them.
fn weigh(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
}

#[derive(Debug)]
struct Regressor {
    vectors: Vectors,
    weights: Vec<f32>,
    rho: f32,
    /// Answers 1 or -1 for inside and outside.
    one_class: bool,
}

impl Regressor {
    fn read(node: &NodeProto) -> Result<Self, EngineError> {
        let all = Attributes { node };
        let weights = all.floats("coefficients");
        let count = usize::try_from(all.int("n_supports", 0)).unwrap_or(0);
        if count == 0 {
            return Err(unsupported("an SVM without vectors", node_name(node), "use LinearRegressor"));
        }
        let &[rho] = all.same("rho", all.floats("rho"), 1)? else {
            return Err(malformed(&format!("{:?} has no rho", node_name(node))));
        };
        Ok(Self {
            vectors: Vectors::read(node, count)?,
            weights: all.same("coefficients", weights, count)?.to_vec(),
            rho,
            one_class: all.int("one_class", 0) != 0,
        })
    }
}

impl RowWork for Regressor {
    fn labels(&self) -> bool {
        false
    }

    fn width(&self) -> usize {
        1
    }

    fn features(&self) -> (usize, bool) {
        (self.vectors.columns, false)
    }

    fn narrow(&self) -> Option<fn(f64) -> f32> {
        Some(rows::nearest)
    }

    fn eval(&self, rows: &[f32], columns: usize) -> (Vec<i64>, Vec<f32>) {
        let each = |x: &[f32]| {
            let y = (weigh(&self.weights, &self.vectors.compare(x)) + f64::from(self.rho)) as f32;
            match self.one_class {
                true if y > 0.0 => 1.0,
                true => -1.0,
                false => y,
            }
        };
        (Vec::new(), rows.chunks_exact(columns.max(1)).map(each).collect())
    }
}

/// A machine for each pair of classes; each votes for one of the two.
#[derive(Debug)]
struct Classifier {
    vectors: Vectors,
    labels: Vec<i64>,
    /// By class: where its vectors begin; one more for the end.
    first: Vec<usize>,
    /// `classes - 1` rows of one weight for each vector.
    weights: Vec<f32>,
    rho: Vec<f32>,
    /// By pair: slope and offset of the logistic curve from decisions to probabilities (Platt); empty if there are none.
    curve: Vec<(f32, f32)>,
}

impl Classifier {
    fn read(node: &NodeProto) -> Result<Self, EngineError> {
        let all = Attributes { node };
        let bad = |what: String| malformed(&format!("{:?}: {what}", node_name(node)));
        let labels = all.ints("classlabels_ints");
        let classes = labels.len();
        if !(2..=CLASSES_MAX).contains(&classes) {
            return Err(bad(format!("{classes} classes")));
        }
        let counts = all.ints("vectors_per_class");
        if counts.is_empty() {
            return Err(unsupported("an SVM without vectors", node_name(node), "use LinearClassifier"));
        }
        let mut first = vec![0_usize];
        for &count in all.same("vectors_per_class", counts, classes)? {
            let count = usize::try_from(count).map_err(|_| bad(format!("{count} vectors of a class")))?;
            let end = first.last().copied().unwrap_or(0).checked_add(count);
            first.push(end.ok_or_else(|| bad("too many vectors".to_owned()))?);
        }
        let count = first[classes];
        let vectors = Vectors::read(node, count)?;
        let pairs = classes * (classes - 1) / 2;
        // The vectors were found in the file, so the product does not overflow.
        let weights = all.same("coefficients", all.floats("coefficients"), (classes - 1) * count)?;
        let (a, b) = (all.floats("prob_a"), all.floats("prob_b"));
        let curve = if a.is_empty() && b.is_empty() {
            Vec::new()
        } else {
            let (a, b) = (all.same("prob_a", a, pairs)?, all.same("prob_b", b, pairs)?);
            a.iter().copied().zip(b.iter().copied()).collect()
        };
        Ok(Self {
            vectors,
            labels: labels.to_vec(),
            first,
            weights: weights.to_vec(),
            rho: all.same("rho", all.floats("rho"), pairs)?.to_vec(),
            curve,
        })
    }

    /// Decisions of all pairs, and the class with the most votes.
    fn decide(&self, x: &[f32]) -> (usize, Vec<f32>) {
        let kernels = self.vectors.compare(x);
        let (classes, count) = (self.labels.len(), kernels.len());
        let mut votes = vec![0_u32; classes];
        let mut decisions = Vec::with_capacity(self.rho.len());
        for i in 0..classes {
            for j in i + 1..classes {
                let (of_i, of_j) = (self.first[i]..self.first[i + 1], self.first[j]..self.first[j + 1]);
                let (row_i, row_j) = (&self.weights[(j - 1) * count..], &self.weights[i * count..]);
                let sum = weigh(&row_i[of_i.clone()], &kernels[of_i])
                    + weigh(&row_j[of_j.clone()], &kernels[of_j])
                    + f64::from(self.rho[decisions.len()]);
                decisions.push(sum as f32);
                votes[if sum > 0.0 { i } else { j }] += 1;
            }
        }
        (best(&votes), decisions)
    }

    /// Probabilities of the classes from those of the pairs: Wu, Lin and Weng, "Probability estimates for multi-class
    /// classification by pairwise coupling" (JMLR 5, 2004), algorithm 2, with LIBSVM's stopping rule.
    fn couple(&self, decisions: &[f32]) -> Vec<f32> {
        let k = self.labels.len();
        let mut r = vec![0.0_f32; k * k];
        let mut pairs = decisions.iter().zip(&self.curve);
        for i in 0..k {
            for j in i + 1..k {
                let Some((decision, (a, b))) = pairs.next() else { continue };
                let z = decision * a + b;
                let p = 1.0 / (1.0 + libm::expf(-z.abs()));
                let p = if z < 0.0 { p } else { 1.0 - p };
                let p = p.clamp(PAIR_MIN, 1.0 - PAIR_MIN);
                (r[i * k + j], r[j * k + i]) = (p, 1.0 - p);
            }
        }
        let mut q = vec![0.0_f32; k * k];
        for i in 0..k {
            for j in (0..k).filter(|&j| j != i) {
                q[i * k + i] += r[j * k + i] * r[j * k + i];
                q[i * k + j] = -r[j * k + i] * r[i * k + j];
            }
        }
        let mut p = vec![1.0 / k as f32; k];
        for _ in 0..ROUNDS_MAX {
            let mut qp: Vec<f32> =
                q.chunks_exact(k).map(|row| row.iter().zip(&p).map(|(q, p)| q * p).sum()).collect();
            let mut pqp: f32 = p.iter().zip(&qp).map(|(p, qp)| p * qp).sum();
            if qp.iter().all(|qp| (qp - pqp).abs() < 0.005 / k as f32) {
                break;
            }
            for i in 0..k {
                let step = (pqp - qp[i]) / q[i * k + i];
                p[i] += step;
                pqp = (pqp + step * (step * q[i * k + i] + 2.0 * qp[i])) / (1.0 + step) / (1.0 + step);
                for j in 0..k {
                    qp[j] = (qp[j] + step * q[i * k + j]) / (1.0 + step);
                    p[j] /= 1.0 + step;
                }
            }
        }
        p
    }
}

impl RowWork for Classifier {
    fn labels(&self) -> bool {
        true
    }

    /// Probabilities by class, else decisions by pair; the one decision of two classes comes with its opposite.
    fn width(&self) -> usize {
        if self.curve.is_empty() { self.rho.len().max(2) } else { self.labels.len() }
    }

    fn features(&self) -> (usize, bool) {
        (self.vectors.columns, false)
    }

    fn narrow(&self) -> Option<fn(f64) -> f32> {
        Some(rows::nearest)
    }

    fn eval(&self, rows: &[f32], columns: usize) -> (Vec<i64>, Vec<f32>) {
        let (mut labels, mut scores) = (Vec::new(), Vec::new());
        for x in rows.chunks_exact(columns.max(1)) {
            let (class, decisions) = self.decide(x);
            labels.push(self.labels[class]);
            match decisions.as_slice() {
                _ if !self.curve.is_empty() => scores.extend(self.couple(&decisions)),
                [one] => scores.extend([-one, *one]),
                many => scores.extend(many),
            }
        }
        (labels, scores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_power_is_that_of_the_library_to_the_last_bit_but_one() {
        let bases = (-400..400).map(|i| i as f32 * 0.037).chain([1e-20, 1e20, -1e20]);
        for base in bases {
            for degree in [0.0, 1.0, 2.0, 3.0, 4.0, 16.0, 17.0, 0.5, -2.0] {
                let (got, want) = (power(base, degree), libm::powf(base, degree));
                let same = got == want || (got.is_nan() && want.is_nan());
                assert!(same || (got - want).abs() <= want.abs() * f32::EPSILON, "{base} to the {degree}");
            }
        }
    }
}
