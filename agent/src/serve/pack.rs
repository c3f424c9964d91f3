//! Which loaded models stay in memory when all of them together are bounded.
//!
//! [`pack`] decides from numbers alone; who holds the files carries it out through [`Serving::take_out`] and
//! [`Serving::put_back`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use dunlin_protocol::{Digest, IntoTree, ReleaseId, Role, TaskId};
use serde::Serialize;

use super::gather::Gather;
use super::lineup::{Berth, Slot};
use super::resident;
use super::view::MemberRole;
use super::{Resident, Serving};

/// The environment under which the GNU C library gives freed weights back to the kernel at once, and has threads that load
/// models share one heap instead of each keeping its own. Installed units set it, as docs/inference.md advises.
pub const ALLOCATOR: [(&str, &str); 3] =
    [("MALLOC_ARENA_MAX", "1"), ("MALLOC_MMAP_THRESHOLD_", "65536"), ("MALLOC_TRIM_THRESHOLD_", "65536")];
/// Worth of a task that the settings say nothing of.
const VALUE: u32 = 100;
/// How long a member stays out before it may come back, milliseconds: loading costs more than what a minute without it does.
const DWELL_MS: u64 = 60_000;
/// All requests of a task, parts per million.
const ALL_PPM: u32 = 1_000_000;
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
    /// Share of its task's rows that it is asked about at most, parts per million.
    pub share_ppm: u32,
    /// Processor time that its own budget allows it, parts per million of one core.
    pub cpu_ppm_max: Option<u32>,
    /// Whether it is on probation: it stays, or it could not be judged.
    pub trial: bool,
    /// Whether it failed too often and is not asked any more.
    pub struck: bool,
}

impl Held {
    /// Processor time that it takes at so many rows of its task in a thousand seconds, parts per million of one core.
    pub fn cpu_ppm(&self, rows_per_ks: u64) -> u64 {
        let all = self.row_us.saturating_mul(rows_per_ks) / 1_000;
        let own = all.saturating_mul(self.share_ppm.into()) / u64::from(ALL_PPM);
        self.cpu_ppm_max.map_or(own, |max| own.min(max.into()))
    }
}

/// A member that is in memory or was.
#[derive(Debug, Clone, Copy)]
pub struct Candidate<'a> {
    /// The member.
    pub held: &'a Held,
    /// Processor time that it takes, parts per million of one core.
    pub cpu_ppm: u64,
    /// How long it has been out, milliseconds; `None` while it is in memory.
    pub away_ms: Option<u64>,
}

/// What a part in the line-up is worth: who only listens goes before who has a part in answers, and that before who may
/// have to answer alone.
fn rank(role: MemberRole) -> u8 {
    match role {
        MemberRole::Shadow => 0,
        MemberRole::Previous => 1,
        MemberRole::Challenger => 2,
        MemberRole::Voter | MemberRole::Bigger | MemberRole::Meta => 3,
        MemberRole::Fallback | MemberRole::Smaller => 4,
        MemberRole::Champion => 5,
    }
}

/// Whether a member takes the requests of its task only if no member above it is there.
fn stands_in(role: MemberRole) -> bool {
    match role {
        MemberRole::Champion | MemberRole::Fallback | MemberRole::Smaller => true,
        MemberRole::Shadow
        | MemberRole::Previous
        | MemberRole::Challenger
        | MemberRole::Voter
        | MemberRole::Bigger
        | MemberRole::Meta => false,
    }
}

/// Which candidates are not to be in memory. The most valuable ones are taken first, and each stays that still fits: so
/// it is the least valuable that give way, and none does whose absence would gain nothing.
pub fn pack(candidates: &[Candidate<'_>], budget: &Budget) -> BTreeSet<usize> {
    let mut order: Vec<usize> = (0..candidates.len()).collect();
    order.sort_unstable_by_key(|&i| {
        let held = candidates[i].held;
        (held.struck, Reverse((held.trial, rank(held.role), held.value)), i)
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
            let mut add = |role: MemberRole, share_ppm, cpu_ppm_max, member: &resident::Serving| {
                all.push(Held {
                    task: task.id().clone(),
                    role,
                    release: member.release().clone(),
                    model: member.resident.bundle.model.digest,
                    value,
                    bytes: member.resident.bundle.hard.ram_bytes,
                    row_us: member.row_us(),
                    share_ppm,
                    cpu_ppm_max,
                    trial: lineup.probation && role == MemberRole::Champion,
                    struck: member.strikes.out().is_some(),
                });
            };
            if let Some(champion) = lineup.champion() {
                add(MemberRole::Champion, ALL_PPM, None, champion);
            }
            for seat in lineup.slot.seats.iter() {
                let Some(model) = seat.berth.model() else { continue };
                let (share_ppm, cpu_ppm_max) = match seat.role {
                    Role::Challenger { share_ppm } => (share_ppm, None),
                    Role::Shadow { cpu_ppm, .. } => (ALL_PPM, Some(cpu_ppm)),
                    Role::Fallback | Role::Voter { .. } | Role::Bigger | Role::Smaller | Role::Meta => {
                        (ALL_PPM, None)
                    }
                };
                add(seat.role.into(), share_ppm, cpu_ppm_max, model);
            }
            for model in lineup.previous.iter().flat_map(Slot::models) {
                // Its fallbacks are only kept for a roll-back.
                let listens = lineup.before().is_some_and(|before| Arc::ptr_eq(before, model));
                add(MemberRole::Previous, if listens { ALL_PPM } else { 0 }, None, model);
            }
        }
        all
    }

    /// Rows that each task has answered since the agent started.
    pub fn rows(&self) -> BTreeMap<TaskId, u64> {
        self.all().iter().map(|task| (task.id().clone(), task.rows())).into_tree()
    }

    /// Takes one member out of memory; the rest of its line-up answers. Requests that it is at work on are answered. What is
    /// kept of a line-up before goes as a whole: half of it is nothing to return to.
    pub fn take_out(&self, held: &Held) {
        let Some(task) = self.task(&held.task) else { return };
        task.change(|lineup| {
            if held.role == MemberRole::Previous {
                lineup
                    .previous
                    .take_if(|previous| previous.models().any(|model| *model.release() == held.release));
            } else {
                lineup.slot.change(held.role, &held.release, |berth| *berth = berth.emptied());
            }
        });
    }

    /// Puts a member back that was taken out, unless its place is another's.
    pub fn put_back(&self, held: &Held, resident: Resident) {
        let Some(task) = self.task(&held.task) else { return };
        task.change(|lineup| {
            lineup.slot.change(held.role, &held.release, |berth| {
                if matches!(berth, Berth::Away(_)) {
                    *berth = Berth::new(resident);
                }
            });
        });
    }
}

#[cfg(test)]
mod rss;
#[cfg(test)]
mod tests;
