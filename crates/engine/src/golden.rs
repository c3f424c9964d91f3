//! Golden vectors: what a model answered where it was made, and whether it answers the same here.

use dunlin_protocol::{DType, GoldenSet, TensorData};

use crate::tensor::floats;
use crate::{EngineError, Model, words};

/// Runs `model` on `inputs` and keeps the answers as golden vectors.
///
/// # Errors
/// As [`Model::run`].
pub fn golden(model: &Model, inputs: Vec<TensorData>, tolerance_ppm: u32) -> Result<GoldenSet, EngineError> {
    let outputs = model.run(&inputs)?;
    Ok(GoldenSet { format: 1, inputs, outputs, tolerance_ppm, labels: Vec::new() })
}

/// The largest `|a-b| / max(1, |b|)` over all float outputs, in parts per million, rounded up; `u32::MAX` where
/// an output is missing, of another shape or not finite.
///
/// Integer outputs count only if there is no float output: labels follow from the scores, and where two scores
/// are equal runtimes differ on the label.
pub fn max_error_ppm(answers: &[TensorData], expected: &[TensorData]) -> u32 {
    let any_floats = expected.iter().any(|t| floats(t).is_some());
    let mut worst = 0.0_f64;
    for want in expected {
        let Some(got) = answers.iter().find(|t| t.name == want.name) else { return u32::MAX };
        if got.shape != want.shape || got.datatype != want.datatype {
            return u32::MAX;
        }
        match (floats(got), floats(want)) {
            (Some(got), Some(want)) if got.len() == want.len() => {
                for (a, b) in got.iter().zip(&want) {
                    let (a, b) = (f64::from(*a), f64::from(*b));
                    if !a.is_finite() {
                        return u32::MAX;
                    }
                    worst = worst.max((a - b).abs() / b.abs().max(1.0));
                }
            }
            (None, None) if any_floats || got.data == want.data => {}
            _ => return u32::MAX,
        }
    }
    if worst.is_nan() { u32::MAX } else { (worst * 1e6).ceil() as u32 }
}

/// The share of `labels` that the model gets right on the set's inputs, in parts per million: the largest
/// score of the last output counts as the answer.
///
/// # Errors
/// As [`Model::run`], and [`EngineError::Run`] if there are not as many rows of scores as labels.
pub fn anchor_score_ppm(model: &Model, anchor: &GoldenSet) -> Result<u32, EngineError> {
    let outputs = model.run(&anchor.inputs)?;
    let scores = outputs
        .last()
        .and_then(floats)
        .ok_or_else(|| EngineError::Run("the last output holds no scores".into()))?;
    let rows = anchor.labels.len();
    if rows == 0 || scores.is_empty() || scores.len() % rows != 0 {
        return Err(EngineError::Run(format!("{} scores for {rows} labelled rows", scores.len())));
    }
    let right = scores
        .chunks_exact(scores.len() / rows)
        .zip(&anchor.labels)
        .filter(|(row, label)| argmax(row) == Some(**label));
    Ok((right.count() as u64 * 1_000_000 / rows as u64) as u32)
}

/// Index of the largest score, the first of equal ones; `None` if there is none or one is not finite.
pub fn argmax(scores: &[f32]) -> Option<u32> {
    if scores.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let mut best = 0;
    for (i, x) in scores.iter().enumerate() {
        if *x > scores[best] {
            best = i;
        }
    }
    u32::try_from(best).ok().filter(|_| !scores.is_empty())
}

/// The first row of inputs that `model` answers, or all of them where its file fixes how many rows it takes.
pub fn first_row(model: &Model, inputs: &[TensorData]) -> Vec<TensorData> {
    let rows = inputs.first().and_then(|t| t.shape.first()).map_or(1, |&n| n as usize);
    match model.inputs().first().and_then(|spec| spec.shape.first()) {
        Some(-1 | 1) if rows > 1 => row_of(inputs, 0, rows),
        Some(_) | None => inputs.to_vec(),
    }
}

/// Cuts row `row` out of inputs whose batch is `rows`.
pub(crate) fn row_of(inputs: &[TensorData], row: usize, rows: usize) -> Vec<TensorData> {
    inputs
        .iter()
        .map(|t| {
            if t.shape.is_empty() {
                return t.clone();
            }
            let mut shape = t.shape.clone();
            shape[0] = 1;
            let data = match words::elements(&t.data.0).filter(|_| t.datatype == DType::Bytes) {
                Some(texts) => {
                    let len = texts.len() / rows.max(1);
                    words::join(&texts[row * len..(row + 1) * len])
                }
                None => {
                    let len = t.data.0.len() / rows.max(1);
                    t.data.0[row * len..(row + 1) * len].to_vec()
                }
            };
            TensorData { name: t.name.clone(), datatype: t.datatype, shape, data: data.into() }
        })
        .collect()
}
