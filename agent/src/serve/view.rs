//! What is served, as it is shown.

use dunlin_protocol::{ReleaseId, TaskId, TensorSpec};

use super::tally::Tally;

/// A task's part in the line-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemberRole {
    /// Answers.
    Champion,
    /// Answers when the champion can not.
    Fallback,
    /// The champion before this one, kept warm in probation.
    Previous,
}

/// A loaded member of a line-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its part.
    pub role: MemberRole,
    /// Its release.
    pub release: ReleaseId,
    /// Inputs it takes.
    pub inputs: Vec<TensorSpec>,
    /// Outputs it gives.
    pub outputs: Vec<TensorSpec>,
    /// Expected latency of one row, microseconds.
    pub row_us: u64,
    /// Why it is no longer asked, if it failed too often.
    pub out: Option<String>,
    /// What it has answered.
    pub tally: Tally,
}

/// What a task serves at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskView {
    /// The task.
    pub task: TaskId,
    /// Its loaded models, the champion first.
    pub members: Vec<Member>,
    /// What an administrator took out of memory; requests are refused until something is loaded.
    pub unloaded: Vec<ReleaseId>,
    /// Generation of the assignment in force.
    pub generation: u64,
    /// Whether the champion is in probation.
    pub probation: bool,
    /// Whether there is a constant to answer with when no model can.
    pub baseline: bool,
    /// Requests answered since the agent started, by champion, fallback, baseline and named member.
    pub answered: [u64; 4],
    /// Runs of models that failed since the agent started.
    pub failed: u64,
}

impl TaskView {
    /// Whether a request would be answered.
    pub fn is_ready(&self) -> bool {
        self.unloaded.is_empty() && (self.baseline || self.members.iter().any(|m| m.out.is_none()))
    }
}
