//! Which loaded models stay in memory when all of them together are bounded.
//!
//! [`pack`] decides from numbers alone; who holds the files carries it out through [`Serving::take_out`] and
//! [`Serving::put_back`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_protocol::{Digest, ReleaseId, TaskId};
use serde::Serialize;

use super::gather::Gather;
use super::lineup::LineUp;
use super::resident;
use super::view::MemberRole;
use super::{Resident, Serving};

/// Worth of a task that the settings say nothing of.
const VALUE: u32 = 100;
/// How long a member stays out before it may come back, milliseconds: loading costs more than what a minute without it does.
const DWELL_MS: u64 = 60_000;
/// What comes back must leave this share of a bound free, or the next small change would send it out again.
const SPARE_PERCENT: u64 = 10;

/// Bounds of all loaded models together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Budget {
    /// Memory, bytes.
    pub ram_bytes: Option<u64>,
    /// Processor time, parts per million of one core.
    pub cpu_ppm: Option<u64>,
}

/// What the settings say of one task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TaskSettings {
    /// Worth beside other tasks: of two members alike, that of the lower value gives way.
    pub value: u32,
    /// How its requests are gathered, if they are.
    pub gather: Option<Gather>,
}

impl Default for TaskSettings {
    fn default() -> Self {
        Self { value: VALUE, gather: None }
    }
}

/// What the settings say of serving.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Settings {
    /// Bounds of all loaded models together.
    pub budget: Budget,
    /// By task; one that is absent has [`TaskSettings::default`].
    pub tasks: BTreeMap<TaskId, TaskSettings>,
}

/// A member in memory, as the decision sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The task.
    pub task: TaskId,
    /// Its part in the line-up.
    pub role: MemberRole,
    /// Its release.
    pub release: ReleaseId,
    /// Digest of the model file: members of one digest share their memory.
    pub model: Digest,
    /// Worth of its task.
    pub value: u32,
    /// Memory that its proof at intake took, as its signed manifest says.
    pub bytes: u64,
    /// Expected latency of one row, microseconds.
    pub row_us: u64,
    /// Whether it is on probation: it stays, or it could not be judged.
    pub trial: bool,
    /// Whether it failed too often and is not asked any more.
    pub struck: bool,
}

/// A member that is in memory or was.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The member.
    pub held: &'a Held,
    /// Processor time it takes if it is asked for every row of its task, parts per million of one core.
    pub cpu_ppm: u64,
    /// How long it has been out, milliseconds; `None` while it is in memory.
    pub away_ms: Option<u64>,
}

/// What a part in the line-up is worth: who only listens goes before who may have to answer.
fn rank(role: MemberRole) -> u8 {
    match role {
        MemberRole::Previous => 0,
        MemberRole::Fallback => 2,
        MemberRole::Champion => 3,
    }
}

/// Whether a member takes the requests of its task only if no member above it is there.
fn stands_in(role: MemberRole) -> bool {
    match role {
        MemberRole::Champion | MemberRole::Fallback => true,
        MemberRole::Previous => false,
    }
}

/// Which candidates are not to be in memory. The most valuable ones are taken first, and each stays that still fits: so
/// it is the least valuable that give way, and none does whose absence would gain nothing.
pub fn pack(candidates: &[Candidate<'_>], budget: &Budget) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_by_key(|&i| {
        let held = candidates[i].held;
        (held.struck, Reverse((held.trial, rank(held.role), held.value)))
    });
    let (mut ram, mut cpu) = (0_u64, 0_u64);
    let (mut models, mut answering) = (BTreeSet::new(), BTreeSet::new());
    let mut out = BTreeSet::new();
    for i in order {
        let Candidate { held, cpu_ppm, away_ms } = candidates[i];
        let shared = models.contains(&held.model);
        let idle = stands_in(held.role) && answering.contains(&held.task);
        let (bytes, ppm) = (if shared { 0 } else { held.bytes }, if idle { 0 } else { cpu_ppm });
        let share = if away_ms.is_some() { 100 - SPARE_PERCENT } else { 100 };
        let fits = |bound: Option<u64>, taken: u64, more: u64| {
            more == 0
                || bound.is_none_or(|bound| taken.saturating_add(more) <= bound.saturating_mul(share) / 100)
        };
        let rested = away_ms.is_none_or(|ms| ms >= DWELL_MS);
        if held.trial || (rested && fits(budget.ram_bytes, ram, bytes) && fits(budget.cpu_ppm, cpu, ppm)) {
            (ram, cpu) = (ram.saturating_add(bytes), cpu.saturating_add(ppm));
            models.insert(held.model);
            if stands_in(held.role) {
                answering.insert(&held.task);
            }
        } else {
            out.insert(i);
        }
    }
    out
}

impl LineUp {
    /// Where the member of a part stands.
    fn place(&mut self, role: MemberRole) -> &mut Option<Arc<resident::Serving>> {
        match role {
            MemberRole::Champion => &mut self.champion,
            MemberRole::Fallback => &mut self.fallback,
            MemberRole::Previous => &mut self.previous,
        }
    }
}

impl Serving {
    /// Bounds of all loaded models together.
    pub fn budget(&self) -> Budget {
        self.settings.budget
    }

    /// Every member in memory.
    pub fn held(&self) -> Vec<Held> {
        let mut all = Vec::new();
        for task in self.all() {
            let lineup = task.lineup();
            let value = self.settings.tasks.get(task.id()).copied().unwrap_or_default().value;
            all.extend(lineup.members().map(|(role, member)| Held {
                task: task.id().clone(),
                role,
                release: member.release().clone(),
                model: member.resident.bundle.model.digest,
                value,
                bytes: member.resident.bundle.hard.ram_bytes,
                row_us: member.row_us(),
                trial: lineup.probation && role == MemberRole::Champion,
                struck: member.strikes.out().is_some(),
            }));
        }
        all
    }

    /// Rows that each task has answered since the agent started.
    pub fn rows(&self) -> BTreeMap<TaskId, u64> {
        self.all().iter().map(|task| (task.id().clone(), task.rows())).collect()
    }

    /// Takes one member out of memory; the rest of its line-up answers. Requests that it is at work on are answered.
    pub fn take_out(&self, held: &Held) {
        if let Some(task) = self.task(&held.task) {
            task.change(|lineup| lineup.place(held.role).take_if(|member| *member.release() == held.release));
        }
    }

    /// Puts a member back that was taken out, unless its place is taken.
    pub fn put_back(&self, task: &TaskId, role: MemberRole, resident: Resident) {
        if let Some(task) = self.task(task) {
            task.change(|lineup| {
                lineup.place(role).get_or_insert_with(|| Arc::new(resident::Serving::new(resident)));
            });
        }
    }
}

#[cfg(test)]
mod rss;
#[cfg(test)]
mod tests;
