//! The job folder: what a training run is given. Remote runners speak the same form.
//!
//! - `job.json`: a [`Job`];
//! - `schema.json`: a [`Schema`];
//! - `data.csv` (or what the job names): UTF-8, a header of the schema's column names in any order, one row
//!   per sample, class names in the label column.
use std::collections::BTreeSet;
use std::path::Path;

use dunlin_protocol::{ClassName, Digest, TaskId, TaskType};
use serde::{Deserialize, Serialize};

use crate::data::{CLASSES_MAX, FEATURES_MAX};
use crate::{Family, LearnError, disk};

/// File name of the job.
pub const JOB_FILE: &str = "job.json";
/// File name of the schema.
pub const SCHEMA_FILE: &str = "schema.json";
/// Usual file name of the data.
pub const DATA_FILE: &str = "data.csv";
/// File name of the result; it is there if and only if the job is done.
pub const RESULT_FILE: &str = "result.json";
/// File name of the failure, a [`crate::result::Failure`]; it is there if the last attempt failed.
pub const ERROR_FILE: &str = "error.json";
/// File name of the progress stream: one [`crate::result::Progress`] per line.
pub const PROGRESS_FILE: &str = "progress.ndjson";
/// Folder of the candidates, one folder each.
pub const CANDIDATES_DIR: &str = "candidates";
/// Trials a job may ask for: a few days of a slow machine.
pub const TRIALS_MAX: u32 = 1000;
/// Target classes a job may name; a candidate is picked for each.
pub const TARGETS_MAX: usize = 32;

/// How rows are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SplitPolicy {
    /// The newest rows are held out: by the schema's time column, else by their order in the file.
    TimeOrdered,
    /// Rows are drawn at random with the same share of every class.
    Stratified,
}

/// The hold-out: rows no model sees before it is scored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    /// How rows are chosen.
    pub policy: SplitPolicy,
    /// Share held out, percent; the same share of the rest decides between trials.
    pub holdout_percent: u32,
}

/// What a device class can carry. Absent limits do not bind.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Target {
    /// The class; none for limits that all devices share.
    pub class: Option<ClassName>,
    /// Largest bundle, bytes.
    pub bundle_bytes_max: Option<u64>,
    /// Most memory, bytes. Checked at intake, where a process of its own measures it.
    pub ram_bytes_max: Option<u64>,
    /// Longest median latency of one row, microseconds, as measured where the job runs.
    pub latency_us_max: Option<u64>,
    /// Operators the class runs; none means all that the engine knows.
    pub ops: Option<BTreeSet<String>>,
}

impl Target {
    /// The class as text, `any` if none is named.
    pub fn name(&self) -> String {
        self.class.as_ref().map_or_else(|| "any".to_owned(), ToString::to_string)
    }
}

/// The data file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dataset {
    /// Its name in the job folder.
    pub file: String,
    /// SHA-256 of its bytes.
    pub digest: Digest,
}

/// What shall be trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Job {
    /// Format of this file, 1.
    pub format: u32,
    /// The task.
    pub task: TaskId,
    /// Its kind; classification is what this release trains.
    pub task_type: TaskType,
    /// Seed of everything random.
    pub seed: u64,
    /// Families to search.
    pub families: Vec<Family>,
    /// The hold-out.
    pub split: Split,
    /// Trials over all families.
    pub trials: u32,
    /// Device classes to find candidates for; empty means one without limits.
    #[serde(default)]
    pub targets: Vec<Target>,
    /// The data.
    pub dataset: Dataset,
}

/// A column of numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Feature {
    /// Column name.
    pub name: String,
    /// Unit (UCUM), empty if there is none.
    #[serde(default)]
    pub unit: String,
    /// Least value a sensor can give; a row below it is damaged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min: Option<f64>,
    /// Largest value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max: Option<f64>,
}

/// What the columns of the data mean.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schema {
    /// Input columns, in the order of the model's input.
    pub features: Vec<Feature>,
    /// Label column.
    pub label: String,
    /// Class names by index.
    pub labels: Vec<String>,
    /// Column of Unix milliseconds that orders the rows, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<String>,
}

impl Job {
    /// Reads and checks `job.json` and `schema.json`.
    pub fn read(dir: &Path) -> Result<(Self, Schema), LearnError> {
        let job: Self = disk::read_json(&dir.join(JOB_FILE))?;
        let schema: Schema = disk::read_json(&dir.join(SCHEMA_FILE))?;
        job.check()?;
        schema.check()?;
        Ok((job, schema))
    }

    /// Writes both files; the data file is the caller's.
    pub fn write(&self, schema: &Schema, dir: &Path) -> Result<(), LearnError> {
        disk::write_json(&dir.join(SCHEMA_FILE), schema)?;
        disk::write_json(&dir.join(JOB_FILE), self)
    }

    /// The targets, at least one.
    pub fn targets(&self) -> Vec<Target> {
        if self.targets.is_empty() { vec![Target::default()] } else { self.targets.clone() }
    }

    fn check(&self) -> Result<(), LearnError> {
        let bad = |field, rule: &str| Err(LearnError::Job { field, rule: rule.to_owned() });
        if self.format != 1 {
            return bad("format", "must be 1");
        }
        if self.task_type != TaskType::Classification {
            return bad("task_type", "must be classification: this release trains nothing else");
        }
        if self.families.is_empty()
            || self.families.iter().collect::<BTreeSet<_>>().len() != self.families.len()
        {
            return bad("families", "must name at least one family, each once");
        }
        if !(5..=50).contains(&self.split.holdout_percent) {
            return bad("split.holdout_percent", "must lie between 5 and 50");
        }
        if self.trials < self.families.len() as u32 || self.trials > TRIALS_MAX {
            return bad("trials", "must be at least one per family and at most 1000");
        }
        if self.targets.len() > TARGETS_MAX {
            return bad("targets", "must be at most 32");
        }
        let file = Path::new(&self.dataset.file);
        if file.file_name().is_none_or(|name| name != file.as_os_str()) {
            return bad("dataset.file", "must be a plain file name in the job folder");
        }
        Ok(())
    }
}

impl Schema {
    /// Names of the features in order.
    pub fn feature_names(&self) -> Vec<String> {
        self.features.iter().map(|feature| feature.name.clone()).collect()
    }

    fn check(&self) -> Result<(), LearnError> {
        let bad = |field, rule: String| Err(LearnError::Job { field, rule });
        if self.features.is_empty() || self.features.len() > FEATURES_MAX {
            return bad("schema.features", format!("must be between 1 and {FEATURES_MAX}"));
        }
        if !(2..=CLASSES_MAX).contains(&self.labels.len()) {
            return bad("schema.labels", format!("must be between 2 and {CLASSES_MAX}"));
        }
        if self.labels.iter().collect::<BTreeSet<_>>().len() != self.labels.len() {
            return bad("schema.labels", "must differ from one another".to_owned());
        }
        let columns: Vec<&String> = self
            .features
            .iter()
            .map(|feature| &feature.name)
            .chain([&self.label])
            .chain(&self.time)
            .collect();
        if columns.iter().collect::<BTreeSet<_>>().len() != columns.len() {
            return bad("schema", "must name every column once".to_owned());
        }
        Ok(())
    }
}
