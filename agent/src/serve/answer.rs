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
    /// A challenger, in whose share the request falls.
    Challenger,
    /// A smaller member, because of the device's context.
    Smaller,
    /// A bigger member, as those before it were not sure.
    Bigger,
    /// Champion and voters together.
    Vote,
    /// The meta-model, out of what champion and voters said.
    Stack,
}

impl AnsweredBy {
    /// All of them, in the order of [`TaskView::answered`](super::TaskView).
    pub const ALL: [Self; 9] = [
        Self::Champion,
        Self::Fallback,
        Self::Baseline,
        Self::Named,
        Self::Challenger,
        Self::Smaller,
        Self::Bigger,
        Self::Vote,
        Self::Stack,
    ];

    /// The word in answers and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Champion => "champion",
            Self::Fallback => "fallback",
            Self::Baseline => "baseline",
            Self::Named => "named",
            Self::Challenger => "challenger",
            Self::Smaller => "smaller",
            Self::Bigger => "bigger",
            Self::Vote => "vote",
            Self::Stack => "stack",
        }
    }
}

/// Why a member that should have had a part in an answer had none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Absence {
    /// It took longer than its limit, or found no worker in time.
    Late,
    /// It failed.
    Failed,
    /// It failed too often before and is not asked.
    Quarantined,
    /// There is no room for it in memory.
    Unloaded,
}

impl Absence {
    /// The word in answers.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Late => "late",
            Self::Failed => "failed",
            Self::Quarantined => "quarantined",
            Self::Unloaded => "unloaded",
        }
    }
}

/// An answered request.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Outputs in the graph's order; for classification the last one holds the scores, which are all there is of what
    /// several members made together.
    pub outputs: Vec<TensorData>,
    /// Who answered.
    pub by: AnsweredBy,
    /// The release that answered; of a vote the first that voted; `None` for the baseline.
    pub release: Option<ReleaseId>,
    /// Generation of the line-up in force.
    pub generation: u64,
    /// Those whose scores went into the answer, if it is one of several together.
    pub voters: Vec<ReleaseId>,
    /// Those that were to have a part in it and had none.
    pub left_out: Vec<(ReleaseId, Absence)>,
    /// Rows answered.
    pub rows: u64,
    /// What each member did that answered, whether its answer was given, went into it or was not sure enough; nothing if
    /// none did.
    pub parts: Vec<Part>,
}

/// What one member did for a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The member.
    pub release: ReleaseId,
    /// Time the request waited for a worker, nanoseconds.
    pub queue_ns: u64,
    /// Time the model took, nanoseconds.
    pub infer_ns: u64,
}

impl Answer {
    /// What an answer of several members says beside its generation and who answered: names and values of parameters.
    pub fn notes(&self) -> impl Iterator<Item = (&'static str, String)> {
        let voters = self.voters.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let absent = |(release, why): &(ReleaseId, Absence)| format!("{release}:{}", why.as_str());
        let left_out = self.left_out.iter().map(absent).collect::<Vec<_>>().join(",");
        [("voters", voters), ("left_out", left_out)].into_iter().filter(|(_, text)| !text.is_empty())
    }
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
