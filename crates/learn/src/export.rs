//! From a fitted model to the files of a candidate, proven against the engine.
use std::time::Instant;

use dunlin_engine::{Model as Engine, inspect};
use dunlin_monitor::profile;
use dunlin_protocol::{Bytes, Counts, DType, GoldenSet, ReferenceProfile, TensorData, cbor};

use crate::data::Table;
use crate::family::argmax;
use crate::job::Schema;
use crate::onnx::{INPUT, OUTPUT};
use crate::{Family, Fit, LearnError};

/// Inner bins of a feature in the reference profile.
const BINS: usize = 64;
/// Rows in the golden set: enough to walk many branches of a tree, few enough for a slow device.
const GOLDEN_ROWS: usize = 32;
/// Largest accepted difference between native model and engine, and of golden answers on a device:
/// `|a-b| / max(1, |b|)`, parts per million. Float sums in another order stay two orders below it.
const TOLERANCE_PPM: u32 = 200;
/// Runs of which the median is taken.
const LATENCY_RUNS: usize = 101;

/// An ONNX file that answers like the native model.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) onnx: Vec<u8>,
    pub(crate) ops: Vec<String>,
    pub(crate) predictions: Vec<u32>,
    pub(crate) parity_ppm: u32,
    pub(crate) latency_us: u64,
}

/// Exports `model` and proves it on `rows`.
pub(crate) fn prove(family: Family, model: &dyn Fit, rows: &Table) -> Result<Proven, LearnError> {
    let refused = |source| LearnError::Engine { family, source };
    let onnx = model.onnx();
    let ops = inspect(&onnx).map_err(refused)?.ops.into_iter().collect();
    let engine = Engine::load(&onnx, None).map_err(refused)?;
    let native = model.scores(&rows.x)?;
    let answered = engine.run_f32(&rows.x, rows.rows()).map_err(refused)?;
    let (row, parity_ppm) = difference(&native, &answered, rows.classes);
    let predictions = argmax(&answered, rows.classes);
    let flipped = argmax(&native, rows.classes).iter().zip(&predictions).position(|(a, b)| a != b);
    if parity_ppm > TOLERANCE_PPM || native.len() != answered.len() || flipped.is_some() {
        return Err(LearnError::Parity { family, row: flipped.unwrap_or(row), error_ppm: parity_ppm });
    }
    let latency_us = latency(&onnx, rows).map_err(refused)?;
    Ok(Proven { onnx, ops, predictions, parity_ppm, latency_us })
}

/// The row with the largest difference, and that difference; an answer that is not a number differs fully.
fn difference(native: &[f32], answered: &[f32], classes: usize) -> (usize, u32) {
    let errors = native.iter().zip(answered).map(|(a, b)| {
        let error = f64::from((a - b).abs()) / f64::from(b.abs().max(1.0));
        if error.is_nan() { u32::MAX } else { (error * 1e6).ceil() as u32 }
    });
    errors
        .enumerate()
        .fold((0, 0), |worst, (i, error)| if error > worst.1 { (i / classes, error) } else { worst })
}

fn latency(onnx: &[u8], rows: &Table) -> Result<u64, dunlin_engine::EngineError> {
    let engine = Engine::load(onnx, Some(1))?;
    let mut times = Vec::with_capacity(LATENCY_RUNS);
    for i in 0..LATENCY_RUNS {
        let row = rows.row(i % rows.rows());
        let start = Instant::now();
        engine.run_f32(row, 1)?;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    // Rounded up: no inference is free.
    Ok(times[LATENCY_RUNS / 2].as_nanos().div_ceil(1000) as u64)
}

/// The reference profile of the rows a model learned from, with the classes it predicts for them.
pub(crate) fn reference(schema: &Schema, rows: &Table) -> ReferenceProfile {
    let columns: Vec<Vec<f32>> = (0..rows.width).map(|feature| rows.column(feature)).collect();
    profile::build(&schema.feature_names(), &columns, BINS)
}

/// The profile with one model's predicted classes, encoded.
pub(crate) fn profile_bytes(
    reference: &ReferenceProfile,
    model: &dyn Fit,
    rows: &Table,
) -> Result<Vec<u8>, LearnError> {
    let mut counts = vec![0u64; rows.classes];
    for class in argmax(&model.scores(&rows.x)?, rows.classes) {
        counts[class as usize] += 1;
    }
    Ok(cbor::encode(&ReferenceProfile { classes: Counts::pack(&counts), ..reference.clone() }))
}

/// Golden vectors: rows spread over `rows`, with the native model's answers.
pub(crate) fn golden_bytes(model: &dyn Fit, rows: &Table) -> Result<Vec<u8>, LearnError> {
    let count = GOLDEN_ROWS.min(rows.rows());
    let picked = rows.take(&(0..count).map(|i| i * rows.rows() / count).collect::<Vec<_>>());
    let scores = model.scores(&picked.x)?;
    let golden = GoldenSet {
        format: 1,
        inputs: vec![tensor(INPUT, &picked.x, count)],
        outputs: vec![tensor(OUTPUT, &scores, count)],
        tolerance_ppm: TOLERANCE_PPM,
        labels: Vec::new(),
    };
    Ok(cbor::encode(&golden))
}

/// Bytes that profile and golden set add to a model's, before they are made: the golden set's tensors and
/// the names in it, and what the profile already measures.
pub(crate) fn overhead(reference: &ReferenceProfile, rows: &Table) -> u64 {
    let golden = GOLDEN_ROWS * (rows.width + rows.classes) * 4 + 256;
    (golden + cbor::encode(reference).len() + rows.classes * 4) as u64
}

fn tensor(name: &str, values: &[f32], rows: usize) -> TensorData {
    TensorData {
        name: name.into(),
        datatype: DType::Fp32,
        shape: vec![rows as u64, (values.len() / rows) as u64],
        data: Bytes(values.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, family};

    fn table(flip: u32) -> Table {
        let y: Vec<u32> = (0..40).map(|row| (u32::from(row >= 20)) ^ flip).collect();
        Table {
            width: 1,
            classes: 2,
            x: (0..40u8).map(f32::from).collect(),
            y,
            order: (0..40).collect(),
            dropped: Default::default(),
        }
    }

    /// Answers as one model and exports another.
    #[derive(Debug)]
    struct TwoFaced(family::Model, family::Model);

    impl Fit for TwoFaced {
        fn scores(&self, x: &[f32]) -> Result<Vec<f32>, LearnError> {
            self.0.scores(x)
        }

        fn onnx(&self) -> Vec<u8> {
            self.1.onnx()
        }
    }

    #[test]
    fn a_file_that_answers_unlike_its_model_is_not_published() {
        let model = |flip| family::fit(&Config::Logistic { l2: 1e-3 }, &table(flip), 1).unwrap();
        let proven = prove(Family::Logistic, &*model(0), &table(0)).unwrap();
        assert!(proven.parity_ppm <= TOLERANCE_PPM);
        let refused = prove(Family::Logistic, &TwoFaced(model(0), model(1)), &table(0)).unwrap_err();
        let LearnError::Parity { family: Family::Logistic, error_ppm, .. } = refused else {
            unreachable!("{refused}")
        };
        assert!(error_ppm > TOLERANCE_PPM);
    }
}
