use dunlin_pipeline::Cause;
use dunlin_protocol::TaskId;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use crate::api::shape;
use crate::planner::TaskDefinition;

/// A retraining run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunRow {
    /// Id.
    pub id: String,
    /// The task.
    #[schema(value_type = String)]
    pub task: TaskId,
    /// Who owns the task.
    pub owner: String,
    /// Why it was started.
    #[schema(value_type = shape::Cause)]
    pub cause: Cause,
    /// `waiting`, `running`, `succeeded`, `no_gain`, `failed` or `cancelled`.
    pub state: String,
    /// The task as it was defined then.
    pub definition: TaskDefinition,
    /// Seed of everything random in it.
    pub seed: u64,
    /// Run whose dataset and seed it repeats.
    pub repeats: Option<String>,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub started_ms: Option<u64>,
    /// Unix milliseconds.
    pub ended_ms: Option<u64>,
    /// Dataset digest, rows, code, metrics, verdicts, releases.
    #[schema(value_type = Object)]
    pub facts: Value,
}

/// What triggers ask of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunStanding {
    /// Id.
    pub id: String,
    /// As of [`RunRow`].
    pub state: String,
    /// Unix milliseconds.
    pub created_ms: u64,
    /// Unix milliseconds.
    pub ended_ms: Option<u64>,
}

/// A labelled sample.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainingRow {
    /// Features.
    pub x: Vec<f32>,
    /// Class index.
    pub label: u32,
    /// When the device saw it, Unix milliseconds.
    pub at_ms: u64,
}

/// What an operator wants of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "wanted", rename_all = "snake_case")]
pub enum Wanted {
    /// That it ends.
    Cancel {
        /// Who.
        by: String,
    },
    /// That the failed step is tried again.
    Restart {
        /// Who.
        by: String,
    },
}

/// A run with its journal.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct RunDetail {
    /// The run.
    pub run: RunRow,
    /// Line by line.
    #[schema(value_type = Vec<shape::JournalEntry>)]
    pub journal: Vec<dunlin_pipeline::Entry>,
}
