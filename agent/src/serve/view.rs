//! What is served, as it is shown.

use dunlin_protocol::{ReleaseId, Role, TaskId, TensorSpec};

use super::AnsweredBy;
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
    /// Answers a share of the requests.
    Challenger,
    /// Answers after the champion, for the record.
    Shadow,
    /// Votes, or is heard by the meta-model.
    Voter,
    /// Asked when those before it are unsure.
    Bigger,
    /// Answers while a context rule holds.
    Smaller,
    /// Makes one answer of several.
    Meta,
}

impl MemberRole {
    /// The word in metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Champion => "champion",
            Self::Fallback => "fallback",
            Self::Previous => "previous",
            Self::Challenger => "challenger",
            Self::Shadow => "shadow",
            Self::Voter => "voter",
            Self::Bigger => "bigger",
            Self::Smaller => "smaller",
            Self::Meta => "meta",
        }
    }
}

impl From<Role> for MemberRole {
    fn from(role: Role) -> Self {
        match role {
            Role::Fallback => Self::Fallback,
            Role::Challenger { .. } => Self::Challenger,
            Role::Shadow { .. } => Self::Shadow,
            Role::Voter { .. } => Self::Voter,
            Role::Bigger => Self::Bigger,
            Role::Smaller => Self::Smaller,
            Role::Meta => Self::Meta,
        }
    }
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
    /// Members that there is no room for in memory.
    pub away: Vec<ReleaseId>,
    /// Members that failed too often and are not in memory any more, and how they failed at last.
    pub dismissed: Vec<(ReleaseId, String)>,
    /// Generation of the assignment in force.
    pub generation: u64,
    /// Whether the champion is in probation.
    pub probation: bool,
    /// Whether there is a constant to answer with when no model can.
    pub baseline: bool,
    /// Why a smaller member answers, if one does because of the device's context.
    pub degraded: Option<String>,
    /// Requests answered since the agent started, in the order of [`AnsweredBy::ALL`].
    pub answered: [u64; AnsweredBy::ALL.len()],
    /// Runs of models that failed since the agent started.
    pub failed: u64,
}

impl TaskView {
    /// The releases in memory, each once: in probation the previous champion may be the fallback as well.
    pub fn versions(&self) -> Vec<&ReleaseId> {
        let mut all = Vec::new();
        for Member { release, .. } in &self.members {
            if !all.contains(&release) {
                all.push(release);
            }
        }
        all
    }

    /// Whether a request would be answered.
    pub fn is_ready(&self) -> bool {
        self.unloaded.is_empty() && (self.baseline || self.members.iter().any(|m| m.out.is_none()))
    }

    /// What is not in memory, and why.
    pub fn absent(&self) -> impl Iterator<Item = (&ReleaseId, &str)> {
        let unloaded = self.unloaded.iter().map(|release| (release, "unloaded"));
        let away = self.away.iter().map(|release| (release, "there is no room for it in memory"));
        let dismissed = self.dismissed.iter().map(|(release, why)| (release, why.as_str()));
        unloaded.chain(away).chain(dismissed)
    }
}
