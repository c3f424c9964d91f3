use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{BootId, Bytes, ReleaseId, TaskId};

/// Versions of one TUF repository that a device holds; zero where it holds none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepoVersions {
    /// Root.
    pub root: u64,
    /// Timestamp.
    pub timestamp: u64,
    /// Snapshot.
    pub snapshot: u64,
    /// Top-level targets.
    pub targets: u64,
    /// The `retrained` delegation (image repository only).
    pub retrained: u64,
}

/// Metadata files of one repository, byte for byte as the static layout serves them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RepoFiles {
    /// Every root after the one the receiver holds, in order.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub roots: Vec<Bytes>,
    /// Always present, so that freshness can be judged even when nothing changed.
    pub timestamp: Bytes,
    /// Present if newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Bytes>,
    /// Present if newer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub targets: Option<Bytes>,
    /// Delegated roles by name, present if newer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub delegated: BTreeMap<String, Bytes>,
}

/// The answer of the composite check endpoint.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Check {
    /// What exists and is approved.
    pub image: RepoFiles,
    /// What this device shall run.
    pub director: RepoFiles,
}

/// Body of `down/desired`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Desired {
    /// The generation that waits to be fetched.
    pub generation: u64,
    /// The files themselves, to save the fetch; they go through the same verifier as fetched ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub files: Option<Check>,
}

/// Body of `down/cmd`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cmd {
    /// Echoed in the reply.
    pub id: String,
    /// What to do.
    pub cmd: CmdBody,
}

/// Commands a controller may give. None of them can make a device run what it would not have verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case")]
pub enum CmdBody {
    /// Check for new metadata.
    Check,
    /// Send a full report.
    Report,
    /// Return to the previous release of a task.
    Rollback {
        /// The task.
        task: TaskId,
    },
    /// Forget that a release failed here, so that it may be tried again.
    Retarget {
        /// The release.
        release: ReleaseId,
    },
}

/// Life of a `down/ack`, milliseconds: it expires exactly this long after it was sealed, so that it tells a device without
/// a clock what time it is. What it acknowledges stays true, so that devices do not judge an acknowledgement by it.
pub const ACK_LIFE_MS: u64 = 10 * 60 * 1000;

/// Everything up to `upto` of one boot is in the controller's database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckRange {
    /// The boot the numbers belong to.
    pub boot: BootId,
    /// The last number of the unbroken run from 1 that is committed or declared lost.
    pub upto: u64,
}

/// Body of `down/ack`; sent after the commit, never before.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AckBody {
    /// One entry per boot.
    pub ranges: Vec<AckRange>,
}
