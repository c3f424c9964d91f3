//! What a job folder holds afterwards. Whoever reads it treats it as hostile until checked.
use std::collections::BTreeMap;

use dunlin_protocol::{Blob, Digest};
use serde::{Deserialize, Serialize};

use crate::{Config, Family};

/// File of a candidate: the ONNX graph.
pub const MODEL_FILE: &str = "model.onnx";
/// File of a candidate: the CBOR reference profile.
pub const PROFILE_FILE: &str = "profile.cbor";
/// File of a candidate: a CBOR golden set with the native model's answers.
pub const GOLDEN_FILE: &str = "golden.cbor";

/// One configuration, judged on rows it did not see.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Place in the search.
    pub number: usize,
    /// What was fitted.
    pub config: Config,
    /// Rows judged on; none of them in the hold-out.
    pub n: u64,
    /// Rows it got right.
    pub right: u64,
    /// Mean negative log-likelihood, parts per million of a nat.
    pub log_loss_ppm: u64,
    /// Length of the ONNX file, bytes.
    pub model_bytes: u64,
    /// Operators of the graph.
    pub ops: Vec<String>,
}

/// A model that a release can be made of.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Candidate {
    /// Its folder under `candidates`.
    pub id: String,
    /// Family.
    pub family: Family,
    /// What was fitted, on all rows but the hold-out.
    pub config: Config,
    /// Trial it was chosen by.
    pub trial: usize,
    /// Target classes it was chosen for and fits.
    pub targets: Vec<String>,
    /// Hold-out rows.
    pub n: u64,
    /// Hold-out rows it got right.
    pub right: u64,
    /// Right of all, parts per million.
    pub accuracy_ppm: u32,
    /// Predicted class of each hold-out row, in the order of [`RunResult::holdout`].
    pub predictions: Vec<u32>,
    /// Files by name.
    pub files: BTreeMap<String, Blob>,
    /// Operators of the graph.
    pub ops: Vec<String>,
    /// Median latency of one row through the engine, microseconds, where the job ran.
    pub latency_us: u64,
    /// Largest difference between native model and engine on the hold-out, parts per million.
    pub parity_ppm: u32,
}

/// `result.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunResult {
    /// Format of this file, 1.
    pub format: u32,
    /// Digest of `job.json`.
    pub job: Digest,
    /// Digest of the data.
    pub dataset: Digest,
    /// Seed.
    pub seed: u64,
    /// Release of the trainer.
    pub code: String,
    /// Kind of processor: models are byte-identical only on the same one.
    pub cpu: String,
    /// Sound rows.
    pub rows: u64,
    /// Rows left out, by anomaly.
    pub dropped: BTreeMap<String, u64>,
    /// Sound rows of each class.
    pub classes: Vec<u64>,
    /// Hold-out rows, numbered among the sound ones.
    pub holdout: Vec<u64>,
    /// Class of each hold-out row.
    pub truth: Vec<u32>,
    /// The candidates, best first.
    pub candidates: Vec<Candidate>,
    /// The search, trial after trial.
    pub trials: Vec<Trial>,
}

/// One line of the progress stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "snake_case")]
pub enum Progress {
    /// Rows were read and found sound.
    Validated {
        /// Sound rows.
        rows: u64,
        /// Faulty rows left out.
        dropped: u64,
    },
    /// A trial ended, or had ended before a cut.
    Trial {
        /// Place in the search.
        number: usize,
        /// Trials in all.
        of: usize,
        /// Family.
        family: Family,
        /// Right on validation rows, parts per million.
        accuracy_ppm: u32,
        /// Whether an earlier attempt had made it.
        kept: bool,
    },
    /// A candidate was exported and proven.
    Candidate {
        /// Its folder.
        id: String,
        /// Right on hold-out rows, parts per million.
        accuracy_ppm: u32,
    },
    /// The result is in place.
    Done,
}

/// `error.json`: why the last attempt failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Stable name of the failure.
    pub code: String,
    /// Whether the data is at fault, so that trying again changes nothing.
    pub data: bool,
    /// The same for people, with its causes.
    pub message: String,
}
