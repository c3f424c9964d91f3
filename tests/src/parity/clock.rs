//! How long one row takes in this engine and in ONNX Runtime: one thread each, in alternating rounds of one run.
use std::path::Path;

use anyhow::Result;
use dunlin_engine::Model;
use dunlin_protocol::{Bytes, DType, TensorData};
use dunlin_tests::runtime::Runtime;
use dunlin_tests::timing::{Times, median};
use serde_json::json;

/// The script that times ONNX Runtime.
const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/src/parity/times.py");
/// Counted rounds; each asks both runtimes, so that what slows the machine down for a while slows both.
pub(crate) const ROUNDS: usize = 9;
/// Time that the calls of this engine in one round take about, microseconds; and the bounds of their number. More than a
/// hundred models are timed in one run.
const ROUND_US: f64 = 20_000.0;
const CALLS: (usize, usize) = (5, 300);

/// Median times of one row, microseconds.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Pair {
    pub(crate) ours: f64,
    pub(crate) theirs: f64,
}

impl Pair {
    /// Time of this engine as a multiple of ONNX Runtime's.
    pub(crate) fn ratio(self) -> f64 {
        self.ours / self.theirs
    }
}

/// Times both runtimes.
#[derive(Debug)]
pub(crate) struct Clock(Runtime);

impl Clock {
    /// Starts ONNX Runtime in this Python.
    pub(crate) fn start(python: &Path) -> Result<Self> {
        Runtime::start(python, &[SCRIPT]).map(Self)
    }

    /// Times the first row of a case in both; `None` where either takes no single row.
    pub(crate) fn pair(&mut self, case: &Path, model: &Model, inputs: &[TensorData]) -> Result<Option<Pair>> {
        if model.inputs().iter().any(|spec| !matches!(spec.shape.first(), Some(-1 | 1))) {
            return Ok(None);
        }
        let first: Vec<TensorData> = inputs.iter().map(first_row).collect();
        let ours = |calls| Times::of(calls, |_| Ok(model.run(&first).map(drop)?));
        let one = ours(3)?.quantile_us(0.5);
        let calls = ((ROUND_US / one) as usize).clamp(CALLS.0, CALLS.1);
        let question = json!({ "case": case, "calls": calls });
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for round in 0..=ROUNDS {
            let Some(theirs) = self.0.ask(&question)?["us"].as_f64() else { return Ok(None) };
            let times = ours(calls)?;
            // The first round warms both.
            if round > 0 {
                own.push(times.quantile_us(0.5));
                other.push(theirs);
            }
        }
        Ok(Some(Pair { ours: median(own), theirs: median(other) }))
    }
}

fn first_row(tensor: &TensorData) -> TensorData {
    let rows = tensor.shape.first().copied().unwrap_or(1).max(1) as usize;
    let mut shape = tensor.shape.clone();
    if let Some(first) = shape.first_mut() {
        *first = 1;
    }
    let data = if tensor.datatype == DType::Bytes {
        let count: u64 = shape.iter().product();
        let mut end = 0;
        for _ in 0..count {
            let length: [u8; 4] = tensor.data.0[end..end + 4].try_into().expect("four bytes were taken");
            end += 4 + u32::from_le_bytes(length) as usize;
        }
        tensor.data.0[..end].to_vec()
    } else {
        tensor.data.0[..tensor.data.0.len() / rows].to_vec()
    };
    TensorData { shape, data: Bytes(data), ..tensor.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(datatype: DType, shape: &[u64], data: &[u8]) -> TensorData {
        TensorData { name: "x".into(), datatype, shape: shape.to_vec(), data: Bytes(data.to_vec()) }
    }

    #[test]
    fn the_first_row_is_taken_of_numbers_and_of_texts() {
        let numbers = first_row(&tensor(DType::Uint8, &[3, 2], &[1, 2, 3, 4, 5, 6]));
        assert_eq!((numbers.shape, numbers.data.0), (vec![1, 2], vec![1, 2]));
        let texts = [2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0, 1, 0, 0, 0, b'c', 0, 0, 0, 0];
        let texts = first_row(&tensor(DType::Bytes, &[2, 2], &texts));
        assert_eq!((texts.shape, texts.data.0), (vec![1, 2], vec![2, 0, 0, 0, b'a', b'b', 0, 0, 0, 0]));
    }

    #[test]
    fn a_ratio_above_one_is_slower_than_onnx_runtime() {
        assert_eq!(Pair { ours: 30.0, theirs: 20.0 }.ratio(), 1.5);
    }
}
