use alloc::collections::BTreeMap;
use alloc::vec::Vec;

use dunlin_protocol::cbor::{self, CborError};
use dunlin_protocol::{Blob, Conduct, Digest, Member, ReleaseId, Role, TaskId};
use serde::{Deserialize, Serialize};

use crate::goal::retain;
use crate::journal::JOURNAL_BYTES_MAX;
use crate::{Goal, Proof};

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
    /// Further releases, each with what it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(Member, Pack)>,
    /// How all of them make one answer.
    #[serde(default, skip_serializing_if = "Conduct::is_plain")]
    pub conduct: Conduct,
    /// What the proof of the champion measured.
    pub proof: Proof,
    /// The policy it was proved under: a retrained release was held to the bounds of this one and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Digest>,
}

impl Line {
    /// Its releases, the champion first.
    pub fn packs(&self) -> impl Iterator<Item = &Pack> {
        let members = self.members.iter().map(|(_, pack)| pack);
        core::iter::once(&self.champion).chain(&self.fallback).chain(members)
    }

    /// Whether it has this release.
    pub(crate) fn holds(&self, pack: &Pack) -> bool {
        self.packs().any(|own| own.manifest == pack.manifest)
    }

    /// Whether it serves what the goal names, as the goal says.
    pub(crate) fn is(&self, goal: &Goal) -> bool {
        let members = |(member, _): &(Member, Pack)| member.clone();
        self.packs().map(|pack| pack.manifest.digest).eq(goal.parts().map(|part| part.manifest.sha256))
            && self.fallback.is_some() == goal.fallback.is_some()
            && self.members.iter().map(members).eq(goal.members.iter().map(|(member, _)| member.clone()))
            && self.conduct == goal.conduct
    }

    /// Whether the same releases serve in the same way.
    pub fn serves_as(&self, other: &Self) -> bool {
        let packs = |line: &Self| (line.champion.clone(), line.fallback.clone(), line.members.clone());
        packs(self) == packs(other) && self.conduct == other.conduct
    }

    /// Without the members that `keep` refuses, and without what can not be without them.
    #[must_use]
    pub fn with_members(mut self, keep: impl Fn(&Pack) -> bool) -> Self {
        retain(&mut self.members, &mut self.conduct, keep);
        self
    }

    /// What serves when the champion may not: the fallbacks, one after the other.
    pub(crate) fn without_champion(self) -> Option<Self> {
        let is_fallback = |(member, _): &(Member, Pack)| match member.role {
            Role::Fallback => true,
            Role::Challenger { .. }
            | Role::Shadow { .. }
            | Role::Voter { .. }
            | Role::Bigger
            | Role::Smaller
            | Role::Meta => false,
        };
        let mut members: Vec<_> = self.members.into_iter().filter(is_fallback).collect();
        let champion = match self.fallback {
            Some(champion) => champion,
            None if members.is_empty() => return None,
            None => members.remove(0).1,
        };
        Some(Self { champion, fallback: None, members, conduct: Conduct::default(), ..self })
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
                let mut line = line.with_members(&keep);
                line.fallback = line.fallback.filter(&keep);
                let line = if keep(&line.champion) { Some(line) } else { line.without_champion() };
                line.map_or(Self::Baseline, Self::Line)
            }
        }
    }

    /// Whether its champion is that of `line`.
    pub(crate) fn has_champion_of(&self, line: &Line) -> bool {
        self.line().is_some_and(|own| own.champion.manifest == line.champion.manifest)
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
