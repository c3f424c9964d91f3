use dunlin_protocol::{ReleaseId, TaskId, TensorData};

/// Who in a line-up answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AnsweredBy {
    /// The champion.
    Champion,
    /// The fallback, as the champion could not.
    Fallback,
    /// The constant of the task's policy, as no model could.
    Baseline,
    /// The member that the request named.
    Named,
}

impl AnsweredBy {
    /// The word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Champion => "champion",
            Self::Fallback => "fallback",
            Self::Baseline => "baseline",
            Self::Named => "named",
        }
    }
}

/// An answered request.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Outputs in the graph's order; for classification the last one holds the scores.
    pub outputs: Vec<TensorData>,
    /// Who answered.
    pub by: AnsweredBy,
    /// The release that answered; `None` for the baseline.
    pub release: Option<ReleaseId>,
    /// Generation of the assignment in force.
    pub generation: u64,
    /// Rows answered.
    pub rows: u64,
    /// Time it waited for a worker, nanoseconds.
    pub queue_ns: u64,
    /// Time the model took, nanoseconds.
    pub infer_ns: u64,
}

/// Why a request was not answered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InferError {
    /// Nothing of this name is served.
    #[error("there is no model {0:?} on this device")]
    UnknownTask(TaskId),
    /// The line-up has no such release.
    #[error("model {task:?} has no version {version:?} loaded")]
    UnknownVersion {
        /// The task.
        task: TaskId,
        /// What was asked for.
        version: String,
    },
    /// The request does not fit the model.
    #[error("{0}")]
    Input(String),
    /// An administrator took it out of memory.
    #[error("model {0:?} is unloaded")]
    Unloaded(TaskId),
    /// No model answered and there is no baseline.
    #[error("model {0:?} is not ready: nothing in its line-up can answer")]
    NotReady(TaskId),
    /// The member that the request named failed.
    #[error("model {task:?} failed: {detail}")]
    Failed {
        /// The task.
        task: TaskId,
        /// What happened.
        detail: String,
    },
    /// Too many requests wait.
    #[error("too many requests wait for a worker")]
    Overloaded,
}

/// Why a label was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeedbackError {
    /// Nothing of this name is served.
    #[error("there is no model {0:?} on this device")]
    UnknownTask(TaskId),
    /// The request is not remembered: never made, labelled before, or too long ago.
    #[error("request {0:?} is not remembered")]
    UnknownRequest(String),
    /// The task has no such class.
    #[error("model {task:?} has no class {class}")]
    UnknownClass {
        /// The task.
        task: TaskId,
        /// The class.
        class: u32,
    },
}
