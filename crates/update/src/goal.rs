use alloc::collections::BTreeSet;
use alloc::string::String;
use alloc::vec::Vec;

use dunlin_protocol::{Conduct, Digest, Hard, Member, Probation, ReleaseId};
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
    /// Further releases, each with what it is for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<(Member, Part)>,
    /// How all of them make one answer.
    #[serde(default, skip_serializing_if = "Conduct::is_plain")]
    pub conduct: Conduct,
    /// Members that the assignment names and this is without, though nothing is wrong with them beyond it: they do not
    /// go with the champion, or their files did not come as signed. The next assignment may have them again.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub let_go: BTreeSet<ReleaseId>,
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
        let members = self.members.iter().map(|(_, part)| part);
        core::iter::once(&self.champion).chain(&self.fallback).chain(members)
    }

    /// What the release at this place of [`Goal::parts`] is for, if it is a member.
    pub(crate) fn member(&self, place: usize) -> Option<&Member> {
        let lead = 1 + usize::from(self.fallback.is_some());
        place.checked_sub(lead).and_then(|place| self.members.get(place)).map(|(member, _)| member)
    }

    /// Whether a release is one of its members.
    pub(crate) fn has_member(&self, release: &ReleaseId) -> bool {
        self.members.iter().any(|(_, part)| part.release == *release)
    }

    /// Lets go of the members that `keep` refuses, and of what can not be without them; says which were refused.
    pub(crate) fn retain_members(&mut self, keep: impl Fn(&Part) -> bool) -> Vec<ReleaseId> {
        retain(&mut self.members, &mut self.conduct, keep).into_iter().map(|part| part.release).collect()
    }

    /// Digest of the policy, if there is one.
    pub(crate) fn policy_digest(&self) -> Option<Digest> {
        self.policy.as_ref().map(|file| file.sha256)
    }
}

/// Lets go of the members that `keep` refuses, and of what can not be without them; gives back those that were refused.
pub(crate) fn retain<T: Clone>(
    members: &mut Vec<(Member, T)>,
    conduct: &mut Conduct,
    keep: impl Fn(&T) -> bool,
) -> Vec<T> {
    let (mut gone, mut roles) = (Vec::new(), Vec::new());
    members.retain(|(member, of)| {
        let stays = keep(of);
        if !stays {
            roles.push(member.role);
            gone.push(of.clone());
        }
        stays
    });
    if !gone.is_empty() {
        conduct.fit(members, |(member, _)| member.role, &roles);
    }
    gone
}
