//! What one device shall run: a pure function from what is known to an assignment and its reasons.
use std::collections::{BTreeMap, BTreeSet};

use dunlin_monitor::rate::Rate;
use dunlin_protocol::{
    Assignment, DeviceId, GroupId, Hard, Installed, LineUp, ReleaseId, TaskAssignment, TaskId,
};
use dunlin_rollout::{Progress, Stance, State};
use dunlin_select::{Candidate, Device, Evidence, Measured, Predicted, Standing, select};

use super::progress::Outcomes;
use super::{Decision, RolloutRow, RolloutStance, TaskDefinition};
use crate::store::DeviceRow;

/// An approved release.
#[derive(Debug, Clone)]
pub(super) struct Approved {
    pub(super) task: TaskId,
    pub(super) hard: Hard,
    pub(super) predicted: Predicted,
}

/// What was measured of each release on each device, for one task.
pub(super) type Measures = BTreeMap<(DeviceId, ReleaseId), Measured>;

/// What was measured of each release on each hardware class.
pub(super) type Classes = BTreeMap<(String, ReleaseId), Measured>;

/// Sums measures by hardware class, so that a fleet is planned in time proportional to its size.
pub(super) fn by_class(measures: &Measures, classes: &BTreeMap<&DeviceId, &str>) -> Classes {
    let mut sums = Classes::new();
    for ((device, release), measured) in measures {
        let Some(class) = classes.get(device) else { continue };
        let sum = sums.entry(((*class).to_owned(), release.clone())).or_default();
        sum.labels = sum.labels.plus(measured.labels);
        sum.failures = sum.failures.plus(measured.failures);
    }
    sums
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
    /// The same summed over each hardware class.
    pub(super) classes: Classes,
}

/// Everything known of one device.
#[derive(Debug)]
pub(super) struct DeviceView<'a> {
    pub(super) row: &'a DeviceRow,
    pub(super) installed: Option<&'a BTreeMap<TaskId, Installed>>,
    pub(super) assigned: Option<&'a Assignment>,
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
    tasks: &[TaskView<'_>],
    approved: &BTreeMap<ReleaseId, Approved>,
    now_ms: u64,
) -> Desired {
    let mut desired = Desired::default();
    for task in tasks.iter().filter(|task| task.definition.covers(&device.row.groups)) {
        let candidates = candidates(device, task, approved);
        let known_bad: BTreeSet<ReleaseId> = candidates
            .iter()
            .map(|c| c.release.clone())
            .filter(|r| task.outcomes.is_known_bad(&device.row.id, r))
            .collect();
        let current = current(device, task);
        let profile = &device.row.profile;
        let about = Device { profile, known_bad: &known_bad, served_ms: None };
        let selection = select(&about, &candidates, current.as_ref(), &task.definition.selection());
        let before = device
            .assigned
            .and_then(|assigned| assigned.tasks.iter().find(|t| t.task == task.definition.task));
        if let Some(chosen) = &selection.chosen {
            let rollout = task.rollouts.iter().rev().find(|rollout| {
                is_trial(rollout, &device.row.id) && rollout.plan.candidates.contains(chosen)
            });
            if let Some(rollout) = rollout {
                desired.orders.insert(rollout.plan.rollout.clone(), chosen.clone());
            }
            let probation = rollout.map_or(&task.definition.probation, |rollout| &rollout.policy.probation);
            let fallback = task
                .definition
                .fallback
                .clone()
                .filter(|release| release != chosen && approved.contains_key(release));
            let lineup = LineUp { champion: chosen.clone(), fallback };
            // The same models are not assigned anew because a rule about the change to them is another one now.
            desired.tasks.push(match before.filter(|before| before.lineup == lineup) {
                Some(before) => before.clone(),
                None => TaskAssignment {
                    task: task.definition.task.clone(),
                    lineup,
                    probation: probation.clone(),
                    deadline_ms: None,
                },
            });
        }
        desired.decisions.push(Decision {
            device: device.row.id.clone(),
            task: task.definition.task.clone(),
            chosen: selection.chosen.clone(),
            rollouts: stances(task, &device.row.id),
            held: task.definition.holds(&device.row.groups),
            text: selection.explain(),
            selection: serde_json::to_value(&selection).expect("a selection is JSON"),
            made_ms: now_ms,
        });
    }
    desired
}

/// What counts as serving: what the device was told, as far as it has not failed there, else what it says it
/// runs; when a rollout sends it back, what it ran before.
fn current(device: &DeviceView<'_>, task: &TaskView<'_>) -> Option<ReleaseId> {
    let told =
        device.assigned.and_then(|assigned| assigned.tasks.iter().find(|t| t.task == task.definition.task));
    let told = told.map(|task| task.lineup.champion.clone());
    let runs = device
        .installed
        .and_then(|tasks| tasks.get(&task.definition.task))
        .and_then(|installed| installed.release.clone());
    let current = told.filter(|release| !task.outcomes.is_known_bad(&device.row.id, release)).or(runs);
    let back = task.rollouts.iter().rev().find(|rollout| {
        rollout.plan.stance(&device.row.id) == Stance::Return
            && current.as_ref().is_some_and(|release| rollout.plan.candidates.contains(release))
    });
    match back {
        Some(rollout) => {
            rollout.plan.members.get(&device.row.id).and_then(|previous| previous.release.clone())
        }
        None => current,
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
        evidence: evidence(device, task, release, approved.predicted),
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
    match (rollout.plan.stance(device), &rollout.plan.state) {
        (_, State::Stopped { .. }) | (Stance::Return, _) => Standing::Quarantined,
        (Stance::Hold, _) => Standing::NotReached,
        // One candidate failed here: the device is a failure of the wave, not a place for further tries.
        (Stance::Open, _) if matches!(failed, Some(Progress::Failed { release: bad, .. }) if bad != release) => {
            Standing::NotReached
        }
        (Stance::Open, State::Open { .. } | State::Paused { .. }) => Standing::Trial,
        (Stance::Open, State::Created | State::Promoted { .. } | State::Superseded { .. }) => {
            Standing::Approved
        }
    }
}

fn evidence(
    device: &DeviceView<'_>,
    task: &TaskView<'_>,
    release: &ReleaseId,
    predicted: Predicted,
) -> Evidence {
    let mut here = task.measures.get(&(device.row.id.clone(), release.clone())).copied().unwrap_or_default();
    let class = task
        .classes
        .get(&(device.row.profile.class.to_string(), release.clone()))
        .copied()
        .unwrap_or_default();
    let without =
        |all: Rate, own: Rate| Rate::new(all.hits.saturating_sub(own.hits), all.n.saturating_sub(own.n));
    let class = Measured {
        labels: without(class.labels, here.labels),
        failures: without(class.failures, here.failures),
        ..Measured::default()
    };
    let installed = device.installed.and_then(|tasks| tasks.get(&task.definition.task));
    here.proof_us = installed
        .filter(|installed| installed.release.as_ref() == Some(release))
        .and_then(|installed| installed.proof_us);
    Evidence { device: here, class, predicted }
}
