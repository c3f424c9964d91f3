use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dunlin_protocol::cbor::{self, CborError};
use dunlin_protocol::{Blob, Digest, ReleaseId, TaskId};
use serde::{Deserialize, Serialize};

use crate::Proof;
use crate::journal::JOURNAL_BYTES_MAX;

/// A release whose files are known by digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pack {
    /// The release.
    pub release: ReleaseId,
    /// Its manifest.
    pub manifest: Blob,
    /// The blobs it needs, in the order in which they are fetched; for a retrained release also the anchor
    /// set it was measured by.
    pub blobs: Vec<Blob>,
    /// Whether the `retrained` role approved it, so that it is bound by the task's policy.
    #[serde(default)]
    pub retrained: bool,
}

impl Pack {
    /// Manifest and blobs.
    pub fn files(&self) -> impl Iterator<Item = Blob> {
        core::iter::once(self.manifest).chain(self.blobs.iter().copied())
    }
}

/// A line-up that was proved on this device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Generation of the assignment that named it.
    pub generation: u64,
    /// Answers requests.
    pub champion: Pack,
    /// Answers when the champion can not.
    pub fallback: Option<Pack>,
    /// What the proof of the champion measured.
    pub proof: Proof,
    /// The policy it was proved under: a retrained release was held to the bounds of this one and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
}

impl Line {
    /// Its releases, the champion first.
    pub fn packs(&self) -> impl Iterator<Item = &Pack> {
        [Some(&self.champion), self.fallback.as_ref()].into_iter().flatten()
    }

    /// Whether its releases keep to this policy for all that was proved: only retrained ones are bound by it.
    pub(crate) fn keeps_to(&self, policy: Option<Digest>) -> bool {
        !self.packs().any(|pack| pack.retrained) || (policy.is_some() && self.policy == policy)
    }
}

/// What answers the requests of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[allow(
    clippy::large_enum_variant,
    reason = "a device holds two for each task; a box would only add a word to every match"
)]
pub enum Designation {
    /// The constant baseline of the task's policy.
    Baseline,
    /// A proved line-up.
    Line(Line),
}

impl Designation {
    /// The line-up, unless the baseline is designated.
    pub fn line(&self) -> Option<&Line> {
        match self {
            Self::Baseline => None,
            Self::Line(line) => Some(line),
        }
    }

    /// Without the releases that `keep` refuses: a fallback takes its champion's place.
    pub(crate) fn trimmed(self, keep: impl Fn(&Pack) -> bool) -> Self {
        match self {
            Self::Baseline => Self::Baseline,
            Self::Line(line) => {
                let fallback = line.fallback.clone().filter(|pack| keep(pack));
                if keep(&line.champion) {
                    Self::Line(Line { fallback, ..line })
                } else {
                    fallback.map_or(Self::Baseline, |champion| {
                        Self::Line(Line { champion, fallback: None, ..line })
                    })
                }
            }
        }
    }

    /// The release that answers, unless the baseline does.
    pub fn release(&self) -> Option<&ReleaseId> {
        self.line().map(|line| &line.champion.release)
    }
}

/// One task in a generation record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// The policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Blob>,
    /// What serves.
    pub serving: Designation,
    /// What is returned to.
    pub previous: Designation,
}

/// A generation record: what every task runs, by digest. It says enough to serve without the journal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Format of this record, 1.
    pub format: u32,
    /// Generation of the last assignment that was taken up.
    pub generation: u64,
    /// By task.
    pub tasks: BTreeMap<TaskId, Slot>,
}

/// Why bytes are no generation record.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Not CBOR of a record's shape.
    #[error("decoding a generation record")]
    Shape(#[source] CborError),
    /// Written by a newer agent.
    #[error("generation record has format {0}; this agent reads format 1")]
    Format(u32),
}

impl Record {
    /// The bytes to store.
    pub fn encode(&self) -> Vec<u8> {
        cbor::encode(self)
    }

    /// Reads a stored record.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let record: Self = cbor::decode(bytes, JOURNAL_BYTES_MAX).map_err(RecordError::Shape)?;
        if record.format == 1 { Ok(record) } else { Err(RecordError::Format(record.format)) }
    }
}
