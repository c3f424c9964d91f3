use std::sync::Arc;

use dunlin_protocol::{ReleaseId, TaskPolicy};

use super::live::Key;
use super::resident::Serving;
use super::view::MemberRole;

/// What a task runs; replaced whole.
#[derive(Debug, Clone, Default)]
pub(super) struct LineUp {
    pub(super) champion: Option<Arc<Serving>>,
    pub(super) fallback: Option<Arc<Serving>>,
    pub(super) previous: Option<Arc<Serving>>,
    pub(super) policy: Option<Arc<TaskPolicy>>,
    pub(super) generation: u64,
    pub(super) probation: bool,
    pub(super) unloaded: Vec<ReleaseId>,
}

impl LineUp {
    pub(super) fn members(&self) -> impl Iterator<Item = (MemberRole, &Arc<Serving>)> {
        let champion = self.champion.iter().map(|m| (MemberRole::Champion, m));
        let fallback = self.fallback.iter().map(|m| (MemberRole::Fallback, m));
        champion.chain(fallback).chain(self.previous.iter().map(|m| (MemberRole::Previous, m)))
    }

    pub(super) fn key(&self, release: Option<ReleaseId>) -> Key {
        let probation = self.probation
            && release.is_some()
            && self.champion.as_ref().map(|c| c.release()) == release.as_ref();
        Key { release, generation: self.generation, probation }
    }

    pub(super) fn classes(&self) -> usize {
        let of_policy = || self.policy.as_ref().map_or(0, |p| p.labels.len());
        self.champion.as_ref().map(|c| c.classes()).filter(|n| *n > 0).unwrap_or_else(of_policy)
    }
}
