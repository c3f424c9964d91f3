use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use dunlin_engine::{Model, argmax, first_row, floats};
use dunlin_protocol::{Bundle, DType, Digest, ReferenceProfile, ReleaseId, TaskType, TensorData, TensorSpec};

use super::asked::rows_of;
use super::gather::Queue;
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
    /// Inputs that it answered when it was proved, a row if it takes single ones; empty if they are not at hand.
    pub known: Arc<[TensorData]>,
}

/// A resident that serves, with the latency it has shown.
#[derive(Debug)]
pub(super) struct Serving {
    pub(super) resident: Resident,
    /// Expected nanoseconds of one row.
    row_ns: AtomicU64,
    /// Inputs that it has answered, from its proof or else of the first request.
    known: OnceLock<Arc<[TensorData]>>,
    pub(super) strikes: Strikes,
    /// Requests that are to be run together.
    pub(super) queue: Queue,
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
    /// It does, and the model failed.
    Failed(Failure),
}

/// How a model failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) detail: String,
    pub(super) fault: Fault,
}

/// Whose fault a failure is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The model is broken, or late.
    Model,
    /// The model is sound, and has no answer to what it was asked: an index beyond its table, a division by zero.
    Request,
}

impl Failure {
    /// The model's fault.
    pub(super) fn of_model(detail: impl Into<String>) -> Self {
        Self { detail: detail.into(), fault: Fault::Model }
    }
}

impl Serving {
    pub(super) fn new(resident: Resident) -> Self {
        let row_ns = AtomicU64::new(resident.bundle.latency_us.saturating_mul(1000));
        let proved = Some(&resident.known).filter(|known| !known.is_empty()).cloned();
        Self {
            known: proved.map_or_else(OnceLock::new, OnceLock::from),
            resident,
            row_ns,
            strikes: Strikes::default(),
            queue: Queue::default(),
            tally: Mutex::default(),
        }
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

    /// Runs the model on one request, from which later ones are expected to take as long.
    pub(super) fn run(&self, inputs: &[TensorData], rows: usize) -> Result<Made, Unable> {
        let made = self.made(inputs, rows).map_err(|unable| self.judged(unable, inputs))?;
        self.known.get_or_init(|| first_row(&self.resident.model, inputs).into());
        let row_ns = made.latency_ns / rows.max(1) as u64;
        // One part in eight of the new value: follows a change within some requests, forgives one hiccup.
        let follow = |old: u64| Some(old - old / 8 + row_ns / 8);
        let _always = self.row_ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, follow);
        Ok(made)
    }

    /// Says whose fault a failure is. What comes out of a graph follows from what goes in: a model that still answers what
    /// it has answered is not broken, and any client could have it fail with inputs of his choice.
    fn judged(&self, unable: Unable, inputs: &[TensorData]) -> Unable {
        match unable {
            Unable::Failed(failure) if self.is_excused(inputs) => {
                Unable::Failed(Failure { fault: Fault::Request, ..failure })
            }
            Unable::Failed(_) | Unable::Input(_) => unable,
        }
    }

    fn is_excused(&self, inputs: &[TensorData]) -> bool {
        match self.known.get() {
            Some(known) => self.checked(known, rows_of(known)).is_ok(),
            // Nothing is known of it yet, but what is not a number goes in and comes out.
            None => inputs.iter().filter_map(floats).flatten().any(|x| !x.is_finite()),
        }
    }

    /// The same for rows of several requests. Such a row takes no longer than one alone: if it did, that is what is expected
    /// from now on.
    pub(super) fn made_together(&self, inputs: &[TensorData], rows: usize) -> Result<Made, Unable> {
        let made = self.made(inputs, rows)?;
        self.row_ns.fetch_max(made.latency_ns / rows.max(1) as u64, Ordering::Relaxed);
        Ok(made)
    }

    /// Runs the model, and counts that.
    pub(super) fn made(&self, inputs: &[TensorData], rows: usize) -> Result<Made, Unable> {
        let made = self.checked(inputs, rows)?;
        self.tally().executions += 1;
        Ok(made)
    }

    /// Runs the model. An answer counts only if its outputs are what the signature promises and its numbers are finite.
    fn checked(&self, inputs: &[TensorData], rows: usize) -> Result<Made, Unable> {
        let failed = |detail: String| Unable::Failed(Failure::of_model(detail));
        self.takes(rows)?;
        let from = Instant::now();
        let outputs =
            self.resident.model.run(inputs).map_err(|e| {
                if e.is_input() { Unable::Input(e.to_string()) } else { failed(e.to_string()) }
            })?;
        let spent = from.elapsed();
        let promised = &self.resident.bundle.signature.outputs;
        keeps(promised, &outputs, rows).map_err(failed)?;
        let scores = outputs.last().and_then(floats).unwrap_or_default();
        let finite = |values: &[f32]| values.iter().all(|x| x.is_finite());
        let mut others = outputs.iter().rev().skip(1).filter_map(floats);
        if !finite(&scores) || !others.all(|values| finite(&values)) {
            return Err(failed("a score is not finite".into()));
        }
        let classes = self.classes();
        if classes > 0 && scores.len() != rows * classes {
            return Err(failed(format!("{} scores for {rows} rows of {classes} classes", scores.len())));
        }
        let latency_ns = u64::try_from(spent.as_nanos()).unwrap_or(u64::MAX);
        Ok(Made { outputs, scores, latency_ns })
    }

    /// Some graphs take a fixed number of rows and give what is not one row per row: their answers to several such
    /// batches can not be put together.
    fn takes(&self, rows: usize) -> Result<(), Unable> {
        let model = &self.resident.model;
        let batch = model.inputs().first().and_then(|spec| spec.shape.first()).copied().filter(|n| *n > 0);
        match batch {
            Some(batch)
                if usize::try_from(batch) != Ok(rows)
                    && model.outputs().iter().any(|out| out.shape.first() != Some(&batch)) =>
            {
                Err(Unable::Input(format!("{rows} rows where the model answers {batch} at a time")))
            }
            Some(_) | None => Ok(()),
        }
    }

    /// The predicted class of one row of scores: the largest score, never the graph's label.
    pub(super) fn class(&self, scores: &[f32]) -> Option<u32> {
        if self.classes() == 0 { None } else { argmax(scores) }
    }
}

/// Holds outputs against what the signature promises: their names, types, and every dimension that it fixes. The first
/// one is the rows that were asked about, unless the signature fixes it otherwise. A signature without dimensions
/// promises none, as files may leave the shape of an output open.
fn keeps(promised: &[TensorSpec], outputs: &[TensorData], rows: usize) -> Result<(), String> {
    if outputs.len() != promised.len() {
        return Err(format!("{} outputs where the signature has {}", outputs.len(), promised.len()));
    }
    for (want, got) in promised.iter().zip(outputs) {
        if want.name != got.name || want.datatype != got.datatype {
            return Err(format!(
                "output {:?} of {} where the signature has {:?} of {}",
                got.name,
                got.datatype.as_str(),
                want.name,
                want.datatype.as_str()
            ));
        }
        let fits = |(axis, (&want, &got)): (usize, (&i64, &u64))| {
            u64::try_from(want) == Ok(got) || if axis == 0 { got == rows as u64 } else { want < 0 }
        };
        let open = want.shape.is_empty();
        let same = open
            || (want.shape.len() == got.shape.len()
                && want.shape.iter().zip(&got.shape).enumerate().all(fits));
        let elements = got.shape.iter().try_fold(1_u64, |all, &dim| all.checked_mul(dim));
        let whole = got.datatype == DType::Bytes
            || elements.zip(got.datatype.size()).and_then(|(n, size)| n.checked_mul(size as u64))
                == Some(got.data.0.len() as u64);
        if !same || !whole {
            return Err(format!(
                "output {:?} of {} bytes and shape {:?} to {rows} rows where the signature has {:?}",
                got.name,
                got.data.0.len(),
                got.shape,
                want.shape
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use dunlin_engine::of_floats;

    use super::*;

    fn spec(shape: &[i64]) -> Vec<TensorSpec> {
        vec![TensorSpec { name: "y".into(), datatype: DType::Fp32, shape: shape.to_vec() }]
    }

    #[test]
    fn an_output_has_the_name_type_and_shape_that_the_signature_promises() {
        let of = |shape: &[u64]| {
            let n = shape.iter().product::<u64>() as usize;
            vec![of_floats("y", shape, &vec![0.0; n])]
        };
        let table: [(&[i64], &[u64], usize, bool); 8] = [
            (&[-1, 2], &[3, 2], 3, true),
            (&[-1, -1], &[3, 7], 3, true),
            (&[], &[3, 7], 3, true),
            (&[1, 2], &[3, 2], 3, true),
            (&[4], &[4], 1, true),
            (&[-1, 2], &[2, 2], 3, false),
            (&[-1, 2], &[3, 3], 3, false),
            (&[-1, 2], &[3], 3, false),
        ];
        for (want, got, rows, kept) in table {
            let outcome = keeps(&spec(want), &of(got), rows);
            assert_eq!(outcome.is_ok(), kept, "{want:?} {got:?}: {outcome:?}");
        }
        let mut cut = of(&[3, 2]);
        cut[0].data.0.pop();
        assert!(keeps(&spec(&[-1, 2]), &cut, 3).unwrap_err().contains("23 bytes"));
        assert!(keeps(&spec(&[-1, 2]), &[], 3).unwrap_err().contains("0 outputs"));
        let mut named = of(&[3, 2]);
        named[0].name = "z".into();
        assert!(keeps(&spec(&[-1, 2]), &named, 3).is_err());
        let mut typed = of(&[3, 2]);
        typed[0].datatype = DType::Int32;
        assert!(keeps(&spec(&[-1, 2]), &typed, 3).is_err());
    }
}
