//! Multinomial logistic regression with an L2 penalty on the coefficients of standardised features.
use crate::LearnError;
use crate::data::Table;
use crate::lbfgs::minimise;
use crate::onnx::{Graph, OUTPUT, int};
use crate::scaling::Scaling;

use super::{Fit, softmax};

/// Enough for convergence on every table we met; the loss is convex, so more only polishes.
const ITERATIONS: usize = 120;
/// Gradient entries below this move no prediction's sixth digit.
const TOLERANCE: f64 = 1e-6;

#[derive(Debug)]
pub(super) struct Logistic {
    scaling: Scaling,
    classes: usize,
    /// `[features, classes]`, row-major.
    weights: Vec<f32>,
    bias: Vec<f32>,
}

pub(super) fn fit(table: &Table, l2: f64) -> Logistic {
    let scaling = Scaling::of(table);
    let x: Vec<f64> = scaling.apply(&table.x).into_iter().map(f64::from).collect();
    let (width, classes) = (table.width, table.classes);
    // Parameters: weights `[features, classes]`, then one bias per class.
    let start = vec![0.0; (width + 1) * classes];
    let solution = minimise(start, ITERATIONS, TOLERANCE, |theta, gradient| {
        objective(theta, gradient, &x, &table.y, width, classes, l2)
    });
    let narrow = |values: &[f64]| values.iter().map(|&v| v as f32).collect();
    Logistic {
        scaling,
        classes,
        weights: narrow(&solution[..width * classes]),
        bias: narrow(&solution[width * classes..]),
    }
}

/// Mean cross-entropy plus `l2 / 2` times the squared norm of the weights.
fn objective(
    theta: &[f64],
    gradient: &mut [f64],
    x: &[f64],
    y: &[u32],
    width: usize,
    classes: usize,
    l2: f64,
) -> f64 {
    let (weights, bias) = theta.split_at(width * classes);
    gradient.fill(0.0);
    let scale = 1.0 / y.len() as f64;
    let mut loss = 0.0;
    let mut p = vec![0.0; classes];
    for (row, &class) in x.chunks_exact(width).zip(y) {
        p.copy_from_slice(bias);
        for (&v, w) in row.iter().zip(weights.chunks_exact(classes)) {
            p.iter_mut().zip(w).for_each(|(p, w)| *p += v * w);
        }
        let top = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = p.iter().map(|v| (v - top).exp()).sum();
        let log_sum = top + sum.ln();
        loss += scale * (log_sum - p[class as usize]);
        p.iter_mut().for_each(|v| *v = (*v - log_sum).exp() * scale);
        p[class as usize] -= scale;
        let (weights, bias) = gradient.split_at_mut(width * classes);
        for (&v, g) in row.iter().zip(weights.chunks_exact_mut(classes)) {
            g.iter_mut().zip(&p).for_each(|(g, p)| *g += v * p);
        }
        bias.iter_mut().zip(&p).for_each(|(g, p)| *g += p);
    }
    for (g, w) in gradient.iter_mut().zip(weights) {
        *g += l2 * w;
        loss += 0.5 * l2 * w * w;
    }
    loss
}

impl Fit for Logistic {
    fn scores(&self, x: &[f32]) -> Result<Vec<f32>, LearnError> {
        let mut scores = Vec::with_capacity(x.len() / self.scaling.mean.len() * self.classes);
        for row in self.scaling.apply(x).chunks_exact(self.scaling.mean.len()) {
            let from = scores.len();
            scores.extend_from_slice(&self.bias);
            for (&v, w) in row.iter().zip(self.weights.chunks_exact(self.classes)) {
                scores[from..].iter_mut().zip(w).for_each(|(s, w)| *s += v * w);
            }
        }
        softmax(&mut scores, self.classes);
        Ok(scores)
    }

    fn onnx(&self) -> Vec<u8> {
        let width = self.scaling.mean.len();
        let mut graph = Graph::default();
        let standard = graph.scaled(&self.scaling);
        let weights = graph.floats("weights", &[width, self.classes], &self.weights);
        let bias = graph.floats("bias", &[self.classes], &self.bias);
        let margins = graph.node("Gemm", &[&standard, &weights, &bias], "margins", vec![]);
        graph.node("Softmax", &[&margins], OUTPUT, vec![int("axis", 1)]);
        graph.finish("logistic", width, self.classes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gradient_is_the_slope_of_the_loss() {
        let (width, classes) = (2, 3);
        let x = [0.5, -1.0, 1.5, 0.3, -0.7, 0.9];
        let y = [0, 2, 1];
        let theta: Vec<f64> = (0..9).map(|i| f64::from(i) * 0.1 - 0.4).collect();
        let value = |theta: &[f64]| objective(theta, &mut [0.0; 9], &x, &y, width, classes, 0.3);
        let mut gradient = [0.0; 9];
        objective(&theta, &mut gradient, &x, &y, width, classes, 0.3);
        for i in 0..9 {
            let (mut up, mut down) = (theta.clone(), theta.clone());
            up[i] += 1e-6;
            down[i] -= 1e-6;
            let slope = (value(&up) - value(&down)) / 2e-6;
            assert!((slope - gradient[i]).abs() < 1e-7, "{i}: {slope} and {}", gradient[i]);
        }
    }
}
