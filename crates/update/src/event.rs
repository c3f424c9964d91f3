use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::{Blob, Bundle, Digest, ModelName, ReasonCode, ReleaseId, TaskId, TaskPolicy};
use dunlin_trust::{Approved, Verified};
use serde::{Deserialize, Serialize};

use crate::Observed;

/// How the process before this one ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// It was asked to.
    Orderly,
    /// It died while the board ran on.
    Crashed,
    /// The board was reset or lost power.
    PowerLost,
}

/// Why a fetch did not succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The server can not be reached, is slow, or asks to come back later: tried for as long as it takes.
    Passing {
        /// What it was.
        reason: ReasonCode,
        /// The same for people.
        detail: String,
        /// The wait the server asked for, milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// The server answers with something else than what was signed, or this agent fails at it: tried [`crate::WRONG_MAX`]
    /// times.
    Wrong {
        /// What it was.
        reason: ReasonCode,
        /// The same for people.
        detail: String,
    },
}

/// What replaying the golden vectors in a child process measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Proof {
    /// Median latency of one request, microseconds.
    pub latency_us: u64,
    /// Most memory that the model took, bytes; the program's own is not counted.
    pub peak_bytes: u64,
    /// Share of the anchor set it got right, parts per million; a million where there is no anchor set.
    pub anchor_ppm: u32,
}

/// Facts.
#[derive(Debug, Clone)]
pub enum Event {
    /// The first fact of every process.
    ProcessStarted(Stop),
    /// The trust core approved an assignment.
    AssignmentApproved(Box<Verified<Approved>>),
    /// Verified metadata names these release floors.
    FloorsRaised(BTreeMap<ModelName, u32>),
    /// A policy is in the store and has the signed digest.
    PolicyFetched {
        /// The task.
        task: TaskId,
        /// Digest of its file.
        file: Digest,
        /// Its content.
        policy: Box<TaskPolicy>,
    },
    /// A manifest is in the store and has the signed digest.
    ManifestFetched {
        /// The task.
        task: TaskId,
        /// Digest of its file.
        file: Digest,
        /// Its content.
        bundle: Box<Bundle>,
    },
    /// A policy or manifest has the signed digest but can not be read.
    FileMalformed {
        /// The task.
        task: TaskId,
        /// Digest of its file.
        file: Digest,
        /// The same for people.
        detail: String,
    },
    /// Free space was compared with what is missing.
    SpaceChecked {
        /// The task.
        task: TaskId,
        /// Whether there is room for all of it and the reserve.
        enough: bool,
        /// The same for people.
        detail: String,
    },
    /// A blob is whole, durable and has its digest.
    BlobStored {
        /// The task.
        task: TaskId,
        /// The blob.
        digest: Digest,
    },
    /// A file or blob could not be fetched. What was received stays in the store.
    FetchFailed {
        /// The task.
        task: TaskId,
        /// Digest of what was to be fetched.
        digest: Digest,
        /// Why.
        fault: Fault,
    },
    /// Every staged file was read back and has its digest.
    StagedVerified {
        /// The task.
        task: TaskId,
        /// The files, as they were ordered: the answer may be to an order that was superseded.
        files: Vec<Blob>,
    },
    /// A staged file read back with other content, and was dropped.
    StagedDamaged {
        /// The task.
        task: TaskId,
        /// The file.
        digest: Digest,
    },
    /// The golden vectors gave the right answers.
    Proved {
        /// The task.
        task: TaskId,
        /// Manifest of the proved release.
        manifest: Digest,
        /// Measurements.
        proof: Proof,
    },
    /// They did not.
    ProofFailed {
        /// The task.
        task: TaskId,
        /// Manifest of the release.
        manifest: Digest,
        /// Why.
        reason: ReasonCode,
        /// The same for people.
        detail: String,
    },
    /// The ordered line-up serves and its generation record is durable.
    Switched {
        /// The task.
        task: TaskId,
    },
    /// What was designated can not be loaded, and what served before still does; or a member of what serves has failed
    /// too often and is no longer asked.
    ServeFailed {
        /// The task.
        task: TaskId,
        /// The champion or the member that it is about.
        release: ReleaseId,
        /// The same for people.
        detail: String,
    },
    /// The counters of a release on probation.
    GuardObserved {
        /// The task.
        task: TaskId,
        /// Since the switch.
        seen: Observed,
    },
    /// An operator asked for the previous release of a task.
    OperatorRollback {
        /// The task.
        task: TaskId,
    },
    /// An operator asked that a release be tried again.
    Retarget {
        /// The release.
        release: ReleaseId,
        /// Lowest versions that signers allow, as in [`Event::FloorsRaised`]: what was withdrawn meanwhile is not tried again.
        floors: BTreeMap<ModelName, u32>,
    },
    /// The agent's next program is whole, durable and has its digest.
    ProgramStored {
        /// Digest of its file.
        file: Digest,
    },
    /// It could not be fetched, or its test of itself failed.
    ProgramFailed {
        /// Digest of its file.
        file: Digest,
        /// Why.
        fault: Fault,
    },
    /// Its test of itself passed.
    ProgramProved {
        /// Digest of its file.
        file: Digest,
    },
    /// The controller has acknowledged a record of this very process.
    ControllerReached,
    /// An outcome is durable in the spool.
    Reported {
        /// Its number.
        seq: u64,
    },
    /// [`crate::Updater::poll_timeout`] was reached.
    TimePassed,
}

/// Why a fact changed nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Ignored {
    /// A fact before [`Event::ProcessStarted`], or a second one of it.
    #[error("the process start must be the first fact, and only that")]
    NotStarted,
    /// The assignment is in force already, or older.
    #[error("generation {given} is not above {held}")]
    StaleGeneration {
        /// Of the assignment.
        given: u64,
        /// In force.
        held: u64,
    },
    /// No such task.
    #[error("no task {0} is assigned to this device")]
    UnknownTask(TaskId),
    /// The task is at another step; mostly the answer to an order that was superseded.
    #[error("task {task} does not wait for {what}")]
    NotAwaited {
        /// The task.
        task: TaskId,
        /// The fact.
        what: &'static str,
    },
    /// The agent's program is at another step; mostly the answer to an order that was superseded.
    #[error("the agent's program does not wait for {0}")]
    NoProgram(&'static str),
    /// There is no previous release.
    #[error("task {0} has no previous release to return to")]
    NothingToReturnTo(TaskId),
    /// The release has not failed here.
    #[error("release {0} is not remembered as bad")]
    NotKnownBad(ReleaseId),
}

impl Ignored {
    /// The same as a code for the wire.
    pub fn reason(&self) -> ReasonCode {
        match self {
            Self::StaleGeneration { .. } => ReasonCode::GenerationRollback,
            Self::NothingToReturnTo(_) | Self::UnknownTask(_) => ReasonCode::NothingToReturnTo,
            Self::NotStarted | Self::NotAwaited { .. } | Self::NoProgram(_) | Self::NotKnownBad(_) => {
                ReasonCode::Superseded
            }
        }
    }
}
