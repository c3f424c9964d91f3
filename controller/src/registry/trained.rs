//! What training workers leave behind, taken as hostile until it holds.
use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use dunlin_engine::prove::Proof;
use dunlin_engine::{Inspection, Model, argmax};
use dunlin_learn::data::Table;
use dunlin_learn::job::{CANDIDATES_DIR, Job, RESULT_FILE, Schema};
use dunlin_learn::result::{Candidate, GOLDEN_FILE, MODEL_FILE, PROFILE_FILE, RunResult};
use dunlin_learn::split;
use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{
    Blob, Bytes, DType, Digest, FeatureMeta, GoldenSet, IdError, Lineage, ModelName, ReferenceProfile,
    ReleaseId, TaskId, TensorData, cbor,
};
use serde_json::json;

use super::intake::Parts;
use super::{Registry, RegistryError};
use crate::keys::Addition;
use crate::store::ReleaseRow;

/// Largest `result.json`: a thousand trials and the predictions of a million hold-out rows.
const RESULT_BYTES_MAX: u64 = 64 << 20;
/// Candidates a result may hold: more than families times target classes.
const CANDIDATES_MAX: usize = 128;
/// Largest reference profile or golden set.
const PART_BYTES_MAX: u64 = 16 << 20;
/// Rows of a golden set a worker may give.
const GOLDEN_ROWS_MAX: u64 = 256;
/// Largest tolerance a worker may claim for its golden set, parts per million.
const TOLERANCE_PPM_MAX: u32 = 1000;

/// A result that holds what it claims.
#[derive(Debug)]
pub struct Examined {
    /// The job it answers.
    pub job: Job,
    /// Its schema.
    pub schema: Schema,
    /// What the worker reported; its claims about candidates were checked.
    pub result: RunResult,
    /// The hold-out, recomputed from the data.
    pub holdout: Table,
    /// The candidates that hold, best first.
    pub candidates: Vec<ExaminedCandidate>,
}

/// A candidate, proven and scored again here.
#[derive(Debug)]
pub struct ExaminedCandidate {
    /// What the worker reported.
    pub candidate: Candidate,
    /// Predicted class of each hold-out row, recomputed; `None` where a score was not a number.
    pub predictions: Vec<Option<u32>>,
    /// Hold-out rows it got right, recomputed.
    pub right: u64,
    /// What the proof measured.
    pub proof: Proof,
    onnx: Vec<u8>,
    inspection: Inspection,
    golden: GoldenSet,
    profile: ReferenceProfile,
}

fn claim<T>(text: impl Into<String>) -> Result<T, RegistryError> {
    Err(RegistryError::Claim(text.into()))
}

/// Reads a plain file of at most `max` bytes: no link that leads elsewhere, no device.
fn read(path: &Path, max: u64) -> Result<Vec<u8>, RegistryError> {
    let failed = || RegistryError::file("read", path);
    let meta = std::fs::symlink_metadata(path).map_err(failed())?;
    if !meta.is_file() || meta.len() > max {
        return claim(format!("{} is no plain file of at most {max} bytes", path.display()));
    }
    let mut bytes = Vec::new();
    std::fs::File::open(path).map_err(failed())?.take(max).read_to_end(&mut bytes).map_err(failed())?;
    Ok(bytes)
}

fn part(folder: &Path, candidate: &Candidate, name: &str, max: u64) -> Result<Vec<u8>, RegistryError> {
    let Some(blob) = candidate.files.get(name) else {
        return claim(format!("candidate {} has no {name}", candidate.id));
    };
    let bytes = read(&folder.join(name), max)?;
    let found = Blob { digest: dunlin_trust::sha256(&bytes), length: bytes.len() as u64 };
    if found != *blob {
        return claim(format!("{name} of candidate {} is not the file it names", candidate.id));
    }
    Ok(bytes)
}

fn tensor(rows: &Table) -> TensorData {
    TensorData {
        name: "x".into(),
        datatype: DType::Fp32,
        shape: vec![rows.rows() as u64, rows.width as u64],
        data: Bytes(rows.x.iter().flat_map(|value| value.to_le_bytes()).collect()),
    }
}

impl Registry {
    /// Examines the job folder of a finished worker: digests, sizes, forms, a proof of each candidate in a child
    /// process, and its score on a hold-out that is drawn again from the data. `job` is the digest of the
    /// `job.json` that the worker was given, `dataset` the data's.
    ///
    /// # Errors
    /// The result does not answer this job, or no candidate holds what it claims.
    pub async fn examine(
        &self,
        dir: &Path,
        job: &Digest,
        dataset: &Digest,
    ) -> Result<Examined, RegistryError> {
        let given = read(&dir.join(dunlin_learn::job::JOB_FILE), PART_BYTES_MAX)?;
        if dunlin_trust::sha256(&given) != *job {
            return claim("job.json is not the one that was given out");
        }
        let (job_file, schema) = Job::read(dir)?;
        if job_file.dataset.digest != *dataset {
            return claim("job.json names other data than was given out");
        }
        let table = Table::read(dir, &job_file, &schema)?;
        let bytes = read(&dir.join(RESULT_FILE), RESULT_BYTES_MAX)?;
        let result: RunResult = serde_json::from_slice(&bytes)
            .map_err(|error| RegistryError::Claim(format!("result.json: {error}")))?;
        let parts = split::holdout(&table, job_file.split, job_file.seed);
        let holdout = table.take(&parts.holdout);
        if result.format != 1
            || result.job != *job
            || result.dataset != *dataset
            || result.seed != job_file.seed
        {
            return claim("result.json answers another job");
        }
        if result.truth != holdout.y || result.candidates.len() > CANDIDATES_MAX {
            return claim("result.json stands on another hold-out");
        }
        let mut candidates = Vec::new();
        let mut first_error = None;
        for candidate in &result.candidates {
            match self.examine_one(dir, candidate, &schema, &holdout).await {
                Ok(examined) => candidates.push(examined),
                Err(error) => {
                    tracing::warn!(candidate = candidate.id, error = %error, "a training candidate does not hold");
                    first_error.get_or_insert(error);
                }
            }
        }
        match first_error {
            Some(error) if candidates.is_empty() => Err(error),
            Some(_) | None => Ok(Examined { job: job_file, schema, result, holdout, candidates }),
        }
    }

    async fn examine_one(
        &self,
        dir: &Path,
        candidate: &Candidate,
        schema: &Schema,
        holdout: &Table,
    ) -> Result<ExaminedCandidate, RegistryError> {
        // The id is a folder name; ids of the protocol are safe as such.
        let id: TaskId = candidate
            .id
            .parse()
            .map_err(|_| RegistryError::Claim("a candidate's id is no folder name".into()))?;
        let folder = dir.join(CANDIDATES_DIR).join(id.as_str());
        let onnx = part(&folder, candidate, MODEL_FILE, dunlin_engine::MODEL_BYTES_MAX as u64)?;
        let (onnx, examined) = self.look_into(onnx).await?;
        if !examined.rewritten.is_empty() {
            return claim(format!("candidate {} is not of this trainer's making", candidate.id));
        }
        let inspection = examined.inspection;
        let shape = |specs: &[dunlin_protocol::TensorSpec], width: usize| matches!(specs, [one] if one.datatype == DType::Fp32 && one.shape == [-1, width as i64]);
        if !shape(&inspection.inputs, holdout.width) || !shape(&inspection.outputs, holdout.classes) {
            return claim(format!(
                "candidate {} does not have the input and output its schema asks for",
                candidate.id
            ));
        }
        let decode = |error: cbor::CborError| RegistryError::Claim(error.to_string());
        let profile: ReferenceProfile =
            cbor::decode(&part(&folder, candidate, PROFILE_FILE, PART_BYTES_MAX)?, PART_BYTES_MAX as usize)
                .map_err(decode)?;
        let names: Vec<&String> = profile.features.iter().map(|feature| &feature.name).collect();
        let sound = profile.features.iter().all(|feature| feature.counts.unpack(feature.bins()).is_some());
        if !sound || !names.into_iter().eq(schema.features.iter().map(|feature| &feature.name)) {
            return claim(format!(
                "the reference profile of candidate {} is not one of the schema's features",
                candidate.id
            ));
        }
        let golden: GoldenSet =
            cbor::decode(&part(&folder, candidate, GOLDEN_FILE, PART_BYTES_MAX)?, PART_BYTES_MAX as usize)
                .map_err(decode)?;
        let rows = golden.inputs.first().and_then(|input| input.shape.first()).copied().unwrap_or(0);
        if golden.tolerance_ppm > TOLERANCE_PPM_MAX
            || !(1..=GOLDEN_ROWS_MAX).contains(&rows)
            || golden.outputs.len() != 1
        {
            return claim(format!("the golden set of candidate {} proves nothing", candidate.id));
        }
        let proof = self.prove(&onnx, &golden, None).await?;
        let predictions = predict(onnx.clone(), holdout.clone()).await?;
        let right = predictions
            .iter()
            .zip(&holdout.y)
            .filter(|(predicted, truth)| **predicted == Some(**truth))
            .count() as u64;
        if right != candidate.right || candidate.n != holdout.rows() as u64 {
            return claim(format!(
                "candidate {} claims {} of {} right, {right} of {} were",
                candidate.id,
                candidate.right,
                candidate.n,
                holdout.rows()
            ));
        }
        Ok(ExaminedCandidate {
            candidate: candidate.clone(),
            predictions,
            right,
            proof,
            onnx,
            inspection,
            golden,
            profile,
        })
    }

    /// Share of the signed anchor set that a candidate gets right, parts per million: what devices will measure too.
    ///
    /// # Errors
    /// The anchor set is not here or unreadable, or the candidate can not take its inputs.
    pub async fn anchor_ppm(
        &self,
        candidate: &ExaminedCandidate,
        anchor: &Blob,
    ) -> Result<u32, RegistryError> {
        let missing = || RegistryError::Refused(format!("the anchor set {} is not here", anchor.digest));
        let bytes = self.blobs.get(&anchor.digest).await?.ok_or_else(missing)?;
        let anchor: GoldenSet = cbor::decode(&bytes, bytes.len())
            .map_err(|error| RegistryError::Refused(format!("the anchor set {}: {error}", anchor.digest)))?;
        let proof = self.prove(&candidate.onnx, &candidate.golden, Some(&anchor)).await?;
        Ok(proof.anchor_score_ppm.unwrap_or(0))
    }

    /// What an existing release predicts for `rows`, for a paired comparison. It was proven when it came in.
    ///
    /// # Errors
    /// It is not here, or takes other inputs.
    pub async fn predictions(
        &self,
        release: &ReleaseId,
        rows: &Table,
    ) -> Result<Vec<Option<u32>>, RegistryError> {
        let missing = || RegistryError::Refused(format!("the model of {release} is not here"));
        let row = self.store.release(release).await?.ok_or_else(missing)?;
        let onnx = self.blobs.get(&row.bundle.model.digest).await?.ok_or_else(missing)?;
        predict(onnx.to_vec(), rows.clone()).await
    }

    /// Makes a candidate the next release of its task's retrained line. It is pending until
    /// [`Registry::publish_retrained`].
    ///
    /// # Errors
    /// There is no such candidate, or it was registered before.
    pub async fn register(
        &self,
        examined: &Examined,
        candidate: &str,
        run: &str,
    ) -> Result<ReleaseRow, RegistryError> {
        let found = examined.candidates.iter().find(|one| one.candidate.id == candidate);
        let one = found
            .ok_or_else(|| RegistryError::Refused(format!("the run {run} has no candidate {candidate}")))?;
        let task = examined.job.task.clone();
        // Devices run what the controller's own key vouches for in the lines of its task alone.
        let line: TaskId = match weaken::off(Defence::Confine) {
            true => "foreign".parse().map_err(|error: IdError| RegistryError::Refused(error.to_string()))?,
            false => task.clone(),
        };
        let model = ModelName::retrained(&line, one.candidate.family.as_str())
            .map_err(|error| RegistryError::Refused(error.to_string()))?;
        // A repeated step of a run finds what it made before.
        let digest = dunlin_trust::sha256(&one.onnx);
        let same = self
            .store
            .releases(Some(&model), None)
            .await?
            .into_iter()
            .find(|row| row.bundle.model.digest == digest);
        if let Some(row) = same {
            return Ok(row);
        }
        let accuracy =
            i64::try_from(one.right * 1_000_000 / (examined.holdout.rows().max(1) as u64)).unwrap_or(0);
        let metrics = BTreeMap::from([
            ("accuracy_ppm".to_owned(), accuracy),
            ("n".to_owned(), examined.holdout.rows() as i64),
            ("right".to_owned(), one.right as i64),
        ]);
        let feature = |feature: &dunlin_learn::job::Feature| FeatureMeta {
            name: feature.name.clone(),
            unit: feature.unit.clone(),
        };
        let parts = Parts {
            model,
            task,
            task_type: examined.job.task_type,
            family: one.candidate.family.to_string(),
            onnx: one.onnx.clone(),
            inspection: one.inspection.clone(),
            golden: one.golden.clone(),
            profile: Some(one.profile.clone()),
            features: examined.schema.features.iter().map(feature).collect(),
            labels: examined.schema.labels.clone(),
            proof: one.proof.clone(),
            metrics,
            lineage: Lineage {
                run: run.to_owned(),
                dataset: Some(examined.job.dataset.digest),
                code: examined.result.code.chars().take(64).collect(),
                seed: examined.job.seed,
            },
            licence: String::new(),
            classes: Default::default(),
        };
        self.release(parts, "release.retrained", (&format!("run {run}"), "trainer")).await
    }

    /// Lists retrained releases under the controller's own key; they are approved afterwards.
    ///
    /// # Errors
    /// A release is not here or not a retrained one, or the repository can not be written.
    pub async fn publish_retrained(&self, releases: &[ReleaseId], now_ms: u64) -> Result<(), RegistryError> {
        let mut additions: Vec<Addition> = Vec::with_capacity(releases.len());
        for release in releases {
            let row = self.store.release(release).await?;
            additions.push(
                row.ok_or_else(|| RegistryError::Refused(format!("there is no release {release}")))?
                    .addition(),
            );
        }
        self.on_repos(move |repos| repos.publish_retrained(&additions, now_ms)).await?;
        self.follow("trainer", "release.publish", json!({ "releases": releases }), now_ms).await?;
        Ok(())
    }
}

/// Predicted classes. Only models that a child process came through are run here.
async fn predict(onnx: Vec<u8>, rows: Table) -> Result<Vec<Option<u32>>, RegistryError> {
    /// Rows in one call, so that memory stays small.
    const CHUNK: usize = 1024;
    let answered = tokio::task::spawn_blocking(move || {
        let model = Model::load(&onnx, None)?;
        if model.row_len() != rows.width {
            return Err(RegistryError::Refused(format!(
                "the model takes {} features, the rows have {}",
                model.row_len(),
                rows.width
            )));
        }
        let mut predictions = Vec::with_capacity(rows.rows());
        for chunk in rows.x.chunks(CHUNK * rows.width) {
            let n = chunk.len() / rows.width;
            let scores = model.run_f32(chunk, n)?;
            predictions.extend(scores.chunks_exact((scores.len() / n).max(1)).map(argmax));
        }
        Ok(predictions)
    });
    answered.await.expect("the engine returns its errors")
}

/// The anchor set of `rows`: labelled inputs that a task policy binds retrained models to.
pub fn anchor_set(rows: &Table) -> GoldenSet {
    GoldenSet {
        format: 1,
        inputs: vec![tensor(rows)],
        outputs: vec![],
        tolerance_ppm: 0,
        labels: rows.y.clone(),
    }
}
