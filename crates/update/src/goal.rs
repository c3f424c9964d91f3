use alloc::string::String;

use dunlin_protocol::{Digest, Hard, Probation, ReleaseId};
use serde::{Deserialize, Serialize};

/// A file that signed metadata names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileRef {
    /// TUF target name.
    pub name: String,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the content.
    pub sha256: Digest,
}

/// One release of a goal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// The release.
    pub release: ReleaseId,
    /// Its manifest.
    pub manifest: FileRef,
    /// Hard constraints as signed; the manifest must repeat them.
    pub hard: Hard,
    /// Whether it was approved by the `retrained` role, so that it must keep to the task policy's bounds.
    pub retrained: bool,
}

/// What one task shall run by one verified assignment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Goal {
    /// Generation of the assignment.
    pub generation: u64,
    /// Its correlation id.
    pub correlation: String,
    /// Answers requests.
    pub champion: Part,
    /// Answers when the champion can not.
    pub fallback: Option<Part>,
    /// The task's policy, if it has one.
    pub policy: Option<FileRef>,
    /// How the change is watched.
    pub probation: Probation,
    /// Wall time in Unix milliseconds by which it should be committed.
    pub deadline_ms: Option<u64>,
}

impl Goal {
    /// Its releases, the champion first.
    pub fn parts(&self) -> impl Iterator<Item = &Part> {
        [Some(&self.champion), self.fallback.as_ref()].into_iter().flatten()
    }

    /// Digest of the policy, if there is one.
    pub(crate) fn policy_digest(&self) -> Option<Digest> {
        self.policy.as_ref().map(|file| file.sha256)
    }
}
