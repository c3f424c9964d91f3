//! What one device shall run: a pure function from what is known to an assignment and its reasons.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_protocol::weaken::{self, Defence};
use dunlin_protocol::{DeviceId, GroupId, Hard, Installed, LineUp, ReleaseId, TaskAssignment, TaskId};
use dunlin_rollout::{Progress, Stance, State};
use dunlin_select::{Candidate, Device, Predicted, Standing, select};

use super::lineup::{Filled, Place, need};
use super::progress::Outcomes;
use super::still::Still;
use super::{AssignmentRow, Decision, RolloutRow, RolloutStance, TaskDefinition};
use crate::evidence::Measures;
use crate::store::DeviceRow;

/// An approved release.
#[derive(Debug, Clone)]
pub(super) struct Approved {
    pub(super) task: TaskId,
    pub(super) hard: Hard,
    pub(super) predicted: Predicted,
    /// Whether only the controller's own key vouches for it.
    pub(super) retrained: bool,
}

/// Everything known of one task.
#[derive(Debug)]
pub(super) struct TaskView<'a> {
    pub(super) definition: &'a TaskDefinition,
    /// Its rollouts, oldest first.
    pub(super) rollouts: Vec<&'a RolloutRow>,
    /// Where each device stands with the rollouts that are not over, by rollout.
    pub(super) progress: BTreeMap<&'a str, BTreeMap<DeviceId, Progress>>,
    pub(super) outcomes: Outcomes,
    pub(super) measures: Measures,
    /// Whether it has a signed policy; without one devices run no retrained release for it.
    pub(super) policy: bool,
}

/// Everything known of one device.
#[derive(Debug)]
pub(super) struct DeviceView<'a> {
    pub(super) row: &'a DeviceRow,
    pub(super) installed: Option<&'a BTreeMap<TaskId, Installed>>,
    pub(super) assigned: Option<&'a AssignmentRow>,
}

impl DeviceView<'_> {
    /// What the device was told about a task.
    fn told(&self, task: &TaskId) -> Option<&TaskAssignment> {
        self.assigned?.assignment.tasks.iter().find(|told| told.task == *task)
    }
}

/// A device's tasks with the reasons, and the rollouts they are orders of.
#[derive(Debug, Default)]
pub(super) struct Desired {
    pub(super) tasks: Vec<TaskAssignment>,
    pub(super) decisions: Vec<Decision>,
    pub(super) orders: BTreeMap<String, ReleaseId>,
}

/// Decides every task of a device.
pub(super) fn desire(
    device: &DeviceView<'_>,
    (tasks, still): (&[TaskView<'_>], &Still),
    approved: &BTreeMap<ReleaseId, Approved>,
    now_ms: u64,
) -> Desired {
    let mut desired = Desired::default();
    let told = device.assigned.map_or(&[][..], |assigned| &assigned.assignment.tasks);
    let planned = |told: &TaskAssignment| tasks.iter().any(|task| task.definition.task == told.task);
    desired.tasks.extend(told.iter().filter(|told| still.keeps(&told.task, planned(told))).cloned());
    let less = |left: u64, release: &ReleaseId| left.saturating_sub(need(approved, release));
    let kept = desired.tasks.iter().flat_map(|told| told.lineup.releases());
    let mut ram = kept.fold(device.row.profile.ram_bytes, less);
    let mut chosen_for = Vec::new();
    for task in tasks.iter().filter(|task| task.definition.covers(&device.row.groups)) {
        let candidates = candidates(device, task, approved);
        let known_bad: BTreeSet<ReleaseId> = candidates
            .iter()
            .map(|c| c.release.clone())
            .filter(|r| task.outcomes.is_known_bad(&device.row.id, r))
            .collect();
        let current = current(device, task);
        let profile = &device.row.profile;
        let served_ms = current.as_ref().and_then(|release| served_ms(device, task, release, now_ms));
        let about = Device { profile, known_bad: &known_bad, served_ms };
        let selection = select(&about, &candidates, current.as_ref(), &task.definition.selection());
        if let Some(chosen) = &selection.chosen {
            let rollout = task.rollouts.iter().rev().find(|rollout| {
                is_trial(rollout, &device.row.id) && rollout.plan.candidates.contains(chosen)
            });
            if let Some(rollout) = rollout {
                desired.orders.insert(rollout.plan.rollout.clone(), chosen.clone());
            }
            let (probation, deadline_ms) = match rollout {
                Some(rollout) => {
                    let wave = rollout.plan.members.get(&device.row.id).map_or(0, |previous| previous.wave);
                    let deadline_ms = now_ms.saturating_add(rollout.policy.commit_ms(wave));
                    (rollout.policy.watched(wave), Some(deadline_ms))
                }
                None => (task.definition.probation.clone(), None),
            };
            let fallback = task
                .definition
                .fallback
                .clone()
                .filter(|release| release != chosen && approved.contains_key(release));
            let lineup = LineUp::new(chosen.clone(), fallback);
            ram = lineup.releases().fold(ram, less);
            let plain = TaskAssignment { task: task.definition.task.clone(), lineup, probation, deadline_ms };
            chosen_for.push((task, desired.decisions.len(), plain));
        }
        desired.decisions.push(Decision {
            device: device.row.id.clone(),
            task: task.definition.task.clone(),
            chosen: selection.chosen.clone(),
            rollouts: stances(task, &device.row.id),
            held: task.definition.holds(&device.row.groups),
            members: Vec::new(),
            text: selection.explain(),
            selection: serde_json::to_value(&selection).expect("a selection is JSON"),
            made_ms: now_ms,
        });
    }
    // Members come once every task has the memory to answer at all, so that none of them takes another task's champion's.
    for (task, decision, plain) in chosen_for {
        let place = Place { task, device: device.row, approved };
        let Filled { lineup, words } = place.fill(plain.lineup, &mut ram);
        let decision = &mut desired.decisions[decision];
        for line in &words {
            decision.text.push('\n');
            decision.text.push_str(line);
        }
        decision.members = words;
        // The same models are not assigned anew because a rule about the change to them is another one now.
        let before = device.told(&plain.task).filter(|before| before.lineup == lineup);
        desired.tasks.push(match before {
            Some(before) => before.clone(),
            None => TaskAssignment { lineup, ..plain },
        });
    }
    // In one order, whatever stands still, so that the same tasks make the same assignment.
    desired.tasks.sort_by(|a, b| a.task.cmp(&b.task));
    desired
}

/// What counts as serving: what the device was told, as far as it has not failed there, else what it says it
/// runs; when a rollout sends it back, what it ran before.
fn current(device: &DeviceView<'_>, task: &TaskView<'_>) -> Option<ReleaseId> {
    let told = device.told(&task.definition.task).map(|task| task.lineup.champion.clone());
    let runs = device
        .installed
        .and_then(|tasks| tasks.get(&task.definition.task))
        .and_then(|installed| installed.release.clone());
    let current = told.filter(|release| !task.outcomes.is_known_bad(&device.row.id, release)).or(runs);
    let back = task.rollouts.iter().rev().find(|rollout| {
        stance(rollout, &device.row.id) == Stance::Return
            && current.as_ref().is_some_and(|release| rollout.plan.candidates.contains(release))
    });
    match back {
        Some(rollout) => {
            rollout.plan.members.get(&device.row.id).and_then(|previous| previous.release.clone())
        }
        None => current,
    }
}

/// How long a release has served: since the device committed to it. While it is still on its way it is held like what
/// serves, for as long as its probation and then some, so that a device does not change its goal half-way.
fn served_ms(device: &DeviceView<'_>, task: &TaskView<'_>, release: &ReleaseId, now_ms: u64) -> Option<u64> {
    if let Some(since_ms) = task.outcomes.committed_ms(&device.row.id, release) {
        return Some(now_ms.saturating_sub(since_ms));
    }
    let told = device.told(&task.definition.task).filter(|told| told.lineup.champion == *release)?;
    let for_ms = now_ms.saturating_sub(device.assigned?.made_ms);
    Some(for_ms.saturating_sub(told.probation.ms_min))
}

/// Where a device stands with a rollout.
fn stance(rollout: &RolloutRow, device: &DeviceId) -> Stance {
    match rollout.plan.stance(device) {
        Stance::Return if weaken::off(Defence::Return) => Stance::Open,
        stance @ (Stance::Hold | Stance::Open | Stance::Return) => stance,
    }
}

fn is_trial(rollout: &RolloutRow, device: &DeviceId) -> bool {
    match rollout.plan.state {
        State::Open { .. } | State::Paused { .. } => rollout.plan.stance(device) == Stance::Open,
        State::Created | State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. } => false,
    }
}

fn stances(task: &TaskView<'_>, device: &DeviceId) -> Vec<RolloutStance> {
    let stance = |rollout: &&RolloutRow| RolloutStance {
        rollout: rollout.plan.rollout.clone(),
        state: rollout.plan.state.name().into(),
        stance: match rollout.plan.stance(device) {
            Stance::Hold => "hold",
            Stance::Open => "open",
            Stance::Return => "return",
        }
        .into(),
    };
    task.rollouts.iter().map(stance).collect()
}

fn candidates(
    device: &DeviceView<'_>,
    task: &TaskView<'_>,
    approved: &BTreeMap<ReleaseId, Approved>,
) -> Vec<Candidate> {
    let of_task = approved.iter().filter(|(_, approved)| approved.task == task.definition.task);
    let candidate = |(release, approved): (&ReleaseId, &Approved)| Candidate {
        release: release.clone(),
        task_type: task.definition.task_type,
        standing: standing(task, &device.row.id, &device.row.groups, release),
        hard: approved.hard.clone(),
        evidence: task.measures.evidence(
            &device.row.id,
            &device.row.profile.class,
            release,
            device.installed.and_then(|tasks| tasks.get(&task.definition.task)),
            approved.predicted,
        ),
    };
    of_task.map(candidate).collect()
}

fn standing(
    task: &TaskView<'_>,
    device: &DeviceId,
    groups: &BTreeSet<GroupId>,
    release: &ReleaseId,
) -> Standing {
    if task.definition.pool.contains(release) {
        return Standing::Approved;
    }
    let Some(rollout) = task.rollouts.iter().rev().find(|rollout| rollout.plan.candidates.contains(release))
    else {
        return Standing::NotReached;
    };
    if task.definition.holds(groups) {
        return Standing::NotReached;
    }
    let failed = task.progress.get(rollout.plan.rollout.as_str()).and_then(|devices| devices.get(device));
    match (stance(rollout, device), &rollout.plan.state) {
        (Stance::Hold, State::Stopped { .. }) | (Stance::Return, _) => Standing::Quarantined,
        (Stance::Hold, _) => Standing::NotReached,
        // One candidate failed here: the device is a failure of the wave, not a place for further tries.
        (Stance::Open, _) if matches!(failed, Some(Progress::Failed { release: bad, .. }) if bad != release) => {
            Standing::NotReached
        }
        (Stance::Open, State::Open { .. } | State::Paused { .. }) => Standing::Trial,
        (
            Stance::Open,
            State::Created | State::Promoted { .. } | State::Stopped { .. } | State::Superseded { .. },
        ) => Standing::Approved,
    }
}

/// Whether the newest rollout of a release was stopped, so that it runs nowhere unless the operator keeps it in the pool.
pub(super) fn is_stopped(task: &TaskView<'_>, release: &ReleaseId) -> bool {
    let newest = task.rollouts.iter().rev().find(|rollout| rollout.plan.candidates.contains(release));
    match newest.map(|rollout| &rollout.plan.state) {
        Some(State::Stopped { .. }) => !task.definition.pool.contains(release),
        Some(
            State::Created
            | State::Open { .. }
            | State::Paused { .. }
            | State::Promoted { .. }
            | State::Superseded { .. },
        )
        | None => false,
    }
}

#[cfg(test)]
#[path = "assign/tests.rs"]
mod tests;
