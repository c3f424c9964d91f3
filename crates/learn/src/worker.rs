//! Running one job folder: validate, split, search, export, prove, report.
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::path::{Path, PathBuf};

use dunlin_protocol::{Blob, Digest, ReferenceProfile};
use serde::{Deserialize, Serialize};

use crate::data::Table;
use crate::export::{self, Proven};
use crate::family::{argmax, fit};
use crate::job::{CANDIDATES_DIR, ERROR_FILE, JOB_FILE, Job, PROGRESS_FILE, RESULT_FILE, Schema, Target};
use crate::result::{Candidate, Failure, GOLDEN_FILE, MODEL_FILE, PROFILE_FILE, Progress, RunResult, Trial};
use crate::split::{Parts, holdout, split};
use crate::{Config, Family, LearnError, VERSION, disk, search};

/// Folder of finished trials.
const TRIALS_DIR: &str = "trials";
/// Refits per family and target before the search's answer for it is taken to be none.
const REFITS_MAX: usize = 3;

/// Runs the job in `dir` to its end, or takes it up where it was cut. The outcome is in the folder too:
/// `result.json`, or `error.json`.
pub fn train_worker(dir: &Path) -> Result<RunResult, LearnError> {
    let outcome = Worker::open(dir).and_then(|worker| worker.run());
    match &outcome {
        Ok(_) => disk::remove(&dir.join(ERROR_FILE))?,
        Err(error) => {
            let failure = Failure { code: error.code().into(), data: error.is_data(), message: chain(error) };
            disk::write_json(&dir.join(ERROR_FILE), &failure)?;
        }
    }
    outcome
}

fn chain(error: &LearnError) -> String {
    let causes = std::iter::successors(error.source(), |error: &&(dyn Error + 'static)| (*error).source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// A trial as kept on disk, with the job it belongs to.
#[derive(Serialize, Deserialize)]
struct Kept {
    job: Digest,
    trial: Trial,
}

struct Worker {
    dir: PathBuf,
    digest: Digest,
    job: Job,
    schema: Schema,
}

/// The rows of a job, divided.
struct Rows {
    parts: Parts,
    all: Table,
    /// Everything but the hold-out.
    train: Table,
    holdout: Table,
    /// What trials learn from and are judged by: both inside `train`.
    inner: Table,
    validation: Table,
    reference: ReferenceProfile,
    overhead: u64,
}

/// A trial's configuration fitted on all training rows.
struct Refit {
    proven: Proven,
    profile: Vec<u8>,
    golden: Vec<u8>,
}

impl Refit {
    fn bytes(&self) -> u64 {
        (self.proven.onnx.len() + self.profile.len() + self.golden.len()) as u64
    }
}

impl Worker {
    fn open(dir: &Path) -> Result<Self, LearnError> {
        let (job, schema) = Job::read(dir)?;
        let bytes = disk::read(&dir.join(JOB_FILE), 1 << 20)?;
        Ok(Self { dir: dir.to_owned(), digest: disk::sha256(&bytes), job, schema })
    }

    fn run(&self) -> Result<RunResult, LearnError> {
        let result_path = self.dir.join(RESULT_FILE);
        if let Ok(result) = disk::read_json::<RunResult>(&result_path)
            && result.job == self.digest
        {
            return Ok(result);
        }
        let rows = self.rows()?;
        let dropped = rows.all.dropped.values().sum();
        self.progress(&Progress::Validated { rows: rows.all.rows() as u64, dropped })?;
        let trials = self.search(&rows)?;
        let candidates = self.candidates(&rows, &trials)?;
        let result = RunResult {
            format: 1,
            job: self.digest,
            dataset: self.job.dataset.digest,
            seed: self.job.seed,
            code: VERSION.into(),
            cpu: std::env::consts::ARCH.into(),
            rows: rows.all.rows() as u64,
            dropped: rows.all.dropped.clone(),
            classes: rows.all.class_counts(),
            holdout: rows.parts.holdout.iter().map(|&i| i as u64).collect(),
            truth: rows.holdout.y.clone(),
            candidates,
            trials,
        };
        disk::write_json(&result_path, &result)?;
        self.progress(&Progress::Done)?;
        Ok(result)
    }

    fn progress(&self, step: &Progress) -> Result<(), LearnError> {
        let line = serde_json::to_string(step).expect("progress is plain data");
        disk::append_line(&self.dir.join(PROGRESS_FILE), &line)
    }

    fn rows(&self) -> Result<Rows, LearnError> {
        let all = Table::read(&self.dir, &self.job, &self.schema)?;
        let parts = holdout(&all, self.job.split, self.job.seed);
        let (train, held) = (all.take(&parts.train), all.take(&parts.holdout));
        let inner = split(&train, self.job.split, self.job.seed, "validation");
        let (inner, validation) = (train.take(&inner.train), train.take(&inner.holdout));
        if let Some(class) = inner.class_counts().iter().position(|&count| count == 0) {
            let detail = format!("class {:?} occurs in the held-out rows alone", self.schema.labels[class]);
            return Err(LearnError::Anomaly { anomaly: crate::data::RARE_CLASS, detail });
        }
        let reference = export::reference(&self.schema, &train);
        let overhead = export::overhead(&reference, &train);
        Ok(Rows { parts, all, train, holdout: held, inner, validation, reference, overhead })
    }

    fn search(&self, rows: &Rows) -> Result<Vec<Trial>, LearnError> {
        let folder = self.dir.join(TRIALS_DIR);
        disk::make_dir(&folder)?;
        let configs = search::plan(&self.job.families, self.job.trials as usize, self.job.seed);
        let of = configs.len();
        let mut trials = Vec::with_capacity(of);
        for (number, config) in configs.into_iter().enumerate() {
            let path = folder.join(format!("{number:04}.json"));
            let earlier = disk::read_json::<Kept>(&path).ok().filter(|kept| {
                kept.job == self.digest && kept.trial.number == number && kept.trial.config == config
            });
            let kept = earlier.is_some();
            let trial = match earlier {
                Some(earlier) => earlier.trial,
                None => {
                    let trial = self.try_one(number, config, rows)?;
                    disk::write_json(&path, &Kept { job: self.digest, trial: trial.clone() })?;
                    trial
                }
            };
            let (family, accuracy_ppm) = (trial.config.family(), ppm(trial.right, trial.n));
            self.progress(&Progress::Trial { number, of, family, accuracy_ppm, kept })?;
            trials.push(trial);
        }
        Ok(trials)
    }

    fn try_one(&self, number: usize, config: Config, rows: &Rows) -> Result<Trial, LearnError> {
        let family = config.family();
        let model = fit(&config, &rows.inner, self.job.seed)?;
        let scores = model.scores(&rows.validation.x)?;
        let classes = rows.validation.classes;
        let right = argmax(&scores, classes).iter().zip(&rows.validation.y).filter(|(a, b)| a == b).count();
        let loss: f64 = scores
            .chunks_exact(classes)
            .zip(&rows.validation.y)
            .map(|(row, &class)| -f64::from(row[class as usize]).max(1e-12).ln())
            .sum();
        let n = rows.validation.rows() as u64;
        let onnx = model.onnx();
        let inspection =
            dunlin_engine::inspect(&onnx).map_err(|source| LearnError::Engine { family, source })?;
        Ok(Trial {
            number,
            config,
            n,
            right: right as u64,
            log_loss_ppm: (loss / n as f64 * 1e6) as u64,
            model_bytes: onnx.len() as u64,
            ops: inspection.ops.into_iter().collect(),
        })
    }

    /// For each family and target the best trial whose refit still fits.
    fn candidates(&self, rows: &Rows, trials: &[Trial]) -> Result<Vec<Candidate>, LearnError> {
        let mut refits: BTreeMap<usize, Refit> = BTreeMap::new();
        let mut chosen: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        let families: BTreeSet<Family> = self.job.families.iter().copied().collect();
        for family in families {
            for target in self.job.targets() {
                for trial in ranked(trials, family, &target, rows.overhead).into_iter().take(REFITS_MAX) {
                    let refit = match refits.entry(trial.number) {
                        Entry::Occupied(made) => made.into_mut(),
                        Entry::Vacant(place) => place.insert(self.refit(trial, rows)?),
                    };
                    if fits(&target, refit) {
                        chosen.entry(trial.number).or_default().push(target.name());
                        break;
                    }
                }
            }
        }
        if chosen.is_empty() {
            return Err(LearnError::NothingFits { trials: trials.len() });
        }
        let mut numbers: Vec<usize> = chosen.keys().copied().collect();
        numbers.sort_by(|&a, &b| better(&trials[a], &trials[b]));
        let mut per_family: BTreeMap<Family, u32> = BTreeMap::new();
        let mut candidates = Vec::with_capacity(numbers.len());
        for number in numbers {
            let trial = &trials[number];
            let family = trial.config.family();
            let nth = per_family.entry(family).and_modify(|n| *n += 1).or_insert(1);
            let id = if *nth == 1 { family.to_string() } else { format!("{family}-{nth}") };
            let candidate = self.write(id, trial, &chosen[&number], &refits[&number], rows)?;
            let (id, accuracy_ppm) = (candidate.id.clone(), candidate.accuracy_ppm);
            self.progress(&Progress::Candidate { id, accuracy_ppm })?;
            candidates.push(candidate);
        }
        Ok(candidates)
    }

    fn refit(&self, trial: &Trial, rows: &Rows) -> Result<Refit, LearnError> {
        let model = fit(&trial.config, &rows.train, self.job.seed)?;
        let proven = export::prove(trial.config.family(), model.as_ref(), &rows.holdout)?;
        let profile = export::profile_bytes(&rows.reference, model.as_ref(), &rows.train)?;
        let golden = export::golden_bytes(model.as_ref(), &rows.train)?;
        Ok(Refit { proven, profile, golden })
    }

    fn write(
        &self,
        id: String,
        trial: &Trial,
        targets: &[String],
        refit: &Refit,
        rows: &Rows,
    ) -> Result<Candidate, LearnError> {
        let folder = self.dir.join(CANDIDATES_DIR).join(&id);
        disk::make_dir(&folder)?;
        let mut files = BTreeMap::new();
        let parts =
            [(MODEL_FILE, &refit.proven.onnx), (PROFILE_FILE, &refit.profile), (GOLDEN_FILE, &refit.golden)];
        for (name, bytes) in parts {
            disk::write(&folder.join(name), bytes)?;
            files.insert(name.to_owned(), Blob { digest: disk::sha256(bytes), length: bytes.len() as u64 });
        }
        let predictions = refit.proven.predictions.clone();
        let right = predictions.iter().zip(&rows.holdout.y).filter(|(a, b)| a == b).count() as u64;
        let n = predictions.len() as u64;
        Ok(Candidate {
            id,
            family: trial.config.family(),
            config: trial.config.clone(),
            trial: trial.number,
            targets: targets.to_vec(),
            n,
            right,
            accuracy_ppm: ppm(right, n),
            predictions,
            files,
            ops: refit.proven.ops.clone(),
            latency_us: refit.proven.latency_us,
            parity_ppm: refit.proven.parity_ppm,
        })
    }
}

fn ppm(part: u64, whole: u64) -> u32 {
    (part * 1_000_000).checked_div(whole).unwrap_or(0) as u32
}

/// More right, then better calibrated, then smaller, then earlier.
fn better(a: &Trial, b: &Trial) -> std::cmp::Ordering {
    b.right
        .cmp(&a.right)
        .then(a.log_loss_ppm.cmp(&b.log_loss_ppm))
        .then(a.model_bytes.cmp(&b.model_bytes))
        .then(a.number.cmp(&b.number))
}

/// The trials of a family that a target can carry, best first.
fn ranked<'a>(trials: &'a [Trial], family: Family, target: &Target, overhead: u64) -> Vec<&'a Trial> {
    let mut ranked: Vec<&Trial> = trials
        .iter()
        .filter(|trial| trial.config.family() == family)
        .filter(|trial| target.bundle_bytes_max.is_none_or(|max| trial.model_bytes + overhead <= max))
        .filter(|trial| target.ops.as_ref().is_none_or(|ops| trial.ops.iter().all(|op| ops.contains(op))))
        .collect();
    ranked.sort_by(|a, b| better(a, b));
    ranked
}

fn fits(target: &Target, refit: &Refit) -> bool {
    target.bundle_bytes_max.is_none_or(|max| refit.bytes() <= max)
        && target.latency_us_max.is_none_or(|max| refit.proven.latency_us <= max)
}
