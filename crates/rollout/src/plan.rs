use alloc::collections::{BTreeMap, BTreeSet};
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::{DeviceId, ReasonCode, ReleaseId, TaskId};
use serde::{Deserialize, Serialize};

use crate::Evidence;

/// How a device of a wave failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "how", rename_all = "snake_case")]
pub enum Failure {
    /// It said so.
    Reported {
        /// Its reason code.
        reason: ReasonCode,
    },
    /// It did not finish the ordered update in time.
    Unfinished {
        /// Milliseconds since the order.
        for_ms: u64,
    },
    /// It was not heard of in time.
    Silent {
        /// Milliseconds since its last message, or since the wave opened if there was none.
        for_ms: u64,
    },
}

/// Why a rollout stopped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "because", rename_all = "snake_case")]
pub enum StopReason {
    /// More devices of the wave failed than the policy allows.
    Failures {
        /// Which, and how.
        failed: Vec<(DeviceId, Failure)>,
        /// Failures the policy allows in a wave of this size.
        allowed: usize,
    },
    /// A candidate gives worse answers than what it replaces.
    Harm {
        /// The candidate.
        release: ReleaseId,
        /// What it stands on.
        evidence: Evidence,
    },
    /// An operator aborted it.
    Operator {
        /// Who.
        by: String,
    },
}

/// Where a rollout stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum State {
    /// No wave has opened.
    Created,
    /// A wave is open.
    Open {
        /// Its index.
        wave: usize,
        /// Wall time at which it opened, Unix milliseconds.
        since_ms: u64,
    },
    /// As open, but no further wave opens. The gates that stop a rollout go on.
    Paused {
        /// The wave that is open.
        wave: usize,
        /// Wall time at which it opened, Unix milliseconds.
        since_ms: u64,
        /// Who paused it.
        by: String,
    },
    /// Every device is open to the candidates for good.
    Promoted {
        /// Wall time, Unix milliseconds.
        at_ms: u64,
    },
    /// Ended; the devices of its waves return to what they ran.
    Stopped {
        /// Wall time, Unix milliseconds.
        at_ms: u64,
        /// Why.
        reason: StopReason,
    },
    /// A newer rollout of the task took its place; what it installed stays until that one replaces it.
    Superseded {
        /// Wall time, Unix milliseconds.
        at_ms: u64,
        /// The newer rollout.
        by: String,
    },
}

impl State {
    /// Whether the rollout never moves again.
    pub fn is_final(&self) -> bool {
        match self {
            Self::Created | Self::Open { .. } | Self::Paused { .. } => false,
            Self::Promoted { .. } | Self::Stopped { .. } | Self::Superseded { .. } => true,
        }
    }

    /// One word for lists and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Open { .. } => "open",
            Self::Paused { .. } => "paused",
            Self::Promoted { .. } => "promoted",
            Self::Stopped { .. } => "stopped",
            Self::Superseded { .. } => "superseded",
        }
    }
}

/// When a device was let in, and what it ran before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Previous {
    /// The wave that let it in.
    pub wave: usize,
    /// What it served then; where it returns to if the rollout stops.
    pub release: Option<ReleaseId>,
}

/// What a rollout means for one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stance {
    /// No candidate may be chosen for it.
    Hold,
    /// Candidates stand beside the promoted releases; selection decides.
    Open,
    /// It leaves every candidate and returns to the release it ran before.
    Return,
}

/// One generation of a rollout: immutable; a change is a new plan whose parent is this one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// Id of the rollout.
    pub rollout: String,
    /// The task its candidates are for.
    pub task: TaskId,
    /// The releases it brings.
    pub candidates: BTreeSet<ReleaseId>,
    /// Why it was made, for people.
    pub cause: String,
    /// Counts up by one with each plan of this rollout, from 1.
    pub generation: u64,
    /// The generation it was made from; `None` for the first.
    pub parent: Option<u64>,
    /// Waves an operator approved.
    pub approved: BTreeSet<usize>,
    /// Devices of the waves that opened.
    pub members: BTreeMap<DeviceId, Previous>,
    /// Where it stands.
    pub state: State,
}

impl Plan {
    /// The first plan of a rollout: no wave is open.
    pub fn new(
        rollout: &str,
        task: TaskId,
        candidates: impl IntoIterator<Item = ReleaseId>,
        cause: &str,
    ) -> Self {
        Self {
            rollout: rollout.into(),
            task,
            candidates: candidates.into_iter().collect(),
            cause: cause.into(),
            generation: 1,
            parent: None,
            approved: BTreeSet::new(),
            members: BTreeMap::new(),
            state: State::Created,
        }
    }

    /// What the rollout means for a device.
    pub fn stance(&self, device: &DeviceId) -> Stance {
        let member = self.members.contains_key(device);
        match self.state {
            State::Created => Stance::Hold,
            State::Open { .. } | State::Paused { .. } | State::Superseded { .. } if member => Stance::Open,
            State::Open { .. } | State::Paused { .. } | State::Superseded { .. } => Stance::Hold,
            State::Promoted { .. } => Stance::Open,
            State::Stopped { .. } if member => Stance::Return,
            State::Stopped { .. } => Stance::Hold,
        }
    }

    /// The next generation, in a new state.
    pub(crate) fn moved(&self, state: State) -> Self {
        Self { generation: self.generation + 1, parent: Some(self.generation), state, ..self.clone() }
    }
}
