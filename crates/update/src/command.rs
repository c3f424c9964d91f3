use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use dunlin_protocol::{Blob, Digest, Outcome, TaskId};

use crate::{Designation, FileRef, Line, Pack};

/// What a proof must keep to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terms {
    /// Longest median latency, microseconds.
    pub latency_us_max: u64,
    /// Memory the model may need, bytes.
    pub ram_bytes_max: u64,
    /// For a retrained release: the anchor set and the least share of it to get right, parts per million.
    pub anchor: Option<(Digest, u32)>,
    /// For a retrained release: what the graph itself, not only its manifest, must look like.
    pub bounds: Option<dunlin_protocol::RetrainedBounds>,
}

/// Orders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Make these bytes durable before anything below is done.
    Persist(Vec<u8>),
    /// Fetch a policy, or find it in the store: `PolicyFetched | FileMalformed | FetchFailed`.
    FetchPolicy {
        /// The task.
        task: TaskId,
        /// The file.
        file: FileRef,
    },
    /// Put a policy in force. It is signed offline and needs no proof.
    ApplyPolicy {
        /// The task.
        task: TaskId,
        /// The file in the store.
        policy: Blob,
    },
    /// Fetch a manifest, or find it in the store: `ManifestFetched | FileMalformed | FetchFailed`.
    FetchManifest {
        /// The task.
        task: TaskId,
        /// The file.
        file: FileRef,
    },
    /// Compare free space with what of these blobs is missing: `SpaceChecked`.
    CheckSpace {
        /// The task.
        task: TaskId,
        /// The blobs.
        blobs: Vec<Blob>,
    },
    /// Fetch a blob from where the store has it, or find it there: `BlobStored | FetchFailed`.
    FetchBlob {
        /// The task.
        task: TaskId,
        /// The blob.
        blob: Blob,
    },
    /// Stop what is being fetched or proved for a task; no fact answers.
    Cancel {
        /// The task.
        task: TaskId,
    },
    /// Read every file back: `StagedVerified | StagedDamaged`.
    Verify {
        /// The task.
        task: TaskId,
        /// The files.
        files: Vec<Blob>,
    },
    /// Replay the golden vectors in a child process: `Proved | ProofFailed`.
    Prove {
        /// The task.
        task: TaskId,
        /// The release.
        pack: Pack,
        /// Its limits.
        terms: Terms,
    },
    /// After a start, or when a line-up on probation goes on without some of its members: serve what is designated.
    /// Answered only if that can not be: `ServeFailed`.
    Restore {
        /// The task.
        task: TaskId,
        /// What serves.
        serving: Designation,
        /// What is kept warm beside it while `trial`.
        previous: Designation,
        /// Whether it is on probation.
        trial: bool,
    },
    /// Make the generation record durable, then serve: `Switched | ServeFailed`.
    SwitchTo {
        /// The task.
        task: TaskId,
        /// What serves from now on.
        line: Line,
        /// What is kept warm beside it while `trial`.
        previous: Designation,
        /// Whether it is on probation.
        trial: bool,
    },
    /// End the probation; the predecessor need not be warm any more.
    Commit {
        /// The task.
        task: TaskId,
    },
    /// Make the generation record durable and serve what is given. Answered only if that can not be:
    /// `ServeFailed`.
    RollBack {
        /// The task.
        task: TaskId,
        /// What serves from now on.
        to: Designation,
    },
    /// The task is no longer assigned: stop serving it.
    Remove {
        /// The task.
        task: TaskId,
    },
    /// Delete every stored file that is not one of these.
    DropBlobs {
        /// What is still needed.
        keep: BTreeSet<Digest>,
    },
    /// Read the counters of a release on probation: `GuardObserved`.
    ReadGuard {
        /// The task.
        task: TaskId,
    },
    /// Fetch the agent's next program from where the store has it, or find it there: `ProgramStored | ProgramFailed`.
    FetchProgram {
        /// The program.
        file: Blob,
    },
    /// Have it test itself in a child process: `ProgramProved | ProgramFailed`.
    ProveProgram {
        /// The program.
        file: Blob,
    },
    /// End in order and begin anew with the installed program, which starts the one that is to run. No fact answers.
    StartAnew,
    /// Spool an outcome: `Reported`.
    Report {
        /// Its number.
        seq: u64,
        /// The outcome.
        outcome: Outcome,
    },
}

impl Command {
    /// The task whose step waits for the answer.
    pub(crate) fn awaited_by(&self) -> Option<&TaskId> {
        match self {
            Self::FetchPolicy { task, .. }
            | Self::FetchManifest { task, .. }
            | Self::CheckSpace { task, .. }
            | Self::FetchBlob { task, .. }
            | Self::Verify { task, .. }
            | Self::Prove { task, .. }
            | Self::SwitchTo { task, .. } => Some(task),
            Self::Persist(_)
            | Self::ApplyPolicy { .. }
            | Self::Cancel { .. }
            | Self::Restore { .. }
            | Self::Commit { .. }
            | Self::RollBack { .. }
            | Self::Remove { .. }
            | Self::DropBlobs { .. }
            | Self::ReadGuard { .. }
            | Self::FetchProgram { .. }
            | Self::ProveProgram { .. }
            | Self::StartAnew
            | Self::Report { .. } => None,
        }
    }

    /// Whether it changes what serves.
    pub(crate) fn concerns_serving(&self) -> bool {
        match self {
            Self::ApplyPolicy { .. }
            | Self::Cancel { .. }
            | Self::Restore { .. }
            | Self::Commit { .. }
            | Self::RollBack { .. }
            | Self::Remove { .. } => true,
            Self::Persist(_)
            | Self::FetchPolicy { .. }
            | Self::FetchManifest { .. }
            | Self::CheckSpace { .. }
            | Self::FetchBlob { .. }
            | Self::Verify { .. }
            | Self::Prove { .. }
            | Self::SwitchTo { .. }
            | Self::DropBlobs { .. }
            | Self::ReadGuard { .. }
            | Self::FetchProgram { .. }
            | Self::ProveProgram { .. }
            | Self::StartAnew
            | Self::Report { .. } => false,
        }
    }
}
