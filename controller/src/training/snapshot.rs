//! The dataset of a run, frozen as a job folder.
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use dunlin_learn::job::{DATA_FILE, Dataset, Feature, JOB_FILE, Job, SCHEMA_FILE, Schema, Target};
use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{Digest, ReleaseId, RetrainedBounds};
use serde::{Deserialize, Serialize};

use super::steps::StepError;
use super::{RunRow, TrainingRow};
use crate::api::AppState;
use crate::store::DeviceState;

/// What the pull left.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pulled {
    pub(super) dataset: Digest,
    pub(super) rows: u64,
    pub(super) width: usize,
}

/// The folder of a run.
pub(super) fn folder(state: &AppState, run: &str) -> PathBuf {
    state.data.join("runs").join(run)
}

/// Freezes the newest labelled samples, or copies what another run froze.
pub(super) async fn pull(state: &AppState, run: &RunRow) -> Result<Pulled, StepError> {
    let dir = folder(state, &run.id);
    std::fs::create_dir_all(&dir).map_err(StepError::io("make", &dir))?;
    if let Some(original) = &run.repeats {
        return copy(&folder(state, original), &dir);
    }
    let retraining = run
        .definition
        .retraining
        .as_ref()
        .ok_or_else(|| StepError::fatal("the task has no retraining rules"))?;
    let since_ms = if retraining.age_ms_max == 0 {
        0
    } else {
        crate::clock::wall_ms().saturating_sub(retraining.age_ms_max)
    };
    let left_out = retraining.exclude.iter().chain(&run.definition.held);
    let left_out = left_out.filter(|_| !weaken::off(Defence::Exclusion));
    let exclude: Vec<&str> = left_out.map(|group| group.as_str()).collect();
    let rows = state.store.training_rows(&run.task, since_ms, &exclude, retraining.rows_max).await?;
    let names = feature_names(state, run, &rows).await?;
    let rows: Vec<TrainingRow> = rows
        .into_iter()
        .filter(|row| row.x.len() == names.len() && (row.label as usize) < run.definition.labels.len())
        .collect();
    let bytes = csv_of(&names, &run.definition.labels, &rows)?;
    let dataset = dunlin_trust::sha256(&bytes);
    durable(&dir.join(DATA_FILE), &bytes)?;
    let schema = Schema {
        features: names
            .into_iter()
            .map(|name| Feature { name, unit: String::new(), min: None, max: None })
            .collect(),
        label: LABEL.into(),
        labels: run.definition.labels.clone(),
        time: Some(TIME.into()),
    };
    let text = serde_json::to_vec_pretty(&schema).expect("a schema is JSON");
    durable(&dir.join(SCHEMA_FILE), &text)?;
    Ok(Pulled { dataset, rows: rows.len() as u64, width: schema.features.len() })
}

const LABEL: &str = "dunlin_label";
const TIME: &str = "dunlin_at_ms";

/// Names of the features as the releases of the pool have them, so that drift reports and new models agree.
async fn feature_names(
    state: &AppState,
    run: &RunRow,
    rows: &[TrainingRow],
) -> Result<Vec<String>, StepError> {
    let mut widths: BTreeMap<usize, usize> = BTreeMap::new();
    rows.iter().for_each(|row| *widths.entry(row.x.len()).or_default() += 1);
    let width = widths.into_iter().max_by_key(|(_, rows)| *rows).map_or(0, |(width, _)| width);
    for release in &run.definition.pool {
        let Some(row) = state.store.release(release).await? else { continue };
        let features = &row.bundle.signature.features;
        if features.len() == width && width > 0 {
            return Ok(features.iter().map(|feature| feature.name.clone()).collect());
        }
    }
    Ok((0..width).map(|i| format!("x{i}")).collect())
}

fn csv_of(names: &[String], labels: &[String], rows: &[TrainingRow]) -> Result<Vec<u8>, StepError> {
    let mut csv = csv::Writer::from_writer(Vec::new());
    let bad = |error: csv::Error| StepError::fatal(format!("could not write the dataset: {error}"));
    csv.write_record(names.iter().map(String::as_str).chain([LABEL, TIME])).map_err(bad)?;
    for row in rows {
        let label = labels.get(row.label as usize).cloned().unwrap_or_default();
        csv.write_record(row.x.iter().map(f32::to_string).chain([label, row.at_ms.to_string()]))
            .map_err(bad)?;
    }
    csv.into_inner().map_err(|error| StepError::fatal(format!("could not write the dataset: {error}")))
}

fn copy(from: &Path, to: &Path) -> Result<Pulled, StepError> {
    for name in [DATA_FILE, SCHEMA_FILE, JOB_FILE] {
        let path = from.join(name);
        let bytes = std::fs::read(&path).map_err(|error| {
            StepError::fatal(format!("the run to repeat left no {}: {error}", path.display()))
        })?;
        durable(&to.join(name), &bytes)?;
    }
    let (job, schema) = Job::read(to).map_err(|error| StepError::fatal(error.to_string()))?;
    let data = std::fs::read(to.join(DATA_FILE)).map_err(StepError::io("read", to))?;
    if dunlin_trust::sha256(&data) != job.dataset.digest {
        return Err(StepError::fatal("the dataset of the run to repeat was changed"));
    }
    let rows = data.iter().filter(|byte| **byte == b'\n').count().saturating_sub(1) as u64;
    Ok(Pulled { dataset: job.dataset.digest, rows, width: schema.features.len() })
}

/// Refuses what can not give a model, and writes the job. Returns the digest of `job.json`.
pub(super) async fn validate(state: &AppState, run: &RunRow, pulled: &Pulled) -> Result<Digest, StepError> {
    let dir = folder(state, &run.id);
    let retraining = run
        .definition
        .retraining
        .as_ref()
        .ok_or_else(|| StepError::fatal("the task has no retraining rules"))?;
    if pulled.rows < retraining.rows_min {
        return Err(StepError::fatal(format!(
            "{} labelled samples are too few; the task asks for {}",
            pulled.rows, retraining.rows_min
        )));
    }
    if run.repeats.is_none() {
        let job = Job {
            format: 1,
            task: run.task.clone(),
            task_type: run.definition.task_type,
            seed: run.seed,
            families: retraining.families.clone(),
            split: retraining.split,
            trials: retraining.trials,
            targets: targets(state, run).await?,
            dataset: Dataset { file: DATA_FILE.into(), digest: pulled.dataset },
        };
        durable(&dir.join(JOB_FILE), &serde_json::to_vec_pretty(&job).expect("a job is JSON"))?;
    }
    Job::read(&dir).map_err(|error| StepError::fatal(error.to_string()))?;
    let bytes = std::fs::read(dir.join(JOB_FILE)).map_err(StepError::io("read", &dir))?;
    Ok(dunlin_trust::sha256(&bytes))
}

/// The bounds that the owner signed for retrained models of the run's task.
pub(super) fn bounds(state: &AppState, run: &RunRow) -> Result<RetrainedBounds, StepError> {
    let policy = state.repos.policy(&run.task).map_err(|error| StepError::fatal(error.to_string()))?;
    policy.and_then(|policy| policy.retrained).ok_or_else(|| {
        StepError::fatal(format!("the signed policy of task {} does not allow retrained models", run.task))
    })
}

/// One target per hardware class: the least budget of its devices, within the bounds of the signed policy.
async fn targets(state: &AppState, run: &RunRow) -> Result<Vec<Target>, StepError> {
    let bounds = bounds(state, run)?;
    let mut targets: BTreeMap<String, Target> = BTreeMap::new();
    let least =
        |limit: &mut Option<u64>, budget: u64| *limit = Some(limit.map_or(budget, |limit| limit.min(budget)));
    for device in state.store.devices().await? {
        if device.state != DeviceState::Active
            || !run.definition.covers(&device.groups)
            || run.definition.holds(&device.groups)
        {
            continue;
        }
        let profile = &device.profile;
        let target = targets.entry(profile.class.to_string()).or_insert_with(|| Target {
            class: Some(profile.class.clone()),
            bundle_bytes_max: Some(bounds.bundle_bytes_max),
            ram_bytes_max: Some(bounds.ram_bytes_max),
            latency_us_max: Some(bounds.latency_us_max),
            ops: Some(bounds.ops.clone()),
        });
        least(&mut target.bundle_bytes_max, profile.budgets.model_bytes_max);
        least(&mut target.ram_bytes_max, profile.budgets.model_ram_bytes_max);
        least(&mut target.latency_us_max, profile.budgets.latency_us_max);
        if let Some(ops) = &mut target.ops {
            ops.retain(|op| profile.ops.contains(op));
        }
    }
    if targets.is_empty() {
        return Err(StepError::fatal(format!("no device of task {} may be given a new model", run.task)));
    }
    Ok(targets.into_values().take(dunlin_learn::job::TARGETS_MAX).collect())
}

/// Whole and durable, or not there.
fn durable(path: &Path, bytes: &[u8]) -> Result<(), StepError> {
    use std::io::Write;
    let part = path.with_extension("part");
    let write = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(&part)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&part, path)
    };
    write().map_err(StepError::io("write", path))
}

/// Releases a new model is compared with: those that any device may run or runs.
pub(super) async fn incumbents(state: &AppState, run: &RunRow) -> Result<Vec<ReleaseId>, StepError> {
    let mut releases: Vec<ReleaseId> = Vec::new();
    let installed = state.store.installed_all().await?;
    let serving = installed.values().filter_map(|tasks| tasks.get(&run.task)?.release.clone());
    for release in run.definition.pool.iter().cloned().chain(serving) {
        if !releases.contains(&release) && state.store.release(&release).await?.is_some() {
            releases.push(release);
        }
    }
    Ok(releases)
}
