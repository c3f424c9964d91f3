use alloc::collections::BTreeMap;

use dunlin_protocol::{ClassName, DeviceId, ReasonCode, ReleaseId};
use serde::{Deserialize, Serialize};

/// Where a device stands with the candidates of one rollout.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "at", rename_all = "snake_case")]
pub enum Progress {
    /// No candidate was ordered.
    Idle,
    /// Selection preferred a release that is already promoted; the device runs no candidate.
    Declined,
    /// A candidate was ordered and is not committed.
    Ordered {
        /// The candidate.
        release: ReleaseId,
        /// Wall time of the order, Unix milliseconds.
        since_ms: u64,
    },
    /// The device committed to a candidate.
    Committed {
        /// The candidate.
        release: ReleaseId,
    },
    /// The device rolled a candidate back, failed on it or rejected it.
    Failed {
        /// The candidate.
        release: ReleaseId,
        /// Why.
        reason: ReasonCode,
    },
}

impl Progress {
    /// The candidate, if one was ordered.
    pub fn release(&self) -> Option<&ReleaseId> {
        match self {
            Self::Idle | Self::Declined => None,
            Self::Ordered { release, .. } | Self::Committed { release } | Self::Failed { release, .. } => {
                Some(release)
            }
        }
    }
}

/// Candidate and previous release on the very same labelled inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Paired {
    /// Both right.
    pub both_right: u64,
    /// Only the candidate right.
    pub only_new: u64,
    /// Only the previous release right.
    pub only_old: u64,
    /// Both wrong.
    pub both_wrong: u64,
}

impl Paired {
    /// Labelled inputs.
    pub fn n(&self) -> u64 {
        [self.only_new, self.only_old, self.both_wrong].into_iter().fold(self.both_right, u64::saturating_add)
    }

    /// Mean gain in accuracy, within -1 and 1; zero without inputs.
    #[allow(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
    pub fn gain(&self) -> f64 {
        if self.n() == 0 { 0.0 } else { (self.only_new as f64 - self.only_old as f64) / self.n() as f64 }
    }

    /// Adds the counts of another stretch or device.
    pub fn add(&mut self, other: &Self) {
        // Devices say what they like; a count at its end says nothing, and stops nobody.
        self.both_right = self.both_right.saturating_add(other.both_right);
        self.only_new = self.only_new.saturating_add(other.only_new);
        self.only_old = self.only_old.saturating_add(other.only_old);
        self.both_wrong = self.both_wrong.saturating_add(other.both_wrong);
    }
}

/// A device the rollout applies to. Devices that are held back by group or policy are not listed at all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// Its hardware class.
    pub class: ClassName,
    /// Wall time of its last message, Unix milliseconds.
    pub heard_ms: Option<u64>,
    /// What it serves.
    pub serving: Option<ReleaseId>,
    /// Where it stands.
    pub progress: Progress,
    /// Requests a candidate of this rollout answered there.
    pub requests: u64,
    /// Inputs that a candidate and the release before it both answered there, labelled or not.
    #[serde(default)]
    pub pairs: u64,
    /// Paired evidence about the candidate it stands with.
    pub paired: Paired,
}

impl Member {
    /// A device that was heard of and nothing else.
    pub fn idle(class: ClassName) -> Self {
        Self {
            class,
            heard_ms: None,
            serving: None,
            progress: Progress::Idle,
            requests: 0,
            pairs: 0,
            paired: Paired::default(),
        }
    }
}

/// What is known of the devices a rollout applies to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inventory {
    /// By device.
    pub devices: BTreeMap<DeviceId, Member>,
}
