use std::path::PathBuf;

use crate::Family;

/// Why a job could not be done.
#[derive(Debug, thiserror::Error)]
pub enum LearnError {
    /// A file of the job folder could not be read or written.
    #[error("could not {attempted} {path}")]
    File {
        /// What was attempted.
        attempted: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A JSON file is not of the right form.
    #[error("{path} is not of the form this release reads")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A field of the job makes no sense.
    #[error("job.json: {field} {rule}")]
    Job {
        /// The field.
        field: &'static str,
        /// What it must be.
        rule: String,
    },
    /// The data file is not the one the job names.
    #[error("dataset {path} has digest {found}, the job names {expected}")]
    DatasetDigest {
        /// The file.
        path: PathBuf,
        /// What the job names.
        expected: String,
        /// What the file has.
        found: String,
    },
    /// The CSV text is damaged.
    #[error("dataset: line {line}: {problem}")]
    Csv {
        /// Line in the file, the header being 1.
        line: u64,
        /// What is wrong.
        problem: String,
    },
    /// The data is of the right form but not fit to learn from.
    #[error("dataset: {anomaly}: {detail}")]
    Anomaly {
        /// Name of the anomaly, stable.
        anomaly: &'static str,
        /// What was seen and what the limit is.
        detail: String,
    },
    /// A model could not be fitted.
    #[error("could not fit {family} ({detail})")]
    Fit {
        /// The family.
        family: Family,
        /// What happened.
        detail: String,
    },
    /// A tensor operation failed.
    #[error("could not fit the mlp")]
    Tensor(#[from] candle_core::Error),
    /// The engine refused an exported model.
    #[error("the engine refused the exported {family}")]
    Engine {
        /// The family.
        family: Family,
        /// Why.
        #[source]
        source: dunlin_engine::EngineError,
    },
    /// The engine answers otherwise than the native model.
    #[error(
        "export of {family}: row {row} differs by {error_ppm} ppm between the native model and the engine"
    )]
    Parity {
        /// The family.
        family: Family,
        /// Hold-out row with the largest difference.
        row: usize,
        /// Difference, parts per million.
        error_ppm: u32,
    },
    /// No trial produced a model within the constraints of any target.
    #[error("none of {trials} trials gave a model within the constraints of any target class")]
    NothingFits {
        /// Trials made.
        trials: usize,
    },
}

impl LearnError {
    /// Whether the data is at fault rather than the job or the machine: trying again changes nothing.
    pub fn is_data(&self) -> bool {
        match self {
            Self::DatasetDigest { .. } | Self::Csv { .. } | Self::Anomaly { .. } => true,
            Self::File { .. }
            | Self::Json { .. }
            | Self::Job { .. }
            | Self::Fit { .. }
            | Self::Tensor(_)
            | Self::Engine { .. }
            | Self::Parity { .. }
            | Self::NothingFits { .. } => false,
        }
    }

    /// The stable name of the failure, for machines.
    pub fn code(&self) -> &'static str {
        match self {
            Self::File { .. } => "file",
            Self::Json { .. } => "json",
            Self::Job { .. } => "job",
            Self::DatasetDigest { .. } => "dataset_digest",
            Self::Csv { .. } => "csv",
            Self::Anomaly { anomaly, .. } => anomaly,
            Self::Fit { .. } | Self::Tensor(_) => "fit",
            Self::Engine { .. } => "engine",
            Self::Parity { .. } => "parity",
            Self::NothingFits { .. } => "nothing_fits",
        }
    }
}
