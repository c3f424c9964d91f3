use alloc::vec::Vec;

use dunlin_protocol::{Blob, Digest, Phase, ReasonCode, ReleaseId, RetrainedBounds};
use serde::{Deserialize, Serialize};

use crate::{FileRef, Goal, Line, Pack, Part, Proof, Strikes};

/// A goal on its way: what of it is already here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// What shall run.
    pub goal: Goal,
    /// What the task's signed policy allows of retrained releases, if it allows them.
    pub bounds: Option<RetrainedBounds>,
    /// Releases whose files are all stored, in the order of [`Goal::parts`].
    pub staged: Vec<Pack>,
    /// Their proofs, in the same order.
    pub proofs: Vec<Proof>,
    /// How often staged files read back damaged.
    pub damaged: u32,
    /// Digest of what the champion takes, which its fallback must take too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inputs: Option<Digest>,
    /// Digest of the champion's class names, which the members must have too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub labels: Option<Digest>,
}

impl Work {
    /// Nothing of the goal is here yet.
    pub(crate) fn new(goal: Goal) -> Self {
        Self {
            goal,
            bounds: None,
            staged: Vec::new(),
            proofs: Vec::new(),
            damaged: 0,
            inputs: None,
            labels: None,
        }
    }

    /// The release whose files come next.
    pub(crate) fn awaited(&self) -> Option<&Part> {
        self.goal.parts().nth(self.staged.len())
    }

    /// Goes on without a member. False if the release is none.
    pub(crate) fn drop_member(&mut self, release: &ReleaseId) -> bool {
        self.retain_members(|part| part.release != *release)
    }

    /// Goes on without the members that `keep` refuses, and without what can not be without them. False if it refuses none.
    pub(crate) fn retain_members(&mut self, keep: impl Fn(&Part) -> bool) -> bool {
        if self.goal.retain_members(keep).is_empty() {
            return false;
        }
        // More may be gone than was refused, so what is here is held against what is left of the goal.
        let goal = &self.goal;
        let stays = |pack: &Pack| goal.parts().any(|part| part.release == pack.release);
        let mut places = self.staged.iter().map(stays);
        self.proofs.retain(|_| places.next() == Some(true));
        self.staged.retain(stays);
        true
    }
}

/// What is being fetched.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Item {
    /// The task's policy.
    Policy(FileRef),
    /// The manifest of the next release.
    Manifest(FileRef),
    /// Nothing yet: free space is being checked for this release.
    Space(Pack),
    /// A blob of this release.
    Blob {
        /// The release.
        pack: Pack,
        /// Which of its blobs.
        index: usize,
    },
}

impl Item {
    /// The digest whose arrival or failure is awaited, if it is one.
    pub fn digest(&self) -> Option<Digest> {
        match self {
            Self::Policy(file) | Self::Manifest(file) => Some(file.sha256),
            Self::Space(_) => None,
            Self::Blob { pack, index } => pack.blobs.get(*index).map(|blob| blob.digest),
        }
    }

    /// The release whose files are being fetched, once its manifest is known.
    pub fn pack(&self) -> Option<&Pack> {
        match self {
            Self::Policy(_) | Self::Manifest(_) => None,
            Self::Space(pack) | Self::Blob { pack, .. } => Some(pack),
        }
    }
}

/// Attempts at one item.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tries {
    /// That failed for reasons that pass.
    pub passing: u32,
    /// That were answered with something wrong.
    pub wrong: u32,
}

/// Where a task stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Nothing was ever asked of it.
    Idle,
    /// The trust core refused what the assignment names for it.
    Refused {
        /// Generation of the assignment.
        generation: u64,
        /// Why.
        reason: ReasonCode,
    },
    /// An end was reached.
    Settled {
        /// What was asked.
        goal: Goal,
        /// How it ended.
        phase: Phase,
        /// Why.
        reason: ReasonCode,
    },
    /// An item is being fetched.
    Fetching {
        /// The goal.
        work: Work,
        /// The item.
        item: Item,
        /// Attempts at it.
        tries: Tries,
    },
    /// Fetching waits.
    Deferred {
        /// The goal.
        work: Work,
        /// The item.
        item: Item,
        /// Attempts at it.
        tries: Tries,
        /// Why it waits.
        reason: ReasonCode,
        /// How long, milliseconds.
        wait_ms: u64,
        /// Since when, on this process's clock; a restart begins the wait anew.
        #[serde(skip)]
        since_ms: u64,
    },
    /// Staged files are being read back.
    Verifying {
        /// The goal.
        work: Work,
    },
    /// Releases are being proved, one after the other.
    Proving {
        /// The goal.
        work: Work,
        /// Ends of the process meanwhile.
        strikes: Strikes,
    },
    /// Staged and proved; the shell was told to switch.
    Switching {
        /// The goal.
        goal: Goal,
        /// What shall serve.
        line: Line,
        /// Ends of the process meanwhile.
        strikes: Strikes,
    },
    /// The designated line-up is new and watched.
    Probation {
        /// The goal.
        goal: Goal,
        /// Ends of the process meanwhile.
        strikes: Strikes,
        /// Time served before `since_ms`, milliseconds.
        watched_ms: u64,
        /// Start of the present stretch, on this process's clock.
        #[serde(skip)]
        since_ms: u64,
        /// When the counters are read next, on this process's clock.
        #[serde(skip)]
        look_ms: u64,
    },
}

impl Step {
    /// The phase as it is reported.
    pub fn phase(&self) -> Phase {
        match self {
            Self::Idle => Phase::Assigned,
            Self::Refused { .. } => Phase::Rejected,
            Self::Settled { phase, .. } => *phase,
            Self::Fetching { .. } => Phase::Fetching,
            Self::Deferred { .. } => Phase::Deferred,
            Self::Verifying { .. } => Phase::Verifying,
            Self::Proving { .. } => Phase::Proving,
            Self::Switching { .. } => Phase::Staged,
            Self::Probation { .. } => Phase::Probation,
        }
    }

    /// The goal it belongs to.
    pub fn goal(&self) -> Option<&Goal> {
        match self {
            Self::Idle | Self::Refused { .. } => None,
            Self::Settled { goal, .. } | Self::Switching { goal, .. } | Self::Probation { goal, .. } => {
                Some(goal)
            }
            Self::Fetching { work, .. }
            | Self::Deferred { work, .. }
            | Self::Verifying { work }
            | Self::Proving { work, .. } => Some(&work.goal),
        }
    }

    /// The goal, unless the task rests.
    pub fn under_way(&self) -> Option<&Goal> {
        match self {
            Self::Idle | Self::Refused { .. } | Self::Settled { .. } => None,
            Self::Fetching { .. }
            | Self::Deferred { .. }
            | Self::Verifying { .. }
            | Self::Proving { .. }
            | Self::Switching { .. }
            | Self::Probation { .. } => self.goal(),
        }
    }

    /// Files that must stay in the store for this step to go on.
    pub(crate) fn files(&self) -> Vec<Blob> {
        let mut files = Vec::new();
        if let Some(goal) = self.under_way() {
            files.extend(
                goal.parts().map(|part| Blob { digest: part.manifest.sha256, length: part.manifest.length }),
            );
            files.extend(
                goal.policy.iter().map(|policy| Blob { digest: policy.sha256, length: policy.length }),
            );
        }
        match self {
            Self::Idle | Self::Refused { .. } | Self::Settled { .. } | Self::Probation { .. } => {}
            Self::Fetching { work, item, .. } | Self::Deferred { work, item, .. } => {
                files.extend(work.staged.iter().chain(item.pack()).flat_map(Pack::files));
            }
            Self::Verifying { work } | Self::Proving { work, .. } => {
                files.extend(work.staged.iter().flat_map(Pack::files))
            }
            Self::Switching { line, .. } => files.extend(line.packs().flat_map(Pack::files)),
        }
        files
    }
}
