use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use dunlin_engine::{Model, argmax, floats};
use dunlin_protocol::{Bundle, Digest, ReferenceProfile, ReleaseId, TaskType, TensorData};

use super::strikes::Strikes;
use super::tally::Tally;

/// A model in memory, with what its bundle says about it.
#[derive(Debug, Clone)]
pub struct Resident {
    /// The release.
    pub release: ReleaseId,
    /// Its manifest.
    pub bundle: Arc<Bundle>,
    /// Digest of the manifest.
    pub manifest: Digest,
    /// The loaded model.
    pub model: Arc<Model>,
    /// Drift bins and the digest of their blob, if the bundle has any.
    pub profile: Option<Arc<(ReferenceProfile, Digest)>>,
    /// Rows that predictions are explained against, one after the other; none if the model takes no table.
    pub background: Arc<[f32]>,
}

/// A resident that serves, with the latency it has shown.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) resident: Resident,
    /// Expected nanoseconds of one row.
    row_ns: AtomicU64,
    pub(super) strikes: Strikes,
    tally: Mutex<Tally>,
}

/// What a model made of a request.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) outputs: Vec<TensorData>,
    /// Scores of the last output, row after row.
    pub(super) scores: Vec<f32>,
    pub(super) latency_ns: u64,
}

impl Made {
    pub(super) fn latency_us(&self) -> u64 {
        self.latency_ns / 1000
    }
}

/// Why a model did not answer.
#[derive(Debug)]
pub(super) enum Unable {
    /// The request does not fit.
    Input(String),
    /// The model is at fault.
    Failed(String),
}

impl Serving {
    pub(super) fn new(resident: Resident) -> Self {
        let row_ns = AtomicU64::new(resident.bundle.latency_us.saturating_mul(1000));
        Self { resident, row_ns, strikes: Strikes::default(), tally: Mutex::default() }
    }

    pub(super) fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn release(&self) -> &ReleaseId {
        &self.resident.release
    }

    pub(super) fn row_us(&self) -> u64 {
        self.row_ns.load(Ordering::Relaxed).div_ceil(1000)
    }

    /// Number of classes; zero for tasks without.
    pub(super) fn classes(&self) -> usize {
        match self.resident.bundle.task_type {
            TaskType::Classification => self.resident.bundle.signature.labels.len(),
            TaskType::Regression | TaskType::Clustering | TaskType::Recommendation => 0,
        }
    }

    /// Runs the model. An answer counts only if its scores are finite and there are as many as the signature says.
    pub(super) fn run(&self, inputs: &[TensorData], rows: usize) -> Result<Made, Unable> {
        let from = Instant::now();
        let outputs = self.resident.model.run(inputs).map_err(|e| {
            if e.is_input() { Unable::Input(e.to_string()) } else { Unable::Failed(e.to_string()) }
        })?;
        let spent = from.elapsed();
        let scores = outputs.last().and_then(floats).unwrap_or_default();
        if scores.iter().any(|x| !x.is_finite()) {
            return Err(Unable::Failed("a score is not finite".into()));
        }
        let classes = self.classes();
        if classes > 0 && scores.len() != rows * classes {
            return Err(Unable::Failed(format!(
                "{} scores for {rows} rows of {classes} classes",
                scores.len()
            )));
        }
        let latency_ns = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        let row_ns = latency_ns / rows.max(1) as u64;
        // One part in eight of the new value: follows a change within some requests, forgives one hiccup.
        let old = self.row_ns.load(Ordering::Relaxed);
        self.row_ns.store(old - old / 8 + row_ns / 8, Ordering::Relaxed);
        Ok(Made { outputs, scores, latency_ns })
    }

    /// The predicted class of one row of scores: the largest score, never the graph's label.
    pub(super) fn class(&self, scores: &[f32]) -> Option<u32> {
        if self.classes() == 0 { None } else { argmax(scores) }
    }
}
