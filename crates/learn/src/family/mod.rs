mod gbdt;
mod logistic;
mod mlp;

use crate::data::Table;
use crate::{Config, LearnError};

/// A fitted model: what it predicts natively, and its ONNX form.
pub trait Fit: std::fmt::Debug {
    /// Class probabilities, row after row.
    fn scores(&self, x: &[f32]) -> Result<Vec<f32>, LearnError>;
    /// The ONNX file: preprocessing, model and normalisation in one graph.
    fn onnx(&self) -> Vec<u8>;
}

/// A fitted model of any family.
pub type Model = Box<dyn Fit>;

/// Fits one configuration. The same seed and rows give the same model.
pub fn fit(config: &Config, table: &Table, seed: u64) -> Result<Model, LearnError> {
    Ok(match config {
        Config::Logistic { l2 } => Box::new(logistic::fit(table, *l2)),
        Config::Mlp { hidden, rate, epochs, decay } => {
            let plan = mlp::Plan { hidden: hidden.clone(), rate: *rate, epochs: *epochs, decay: *decay };
            Box::new(mlp::fit(table, &plan, seed)?)
        }
        Config::Gbdt { trees, depth, rate, l2 } => {
            let plan = gbdt::Plan { trees: *trees, depth: *depth, rate: *rate, l2: *l2 };
            Box::new(gbdt::fit(table, &plan, seed)?)
        }
    })
}

/// Turns margins into probabilities in place, row after row.
fn softmax(scores: &mut [f32], classes: usize) {
    for row in scores.chunks_exact_mut(classes) {
        let top = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        row.iter_mut().for_each(|v| *v = (*v - top).exp());
        let sum: f32 = row.iter().sum();
        row.iter_mut().for_each(|v| *v /= sum);
    }
}

/// The class with the highest score in each row; the first one of equals.
pub(crate) fn argmax(scores: &[f32], classes: usize) -> Vec<u32> {
    let best = |row: &[f32]| (1..classes).fold(0, |best, i| if row[i] > row[best] { i } else { best });
    scores.chunks_exact(classes).map(|row| best(row) as u32).collect()
}
